//! sysfs, read through one root.
//!
//! The root is a value ([`Sysfs::default`] is `/sys`), so that a test can point the same code at a tree
//! of its own. Attributes that a kernel or driver may lack come back as `None`; only what should be
//! readable and is not, or reads as nonsense, is an error.

mod auxiliary;
mod bind;
mod class;
mod directory;
mod net;
mod pci;
mod rdma;
mod representor;
mod vdpa;
mod vf_statistics;

#[cfg(any(test, feature = "fake"))]
pub mod fake;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use auxiliary::AuxiliaryDevice;
pub use class::Carried;
pub use net::NetDevice;
pub use pci::{Identity, IommuGroup, PciDevice, Position};
pub use rdma::RdmaNodes;
pub use vdpa::VdpaDevice;

use crate::PciAddress;
use directory::Directory;

/// What can go wrong in sysfs.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    /// No PCI device has this address now.
    #[error("no PCI device {address} in {}; check the address with `ls {}`", directory.display(), directory.display())]
    NoSuchDevice {
        /// The address asked for.
        address: PciAddress,
        /// The directory that should hold it.
        directory: PathBuf,
    },
    /// An attribute or link could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The attribute.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An attribute could not be written.
    #[error("cannot write {value:?} to {}", path.display())]
    Write {
        /// The attribute.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why; the driver's errno passes through the write.
        source: io::Error,
    },
    /// An attribute holds a text that the kernel ABI does not foresee.
    #[error("{} holds {text:?}, which is not {expected}", path.display())]
    Parse {
        /// The attribute.
        path: PathBuf,
        /// Its text.
        text: String,
        /// What the ABI promises.
        expected: &'static str,
    },
    /// After a bind or unbind the device has another driver than asked for.
    #[error(
        "{address} is bound to {found} after binding it to {wanted}; does {wanted} support the device, and is its module loaded?"
    )]
    NotBound {
        /// The device.
        address: PciAddress,
        /// The driver asked for.
        wanted: String,
        /// The driver it has, or "no driver".
        found: String,
    },
}

type Result<T> = std::result::Result<T, SysfsError>;

/// A sysfs tree.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: Arc<Path>,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::new("/sys")
    }
}

impl Sysfs {
    /// The tree below `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into().into() }
    }

    /// Where the tree stands.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every PCI function of the machine, by address (`/sys/bus/pci/devices`).
    ///
    /// # Errors
    /// The directory cannot be listed. A machine without a PCI bus has no devices, which is no error.
    pub fn pci_devices(&self) -> Result<Vec<PciDevice>> {
        let addresses = self.pci_addresses()?;
        Ok(addresses.into_iter().map(|address| PciDevice::new(self.clone(), address)).collect())
    }

    /// The addresses of [`Sysfs::pci_devices`], sorted.
    ///
    /// # Errors
    /// As there.
    pub fn pci_addresses(&self) -> Result<Vec<PciAddress>> {
        let names = self.directory("bus/pci/devices").names()?;
        let mut addresses: Vec<_> = names.iter().filter_map(|name| name.parse().ok()).collect();
        addresses.sort();
        Ok(addresses)
    }

    /// The PCI function at `address`.
    ///
    /// # Errors
    /// [`SysfsError::NoSuchDevice`] if there is none.
    pub fn pci_device(&self, address: PciAddress) -> Result<PciDevice> {
        let device = PciDevice::new(self.clone(), address);
        if device.path().is_dir() {
            Ok(device)
        } else {
            Err(SysfsError::NoSuchDevice { address, directory: self.pci_directory() })
        }
    }

    /// The PCI function at `address`, open: for many questions about one device. Answers are of the function that is
    /// there now; when it has gone, it has no attributes.
    ///
    /// # Errors
    /// [`SysfsError::NoSuchDevice`] if there is none; or its directory cannot be opened.
    pub fn open_pci_device(&self, address: PciAddress) -> Result<PciDevice> {
        let missing = || SysfsError::NoSuchDevice { address, directory: self.pci_directory() };
        PciDevice::new(self.clone(), address).opened()?.ok_or_else(missing)
    }

    /// The network device `name` of the namespace that this sysfs was mounted in, present or not.
    #[must_use]
    pub fn net_device(&self, name: &str) -> NetDevice {
        NetDevice::new(name, self.directory("class/net").child(name))
    }

    fn directory(&self, path: &str) -> Directory {
        Directory::new(self.root.join(path))
    }

    fn pci_directory(&self) -> PathBuf {
        self.root.join("bus/pci/devices")
    }
}

/// Writes an attribute.
fn write(path: &Path, value: &str) -> Result<()> {
    std::fs::write(path, value).map_err(|source| SysfsError::Write {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}
