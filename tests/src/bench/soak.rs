//! What the daemon of thick mode keeps of many calls: nothing.
//!
//! Delegates do nothing. Each figure is taken when the daemon has had time to rest: what a burst takes is given back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::Options;
use super::call::Call;
use super::row::{Aim, Row};
use super::thick::{Node, at_once, cluster};

/// Pods of the node.
const PODS: usize = 250;
/// How many of them come and go at the same time.
const PARALLEL: usize = 16;
/// How long the daemon rests before it is looked at: longer than it keeps threads and connections that nobody uses.
const REST: Duration = Duration::from_secs(120);
/// How often is looked meanwhile whether it has come to rest.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How much more than before is flat: what a page more or less makes.
const FLAT: f64 = 1.03;

/// What two processes hold.
#[derive(Clone, Copy, Debug)]
struct Held {
    memory: f64,
    files: f64,
    starter_memory: f64,
    starter_files: f64,
}

pub(super) fn measure(options: &Options) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (server, uids) = runtime.block_on(cluster(PODS)).context("fill the simulated cluster")?;
    let node = Node::start(&options.programs, &server, uids)?;
    // The process that starts delegates is started by the first of them.
    rounds(&node, 2 * PODS, &|| server.clear_requests())?;
    let first = rested(&node)?;
    let mut rows = Vec::new();
    rows.extend(first.rows("after the first", None));
    let tenth = options.requests / 10;
    let start = Instant::now();
    rounds(&node, tenth, &|| server.clear_requests())?;
    let early = rested(&node)?;
    rows.extend(early.rows(&format!("after {tenth} requests"), Some(first)));
    let resting = Instant::now();
    rounds(&node, options.requests - tenth, &|| server.clear_requests())?;
    let took = resting.elapsed();
    rows.extend(rested(&node)?.rows(&format!("after {} requests / {tenth}", options.requests), Some(early)));
    for verb in ["ADD", "DEL"] {
        at_once(&(0..PODS).map(|index| node.call(verb, index)).collect::<Vec<_>>())?;
    }
    rows.extend(rested(&node)?.rows(&format!("after {PODS} at a time / {tenth}"), Some(early)));
    let each = took.as_secs_f64() * 1000.0 / f64::from(u32::try_from(options.requests - tenth)?);
    rows.push(Row::new(format!("one request of {PARALLEL} at a time, mean"), each, "ms", None, None));
    let whole = start.elapsed().as_secs_f64();
    rows.push(Row::new("all of it", whole, "s", None, None));
    Ok(rows)
}

impl Held {
    fn rows(self, when: &str, before: Option<Held>) -> [Row; 4] {
        let of = |what: &str, get: fn(&Held) -> f64, unit, aim: Option<Aim>| {
            Row::new(format!("{what}, {when}"), get(&self), unit, before.as_ref().map(get), aim)
        };
        let flat = before.map(|_| Aim::Ratio(FLAT));
        [
            of("daemon memory", |held| held.memory, "MB", Some(Aim::Value(10.0))),
            of("daemon open files", |held| held.files, "files", flat),
            of("memory of the process that starts delegates", |held| held.starter_memory, "MB", flat),
            of("its open files", |held| held.starter_files, "files", flat),
        ]
    }
}

/// What is held when that has stayed the same for a while.
fn rested(node: &Node) -> Result<Held> {
    let look = || -> Result<Held> {
        Ok(Held {
            memory: node.memory()?,
            files: node.files()?,
            starter_memory: node.starter()?,
            starter_files: node.starter_files()?,
        })
    };
    let deadline = Instant::now() + REST;
    let mut quiet = 0;
    let mut held = look()?;
    while quiet < 3 && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
        let now = look()?;
        let is_same = now.memory >= held.memory && now.files >= held.files;
        quiet = if is_same { quiet + 1 } else { 0 };
        held = now;
    }
    Ok(held)
}

/// `count` requests: pods that come and go, some of them at a time. `between` is called now and then.
fn rounds(node: &Node, count: usize, between: &(impl Fn() + Sync)) -> Result<()> {
    let next = AtomicUsize::new(0);
    let pods = |worker: usize| {
        let own: Vec<[Call; 2]> = (worker..PODS)
            .step_by(PARALLEL)
            .map(|index| ["ADD", "DEL"].map(|verb| node.call(verb, index)))
            .collect();
        move |next: &AtomicUsize| -> Result<()> {
            for pod in own.iter().cycle() {
                // A pod that has come goes.
                if next.fetch_add(2, Ordering::Relaxed) >= count {
                    return Ok(());
                }
                for call in pod {
                    call.measure()?;
                }
                between();
            }
            Ok(())
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..PARALLEL)
            .map(|worker| {
                let (next, work) = (&next, pods(worker));
                scope.spawn(move || work(next))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}
