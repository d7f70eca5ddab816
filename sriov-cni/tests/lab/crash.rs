//! kill -9 at every system call that changes something, and what follows it.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::machine::{Addresses, Pod, Vf};
use crate::trace::run_until;
use crate::userspace::Vfio;

/// How many VFs are worked on at once.
const VFS: usize = 3;

/// A run may have a few calls more or fewer than another: so many must survive until the end is believed in.
const SURVIVORS: usize = 4;

/// What follows the kill. It gets the pod that was being worked on.
type Aftermath = fn(&Vf, &Pod, &Value);

fn del_only(_: &Vf, pod: &Pod, conf: &Value) {
    pod.del(conf).ok();
}

fn add_again_then_del(vf: &Vf, pod: &Pod, conf: &Value) {
    pod.add(conf).ok();
    match vf.link(Some(pod)) {
        Some(link) => assert_eq!((&link["ifname"], &link["mtu"]), (&json!(pod.ifname), &json!(1400))),
        None => assert!(vf.is_in_user_space(), "not attached by the second ADD"),
    }
    assert_eq!(vf.settings()["vlan_list"][0]["vlan"], 100);
    pod.del(conf).ok();
}

fn namespace_gone_then_del(_: &Vf, pod: &Pod, conf: &Value) {
    pod.vanish();
    pod.del(conf).ok();
}

fn namespace_gone_then_next_pod(vf: &Vf, pod: &Pod, conf: &Value) {
    pod.vanish();
    let next = Pod::new();
    let plain = vf.conf(&json!({"spoofchk": "off"}));
    next.add(&plain).ok();
    assert_ne!(vf.settings()["vlan_list"][0]["vlan"], 100, "the next pod got the killed one's VLAN");
    next.del(&plain).ok();
    pod.del(conf).ok();
}

fn conf(vf: &Vf, addresses: &Addresses) -> Value {
    let mut conf = vf.conf(&json!({
        "vlan": 100, "mac": format!("02:00:00:00:04:{:02x}", vf.index), "trust": "on", "ipam": addresses.ipam(),
    }));
    if !vf.is_in_user_space() {
        conf["mtu"] = json!(1400);
    }
    conf
}

/// Kills `verb` at every point, on several VFs at once, and sees that after `aftermath` nothing is left of it.
fn kill_at_every_point<'a>(verb: &str, vfs: impl Iterator<Item = &'a Vf>, aftermath: Aftermath) {
    let (next, killed, survived) = (AtomicUsize::new(1), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for vf in vfs {
            let (next, killed, survived) = (&next, &killed, &survived);
            scope.spawn(move || {
                while survived.load(Ordering::Relaxed) < SURVIVORS {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let count = if kill_once(vf, verb, n, aftermath) { killed } else { survived };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let killed = killed.into_inner();
    println!("{verb} was killed at {killed} points");
    // Fewer than that, and the tracer has missed the program.
    assert!(killed >= 25, "{killed} points");
}

/// One round; whether the call came to its `n`-th point, and died there.
fn kill_once(vf: &Vf, verb: &str, n: usize, aftermath: Aftermath) -> bool {
    let (pod, addresses) = (Pod::new(), Addresses::new());
    let before = vf.snapshot();
    let conf = conf(vf, &addresses);
    if verb == "DEL" {
        pod.add(&conf).ok();
    }
    let run = run_until(verb, &pod, &conf, n);
    assert!(run.outcome.killed || run.outcome.success, "{:?}", run.outcome);
    let situation = format!("{verb} killed at point {n}, {}", run.point);
    aftermath(vf, &pod, &conf);
    vf.assert_is(&before, &situation);
    assert!(!Path::new(&pod.netns()).exists() || pod.is_empty(), "{situation}: the pod has an interface");
    assert!(addresses.held().is_empty(), "{situation}: {:?} are still held", addresses.held());
    run.outcome.killed
}

fn kill_netdevice(verb: &str, aftermath: Aftermath) {
    kill_at_every_point(verb, Vf::take_many(VFS).iter(), aftermath);
}

fn kill_userspace(verb: &str, aftermath: Aftermath) {
    kill_at_every_point(verb, Vfio::take_many(VFS).iter().map(Vfio::vf), aftermath);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_killed_then_del() {
    kill_netdevice("ADD", del_only);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_killed_then_add_again() {
    kill_netdevice("ADD", add_again_then_del);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_killed_then_namespace_gone() {
    kill_netdevice("ADD", namespace_gone_then_del);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_killed_then_del() {
    kill_netdevice("DEL", del_only);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_killed_then_next_pod() {
    kill_netdevice("DEL", namespace_gone_then_next_pod);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_for_user_space_killed_then_del() {
    kill_userspace("ADD", del_only);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_for_user_space_killed_then_add_again() {
    kill_userspace("ADD", add_again_then_del);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_for_user_space_killed_then_del() {
    kill_userspace("DEL", del_only);
}
