//! DEL and GC when things are not as they were at ADD.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::machine::{Addresses, Pod, STATE, VF_RESET, Vf, call, run};

fn keys() -> Value {
    json!({"vlan": 100, "mac": "02:00:00:00:03:01", "trust": "on", "mtu": 1400})
}

/// Fault 7 of docs/sriov.md.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_works_whatever_became_of_the_namespace() {
    let not_a_namespace = tempfile::NamedTempFile::new().unwrap();
    let not_a_namespace = not_a_namespace.path().to_str().unwrap();
    for (situation, vanished, netns) in [
        ("namespace removed", true, None),
        ("namespace removed, path empty", true, Some("")),
        ("namespace removed, path is a file", true, Some(not_a_namespace)),
        ("namespace alive, path empty", false, Some("")),
        ("namespace alive, path is a file", false, Some(not_a_namespace)),
        ("namespace alive, path is the host's own", false, Some("/proc/self/ns/net")),
    ] {
        let (vf, pod, addresses) = (Vf::take(), Pod::new(), Addresses::new());
        let before = vf.snapshot();
        let mut conf = vf.conf(&keys());
        conf["ipam"] = addresses.ipam();
        pod.add(&conf).ok();
        if vanished {
            pod.vanish();
        }
        call("DEL", &pod, netns.unwrap_or(&pod.netns()), &conf, &[]).ok();
        vf.assert_is(&before, situation);
        assert!(addresses.held().is_empty(), "{situation}");
    }
}

/// Fault 7 of docs/sriov.md.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_needs_nothing_of_the_configuration() {
    for (situation, conf) in [
        ("no deviceID", json!({"cniVersion": "1.0.0", "name": "lab", "type": "sriov"})),
        (
            "nonsense",
            json!({"cniVersion": "1.0.0", "name": "lab", "type": "sriov", "deviceID": 7, "vlan": "x"}),
        ),
    ] {
        for cache_survives in [true, false] {
            let (vf, pod, addresses) = (Vf::take(), Pod::new(), Addresses::new());
            let before = vf.snapshot();
            let with_addresses = |mut conf: Value| {
                conf["ipam"] = addresses.ipam();
                conf
            };
            pod.add(&with_addresses(vf.conf(&keys()))).ok();
            if !cache_survives {
                fs::remove_file(Path::new(STATE).join(format!("{}-{}", pod.name, pod.ifname))).unwrap();
            }
            pod.del(&with_addresses(conf.clone())).ok();
            vf.assert_is(&before, situation);
            assert!(addresses.held().is_empty(), "{situation}");
        }
    }
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_of_another_attachment_changes_nothing() {
    let (vf, pod, other) = (Vf::take(), Pod::new(), Pod::new());
    let before = vf.snapshot();
    let conf = vf.conf(&keys());
    pod.add(&conf).ok();
    // Carrier comes and goes.
    let state =
        || (vf.settings(), vf.link(Some(&pod)).map(|link| [link["ifname"].clone(), link["mtu"].clone()]));
    let attached = state();
    other.del(&conf).ok();
    pod.with_interface("other").del(&conf).ok();
    assert_eq!(state(), attached);
    pod.del(&conf).ok();
    vf.assert_is(&before, "after its own DEL");
}

/// Fault 9 of docs/sriov.md.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_vf_is_not_given_twice() {
    let (vf, pod, other) = (Vf::take(), Pod::new(), Pod::new());
    let before = vf.snapshot();
    let conf = vf.conf(&keys());
    pod.add(&conf).ok();
    let error = other.add(&conf).error();
    assert!(error.contains("is already allocated") && error.contains(&pod.name), "{error}");
    assert!(vf.link(Some(&pod)).is_some());

    // The pod dies without DEL: the next one gets a clean VF, and the late DEL does not touch it.
    pod.vanish();
    other.add(&vf.conf(&json!({"vlan": 200}))).ok();
    let settings = vf.settings();
    assert_eq!((&settings["vlan_list"][0]["vlan"], &settings["trust"]), (&json!(200), &json!(false)));
    pod.del(&conf).ok();
    assert_eq!(vf.settings(), settings);
    other.del(&conf).ok();
    vf.assert_is(&before, "after both");
}

/// Fault 3 of docs/sriov.md.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_late_duplicate_del_leaves_the_next_pod_alone() {
    // An IPAM plugin that holds DEL until it is let go.
    let directory = tempfile::tempdir().unwrap();
    let [waiting, go] = ["waiting", "go"].map(|name| directory.path().join(name));
    let script = format!(
        "#!/bin/sh\ncat > /dev/null\ncase $CNI_COMMAND in\nADD) echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\
         \"192.0.2.1/24\"}}]}}';;\nDEL) touch {0}; while [ ! -e {1} ]; do sleep 0.1; done;;\nesac\n",
        waiting.display(),
        go.display()
    );
    let plugin = directory.path().join("slow-ipam");
    fs::write(&plugin, script).unwrap();
    run("chmod", &["+x", plugin.to_str().unwrap()]);

    let (vf, first, second) = (Vf::take(), Pod::new(), Pod::new());
    let before = vf.snapshot();
    let conf = vf.conf(&json!({"vlan": 100, "ipam": {"type": "slow-ipam"}}));
    let path = format!("CNI_PATH={}", directory.path().display());
    let wrapper = ["env", &path];
    call("ADD", &first, &first.netns(), &conf, &wrapper).ok();
    thread::scope(|scope| {
        let del = || call("DEL", &first, &first.netns(), &conf, &wrapper);
        let dels = [scope.spawn(del), scope.spawn(del)];
        while !waiting.exists() {
            thread::yield_now();
        }
        first.vanish();
        let next = vf.conf(&json!({"vlan": 1234}));
        second.add(&next).ok();
        fs::write(&go, "").unwrap();
        for del in dels {
            del.join().unwrap().ok();
        }
        assert_eq!(vf.settings()["vlan_list"][0]["vlan"], 1234);
        assert!(vf.link(Some(&second)).is_some());
        second.del(&next).ok();
    });
    vf.assert_is(&before, "after all");
}

/// Fault 3 of docs/sriov.md.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_looks_again_when_it_gets_the_lock() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let before = vf.snapshot();
    let conf = vf.conf(&keys());
    pod.add(&conf).ok();
    let settings = vf.settings();
    let lock = fs::File::open(Path::new(STATE).join(format!("pci/vf_lock/{}.lock", vf.address))).unwrap();
    lock.lock().unwrap();
    let record = Path::new(STATE).join(format!("podrail/{}.json", vf.address));
    let ours = fs::read_to_string(&record).unwrap();
    thread::scope(|scope| {
        let del = scope.spawn(|| pod.del(&conf));
        let inode = format!(":{} ", lock.metadata().unwrap().ino());
        let is_waiting = |line: &str| line.contains("->") && line.contains(&inode);
        while !fs::read_to_string("/proc/locks").unwrap().lines().any(is_waiting) {
            thread::yield_now();
        }
        // Meanwhile the VF went to another pod.
        fs::write(&record, ours.replace(&pod.name, "another")).unwrap();
        lock.unlock().unwrap();
        del.join().unwrap().ok();
    });
    assert_eq!(vf.settings(), settings);
    assert!(vf.link(Some(&pod)).is_some());
    fs::write(&record, ours).unwrap();
    pod.del(&conf).ok();
    vf.assert_is(&before, "after its own DEL");
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn failing_ipam_does_not_keep_the_vf() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let before = vf.snapshot();
    pod.add(&vf.conf(&keys())).ok();
    let mut conf = vf.conf(&keys());
    conf["ipam"] = json!({"type": "no-such-plugin"});
    let error = pod.del(&conf).error();
    assert!(error.contains("no-such-plugin"), "{error}");
    vf.assert_is(&before, "after the failed DEL");
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_name_taken_on_the_host_keeps_the_record_until_it_is_free() {
    let (vf, pod, next) = (Vf::take(), Pod::new(), Pod::new());
    let before = vf.snapshot();
    let name = vf.name();
    let conf = vf.conf(&keys());
    pod.add(&conf).ok();
    run("ip", &["link", "add", &name, "type", "veth", "peer", "name", "squatter"]);
    let error = pod.del(&conf).error();
    assert!(error.contains(&name), "{error}");
    assert!(vf.has_state() && pod.is_empty());
    assert_eq!(vf.settings(), before["pf"], "all but the name is restored");

    // It is fit for another pod, and its old name is not forgotten; not by a failing ADD either.
    for keys in [json!({"link_state": "enable"}), json!({"mtu": 65_000})] {
        next.add(&vf.conf(&keys)).error();
    }
    next.add(&conf).ok();
    run("ip", &["link", "delete", &name]);
    next.del(&conf).ok();
    vf.assert_is(&before, "after the name was free");
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn an_interface_moved_by_hand_is_found() {
    let (vf, pod, elsewhere) = (Vf::take(), Pod::new(), Pod::new());
    let before = vf.snapshot();
    let conf = vf.conf(&keys());
    pod.add(&conf).ok();
    pod.ip(&["link", "set", &pod.ifname, "netns", &elsewhere.netns()]);
    pod.del(&conf).ok();
    vf.assert_is(&before, "moved to another namespace");

    pod.add(&conf).ok();
    pod.ip(&["link", "set", &pod.ifname, "netns", "1"]);
    pod.del(&conf).ok();
    vf.assert_is(&before, "moved to the host");
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_record_of_an_earlier_boot_is_void() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let before = vf.snapshot();
    let conf = vf.conf(&json!({}));
    pod.add(&conf).ok();
    pod.vanish();
    let path = Path::new(STATE).join(format!("podrail/{}.json", vf.address));
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["boot_id"] = json!("another");
    record["baseline"]["netdev"]["mtu"] = json!(1300);
    fs::write(&path, record.to_string()).unwrap();
    pod.del(&conf).ok();
    assert!(!vf.has_state());
    // Nothing was restored from it; the kernel brought the interface back by itself.
    let link = loop {
        if let Some(link) = vf.link(None) {
            break link;
        }
    };
    assert_eq!((&link["ifname"], &link["mtu"]), (&json!(pod.ifname), &json!(1500)));
    run("udevadm", &["settle"]);
    let old = before["netdev"]["name"].as_str().unwrap();
    let _ = Command::new("ip").args(["link", "property", "del", "dev", &pod.ifname, "altname", old]).output();
    run("ip", &["link", "set", &pod.ifname, "name", before["netdev"]["name"].as_str().unwrap()]);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn gc_releases_what_the_runtime_does_not_know() {
    let vfs = Vf::take_many(2);
    let befores: Vec<_> = vfs.iter().map(Vf::snapshot).collect();
    let (alive, dead, addresses) = (Pod::new(), Pod::new(), Addresses::new());
    let mut confs: Vec<_> = vfs.iter().map(|vf| vf.conf(&keys())).collect();
    for conf in &mut confs {
        conf["name"] = json!("lab-gc");
        conf["ipam"] = addresses.ipam();
    }
    confs[1]["mac"] = json!("02:00:00:00:03:02");
    alive.add(&confs[0]).ok();
    dead.add(&confs[1]).ok();
    assert_eq!(addresses.held().len(), 4);

    // The IPAM plugin at hand is older than GC, so it is named here only through DEL of the attachment.
    let mut gc = json!({"cniVersion": "1.1.0", "name": "lab-gc", "type": "sriov"});
    call("GC", &alive, "", &gc, &[]).ok();
    assert!(vfs[1].has_state(), "without a list nothing is known");
    gc["cni.dev/valid-attachments"] = json!([{"containerID": alive.name, "ifname": alive.ifname}]);
    call("GC", &alive, "", &gc, &[]).ok();
    vfs[1].assert_is(&befores[1], "after GC");
    assert!(dead.is_empty());
    assert!(vfs[0].link(Some(&alive)).is_some());
    alive.del(&confs[0]).ok();
    dead.del(&confs[1]).ok();
    vfs[0].assert_is(&befores[0], "after DEL");
    assert!(addresses.held().is_empty());
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn status_says_whether_add_can_be_served() {
    let pod = Pod::new();
    let conf = |ipam: Value| json!({"cniVersion": "1.1.0", "name": "lab", "type": "sriov", "ipam": ipam});
    call("STATUS", &pod, "", &conf(json!({})), &[]).ok();
    let failed = call("STATUS", &pod, "", &conf(json!({"type": "no-such-plugin"})), &[]);
    assert_eq!(failed.answer["code"], 50, "{failed:?}");
}

/// Fault 10 of docs/sriov.md.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_renamed_pf_and_vanished_vfs_are_no_obstacle() {
    let vfs = Vf::take_all();
    let vf = &vfs[0];
    let pod = Pod::new();
    let before = vf.snapshot();
    let conf = vf.conf(&keys());

    pod.add(&conf).ok();
    let rename = |from: &str, to: &str| {
        run("ip", &["link", "set", from, "down"]);
        // udev keeps the old name as an alternative one, and that stands in its own way.
        run("udevadm", &["settle"]);
        let _ = Command::new("ip").args(["link", "property", "del", "dev", from, "altname", to]).output();
        run("ip", &["link", "set", from, "name", to]);
        run("ip", &["link", "set", to, "up"]);
        thread::sleep(VF_RESET);
    };
    rename(&vf.pf, "renamed");
    pod.del(&conf).ok();
    rename("renamed", &vf.pf);
    vf.assert_is(&before, "PF renamed between ADD and DEL");

    let numvfs = fs::canonicalize(vf.sysfs().join("physfn")).unwrap().join("sriov_numvfs");
    let count = fs::read_to_string(&numvfs).unwrap();
    for (situation, made_anew) in [("gone", false), ("made anew", true)] {
        pod.add(&conf).ok();
        fs::write(&numvfs, "0").unwrap();
        if made_anew {
            fs::write(&numvfs, &count).unwrap();
            run("udevadm", &["settle"]);
        }
        let fresh = made_anew.then(|| vf.snapshot());
        pod.del(&conf).ok();
        assert!(!vf.has_state(), "VF {situation}");
        if let Some(fresh) = fresh {
            vf.assert_is(&fresh, "nothing of the old VF is put onto the new one");
        } else {
            fs::write(&numvfs, &count).unwrap();
            run("udevadm", &["settle"]);
        }
    }
}
