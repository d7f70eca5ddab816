//! Whether a device meets the conditions of a pool.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::config::{Ranged, Selector};
use crate::device::Device;

/// The condition that a device does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// The selector's key in the configuration file.
    pub(crate) selector: &'static str,
    /// What it asks for.
    pub(crate) wanted: String,
    /// What the device has.
    pub(crate) found: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} wants {}, the device has {}", self.selector, self.wanted, self.found)
    }
}

impl Serialize for Rejection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Selector {
    /// The first condition that the device does not meet; `None` if it meets all.
    pub(crate) fn reject(&self, device: &Device) -> Option<Rejection> {
        let one = |value: &str| vec![value.to_owned()];
        let some = |value: &Option<String>| value.iter().cloned().collect::<Vec<_>>();
        let lists: [(&'static str, &[String], Vec<String>); 9] = [
            ("vendors", &self.vendors, one(&device.vendor)),
            ("devices", &self.devices, one(&device.device)),
            ("drivers", &self.drivers, some(&device.driver)),
            ("auxTypes", &self.aux_types, some(&device.aux_type)),
            ("pciAddresses", &self.pci_addresses, one(&device.address.to_string())),
            ("acpiIndexes", &self.acpi_indexes, some(&device.acpi_index)),
            ("linkTypes", &self.link_types, some(&device.link_type)),
            // Only devlink knows these, which is not asked yet: a device has none.
            ("ddpProfiles", &self.ddp_profiles, Vec::new()),
            ("pKeys", &self.p_keys, some(&device.p_key)),
        ];
        let mut rejections = lists.into_iter().filter_map(|(selector, wanted, found)| {
            let met = wanted.is_empty()
                || wanted.iter().any(|wanted| found.iter().any(|found| found.eq_ignore_ascii_case(wanted)));
            (!met).then(|| Rejection { selector, wanted: list(wanted), found: list(&found) })
        });
        rejections
            .next()
            .or_else(|| self.reject_pf(device))
            .or_else(|| self.reject_rdma(device))
            .or_else(|| self.reject_vdpa(device))
    }

    fn reject_pf(&self, device: &Device) -> Option<Rejection> {
        let address = device.pf.to_string();
        let name = device.pf_name.as_deref();
        ranged("pfNames", &self.pf_names, name, device)
            .or_else(|| ranged("rootDevices", &self.root_devices, Some(&address), device))
    }

    fn reject_rdma(&self, device: &Device) -> Option<Rejection> {
        (self.is_rdma && device.rdma.is_empty()).then(|| Rejection {
            selector: "isRdma",
            wanted: "an RDMA device".to_owned(),
            found: "none".to_owned(),
        })
    }

    fn reject_vdpa(&self, device: &Device) -> Option<Rejection> {
        let wanted = self.vdpa_type?;
        let driver = device.vdpa.as_ref().and_then(|vdpa| vdpa.driver.as_deref());
        (driver != Some(wanted.driver())).then(|| Rejection {
            selector: "vdpaType",
            wanted: format!("a vDPA device with driver {}", wanted.driver()),
            found: driver.map_or_else(|| "none".to_owned(), |driver| format!("one with driver {driver}")),
        })
    }
}

fn ranged(
    selector: &'static str,
    wanted: &[Ranged],
    name: Option<&str>,
    device: &Device,
) -> Option<Rejection> {
    let meets = |ranged: &Ranged| {
        name.is_some_and(|name| ranged.name.eq_ignore_ascii_case(name)) && ranged.has(device.number)
    };
    if wanted.is_empty() || wanted.iter().any(meets) {
        return None;
    }
    let found = match (name, device.number) {
        (Some(name), Some(number)) => format!("{name}#{number}"),
        (Some(name), None) => name.to_owned(),
        (None, _) => "no PF in this kernel".to_owned(),
    };
    Some(Rejection { selector, wanted: list(wanted), found })
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    match items {
        [] => "none".to_owned(),
        items => items.iter().map(T::to_string).collect::<Vec<_>>().join(" or "),
    }
}

#[cfg(test)]
mod tests {
    use host::sysfs::VdpaDevice;

    use super::*;
    use crate::config::{DeviceType, VdpaType};

    fn vf() -> Device {
        Device {
            id: "0000:3b:02.1".into(),
            kind: DeviceType::NetDevice,
            address: "0000:3b:02.1".parse().unwrap(),
            vendor: "8086".into(),
            device: "154c".into(),
            driver: Some("iavf".into()),
            numa_node: Some(0),
            acpi_index: Some("7".into()),
            aux_type: None,
            pf: "0000:3b:00.0".parse().unwrap(),
            pf_name: Some("ens1f0".into()),
            number: Some(5),
            netdevs: vec!["ens1f0v5".into()],
            link_type: Some("ether".into()),
            carrier: Some(true),
            rdma: vec!["irdma5".into()],
            p_key: None,
            vdpa: None,
            iommu_group: Some(14),
            obstacles: Vec::new(),
        }
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn ranges(entries: &[&str]) -> Vec<Ranged> {
        entries.iter().map(|entry| Ranged::parse(entry).unwrap()).collect()
    }

    #[test]
    fn every_selector_has_a_yes_and_a_no() {
        type Case = (&'static str, Selector, Selector);
        let selector = Selector::default;
        let cases: [Case; 13] = [
            (
                "vendors",
                Selector { vendors: texts(&["15b3", "8086"]), ..selector() },
                Selector { vendors: texts(&["15b3"]), ..selector() },
            ),
            (
                "devices",
                Selector { devices: texts(&["154C"]), ..selector() },
                Selector { devices: texts(&["154d"]), ..selector() },
            ),
            (
                "drivers",
                Selector { drivers: texts(&["iavf"]), ..selector() },
                Selector { drivers: texts(&["vfio-pci"]), ..selector() },
            ),
            (
                "pciAddresses",
                Selector { pci_addresses: texts(&["0000:3B:02.1"]), ..selector() },
                Selector { pci_addresses: texts(&["3b:02.1"]), ..selector() },
            ),
            (
                "acpiIndexes",
                Selector { acpi_indexes: texts(&["7"]), ..selector() },
                Selector { acpi_indexes: texts(&["8"]), ..selector() },
            ),
            (
                "pfNames",
                Selector { pf_names: ranges(&["ens1f0#0-3", "ENS1F0#5"]), ..selector() },
                Selector { pf_names: ranges(&["ens1f0#0-4", "ens1f1"]), ..selector() },
            ),
            (
                "rootDevices",
                Selector { root_devices: ranges(&["0000:3b:00.0#4-6"]), ..selector() },
                Selector { root_devices: ranges(&["0000:3b:00.0#6", "0000:3b:00.1"]), ..selector() },
            ),
            (
                "linkTypes",
                Selector { link_types: texts(&["infiniband", "ether"]), ..selector() },
                Selector { link_types: texts(&["infiniband"]), ..selector() },
            ),
            ("ddpProfiles", selector(), Selector { ddp_profiles: texts(&["GTPv1-C/U"]), ..selector() }),
            ("pKeys", selector(), Selector { p_keys: texts(&["0x7fff"]), ..selector() }),
            ("auxTypes", selector(), Selector { aux_types: texts(&["sf"]), ..selector() }),
            ("vdpaType", selector(), Selector { vdpa_type: Some(VdpaType::Vhost), ..selector() }),
            ("needVhostNet", Selector { need_vhost_net: true, is_rdma: true, ..selector() }, selector()),
        ];
        for (key, yes, no) in cases {
            assert_eq!(yes.reject(&vf()), None, "{key}");
            let rejected = no.reject(&vf()).map(|rejection| rejection.selector);
            assert_eq!(rejected, (key != "needVhostNet").then_some(key));
        }
    }

    #[test]
    fn what_is_rejected_says_why() {
        let selector = Selector { pf_names: ranges(&["ens1f0#0-3", "ens1f1"]), ..Selector::default() };
        let rejection = selector.reject(&vf()).unwrap().to_string();
        assert_eq!(rejection, "pfNames wants ens1f0#0-3 or ens1f1, the device has ens1f0#5");
        let mut in_a_guest = vf();
        in_a_guest.pf_name = None;
        let rejection = selector.reject(&in_a_guest).unwrap().to_string();
        assert!(rejection.ends_with("the device has no PF in this kernel"), "{rejection}");
    }

    #[test]
    fn rdma_and_vdpa() {
        let mut device = vf();
        device.rdma.clear();
        let selector = Selector { is_rdma: true, ..Selector::default() };
        assert_eq!(selector.reject(&device).unwrap().selector, "isRdma");
        let selector = Selector { vdpa_type: Some(VdpaType::Virtio), ..Selector::default() };
        for (driver, met) in [("vhost_vdpa", false), ("virtio_vdpa", true)] {
            device.vdpa = Some(VdpaDevice {
                name: "vdpa0".into(),
                parent: device.address,
                driver: Some(driver.into()),
                vhost: None,
            });
            assert_eq!(selector.reject(&device).is_none(), met, "{driver}");
        }
    }
}
