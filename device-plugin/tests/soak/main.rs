//! Days of events in half a minute: the program on a fake sysfs, in a network namespace of its own, with everything
//! happening to it that happens to a node. In between and in the end its lists are what a fresh look finds, and it has
//! no more memory, files and threads than after the first rounds; left alone it does nothing.
//!
//! `PODRAIL_SOAK_SECONDS` sets how long; `PODRAIL_SOAK_SEED` repeats a run.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

mod kubelet;
mod node;
mod process;
mod random;
mod tree;

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use node::Node;
use process::Usage;
use random::Random;

/// How many times the node comes to rest. What is there after the first few is what stays.
const RESTS: u32 = 6;
const WARM_UP: usize = 2;

/// What may be there in the end that was not after the first rests: memory in pieces, a thread that is about to end.
const MEMORY_SLACK: u64 = 1024;
const THREADS_SLACK: usize = 2;

/// How often threads of an idle program may wake up in [`IDLE`]: one regular look at the devices may fall into it.
const WAKE_UPS: u64 = 150;
const IDLE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soak_leaves_nothing_behind() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let length = Duration::from_secs(number("PODRAIL_SOAK_SECONDS").unwrap_or(20));
    let seed = number("PODRAIL_SOAK_SEED").unwrap_or_else(random::seed);
    let mut random = Random::new(seed);
    let mut node = Node::start().await;
    let begun = Instant::now();
    let mut usages: Vec<Usage> = Vec::new();
    for rest in 1..=RESTS {
        let until = begun + length * rest / RESTS;
        while Instant::now() < until {
            node.happen(&mut random).await;
        }
        node.rest(seed).await;
        usages.push(node.usage().await);
    }
    let counts = node.counts();
    let _ = writeln!(io::stderr(), "seed {seed}, {:?}: {counts}", begun.elapsed());
    for usage in &usages {
        let _ = writeln!(io::stderr(), "  {usage}");
    }
    let (first, later) = usages.split_at(WARM_UP);
    let most = |of: fn(&Usage) -> usize| first.iter().map(of).max().unwrap();
    let memory = first.iter().map(|usage| usage.kibibytes).max().unwrap();
    let last = later.last().unwrap();
    assert!(last.kibibytes <= memory + MEMORY_SLACK, "memory grows: {last}, after warm-up {memory} KiB");
    assert!(last.files <= most(|usage| usage.files), "files stay open: {last}");
    assert!(last.threads <= most(|usage| usage.threads) + THREADS_SLACK, "threads stay: {last}");

    for situation in ["kubelet listens", "kubelet is away", "kubelet hangs"] {
        node.arrange(situation).await;
        let before = node.wake_ups();
        tokio::time::sleep(IDLE).await;
        let wake_ups = node.wake_ups().saturating_sub(before);
        let _ = writeln!(io::stderr(), "  {situation}: {wake_ups} wake-ups in {IDLE:?}");
        assert!(wake_ups <= WAKE_UPS, "{situation}: {wake_ups} wake-ups in {IDLE:?}");
    }
    node.stop().await;
}
