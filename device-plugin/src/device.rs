//! What is known about a device: facts, read once per scan.

use std::fmt;
use std::sync::Arc;

use host::PciAddress;
use host::sysfs::VdpaDevice;
use serde::{Serialize, Serializer};

use crate::config::DeviceType;

/// A device that a pool could have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// The name under which kubelet knows it: the PCI address, or the name on the auxiliary bus.
    pub(crate) id: Arc<str>,
    pub(crate) kind: DeviceType,
    /// The PCI function that it is, or that carries it.
    pub(crate) address: PciAddress,
    /// Four hexadecimal digits, as all PCI IDs here.
    pub(crate) vendor: String,
    pub(crate) device: String,
    pub(crate) driver: Option<String>,
    /// Of an auxiliary device: the driver of the function that carries it.
    pub(crate) parent_driver: Option<String>,
    pub(crate) numa_node: Option<u32>,
    pub(crate) acpi_index: Option<String>,
    /// Kind of an auxiliary device, such as `sf`.
    pub(crate) aux_type: Option<String>,
    /// The PF of a VF or SF; otherwise the function itself.
    pub(crate) pf: PciAddress,
    /// The name of the PF's network device.
    pub(crate) pf_name: Option<String>,
    /// The number of a VF or SF on its PF.
    pub(crate) number: Option<u32>,
    /// Whether the function has the SR-IOV capability.
    pub(crate) can_have_vfs: bool,
    /// Those that are in the plugin's network namespace: none while a pod has the device.
    pub(crate) netdevs: Vec<String>,
    /// `ether` or `infiniband`, of the device or, while it has no network device, of its PF.
    pub(crate) link_type: Option<String>,
    /// Whether the PF's port has a carrier; `None` while that is not known, as when the PF is down.
    pub(crate) carrier: Option<bool>,
    /// Whether the device has a PF whose port somebody has set down.
    pub(crate) pf_is_down: bool,
    pub(crate) rdma: Vec<String>,
    /// Whether it makes an RDMA device, which only a container's namespace shows; asked only where `rdma` and `netdevs` are
    /// empty and a selector wants one.
    pub(crate) rdma_enabled: bool,
    /// The active DDP package of the NIC; asked only where a selector wants one.
    pub(crate) ddp_profile: Option<String>,
    /// Partition key of an InfiniBand device.
    pub(crate) p_key: Option<String>,
    pub(crate) vdpa: Option<VdpaDevice>,
    pub(crate) iommu_group: Option<u32>,
    pub(crate) obstacles: Vec<Obstacle>,
}

/// Why a device must not be offered, whatever the selectors say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// Nothing drives it, so nobody could use it.
    NoDriver,
    /// A PF whose VFs exist: giving it away would take them all along.
    HasVfs(u32),
    /// Traffic of the node itself goes through it.
    DefaultRoute { netdev: String },
    /// It is a port of a bond, bridge, VRF or Open vSwitch.
    PortOf { netdev: String, master: String },
}

impl Obstacle {
    /// Whether the configuration may overrule it (`offerInUse`).
    pub(crate) fn is_in_use(&self) -> bool {
        !matches!(self, Self::NoDriver)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver => write!(f, "no driver is bound"),
            Self::HasVfs(count) => write!(f, "is a PF with {count} VFs"),
            Self::DefaultRoute { netdev } => write!(f, "the node's default route goes through {netdev}"),
            Self::PortOf { netdev, master } => write!(f, "{netdev} is a port of {master}"),
        }
    }
}

impl Serialize for Obstacle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
