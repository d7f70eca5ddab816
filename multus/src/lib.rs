//! The meta-CNI: attaches every network that a pod names, and takes them all away again.
//!
//! ADD in the order of the modules: the configuration ([`config`]) and the pod ([`kubernetes`]) say which
//! networks ([`selection`], [`nad`], [`networks`]) with which devices ([`devices`], [`kubelet`],
//! [`checkpoint`]); that becomes delegates ([`delegate`]), which go to disk ([`record`]) before the first one
//! runs ([`attach`]); default routes ([`routes`]) and the network-status ([`status`], [`device_info`]) follow.
//! DEL ([`detach`]) needs nothing but what is on disk. Calls for one sandbox take turns ([`turn`]).

mod access;
pub mod attach;
pub mod cached_delegates;
pub mod check;
pub mod checkpoint;
pub mod config;
pub mod delegate;
pub mod detach;
pub mod device_info;
pub mod devices;
pub mod error;
mod events;
pub mod hotplug;
pub mod known;
pub mod kubelet;
pub mod kubernetes;
pub mod log;
pub mod nad;
pub mod networks;
pub mod node;
pub mod plugin;
pub mod record;
mod rotation;
pub mod routes;
pub mod selection;
pub mod status;
pub mod turn;
pub mod undeclared;
mod vlan;

pub use error::Error;
