//! VFs as network interfaces of pods.

use std::fs::File;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};

use crate::machine::{Addresses, Pod, STATE, VF_RESET, Vf, run};

/// What `ip` shows of the interface in the pod.
pub(crate) fn inside(vf: &Vf, pod: &Pod) -> Value {
    vf.link(Some(pod)).unwrap_or_else(|| panic!("VF {} is not in the pod", vf.address))
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn every_option_is_set_and_taken_back() {
    let (vf, pod, addresses) = (Vf::take(), Pod::new(), Addresses::new());
    let before = vf.snapshot();
    let conf = vf.conf(&json!({
        "VLAN": 100, "vlanQoS": 3, "mac": "02:00:00:00:01:01", "spoofchk": "OFF", "trust": "on", "mtu": 1400,
        "max_tx_rate": 100,
        "ipam": addresses.ipam(),
    }));
    let result = pod.add(&conf).ok();
    assert_eq!(result["interfaces"][0]["name"], json!(pod.ifname));
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:01:01");
    assert_eq!(result["interfaces"][0]["sandbox"], json!(pod.netns()));
    assert_eq!(result["ips"][0]["interface"], 0);

    let settings = vf.settings();
    assert_eq!(settings["vlan_list"][0]["vlan"], 100, "{settings}");
    assert_eq!(settings["vlan_list"][0]["qos"], 3, "{settings}");
    assert_eq!(settings["address"], "02:00:00:00:01:01");
    assert_eq!((&settings["spoofchk"], &settings["trust"]), (&json!(false), &json!(true)));
    assert_eq!(settings["rate"]["max_tx"], 100);
    let link = inside(&vf, &pod);
    assert_eq!((&link["ifname"], &link["mtu"]), (&json!(pod.ifname), &json!(1400)));
    assert_eq!(link["address"], "02:00:00:00:01:01");
    assert_eq!(addresses.held().len(), 2);
    for (family, address, route) in
        [("-4", "192.0.2.2/24", "198.51.100.0/24"), ("-6", "2001:db8::2/64", "2001:db8::/64")]
    {
        assert!(pod.ip(&[family, "address", "show", "dev", &pod.ifname]).contains(address));
        assert!(pod.ip(&[family, "route"]).contains(route));
    }

    for situation in ["first DEL", "second DEL"] {
        pod.del(&conf).ok();
        vf.assert_is(&before, situation);
        assert!(pod.is_empty(), "{situation}");
        assert!(addresses.held().is_empty(), "{situation}");
    }
}

/// Fault 6 of docs/sriov.md.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn switches_mean_the_same_in_any_case() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let before = vf.snapshot();
    for (text, on) in [("on", true), ("ON", true), ("On", true), ("off", false), ("OFF", false)] {
        let conf = vf.conf(&json!({"spoofchk": text, "trust": text}));
        pod.add(&conf).ok();
        let settings = vf.settings();
        assert_eq!((&settings["spoofchk"], &settings["trust"]), (&json!(on), &json!(on)), "{text}");
        pod.del(&conf).ok();
        vf.assert_is(&before, text);
    }
    for text in ["true", "yes", "1"] {
        for key in ["spoofchk", "trust"] {
            let error = pod.add(&vf.conf(&json!({key: text}))).error();
            assert!(error.contains(key) && error.contains(text), "{error}");
        }
    }
}

/// A PF whose interface is not in the host's namespace, as in a virtual machine there is none.
struct Hidden<'a> {
    pf: &'a str,
    elsewhere: Pod,
}

impl<'a> Hidden<'a> {
    fn new(pf: &'a str) -> Self {
        let elsewhere = Pod::new();
        run("ip", &["link", "set", pf, "netns", &elsewhere.name]);
        elsewhere.ip(&["link", "set", pf, "up"]);
        thread::sleep(VF_RESET);
        Self { pf, elsewhere }
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        self.elsewhere.ip(&["link", "set", self.pf, "netns", "1"]);
        run("udevadm", &["settle"]);
        run("ip", &["link", "set", self.pf, "up"]);
        thread::sleep(VF_RESET);
    }
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn without_its_pf_a_vf_has_an_interface_and_nothing_more() {
    let vfs = Vf::take_all();
    let (vf, pod, addresses) = (&vfs[0], Pod::new(), Addresses::new());
    let before = vf.snapshot();
    let with_vlan = vf.conf(&json!({"vlan": 100}));
    let plain = vf.conf(&json!({"vlan": 0, "mtu": 1400, "ipam": addresses.ipam()}));

    let hidden = Hidden::new(&vf.pf);
    for keys in [json!({"vlan": 100}), json!({"trust": "on"}), json!({"max_tx_rate": 10})] {
        let error = pod.add(&vf.conf(&keys)).error();
        assert!(error.contains("physical function is not visible"), "{error}");
        assert!(!vf.has_state());
    }
    let result = pod.add(&plain).ok();
    assert_eq!(result["ips"][0]["address"], "192.0.2.2/24");
    assert_eq!(inside(vf, &pod)["mtu"], 1400);
    pod.del(&plain).ok();
    assert!(!vf.has_state() && pod.is_empty() && addresses.held().is_empty());
    drop(hidden);
    vf.assert_is(&before, "attached and detached without a PF");

    // A setting that cannot be taken back now is remembered until it can.
    pod.add(&with_vlan).ok();
    let hidden = Hidden::new(&vf.pf);
    let error = pod.del(&with_vlan).error();
    assert!(error.contains("physical function is not visible") && error.contains("vlan"), "{error}");
    assert!(vf.has_state() && pod.is_empty());
    drop(hidden);
    pod.del(&with_vlan).ok();
    vf.assert_is(&before, "the PF is back");
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn the_result_names_the_device_in_the_newest_version() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let conf = vf.conf(&json!({"cniVersion": "1.1.0"}));
    let interface = pod.add(&conf).ok()["interfaces"][0].clone();
    assert_eq!(interface["pciID"], json!(vf.address));
    assert_eq!(interface["mtu"], 1500);
    pod.del(&conf).ok();
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn vlans_connect_and_separate() {
    let vfs = Vf::take_many(3);
    let pods: Vec<_> = vfs.iter().map(|_| Pod::new()).collect();
    let confs: Vec<_> = vfs
        .iter()
        .zip([(1, 100), (2, 100), (3, 200)])
        .map(|(vf, (host, vlan))| {
            let address = format!("192.0.2.{host}/24");
            vf.conf(&json!({"vlan": vlan, "ipam": {"type": "static", "addresses": [{"address": address}]}}))
        })
        .collect();
    for (pod, conf) in pods.iter().zip(&confs) {
        pod.add(conf).ok();
    }
    assert!(pods[0].can_ping("192.0.2.2"), "same VLAN");
    assert!(!pods[0].can_ping("192.0.2.3"), "other VLAN");
    for (pod, conf) in pods.iter().zip(&confs) {
        pod.del(conf).ok();
    }
}

/// Fault 2 of docs/sriov.md.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_refused_option_is_named_and_everything_undone() {
    let (vf, pod, addresses) = (Vf::take(), Pod::new(), Addresses::new());
    let before = vf.snapshot();
    // igb knows no link state; the options before it have been made by then.
    let conf = vf.conf(&json!({
        "vlan": 100, "mac": "02:00:00:00:01:02", "trust": "on", "link_state": "enable", "ipam": addresses.ipam(),
    }));
    let error = pod.add(&conf).error();
    for part in ["link_state enable", &vf.address, &vf.pf, "driver igb", "not supported"] {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    vf.assert_is(&before, "after the failed ADD");
    assert!(pod.is_empty() && addresses.held().is_empty());
    pod.del(&conf).ok();
    vf.assert_is(&before, "after DEL of the failed ADD");
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn failing_ipam_is_undone() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let before = vf.snapshot();
    for ipam in [json!({"type": "static"}), json!({"type": "no-such-plugin"})] {
        let conf = vf.conf(&json!({"vlan": 100, "mac": "02:00:00:00:01:03", "ipam": ipam}));
        let error = pod.add(&conf).error();
        assert!(error.contains("IPAM plugin"), "{error}");
        vf.assert_is(&before, &error);
        assert!(pod.is_empty());
    }
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_bad_configuration_touches_nothing() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let before = vf.snapshot();
    for (keys, part) in [
        (json!({"vlan": 4095}), "vlan"),
        (json!({"vlan": 100, "spoofchk": "true"}), "spoofchk"),
        (json!({"vlan": 100, "mac": "01:00:5e:00:00:01"}), "mac"),
        (json!({"vlan": 100, "mtu": 65_000}), "MTU 65000"),
        (json!({"deviceID": "0000:ff:1f.7"}), "0000:ff:1f.7 does not exist"),
        (json!({"deviceID": "eth0"}), "deviceID"),
        (json!({"deviceID": ""}), "deviceID is missing"),
    ] {
        let error = pod.add(&vf.conf(&keys)).error();
        assert!(error.contains(part), "{part:?} is not in {error:?}");
        vf.assert_is(&before, &error);
    }
    assert!(!Path::new(STATE).join("pci/vf_lock/0000:ff:1f.7.lock").exists());
    let pf = std::fs::read_link(vf.sysfs().join("physfn")).unwrap();
    let pf = pf.file_name().unwrap().to_str().unwrap().to_owned();
    let error = pod.add(&vf.conf(&json!({"deviceID": pf}))).error();
    assert!(error.contains("is a physical function"), "{error}");
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_bad_configuration_waits_for_nobody() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let conf = vf.conf(&json!({}));
    pod.add(&conf).ok();
    pod.del(&conf).ok();
    let lock = Path::new(STATE).join(format!("pci/vf_lock/{}.lock", vf.address));
    let lock = File::open(lock).unwrap();
    lock.lock().unwrap();
    for (keys, part) in [
        (json!({"vlan": 4095}), "vlan"),
        (json!({"vlanQoS": 1}), "vlanQoS"),
        (json!({"mac": "junk"}), "mac"),
        (json!({"trust": "yes"}), "trust"),
        (json!({"link_state": "up"}), "link_state"),
        (json!({"min_tx_rate": 11, "max_tx_rate": 10}), "min_tx_rate"),
        (json!({"mtu": 67}), "mtu"),
    ] {
        let error = pod.add(&vf.conf(&keys)).error();
        assert!(error.contains(&format!("{part}: ")), "{part:?} is not in {error:?}");
    }
}

/// Fault 4 of docs/sriov.md.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_taken_name_in_the_pod_is_refused_and_its_holder_left_alone() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let before = vf.snapshot();
    pod.ip(&["link", "add", &pod.ifname, "type", "veth", "peer", "name", "peer"]);
    let holder = pod.ip(&["link", "show", &pod.ifname]);
    let conf = vf.conf(&json!({"vlan": 100}));
    let error = pod.add(&conf).error();
    assert!(error.contains(&format!("{} already", pod.ifname)), "{error}");
    vf.assert_is(&before, "after the refused ADD");
    pod.del(&conf).ok();
    assert_eq!(pod.ip(&["link", "show", &pod.ifname]), holder);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn alternative_names_give_way_and_come_back() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let name = vf.name();
    for altname in [pod.ifname.as_str(), "other"] {
        run("ip", &["link", "property", "add", "dev", &name, "altname", altname]);
    }
    pod.ip(&["link", "add", "other", "type", "veth", "peer", "name", "peer"]);
    let before = vf.snapshot();
    let conf = vf.conf(&json!({}));
    pod.add(&conf).ok();
    pod.ip(&["link", "property", "add", "dev", &pod.ifname, "altname", "from-the-pod"]);
    pod.del(&conf).ok();
    vf.assert_is(&before, "after DEL");
    for altname in [pod.ifname.as_str(), "other"] {
        run("ip", &["link", "property", "del", "dev", &name, "altname", altname]);
    }
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn what_the_pod_changed_is_taken_back() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let name = vf.name();
    run("ip", &["link", "set", &name, "up"]);
    let before = vf.snapshot();
    let conf = vf.conf(&json!({"trust": "on"}));
    pod.add(&conf).ok();
    pod.ip(&["link", "set", &pod.ifname, "down"]);
    pod.ip(&["link", "set", &pod.ifname, "address", "02:00:00:00:01:04", "mtu", "1300", "promisc", "on"]);
    pod.ip(&["link", "set", &pod.ifname, "name", "renamed"]);
    pod.del(&conf).ok();
    vf.assert_is(&before, "after DEL");
    run("ip", &["link", "set", &name, "down"]);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn check_finds_what_drifted() {
    let (vf, pod, addresses) = (Vf::take(), Pod::new(), Addresses::new());
    let mut conf = vf.conf(&json!({"vlan": 100, "spoofchk": "on", "ipam": addresses.ipam()}));
    conf["prevResult"] = pod.add(&conf).ok();
    pod.check(&conf).ok();

    let index = vf.index.to_string();
    run("ip", &["link", "set", &vf.pf, "vf", &index, "vlan", "0"]);
    run("ip", &["link", "set", &vf.pf, "vf", &index, "spoofchk", "off"]);
    pod.ip(&["link", "set", &pod.ifname, "mtu", "1300"]);
    pod.ip(&["address", "delete", "192.0.2.2/24", "dev", &pod.ifname]);
    let error = pod.check(&conf).error();
    for part in
        ["vlan 100", "spoofchk on", "MTU 1300", "192.0.2.2/24 is missing", "198.51.100.0/24 is missing"]
    {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    pod.del(&conf).ok();
    let error = pod.check(&conf).error();
    assert!(error.contains("not in the container"), "{error}");
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn an_untrusted_vf_takes_the_mac_and_gives_it_back() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let before = vf.snapshot();
    // igbvf refuses to set any MAC once the PF has set one, and takes that over when it resets the VF.
    let conf = vf.conf(&json!({"mac": "02-00-00-00-01-05"}));
    for round in ["first", "second"] {
        let result = pod.add(&conf).ok();
        assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:01:05", "{round}");
        assert_eq!(inside(&vf, &pod)["address"], "02:00:00:00:01:05", "{round}");
        assert_eq!(vf.settings()["address"], "02:00:00:00:01:05", "{round}");
        pod.del(&conf).ok();
        vf.assert_is(&before, round);
    }
}
