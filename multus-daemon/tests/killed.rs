//! kill -9 of the daemon at any point, under parallel calls of the shim. Needs root, for a network namespace.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking"
)]

mod node;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use node::Node;
use serde_json::json;

/// Takes a lease for ADD, which nobody may have, and gives it back for DEL.
const LEASE: &str = r#"lease=leases/$CNI_CONTAINERID
case $CNI_COMMAND in
ADD) mkdir -p leases; sleep 0.03; ln -s x $lease || { echo '{"code":999,"msg":"a duplicate"}'; exit 1; } ;;
DEL) rm -f $lease ;;
esac"#;

/// A number from the environment: `PODRAIL_ROUNDS=25 PODRAIL_PARALLEL=100 cargo test -p multus-daemon --test killed` kills a
/// hundred times under a hundred calls.
fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

/// The moments of killing, another one each time, and the same ones for the same seed.
struct Moments(u64);

impl Moments {
    fn pause(&mut self) {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        std::thread::sleep(Duration::from_millis(self.0 % 350));
    }
}

/// The shim that was built beside the daemon.
fn shim() -> PathBuf {
    let shim = PathBuf::from(env!("CARGO_BIN_EXE_multus-daemon")).with_file_name("multus-shim");
    assert!(shim.exists(), "cargo build -p multus-shim builds what this test needs besides");
    shim
}

/// What the shim prints; an error when it fails.
fn call(node: &Node, verb: &str, container: &str) -> Result<String, String> {
    let conf = json!({
        "cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus-shim",
        "daemonSocketDir": node.path("run"), "cniDir": node.path("state"),
    });
    let mut child = Command::new(shim())
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", node.netns())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    if output.status.success() { Ok(text) } else { Err(text) }
}

fn leases(node: &Node) -> usize {
    std::fs::read_dir(node.path("leases")).into_iter().flatten().count()
}

#[test]
fn nothing_is_lost_and_nothing_is_left() {
    let (rounds, parallel) = (number("PODRAIL_ROUNDS", 8), number("PODRAIL_PARALLEL", 25));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("PODRAIL_SEED", now.as_secs());
    println!("PODRAIL_SEED={seed}");
    let mut moments = Moments(seed.max(1));
    let parallel = usize::try_from(parallel).unwrap();
    let node = Node::new(LEASE);
    let mut daemon = node.daemon(&json!({}));
    for round in 0..rounds {
        for verb in ["ADD", "DEL"] {
            let name = |index: usize| format!("c{round}-{index}");
            let failures: Vec<String> = std::thread::scope(|scope| {
                let node = &node;
                let calls: Vec<_> = (0..parallel)
                    .map(name)
                    .map(|container| scope.spawn(move || call(node, verb, &container)))
                    .collect();
                for turn in 0..2 {
                    moments.pause();
                    // At times the next one is there before this one has gone.
                    let overlaps = (round + turn) % 3 == 0;
                    if !overlaps {
                        daemon.child.kill().unwrap();
                        daemon.child.wait().unwrap();
                    }
                    let next = node.start(&json!({}));
                    std::mem::replace(&mut daemon, next).kill();
                }
                calls.into_iter().filter_map(|call| call.join().unwrap().err()).collect()
            });
            assert!(failures.is_empty(), "round {round}: {failures:?}");
            if verb == "ADD" {
                assert_eq!(leases(&node), parallel, "round {round}");
            }
        }
        node.until("every sandbox is down", || leases(&node) == 0 && node.state().is_empty());
    }
    drop(daemon);
}
