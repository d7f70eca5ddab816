//! Devices of the auxiliary bus, such as scalable functions
//! (`Documentation/driver-api/auxiliary_bus.rst`, `Documentation/networking/device_drivers/ethernet/mellanox/mlx5`).

use super::{Directory, NetDevice, Result, Sysfs};
use crate::PciAddress;

/// A device of the auxiliary bus whose parent is a PCI function.
#[derive(Debug, Clone)]
pub struct AuxiliaryDevice {
    name: String,
    parent: PciAddress,
    directory: Directory,
}

impl Sysfs {
    /// Every auxiliary device with a PCI parent, by name. A kernel without that bus has none.
    ///
    /// # Errors
    /// The bus or a link cannot be read.
    pub fn auxiliary_devices(&self) -> Result<Vec<AuxiliaryDevice>> {
        let bus = self.directory("bus/auxiliary/devices");
        let mut devices = Vec::new();
        for name in bus.names()? {
            let directory = bus.child(&name);
            if let Some(parent) = parent_pci(directory.path())? {
                devices.push(AuxiliaryDevice { name, parent, directory });
            }
        }
        Ok(devices)
    }
}

/// The PCI function directly above the device that the link at `path` leads to.
pub(super) fn parent_pci(path: &std::path::Path) -> Result<Option<PciAddress>> {
    match std::fs::read_link(path) {
        Ok(target) => {
            let parent = target.parent().and_then(std::path::Path::file_name);
            Ok(parent.and_then(|name| name.to_str()?.parse().ok()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(super::SysfsError::Read { path: path.to_owned(), source }),
    }
}

impl AuxiliaryDevice {
    /// The device's name on the bus: `<module>.<kind>.<number>`, such as `mlx5_core.sf.4`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kind in the name: `sf`, `eth`, `rdma`, `vnet`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.name.split('.').nth(1).unwrap_or_default()
    }

    /// The PCI function that carries the device.
    #[must_use]
    pub fn parent(&self) -> PciAddress {
        self.parent
    }

    /// The bound driver's name; `None` if no driver is bound.
    ///
    /// # Errors
    /// The link cannot be read.
    pub fn driver(&self) -> Result<Option<String>> {
        self.directory.link_name("driver")
    }

    /// The number of a scalable function on its PF; `None` for other kinds.
    ///
    /// # Errors
    /// The attribute is not a number.
    pub fn sf_number(&self) -> Result<Option<u32>> {
        self.directory.parsed("sfnum", "the number of a scalable function")
    }

    /// The device's network devices in the namespace of this sysfs, by name.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn netdevs(&self) -> Result<Vec<NetDevice>> {
        NetDevice::below(&self.directory)
    }

    /// The device's RDMA devices in the namespace of this sysfs, sorted.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn rdma_devices(&self) -> Result<Vec<String>> {
        self.directory.child("infiniband").names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::fake::FakeSysfs;

    #[test]
    fn a_scalable_function() {
        let fake = FakeSysfs::new();
        fake.pci("0000:03:00.0").driver("mlx5_core").netdev("p0").auxiliary("mlx5_core.sf.4", "mlx5_core.sf");
        fake.pci("0000:03:00.0")
            .attribute("mlx5_core.sf.4/sfnum", "88")
            .attribute("mlx5_core.sf.4/net/enp3s0f0s88/type", "1")
            .auxiliary("mlx5_core.eth.0", "mlx5_core.eth");
        let devices = fake.sysfs().auxiliary_devices().unwrap();
        let names: Vec<_> = devices.iter().map(|device| (device.name(), device.kind())).collect();
        assert_eq!(names, [("mlx5_core.eth.0", "eth"), ("mlx5_core.sf.4", "sf")]);
        let sf = &devices[1];
        assert_eq!(sf.parent().to_string(), "0000:03:00.0");
        assert_eq!(sf.driver().unwrap().as_deref(), Some("mlx5_core.sf"));
        assert_eq!(sf.sf_number().unwrap(), Some(88));
        let netdevs = sf.netdevs().unwrap();
        assert_eq!(netdevs.iter().map(NetDevice::name).collect::<Vec<_>>(), ["enp3s0f0s88"]);
        assert_eq!(devices[0].sf_number().unwrap(), None);
    }
}
