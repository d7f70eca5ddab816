//! The plugin of one and of several nodes against an API server: the suite's own, or the one that `PODRAIL_KUBECONFIG`
//! names. `faults` holds what only the suite's own can do, and always uses that.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod acceptance;
mod faults;
mod node;
mod pools;
mod scale;
mod tenants;
mod tending;
