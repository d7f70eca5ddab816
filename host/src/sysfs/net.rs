//! A network device in sysfs (`Documentation/ABI/testing/sysfs-class-net`).

use super::{Directory, Result, SysfsError};
use crate::PciAddress;

/// A network device. Only those of the namespace that sysfs was mounted in can be seen.
#[derive(Debug, Clone)]
pub struct NetDevice {
    name: String,
    directory: Directory,
}

impl NetDevice {
    pub(super) fn new(name: &str, directory: Directory) -> Self {
        Self { name: name.to_owned(), directory }
    }

    /// Those of the device in `directory`, by name.
    pub(super) fn below(directory: &Directory) -> Result<Vec<Self>> {
        let net = directory.child("net");
        Ok(net.names()?.iter().map(|name| Self::new(name, net.child(name))).collect())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the device is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.directory.path().is_dir()
    }

    /// The PCI function behind the device; `None` for a virtual one.
    ///
    /// # Errors
    /// The link cannot be read.
    pub fn pci_address(&self) -> Result<Option<PciAddress>> {
        Ok(self.directory.link_name("device")?.and_then(|name| name.parse().ok()))
    }

    /// The PCI function that the device stands below, at whatever distance: a virtio or auxiliary device may be
    /// between. `None` for a virtual device, and for one that is not there.
    ///
    /// # Errors
    /// The link cannot be read.
    pub fn function(&self) -> Result<Option<PciAddress>> {
        match std::fs::read_link(self.directory.path()) {
            Ok(target) => Ok(PciAddress::in_path(&target)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SysfsError::Read { path: self.directory.path().to_owned(), source }),
        }
    }

    /// The name of the port in the NIC's own terms: `p0` for an uplink, `pf0vf3` for a representor.
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn phys_port_name(&self) -> Result<Option<String>> {
        self.non_empty("phys_port_name")
    }

    /// The switch that the port is a member of; `None` if the NIC is not in switchdev mode.
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn phys_switch_id(&self) -> Result<Option<String>> {
        self.non_empty("phys_switch_id")
    }

    /// The ARP hardware type (`ARPHRD_*`): 1 is Ethernet, 32 InfiniBand.
    ///
    /// # Errors
    /// The attribute is not a number.
    pub fn hardware_type(&self) -> Result<Option<u16>> {
        self.directory.parsed("type", "an ARP hardware type")
    }

    /// The operational state as RFC 2863 has it: `up`, `down`, `lowerlayerdown`, `unknown`, ...
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn operstate(&self) -> Result<Option<String>> {
        self.non_empty("operstate")
    }

    /// Whether the link has a carrier; `None` while the device is administratively down.
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn carrier(&self) -> Result<Option<bool>> {
        Ok(self.directory.attribute("carrier")?.map(|text| text == "1"))
    }

    /// Whether the device is administratively up (`IFF_UP` of `include/uapi/linux/if.h`); `None` if there is no such
    /// device.
    ///
    /// # Errors
    /// The attribute is not a hexadecimal number.
    pub fn is_up(&self) -> Result<Option<bool>> {
        const IFF_UP: u32 = 1;
        let Some(text) = self.directory.attribute("flags")? else { return Ok(None) };
        match u32::from_str_radix(text.trim_start_matches("0x"), 16) {
            Ok(flags) => Ok(Some(flags & IFF_UP != 0)),
            Err(_) => {
                let path = self.directory.path().join("flags");
                Err(SysfsError::Parse { path, text, expected: "flags in hexadecimal" })
            }
        }
    }

    /// The names of the devices that this one stands directly on: the ports of a bond or bridge, the parent of a
    /// VLAN or macvlan (the kernel's `lower_<name>` links).
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn lowers(&self) -> Result<Vec<String>> {
        let names = self.directory.names()?;
        Ok(names.iter().filter_map(|name| Some(name.strip_prefix("lower_")?.to_owned())).collect())
    }

    /// The name of the device that this one is a port of: a bond, bridge, VRF or Open vSwitch.
    ///
    /// # Errors
    /// The link cannot be read.
    pub fn master(&self) -> Result<Option<String>> {
        self.directory.link_name("master")
    }

    fn non_empty(&self, name: &str) -> Result<Option<String>> {
        Ok(self.directory.attribute(name)?.filter(|text| !text.is_empty()))
    }
}
