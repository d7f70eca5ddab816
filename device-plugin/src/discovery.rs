//! Reads the devices of a PCI function from sysfs.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;

use host::sysfs::{AuxiliaryDevice, Carried, Identity, NetDevice, PciDevice, Sysfs, SysfsError, VdpaDevice};
use host::{Netlink, PciAddress};

use crate::config::DeviceType;
use crate::device::{Device, Obstacle};

/// Base classes of PCI devices (PCI Code and ID Assignment Specification, 1.3 and 1.19).
const NETWORK: u32 = 0x02;
const PROCESSING_ACCELERATOR: u32 = 0x12;

/// Drivers of PFs whose port, and with it the traffic of VFs, stays up when the PF is set down, unless their private flag
/// `link-down-on-close` is set.
const KEEP_THE_PORT_UP: [&str; 2] = ["i40e", "ice"];

/// Names of the network devices that the node's default routes, IPv4 and IPv6, go through.
pub(crate) type DefaultRoutes = BTreeSet<String>;

/// Asks the kernel for the default routes of the namespace that the process is in.
pub(crate) async fn default_routes(netlink: &Netlink) -> Result<DefaultRoutes, host::netlink::Error> {
    let routes = netlink.default_routes().await?;
    let hops = routes.iter().flat_map(|route| &route.next_hops).map(|(_, interface)| *interface);
    let interfaces: BTreeSet<u32> = routes.iter().filter_map(|route| route.interface).chain(hops).collect();
    let mut names = DefaultRoutes::new();
    // One by one: a list of all interfaces has every VF in it.
    for interface in interfaces {
        names.extend(netlink.link(interface).await?.map(|link| link.name));
    }
    Ok(names)
}

/// What a VF takes from its PF, and a function without PF from itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Port {
    name: Option<String>,
    link_type: Option<String>,
    carrier: Option<bool>,
    is_down: bool,
}

/// A function that can have VFs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PhysicalFunction {
    port: Port,
    /// The numbers of the VFs that exist.
    pub(crate) vfs: BTreeMap<PciAddress, u32>,
}

impl PhysicalFunction {
    /// Reads it; `None` if the function is none.
    fn read(function: &Function) -> Result<Option<Self>, SysfsError> {
        let Function { pci, identity, .. } = function;
        // A VF has no VFs of its own.
        if pci.physfn()?.is_some() || pci.total_vfs()?.is_none() {
            return Ok(None);
        }
        let mut port = Port::read(pci.main_netdev()?)?;
        port.is_down &= !identity.driver.as_deref().is_some_and(|driver| KEEP_THE_PORT_UP.contains(&driver));
        let vfs = pci.virtfns()?.into_iter().map(|(number, vf)| (vf.address(), number)).collect();
        Ok(Some(Self { port, vfs }))
    }
}

impl Port {
    fn read(netdev: Option<NetDevice>) -> Result<Self, SysfsError> {
        let Some(netdev) = netdev else { return Ok(Self::default()) };
        let (link_type, carrier) = (link_type(netdev.hardware_type()?), netdev.carrier()?);
        // What an IPoIB interface is set to says nothing of the port.
        let is_down =
            link_type.as_deref() == Some("ether") && carrier.is_none() && netdev.is_up()? == Some(false);
        Ok(Self { name: Some(netdev.name().to_owned()), link_type, carrier, is_down })
    }
}

/// A function of a class that matters.
struct Function {
    kind: DeviceType,
    pci: PciDevice,
    identity: Identity,
}

/// The function at `address`; `None` if it is not there, is of another class, or cannot be read.
fn open(sysfs: &Sysfs, address: PciAddress) -> Option<Function> {
    let pci = sysfs.open_pci_device(address).ok()?;
    let identity = pci.identity().inspect_err(|error| skipped(&pci, error)).ok()?;
    let kind = match identity.class >> 16 {
        NETWORK => DeviceType::NetDevice,
        PROCESSING_ACCELERATOR => DeviceType::Accelerator,
        _ => return None,
    };
    Some(Function { kind, pci, identity })
}

/// The function at `address`, if it can have VFs.
pub(crate) fn physical(sysfs: &Sysfs, address: PciAddress) -> Option<Arc<PhysicalFunction>> {
    let function = open(sysfs, address)?;
    let read = PhysicalFunction::read(&function).inspect_err(|error| skipped(&function.pci, error));
    read.ok().flatten().map(Arc::new)
}

/// Says why a function is missing, unless that is because it has gone.
fn skipped(function: &PciDevice, error: &SysfsError) {
    if function.exists() {
        tracing::warn!(device = %function.address(), %error, "left out of this look");
    }
}

/// The name that selectors use for an ARP hardware type (`include/uapi/linux/if_arp.h`).
fn link_type(hardware_type: Option<u16>) -> Option<String> {
    match hardware_type? {
        1 => Some("ether".to_owned()),
        32 => Some("infiniband".to_owned()),
        other => Some(other.to_string()),
    }
}

/// vDPA devices by the function that they were made from: the first of each function that has a driver.
fn vdpa(sysfs: &Sysfs) -> Result<BTreeMap<PciAddress, VdpaDevice>, SysfsError> {
    let mut devices = BTreeMap::new();
    for device in sysfs.vdpa_devices()? {
        if device.driver.is_some() {
            devices.entry(device.parent).or_insert(device);
        }
    }
    Ok(devices)
}

/// The network devices that default routes go through in the end, and the device that each route names.
pub(crate) type Carriers = BTreeMap<String, String>;

/// What the network devices of default routes stand on, as a VLAN or bond does; they themselves too. Walked from the
/// top down: there are fewer of them than of VFs.
pub(crate) fn carriers(sysfs: &Sysfs, default_routes: &DefaultRoutes) -> Result<Carriers, SysfsError> {
    let mut carriers = Carriers::new();
    for route in default_routes {
        let mut waiting = vec![route.clone()];
        while let Some(name) = waiting.pop() {
            if let Entry::Vacant(carrier) = carriers.entry(name) {
                waiting.extend(sysfs.net_device(carrier.key()).lowers()?);
                carrier.insert(route.clone());
            }
        }
    }
    Ok(carriers)
}

/// Functions that can have VFs.
pub(crate) type PhysicalFunctions = BTreeMap<PciAddress, Arc<PhysicalFunction>>;

/// Reads the devices of single functions, and holds what is common to all of them.
pub(crate) struct Reader<'a> {
    sysfs: &'a Sysfs,
    carriers: &'a Carriers,
    /// Each is read when the first device asks for it; `None` is a function that can have no VFs.
    physical: BTreeMap<PciAddress, Option<Arc<PhysicalFunction>>>,
    vdpa: BTreeMap<PciAddress, VdpaDevice>,
    auxiliary: BTreeMap<PciAddress, Vec<AuxiliaryDevice>>,
    /// The devices of classes, where they were listed once for all functions.
    classes: Option<Classes>,
}

/// Network and RDMA devices by what carries them.
struct Classes {
    net: Carried,
    rdma: Carried,
}

impl<'a> Reader<'a> {
    /// With `physical` functions that are known already.
    pub(crate) fn new(
        sysfs: &'a Sysfs,
        carriers: &'a Carriers,
        physical: PhysicalFunctions,
    ) -> Result<Self, SysfsError> {
        let mut auxiliary: BTreeMap<PciAddress, Vec<AuxiliaryDevice>> = BTreeMap::new();
        for child in sysfs.auxiliary_devices()? {
            auxiliary.entry(child.parent()).or_default().push(child);
        }
        let physical = physical.into_iter().map(|(address, physical)| (address, Some(physical))).collect();
        Ok(Self { sysfs, carriers, physical, vdpa: vdpa(sysfs)?, auxiliary, classes: None })
    }

    /// For all functions of the machine.
    pub(crate) fn of_everything(sysfs: &'a Sysfs, carriers: &'a Carriers) -> Result<Self, SysfsError> {
        let classes = Classes { net: sysfs.carried_netdevs()?, rdma: sysfs.carried_rdma_devices()? };
        Ok(Self { classes: Some(classes), ..Self::new(sysfs, carriers, BTreeMap::new())? })
    }

    /// The functions that can have VFs, of those that were known or asked for.
    pub(crate) fn into_physical(self) -> PhysicalFunctions {
        self.physical.into_iter().filter_map(|(address, physical)| Some((address, physical?))).collect()
    }

    fn physical(&mut self, address: PciAddress) -> Option<Arc<PhysicalFunction>> {
        self.physical.entry(address).or_insert_with(|| physical(self.sysfs, address)).clone()
    }

    /// The devices of a function: itself and what stands on it. None if it is not there, or of no class that matters.
    ///
    /// A device that goes away or fails while it is looked at is left out: the event that its going made, or the next
    /// look at everything, puts it right.
    pub(crate) fn devices(&mut self, address: PciAddress) -> Vec<Arc<Device>> {
        let Some(function) = open(self.sysfs, address) else { return Vec::new() };
        let mut devices = Vec::new();
        match self.pci(&function) {
            Ok(device) => devices.push(Arc::new(device)),
            Err(error) => skipped(&function.pci, &error),
        }
        let children = self.auxiliary.remove(&address).filter(|_| function.kind == DeviceType::NetDevice);
        for child in children.into_iter().flatten() {
            match self.auxiliary(&function, &child) {
                Ok(device) => devices.push(Arc::new(device)),
                Err(error) => tracing::warn!(device = child.name(), %error, "left out of this look"),
            }
        }
        devices
    }

    fn pci(&mut self, function: &Function) -> Result<Device, SysfsError> {
        let (pci, address) = (&function.pci, function.pci.address());
        let pf = pci.physfn()?.map_or(address, |pf| pf.address());
        let physical = self.physical(pf);
        let port = match &physical {
            Some(physical) => physical.port.clone(),
            None => Port::read(pci.main_netdev()?)?,
        };
        let netdevs = self.netdevs(function)?;
        let mut device = Self::common(function, function.kind, pf, port, &netdevs)?;
        device.driver = function.identity.driver.clone();
        device.acpi_index = pci.acpi_index()?;
        device.rdma = match &self.classes {
            Some(classes) => classes.rdma.by(&device.id).to_vec(),
            None => pci.rdma_devices()?,
        };
        // A function without PF is set up by who gets it.
        device.pf_is_down &= pf != address;
        device.vdpa = self.vdpa.get(&address).cloned();
        if let Some(physical) = physical {
            device.number = physical.vfs.get(&address).copied();
            device.can_have_vfs = pf == address;
            if pf == address && !physical.vfs.is_empty() {
                let vfs = u32::try_from(physical.vfs.len()).unwrap_or(u32::MAX);
                device.obstacles.push(Obstacle::HasVfs(vfs));
            }
        }
        self.finish(device, &netdevs)
    }

    fn netdevs(&self, function: &Function) -> Result<Vec<NetDevice>, SysfsError> {
        let Function { pci, identity, .. } = function;
        match &self.classes {
            // A virtio device stands between the function and its network device.
            Some(classes) if identity.driver.as_deref() != Some("virtio-pci") => {
                let names = classes.net.by(&pci.address().to_string());
                Ok(names.iter().map(|name| pci.netdev(name)).collect())
            }
            _ => pci.netdevs(),
        }
    }

    fn auxiliary(&mut self, parent: &Function, child: &AuxiliaryDevice) -> Result<Device, SysfsError> {
        let address = parent.pci.address();
        let port = match self.physical(address) {
            Some(physical) => physical.port.clone(),
            None => Port::read(parent.pci.main_netdev()?)?,
        };
        let netdevs = child.netdevs()?;
        let mut device = Self::common(parent, DeviceType::AuxNetDevice, address, port, &netdevs)?;
        device.id = child.name().into();
        device.aux_type = Some(child.kind().to_owned());
        device.number = child.sf_number()?;
        device.driver = child.driver()?;
        device.parent_driver = parent.identity.driver.clone();
        device.rdma = child.rdma_devices()?;
        self.finish(device, &netdevs)
    }

    fn common(
        function: &Function,
        kind: DeviceType,
        pf: PciAddress,
        port: Port,
        netdevs: &[NetDevice],
    ) -> Result<Device, SysfsError> {
        let Function { pci, identity, .. } = function;
        let own = netdevs.first().map(NetDevice::hardware_type).transpose()?;
        Ok(Device {
            id: pci.address().to_string().into(),
            kind,
            address: pci.address(),
            vendor: identity.vendor.clone(),
            device: identity.device.clone(),
            driver: None,
            parent_driver: None,
            numa_node: pci.numa_node()?,
            acpi_index: None,
            aux_type: None,
            pf,
            pf_name: port.name,
            number: None,
            can_have_vfs: false,
            netdevs: netdevs.iter().map(|netdev| netdev.name().to_owned()).collect(),
            link_type: link_type(own.flatten()).or(port.link_type),
            carrier: port.carrier,
            pf_is_down: port.is_down,
            rdma: Vec::new(),
            rdma_enabled: false,
            ddp_profile: None,
            p_key: None,
            vdpa: None,
            iommu_group: pci.iommu_group_id()?,
            obstacles: Vec::new(),
        })
    }

    /// Adds what needs the rest to be known.
    fn finish(&self, mut device: Device, netdevs: &[NetDevice]) -> Result<Device, SysfsError> {
        if device.driver.is_none() {
            device.obstacles.push(Obstacle::NoDriver);
        }
        if device.link_type.as_deref() == Some("infiniband")
            && let Some(rdma) = device.rdma.first()
        {
            device.p_key = self.sysfs.rdma_pkey(rdma)?;
        }
        for netdev in netdevs {
            if let Some(master) = netdev.master()? {
                device.obstacles.push(Obstacle::PortOf { netdev: netdev.name().to_owned(), master });
            }
            if let Some(netdev) = self.carriers.get(netdev.name()) {
                device.obstacles.push(Obstacle::DefaultRoute { netdev: netdev.clone() });
            }
        }
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use host::sysfs::fake::FakeSysfs;

    use super::*;
    use crate::inventory::Inventory;

    fn scanned(fake: &FakeSysfs) -> Vec<Arc<Device>> {
        Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices()
    }

    fn find<'a>(devices: &'a [Arc<Device>], id: &str) -> &'a Device {
        devices.iter().find(|device| &*device.id == id).unwrap()
    }

    fn fake_nic() -> FakeSysfs {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:00.0").driver("igb").attribute("numa_node", "1").netdev("ens1f0").sriov(7);
        fake.pci("0000:3b:10.0")
            .vf_of("0000:3b:00.0", 0)
            .driver("igbvf")
            .attribute("numa_node", "1")
            .iommu_group(14)
            .netdev("ens1f0v0");
        fake.pci("0000:3b:10.4").vf_of("0000:3b:00.0", 2).driver("vfio-pci");
        fake.pci("0000:3b:10.6").vf_of("0000:3b:00.0", 3);
        fake
    }

    #[test]
    fn vfs_take_what_they_lack_from_their_pf() {
        let devices = scanned(&fake_nic());
        let ids: Vec<&str> = devices.iter().map(|device| &*device.id).collect();
        assert_eq!(ids, ["0000:3b:00.0", "0000:3b:10.0", "0000:3b:10.4", "0000:3b:10.6"]);
        let vf = find(&devices, "0000:3b:10.0");
        assert_eq!((vf.vendor.as_str(), vf.device.as_str()), ("8086", "10ca"));
        assert_eq!((vf.pf_name.as_deref(), vf.number), (Some("ens1f0"), Some(0)));
        assert_eq!((vf.numa_node, vf.iommu_group), (Some(1), Some(14)));
        assert_eq!(vf.obstacles, []);
        let dpdk = find(&devices, "0000:3b:10.4");
        assert_eq!(dpdk.netdevs, [""; 0]);
        assert_eq!((dpdk.link_type.as_deref(), dpdk.carrier), (Some("ether"), Some(true)));
        assert_eq!((dpdk.number, dpdk.numa_node), (Some(2), None));
        assert_eq!(find(&devices, "0000:3b:10.6").obstacles, [Obstacle::NoDriver]);
        assert_eq!(find(&devices, "0000:3b:00.0").obstacles, [Obstacle::HasVfs(3)]);
    }

    #[test]
    fn only_network_and_accelerator_functions() {
        let fake = FakeSysfs::new();
        for (address, class) in
            [("0000:01:00.0", "0x030000"), ("0000:02:00.0", "0x120000"), ("0000:03:00.0", "0x028000")]
        {
            fake.pci(address).attribute("class", class).driver("d");
        }
        fake.pci("0000:04:00.0").attribute("class", "nonsense");
        let kinds: Vec<_> =
            scanned(&fake).into_iter().map(|device| (device.id.to_string(), device.kind)).collect();
        assert_eq!(
            kinds,
            [
                ("0000:02:00.0".to_owned(), DeviceType::Accelerator),
                ("0000:03:00.0".to_owned(), DeviceType::NetDevice)
            ]
        );
    }

    #[test]
    fn scalable_functions() {
        let fake = FakeSysfs::new();
        fake.pci("0000:03:00.0")
            .driver("mlx5_core")
            .netdev("p0")
            .net_attribute("p0", "phys_switch_id", "c0ffee")
            .net_attribute("p0", "phys_port_name", "p0")
            .netdev("eth0")
            .net_attribute("eth0", "phys_switch_id", "c0ffee")
            .net_attribute("eth0", "phys_port_name", "pf0sf88")
            .auxiliary("mlx5_core.sf.4", "mlx5_core.sf")
            .attribute("mlx5_core.sf.4/sfnum", "88")
            .attribute("mlx5_core.sf.4/infiniband/mlx5_4/node_type", "1");
        let devices = scanned(&fake);
        let sf = find(&devices, "mlx5_core.sf.4");
        assert_eq!(sf.kind, DeviceType::AuxNetDevice);
        assert_eq!((sf.pf_name.as_deref(), sf.number), (Some("p0"), Some(88)));
        assert_eq!((sf.aux_type.as_deref(), sf.driver.as_deref()), (Some("sf"), Some("mlx5_core.sf")));
        assert_eq!(sf.parent_driver.as_deref(), Some("mlx5_core"));
        assert_eq!(
            (sf.rdma.as_slice(), sf.address.to_string().as_str()),
            (&["mlx5_4".to_owned()][..], "0000:03:00.0")
        );
    }

    #[test]
    fn infiniband_and_vdpa() {
        let fake = FakeSysfs::new();
        fake.pci("0000:05:00.1")
            .driver("mlx5_core")
            .netdev("ib0")
            .net_attribute("ib0", "type", "32")
            .attribute("infiniband/mlx5_0/node_type", "1");
        fake.attribute("class/infiniband/mlx5_0/ports/1/pkeys/0", "0x7fff");
        fake.pci("0000:05:00.2").driver("mlx5_core").vdpa("vdpa0", "vhost_vdpa");
        let devices = scanned(&fake);
        let ib = find(&devices, "0000:05:00.1");
        assert_eq!((ib.link_type.as_deref(), ib.p_key.as_deref()), (Some("infiniband"), Some("0x7fff")));
        assert_eq!(find(&devices, "0000:05:00.2").vdpa.as_ref().unwrap().name, "vdpa0");
    }

    #[test]
    fn devices_that_the_node_uses() {
        let fake = FakeSysfs::new();
        for (address, netdev) in
            [("0000:01:00.0", "mgmt"), ("0000:02:00.0", "port"), ("0000:03:00.0", "trunk")]
        {
            fake.pci(address).driver("igb").netdev(netdev);
        }
        fake.attribute("class/net/bond0/operstate", "up");
        fake.attribute("class/net/trunk.7/operstate", "up");
        std::os::unix::fs::symlink("../bond0", fake.root().join("class/net/port/master")).unwrap();
        std::os::unix::fs::symlink("../port", fake.root().join("class/net/bond0/lower_port")).unwrap();
        std::os::unix::fs::symlink("../trunk", fake.root().join("class/net/trunk.7/lower_trunk")).unwrap();
        let routes = DefaultRoutes::from(["mgmt".to_owned(), "trunk.7".to_owned()]);
        let devices = Inventory::read(&fake.sysfs(), &routes).unwrap().devices();
        let obstacles: Vec<String> =
            devices.iter().flat_map(|device| &device.obstacles).map(Obstacle::to_string).collect();
        assert_eq!(
            obstacles,
            [
                "the node's default route goes through mgmt",
                "port is a port of bond0",
                "the node's default route goes through trunk.7",
            ]
        );
    }
}
