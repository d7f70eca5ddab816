//! The format of a sandbox's record: upstream's file of cached delegates, and what we add to it.
//!
//! A JSON array with one object for each delegate. What upstream's members cannot say stands beside them under
//! `podrail`, which upstream ignores, so either program can delete the other's pods. Files of upstream 3.x to
//! 4.3 are read as well: `Bytes` holds the delegate's configuration there; in 4.2.1 to 4.3.0 it lost parts of
//! some, which `CNINetworkConfigList` still has. The earliest have a single address as a text.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use cni::{Attachment, NetworkList, Object, PluginConf, Request, Version};
use serde::{Deserialize, Serialize};

use crate::delegate::Delegate;

/// The version of the members under `podrail`.
const VERSION: u32 = 1;

/// What upstream's members cannot say.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ours {
    version: u32,
    label: String,
    primary: bool,
    ifname: String,
    netns: Option<PathBuf>,
    args: Vec<(String, String)>,
    capabilities: Object,
}

/// The part of a configuration that upstream keeps decoded.
#[derive(Default, Serialize)]
struct Head<'a> {
    #[serde(rename = "cniVersion", skip_serializing_if = "Option::is_none")]
    version: Option<Version>,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    plugins: Vec<Head<'a>>,
}

#[derive(Serialize)]
struct Element<'a> {
    #[serde(rename = "Conf")]
    conf: Head<'a>,
    #[serde(rename = "ConfList")]
    conf_list: Head<'a>,
    #[serde(rename = "Name")]
    name: &'a str,
    #[serde(rename = "ifnameRequest")]
    ifname: &'a str,
    #[serde(rename = "macRequest", skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(rename = "infinibandGUIDRequest", skip_serializing_if = "Option::is_none")]
    guid: Option<String>,
    #[serde(rename = "ipRequest", skip_serializing_if = "Option::is_none")]
    ips: Option<Vec<String>>,
    #[serde(rename = "default-route", skip_serializing_if = "Option::is_none")]
    default_route: Option<&'a [std::net::IpAddr]>,
    #[serde(rename = "IsFilterV4Gateway")]
    filter_v4: bool,
    #[serde(rename = "IsFilterV6Gateway")]
    filter_v6: bool,
    #[serde(rename = "deviceID", skip_serializing_if = "Option::is_none")]
    device_id: Option<&'a str>,
    #[serde(rename = "resourceName", skip_serializing_if = "Option::is_none")]
    resource: Option<&'a str>,
    #[serde(rename = "Bytes")]
    bytes: String,
    podrail: Ours,
}

/// The file's content.
#[must_use]
pub fn encode(delegates: &[Delegate]) -> Vec<u8> {
    let elements: Vec<Element<'_>> = delegates.iter().map(element).collect();
    // Only maps whose keys are not texts have no JSON form, and there are none here.
    serde_json::to_vec(&elements).unwrap_or_default()
}

fn element(delegate: &Delegate) -> Element<'_> {
    let Delegate { list, attachment, .. } = delegate;
    let mut head = Head { version: Some(list.version), name: &list.name, ..Head::default() };
    let mut kinds = list.plugins.iter().map(|p| Head { kind: Some(&p.kind), ..Head::default() });
    let (conf, conf_list) = if list.is_single() {
        head.kind = kinds.next().and_then(|plugin| plugin.kind);
        (head, Head::default())
    } else {
        head.plugins = kinds.collect();
        (Head::default(), head)
    };
    // For the primary these are the runtime's, which upstream does not keep.
    let asked = if delegate.is_primary { &Object::new() } else { &attachment.capabilities };
    Element {
        conf,
        conf_list,
        name: &delegate.label,
        ifname: &attachment.ifname,
        mac: asked.decode("mac").unwrap_or_default(),
        guid: asked.decode("infinibandGUID").unwrap_or_default(),
        ips: asked.decode("ips").unwrap_or_default(),
        default_route: delegate.default_route.as_deref(),
        filter_v4: false,
        filter_v6: false,
        device_id: delegate.device_id.as_deref(),
        resource: delegate.resource.as_deref(),
        bytes: BASE64.encode(list.to_vec()),
        podrail: Ours {
            version: VERSION,
            label: delegate.label.clone(),
            primary: delegate.is_primary,
            ifname: attachment.ifname.clone(),
            netns: attachment.netns.clone(),
            args: attachment.args.clone(),
            capabilities: attachment.capabilities.clone(),
        },
    }
}

/// Reads a file's content. What upstream does not keep is taken from `request`, as upstream does.
///
/// # Errors
/// Code 6 when it is not such a file: cut short by a crash, or of a later version of ours.
pub fn decode(bytes: &[u8], request: &Request) -> Result<Vec<Delegate>, cni::Error> {
    let elements: Vec<Object> = serde_json::from_slice(bytes)
        .map_err(|e| cni::Error::decoding(format!("not a list of delegates: {e}")))?;
    let each = |(index, element): (usize, Object)| {
        decode_one(index, &element, request).map_err(|e| e.context(format!("delegate {index}")))
    };
    elements.into_iter().enumerate().map(each).collect()
}

fn decode_one(index: usize, element: &Object, request: &Request) -> Result<Delegate, cni::Error> {
    let list = match element.decode::<Object>("CNINetworkConfigList")? {
        Some(list) if list.decode::<Vec<Object>>("Plugins")?.is_some_and(|p| !p.is_empty()) => {
            whole_list(&list)?
        }
        _ => NetworkList::parse(&base64(element, "Bytes")?)?,
    };
    let text = |key| Ok::<_, cni::Error>(element.decode::<String>(key)?.filter(|t| !t.is_empty()));
    let delegate = Delegate {
        label: text("Name")?.unwrap_or_else(|| list.name.clone()),
        is_primary: index == 0,
        attachment: Attachment {
            container_id: request.container_id.clone(),
            netns: request.netns.clone(),
            ifname: String::new(),
            args: Vec::new(),
            capabilities: Object::new(),
        },
        list,
        resource: text("resourceName")?,
        device_id: text("deviceID")?,
        default_route: element.decode("default-route").unwrap_or_default(),
    };
    match element.decode::<Ours>("podrail")? {
        Some(ours) if ours.version == VERSION => Ok(with_ours(delegate, ours)),
        Some(ours) => Err(cni::Error::decoding(format!("written by a later version ({})", ours.version))),
        None => with_upstreams(index, delegate, element, request),
    }
}

fn with_ours(mut delegate: Delegate, ours: Ours) -> Delegate {
    let Ours { label, primary, ifname, netns, args, capabilities, .. } = ours;
    let attachment = Attachment { netns, ifname, args, capabilities, ..delegate.attachment };
    delegate.attachment = attachment;
    delegate.label = label;
    delegate.is_primary = primary;
    delegate
}

fn with_upstreams(
    index: usize,
    mut delegate: Delegate,
    element: &Object,
    request: &Request,
) -> Result<Delegate, cni::Error> {
    delegate.attachment.ifname = match element.decode::<String>("ifnameRequest")? {
        Some(name) if !name.is_empty() => name,
        _ if index == 0 => request.ifname.clone(),
        _ => format!("net{index}"),
    };
    delegate.attachment.args = request.args.pairs().to_vec();
    if let Some(id) = &delegate.device_id {
        // Not in every version did it reach the list that is kept as a whole.
        for plugin in
            delegate.list.plugins.iter_mut().filter(|plugin| plugin.config.get("deviceID").is_none())
        {
            plugin.config.set("deviceID", id)?;
            plugin.config.set("pciBusID", id)?;
        }
    }
    if delegate.is_primary {
        return Ok(delegate);
    }
    let capabilities = &mut delegate.attachment.capabilities;
    for (key, capability) in
        [("macRequest", "mac"), ("infinibandGUIDRequest", "infinibandGUID"), ("deviceID", "deviceID")]
    {
        if let Some(text) = element.decode::<String>(key)?.filter(|text| !text.is_empty()) {
            capabilities.set(capability, &text)?;
        }
    }
    let ips = element.decode::<Ips>("ipRequest")?.map(Ips::into_list).unwrap_or_default();
    if !ips.is_empty() {
        capabilities.set("ips", &ips)?;
    }
    Ok(delegate)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ips {
    List(Vec<String>),
    One(String),
}

impl Ips {
    fn into_list(self) -> Vec<String> {
        match self {
            Ips::List(ips) => ips,
            Ips::One(ip) => Some(ip).filter(|ip| !ip.is_empty()).into_iter().collect(),
        }
    }
}

fn base64(object: &Object, key: &str) -> Result<Vec<u8>, cni::Error> {
    let text: String = object
        .decode(key)?
        .ok_or_else(|| cni::Error::decoding(format!("{key:?} is missing, and with it the configuration")))?;
    BASE64.decode(text).map_err(|e| cni::Error::decoding(format!("{key:?} is not base64: {e}")))
}

/// The list that upstream 4.2.1 to 4.3.0 kept as a whole: its members decoded, each plugin in `Bytes`.
fn whole_list(stored: &Object) -> Result<NetworkList, cni::Error> {
    let mut list = Object::new();
    for (theirs, key) in [
        ("Name", "name"),
        ("CNIVersion", "cniVersion"),
        ("DisableCheck", "disableCheck"),
        ("DisableGC", "disableGC"),
    ] {
        if let Some(value) = stored.get_fold(theirs) {
            list.set_raw(key, value)?;
        }
    }
    let plugins: Vec<Object> = stored.decode("Plugins")?.unwrap_or_default();
    let plugin = |p: &Object| Object::parse(&base64(p, "Bytes")?);
    let plugins = plugins.iter().map(plugin).collect::<Result<Vec<_>, _>>()?;
    for plugin in &plugins {
        PluginConf::new(plugin.clone())?;
    }
    list.set("plugins", &plugins)?;
    NetworkList::from_object(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegate::tests::request;

    fn delegate() -> Delegate {
        Delegate {
            label: "ns/a".into(),
            is_primary: false,
            list: NetworkList::parse(
                br#"{"name":"a","cniVersion":"0.4.0","plugins":[{"type":"x","big":12345678901234567890}]}"#,
            )
            .unwrap(),
            attachment: Attachment {
                container_id: "c0ffee".into(),
                netns: Some("/run/netns/y".into()),
                ifname: "net1".into(),
                args: vec![("K".into(), "v".into())],
                capabilities: Object::parse(
                    br#"{"mac":"02:00:00:00:00:01","portMappings":[{"hostPort":1}]}"#,
                )
                .unwrap(),
            },
            resource: Some("r".into()),
            device_id: Some("0000:01".into()),
            default_route: Some(vec!["10.0.0.1".parse().unwrap()]),
        }
    }

    #[test]
    fn ours_comes_back_whole() {
        let bytes = encode(&[delegate(), Delegate { default_route: None, is_primary: true, ..delegate() }]);
        let got = decode(&bytes, &request("{}")).unwrap();
        assert_eq!(encode(&got), bytes);
        assert_eq!(got.len(), 2);
        assert!(!got[0].is_primary && got[1].is_primary);
        assert_eq!(got[0].list.to_vec(), delegate().list.to_vec());
        assert_eq!(got[0].attachment.capabilities, delegate().attachment.capabilities);
        assert_eq!(got[0].attachment.netns, delegate().attachment.netns);
    }

    #[test]
    fn upstream_finds_its_members() {
        let value: serde_json::Value = serde_json::from_slice(&encode(&[delegate()])).unwrap();
        let element = &value[0];
        assert_eq!(element["Conf"], serde_json::json!({}));
        assert_eq!(
            element["ConfList"],
            serde_json::json!({"cniVersion": "0.4.0", "name": "a", "plugins": [{"type": "x"}]})
        );
        assert_eq!(element["Name"], "ns/a");
        assert_eq!(element["ifnameRequest"], "net1");
        assert_eq!(element["macRequest"], "02:00:00:00:00:01");
        assert_eq!(element["default-route"], serde_json::json!(["10.0.0.1"]));
        assert_eq!(element["deviceID"], "0000:01");
        let bytes = BASE64.decode(element["Bytes"].as_str().unwrap()).unwrap();
        assert_eq!(bytes, delegate().list.to_vec());
        let single =
            Delegate { list: NetworkList::parse(br#"{"name":"a","type":"x"}"#).unwrap(), ..delegate() };
        let value: serde_json::Value = serde_json::from_slice(&encode(&[single])).unwrap();
        assert_eq!(value[0]["Conf"], serde_json::json!({"cniVersion": "0.1.0", "name": "a", "type": "x"}));
        assert_eq!(value[0]["ConfList"], serde_json::json!({}));
    }

    #[test]
    fn upstreams_files_are_read() {
        let bytes = |json: &str| BASE64.encode(json);
        let plugin = bytes(r#"{"type":"x","private":{"key":1}}"#);
        let file = format!(
            r#"[{{"Conf":{{}},"ConfList":{{"plugins":[{{"type":"x"}}]}},"Name":"cbr0","IsFilterV4Gateway":false,
                 "Bytes":"{}","CNINetworkConfigList":{{"Name":"cbr0","CNIVersion":"0.4.0","DisableCheck":false,"DisableGC":false,
                 "LoadOnlyInlinedPlugins":false,"Plugins":[{{"Network":{{}},"Bytes":"{plugin}"}}],"Bytes":"e30="}}}},
               {{"Conf":{{"type":"y"}},"ConfList":{{"plugins":null}},"Name":"ns/b","macRequest":"02:00:00:00:00:01",
                 "ipRequest":["10.0.0.1"],"deviceID":"0000:01","resourceName":"r","Bytes":"{}","CNINetworkConfigList":null}},
               {{"Name":"ns/c","ifnameRequest":"sriov0","default-route":[],"Bytes":"{}"}}]"#,
            bytes(r#"{"name":"cbr0","plugins":[{"type":"x"}]}"#),
            bytes(r#"{"name":"b","type":"y"}"#),
            bytes(r#"{"name":"c","type":"z"}"#),
        );
        let got = decode(file.as_bytes(), &request("{}")).unwrap();
        let names: Vec<_> = got.iter().map(|d| d.attachment.ifname.as_str()).collect();
        assert_eq!(names, ["eth0", "net1", "sriov0"]);
        assert!(String::from_utf8(got[0].list.to_vec()).unwrap().contains(r#""private":{"key":1}"#));
        assert_eq!(got[0].list.version, Version::V0_4_0);
        assert_eq!(got[1].attachment.capabilities.get("mac"), Some("\"02:00:00:00:00:01\""));
        assert_eq!(got[1].attachment.capabilities.get("ips"), Some("[\"10.0.0.1\"]"));
        assert_eq!(got[1].device_id.as_deref(), Some("0000:01"));
        assert_eq!(got[1].list.plugins[0].config.get("pciBusID"), Some("\"0000:01\""));
        assert!(got[2].attachment.args.iter().any(|(k, v)| k == "K8S_POD_NAME" && v == "p"));
    }

    #[test]
    fn what_upstream_did_not_fill_in_is_not_asked_for() {
        let bytes = BASE64.encode(r#"{"name":"b","type":"y"}"#);
        for (members, want) in [
            (r#""macRequest":"","ipRequest":null,"deviceID":"","infinibandGUIDRequest":null"#, "{}"),
            (r#""ipRequest":"""#, "{}"),
            (r#""ipRequest":[]"#, "{}"),
            (r#""ipRequest":"10.0.0.1","macRequest":"m""#, r#"{"mac":"m","ips":["10.0.0.1"]}"#),
            (r#""iprequest":["10.0.0.1","fd00::1"]"#, r#"{"ips":["10.0.0.1","fd00::1"]}"#),
        ] {
            let file = format!(r#"[{{"Bytes":"{bytes}"}},{{"Name":"b",{members},"Bytes":"{bytes}"}}]"#);
            let got = decode(file.as_bytes(), &request("{}")).unwrap();
            let capabilities = String::from_utf8(got[1].attachment.capabilities.to_vec()).unwrap();
            assert_eq!(capabilities, want, "{members}");
        }
    }

    #[test]
    fn broken_files_are_errors() {
        let later =
            String::from_utf8(encode(&[delegate()])).unwrap().replace("\"version\":1", "\"version\":2");
        for text in
            ["", "[", "{}", "null", "[null]", "[{}]", r#"[{"Bytes":"?"}]"#, r#"[{"Bytes":"e30="}]"#, &later]
        {
            assert!(decode(text.as_bytes(), &request("{}")).is_err(), "{text}");
        }
        assert!(decode(b"[]", &request("{}")).unwrap().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_file_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = decode(&bytes, &request("{}"));
        }

        /// A record cut short anywhere is noticed.
        #[test]
        fn no_part_of_a_file_is_taken_for_a_whole(cut in 0..1usize << 12) {
            let bytes = encode(&[delegate(), delegate()]);
            let part = &bytes[..cut.min(bytes.len() - 1)];
            let refused = decode(part, &request("{}")).is_err();
            proptest::prop_assert!(refused, "cut at {}", cut);
        }
    }
}
