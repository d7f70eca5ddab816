//! A PCI function in sysfs (`Documentation/ABI/testing/sysfs-bus-pci`).

use std::path::PathBuf;

use super::{NetDevice, Result, Sysfs, SysfsError, attribute, link_name, names_in, parsed};
use crate::PciAddress;

/// A PCI function: a PF, a VF, or any other. Cheap to hold; every question is asked of the kernel anew.
#[derive(Debug, Clone)]
pub struct PciDevice {
    sysfs: Sysfs,
    address: PciAddress,
}

/// An IOMMU group (`Documentation/ABI/testing/sysfs-kernel-iommu_groups`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuGroup {
    /// The group's number, which also names its node `/dev/vfio/<id>`. Not stable over reboots.
    pub id: u32,
    /// The group's `name` attribute, e.g. `vfio-noiommu`; most groups have none.
    pub name: Option<String>,
}

impl PciDevice {
    pub(super) fn new(sysfs: Sysfs, address: PciAddress) -> Self {
        Self { sysfs, address }
    }

    /// The function's address.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// The device's directory in sysfs.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.sysfs.pci_directory().join(self.address.to_string())
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
        let text = attribute(&self.path().join(name))?.unwrap_or_default();
        Ok(text.strip_prefix("0x").unwrap_or(&text).to_ascii_lowercase())
    }

    /// The class code, 24 bits: base class, subclass, programming interface; `0x020000` is Ethernet.
    ///
    /// # Errors
    /// The attribute is missing or not hexadecimal.
    pub fn class(&self) -> Result<u32> {
        let path = self.path().join("class");
        let text = attribute(&path)?.unwrap_or_default();
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        u32::from_str_radix(digits, 16).map_err(|_| SysfsError::Parse {
            path,
            text: text.clone(),
            expected: "a class code such as 0x020000",
        })
    }

    /// The bound driver's name; `None` if no driver is bound.
    ///
    /// # Errors
    /// The link cannot be read.
    pub fn driver(&self) -> Result<Option<String>> {
        link_name(&self.path().join("driver"))
    }

    /// The NUMA node; `None` where the firmware does not say (the kernel's -1).
    ///
    /// # Errors
    /// The attribute is not a number.
    pub fn numa_node(&self) -> Result<Option<u32>> {
        let node: Option<i64> = parsed(&self.path().join("numa_node"), "a NUMA node number")?;
        Ok(node.and_then(|node| u32::try_from(node).ok()))
    }

    /// The firmware's index of an on-board device (`acpi_index`).
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn acpi_index(&self) -> Result<Option<String>> {
        attribute(&self.path().join("acpi_index"))
    }

    /// The PF of a VF; `None` for other functions, and for a VF inside a virtual machine.
    ///
    /// # Errors
    /// The link cannot be read or names no PCI address.
    pub fn physfn(&self) -> Result<Option<PciDevice>> {
        self.linked("physfn")
    }

    fn linked(&self, name: &str) -> Result<Option<PciDevice>> {
        let path = self.path().join(name);
        let Some(text) = link_name(&path)? else { return Ok(None) };
        match text.parse() {
            Ok(address) => Ok(Some(Self::new(self.sysfs.clone(), address))),
            Err(_) => Err(SysfsError::Parse { path, text, expected: "a PCI address" }),
        }
    }

    /// The VFs of a PF with their indexes, by index. Indexes may be sparse.
    ///
    /// # Errors
    /// The directory or a link cannot be read.
    pub fn virtfns(&self) -> Result<Vec<(u32, PciDevice)>> {
        let mut vfs = Vec::new();
        for name in names_in(&self.path())? {
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
        let offset: Option<u32> = parsed(&pf.path().join("sriov_offset"), "a number of functions")?;
        let stride: Option<u32> = parsed(&pf.path().join("sriov_stride"), "a number of functions")?;
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
        parsed(&self.path().join("sriov_totalvfs"), "a number of VFs")
    }

    /// How many VFs the PF has; `None` if the function has no SR-IOV capability.
    ///
    /// During a change the number can lag behind the `virtfnN` links; [`PciDevice::virtfns`] is the truth.
    ///
    /// # Errors
    /// The attribute is not a number.
    pub fn num_vfs(&self) -> Result<Option<u32>> {
        parsed(&self.path().join("sriov_numvfs"), "a number of VFs")
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

    /// The names of the function's network devices in the namespace of this sysfs, sorted. Empty when
    /// the netdev was moved to another namespace: the kernel tags the directory by namespace.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn netdevs(&self) -> Result<Vec<String>> {
        let names = names_in(&self.path().join("net"))?;
        if !names.is_empty() || self.driver()?.as_deref() != Some("virtio-pci") {
            return Ok(names);
        }
        // A virtio device stands on a bus of its own between the function and its network device.
        let mut names = Vec::new();
        for child in names_in(&self.path())?.iter().filter(|name| name.starts_with("virtio")) {
            names.extend(names_in(&self.path().join(child).join("net"))?);
        }
        Ok(names)
    }

    /// The network device that stands for the function itself.
    ///
    /// A PF in switchdev mode carries representors of its VFs and SFs beside its uplink; the uplink has a
    /// `phys_port_name` of the form `p<N>`, a representor one such as `pf0vf3`
    /// (`Documentation/networking/switchdev.rst`).
    ///
    /// # Errors
    /// The directory or an attribute cannot be read.
    pub fn main_netdev(&self) -> Result<Option<String>> {
        let mut names = Vec::new();
        for name in self.netdevs()? {
            let device = self.sysfs.net_device(&name);
            let port = device.phys_port_name()?.unwrap_or_default();
            if device.phys_switch_id()?.is_some() && is_uplink_port(&port) {
                return Ok(Some(name));
            }
            names.push((is_representor_port(&port), name));
        }
        // Not representors first; by name within each.
        names.sort();
        Ok(names.into_iter().next().map(|(_, name)| name))
    }

    /// The network device `name` of this function.
    #[must_use]
    pub fn netdev(&self, name: &str) -> NetDevice {
        NetDevice::new(self.path().join("net").join(name))
    }

    /// The number of the function's IOMMU group, where its name is of no interest; `None` without an IOMMU.
    ///
    /// # Errors
    /// The link cannot be read or names no number.
    pub fn iommu_group_id(&self) -> Result<Option<u32>> {
        let path = self.path().join("iommu_group");
        let Some(text) = link_name(&path)? else { return Ok(None) };
        let invalid = |_| SysfsError::Parse { path, text: text.clone(), expected: "an IOMMU group number" };
        text.parse().map(Some).map_err(invalid)
    }

    /// The function's IOMMU group; `None` without an IOMMU.
    ///
    /// # Errors
    /// The link cannot be read or names no number.
    pub fn iommu_group(&self) -> Result<Option<IommuGroup>> {
        let Some(id) = self.iommu_group_id()? else { return Ok(None) };
        let name = attribute(&self.path().join("iommu_group/name"))?;
        Ok(Some(IommuGroup { id, name }))
    }

    /// The addresses of all functions in the same IOMMU group, this one included.
    ///
    /// # Errors
    /// The group's directory cannot be listed.
    pub fn iommu_group_devices(&self) -> Result<Vec<PciAddress>> {
        let names = names_in(&self.path().join("iommu_group/devices"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The VFIO device `vfioN` that a VFIO driver, `vfio-pci` or a variant of it, made for the function.
    /// Kernels since 6.1 have it (`Documentation/ABI/testing/sysfs-devices-vfio-dev`).
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn vfio_dev(&self) -> Result<Option<String>> {
        Ok(names_in(&self.path().join("vfio-dev"))?.into_iter().next())
    }

    /// Whether the function's VFIO device has a character device `/dev/vfio/devices/vfioN`; a no-IOMMU
    /// device and a kernel without `CONFIG_VFIO_DEVICE_CDEV` have only the directory.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn vfio_cdev(&self) -> Result<Option<String>> {
        let Some(name) = self.vfio_dev()? else { return Ok(None) };
        let has_node = attribute(&self.path().join("vfio-dev").join(&name).join("dev"))?.is_some();
        Ok(has_node.then_some(name))
    }

    /// The UIO device `uioN` of a function bound to a UIO driver.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn uio(&self) -> Result<Option<String>> {
        Ok(names_in(&self.path().join("uio"))?.into_iter().next())
    }

    /// The function's RDMA devices in the namespace of this sysfs, sorted.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn rdma_devices(&self) -> Result<Vec<String>> {
        names_in(&self.path().join("infiniband"))
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
        assert_eq!(vf.netdevs().unwrap(), ["ens1f0v2"]);
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
            assert_eq!(pf.main_netdev().unwrap().as_deref(), main, "{ports:?}");
        }
    }

    #[test]
    fn a_virtio_function_has_the_netdev_of_its_child() {
        let fake = FakeSysfs::new();
        fake.pci("0000:00:03.0").driver("virtio-pci").attribute("virtio2/net/eth0/type", "1");
        let device = fake.sysfs().pci_device(address("0000:00:03.0")).unwrap();
        assert_eq!(device.netdevs().unwrap(), ["eth0"]);
        assert_eq!(device.main_netdev().unwrap().as_deref(), Some("eth0"));
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
