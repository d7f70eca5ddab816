//! Which device is in which pool, and in what health.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use kubelet_api::deviceplugin::{self, HEALTHY, NumaNode, TopologyInfo, UNHEALTHY};
use serde::{Serialize, Serializer};

use crate::allocations::Allocations;
use crate::config::{Conf, DeviceType, PoolConf, Selector};
use crate::device::{Device, Obstacle};
use crate::selector::Rejection;

/// Why a device is not in a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The pool is for another type of device.
    Type(DeviceType),
    /// It must not be offered.
    Obstacle(Obstacle),
    /// It meets none of the pool's selectors: the condition that failed, for each of them.
    Selectors(Vec<Rejection>),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(wanted) => write!(f, "the pool is for devices of type {}", wanted.as_str()),
            Self::Obstacle(obstacle) => obstacle.fmt(f),
            Self::Selectors(rejections) => {
                let texts: Vec<String> = rejections.iter().map(Rejection::to_string).collect();
                f.write_str(&texts.join("; "))
            }
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a device that belongs to a pool cannot be given out now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Illness {
    /// A container holds it, yet it is not there.
    Gone,
    /// A container holds it, and it would not be offered if it were free.
    Unfit(Reason),
    /// The port of its PF has no carrier.
    NoCarrier,
    /// The port of its PF is set down.
    PfDown { pf: String },
}

impl fmt::Display for Illness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the device is gone"),
            Self::Unfit(reason) => reason.fmt(f),
            Self::NoCarrier => f.write_str("the PF has no carrier"),
            Self::PfDown { pf } => write!(f, "the PF is down (ip link set {pf} up)"),
        }
    }
}

impl Serialize for Illness {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A device in a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// `None` if it is gone, and only a container's hold on it keeps it in the list.
    pub(crate) device: Option<Arc<Device>>,
    /// Index of the selector that took it.
    pub(crate) selector: usize,
    pub(crate) illness: Option<Illness>,
}

/// A pool and its devices, by the name that kubelet knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) conf: Arc<PoolConf>,
    pub(crate) offers: BTreeMap<Arc<str>, Offer>,
}

impl Pool {
    pub(crate) fn new(conf: Arc<PoolConf>) -> Self {
        Self { conf, offers: BTreeMap::new() }
    }

    /// The selector that took a device.
    pub(crate) fn selector(&self, offer: &Offer) -> Option<&Selector> {
        self.conf.selectors.get(offer.selector)
    }

    /// How many of its devices are healthy.
    pub(crate) fn healthy(&self) -> usize {
        self.offers.values().filter(|offer| offer.illness.is_none()).count()
    }

    /// What kubelet is told of each device, by name: whether it is healthy, and its NUMA node.
    pub(crate) fn listed(&self) -> impl Iterator<Item = (&str, bool, Option<u32>)> {
        self.offers.iter().map(|(id, offer)| {
            let node = offer.device.as_ref().and_then(|device| device.numa_node);
            (&**id, offer.illness.is_none(), node.filter(|_| !self.conf.exclude_topology))
        })
    }

    /// The list for kubelet, sorted by name.
    pub(crate) fn advertised(&self) -> Vec<deviceplugin::Device> {
        let advertise = |(id, is_healthy, node): (&str, bool, Option<u32>)| deviceplugin::Device {
            id: id.to_owned(),
            health: if is_healthy { HEALTHY } else { UNHEALTHY }.to_owned(),
            topology: node.map(|node| TopologyInfo { nodes: vec![NumaNode { id: node.into() }] }),
        };
        self.listed().map(advertise).collect()
    }
}

/// Where a device ended up, for those who want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) device: Arc<Device>,
    /// Index of the pool that has it.
    pub(crate) pool: Option<usize>,
    /// Why it is not in the pools before that one, or in any.
    pub(crate) left_out: Vec<(usize, Reason)>,
}

/// Sorts devices into pools: each to the first that takes it, in the order of the configuration file.
///
/// What a container holds stays in the pool that it was given out from: another pool must not give it out again, and
/// kubelet forgets a pod's device that disappears from the list.
pub(crate) fn sort(conf: &Conf, devices: &[Arc<Device>], allocations: &Allocations) -> Vec<Pool> {
    sort_telling(conf, devices, allocations, |_, _| {})
}

/// The same, and where each device ended up.
pub(crate) fn judge(
    conf: &Conf,
    devices: &[Arc<Device>],
    allocations: &Allocations,
) -> (Vec<Pool>, Vec<Verdict>) {
    let mut verdicts = Vec::new();
    let pools = sort_telling(conf, devices, allocations, |device, pool| {
        let asked = conf.pools.iter().enumerate().take(pool.unwrap_or(usize::MAX));
        let left_out = asked.filter_map(|(index, conf)| Some((index, conf.objection(device)?))).collect();
        verdicts.push(Verdict { device: device.clone(), pool, left_out });
    });
    (pools, verdicts)
}

fn sort_telling(
    conf: &Conf,
    devices: &[Arc<Device>],
    allocations: &Allocations,
    mut tell: impl FnMut(&Arc<Device>, Option<usize>),
) -> Vec<Pool> {
    let mut pools: Vec<Pool> = conf.pools.iter().cloned().map(Pool::new).collect();
    let mut held = BTreeMap::new();
    for (index, pool) in conf.pools.iter().enumerate() {
        held.extend(allocations.of(&pool.resource.to_string()).map(|(id, _)| (id, index)));
    }
    for device in devices {
        let taken = match held.remove(&*device.id) {
            Some(holder) => Some((holder, None)),
            None => {
                let fits = |(index, pool): (usize, &Pool)| Some((index, Some(pool.conf.fits(device)?)));
                pools.iter().enumerate().find_map(fits)
            }
        };
        tell(device, taken.map(|(index, _)| index));
        if let Some((index, selector)) = taken
            && let Some(pool) = pools.get_mut(index)
        {
            let (selector, illness) = match selector.or_else(|| pool.conf.fits(device)) {
                Some(selector) => (selector, link(&pool.conf, device)),
                None => unfit(&pool.conf, device),
            };
            let offer = Offer { device: Some(device.clone()), selector, illness };
            pool.offers.insert(device.id.clone(), offer);
        }
    }
    for (id, index) in held {
        let gone = Offer { device: None, selector: 0, illness: Some(Illness::Gone) };
        if let Some(pool) = pools.get_mut(index) {
            pool.offers.insert(id.into(), gone);
        }
    }
    pools
}

impl PoolConf {
    /// The index of the selector that takes the device; `None` if none does, or it must not be offered.
    pub(crate) fn fits(&self, device: &Device) -> Option<usize> {
        if self.device_type != device.kind || self.obstacle(device).is_some() {
            return None;
        }
        self.selectors.iter().position(|selector| selector.takes(device))
    }

    /// Why the pool does not take the device; `None` if it does.
    pub(crate) fn objection(&self, device: &Device) -> Option<Reason> {
        if self.device_type != device.kind {
            return Some(Reason::Type(self.device_type));
        }
        if let Some(obstacle) = self.obstacle(device) {
            return Some(Reason::Obstacle(obstacle.clone()));
        }
        let rejections = self.selectors.iter().map(|selector| selector.reject(device));
        rejections.collect::<Option<Vec<_>>>().map(Reason::Selectors)
    }

    fn obstacle<'a>(&self, device: &'a Device) -> Option<&'a Obstacle> {
        device.obstacles.iter().find(|obstacle| !(self.offer_in_use && obstacle.is_in_use()))
    }
}

/// What the link of the PF makes of a device.
fn link(pool: &PoolConf, device: &Device) -> Option<Illness> {
    if pool.ignore_link {
        return None;
    }
    if device.pf_is_down {
        let pf = device.pf_name.clone().unwrap_or_else(|| device.pf.to_string());
        return Some(Illness::PfDown { pf });
    }
    (device.carrier == Some(false)).then_some(Illness::NoCarrier)
}

/// The state of a device that a container holds, though the pool would not take it now.
fn unfit(pool: &PoolConf, device: &Device) -> (usize, Option<Illness>) {
    let reason = pool.objection(device);
    // RDMA devices in exclusive mode are visible only in the container's namespace, as its network device is: no sign
    // of illness.
    let hidden = match &reason {
        Some(Reason::Selectors(rejections)) if device.netdevs.is_empty() => {
            rejections.iter().position(|r| ["isRdma", "pKeys"].contains(&r.selector))
        }
        _ => None,
    };
    match hidden {
        Some(selector) => (selector, link(pool, device)),
        None => (0, reason.map(Illness::Unfit)),
    }
}

#[cfg(test)]
mod tests {
    use host::sysfs::fake::FakeSysfs;

    use super::*;
    use crate::config::parse;
    use crate::discovery::DefaultRoutes;
    use crate::inventory::Inventory;

    fn fake_nic(vfs: u32) -> FakeSysfs {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:00.0").driver("igb").netdev("ens1f0").sriov(7);
        for number in 0..vfs {
            fake.pci(&format!("0000:3b:10.{number}"))
                .vf_of("0000:3b:00.0", number)
                .driver(if number % 2 == 0 { "igbvf" } else { "vfio-pci" })
                .attribute("numa_node", "1");
        }
        fake
    }

    fn sorted(fake: &FakeSysfs, conf: &str, allocations: &Allocations) -> (Vec<Pool>, Vec<Verdict>) {
        let (conf, _) = parse(&format!("{{\"resourceList\": [{conf}]}}"), "intel.com").unwrap();
        judge(&conf, &Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices(), allocations)
    }

    fn names(pool: &Pool) -> Vec<&str> {
        pool.offers.keys().map(|id| &**id).collect()
    }

    const NET_AND_DPDK: &str = r#"{"resourceName": "net", "selectors": {"drivers": ["igbvf"]}},
        {"resourceName": "dpdk", "excludeTopology": true, "selectors": {"drivers": ["vfio-pci"]}}"#;

    #[test]
    fn the_first_pool_that_takes_a_device_has_it() {
        let fake = fake_nic(4);
        let (pools, verdicts) = sorted(&fake, NET_AND_DPDK, &Allocations::default());
        assert_eq!(names(&pools[0]), ["0000:3b:10.0", "0000:3b:10.2"]);
        assert_eq!(names(&pools[1]), ["0000:3b:10.1", "0000:3b:10.3"]);
        assert_eq!(verdicts[0].pool, None);
        assert_eq!(verdicts[0].left_out[0].1.to_string(), "is a PF with 4 VFs");
        assert_eq!(verdicts[2].left_out[0].1.to_string(), "drivers wants igbvf, the device has vfio-pci");
        let all = r#"{"resourceName": "all"}, {"resourceName": "none"}"#;
        let (pools, _) = sorted(&fake, all, &Allocations::default());
        assert_eq!((names(&pools[0]).len(), names(&pools[1]).len()), (4, 0));
    }

    #[test]
    fn what_kubelet_is_told() {
        let fake = fake_nic(3);
        fake.pci("0000:3b:00.0").net_attribute("ens1f0", "carrier", "0");
        let (pools, _) = sorted(&fake, NET_AND_DPDK, &Allocations::default());
        let told = pools[0].advertised();
        let lines: Vec<_> = told
            .iter()
            .map(|device| {
                (device.id.as_str(), device.health.as_str(), device.topology.as_ref().map(|t| t.nodes[0].id))
            })
            .collect();
        assert_eq!(lines, [("0000:3b:10.0", "Unhealthy", Some(1)), ("0000:3b:10.2", "Unhealthy", Some(1))]);
        assert_eq!(pools[1].advertised()[0].topology, None);
        let (pools, _) =
            sorted(&fake, r#"{"resourceName": "a", "ignoreLink": true}"#, &Allocations::default());
        assert!(pools[0].advertised().iter().all(|device| device.health == "Healthy"));
    }

    #[test]
    fn vfs_of_a_pf_that_is_down_are_unhealthy() {
        let fake = fake_nic(2);
        fake.pci("0000:3b:00.0").netdev_down("ens1f0");
        // Not a VF here, though it may be one outside this machine: who gets it sets it up.
        fake.pci("0000:5e:00.0").driver("iavf").netdev("ens9").netdev_down("ens9");
        let illnesses = |conf: &str| -> Vec<Option<String>> {
            let (pools, _) = sorted(&fake, conf, &Allocations::default());
            pools[0].offers.values().map(|offer| offer.illness.as_ref().map(Illness::to_string)).collect()
        };
        let down = || Some("the PF is down (ip link set ens1f0 up)".to_owned());
        assert_eq!(illnesses(r#"{"resourceName": "a"}"#), [down(), down(), None]);
        assert_eq!(illnesses(r#"{"resourceName": "a", "ignoreLink": true}"#), [None, None, None]);
        // A driver that keeps the port up, and an interface that says nothing of the port.
        fake.pci("0000:3b:00.0").driver("ice");
        assert_eq!(illnesses(r#"{"resourceName": "a"}"#), [None, None, None]);
        fake.pci("0000:3b:00.0").driver("mlx5_core").net_attribute("ens1f0", "type", "32");
        assert_eq!(illnesses(r#"{"resourceName": "a"}"#), [None, None, None]);
    }

    #[test]
    fn what_a_container_holds_stays_where_it_was() {
        let fake = fake_nic(2);
        let held = Allocations::with("intel.com/net", &["0000:3b:10.1", "0000:3b:10.7"]);
        let (pools, _) = sorted(&fake, NET_AND_DPDK, &held);
        assert_eq!(names(&pools[0]), ["0000:3b:10.0", "0000:3b:10.1", "0000:3b:10.7"]);
        assert_eq!(names(&pools[1]), [""; 0]);
        let illness = |id: &str| pools[0].offers[id].illness.as_ref().map(Illness::to_string);
        assert_eq!(illness("0000:3b:10.0"), None);
        assert_eq!(illness("0000:3b:10.1").unwrap(), "drivers wants igbvf, the device has vfio-pci");
        assert_eq!(illness("0000:3b:10.7").unwrap(), "the device is gone");
    }

    #[test]
    fn an_rdma_device_in_a_container_is_no_illness() {
        let fake = fake_nic(1);
        let conf = r#"{"resourceName": "rdma", "selectors": {"isRdma": true}}"#;
        let held = Allocations::with("intel.com/rdma", &["0000:3b:10.0"]);
        let (pools, _) = sorted(&fake, conf, &held);
        assert_eq!(pools[0].offers["0000:3b:10.0"].illness, None);
        // While its network device is here, its RDMA device is not hidden: it is missing.
        fake.pci("0000:3b:10.0").netdev("ens1f0v0");
        let (pools, _) = sorted(&fake, conf, &held);
        let illness = pools[0].offers["0000:3b:10.0"].illness.as_ref().unwrap().to_string();
        assert_eq!(illness, "isRdma wants an RDMA device, the device has none");
        let (pools, _) = sorted(&fake, conf, &Allocations::default());
        assert_eq!(names(&pools[0]), [""; 0]);
    }

    #[test]
    fn a_device_in_use_needs_the_override() {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:00.0").driver("igb").netdev("mgmt");
        let routes = DefaultRoutes::from(["mgmt".to_owned()]);
        let devices = || Inventory::read(&fake.sysfs(), &routes).unwrap().devices();
        for (conf, offered) in [
            (r#"{"resourceList": [{"resourceName": "a"}]}"#, 0),
            (r#"{"resourceList": [{"resourceName": "a", "offerInUse": true}]}"#, 1),
        ] {
            let (conf, _) = parse(conf, "intel.com").unwrap();
            let pools = sort(&conf, &devices(), &Allocations::default());
            assert_eq!(pools[0].offers.len(), offered);
        }
    }
}
