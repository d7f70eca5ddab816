//! sysfs, read through one root.
//!
//! The root is a value ([`Sysfs::default`] is `/sys`), so that a test can point the same code at a tree
//! of its own. Attributes that a kernel or driver may lack come back as `None`; only what should be
//! readable and is not, or reads as nonsense, is an error.

mod auxiliary;
mod bind;
mod net;
mod pci;
mod rdma;
mod vdpa;

#[cfg(any(test, feature = "fake"))]
pub mod fake;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use auxiliary::AuxiliaryDevice;
pub use net::NetDevice;
pub use pci::{IommuGroup, PciDevice};
pub use rdma::RdmaNodes;
pub use vdpa::VdpaDevice;

use crate::PciAddress;

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
    root: PathBuf,
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
        Self { root: root.into() }
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
        let directory = self.pci_directory();
        let mut devices: Vec<_> = names_in(&directory)?
            .iter()
            .filter_map(|name| name.parse().ok())
            .map(|address| PciDevice::new(self.clone(), address))
            .collect();
        devices.sort_by_key(PciDevice::address);
        Ok(devices)
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

    /// The network device `name` of the namespace that this sysfs was mounted in, present or not.
    #[must_use]
    pub fn net_device(&self, name: &str) -> NetDevice {
        NetDevice::new(self.root.join("class/net").join(name))
    }

    fn pci_directory(&self) -> PathBuf {
        self.root.join("bus/pci/devices")
    }
}

/// The text of an attribute without its final newline; `None` if the attribute does not exist.
fn attribute(path: &Path) -> Result<Option<String>> {
    // One read gives all of an attribute, which is at most a page. A scan reads thousands of them.
    let mut page = [0; PAGE];
    let read = File::open(path).and_then(|mut file| file.read(&mut page));
    match read {
        Ok(length) => {
            let text = page.get(..length).unwrap_or_default();
            Ok(Some(String::from_utf8_lossy(text).trim().to_owned()))
        }
        // A driver that has no value to give answers EOPNOTSUPP, EINVAL (carrier of a link that is
        // down) or ENODEV (device on its way out): for a reader all of these are "no value".
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || matches!(error.raw_os_error(), Some(EINVAL | ENODEV | EOPNOTSUPP)) =>
        {
            Ok(None)
        }
        Err(source) => Err(SysfsError::Read { path: path.to_owned(), source }),
    }
}

const PAGE: usize = 4096;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

/// An attribute as a value of type `T`.
fn parsed<T: FromStr>(path: &Path, expected: &'static str) -> Result<Option<T>> {
    let Some(text) = attribute(path)? else { return Ok(None) };
    match text.parse() {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(SysfsError::Parse { path: path.to_owned(), text, expected }),
    }
}

/// The last component of a symbolic link's target; `None` if there is no such link.
fn link_name(path: &Path) -> Result<Option<String>> {
    match std::fs::read_link(path) {
        Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysfsError::Read { path: path.to_owned(), source }),
    }
}

/// The names in a directory, sorted; empty if there is no such directory.
fn names_in(directory: &Path) -> Result<Vec<String>> {
    let read = |source| SysfsError::Read { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => names.push(entry.file_name().to_string_lossy().into_owned()),
            // The directory went away between opening and listing it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(read(error)),
        }
    }
    names.sort();
    Ok(names)
}

/// Writes an attribute.
fn write(path: &Path, value: &str) -> Result<()> {
    std::fs::write(path, value).map_err(|source| SysfsError::Write {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}
