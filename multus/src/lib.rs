//! The meta-CNI: attaches every network that a pod names, and takes them all away again.

pub mod device_info;
pub mod devices;
pub mod selection;
pub mod status;
