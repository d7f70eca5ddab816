//! What the peer left in the slices of a node.
//!
//! Where `node_slice_size` is set, the peer's pods of a node are in pools of the node's slices. We allocate from the pool of
//! the whole range and only release there, so that addresses and reservations of its pods end with the pods.

use crate::conversation::Conversation;
use crate::error::Error;
use crate::kubernetes::Reserver;
use crate::ledger::Stranger;
use crate::names;
use crate::pool::{Change, Entry, Owner};
use crate::range::Range;

/// How often a slice is read again that changed meanwhile. Only this node's calls change it.
const TRIES: u32 = 5;

/// Releases these attachments, wherever they are in this node's slices.
///
/// # Errors
/// [`Error::Api`], [`Error::Contended`]. The ledger goes on looking.
pub(crate) async fn release(
    conversation: &Conversation<'_>,
    slices: &str,
    strangers: &[Stranger],
) -> Result<(), Error> {
    if strangers.is_empty() {
        return Ok(());
    }
    let is_its = |entry: &Entry| {
        strangers.iter().any(|stranger| stranger.container == entry.id && stranger.ifname == entry.ifname)
    };
    let node = conversation.store.node();
    for slice in conversation.kubernetes.slices(slices, node).await? {
        let range = Range::new(slice, None, None, &[], None);
        let pool = names::slice_pool(conversation.network_name, node, slice);
        release_in(conversation, &pool, &range, &is_its).await?;
    }
    Ok(())
}

async fn release_in(
    conversation: &Conversation<'_>,
    name: &str,
    range: &Range,
    is_its: &impl Fn(&Entry) -> bool,
) -> Result<(), Error> {
    let kubernetes = conversation.kubernetes;
    for _ in 0..TRIES {
        let Some(pool) = kubernetes.existing_pool(name).await? else { return Ok(()) };
        let mut change = Change::new();
        for (offset, entry) in pool.entries.iter().filter(|(_, entry)| is_its(entry)) {
            if let (Owner::Pod(entry), Some(reservation)) =
                (entry.owner(), conversation.reservation(range, *offset))
            {
                kubernetes.unreserve(&reservation, &Reserver::Pod(entry.podref)).await?;
            }
            change.insert(*offset, None);
        }
        if change.is_empty() || kubernetes.change_pool(name, &pool.patch(&change)).await?.is_some() {
            return Ok(());
        }
    }
    Err(Error::Contended { pool: name.to_owned(), tries: TRIES })
}
