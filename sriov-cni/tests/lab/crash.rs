//! kill -9 at every system call that changes something.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::machine::{Addresses, Outcome, Pod, Vf, call};

/// The calls that can change the machine: netlink, files, processes and threads. Being killed on
/// entering the n-th of them is being killed after everything before it.
const CHANGES: &str = "sendto,sendmsg,write,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,flock,clone,clone3,vfork,fork";

/// Calls the program, killed on entering its `n`-th change.
fn call_killed(command: &str, pod: &Pod, conf: &Value, n: usize) -> Outcome {
    let inject = format!("inject={CHANGES}:signal=KILL:when={n}");
    let trace = format!("trace={CHANGES}");
    let wrapper = ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    call(command, pod, &pod.netns(), conf, &wrapper)
}

/// What follows the kill. It gets the pod that was being worked on.
type Aftermath = fn(&Vf, &Pod, &Value);

fn del_only(_: &Vf, pod: &Pod, conf: &Value) {
    pod.del(conf).ok();
}

fn add_again_then_del(vf: &Vf, pod: &Pod, conf: &Value) {
    pod.add(conf).ok();
    let link = vf.link(Some(pod)).expect("attached by the second ADD");
    assert_eq!((&link["ifname"], &link["mtu"]), (&json!(pod.ifname), &json!(1400)));
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

/// Kills `command` at every point, on several VFs at once; returns the number of points.
fn kill_at_every_point(command: &str, aftermath: Aftermath) -> usize {
    let vfs = Vf::take_many(3);
    let next_point = AtomicUsize::new(1);
    let last_point = Mutex::new(usize::MAX);
    std::thread::scope(|scope| {
        for vf in &vfs {
            scope.spawn(|| {
                loop {
                    let point = next_point.fetch_add(1, Ordering::Relaxed);
                    if point > *last_point.lock().unwrap() {
                        return;
                    }
                    if !kill_once(vf, command, point, aftermath) {
                        let mut last = last_point.lock().unwrap();
                        *last = (*last).min(point - 1);
                    }
                }
            });
        }
    });
    let points = *last_point.lock().unwrap();
    println!("{command} was killed at {points} points");
    points
}

/// One round; false when the call has fewer changes than `point`.
fn kill_once(vf: &Vf, command: &str, point: usize, aftermath: Aftermath) -> bool {
    let (pod, addresses) = (Pod::new(), Addresses::new());
    let before = vf.snapshot();
    let conf = vf.conf(&json!({
        "vlan": 100, "mac": format!("02:00:00:00:04:{:02x}", vf.index), "trust": "on", "mtu": 1400,
        "ipam": addresses.ipam(),
    }));
    if command == "DEL" {
        pod.add(&conf).ok();
    }
    let outcome = call_killed(command, &pod, &conf, point);
    aftermath(vf, &pod, &conf);
    let situation = format!("{command} killed at point {point}");
    vf.assert_is(&before, &situation);
    assert!(addresses.held().is_empty(), "{situation}: {:?} are still held", addresses.held());
    outcome.killed
}

// Fewer points than these would mean that the harness does not reach the program.
const LEAST_POINTS: usize = 20;

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_killed_then_del() {
    assert!(kill_at_every_point("ADD", del_only) > LEAST_POINTS);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_killed_then_add_again() {
    assert!(kill_at_every_point("ADD", add_again_then_del) > LEAST_POINTS);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_killed_then_namespace_gone() {
    assert!(kill_at_every_point("ADD", namespace_gone_then_del) > LEAST_POINTS);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_killed_then_del() {
    assert!(kill_at_every_point("DEL", del_only) > LEAST_POINTS);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_killed_then_next_pod() {
    assert!(kill_at_every_point("DEL", namespace_gone_then_next_pod) > LEAST_POINTS);
}
