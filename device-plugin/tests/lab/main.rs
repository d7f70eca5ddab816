//! The device plugin on real virtual functions: what the kernel tells of them reaches kubelet's list.
//!
//! These tests need root and a NIC with VFs that nobody else uses, which a lab guest has; elsewhere they are ignored.
//! Each changes the first PF of the machine in ways that an administrator does, follows the list as kubelet would,
//! and tells on standard error how long the list took. No test asserts that time.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod configuration;
mod devices;
mod held;
mod machine;
mod plugin;
