//! What a container gets for its devices: environment, device nodes, device information files.
//!
//! Nodes are looked up when kubelet asks, not when the device was found: VFIO group numbers change with the driver.

use std::collections::{BTreeMap, BTreeSet};

use host::sysfs::{PciDevice, Sysfs, SysfsError};
use kubelet_api::deviceplugin::{CdiDevice, ContainerAllocateResponse, DeviceSpec};

use crate::config::{DeviceType, PoolConf, Resource, Selector, VdpaType};
use crate::device::Device;
use crate::device_info::{DeviceInfo, Parent};
use crate::places::Places;
use crate::pool::Pool;

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node {
    pub(crate) host: String,
    pub(crate) container: String,
}

impl Node {
    fn same(path: String) -> Self {
        Self { host: path.clone(), container: path }
    }
}

/// What comes with one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) id: String,
    /// Texts for the container by their origin: `vfio`, `rdma`, `extra`, ...
    pub(crate) facts: BTreeMap<&'static str, BTreeMap<String, String>>,
    pub(crate) nodes: Vec<Node>,
    /// For Multus, of network devices with a PCI address of their own.
    pub(crate) info: Option<DeviceInfo>,
}

/// Why a device cannot be given out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "device {id} is not in {resource}, which has {count} devices now; was it removed or selected otherwise?"
    )]
    Unknown { id: String, resource: Resource, count: usize },
    #[error("device {id} of {resource} is gone")]
    Gone { id: String, resource: Resource },
    #[error("device {id}: {source}")]
    Sysfs { id: String, source: SysfsError },
    #[error(
        "device {id} is bound to {driver} but has no IOMMU group; boot with intel_iommu=on or amd_iommu=on, or \
         load vfio with enable_unsafe_noiommu_mode=1"
    )]
    NoIommuGroup { id: String, driver: String },
    #[error("device {id}: {missing}")]
    Missing { id: String, missing: &'static str },
}

impl Pool {
    /// Looks up what comes with the device `id`.
    pub(crate) fn grant(&self, id: &str, sysfs: &Sysfs, places: &Places) -> Result<Grant, Error> {
        let resource = || self.conf.resource.clone();
        let offer = self.offers.get(id).ok_or_else(|| Error::Unknown {
            id: id.to_owned(),
            resource: resource(),
            count: self.offers.len(),
        })?;
        let gone = || Error::Gone { id: id.to_owned(), resource: resource() };
        let device = offer.device.as_ref().ok_or_else(gone)?;
        let unreadable = |source| Error::Sysfs { id: id.to_owned(), source };
        let lookup = Lookup {
            id,
            device,
            function: sysfs.pci_device(device.address).map_err(unreadable)?,
            selector: &self.selector(offer).cloned().unwrap_or_default(),
            sysfs,
            places,
        };
        lookup.grant(&self.conf)
    }
}

struct Lookup<'a> {
    id: &'a str,
    device: &'a Device,
    function: PciDevice,
    selector: &'a Selector,
    sysfs: &'a Sysfs,
    places: &'a Places,
}

impl Lookup<'_> {
    fn grant(&self, conf: &PoolConf) -> Result<Grant, Error> {
        let mut grant =
            Grant { id: self.id.to_owned(), facts: BTreeMap::new(), nodes: Vec::new(), info: None };
        grant.fact("generic", "deviceID", self.id);
        // A scalable function shares its PCI function with others, and never has these drivers itself.
        if conf.device_type != DeviceType::AuxNetDevice {
            let driver = self.read(self.function.driver())?;
            self.vfio(&mut grant, driver.as_deref())?;
            self.uio(&mut grant)?;
        }
        if self.selector.is_rdma {
            self.rdma(&mut grant)?;
        }
        if self.selector.need_vhost_net {
            self.vhost_net(&mut grant)?;
        }
        let mut info = DeviceInfo::pci(self.device.address, self.pf()?, &self.device.rdma);
        if let Some(kind) = self.selector.vdpa_type {
            info = self.vdpa(&mut grant, kind)?;
        }
        grant.info = (conf.device_type == DeviceType::NetDevice).then_some(info);
        if !conf.additional_info.is_empty() {
            grant.facts.entry("extra").or_default();
        }
        for key in ["*", &self.device.address.to_string()] {
            for (name, text) in conf.additional_info.get(key).into_iter().flatten() {
                grant.fact("extra", name, text);
            }
        }
        Ok(grant)
    }

    fn read<T>(&self, result: Result<T, SysfsError>) -> Result<T, Error> {
        result.map_err(|source| Error::Sysfs { id: self.id.to_owned(), source })
    }

    fn missing(&self, missing: &'static str) -> Error {
        Error::Missing { id: self.id.to_owned(), missing }
    }

    /// The PF, unless the device is one itself.
    fn pf(&self) -> Result<Parent, Error> {
        let Some(pf) = self.read(self.function.physfn())? else { return Ok(Parent::default()) };
        let representor_device = match self.device.number {
            Some(number) => self.read(self.sysfs.representor(&pf, number))?,
            None => None,
        };
        Ok(Parent { pf_pci_address: Some(pf.address()), representor_device })
    }

    /// Whether the node `/dev/<name>` is there, or the kernel would make it: a container's `/dev` can be older than
    /// the module.
    fn has_node(&self, name: &str, misc: &str) -> Result<bool, Error> {
        Ok(self.places.has_node(name) || self.read(self.sysfs.has_misc_device(misc))?)
    }

    /// VFIO (`Documentation/driver-api/vfio.rst`): the group with its container, and where the kernel has it the
    /// device's own node with the IOMMU's.
    fn vfio(&self, grant: &mut Grant, driver: Option<&str>) -> Result<(), Error> {
        // Variant drivers have names of their own, kernels before 6.1 no directory.
        if driver != Some("vfio-pci") && self.read(self.function.vfio_dev())?.is_none() {
            return Ok(());
        }
        let group = self.read(self.function.iommu_group())?.ok_or_else(|| Error::NoIommuGroup {
            id: self.id.to_owned(),
            driver: driver.unwrap_or("no driver").to_owned(),
        })?;
        let container = format!("/dev/vfio/{}", group.id);
        let host = match group.name.as_deref() {
            Some("vfio-noiommu") => format!("/dev/vfio/noiommu-{}", group.id),
            _ => container.clone(),
        };
        grant.node("vfio", "mount", Node::same("/dev/vfio/vfio".to_owned()));
        grant.node("vfio", "dev-mount", Node { host, container });
        if let Some(name) = self.read(self.function.vfio_cdev())?
            && self.has_node("iommu", "iommu")?
        {
            grant.node("vfio", "cdev-mount", Node::same(format!("/dev/vfio/devices/{name}")));
            grant.node("vfio", "iommu-mount", Node::same("/dev/iommu".to_owned()));
        }
        Ok(())
    }

    fn uio(&self, grant: &mut Grant) -> Result<(), Error> {
        if let Some(name) = self.read(self.function.uio())? {
            grant.node("uio", "mount", Node::same(format!("/dev/{name}")));
        }
        Ok(())
    }

    fn rdma(&self, grant: &mut Grant) -> Result<(), Error> {
        if self.device.rdma.is_empty() {
            return Err(self.missing("its RDMA device is in another network namespace"));
        }
        for (index, name) in self.device.rdma.iter().enumerate() {
            // The names are there once: those of the first device.
            let is_first = index == 0;
            let nodes = self.read(self.sysfs.rdma_nodes(name))?;
            if nodes.uverbs.is_none() {
                return Err(self.missing("its RDMA device has no uverbs node; load the module ib_uverbs"));
            }
            if is_first {
                grant.fact("rdma", "rdma_dev", name);
            }
            let kinds =
                [("uverbs", nodes.uverbs), ("umad", nodes.umad), ("issm", nodes.issm), ("ucm", nodes.ucm)];
            for (kind, node) in kinds {
                match node.map(|node| Node::same(format!("/dev/infiniband/{node}"))) {
                    Some(node) if is_first => grant.node("rdma", kind, node),
                    Some(node) => grant.nodes.push(node),
                    None => {}
                }
            }
        }
        if self.has_node("infiniband/rdma_cm", "rdma_cm")? {
            grant.node("rdma", "rdma_cm", Node::same("/dev/infiniband/rdma_cm".to_owned()));
        }
        Ok(())
    }

    fn vhost_net(&self, grant: &mut Grant) -> Result<(), Error> {
        if !self.has_node("vhost-net", "vhost-net")? {
            return Err(self.missing("needVhostNet: there is no /dev/vhost-net; load the module vhost_net"));
        }
        if !self.has_node("net/tun", "tun")? {
            return Err(self.missing("needVhostNet: there is no /dev/net/tun; load the module tun"));
        }
        grant.node("vhost", "net-mount", Node::same("/dev/vhost-net".to_owned()));
        grant.node("vhost", "tun-mount", Node::same("/dev/net/tun".to_owned()));
        Ok(())
    }

    fn vdpa(&self, grant: &mut Grant, kind: VdpaType) -> Result<DeviceInfo, Error> {
        let devices = self.read(self.sysfs.vdpa_devices())?;
        let bound = devices
            .into_iter()
            .find(|vdpa| vdpa.parent == self.device.address && vdpa.driver.as_deref() == Some(kind.driver()));
        let vdpa = bound.ok_or_else(|| self.missing("its vDPA device is gone or has another driver"))?;
        let path = vdpa.vhost.map(|name| format!("/dev/{name}"));
        match (kind, &path) {
            (VdpaType::Vhost, None) => {
                return Err(
                    self.missing("its vDPA device has no /dev/vhost-vdpa node; load the module vhost_vdpa")
                );
            }
            (VdpaType::Vhost, Some(path)) => grant.node("vdpa", "mount", Node::same(path.clone())),
            (VdpaType::Virtio, _) => drop(grant.facts.entry("vdpa").or_default()),
        }
        Ok(DeviceInfo::vdpa(self.device.address, self.pf()?, &vdpa.name, kind, path))
    }
}

impl Grant {
    fn fact(&mut self, origin: &'static str, name: &str, text: &str) {
        self.facts.entry(origin).or_default().insert(name.to_owned(), text.to_owned());
    }

    /// Adds a node, and says where it is in the container.
    fn node(&mut self, origin: &'static str, name: &str, node: Node) {
        self.fact(origin, name, &node.container);
        self.nodes.push(node);
    }
}

/// The answer for a container that gets `grants`. With `cdi`, the runtime is given these CDI names in the place of
/// device nodes.
pub(crate) fn response(
    resource: &Resource,
    grants: &[Grant],
    cdi: Option<Vec<String>>,
) -> ContainerAllocateResponse {
    let ids: Vec<&str> = grants.iter().map(|grant| grant.id.as_str()).collect();
    let facts: BTreeMap<&str, _> = grants.iter().map(|grant| (grant.id.as_str(), &grant.facts)).collect();
    let variable = variable(resource);
    let mut response = ContainerAllocateResponse::default();
    // Maps of texts always have a JSON form.
    response.envs.insert(format!("{variable}_INFO"), serde_json::to_string(&facts).unwrap_or_default());
    response.envs.insert(variable, ids.join(","));
    match cdi {
        Some(names) if names.is_empty() => {}
        Some(names) => {
            // A key of the resource's own: two resources in one container must not overwrite each other.
            let key = format!("cdi.k8s.io/{}_{}", resource.prefix, resource.name);
            response.annotations.insert(key, names.join(","));
            response.cdi_devices = names.into_iter().map(|name| CdiDevice { name }).collect();
        }
        None => {
            let nodes: BTreeSet<&Node> = grants.iter().flat_map(|grant| &grant.nodes).collect();
            response.devices = nodes.into_iter().map(spec).collect();
        }
    }
    response
}

fn spec(node: &Node) -> DeviceSpec {
    DeviceSpec {
        container_path: node.container.clone(),
        host_path: node.host.clone(),
        permissions: "rw".to_owned(),
    }
}

/// The environment variable of a resource. Only dots are replaced: programs compute the same name.
fn variable(resource: &Resource) -> String {
    let name = |text: &str| text.to_uppercase().replace('.', "_");
    format!("PCIDEVICE_{}_{}", name(&resource.prefix), name(&resource.name))
}

#[cfg(test)]
mod tests;
