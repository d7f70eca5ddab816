//! The `sriov` CNI plugin: it puts an SR-IOV virtual function into a container and gives it back as it
//! was.
//!
//! One rule carries everything: *intent is on disk before the first change*. A [`record`] holds what the
//! VF was like when it was clean and whose it is; [`restore`] brings a VF back to that state from
//! wherever it is, as often as it is called. Undoing a failed ADD, DEL, the recovery from a killed
//! process and GC are all that same function.

pub mod config;
pub mod error;
pub mod plan;
pub mod plugin;
pub mod record;
pub mod state;

mod add;
mod address;
mod check;
mod claim;
mod gc;
mod log;
mod machine;
mod netdev;
mod peer;
mod release;
mod restore;
mod vf;
