//! Devices by their class, and the devices that carry them.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Result, Sysfs, SysfsError};

/// Names of devices of a class, sorted, by the name of the device that carries them, which is a PCI address or the name
/// of an auxiliary device.
///
/// `class/<class>` has a link to every such device, so one listing of it takes the place of a look into each device of
/// the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Carried(BTreeMap<String, Vec<String>>);

impl Carried {
    /// What the device `name` carries.
    #[must_use]
    pub fn by(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}

impl Sysfs {
    /// Every network device of hardware in the namespace of this sysfs.
    ///
    /// # Errors
    /// The class or a link cannot be read.
    pub fn carried_netdevs(&self) -> Result<Carried> {
        self.carried("net")
    }

    /// Every RDMA device in the namespace of this sysfs.
    ///
    /// # Errors
    /// The class or a link cannot be read.
    pub fn carried_rdma_devices(&self) -> Result<Carried> {
        self.carried("infiniband")
    }

    fn carried(&self, class: &str) -> Result<Carried> {
        let mut carried = Carried::default();
        let directory = self.directory("class").child(class);
        for name in directory.names()? {
            let path = directory.path().join(&name);
            let target = match std::fs::read_link(&path) {
                Ok(target) => target,
                // It has gone since the listing; or it is an attribute of the class itself.
                Err(error) if matches!(error.raw_os_error(), Some(ENOENT | EINVAL)) => continue,
                Err(source) => return Err(SysfsError::Read { path, source }),
            };
            if let Some(carrier) = carrier(&target, class) {
                carried.0.entry(carrier.to_owned()).or_default().push(name);
            }
        }
        Ok(carried)
    }
}

const ENOENT: i32 = 2;
const EINVAL: i32 = 22;

/// The name before the last two of `.../<carrier>/<class>/<device>`.
fn carrier<'a>(target: &'a Path, class: &str) -> Option<&'a str> {
    let directory = target.parent()?;
    let carrier = directory.parent()?.file_name()?.to_str()?;
    (directory.file_name()? == class && carrier != "virtual").then_some(carrier)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use crate::sysfs::fake::FakeSysfs;

    #[test]
    fn devices_are_found_below_their_carriers() {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:00.0").netdev("eth1").netdev("eth0");
        fake.pci("0000:3b:10.0").attribute("infiniband/mlx5_2/node_type", "1: CA");
        fake.pci("0000:03:00.0")
            .auxiliary("mlx5_core.sf.4", "mlx5_core.sf")
            .attribute("mlx5_core.sf.4/net/enp3s0f0s88/type", "1");
        fake.attribute("devices/virtual/net/veth0/type", "1");
        symlink("../../devices/virtual/net/veth0", fake.root().join("class/net/veth0")).unwrap();
        fake.attribute("class/net/bonding_masters", "");
        let netdevs = fake.sysfs().carried_netdevs().unwrap();
        assert_eq!(netdevs.by("0000:3b:00.0"), ["eth0", "eth1"]);
        assert_eq!(netdevs.by("mlx5_core.sf.4"), ["enp3s0f0s88"]);
        for nothing in ["0000:3b:10.0", "virtual", ""] {
            assert_eq!(netdevs.by(nothing), [""; 0], "{nothing:?}");
        }
        assert_eq!(fake.sysfs().carried_rdma_devices().unwrap().by("0000:3b:10.0"), ["mlx5_2"]);
        assert_eq!(FakeSysfs::new().sysfs().carried_rdma_devices().unwrap().by("0000:3b:10.0"), [""; 0]);
    }
}
