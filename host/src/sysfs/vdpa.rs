//! Devices of the vDPA bus (`Documentation/ABI/testing/sysfs-bus-vdpa`).

use super::auxiliary::parent_pci;
use super::{Result, Sysfs};
use crate::PciAddress;

/// A vDPA device whose parent is a PCI function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdpaDevice {
    /// Name on the bus, such as `vdpa0`.
    pub name: String,
    /// The VF that the device was made from.
    pub parent: PciAddress,
    /// The bound bus driver, `vhost_vdpa` or `virtio_vdpa`; `None` if no driver is bound.
    pub driver: Option<String>,
    /// The node below `/dev` that `vhost_vdpa` made, such as `vhost-vdpa-0`.
    pub vhost: Option<String>,
}

impl Sysfs {
    /// Every vDPA device with a PCI parent, by name. A kernel without that bus has none.
    ///
    /// # Errors
    /// The bus or a link cannot be read.
    pub fn vdpa_devices(&self) -> Result<Vec<VdpaDevice>> {
        let bus = self.directory("bus/vdpa/devices");
        let mut devices = Vec::new();
        for name in bus.names()? {
            let device = bus.child(&name);
            let Some(parent) = parent_pci(device.path())? else { continue };
            let driver = device.link_name("driver")?;
            let vhost = device.names()?.into_iter().find(|child| child.starts_with("vhost-vdpa-"));
            devices.push(VdpaDevice { name, parent, driver, vhost });
        }
        Ok(devices)
    }
}

#[cfg(test)]
mod tests {
    use crate::sysfs::fake::FakeSysfs;

    #[test]
    fn a_vhost_device() {
        let fake = FakeSysfs::new();
        fake.pci("0000:65:00.2").vdpa("vdpa0", "vhost_vdpa").attribute("vdpa0/vhost-vdpa-3/dev", "511:3");
        fake.pci("0000:65:00.3").vdpa("vdpa1", "virtio_vdpa");
        let devices = fake.sysfs().vdpa_devices().unwrap();
        assert_eq!(devices.len(), 2);
        assert_eq!(devices[0].parent.to_string(), "0000:65:00.2");
        assert_eq!(devices[0].driver.as_deref(), Some("vhost_vdpa"));
        assert_eq!(devices[0].vhost.as_deref(), Some("vhost-vdpa-3"));
        assert_eq!((devices[1].name.as_str(), devices[1].vhost.as_deref()), ("vdpa1", None));
    }
}
