//! What becomes of the addresses of a node that is no more.
//!
//! Whoever misses it marks them; a node that lives takes the mark away with its next read of the pool. Once a mark has
//! stood for so long that the node would trust its ledger no more, the addresses are free. Many may miss a node at once:
//! they all wait for the mark of the first.

use std::time::Duration;

use crate::ledger::{Ledger, Moment, Suspect, TRUST};
use crate::pool::{Change, Entry, Mark, NodeLife, Owner, Pool};

/// How long a mark has to stand.
const PATIENCE: Duration = Duration::from_secs(2 * TRUST.as_secs());

/// What is to be done about a node that was found missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Burial {
    /// Nothing: a mark stands, and not for long enough.
    Waiting,
    /// To mark what it keeps.
    Condemned(Change),
    /// To free what it keeps.
    Inherited(Change),
}

/// The next step towards the burial of a node that is missing now. The mark that is waited for is noted in the ledger;
/// `nonce` is that of a new one, should there be none.
pub fn bury(ledger: &mut Ledger, pool: &Pool, node: &NodeLife, nonce: &str, now: Moment) -> Burial {
    let id = node.to_string();
    let seen = ledger.suspects.iter().find(|suspect| suspect.id == id);
    if let Some(seen) = seen {
        let freed = inherit(pool, node, &seen.nonce);
        if !freed.is_empty() {
            return if now.is_within(PATIENCE, seen.since) {
                Burial::Waiting
            } else {
                Burial::Inherited(freed)
            };
        }
    }
    // To overwrite that of another would begin its wait anew, and two that did so would wait for ever.
    let standing = owned(pool, node).find_map(|(_, _, mark)| match mark {
        Mark::Condemned(nonce) => Some(nonce),
        Mark::None | Mark::Wanted => None,
    });
    let (nonce, burial) = match standing {
        Some(nonce) => (nonce, Burial::Waiting),
        None => (nonce.to_owned(), Burial::Condemned(condemn(pool, node, nonce))),
    };
    ledger.suspect(Suspect { id, nonce, since: now, renewed: None });
    burial
}

fn condemn(pool: &Pool, node: &NodeLife, nonce: &str) -> Change {
    let mark = Mark::Condemned(nonce.to_owned());
    let marked = |entry: &Entry| Some(Entry::of_node(node, &mark, entry.tenant().as_ref()));
    owned(pool, node).map(|(offset, entry, _)| (offset, marked(entry))).collect()
}

/// Frees what a node keeps under a mark of this nonce. Tenants wait from then on.
fn inherit(pool: &Pool, node: &NodeLife, nonce: &str) -> Change {
    let freed = |entry: &Entry| entry.tenant().as_ref().map(Entry::of_tenant);
    let marked = owned(pool, node).filter(|(_, _, mark)| *mark == Mark::Condemned(nonce.to_owned()));
    marked.map(|(offset, entry, _)| (offset, freed(entry))).collect()
}

fn owned<'a>(pool: &'a Pool, node: &'a NodeLife) -> impl Iterator<Item = (u128, &'a Entry, Mark)> + 'a {
    pool.entries.iter().filter_map(move |(offset, entry)| match entry.owner() {
        Owner::Node(of, mark) if of == *node => Some((*offset, entry, mark)),
        Owner::Node(..) | Owner::Tenant(_) | Owner::Pod(_) => None,
    })
}
