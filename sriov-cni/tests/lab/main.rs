//! The `sriov` program on real virtual functions, as a runtime calls it.
//!
//! These tests need root and a NIC with VFs, which a lab guest has; elsewhere they are ignored. Where
//! they do run (`--ignored`), a missing VF is a failure. What the program did is read with `ip`, never
//! with our own netlink code.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

mod addresses;
mod cnitool;
mod containerd;
mod crash;
mod machine;
mod netdevice;
mod release;
mod stress;
mod takeover;
mod trace;
mod userspace;
