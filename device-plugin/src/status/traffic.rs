//! Traffic of VFs and the pods that hold them, under the names of sriov-network-metrics-exporter.

use std::collections::BTreeMap;

use host::Netlink;
use host::netlink::VfCounters;

use super::exposition::{Exposition, Labels};
use crate::allocations::Allocations;
use crate::device::Device;

/// A VF and what went through it.
struct Sample<'a> {
    pf: &'a str,
    number: String,
    device: &'a Device,
    counters: VfCounters,
}

/// A metric, its help and its value.
type Column = (&'static str, &'static str, fn(&VfCounters) -> u64);

const COLUMNS: [Column; 8] = [
    ("sriov_vf_rx_bytes", "Octets that the VF received.", |counters| counters.rx_bytes),
    ("sriov_vf_tx_bytes", "Octets that the VF sent.", |counters| counters.tx_bytes),
    ("sriov_vf_rx_packets", "Packets that the VF received.", |counters| counters.rx_packets),
    ("sriov_vf_tx_packets", "Packets that the VF sent.", |counters| counters.tx_packets),
    ("sriov_vf_rx_dropped", "Packets that did not reach the VF.", |counters| counters.rx_dropped),
    ("sriov_vf_tx_dropped", "Packets that did not leave the VF.", |counters| counters.tx_dropped),
    ("sriov_vf_rx_broadcast", "Broadcast packets that the VF received.", |counters| counters.rx_broadcast),
    ("sriov_vf_rx_multicast", "Multicast packets that the VF received.", |counters| counters.rx_multicast),
];

/// Asks the PFs of `devices` for the traffic of their VFs. A PF that does not tell is left out.
pub(super) async fn write_traffic<'a>(devices: impl Iterator<Item = &'a Device>, text: &mut Exposition) {
    let mut pfs: BTreeMap<&str, BTreeMap<u32, &Device>> = BTreeMap::new();
    for device in devices {
        let is_vf = device.pf != device.address;
        if let (true, Some(pf), Some(number)) = (is_vf, &device.pf_name, device.number) {
            pfs.entry(pf).or_default().insert(number, device);
        }
    }
    let mut samples = Vec::new();
    for (pf, vfs) in pfs {
        match counters(pf).await {
            Ok(counted) => samples.extend(counted.into_iter().filter_map(|(number, counters)| {
                let device = *vfs.get(&number)?;
                Some(Sample { pf, number: number.to_string(), device, counters })
            })),
            Err(error) => tracing::debug!(pf, %error, "does not tell the traffic of its VFs"),
        }
    }
    for (name, help, value) in COLUMNS {
        let mut family = text.counter(name, help);
        for Sample { pf, number, device, counters } in &samples {
            // Empty where it is unknown.
            let node = device.numa_node.map_or_else(String::new, |node| node.to_string());
            let address = device.address.to_string();
            let labels: Labels<'_> =
                &[("numa_node", &node), ("pciAddr", &address), ("pf", pf), ("vf", number)];
            family.sample(labels, value(counters));
        }
    }
}

async fn counters(pf: &str) -> Result<Vec<(u32, VfCounters)>, host::netlink::Error> {
    let netlink = Netlink::connect()?;
    match netlink.link_by_name(pf).await? {
        Some(link) => Netlink::vf_counters(link.index).await,
        None => Ok(Vec::new()),
    }
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
