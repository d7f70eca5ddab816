//! What can go wrong, and how it is told to the runtime.

use std::error::Error as _;
use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use host::netlink::VfSetting;
use host::sysfs::SysfsError;
use host::{MacAddress, PciAddress, durable, lock, netlink, netns};

use crate::record::Owner;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key of the configuration has a value that is not accepted.
    #[error("{key}: {value} is not accepted; it must be {expected}")]
    Config {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// The configuration names no VF.
    #[error(
        "deviceID is missing: the VF's PCI address is required; multus fills it in when the network attachment definition \
         names a resource and the pod requests it"
    )]
    NoDevice,
    /// The device cannot be given to a container.
    #[error("device {device} {reason}")]
    Device {
        /// The device.
        device: PciAddress,
        /// What is the matter, and what to do.
        reason: String,
    },
    /// sysfs could not be read.
    #[error("looking at device {device}")]
    Sysfs {
        /// The device.
        device: PciAddress,
        /// The cause.
        source: SysfsError,
    },
    /// Another container has the VF.
    #[error("VF {device} is already allocated to {owner}; it is free again when that container is deleted")]
    Allocated {
        /// The VF.
        device: PciAddress,
        /// Who has it.
        owner: Box<Owner>,
    },
    /// The interface name is taken in the container.
    #[error("the container {} has an interface {name} already; choose another interface name", netns.display())]
    NameTaken {
        /// The name.
        name: String,
        /// The container's namespace.
        netns: PathBuf,
    },
    /// The configuration asks for what only a PF can do, and there is none to be seen here.
    #[error(
        "{option} of VF {device} cannot be set: its physical function is not visible on this machine (a virtual machine?); \
         set it where the PF is, and leave it out here"
    )]
    NoPf {
        /// The VF.
        device: PciAddress,
        /// The option.
        option: String,
    },
    /// PF driver or kernel refused a setting.
    #[error("setting {setting} on {place}: {cause}{}", hint(.cause))]
    Setting {
        /// The setting.
        setting: VfSetting,
        /// The VF: its number, address, PF and driver.
        place: String,
        /// The kernel's answer.
        cause: netlink::Error,
    },
    /// A setting was accepted but reads differently.
    #[error("{what} of VF {device} is {found} and should be {wanted}")]
    Differs {
        /// The VF.
        device: PciAddress,
        /// Which setting.
        what: &'static str,
        /// What it reads.
        found: String,
        /// What it should read.
        wanted: String,
    },
    /// A driver accepted a hardware address and does not use it.
    #[error("the driver of interface {index} did not take MAC {mac} over; it has another one still")]
    MacNotTaken {
        /// The address.
        mac: MacAddress,
        /// The interface.
        index: u32,
    },
    /// The VF's interface was not found anywhere.
    #[error(
        "the interface of VF {device} is in no network namespace of this machine, though driver {driver} is bound; \
         it may still be on its way back"
    )]
    Lost {
        /// The VF.
        device: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// The VF's interface cannot have its old name back.
    #[error(
        "the interface of VF {device} cannot get its name {name} back: another interface on the host has it; \
         rename that one"
    )]
    HostNameTaken {
        /// The VF.
        device: PciAddress,
        /// Its name.
        name: String,
    },
    /// Another machine has the address.
    #[error("address {address} of {name} is in use on the network already (duplicate address detection)")]
    Duplicate {
        /// The address.
        address: ipnet::IpNet,
        /// The interface.
        name: String,
    },
    /// Something is left to be given back.
    #[error("{} (the record is kept; the next DEL, GC or ADD of the VF tries again)", list(.0))]
    NotReleased(Vec<Error>),
    /// Undoing a failed attachment failed in turn.
    #[error("{failure}; undoing it failed too: {undo}")]
    Undo {
        /// What failed first.
        failure: Box<Error>,
        /// What could not be undone.
        undo: Box<Error>,
    },
    /// CHECK found differences.
    #[error("the attachment is not as ADD left it: {}", .0.join("; "))]
    Check(Vec<String>),
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The container's namespace is unusable.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The VF's lock was not obtained.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// State could not be read or written.
    #[error(transparent)]
    State(#[from] durable::Error),
    /// A file of our own state cannot be understood.
    #[error("{} cannot be understood ({reason}); it was written by a newer version", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The machine does not tell what every machine tells.
    #[error("reading {what}: {cause}")]
    Machine {
        /// What was read.
        what: &'static str,
        /// The cause.
        cause: io::Error,
    },
    /// IPAM, or the protocol.
    #[error(transparent)]
    Cni(#[from] cni::Error),
}

fn hint(error: &netlink::Error) -> &'static str {
    if error.is_unsupported() {
        "; this driver does not offer it: leave the option out, or use another NIC"
    } else {
        ""
    }
}

fn list(errors: &[Error]) -> String {
    errors.iter().map(Error::chain).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// The message with all its causes.
    fn chain(&self) -> String {
        let mut text = self.to_string();
        // Transparent variants already speak with their cause's voice; their source is the cause's.
        let mut source = self.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        text
    }

    /// Whether the VF is fit for use all the same, under another name on the host.
    pub(crate) fn concerns_name_only(&self) -> bool {
        matches!(self, Self::HostNameTaken { .. })
    }
}

impl From<Error> for cni::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Cni(error) => error,
            Error::Config { .. } | Error::NoDevice | Error::NoPf { .. } => {
                Self::invalid_config(error.chain())
            }
            Error::Allocated { .. } | Error::Lock(lock::Error::Timeout { .. }) => {
                Self::try_again_later(error.chain())
            }
            Error::Netns(_) => Self::invalid_netns(error.chain()),
            Error::State(_) | Error::Lock(_) => Self::io(error.chain()),
            _ => Self::internal(error.chain()),
        }
    }
}
