//! Looking after owners that are no more, when a range has no room. Nobody has to run for it, and nobody leads it.
//!
//! An address is taken from nobody who may live: a container of this node must have lost its network namespace and its
//! pod; a pod of the peer must have been missing for a minute; another node must have had no Node object and no pods
//! for twice as long as it would trust its own ledger, without having objected in the meantime.

use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::time::Duration;

use crate::conversation::Conversation;
use crate::error::Error;
use crate::exchange::{condemn, inherit};
use crate::ledger::{Ledger, Moment, Suspect, TRUST, Use};
use crate::pool::{Change, Entry, NodeLife, Owner, Pool};

/// How long a pod has to be missing.
const MOURNING: Duration = Duration::from_secs(60);
/// How many pods of the peer are looked for at once.
const MOST_PODS: usize = 32;

/// Frees what can be freed; says whether anything was.
///
/// # Errors
/// [`Error::Api`], and what the ledger's file has to say.
pub(crate) async fn sweep(conversation: &Conversation<'_>, pool: &Pool) -> Result<bool, Error> {
    let freed = own(conversation).await?;
    let mut change = Change::new();
    for life in pool.nodes() {
        if life.verified && life.node != conversation.store.node() {
            change.extend(node(conversation, pool, &life).await?);
        }
    }
    let pods: Vec<(u128, Entry)> = pool
        .entries
        .iter()
        .filter_map(|(offset, entry)| match entry.owner() {
            Owner::Pod(entry) => Some((*offset, entry)),
            Owner::Node(..) => None,
        })
        .take(MOST_PODS)
        .collect();
    for (offset, entry) in pods {
        if is_pod_gone(conversation, &entry).await? {
            change.insert(offset, None);
        }
    }
    if change.is_empty() {
        return Ok(freed);
    }
    let name = conversation.source.pool.as_str();
    let me = conversation.store.with(name, |ledger, _| conversation.store.life(ledger))?;
    conversation.unreserve(pool, &change, &me).await?;
    let changed = conversation.kubernetes.change_pool(name, &pool.patch(&change)).await?;
    Ok(freed || changed)
}

/// Containers of this node whose DEL never came.
async fn own(conversation: &Conversation<'_>) -> Result<bool, Error> {
    let (store, name) = (conversation.store, conversation.source.pool.as_str());
    let suspects = |ledger: &Ledger| -> Vec<(u128, String)> {
        let dead = |(offset, slot): (&u128, &crate::ledger::Slot)| match &slot.state {
            Use::Held(holder) | Use::Lost(holder) => {
                let is_gone = !holder.netns.is_empty() && !Path::new(&holder.netns).exists();
                is_gone.then(|| (*offset, holder.podref.clone()))
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
    let is_gone = |podref: &str| pods.iter().all(|pod| pod.podref != podref);
    store.with(name, |ledger, now| {
        let mut freed = false;
        for (offset, podref) in suspects(ledger) {
            if found.contains(&(offset, podref.clone())) && is_gone(&podref) {
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
    conversation.store.with(&conversation.source.pool, |ledger, now| {
        let id = life.to_string();
        let seen = ledger.suspects.iter().find(|suspect| suspect.id == id).cloned();
        let marked = seen.as_ref().map(|suspect| inherit(pool, life, &suspect.nonce)).unwrap_or_default();
        match seen {
            Some(seen) if !marked.is_empty() => {
                if now.is_within(TRUST * 2, seen.since) {
                    return Change::new();
                }
                tracing::warn!(
                    "node {} is gone: its addresses in {} are free again",
                    life.node,
                    conversation.source.pool
                );
                marked
            }
            _ => {
                let nonce = format!("{:016x}", RandomState::new().hash_one(&id));
                suspect(ledger, id, nonce.clone(), now);
                condemn(pool, life, &nonce)
            }
        }
    })
}

/// A pod of the peer.
async fn is_pod_gone(conversation: &Conversation<'_>, entry: &Entry) -> Result<bool, Error> {
    let Some((namespace, name)) = entry.podref.split_once('/') else { return Ok(false) };
    let is_there = conversation.kubernetes.has_pod(namespace, name).await?;
    conversation.store.with(&conversation.source.pool, |ledger, now| {
        if is_there {
            ledger.suspects.retain(|suspect| suspect.id != entry.id);
            return false;
        }
        match ledger.suspects.iter().find(|suspect| suspect.id == entry.id) {
            Some(seen) => !now.is_within(MOURNING, seen.since),
            None => {
                suspect(ledger, entry.id.clone(), String::new(), now);
                false
            }
        }
    })
}

fn suspect(ledger: &mut Ledger, id: String, nonce: String, since: Moment) {
    ledger.suspects.retain(|suspect| suspect.id != id);
    ledger.suspects.push(Suspect { id, nonce, since });
}
