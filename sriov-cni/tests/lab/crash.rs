//! kill -9 at every system call that changes something.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::machine::{Addresses, Outcome, Pod, Vf, call};

/// The calls that change the machine: netlink and files. (A process that is started changes something by
/// such a call of its own; what it is told goes through `write`.)
const CHANGES: [&str; 7] = ["sendto", "sendmsg", "write", "mkdir", "rename", "unlink", "flock"];

/// A point to be killed at: on entering the n-th call of a kind, which is after all that was done before.
type Point = (&'static str, usize);

/// Calls the program, killed at `point`.
fn call_killed(command: &str, pod: &Pod, conf: &Value, (kind, n): Point) -> Outcome {
    // strace counts each kind of call for itself, so a point names one kind.
    let inject = format!("inject={kind}:signal=KILL:when={n}");
    let trace = format!("trace={kind}");
    let wrapper = ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    call(command, pod, &pod.netns(), conf, &wrapper)
}

/// Calls the program to its end; all the points it passes.
fn points_of(command: &str, pod: &Pod, conf: &Value) -> Vec<Point> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let trace = format!("trace={}", CHANGES.join(","));
    let wrapper = ["strace", "-qq", "-o", log.path().to_str().unwrap(), "-e", &trace];
    call(command, pod, &pod.netns(), conf, &wrapper).ok();
    let log = fs::read_to_string(log.path()).unwrap();
    let points = CHANGES.map(|kind| {
        let count = log.lines().filter(|line| line.starts_with(&format!("{kind}("))).count();
        (1..=count).map(move |n| (kind, n))
    });
    points.into_iter().flatten().collect()
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

fn conf(vf: &Vf, addresses: &Addresses) -> Value {
    vf.conf(&json!({
        "vlan": 100, "mac": format!("02:00:00:00:04:{:02x}", vf.index), "trust": "on", "mtu": 1400,
        "ipam": addresses.ipam(),
    }))
}

/// Kills `command` at every point, on several VFs at once.
fn kill_at_every_point(command: &str, aftermath: Aftermath) {
    let vfs = Vf::take_many(3);
    let points = {
        let (vf, pod, addresses) = (&vfs[0], Pod::new(), Addresses::new());
        let conf = conf(vf, &addresses);
        // The first call of all makes directories, and has points that no other has.
        pod.add(&conf).ok();
        pod.del(&conf).ok();
        let add = points_of("ADD", &pod, &conf);
        let del = points_of("DEL", &pod, &conf);
        if command == "ADD" { add } else { del }
    };
    let (next, killed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for vf in &vfs {
            scope.spawn(|| {
                while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if kill_once(vf, command, *point, aftermath) {
                        killed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let killed = killed.into_inner();
    println!("{command} was killed at {killed} of {} points", points.len());
    // One call may do a little less than another; but a harness that misses the program shows.
    assert!(killed > 25 && killed * 10 > points.len() * 9, "{killed} of {} points", points.len());
}

/// One round; whether the call lived up to `point`, and died there.
fn kill_once(vf: &Vf, command: &str, point: Point, aftermath: Aftermath) -> bool {
    let (pod, addresses) = (Pod::new(), Addresses::new());
    let before = vf.snapshot();
    let conf = conf(vf, &addresses);
    if command == "DEL" {
        pod.add(&conf).ok();
    }
    let outcome = call_killed(command, &pod, &conf, point);
    aftermath(vf, &pod, &conf);
    let situation = format!("{command} killed at {point:?}");
    vf.assert_is(&before, &situation);
    assert!(addresses.held().is_empty(), "{situation}: {:?} are still held", addresses.held());
    outcome.killed
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_killed_then_del() {
    kill_at_every_point("ADD", del_only);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_killed_then_add_again() {
    kill_at_every_point("ADD", add_again_then_del);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn add_killed_then_namespace_gone() {
    kill_at_every_point("ADD", namespace_gone_then_del);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_killed_then_del() {
    kill_at_every_point("DEL", del_only);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn del_killed_then_next_pod() {
    kill_at_every_point("DEL", namespace_gone_then_next_pod);
}
