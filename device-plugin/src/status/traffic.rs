//! Traffic of VFs and the pods that hold them, under the names of sriov-network-metrics-exporter.

use std::collections::{BTreeMap, BTreeSet};

use host::netlink::VfCounters;
use host::sysfs::SysfsError;
use host::{Netlink, Sysfs};

use super::exposition::{Exposition, Labels};
use crate::allocations::Allocations;
use crate::device::Device;

/// What went through a VF, by the names of counters without their prefix.
type Counters = BTreeMap<String, u64>;

/// A VF and what went through it.
struct Sample<'a> {
    pf: &'a str,
    number: String,
    device: &'a Device,
    counters: Counters,
}

/// A counter of the kernel: its name, its help and its value.
type Column = (&'static str, &'static str, fn(&VfCounters) -> u64);

const COLUMNS: [Column; 8] = [
    ("rx_bytes", "Octets that the VF received.", |counters| counters.rx_bytes),
    ("tx_bytes", "Octets that the VF sent.", |counters| counters.tx_bytes),
    ("rx_packets", "Packets that the VF received.", |counters| counters.rx_packets),
    ("tx_packets", "Packets that the VF sent.", |counters| counters.tx_packets),
    ("rx_dropped", "Packets that did not reach the VF.", |counters| counters.rx_dropped),
    ("tx_dropped", "Packets that did not leave the VF.", |counters| counters.tx_dropped),
    ("rx_broadcast", "Broadcast packets that the VF received.", |counters| counters.rx_broadcast),
    ("rx_multicast", "Multicast packets that the VF received.", |counters| counters.rx_multicast),
];

/// Writes the traffic of all VFs of `devices`: what the driver of their PF keeps in sysfs, or else what the PF tells
/// through netlink. A PF that does not tell is left out.
pub(super) async fn write_traffic<'a>(
    sysfs: &Sysfs,
    devices: impl Iterator<Item = &'a Device>,
    text: &mut Exposition,
) {
    let mut pfs: BTreeMap<&str, BTreeMap<u32, &Device>> = BTreeMap::new();
    for device in devices {
        let is_vf = device.pf != device.address;
        if let (true, Some(pf), Some(number)) = (is_vf, &device.pf_name, device.number) {
            pfs.entry(pf).or_default().insert(number, device);
        }
    }
    let mut samples = Vec::new();
    for (pf, vfs) in pfs {
        let counted = match kept_by_driver(sysfs, &vfs).await {
            kept if kept.is_empty() => told_by_kernel(pf).await.unwrap_or_else(|error| {
                tracing::debug!(pf, %error, "does not tell the traffic of its VFs");
                Vec::new()
            }),
            kept => kept,
        };
        samples.extend(counted.into_iter().filter_map(|(number, counters)| {
            let device = *vfs.get(&number)?;
            Some(Sample { pf, number: number.to_string(), device, counters })
        }));
    }
    write_samples(&samples, text);
}

fn write_samples(samples: &[Sample<'_>], text: &mut Exposition) {
    let of_drivers = samples.iter().flat_map(|sample| sample.counters.keys().map(String::as_str));
    let names: BTreeSet<&str> = COLUMNS.iter().map(|(name, ..)| *name).chain(of_drivers).collect();
    for name in names {
        let metric = format!("sriov_vf_{name}");
        let help = COLUMNS.iter().find(|(column, ..)| *column == name).map(|(_, help, _)| *help);
        let mut family = text.counter(&metric, help.unwrap_or("A counter of the PF's driver."));
        for Sample { pf, number, device, counters } in samples {
            let Some(value) = counters.get(name) else { continue };
            // Empty where it is unknown.
            let node = device.numa_node.map_or_else(String::new, |node| node.to_string());
            let address = device.address.to_string();
            let labels: Labels<'_> =
                &[("numa_node", &node), ("pciAddr", &address), ("pf", pf), ("vf", number)];
            family.sample(labels, value);
        }
    }
}

/// The counters of the VFs of one PF in sysfs. Only names that can be a metric's.
async fn kept_by_driver(sysfs: &Sysfs, vfs: &BTreeMap<u32, &Device>) -> Vec<(u32, Counters)> {
    let Some(pf) = vfs.values().next().map(|device| device.pf) else { return Vec::new() };
    let (sysfs, numbers) = (sysfs.clone(), vfs.keys().copied().collect::<Vec<_>>());
    let read = move || -> Result<Vec<(u32, Counters)>, SysfsError> {
        let pf = sysfs.pci_device(pf)?;
        let mut all = Vec::new();
        for number in numbers {
            let mut counters = pf.vf_statistics(number)?;
            counters
                .retain(|name, _| name.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'_'));
            match counters.is_empty() {
                false => all.push((number, counters)),
                // Drivers keep them of all VFs or of none.
                true if all.is_empty() => break,
                // It has gone meanwhile.
                true => {}
            }
        }
        Ok(all)
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(all)) => all,
        Ok(Err(error)) => {
            tracing::debug!(%error, "cannot read the counters that the driver keeps");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

async fn told_by_kernel(pf: &str) -> Result<Vec<(u32, Counters)>, host::netlink::Error> {
    let netlink = Netlink::connect()?;
    let Some(link) = netlink.link_by_name(pf).await? else { return Ok(Vec::new()) };
    let named = |counters: VfCounters| {
        COLUMNS.iter().map(|(name, _, value)| ((*name).to_owned(), value(&counters))).collect()
    };
    let counted = Netlink::vf_counters(link.index).await?;
    Ok(counted.into_iter().map(|(number, counters)| (number, named(counters))).collect())
}

/// Which pod holds which device: to be joined with the traffic by `pciAddr`.
pub(super) fn write_holders(allocations: &Allocations, resources: &[String], text: &mut Exposition) {
    let mut family = text.gauge("sriov_kubepoddevice", "Devices that containers hold.");
    for resource in resources {
        for (id, holder) in allocations.of(resource) {
            let labels: Labels<'_> = &[
                ("pciAddr", id),
                ("dev_type", resource),
                ("pod", &holder.pod),
                ("namespace", &holder.namespace),
                ("container", &holder.container),
            ];
            family.sample(labels, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use host::sysfs::fake::FakeSysfs;

    use super::*;
    use crate::discovery::DefaultRoutes;
    use crate::inventory::Inventory;

    #[tokio::test]
    async fn counters_that_the_driver_keeps_come_first() {
        let fake = FakeSysfs::new();
        // No kernel has this PF, so netlink tells nothing of it.
        fake.pci("0000:3b:00.0").driver("ice").netdev("podrail-none").sriov(8);
        for (number, node) in [(0, "-1"), (1, "1")] {
            let vf = format!("0000:3b:10.{number}");
            fake.pci(&vf).vf_of("0000:3b:00.0", number).driver("iavf").attribute("numa_node", node);
        }
        let devices = Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices();
        let written = async || {
            let mut text = Exposition::default();
            write_traffic(&fake.sysfs(), devices.iter().map(AsRef::as_ref), &mut text).await;
            text.into_text()
        };
        let nothing = written().await;
        assert!(nothing.lines().all(|line| line.starts_with('#')), "{nothing}");
        for number in 0..2 {
            fake.pci("0000:3b:00.0")
                .attribute(&format!("sriov/{number}/stats/rx_bytes"), "7")
                .attribute(&format!("sriov/{number}/stats/tx_errors"), "8")
                .attribute(&format!("sriov/{number}/stats/no-metric"), "9");
        }
        let all = written().await;
        let samples: Vec<&str> = all.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                r#"sriov_vf_rx_bytes{numa_node="",pciAddr="0000:3b:10.0",pf="podrail-none",vf="0"} 7"#,
                r#"sriov_vf_rx_bytes{numa_node="1",pciAddr="0000:3b:10.1",pf="podrail-none",vf="1"} 7"#,
                r#"sriov_vf_tx_errors{numa_node="",pciAddr="0000:3b:10.0",pf="podrail-none",vf="0"} 8"#,
                r#"sriov_vf_tx_errors{numa_node="1",pciAddr="0000:3b:10.1",pf="podrail-none",vf="1"} 8"#,
            ]
        );
        assert!(all.contains("# TYPE sriov_vf_tx_errors counter"), "{all}");
    }
}
