//! Looking after owners that are no more, when a range has no room. Nobody has to run for it, and nobody leads it.
//!
//! An address is taken from nobody who may live: a container of this node must have lost its network namespace and its
//! pod; a pod of the peer must have been missing for a minute, and a tenant with everything that would bring it back;
//! another node must have had no Node object and no pods for twice as long as it would trust its own ledger, without
//! having objected in the meantime.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::time::Duration;

use crate::burial::{Burial, bury};
use crate::conversation::Conversation;
use crate::error::Error;
use crate::kubernetes::Reserver;
use crate::ledger::{Ledger, Use};
use crate::pool::{Change, Entry, Mark, NodeLife, Owner, Pool};

/// How long a pod has to be missing.
const MOURNING: Duration = Duration::from_secs(60);
/// How many pods of the peer and tenants are looked for at once.
const MOST_LOOKED_FOR: usize = 32;

/// Frees what can be freed; says whether anything was.
///
/// # Errors
/// [`Error::Api`], and what the ledger's file has to say.
pub(crate) async fn sweep(conversation: &Conversation<'_>, pool: &Pool) -> Result<bool, Error> {
    let freed = own(conversation, |netns| !Path::new(netns).exists()).await?;
    forget(conversation, pool)?;
    let mut change = Change::new();
    for life in pool.nodes() {
        if life.verified && life.node != conversation.store.node() {
            change.extend(node(conversation, pool, &life).await?);
        }
    }
    let name = conversation.source.pool.as_str();
    let me = conversation.store.with(name, |ledger, _| conversation.store.life(ledger))?;
    let mut evicted = Vec::new();
    for (offset, entry) in candidates(pool) {
        if !is_gone(conversation, entry).await? {
            continue;
        }
        match entry.owner() {
            // By way of this node: as long as nobody else can have it, the tenant's reservation can be removed.
            Owner::Tenant(tenant) => {
                change.insert(offset, Some(Entry::of_node(&me, &Mark::None, None)));
                evicted.push((offset, tenant));
            }
            Owner::Node(..) | Owner::Pod(_) => drop(change.insert(offset, None)),
        }
    }
    if change.is_empty() {
        return Ok(freed);
    }
    conversation.unreserve(pool, &change, &me).await?;
    let after = conversation.kubernetes.change_pool(name, &pool.patch(&change)).await?;
    if let Some(after) = &after {
        forget(conversation, after)?;
    }
    let changed = after.is_some();
    for (offset, tenant) in evicted.into_iter().filter(|_| changed) {
        tracing::warn!("{tenant} will not come back: its address in {name} is free again");
        if let Some(reservation) = conversation.reservation(&conversation.source.range, offset) {
            conversation.kubernetes.unreserve(&reservation, &Reserver::Tenant(tenant)).await?;
        }
    }
    Ok(freed || changed)
}

/// Some of the entries that are no node's: others each time, so that all have their turn.
fn candidates(pool: &Pool) -> Vec<(u128, &Entry)> {
    let entries = pool.entries.iter().filter(|(_, entry)| !matches!(entry.owner(), Owner::Node(..)));
    let mut entries: Vec<(u128, &Entry)> = entries.map(|(offset, entry)| (*offset, entry)).collect();
    let random = RandomState::new().hash_one(&pool.version);
    let count = u64::try_from(entries.len()).unwrap_or(u64::MAX).max(1);
    let first = usize::try_from(random % count).unwrap_or_default();
    entries.rotate_left(first);
    entries.truncate(MOST_LOOKED_FOR);
    entries
}

/// Frees what containers of this node have whose DEL never came: their network namespace is gone, and their pod.
///
/// # Errors
/// [`Error::Api`], and what the ledger's file has to say.
pub(crate) async fn own(
    conversation: &Conversation<'_>,
    is_gone: impl Fn(&str) -> bool,
) -> Result<bool, Error> {
    let (store, name) = (conversation.store, conversation.source.pool.as_str());
    let suspects = |ledger: &Ledger| -> Vec<(u128, String)> {
        let dead = |(offset, slot): (&u128, &crate::ledger::Slot)| match &slot.state {
            Use::Held(holder) | Use::Lost(holder) => {
                let is_dead = !holder.netns.is_empty() && is_gone(&holder.netns);
                is_dead.then(|| (*offset, holder.podref.clone()))
            }
            Use::Idle | Use::Returning => None,
        };
        ledger.slots.iter().filter_map(dead).collect()
    };
    // Of a node whose name is not certain the list of pods would be another's.
    let found = store.with(name, |ledger, _| if ledger.verified { suspects(ledger) } else { Vec::new() })?;
    if found.is_empty() {
        return Ok(false);
    }
    let pods = conversation.kubernetes.pods_of_node(store.node()).await?;
    let has_left = |podref: &str| pods.iter().all(|pod| pod.podref != podref);
    store.with(name, |ledger, now| {
        let mut freed = false;
        for (offset, podref) in suspects(ledger) {
            if found.contains(&(offset, podref.clone())) && has_left(&podref) {
                tracing::warn!("pod {podref} is gone and its DEL never came: its address is free again");
                ledger.release(offset, Duration::ZERO, now);
                freed = true;
            }
        }
        freed
    })
}

/// Another node: condemned when it has no Node object, inherited from when it did not object.
async fn node(conversation: &Conversation<'_>, pool: &Pool, life: &NodeLife) -> Result<Change, Error> {
    let kubernetes = conversation.kubernetes;
    if kubernetes.boot_of_node(&life.node).await?.is_some()
        || !kubernetes.pods_of_node(&life.node).await?.is_empty()
    {
        return Ok(Change::new());
    }
    let name = conversation.source.pool.as_str();
    let nonce = format!("{:016x}", RandomState::new().hash_one(&life.node));
    conversation.store.with(name, |ledger, now| match bury(ledger, pool, life, &nonce, now) {
        Burial::Waiting => Change::new(),
        Burial::Condemned(change) => change,
        Burial::Inherited(change) => {
            tracing::warn!("node {} is gone: its addresses in {name} are free again", life.node);
            change
        }
    })
}

/// A pod of the peer, or a tenant that waits to come back.
async fn is_gone(conversation: &Conversation<'_>, entry: &Entry) -> Result<bool, Error> {
    let kubernetes = conversation.kubernetes;
    let is_there = match entry.owner() {
        Owner::Tenant(tenant) => kubernetes.is_expected(&tenant).await?,
        Owner::Pod(entry) => match entry.podref.split_once('/') {
            Some((namespace, name)) => kubernetes.has_pod(namespace, name).await?,
            None => return Ok(false),
        },
        Owner::Node(..) => return Ok(false),
    };
    conversation.store.with(&conversation.source.pool, |ledger, now| {
        if is_there {
            ledger.absolve(&entry.id);
        }
        !is_there && ledger.misses(&entry.id, MOURNING, now)
    })
}

/// Drops the suspicions against those that have nothing in the pool.
fn forget(conversation: &Conversation<'_>, pool: &Pool) -> Result<(), Error> {
    let owner = |entry: &Entry| match entry.owner() {
        Owner::Node(life, _) => life.to_string(),
        Owner::Tenant(_) | Owner::Pod(_) => entry.id.clone(),
    };
    let owners: BTreeSet<String> = pool.entries.values().map(owner).collect();
    conversation.store.with(&conversation.source.pool, |ledger, _| {
        ledger.suspects.retain(|suspect| owners.contains(&suspect.id));
    })
}
