//! State that the Go implementation left: deleted, respected, read by it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::machine::{Pod, STATE, Vf, call, run};

/// The network that a peer attached the pod to; no other pod is in it.
fn network(pod: &Pod) -> String {
    format!("net-{}", pod.name)
}

/// Attaches a VF as the Go implementation would have, and writes its two files.
fn attach_as_peer(vf: &Vf, pod: &Pod) {
    let before = vf.snapshot();
    let name = before["netdev"]["name"].as_str().unwrap();
    let index = vf.index.to_string();
    let cache = json!({
        "cniVersion": "0.3.1", "name": network(pod), "type": "sriov", "ipam": {}, "dns": {},
        "OrigVfState": {"HostIFName": name, "SpoofChk": true, "Trust": false, "AdminMAC": before["pf"]["address"],
            "EffectiveMAC": before["netdev"]["mac"], "Vlan": 0, "VlanQoS": 0, "VlanProto": 33024, "MinTxRate": 0,
            "MaxTxRate": 0, "LinkState": 0, "MTU": 1500},
        "Master": vf.pf, "MAC": "", "MTU": null, "VFID": vf.index, "deviceID": vf.address, "vlan": 55, "vlanQoS": 0,
        "vlanProto": "802.1q", "min_tx_rate": null, "max_tx_rate": null, "runtimeConfig": {},
    });
    run("ip", &["link", "set", &vf.pf, "vf", &index, "vlan", "55"]);
    run("ip", &["link", "set", name, "netns", &pod.name, "name", &pod.ifname]);
    fs::create_dir_all(Path::new(STATE).join("pci")).unwrap();
    fs::write(Path::new(STATE).join(format!("{}-{}", pod.name, pod.ifname)), cache.to_string()).unwrap();
    fs::write(Path::new(STATE).join("pci").join(&vf.address), pod.netns()).unwrap();
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_gives_back_what_a_peer_attached() {
    for vanished in [false, true] {
        let (vf, pod) = (Vf::take(), Pod::new());
        let before = vf.snapshot();
        attach_as_peer(&vf, &pod);
        if vanished {
            pod.vanish();
        }
        pod.del(&vf.conf(&json!({"vlan": 55}))).ok();
        vf.assert_is(&before, "after DEL");
    }
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_respects_a_peers_pod_while_it_lives() {
    let (vf, pod, next) = (Vf::take(), Pod::new(), Pod::new());
    let before = vf.snapshot();
    attach_as_peer(&vf, &pod);
    let conf = vf.conf(&json!({"spoofchk": "off"}));
    let error = next.add(&conf).error();
    assert!(error.contains("is already allocated") && error.contains(&pod.name), "{error}");
    pod.vanish();
    next.add(&conf).ok();
    assert!(vf.settings()["vlan_list"][0]["vlan"].as_u64().unwrap_or(0) == 0, "the peer's VLAN is gone");
    next.del(&conf).ok();
    vf.assert_is(&before, "after both");
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn gc_gives_back_what_a_peer_attached() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let before = vf.snapshot();
    attach_as_peer(&vf, &pod);
    let gc = |network: &str, valid: Value| {
        let conf = json!({"cniVersion": "1.1.0", "name": network, "type": "sriov", "cni.dev/valid-attachments": valid});
        call("GC", &pod, "", &conf, &[]).ok();
    };
    gc("another", json!([]));
    gc(&network(&pod), json!([{"containerID": pod.name, "ifname": pod.ifname}]));
    assert!(vf.link(Some(&pod)).is_some() && vf.has_state(), "a valid attachment stays");
    gc(&network(&pod), json!([]));
    vf.assert_is(&before, "after GC");
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_peer_can_read_our_files() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let before = vf.snapshot();
    let conf = vf.conf(&json!({"vlan": 55}));
    pod.add(&conf).ok();
    let mark = fs::read_to_string(Path::new(STATE).join("pci").join(&vf.address)).unwrap();
    assert_eq!(mark, pod.netns());
    let cache = fs::read(Path::new(STATE).join(format!("{}-{}", pod.name, pod.ifname))).unwrap();
    let cache: Value = serde_json::from_slice(&cache).unwrap();
    assert_eq!(cache["OrigVfState"]["HostIFName"], before["netdev"]["name"]);
    assert_eq!(cache["OrigVfState"]["AdminMAC"], before["pf"]["address"]);
    assert_eq!((&cache["Master"], &cache["VFID"]), (&json!(vf.pf), &json!(vf.index)));
    pod.del(&conf).ok();
}
