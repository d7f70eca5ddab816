//! What a network says of a pool, as a ledger keeps it: the daemon gets no configuration, and does with the pool what the
//! plugin would do.

use serde::{Deserialize, Serialize};

use crate::config::Source;
use crate::range::Range;

/// What the network said that had to ask the pool for an address last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Which server and namespace have the pool. A daemon that reaches another one must not take what is free there for free
    /// here.
    #[serde(default)]
    pub place: String,
    /// By which name the node is known to the pool.
    pub node: String,
    /// What is given out on its own account.
    pub range: Range,
    /// `network_name`.
    pub network_name: String,
    /// `enable_overlapping_ranges`.
    pub exclusive: bool,
    /// `node_slice_size` as a number of addresses.
    pub block: Option<u128>,
    /// The name of the peer's `NodeSlicePool`, where it may have one.
    pub slices: Option<String>,
}

impl Terms {
    /// The pool and the range, as a conversation about the pool of this name needs them.
    #[must_use]
    pub fn source(&self, pool: &str) -> Source {
        let whole = Range::new(self.range.subnet(), None, None, &[], self.range.gateway());
        Source { pool: pool.to_owned(), range: self.range.clone(), whole }
    }
}
