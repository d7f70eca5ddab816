//! The kernel as podrail sees it.
//!
//! This is the only crate that reads sysfs, speaks netlink, enters network namespaces or opens raw
//! sockets. What it offers are values and verbs in the field's terms; no caller sees a netlink
//! attribute or a sysfs path.

pub mod pci;
pub mod sysfs;

pub use pci::PciAddress;
pub use sysfs::Sysfs;
