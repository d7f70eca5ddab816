//! `-explain`: where every device is, and why.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use host::PciAddress;
use serde::Serialize;

use crate::allocations::{Allocations, Holder};
use crate::away::{Away, AwayDevices};
use crate::config::{Conf, DeviceType};
use crate::device::Device;
use crate::pool::{Illness, Pool, Verdict};

/// All that is known, in a form for people and for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pools: Vec<PoolLine>,
    devices: Vec<Line>,
    /// Devices that containers hold, though they are not there.
    gone: Vec<Gone>,
}

#[derive(Debug, Serialize)]
struct PoolLine {
    resource: String,
    device_type: &'static str,
    devices: usize,
    healthy: usize,
    held: usize,
}

#[derive(Debug, Serialize)]
struct Line {
    id: String,
    pf: PciAddress,
    pf_name: Option<String>,
    number: Option<u32>,
    vendor: String,
    device: String,
    driver: Option<String>,
    numa_node: Option<u32>,
    iommu_group: Option<u32>,
    netdevs: Vec<String>,
    /// Where its network device is, if not here.
    away: Option<Away>,
    carrier: Option<bool>,
    rdma: Vec<String>,
    /// If a selector wants to know.
    ddp_profile: Option<String>,
    /// The resource that the device is offered as.
    resource: Option<String>,
    unhealthy: Option<Illness>,
    holder: Option<Holder>,
    /// Why it is in no pool: the reason of each.
    left_out: Vec<LeftOut>,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    resource: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Gone {
    id: String,
    resource: String,
    holder: Option<Holder>,
}

impl Report {
    pub(crate) fn new(
        conf: &Conf,
        pools: &[Pool],
        verdicts: Vec<Verdict>,
        allocations: &Allocations,
        away: &AwayDevices,
    ) -> Self {
        let resource =
            |index: usize| conf.pools.get(index).map_or_else(String::new, |pool| pool.resource.to_string());
        let lines = verdicts.into_iter().map(|Verdict { device, pool, left_out }| {
            let offer = pool.and_then(|index| pools.get(index)?.offers.get(&device.id));
            let Device { id, pf, pf_name, number, driver, numa_node, iommu_group, .. } =
                Device::clone(&device);
            // Where the device is in a pool, the pools before it are of no interest.
            let left_out = left_out.into_iter().filter(|_| pool.is_none());
            Line {
                unhealthy: offer.and_then(|offer| offer.illness.clone()),
                holder: allocations.holder(&id).cloned(),
                resource: pool.map(resource),
                left_out: left_out
                    .map(|(index, reason)| LeftOut { resource: resource(index), reason: reason.to_string() })
                    .collect(),
                id: id.to_string(),
                pf,
                pf_name,
                number,
                vendor: device.vendor.clone(),
                device: device.device.clone(),
                driver,
                numa_node,
                iommu_group,
                netdevs: device.netdevs.clone(),
                away: away.get(&device.address).filter(|_| device.kind != DeviceType::AuxNetDevice).cloned(),
                carrier: device.carrier,
                rdma: device.rdma.clone(),
                ddp_profile: device.ddp_profile.clone(),
            }
        });
        let gone = pools.iter().flat_map(|pool| {
            let gone = pool.offers.iter().filter(|(_, offer)| offer.device.is_none());
            gone.map(|(id, _)| Gone {
                id: id.to_string(),
                resource: pool.conf.resource.to_string(),
                holder: allocations.holder(id).cloned(),
            })
        });
        let pool_lines = pools.iter().map(|pool| PoolLine {
            resource: pool.conf.resource.to_string(),
            device_type: pool.conf.device_type.as_str(),
            devices: pool.offers.len(),
            healthy: pool.healthy(),
            held: allocations.of(&pool.conf.resource.to_string()).count(),
        });
        Self { pools: pool_lines.collect(), devices: lines.collect(), gone: gone.collect() }
    }
}

/// A tree: PFs and other functions, with VFs and SFs below theirs.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pool in &self.pools {
            let PoolLine { resource, device_type, devices, healthy, held } = pool;
            writeln!(f, "{resource}: {devices} of type {device_type}, {healthy} healthy, {held} held")?;
        }
        let mut functions: BTreeMap<PciAddress, Vec<&Line>> = BTreeMap::new();
        for line in &self.devices {
            functions.entry(line.pf).or_default().push(line);
        }
        for (address, mut lines) in functions {
            lines.sort_by_key(|line| (line.number, &line.id));
            let (own, below): (Vec<&Line>, Vec<&Line>) = lines.into_iter().partition(|l| l.number.is_none());
            match own.split_first() {
                None => writeln!(f, "\n{address}")?,
                Some((first, _)) => write!(f, "\n{}", first.text("", ""))?,
            }
            let children: Vec<&Line> = own.into_iter().skip(1).chain(below).collect();
            for (index, line) in children.iter().enumerate() {
                let last = index + 1 == children.len();
                let (branch, trunk) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                f.write_str(&line.text(branch, trunk))?;
            }
        }
        for Gone { id, resource, holder } in &self.gone {
            let holder = holder.as_ref().map_or_else(|| "a container".to_owned(), Holder::to_string);
            writeln!(f, "\n{id} of {resource} is gone, and {holder} holds it")?;
        }
        Ok(())
    }
}

impl Line {
    /// The lines of one device, the first behind `branch` and the others behind `trunk`.
    fn text(&self, branch: &str, trunk: &str) -> String {
        let mut words = Vec::new();
        words.extend(self.number.map(|number| format!("#{number}")));
        words.push(self.id.clone());
        words.extend(self.netdevs.iter().cloned());
        words.extend(self.away.iter().map(|away| format!("{} in {}", away.interface, away.netns.display())));
        words.push(self.driver.clone().unwrap_or_else(|| "no driver".to_owned()));
        words.push(format!("{}:{}", self.vendor, self.device));
        words.extend(self.numa_node.map(|node| format!("numa {node}")));
        words.extend(self.iommu_group.map(|group| format!("group {group}")));
        words.extend(self.rdma.iter().cloned());
        words.extend(self.ddp_profile.as_ref().map(|profile| format!("DDP {profile:?}")));
        if self.number.is_none() {
            words.extend(self.carrier.map(|up| if up { "link up" } else { "link down" }.to_owned()));
        }
        if let Some(resource) = &self.resource {
            words.push(format!("-> {resource}"));
        }
        words.extend(self.holder.as_ref().map(|holder| format!("held by {holder}")));
        words.extend(self.unhealthy.as_ref().map(|illness| format!("UNHEALTHY: {illness}")));
        let mut text = format!("{branch}{}\n", words.join("  "));
        for LeftOut { resource, reason } in &self.left_out {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{trunk}     not {resource}: {reason}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use host::sysfs::fake::FakeSysfs;

    use super::*;
    use crate::config::parse;
    use crate::discovery::DefaultRoutes;
    use crate::inventory::Inventory;
    use crate::pool::judge;

    #[test]
    fn a_tree_that_tells_all() {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:00.0").driver("igb").attribute("numa_node", "0").netdev("ens1f0").sriov(7);
        fake.pci("0000:3b:10.0").vf_of("0000:3b:00.0", 0).driver("igbvf").netdev("ens1f0v0");
        fake.pci("0000:3b:10.2").vf_of("0000:3b:00.0", 1).driver("vfio-pci").iommu_group(15);
        fake.pci("0000:3b:10.4").vf_of("0000:3b:00.0", 2);
        fake.pci("0000:3b:11.0").vf_of("0000:3b:00.0", 4).driver("igbvf");
        let conf = r#"{"resourceList": [
            {"resourceName": "net", "selectors": {"drivers": ["igbvf"]}},
            {"resourceName": "dpdk", "selectors": {"drivers": ["vfio-pci"]}}]}"#;
        let (conf, _) = parse(conf, "intel.com").unwrap();
        let held = Allocations::with("intel.com/dpdk", &["0000:3b:10.2", "0000:3b:10.6"]);
        let devices = Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices();
        let (pools, verdicts) = judge(&conf, &devices, &held);
        let pod = Away { netns: "/run/netns/cni-1".into(), interface: "net1".into() };
        let away = AwayDevices::from([("0000:3b:11.0".parse().unwrap(), pod)]);
        let report = Report::new(&conf, &pools, verdicts, &held, &away);
        let expected = "\
intel.com/net: 2 of type netDevice, 2 healthy, 0 held
intel.com/dpdk: 2 of type netDevice, 1 healthy, 2 held

0000:3b:00.0  ens1f0  igb  8086:10c9  numa 0  link up
     not intel.com/net: is a PF with 4 VFs
     not intel.com/dpdk: is a PF with 4 VFs
├─ #0  0000:3b:10.0  ens1f0v0  igbvf  8086:10ca  -> intel.com/net
├─ #1  0000:3b:10.2  vfio-pci  8086:10ca  group 15  -> intel.com/dpdk  held by default/pod/c
├─ #2  0000:3b:10.4  no driver  8086:10ca
│       not intel.com/net: no driver is bound
│       not intel.com/dpdk: no driver is bound
└─ #4  0000:3b:11.0  net1 in /run/netns/cni-1  igbvf  8086:10ca  -> intel.com/net

0000:3b:10.6 of intel.com/dpdk is gone, and default/pod/c holds it
";
        assert_eq!(report.to_string(), expected);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["pools"][1]["held"], 2);
        assert_eq!(json["devices"][2]["holder"]["pod"], "pod");
        assert_eq!(json["devices"][3]["left_out"][0]["reason"], "no driver is bound");
        assert_eq!(json["gone"][0]["id"], "0000:3b:10.6");
        assert_eq!(json["devices"][4]["away"]["netns"], "/run/netns/cni-1");
    }
}
