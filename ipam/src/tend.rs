//! `whereabouts tend`: the daemon of a node, which does ahead of the calls, or after them, what they would have to wait for.
//!
//! It shares nothing with the plugin but the ledgers and their locks. It keeps nothing that is needed: whenever it ends, or
//! where it never runs, the calls do what it would have done.

mod command;
mod install;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use host::DirectoryWatch;
use tokio::sync::{Mutex, watch};

use crate::chores::{Chore, Heard, chore};
use crate::conversation::Conversation;
use crate::error::Error;
use crate::exchange::Need;
use crate::kubernetes::{Bell, Kubernetes};
use crate::ledger::{Ledger, Moment, Use};
use crate::metrics::serve;
use crate::stock::{self, Tide};
use crate::store::{Stamp, Store, now};
use crate::sweep;

pub use command::main;

/// How long the API server may be away before a conversation is given up: calls of the plugin wait for its end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a change is tried that others forestall.
const CONTENTION: Duration = Duration::from_secs(20);
/// How long ledgers are left alone after one has changed, so that a burst of calls is looked at once.
const SETTLE: Duration = Duration::from_millis(20);
/// How often ledgers are looked at without a reason.
const TICK: Duration = Duration::from_secs(10);
/// For how long after a container came or went a pool counts as used.
const QUIET: Duration = Duration::from_secs(3600);
/// How often containers that are no more are looked for.
const SEARCH: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// After how long a watch that failed is tried again.
const WATCH_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How the daemon runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where ledgers are.
    pub data_dir: PathBuf,
    /// How to reach the API server; as a pod does when not given.
    pub kubeconfig: Option<PathBuf>,
    /// Where to serve figures.
    pub metrics: Option<SocketAddr>,
}

/// Tends the ledgers of the node, for ever.
///
/// # Errors
/// When the directory of the ledgers is unusable, or the address for the figures is not to be had. That the API server is
/// away is no error.
pub async fn tend(options: &Options) -> Result<Infallible, Error> {
    let store = Store::open(&options.data_dir, "")?;
    let daemon = Daemon {
        options,
        boot: store.boot().to_owned(),
        client: Mutex::new(None),
        wanted: watch::Sender::new(BTreeSet::new()),
    };
    let figures = async {
        match options.metrics {
            Some(address) => Ok(serve::serve(&serve::listen(address).await?, &options.data_dir).await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        end = daemon.work(&store) => end,
        end = figures => end,
        end = daemon.listen() => Ok(end),
    }
}

struct Daemon<'a> {
    options: &'a Options,
    boot: String,
    client: Mutex<Option<Kubernetes>>,
    /// The pools that want addresses of this node.
    wanted: watch::Sender<BTreeSet<String>>,
}

/// What the daemon remembers of a pool. Without it, it begins anew.
struct Memory {
    stamp: Stamp,
    ledger: Ledger,
    tide: Tide,
    used: Moment,
    searched: Option<Instant>,
    due: Option<(Chore, Instant)>,
    failures: u32,
}

impl Daemon<'_> {
    async fn work(&self, store: &Store) -> Result<Infallible, Error> {
        let mut pools: BTreeMap<String, Memory> = BTreeMap::new();
        let mut wanted = self.wanted.subscribe();
        loop {
            // Begun before the look, and anew each time: the directory may be another one by now.
            let mut changes = watch_directory(&self.options.data_dir)?;
            wanted.mark_unchanged();
            self.look(store, &mut pools)?;
            let begun = Instant::now();
            let due = pools.iter().filter_map(|(pool, memory)| {
                memory.due.filter(|(_, at)| *at <= begun).map(|(chore, _)| (pool, chore, &memory.ledger))
            });
            let done = join_all(due.map(|(pool, chore, ledger)| async move {
                (pool.clone(), chore, self.tidy(pool, chore, ledger).await)
            }))
            .await;
            if !done.is_empty() {
                self.account(store, &mut pools, done)?;
                continue;
            }
            let next = pools.values().filter_map(|memory| Some(memory.due?.1)).min();
            let pause = next.map_or(TICK, |next| next.saturating_duration_since(begun).min(TICK));
            tokio::select! {
                changed = changes.changed() => match changed {
                    Ok(()) => tokio::time::sleep(SETTLE).await,
                    Err(error) => tracing::debug!("{error}"),
                },
                _ = wanted.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Reads what has changed, and says what is to be done when.
    fn look(&self, store: &Store, pools: &mut BTreeMap<String, Memory>) -> Result<(), Error> {
        let (now, here) = (now()?, store.pools()?);
        pools.retain(|pool, _| here.contains(pool));
        for pool in here {
            let Some(stamp) = store.stamp(&pool)? else { continue };
            if pools.get(&pool).is_none_or(|memory| memory.stamp != stamp) {
                match store.read(&pool)? {
                    Some(ledger) => remember(pools, &pool, stamp, ledger, now),
                    None => drop(pools.remove(&pool)),
                }
            }
            if let Some(memory) = pools.get_mut(&pool) {
                if let Err(error) = self.ebb(&pool, memory, now) {
                    tracing::warn!("{error}");
                }
                self.plan(&pool, memory, now);
            }
        }
        Ok(())
    }

    /// Marks for return what was idle for long.
    fn ebb(&self, pool: &str, memory: &mut Memory, now: Moment) -> Result<(), Error> {
        let Some(terms) = &memory.ledger.terms else { return Ok(()) };
        let is_used = now.is_within(QUIET, memory.used);
        let block = if is_used || is_held(&memory.ledger) { memory.ledger.block } else { 0 };
        let unused = memory.tide.note(stock::idle(&memory.ledger, &terms.range, now), block, now);
        if unused > 0 {
            let store = Store::open(&self.options.data_dir, &terms.node)?;
            let life = store.life(&memory.ledger);
            memory.ledger = store.within(pool, &life, |ledger, now| {
                ledger.mark_unused(unused, now);
                ledger.clone()
            })?;
            tracing::info!("{pool}: {unused} idle addresses go back, nobody needed them");
        }
        Ok(())
    }

    fn plan(&self, pool: &str, memory: &mut Memory, now: Moment) {
        let heard = Heard {
            is_wanted: self.wanted.borrow().contains(pool),
            is_used: now.is_within(QUIET, memory.used),
            has_searched: memory.searched.is_some_and(|at| at.elapsed() < SEARCH),
        };
        let terms = memory.ledger.terms.as_ref();
        let next = terms.and_then(|terms| chore(&memory.ledger, terms, heard, now));
        if memory.due.map(|(chore, _)| chore) != next {
            memory.due = next.map(|chore| (chore, Instant::now() + delay(chore)));
            memory.failures = 0;
        }
    }

    /// Does what is to be done; false when another process of the node talks to the pool.
    async fn tidy(&self, pool: &str, chore: Chore, ledger: &Ledger) -> Result<bool, Error> {
        let Some(terms) = &ledger.terms else { return Ok(false) };
        let store = Store::open(&self.options.data_dir, &terms.node)?;
        let Some(_lock) = store.try_claim_lock(pool)? else { return Ok(false) };
        let (kubernetes, source) = (self.client().await?, terms.source(pool));
        if kubernetes.place() != terms.place {
            tracing::debug!("{pool} is at {}, not at {}", terms.place, kubernetes.place());
            return Ok(false);
        }
        let conversation = Conversation {
            kubernetes: &kubernetes,
            store: &store,
            source: &source,
            network_name: &terms.network_name,
            exclusive: terms.exclusive,
            block: terms.block,
            slices: terms.slices.as_deref(),
            limit: CONTENTION,
        };
        let need = match chore {
            Chore::Stock | Chore::Renew => Need::Stock(&source.range),
            Chore::Answer | Chore::Tell => Need::Nothing,
            Chore::Search if sweep::own(&conversation, is_gone).await? => Need::Nothing,
            Chore::Search => return Ok(true),
        };
        if chore == Chore::Answer {
            // What rings from now on is another wish.
            self.wanted.send_if_modified(|wanted| wanted.remove(pool));
        }
        let (after, _) = conversation.hold(need).await?;
        if after.wanted().contains(&self.boot) {
            // Something rests, and goes when it has rested.
            self.wanted.send_if_modified(|wanted| wanted.insert(pool.to_owned()));
        }
        tracing::debug!("{pool}: {chore:?} is done");
        Ok(true)
    }

    /// Plans again what was not done, or did not help, for later.
    fn account(
        &self,
        store: &Store,
        pools: &mut BTreeMap<String, Memory>,
        done: Vec<(String, Chore, Result<bool, Error>)>,
    ) -> Result<(), Error> {
        let mut tried = Vec::new();
        for (pool, chore, result) in done {
            let Some(memory) = pools.get_mut(&pool) else { continue };
            if chore == Chore::Search && result.is_ok() {
                memory.searched = Some(Instant::now());
            }
            if let Err(error) = result {
                tracing::warn!("{pool}: {error}; trying again");
                if let Ok(mut client) = self.client.try_lock() {
                    *client = None;
                }
                if chore == Chore::Answer {
                    self.wanted.send_if_modified(|wanted| wanted.insert(pool.clone()));
                }
            }
            tried.push((pool, chore, memory.failures));
        }
        self.look(store, pools)?;
        for (pool, chore, failures) in tried {
            let Some(memory) =
                pools.get_mut(&pool).filter(|memory| memory.due.is_some_and(|due| due.0 == chore))
            else {
                continue;
            };
            memory.failures = failures + 1;
            let pause = (FIRST_PAUSE * 2_u32.saturating_pow(failures.min(16))).min(LONGEST_PAUSE);
            memory.due = Some((chore, Instant::now() + pause / 2 + random(pause / 2)));
        }
        Ok(())
    }

    /// Keeps `wanted` true, as long as the API server lets it.
    async fn listen(&self) -> Infallible {
        let (first, longest) = WATCH_PAUSES;
        let mut pause = first;
        loop {
            let began = Instant::now();
            let result = match self.client().await {
                Ok(kubernetes) => kubernetes.listen(&self.boot, |bell| self.hear(bell)).await,
                Err(error) => Err(error),
            };
            // A watch ends now and then, by itself.
            if began.elapsed() > longest {
                pause = first;
            }
            if let Err(error) = result {
                tracing::warn!("{error}; until it succeeds others get idle addresses of this node late");
                *self.client.lock().await = None;
            }
            // One that ends at once, if without an error, is not begun again at once: all nodes would.
            tokio::time::sleep(pause / 2 + random(pause / 2)).await;
            pause = (pause * 2).min(longest);
        }
    }

    fn hear(&self, bell: Bell) {
        self.wanted.send_if_modified(|wanted| match bell {
            Bell::Begun => {
                wanted.clear();
                false
            }
            Bell::Rings(pool) => {
                wanted.insert(pool);
                true
            }
            Bell::Silent(pool) => wanted.remove(&pool),
        });
    }

    /// The client, made anew after a failure: credentials may be others by then.
    async fn client(&self) -> Result<Kubernetes, Error> {
        let mut client = self.client.lock().await;
        let kubernetes = match client.take() {
            Some(kubernetes) => kubernetes,
            None => match &self.options.kubeconfig {
                Some(path) => Kubernetes::connect(Some(path), PATIENCE).await?,
                None => Kubernetes::of_pod(PATIENCE)?,
            },
        };
        Ok(client.insert(kubernetes).clone())
    }
}

/// How long something waits that was just found to be due. What many nodes find at the same moment they do not do at the same.
fn delay(chore: Chore) -> Duration {
    match chore {
        Chore::Answer => random(Duration::from_millis(300)),
        // The call that marked it is about to tell it.
        Chore::Tell => Duration::from_secs(2) + random(Duration::from_secs(1)),
        Chore::Search => random(Duration::from_secs(1)),
        Chore::Stock => Duration::ZERO,
        Chore::Renew => random(Duration::from_secs(60)),
    }
}

fn random(limit: Duration) -> Duration {
    let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(RandomState::new().hash_one(micros) % micros.saturating_add(1))
}

fn remember(pools: &mut BTreeMap<String, Memory>, pool: &str, stamp: Stamp, ledger: Ledger, now: Moment) {
    match pools.get_mut(pool) {
        Some(memory) => {
            if !held(&ledger).eq(held(&memory.ledger)) {
                memory.used = now;
            }
            (memory.stamp, memory.ledger) = (stamp, ledger);
        }
        None => {
            let idle = ledger.terms.as_ref().map_or(0, |terms| stock::idle(&ledger, &terms.range, now));
            let (tide, used) = (Tide::new(idle, now), now);
            let memory = Memory { stamp, ledger, tide, used, searched: None, due: None, failures: 0 };
            pools.insert(pool.to_owned(), memory);
        }
    }
}

/// Which containers have which addresses.
fn held(ledger: &Ledger) -> impl Iterator<Item = (u128, &str)> {
    ledger.slots.iter().filter_map(|(offset, slot)| match &slot.state {
        Use::Held(holder) => Some((*offset, holder.container.as_str())),
        Use::Idle | Use::Returning | Use::Lost(_) => None,
    })
}

fn is_held(ledger: &Ledger) -> bool {
    held(ledger).next().is_some()
}

/// Whether a network namespace is no more. In a container that does not show the host's, none is known to be gone.
fn is_gone(netns: &str) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let path = Path::new(netns);
    let directory = path.parent().filter(|directory| !directory.starts_with("/proc"));
    let is_there = directory.and_then(|directory| std::fs::metadata(directory).ok());
    // One that was removed, and is still mounted here, has no links.
    is_there.is_some_and(|directory| directory.nlink() > 0) && !path.exists()
}

fn watch_directory(directory: &Path) -> Result<DirectoryWatch, Error> {
    host::durable::make_directory(directory)?;
    Ok(DirectoryWatch::new(directory)?)
}
