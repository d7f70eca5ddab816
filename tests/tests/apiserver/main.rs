//! What a Kubernetes API does, as far as our programs rely on it.
//!
//! The same tests run against the simulated API server and, with `PODRAIL_KUBECONFIG` naming an administrator's
//! kubeconfig, against a real one: the simulation is as good as these tests say. `simulated` holds what only the
//! simulation does; skip it on a real cluster (`-- --skip simulated::`).

// Helpers of tests are tests: clippy's own exception ends at functions that bear #[test].
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod access;
mod cluster;
mod custom;
mod events;
mod lists;
mod objects;
mod patches;
mod pods;
mod simulated;
mod watches;
