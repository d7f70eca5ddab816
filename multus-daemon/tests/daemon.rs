//! The daemon as a process, by its socket. Needs root, for a network namespace.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking"
)]

mod node;

use std::time::Duration;

use node::{Node, read};
use serde_json::{Value, json};

/// Keeps ADD of the second delegate waiting as long as there is a file `gate`.
const GATED: &str =
    "if [ $CNI_COMMAND = ADD ]; then touch reached; while [ -e gate ]; do sleep 0.02; done; fi";

fn gated() -> Node {
    let node = Node::new(GATED);
    std::fs::write(node.path("gate"), "").unwrap();
    node
}

/// Identifies the socket that calls reach.
fn inode(node: &Node) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(node.path("run/multus.sock")).unwrap().ino()
}

fn open(node: &Node) {
    std::fs::remove_file(node.path("gate")).unwrap();
}

#[test]
fn a_sandbox_is_attached_and_taken_down_with_the_environment_of_the_call() {
    let node = Node::new("");
    let _daemon = node.daemon(&json!({}));
    let (status, body) = node.cni("ADD", "c1").unwrap();
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["Result"]["cniVersion"]), (200, &json!("1.1.0")), "{body}");
    assert_eq!(answer["Result"]["ips"][0]["address"], "10.0.0.2/24");
    assert_eq!(node.state(), ["c1", "main-c1-eth0", "second-c1-net1"]);
    assert_eq!(node.cni("CHECK", "c1").unwrap(), (200, String::new()));
    assert_eq!(node.cni("DEL", "c1").unwrap(), (200, String::new()));
    assert_eq!(node.cni("DEL", "c1").unwrap(), (200, String::new()), "DEL may be repeated");
    assert!(node.state().is_empty());
    let added = node.calls().into_iter().filter(|c| !c.starts_with("CHECK")).collect::<Vec<_>>();
    assert_eq!(
        added,
        ["ADD c1 eth0 runtime", "ADD c1 net1 runtime", "DEL c1 net1 runtime", "DEL c1 eth0 runtime"]
    );
}

#[test]
fn every_path_has_its_answer() {
    let node = Node::new("");
    let _daemon = node.daemon(&json!({}));
    let status = |method: &str, path: &str| node.ask(method, path, &Value::Null).unwrap().0;
    let table = [
        ("GET", "/healthz", 200),
        ("POST", "/readyz", 200),
        ("PUT", "/readyz", 405),
        ("GET", "/cni", 405),
        ("GET", "/delegate", 405),
        ("POST", "/x", 404),
        ("POST", "/cni", 400),
    ];
    for (method, path, expected) in table {
        assert_eq!(status(method, path), expected, "{method} {path}");
    }
}

#[test]
fn errors_have_their_code_and_leave_nothing() {
    let node = Node::new(r#"[ $CNI_COMMAND = ADD ] && echo '{"code":11,"msg":"busy"}' && exit 1"#);
    let _daemon = node.daemon(&json!({}));
    let (status, body) = node.cni("ADD", "c1").unwrap();
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &error["code"]), (400, &json!(11)), "{body}");
    assert!(
        error["msg"].as_str().unwrap().contains("error adding container to network \"second\""),
        "{body}"
    );
    assert!(node.state().is_empty());
}

#[test]
fn an_add_that_nobody_waits_for_is_taken_back() {
    let node = gated();
    let _daemon = node.daemon(&json!({}));
    let client = node.send("POST", "/cni", &node.call("ADD", "c1")).unwrap();
    node.until("the second delegate runs", || node.path("reached").exists());
    drop(client);
    // The DEL of the same sandbox comes at once and waits for its turn.
    assert_eq!(node.cni("DEL", "c1").unwrap().0, 200);
    assert!(node.state().is_empty());
    assert!(node.count("DEL c1 eth0") >= 1 && node.path("gate").exists(), "{:?}", node.calls());
}

#[test]
fn a_sandbox_has_one_call_at_a_time_and_del_has_places_of_its_own() {
    let node = gated();
    let _daemon = node.daemon(&json!({"connectionLimit": 1}));
    let first = node.send("POST", "/cni", &node.call("ADD", "c1")).unwrap();
    node.until("the second delegate runs", || node.path("reached").exists());
    let second = node.send("POST", "/cni", &node.call("ADD", "c2")).unwrap();
    let del = node.send("POST", "/cni", &node.call("DEL", "c1")).unwrap();
    assert_eq!(node.cni("DEL", "c3").unwrap().0, 200, "DEL of another sandbox does not wait");
    assert_eq!((node.count("ADD c2"), node.count("DEL c1")), (0, 0));
    open(&node);
    assert_eq!([first, del, second].map(|stream| read(stream).unwrap().0), [200; 3]);
    assert_eq!(node.state(), ["c2", "main-c2-eth0", "second-c2-net1"]);
}

#[test]
fn the_next_daemon_takes_up_what_a_killed_one_left() {
    let node = gated();
    let daemon = node.daemon(&json!({}));
    let client = node.send("POST", "/cni", &node.call("ADD", "c1")).unwrap();
    node.until("the second delegate runs", || node.path("reached").exists());
    daemon.kill();
    assert_eq!(read(client), None, "the shim sees that the connection is lost");
    // While it was away, a DEL of another sandbox was kept.
    std::fs::create_dir_all(node.path("state/pending")).unwrap();
    let kept = node.call("DEL", "c2").to_string();
    std::fs::write(node.path("state/pending/c2-eth0"), &kept).unwrap();
    std::fs::write(node.path("state/pending/.c3-eth0.7"), &kept).unwrap();
    let mut next = node.start(&json!({}));
    let again = loop {
        if let Some(stream) = node.send("POST", "/cni", &node.call("ADD", "c1")) {
            break stream;
        }
    };
    // The killed daemon's delegate is still at work; nothing is done before it has ended.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((node.count("ADD c1 net1"), node.count("DEL c1")), (1, 0));
    open(&node);
    assert_eq!(read(again).unwrap().0, 200);
    node.until("the kept DEL is done", || !node.path("state/pending/c2-eth0").exists());
    assert!(node.path("state/pending/.c3-eth0.7").exists(), "what is still being written is left alone");
    assert_eq!(
        node.count("DEL c1 eth0"),
        1,
        "what was attached by half is undone before it is attached anew"
    );
    // One that is kept while the daemon runs is done as well; it is not lost, however late it comes.
    std::fs::write(node.path("state/pending/.draft"), node.call("DEL", "c1").to_string()).unwrap();
    std::fs::rename(node.path("state/pending/.draft"), node.path("state/pending/c1-eth0")).unwrap();
    node.until("the late DEL is done", || node.state() == [".c3-eth0.7"]);
    next.terminate();
    assert!(next.wait());
}

#[test]
fn a_daemon_that_is_told_to_end_ends_its_calls() {
    let node = gated();
    let mut daemon = node.daemon(&json!({}));
    let working = node.send("POST", "/cni", &node.call("ADD", "c1")).unwrap();
    node.until("the second delegate runs", || node.path("reached").exists());
    daemon.terminate();
    node.until("it is not ready any more", || {
        node.ask("GET", "/readyz", &Value::Null).is_some_and(|a| a.0 == 500)
    });
    assert_eq!(node.cni("ADD", "c2").unwrap().0, 503, "the shim asks the next daemon");
    open(&node);
    assert_eq!(read(working).unwrap().0, 200);
    assert!(daemon.wait());
    assert!(!node.path("run/multus.sock").exists());
}

#[test]
fn another_daemon_takes_over_without_a_lost_call() {
    let node = gated();
    let mut old = node.daemon(&json!({}));
    let working = node.send("POST", "/cni", &node.call("ADD", "c1")).unwrap();
    node.until("the second delegate runs", || node.path("reached").exists());
    let socket = inode(&node);
    let _new = node.start(&json!({}));
    node.until("the socket is another", || inode(&node) != socket);
    let waiting = node.send("POST", "/cni", &node.call("ADD", "c2")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(node.count("ADD c2"), 0, "two daemons do not work at the same time");
    open(&node);
    assert_eq!([working, waiting].map(|stream| read(stream).unwrap().0), [200; 2]);
    assert!(old.child.try_wait().unwrap().is_none(), "the old one waits until it is told to end");
    old.terminate();
    assert!(old.wait());
    assert_eq!(node.cni("DEL", "c1").unwrap().0, 200, "and leaves the socket to the new one");
}

#[test]
fn a_daemon_that_gave_way_ends_when_the_next_one_has_gone() {
    let node = Node::new("");
    let mut old = node.daemon(&json!({}));
    let socket = inode(&node);
    let new = node.start(&json!({}));
    node.until("the new one has taken over", || inode(&node) != socket && node.cni("DEL", "c1").is_some());
    new.kill();
    assert!(!old.wait(), "it is to be started again");
}

#[test]
fn a_socket_that_was_removed_is_made_again() {
    let node = Node::new("");
    let _daemon = node.daemon(&json!({}));
    std::fs::remove_file(node.path("run/multus.sock")).unwrap();
    node.until("there is a socket again", || node.cni("DEL", "c1").is_some_and(|a| a.0 == 200));
}

#[test]
fn sandboxes_without_a_namespace_are_collected() {
    let node = Node::new("");
    let daemon = node.daemon(&json!({}));
    let gone = node.path("netns/gone");
    std::os::unix::fs::symlink(node.netns(), &gone).unwrap();
    for (container, netns) in [("c1", node.netns()), ("c2", gone.clone())] {
        let (status, body) = node.ask("POST", "/cni", &node.call_in("ADD", container, &netns)).unwrap();
        assert_eq!(status, 200, "{body}");
    }
    drop(daemon);
    std::fs::remove_file(gone).unwrap();
    let _next = node.daemon(&json!({}));
    node.until("the second sandbox is collected", || node.count("DEL c2 eth0") == 1);
    node.until("its state is gone", || node.state() == ["c1", "main-c1-eth0", "second-c1-net1"]);
}

#[test]
fn the_runtime_s_probes_and_gc() {
    let node = Node::new("");
    let _daemon = node.daemon(&json!({"cniVersion": "1.1.0"}));
    assert_eq!(node.cni("ADD", "c1").unwrap().0, 200);
    let probe = json!({"env": {"CNI_COMMAND": "STATUS"}, "config": node.call("ADD", "x")["config"]});
    assert_eq!(node.ask("POST", "/cni", &probe).unwrap(), (200, String::new()));
    assert_eq!(node.gc(r#"[{"containerID":"c1","ifname":"eth0"}]"#).0, 200);
    assert_eq!(node.count("DEL"), 0);
    assert_eq!(node.gc("[]").0, 200);
    assert!(node.state().is_empty(), "{:?}", node.state());
}

/// The runtime makes its list before an ADD that runs now.
#[test]
fn gc_leaves_alone_what_is_being_added() {
    let node = gated();
    let _daemon = node.daemon(&json!({"cniVersion": "1.1.0"}));
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| node.cni("ADD", "c1").unwrap().0);
        node.until("ADD is at its second network", || node.path("reached").exists());
        let collected = (node.gc("[]").0, node.count("DEL"));
        open(&node);
        assert_eq!(collected, (200, 0), "the half of an ADD is its own");
        assert_eq!(adding.join().unwrap(), 200);
    });
    assert_eq!(node.gc("[]").0, 200);
    assert_eq!(node.count("DEL"), 2);
}

#[test]
fn a_limit_of_nothing_is_refused() {
    let node = Node::new("");
    let mut daemon = node.start(&json!({"connectionLimit": 0}));
    assert!(!daemon.wait());
}
