//! The kernel as podrail sees it.
//!
//! This is the only crate that reads sysfs, speaks netlink, enters network namespaces or opens raw
//! sockets. What it offers are values and verbs in the field's terms; no caller sees a netlink
//! attribute or a sysfs path.

pub mod announce;
pub mod cgroup;
pub mod chroot;
pub mod directory_watch;
pub mod durable;
mod incarnation;
pub mod lock;
mod mac;
pub mod netlink;
pub mod netns;
pub mod pci;
pub mod process;
pub mod program;
pub mod sysctl;
pub mod sysfs;
pub mod uevent;

pub use announce::announce;
pub use directory_watch::DirectoryWatch;
pub use incarnation::{boot_id, incarnation, uptime};
pub use lock::FileLock;
pub use mac::{MacAddress, ParseMacAddressError};
pub use netlink::Netlink;
pub use netns::{Netns, NetnsId};
pub use pci::PciAddress;
pub use sysfs::Sysfs;
pub use uevent::{Uevent, Uevents};

#[cfg(test)]
mod testing;
