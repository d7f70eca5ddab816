//! sriov-device-plugin: offers SR-IOV virtual functions to kubelet.

mod allocate;
mod allocations;
mod cli;
mod config;
mod device;
mod device_info;
mod discovery;
mod placement;
mod places;
mod pool;
mod selector;

fn main() {}
