//! A PCI function in sysfs (`Documentation/ABI/testing/sysfs-bus-pci`).

use std::path::PathBuf;

use super::{Directory, NetDevice, Result, Sysfs, SysfsError};
use crate::PciAddress;

/// A PCI function: a PF, a VF, or any other. Cheap to hold; every question is asked of the kernel anew.
#[derive(Debug, Clone)]
pub struct PciDevice {
    sysfs: Sysfs,
    address: PciAddress,
    directory: Directory,
}

/// An IOMMU group (`Documentation/ABI/testing/sysfs-kernel-iommu_groups`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuGroup {
    /// The group's number, which also names its node `/dev/vfio/<id>`. Not stable over reboots.
    pub id: u32,
    /// The group's `name` attribute, e.g. `vfio-noiommu`; most groups have none.
    pub name: Option<String>,
}

/// Where a function is in the tree of PCI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position(Vec<String>);

impl Position {
    /// How many links of the tree are between two functions: the fewer, the fewer bridges their traffic passes. Functions
    /// below different host bridges are as far apart as both are from theirs, and one more.
    #[must_use]
    pub fn distance(&self, other: &Self) -> usize {
        let shared = self.0.iter().zip(&other.0).take_while(|(own, others)| own == others).count();
        self.0.len() + other.0.len() - 2 * shared
    }
}

/// What a function is, and what drives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// As [`PciDevice::class`].
    pub class: u32,
    /// As [`PciDevice::vendor`].
    pub vendor: String,
    /// As [`PciDevice::device`].
    pub device: String,
    /// As [`PciDevice::driver`].
    pub driver: Option<String>,
}

impl PciDevice {
    pub(super) fn new(sysfs: Sysfs, address: PciAddress) -> Self {
        let directory = sysfs.directory(&format!("bus/pci/devices/{address}"));
        Self { sysfs, address, directory }
    }

    /// The same function, open; `None` if there is none.
    pub(super) fn opened(self) -> Result<Option<Self>> {
        let Self { sysfs, address, directory } = self;
        Ok(directory.opened()?.map(|directory| Self { sysfs, address, directory }))
    }

    /// The function's address.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// The device's directory in sysfs.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(super) fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    /// Whether the function is still there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path().is_dir()
    }

    /// The vendor ID as four hexadecimal digits, e.g. `8086`.
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn vendor(&self) -> Result<String> {
        self.hex_id("vendor")
    }

    /// The device ID as four hexadecimal digits, e.g. `10ca`.
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn device(&self) -> Result<String> {
        self.hex_id("device")
    }

    fn hex_id(&self, name: &str) -> Result<String> {
        let text = self.directory.attribute(name)?.unwrap_or_default();
        Ok(text.strip_prefix("0x").unwrap_or(&text).to_ascii_lowercase())
    }

    /// The class code, 24 bits: base class, subclass, programming interface; `0x020000` is Ethernet.
    ///
    /// # Errors
    /// The attribute is missing or not hexadecimal.
    pub fn class(&self) -> Result<u32> {
        let text = self.directory.attribute("class")?.unwrap_or_default();
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        u32::from_str_radix(digits, 16).map_err(|_| SysfsError::Parse {
            path: self.directory.path().join("class"),
            text: text.clone(),
            expected: "a class code such as 0x020000",
        })
    }

    /// What the function is and what drives it, by one reading of its `uevent` attribute, which tells what `class`,
    /// `vendor`, `device` and the link `driver` tell. Those are read where it does not.
    ///
    /// # Errors
    /// As those of [`PciDevice::class`], [`PciDevice::vendor`], [`PciDevice::device`], [`PciDevice::driver`].
    pub fn identity(&self) -> Result<Identity> {
        let text = self.directory.attribute("uevent")?.unwrap_or_default();
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let class = value("PCI_CLASS").and_then(|class| u32::from_str_radix(class, 16).ok());
        let ids = value("PCI_ID").and_then(|ids| ids.split_once(':'));
        let (Some(class), Some((vendor, device))) = (class, ids) else {
            return Ok(Identity {
                class: self.class()?,
                vendor: self.vendor()?,
                device: self.device()?,
                driver: self.driver()?,
            });
        };
        Ok(Identity {
            class,
            vendor: vendor.to_ascii_lowercase(),
            device: device.to_ascii_lowercase(),
            driver: match value("DRIVER") {
                Some(driver) => Some(driver.to_owned()),
                None => self.driver()?,
            },
        })
    }

    /// The bound driver's name; `None` if no driver is bound.
    ///
    /// # Errors
    /// The link cannot be read.
    pub fn driver(&self) -> Result<Option<String>> {
        self.directory.link_name("driver")
    }

    /// The NUMA node; `None` where the firmware does not say (the kernel's -1).
    ///
    /// # Errors
    /// The attribute is not a number.
    pub fn numa_node(&self) -> Result<Option<u32>> {
        let node: Option<i64> = self.directory.parsed("numa_node", "a NUMA node number")?;
        Ok(node.and_then(|node| u32::try_from(node).ok()))
    }

    /// The firmware's index of an on-board device (`acpi_index`).
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn acpi_index(&self) -> Result<Option<String>> {
        self.directory.attribute("acpi_index")
    }

    /// The PF of a VF; `None` for other functions, and for a VF inside a virtual machine.
    ///
    /// # Errors
    /// The link cannot be read or names no PCI address.
    pub fn physfn(&self) -> Result<Option<PciDevice>> {
        self.linked("physfn")
    }

    fn linked(&self, name: &str) -> Result<Option<PciDevice>> {
        let Some(text) = self.directory.link_name(name)? else { return Ok(None) };
        match text.parse() {
            Ok(address) => Ok(Some(Self::new(self.sysfs.clone(), address))),
            Err(_) => {
                let path = self.directory.path().join(name);
                Err(SysfsError::Parse { path, text, expected: "a PCI address" })
            }
        }
    }

    /// The VFs of a PF with their indexes, by index. Indexes may be sparse.
    ///
    /// # Errors
    /// The directory or a link cannot be read.
    pub fn virtfns(&self) -> Result<Vec<(u32, PciDevice)>> {
        let mut vfs = Vec::new();
        for name in self.directory.names()? {
            let Some(index) = name.strip_prefix("virtfn").and_then(|n| n.parse().ok()) else { continue };
            // A link that vanished since the listing is a VF that vanished.
            if let Some(vf) = self.linked(&name)? {
                vfs.push((index, vf));
            }
        }
        vfs.sort_by_key(|(index, _)| *index);
        Ok(vfs)
    }

    /// The index of this VF on its PF, as the PF's `virtfnN` links have it; `None` if it is no VF.
    ///
    /// # Errors
    /// The links cannot be read.
    pub fn vf_index(&self) -> Result<Option<u32>> {
        let Some(pf) = self.physfn()? else { return Ok(None) };
        // Asking one link instead of all matters on a PF with hundreds of VFs.
        if let Some(index) = self.computed_vf_index(&pf)?
            && pf.linked(&format!("virtfn{index}"))?.is_some_and(|vf| vf.address == self.address)
        {
            return Ok(Some(index));
        }
        Ok(pf.virtfns()?.into_iter().find(|(_, vf)| vf.address == self.address).map(|(index, _)| index))
    }

    /// Where the PF's SR-IOV capability puts this VF (First VF Offset and VF Stride, PCI Express Base
    /// Specification 9.3.3); `None` when the kernel does not show it.
    fn computed_vf_index(&self, pf: &Self) -> Result<Option<u32>> {
        let offset: Option<u32> = pf.directory.parsed("sriov_offset", "a number of functions")?;
        let stride: Option<u32> = pf.directory.parsed("sriov_stride", "a number of functions")?;
        let distance = self.address.routing_id().checked_sub(pf.address.routing_id());
        let (Some(offset), Some(stride), Some(distance)) = (offset, stride, distance) else {
            return Ok(None);
        };
        Ok(distance.checked_sub(offset).and_then(|distance| distance.checked_div(stride)))
    }

    /// How many VFs the PF can have; `None` if the function has no SR-IOV capability.
    ///
    /// # Errors
    /// The attribute is not a number.
    pub fn total_vfs(&self) -> Result<Option<u32>> {
        self.directory.parsed("sriov_totalvfs", "a number of VFs")
    }

    /// How many VFs the PF has; `None` if the function has no SR-IOV capability.
    ///
    /// During a change the number can lag behind the `virtfnN` links; [`PciDevice::virtfns`] is the truth.
    ///
    /// # Errors
    /// The attribute is not a number.
    pub fn num_vfs(&self) -> Result<Option<u32>> {
        self.directory.parsed("sriov_numvfs", "a number of VFs")
    }

    /// Sets the number of VFs. The kernel only goes from 0 to N or from N to 0, so a change between two
    /// other numbers passes through 0, which destroys the present VFs.
    ///
    /// # Errors
    /// The driver refuses, or the function has no SR-IOV capability.
    pub fn set_num_vfs(&self, count: u32) -> Result<()> {
        if self.num_vfs()? == Some(count) {
            return Ok(());
        }
        let path = self.path().join("sriov_numvfs");
        if count != 0 && self.num_vfs()? != Some(0) {
            super::write(&path, "0")?;
        }
        super::write(&path, &count.to_string())
    }

    /// The function's network devices in the namespace of this sysfs, by name. None when the netdev was moved to
    /// another namespace: the kernel tags the directory by namespace.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn netdevs(&self) -> Result<Vec<NetDevice>> {
        let devices = NetDevice::below(&self.directory)?;
        if !devices.is_empty() || self.driver()?.as_deref() != Some("virtio-pci") {
            return Ok(devices);
        }
        // A virtio device stands on a bus of its own between the function and its network device.
        let mut devices = Vec::new();
        for child in self.directory.names()?.iter().filter(|name| name.starts_with("virtio")) {
            devices.extend(NetDevice::below(&self.directory.child(child))?);
        }
        Ok(devices)
    }

    /// The network device that stands for the function itself.
    ///
    /// A PF in switchdev mode carries representors of its VFs and SFs beside its uplink; the uplink has a
    /// `phys_port_name` of the form `p<N>`, a representor one such as `pf0vf3`
    /// (`Documentation/networking/switchdev.rst`).
    ///
    /// # Errors
    /// The directory or an attribute cannot be read.
    pub fn main_netdev(&self) -> Result<Option<NetDevice>> {
        let mut devices = Vec::new();
        for device in self.netdevs()? {
            let port = device.phys_port_name()?.unwrap_or_default();
            if is_uplink_port(&port) && device.phys_switch_id()?.is_some() {
                return Ok(Some(device));
            }
            devices.push((is_representor_port(&port), device));
        }
        // Not representors first; by name within each.
        devices.sort_by(|(is_port, device), (other_is_port, other)| {
            (is_port, device.name()).cmp(&(other_is_port, other.name()))
        });
        Ok(devices.into_iter().next().map(|(_, device)| device))
    }

    /// The network device `name` of this function.
    #[must_use]
    pub fn netdev(&self, name: &str) -> NetDevice {
        NetDevice::new(name, self.directory.child("net").child(name))
    }

    /// The number of the function's IOMMU group, where its name is of no interest; `None` without an IOMMU.
    ///
    /// # Errors
    /// The link cannot be read or names no number.
    pub fn iommu_group_id(&self) -> Result<Option<u32>> {
        let Some(text) = self.directory.link_name("iommu_group")? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| SysfsError::Parse {
            path: self.directory.path().join("iommu_group"),
            text: text.clone(),
            expected: "an IOMMU group number",
        })
    }

    /// The function's IOMMU group; `None` without an IOMMU.
    ///
    /// # Errors
    /// The link cannot be read or names no number.
    pub fn iommu_group(&self) -> Result<Option<IommuGroup>> {
        let Some(id) = self.iommu_group_id()? else { return Ok(None) };
        let name = self.directory.attribute("iommu_group/name")?;
        Ok(Some(IommuGroup { id, name }))
    }

    /// The way to the function in the tree of PCI: its host bridge, such as `pci0000:3a`, the bridges, itself.
    ///
    /// # Errors
    /// The function is not there.
    pub fn position(&self) -> Result<Position> {
        let path = self.directory.path();
        let target =
            std::fs::read_link(path).map_err(|source| SysfsError::Read { path: path.to_owned(), source })?;
        let names = target.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
        Ok(Position(names.skip_while(|name| !name.starts_with("pci")).collect()))
    }

    /// The addresses of all functions in the same IOMMU group, this one included.
    ///
    /// # Errors
    /// The group's directory cannot be listed.
    pub fn iommu_group_devices(&self) -> Result<Vec<PciAddress>> {
        let names = self.directory.child("iommu_group/devices").names()?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The VFIO device `vfioN` that a VFIO driver, `vfio-pci` or a variant of it, made for the function.
    /// Kernels since 6.1 have it (`Documentation/ABI/testing/sysfs-devices-vfio-dev`).
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn vfio_dev(&self) -> Result<Option<String>> {
        Ok(self.directory.child("vfio-dev").names()?.into_iter().next())
    }

    /// Whether the function's VFIO device has a character device `/dev/vfio/devices/vfioN`; a no-IOMMU
    /// device and a kernel without `CONFIG_VFIO_DEVICE_CDEV` have only the directory.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn vfio_cdev(&self) -> Result<Option<String>> {
        let Some(name) = self.vfio_dev()? else { return Ok(None) };
        let has_node = self.directory.child("vfio-dev").child(&name).attribute("dev")?.is_some();
        Ok(has_node.then_some(name))
    }

    /// The UIO device `uioN` of a function bound to a UIO driver.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn uio(&self) -> Result<Option<String>> {
        Ok(self.directory.child("uio").names()?.into_iter().next())
    }

    /// The function's RDMA devices in the namespace of this sysfs, sorted.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn rdma_devices(&self) -> Result<Vec<String>> {
        self.directory.child("infiniband").names()
    }
}

/// `p0`, `p1`, ...: a physical port.
fn is_uplink_port(port: &str) -> bool {
    port.strip_prefix('p').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// `pf0vf3`, `pf0sf5`, `c1pf0vf3`, `pf0`: a representor's port.
fn is_representor_port(port: &str) -> bool {
    let port = match port.strip_prefix('c') {
        Some(rest) => rest.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => port,
    };
    port.strip_prefix("pf").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::fake::FakeSysfs;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    fn names(device: &PciDevice) -> Vec<String> {
        device.netdevs().unwrap().iter().map(|device| device.name().to_owned()).collect()
    }

    #[test]
    fn a_vf_knows_its_pf_and_its_index() {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:00.0").driver("igb").netdev("ens1f0").sriov(7);
        // Creation partly failed: index 1 is missing.
        fake.pci("0000:3b:10.0").vf_of("0000:3b:00.0", 0);
        fake.pci("0000:3b:10.4").vf_of("0000:3b:00.0", 2).driver("igbvf").netdev("ens1f0v2");
        let vf = fake.sysfs().pci_device(address("0000:3b:10.4")).unwrap();
        assert_eq!(vf.physfn().unwrap().unwrap().address(), address("0000:3b:00.0"));
        assert_eq!(vf.vf_index().unwrap(), Some(2));
        // With the capability's numbers, and with numbers that are not of this PF.
        for (offset, stride) in [("128", "2"), ("64", "2"), ("128", "0"), ("4096", "1")] {
            let pf = fake.pci("0000:3b:00.0");
            pf.attribute("sriov_offset", offset).attribute("sriov_stride", stride);
            assert_eq!(vf.vf_index().unwrap(), Some(2), "offset {offset}, stride {stride}");
        }
        assert_eq!(names(&vf), ["ens1f0v2"]);
        let pf = vf.physfn().unwrap().unwrap();
        let indexes: Vec<u32> = pf.virtfns().unwrap().iter().map(|(index, _)| *index).collect();
        assert_eq!(indexes, [0, 2]);
        assert_eq!((pf.total_vfs().unwrap(), pf.num_vfs().unwrap()), (Some(7), Some(2)));
        assert_eq!(pf.physfn().unwrap().map(|pf| pf.address()), None);
    }

    #[test]
    fn what_the_kernel_leaves_out_is_none() {
        let fake = FakeSysfs::new();
        fake.pci("0000:00:1f.0").attribute("numa_node", "-1");
        let device = fake.sysfs().pci_device(address("0000:00:1f.0")).unwrap();
        assert_eq!(device.driver().unwrap(), None);
        assert_eq!(device.numa_node().unwrap(), None);
        assert_eq!(device.iommu_group().unwrap(), None);
        assert_eq!(device.total_vfs().unwrap(), None);
        assert_eq!(device.vfio_dev().unwrap(), None);
        assert!(device.netdevs().unwrap().is_empty());
        assert!(matches!(
            fake.sysfs().pci_device(address("0000:00:1e.0")),
            Err(SysfsError::NoSuchDevice { .. })
        ));
    }

    /// As `cat /sys/bus/pci/devices/*/uevent` shows it: the class without its leading zero, IDs in capitals.
    #[test]
    fn one_reading_tells_what_a_function_is() {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:10.0").attribute("device", "0x10ca").driver("igbvf");
        let device = fake.sysfs().pci_device(address("0000:3b:10.0")).unwrap();
        let bound = device.identity().unwrap();
        assert_eq!((bound.class, bound.vendor.as_str(), bound.device.as_str()), (0x020000, "8086", "10ca"));
        assert_eq!(bound.driver.as_deref(), Some("igbvf"));
        let common = "PCI_ID=8086:10CA\nPCI_SUBSYS_ID=8086:0000\nPCI_SLOT_NAME=0000:3b:10.0";
        for (text, driver) in [
            (format!("DRIVER=vfio-pci\nPCI_CLASS=20000\n{common}"), "vfio-pci"),
            (format!("PCI_CLASS=20000\n{common}"), "igbvf"),
            (common.to_owned(), "igbvf"),
            ("PCI_CLASS=network".to_owned(), "igbvf"),
        ] {
            fake.pci("0000:3b:10.0").attribute("uevent", &text);
            let expected = Identity { driver: Some(driver.to_owned()), ..bound.clone() };
            assert_eq!(device.identity().unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn distance_counts_the_links_between() {
        let place = |path: &str| Position(path.split('/').map(str::to_owned).collect());
        let gpu = place("pci0000:3a/0000:3a:00.0/0000:3b:00.0/0000:3c:10.0/0000:3d:00.0");
        for (path, distance) in [
            ("pci0000:3a/0000:3a:00.0/0000:3b:00.0/0000:3c:10.0/0000:3d:00.0", 0),
            ("pci0000:3a/0000:3a:00.0/0000:3b:00.0/0000:3c:11.0/0000:3e:00.0", 4),
            ("pci0000:3a/0000:3a:02.0/0000:40:00.0", 6),
            ("pci0000:d7/0000:d7:02.0/0000:d8:00.0", 8),
        ] {
            assert_eq!(
                (gpu.distance(&place(path)), place(path).distance(&gpu)),
                (distance, distance),
                "{path}"
            );
        }
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:10.0");
        let device = fake.sysfs().pci_device(address("0000:3b:10.0")).unwrap();
        assert_eq!(device.position().unwrap(), place("pci0000:00/0000:3b:10.0"));
    }

    #[test]
    fn an_iommu_group_lists_all_its_devices() {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:10.0").iommu_group(14);
        fake.pci("0000:3b:10.1").iommu_group(14);
        let device = fake.sysfs().pci_device(address("0000:3b:10.0")).unwrap();
        assert_eq!(device.iommu_group().unwrap(), Some(IommuGroup { id: 14, name: None }));
        assert_eq!(device.iommu_group_devices().unwrap(), [address("0000:3b:10.0"), address("0000:3b:10.1")]);
    }

    #[test]
    fn the_uplink_stands_for_a_switchdev_pf() {
        for (ports, main) in [
            (vec![("eth_a", "pf0vf0"), ("eth_b", "p0"), ("eth_c", "pf0sf1")], Some("eth_b")),
            (vec![("eth_a", "c1pf0vf0"), ("eth_b", "")], Some("eth_b")),
            (vec![("eth_b", ""), ("eth_a", "")], Some("eth_a")),
            (vec![], None),
        ] {
            let fake = FakeSysfs::new();
            let pf = fake.pci("0000:3b:00.0");
            for (name, port) in &ports {
                pf.netdev(name).net_attribute(name, "phys_switch_id", "c0ffee").net_attribute(
                    name,
                    "phys_port_name",
                    port,
                );
            }
            let pf = fake.sysfs().pci_device(address("0000:3b:00.0")).unwrap();
            assert_eq!(pf.main_netdev().unwrap().as_ref().map(NetDevice::name), main, "{ports:?}");
        }
    }

    #[test]
    fn a_virtio_function_has_the_netdev_of_its_child() {
        let fake = FakeSysfs::new();
        fake.pci("0000:00:03.0").driver("virtio-pci").attribute("virtio2/net/eth0/type", "1");
        let device = fake.sysfs().pci_device(address("0000:00:03.0")).unwrap();
        assert_eq!(names(&device), ["eth0"]);
        assert_eq!(device.main_netdev().unwrap().unwrap().hardware_type().unwrap(), Some(1));
    }

    #[test]
    fn nonsense_is_an_error_that_names_the_attribute() {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:00.0").attribute("sriov_totalvfs", "many").attribute("class", "ether");
        let device = fake.sysfs().pci_device(address("0000:3b:00.0")).unwrap();
        let text = device.total_vfs().unwrap_err().to_string();
        assert!(text.contains("0000:3b:00.0/sriov_totalvfs holds \"many\""), "{text}");
        assert!(device.class().is_err());
    }
}
