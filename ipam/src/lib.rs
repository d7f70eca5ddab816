//! Cluster-wide addresses that are never given twice.
//!
//! A pool, an object of the cluster, says which node keeps which addresses of a range; a ledger, a file of the node,
//! says which container has which address that the node keeps. Addresses move between pool and node in blocks, by
//! writes that are conditional on what was read, and between node and container without the cluster's knowledge. Why no
//! address can have two containers is shown in docs/ipam.md.
//!
//! [`range`], [`names`], [`tenant`], [`terms`], [`pool`], [`ledger`], [`stock`], [`chores`], [`exchange`] and [`burial`] are
//! the pure core.

pub mod burial;
pub mod chores;
pub mod config;
pub mod conversation;
pub mod error;
pub mod exchange;
pub mod kubernetes;
pub mod ledger;
pub mod metrics;
pub mod names;
pub mod plugin;
pub mod pool;
pub mod range;
pub mod stock;
pub mod store;
pub mod tenant;
pub mod tend;
pub mod terms;

mod attach;
mod detach;
mod log;
mod probe;
mod slices;
mod sweep;
mod tenancy;

pub use error::Error;
