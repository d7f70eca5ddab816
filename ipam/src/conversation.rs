//! A node and a pool, brought to say the same.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::config::Source;
use crate::error::Error;
use crate::exchange::{Need, Want, dismiss, plan, settle};
use crate::kubernetes::{Kubernetes, Reserver};
use crate::ledger::{Demand, Fill, Slot, Use};
use crate::names;
use crate::pool::{Change, Entry, NodeLife, Owner, Pool};
use crate::range::Range;
use crate::slices;
use crate::stock::block_of;
use crate::store::{Store, now};
use crate::terms::Terms;

/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Up to how many doublings the pause grows: as many nodes as meet at a pool of a large cluster.
const MOST_DOUBLINGS: u32 = 6;
/// Which turns insist that the pool is as it was read. The others insist only that the addresses are free.
const BY_VERSION: u32 = 4;
/// At which fill the cluster is told, percent.
const ALARMS: [u32; 3] = [80, 95, 100];

/// The two sides, and where the pool's addresses have their reservations.
#[derive(Debug)]
pub struct Conversation<'a> {
    /// The pools.
    pub kubernetes: &'a Kubernetes,
    /// The ledgers.
    pub store: &'a Store,
    /// The pool that is spoken of.
    pub source: &'a Source,
    /// `network_name`.
    pub network_name: &'a str,
    /// `enable_overlapping_ranges`.
    pub exclusive: bool,
    /// `node_slice_size` as a number of addresses.
    pub block: Option<u128>,
    /// The name of the `NodeSlicePool`, where the peer may have one.
    pub slices: Option<&'a str>,
    /// For how long a change is tried that others forestall. Each time one of them has got what it wanted.
    pub limit: Duration,
}

impl Conversation<'_> {
    /// Tells the pool what the ledger has to tell and, where an address is needed, gets one that will do, if there is one.
    /// Answers with the pool as it is then, and with the life of the node to which it said so.
    ///
    /// The caller holds the pool's claim lock.
    ///
    /// # Errors
    /// [`Error::Api`], [`Error::Contended`], [`Error::Replaced`], and what the ledger's file has to say. The ledger stays
    /// true.
    pub async fn hold(&self, need: Need<'_>) -> Result<(Pool, NodeLife), Error> {
        let demand = need.demand();
        let name = self.source.pool.as_str();
        let sought = self.store.with(name, |ledger, _| ledger.strangers.clone())?;
        if let Some(slices) = self.slices {
            slices::release(self, slices, &sought).await?;
        }
        let me = self.introduce().await?;
        let mut avoid = BTreeSet::new();
        let begun = Instant::now();
        let mut turns = 0;
        while turns == 0 || begun.elapsed() < self.limit {
            let turn = Instant::now();
            // Taken before the pool is read: that is how old the news is.
            let started = now()?;
            let pool = self.kubernetes.pool(name, &self.source.range.subnet().to_string()).await?;
            let spread = (turns > 0).then(|| RandomState::new().hash_one(turns));
            let want = Want { need, avoid: &avoid, block: self.block, spread };
            let change = self.store.within(name, &me, |ledger, now| {
                if demand.is_none() {
                    ledger.block = block_of(&pool, &me, &self.source.range, self.block);
                    ledger.mark_surplus(now);
                    ledger.mark_vacant(now);
                } else {
                    ledger.terms = Some(self.terms());
                }
                plan(ledger, &pool, &me, &want, now)
            })?;
            self.unreserve(&pool, &change, &me).await?;
            // Those that forestalled us took other addresses, most likely.
            let claim = if turns % BY_VERSION == 0 { None } else { pool.claim(&change) };
            let patch = claim.unwrap_or_else(|| pool.patch(&change));
            let after = if change.is_empty() {
                Some(pool.clone())
            } else {
                self.kubernetes.change_pool(name, &patch).await?
            };
            let Some(after) = after else {
                let left = self.limit.saturating_sub(begun.elapsed());
                tokio::time::sleep(pause(turns, turn.elapsed()).min(left)).await;
                turns += 1;
                continue;
            };
            let range = &self.source.range;
            let fill = Fill { usable: range.capacity(), taken: after.used(range) };
            let is_met = self.store.within(name, &me, |ledger, now| {
                settle(ledger, &after, &me, started);
                dismiss(ledger, &after, &sought);
                ledger.fill = Some(fill);
                demand.is_none_or(|demand| {
                    ledger.candidate(&Demand { reserved: false, ..demand.clone() }, now).is_some()
                })
            })?;
            self.alarm(&pool, &after).await;
            turns += 1;
            // What went back just now may be what is needed.
            if !is_met && change.values().any(gives_back) {
                continue;
            }
            if !self.exclusive || matches!(need, Need::Nothing) {
                return Ok((after, me));
            }
            let refused = self.reserve(demand.map_or(range, |demand| demand.range), &me).await?;
            if refused.is_empty() {
                return Ok((after, me));
            }
            avoid.extend(refused);
        }
        Err(Error::Contended { pool: name.to_owned(), tries: turns })
    }

    fn terms(&self) -> Terms {
        Terms {
            place: self.kubernetes.place(),
            node: self.store.node().to_owned(),
            range: self.source.range.clone(),
            network_name: self.network_name.to_owned(),
            exclusive: self.exclusive,
            block: self.block,
            slices: self.slices.map(str::to_owned),
        }
    }

    /// Who we are to the pool. The name is verified as soon as it can be: only then may others bury us, or may we take
    /// over what an earlier boot of ours left.
    async fn introduce(&self) -> Result<NodeLife, Error> {
        let name = self.source.pool.as_str();
        let me = self.store.with(name, |ledger, _| self.store.life(ledger))?;
        if me.verified {
            return Ok(me);
        }
        let boot = match self.kubernetes.boot_of_node(self.store.node()).await {
            Err(error @ Error::Api { transient: false, .. }) => {
                tracing::warn!("{error}; addresses of this node will not be reclaimed should it vanish");
                None
            }
            answer => answer?,
        };
        self.store.with(name, |ledger, _| {
            ledger.verified = boot.as_deref() == Some(self.store.boot_id());
            self.store.life(ledger)
        })
    }

    /// Reserves the idle addresses that are not yet, and answers with those that are others'.
    async fn reserve(&self, range: &Range, me: &NodeLife) -> Result<Vec<u128>, Error> {
        let name = self.source.pool.as_str();
        let open: Vec<(u128, Reserver)> = self.store.within(name, me, |ledger, _| {
            let open = ledger.slots.iter().filter(|(_, slot)| slot.state == Use::Idle && !slot.reserved);
            let reserver = |slot: &Slot| {
                slot.tenant.clone().map_or_else(|| Reserver::Node(me.clone()), Reserver::Tenant)
            };
            open.map(|(offset, slot)| (*offset, reserver(slot))).collect()
        })?;
        let open = open
            .into_iter()
            .filter_map(|(offset, reserver)| Some((offset, reserver, self.reservation(range, offset)?)));
        let asked = open.map(|(offset, reserver, reservation)| async move {
            (offset, self.kubernetes.reserve(&reservation, &reserver).await)
        });
        let answers = join_all(asked).await;
        let (mut refused, mut failure) = (Vec::new(), None);
        self.store.within(name, me, |ledger, _| {
            for (offset, answer) in answers {
                match (answer, ledger.slots.get_mut(&offset)) {
                    (Ok(true), Some(slot)) => slot.reserved = true,
                    (Ok(false), _) => {
                        ledger.refuse(offset);
                        refused.push(offset);
                    }
                    (Err(error), _) => failure = Some(error),
                    (Ok(true), None) => {}
                }
            }
        })?;
        match failure {
            Some(error) => Err(error),
            None => Ok(refused),
        }
    }

    /// Removes the reservations of what goes back or is taken over from the peer, before it goes: the other way round a
    /// crash between the two would leave a reservation that belongs to nobody.
    pub(crate) async fn unreserve(&self, pool: &Pool, change: &Change, me: &NodeLife) -> Result<(), Error> {
        let requests = change.iter().filter_map(|(offset, entry)| {
            let reservation = self.reservation(&self.source.range, *offset)?;
            let reserver = match (pool.entries.get(offset)?.owner(), entry) {
                (Owner::Node(life, _), None) if life.is_same_node(me) => Reserver::Node(me.clone()),
                (Owner::Node(life, _), None) => Reserver::Node(life),
                (Owner::Tenant(tenant), None) => Reserver::Tenant(tenant),
                (Owner::Pod(entry), _) => Reserver::Pod(entry.podref),
                // It stays with the node or the tenant.
                (Owner::Node(..) | Owner::Tenant(_), Some(_)) => return None,
            };
            Some(async move { self.kubernetes.unreserve(&reservation, &reserver).await })
        });
        join_all(requests).await.into_iter().collect()
    }

    /// The name of the reservation of the address at `offset`.
    #[must_use]
    pub fn reservation(&self, range: &Range, offset: u128) -> Option<String> {
        Some(names::reservation(self.network_name, range.address(offset)?))
    }

    async fn alarm(&self, before: &Pool, after: &Pool) {
        let range = &self.source.range;
        let (capacity, used) = (range.capacity(), after.used(range));
        let reached = |pool: &Pool, percent: u32| {
            pool.used(range).saturating_mul(100) >= capacity.saturating_mul(percent.into())
        };
        let crossed =
            ALARMS.into_iter().rfind(|percent| reached(after, *percent) && !reached(before, *percent));
        if let Some(percent) = crossed {
            let subnet = range.subnet();
            let message = format!("{used} of {capacity} addresses of {subnet} are taken or kept by nodes");
            self.kubernetes.tell_fill(&self.source.pool, percent, &message).await;
        }
    }
}

/// Whether an address goes to nobody, or back to a tenant that is not here.
fn gives_back(entry: &Option<Entry>) -> bool {
    entry.as_ref().is_none_or(|entry| matches!(entry.owner(), Owner::Tenant(_)))
}

/// A pause of random length, so that those who met do not meet again. It is measured by what a turn takes, which is
/// longer the more of them there are, and longer after each: a change that succeeds takes the API server several times
/// as long as one that does not.
fn pause(turns: u32, turn: Duration) -> Duration {
    let longest = turn.saturating_mul(8 << turns.min(MOST_DOUBLINGS)).min(LONGEST_PAUSE);
    let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(RandomState::new().hash_one(turns) % micros.saturating_add(1))
}
