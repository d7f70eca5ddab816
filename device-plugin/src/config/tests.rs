use proptest::prelude::*;

use super::*;

fn conf(text: &str) -> Conf {
    parse(text, "intel.com").unwrap().0
}

/// One pool whose entry has these members.
fn pool_of(members: &str) -> Arc<PoolConf> {
    conf(&format!(r#"{{"resourceList": [{{"resourceName": "a", {members}}}]}}"#)).pools.remove(0)
}

#[test]
fn a_file_as_people_write_it() {
    let conf = conf(
        r#"{
            "resourceList": [
                {
                    "resourceName": "intel_sriov_netdevice",
                    "selectors": {"vendors": ["8086"], "devices": ["154c"], "pfNames": ["ens1f0#0-3,7", "ens1f1"]}
                },
                {
                    "resourceName": "dpdk",
                    "resourcePrefix": "example.com",
                    "excludeTopology": true,
                    "additionalInfo": {"*": {"token": "t"}, "0000:3b:02.1": {"port": "1"}},
                    "selectors": [{"drivers": ["vfio-pci"], "needVhostNet": true}, {"vdpaType": "vhost"}]
                },
                {"resourceName": "sf", "deviceType": "auxNetDevice", "selectors": [{"auxTypes": ["sf"]}]},
                {"resourceName": "fec", "deviceType": "accelerator"}
            ]
        }"#,
    );
    let names: Vec<String> = conf.pools.iter().map(|pool| pool.resource.to_string()).collect();
    assert_eq!(
        names,
        ["intel.com/intel_sriov_netdevice", "example.com/dpdk", "intel.com/sf", "intel.com/fec"]
    );
    let ranges: Vec<String> = conf.pools[0].selectors[0].pf_names.iter().map(Ranged::to_string).collect();
    assert_eq!(ranges, ["ens1f0#0-3,7", "ens1f1"]);
    assert!(conf.pools[1].exclude_topology && conf.pools[1].selectors[0].need_vhost_net);
    assert_eq!(conf.pools[1].selectors[1].vdpa_type, Some(VdpaType::Vhost));
    assert_eq!(conf.pools[1].additional_info["*"]["token"], "t");
    assert_eq!(conf.pools[2].device_type, DeviceType::AuxNetDevice);
    assert_eq!(conf.pools[3].selectors, [Selector::default()]);
}

#[test]
fn a_file_as_the_operator_writes_it() {
    let text = r#"{"resourceList":[{"resourceName":"vfs","selectors":{"vendors":["15b3"],"pfNames":["ens1f0np0"],
        "IsRdma":true,"NeedVhostNet":true},"SelectorObj":null}]}"#;
    let (conf, suspicions) = parse(text, "openshift.io").unwrap();
    assert_eq!(suspicions, []);
    let selector = &conf.pools[0].selectors[0];
    assert!(selector.is_rdma && selector.need_vhost_net);
    assert_eq!(conf.pools[0].resource.to_string(), "openshift.io/vfs");
}

#[test]
fn what_is_left_out_or_null() {
    for text in [r#"{"resourceList": null}"#, r#"{"resourceList": []}"#, "{}"] {
        assert_eq!(conf(text), Conf::default(), "{text}");
    }
    assert_eq!(pool_of(r#""selectors": null"#).selectors, [Selector::default()]);
    assert_eq!(pool_of(r#""selectors": {}"#).selectors, [Selector::default()]);
    assert_eq!(pool_of(r#""selectors": [{}, {"vendors": null}]"#).selectors.len(), 2);
    let pool = pool_of(r#""selectors": {"vendors": [null], "devices": ["1015", null]}"#);
    let selectors = &pool.selectors;
    assert_eq!((selectors[0].vendors.as_slice(), selectors[0].devices.len()), (&[String::new()][..], 2));
    assert_eq!(pool_of(r#""additionalInfo": {"*": {"a": null}, "x": null}"#).additional_info["*"]["a"], "");
    assert_eq!(pool_of(r#""resourcePrefix": "", "deviceType": null"#).resource.prefix, "intel.com");
    assert_eq!(pool_of(r#""selectors": {"vdpaType": ""}"#).selectors, [Selector::default()]);
}

#[test]
fn what_cannot_be_used_is_named_with_its_place() {
    let one = |entry: &str| format!("{{\"resourceList\": [\n{entry}\n]}}");
    let cases = [
        ("[]".to_owned(), "1:1: must be an object, not []"),
        ("{\"resourceList\": {}}".to_owned(), "1:18: resourceList: must be a list, not {}"),
        ("{\"resourceList\": [\n{,}]}".to_owned(), "2:2: not JSON: key must be a string"),
        (one("7"), "2:1: resourceList[0]: must be an object, not 7"),
        (one("{}"), "2:1: resourceList[0]: resourceName is missing"),
        (one(r#"{"resourceName": 5}"#), "2:18: resourceList[0].resourceName: must be a text, not 5"),
        (one(r#"{"resourceName": "a.b"}"#), "2:18: resourceList[0].resourceName: \"a.b\" may have only"),
        (
            one("{\"resourceName\": \"a\"},\n{\"resourceName\": \"a\"}"),
            "3:1: resourceList[1]: resource intel.com/a is there twice",
        ),
        (
            one(r#"{"resourceName": "a", "deviceType": "nic"}"#),
            "2:37: resourceList[0].deviceType: \"nic\" is no device type; there are netDevice, accelerator",
        ),
        (one(r#"{"resourceName": "a", "selectors": []}"#), "2:36: resourceList[0].selectors: an empty list"),
        (
            one(r#"{"resourceName": "a", "selectors": [{"vendors": "8086"}]}"#),
            "2:49: resourceList[0].selectors[0].vendors: must be a list, not \"8086\"",
        ),
        (
            one(r#"{"resourceName": "a", "selectors": {"vendors": ["8086", 5]}}"#),
            "2:57: resourceList[0].selectors.vendors[1]: must be a text, not 5",
        ),
        (
            one(r#"{"resourceName": "a", "selectors": {"pfNames": ["p0#1-x"]}}"#),
            "2:49: resourceList[0].selectors.pfNames[0]: \"1-x\" in \"p0#1-x\" is neither",
        ),
        (
            one(r#"{"resourceName": "a", "selectors": {"isRdma": "yes"}}"#),
            "2:47: resourceList[0].selectors.isRdma: must be true or false, not \"yes\"",
        ),
        (
            one(r#"{"resourceName": "a", "selectors": [{"isRdma": true, "vdpaType": "vhost"}]}"#),
            "2:37: resourceList[0].selectors[0]: isRdma and vdpaType exclude each other",
        ),
        (
            one(r#"{"resourceName": "a", "selectors": {"vdpaType": "x"}}"#),
            "2:49: resourceList[0].selectors.vdpaType: \"x\" is no vDPA type",
        ),
        (
            one(
                r#"{"resourceName": "a", "deviceType": "auxNetDevice", "selectors": {"auxTypes": ["sf", "eth"]}}"#,
            ),
            "2:86: resourceList[0].selectors.auxTypes[1]: \"eth\" is no auxiliary device for containers; there is sf",
        ),
        (
            one(r#"{"resourceName": "a", "deviceType": "auxNetDevice"}"#),
            "2:1: resourceList[0]: device type auxNetDevice needs auxTypes",
        ),
        (
            one(r#"{"resourceName": "a", "additionalInfo": {"*": {"a": 1}}}"#),
            "2:47: resourceList[0].additionalInfo.*: must be an object of texts",
        ),
        (one(r#"{"resourceName": "a", "resourcePrefix": "../x"}"#), "2:41: resourceList[0].resourcePrefix:"),
    ];
    for (text, expected) in cases {
        let fault = parse(&text, "intel.com").unwrap_err().to_string();
        assert!(fault.starts_with(expected), "{text}\n{fault}");
    }
}

#[test]
fn what_is_suspicious_is_said_and_used() {
    let text = r#"{"resourceLists": 1, "resourceList": [{"resourceName": "a-", "selector": {}, "selectors":
        {"pfName": ["x"], "pciAddresses": ["3b:02.1"], "auxTypes": ["sf"]}, "additionalInfo": {"3b:02.1": {}}}]}"#;
    let (conf, suspicions) = parse(text, "intel.com").unwrap();
    assert_eq!(conf.pools.len(), 1);
    let keys: Vec<&str> = suspicions.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "resourceLists",
            "resourceList[0].selector",
            "resourceList[0].resourceName",
            "resourceList[0].selectors.pfName",
            "resourceList[0].selectors.auxTypes",
            "resourceList[0].selectors.pciAddresses[0]",
            "resourceList[0].additionalInfo.3b:02.1",
        ]
    );
}

#[test]
fn errors_name_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let missing = load(&path, "intel.com").unwrap_err().to_string();
    assert!(missing.contains("config.json") && missing.contains("-config-file"), "{missing}");
    std::fs::write(&path, b"{\n  \"a\xff\": 1}").unwrap();
    let invalid = load(&path, "intel.com").unwrap_err().to_string();
    assert!(invalid.ends_with("config.json:2:5: not UTF-8"), "{invalid}");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = parse(&text, "intel.com");
    }

    /// Damages a good file in one place.
    #[test]
    fn no_damaged_file_panics(at: prop::sample::Index, with in "[]\\[{}\",:0-9a-z#\\\\-]{0,3}") {
        let good = r#"{"resourceList":[{"resourceName":"a","deviceType":"netDevice","additionalInfo":{"*":{"a":"b"}},
            "selectors":[{"pfNames":["p0#0-3,7"],"isRdma":true,"vdpaType":"","pciAddresses":["0000:3b:02.1"]}]}]}"#;
        let at = at.index(good.len());
        let damaged = format!("{}{with}{}", &good[..at], &good[at + 1..]);
        if let Err(fault) = parse(&damaged, "intel.com") {
            prop_assert!(fault.line >= 1 && fault.column >= 1 || fault.problem.contains("EOF"));
        }
    }
}

/// A file that has every kind of value.
const EVERY_KIND: &str = r#"{
    "resourceList": [
        {"resourceName": "a", "resourcePrefix": "example.com", "excludeTopology": true, "deviceType": "netDevice",
         "additionalInfo": {"*": {"token": "t"}, "0000:3b:02.1": {"port": "1"}}, "placement": "spread", "near": "0000:17:00.0",
         "selectors": [{"drivers": ["vfio-pci"], "IsRdma": true}, {"pfNames": ["p0#0-3,7"], "vdpaType": "vhost"}]},
        {"resourceName": "b", "selectors": {"rootDevices": ["0000:3b:00.0#1"], "needVhostNet": null}}
    ]
}"#;

/// What a slip of the hand, or of a template, puts into a file.
const SLIPS: [&str; 16] = [
    "",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "null",
    "true",
    "-1",
    "1e999",
    "\\u",
    "\n",
    "é",
    r#""resourceName": "a","#,
];

proptest! {
    #[test]
    fn no_text_panics_and_every_refusal_says_where(
        slips in proptest::collection::vec((0..EVERY_KIND.len(), 0usize..12, 0..SLIPS.len()), 1..4)
    ) {
        let mut text = EVERY_KIND.to_owned();
        for (start, length, slip) in slips {
            let boundary = |at: usize| (at.min(text.len())..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap();
            let (start, end) = (boundary(start), boundary(start + length));
            text.replace_range(start..end, SLIPS[slip]);
        }
        if let Err(fault) = parse(&text, "intel.com") {
            corpus::assert_says_where(&fault, text.as_bytes());
        }
    }
}
