//! Whether a device meets the conditions of a pool.

use std::fmt;

use host::PciAddress;
use serde::{Serialize, Serializer};

use crate::config::{DeviceType, Ranged, Selector, VdpaType};
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

/// A condition, and what a device has to meet it with.
enum Condition<'a> {
    /// One of a list of texts.
    Text {
        selector: &'static str,
        wanted: &'a [String],
        found: Option<&'a str>,
    },
    /// A driver, also of the function that carries an auxiliary device.
    Driver {
        wanted: &'a [String],
        device: &'a Device,
    },
    /// One of a list of PCI addresses, written in full.
    Address {
        selector: &'static str,
        wanted: &'a [String],
        found: PciAddress,
    },
    /// A VF of one of these PFs.
    PfName {
        wanted: &'a [Ranged],
        device: &'a Device,
    },
    RootDevice {
        wanted: &'a [Ranged],
        device: &'a Device,
    },
    Rdma {
        wanted: bool,
        device: &'a Device,
    },
    Vdpa {
        wanted: Option<VdpaType>,
        device: &'a Device,
    },
}

impl Selector {
    /// Whether the device meets all conditions.
    pub(crate) fn takes(&self, device: &Device) -> bool {
        self.conditions(device).iter().all(Condition::is_met)
    }

    /// The first condition that the device does not meet; `None` if it meets all.
    pub(crate) fn reject(&self, device: &Device) -> Option<Rejection> {
        self.conditions(device).iter().find(|condition| !condition.is_met()).map(Condition::rejection)
    }

    fn conditions<'a>(&'a self, device: &'a Device) -> [Condition<'a>; 13] {
        let text = |selector, wanted: &'a Vec<String>, found| Condition::Text { selector, wanted, found };
        [
            text("vendors", &self.vendors, Some(&*device.vendor)),
            text("devices", &self.devices, Some(&*device.device)),
            Condition::Driver { wanted: &self.drivers, device },
            text("auxTypes", &self.aux_types, device.aux_type.as_deref()),
            Condition::Address {
                selector: "pciAddresses",
                wanted: &self.pci_addresses,
                found: device.address,
            },
            text("acpiIndexes", &self.acpi_indexes, device.acpi_index.as_deref()),
            text("linkTypes", &self.link_types, device.link_type.as_deref()),
            text("pKeys", &self.p_keys, device.p_key.as_deref()),
            Condition::PfName { wanted: &self.pf_names, device },
            Condition::RootDevice { wanted: &self.root_devices, device },
            Condition::Vdpa { wanted: self.vdpa_type, device },
            // Last: these are asked only of a device that meets all others.
            Condition::Rdma { wanted: self.is_rdma, device },
            text("ddpProfiles", &self.ddp_profiles, device.ddp_profile.as_deref()),
        ]
    }
}

impl Condition<'_> {
    fn is_met(&self) -> bool {
        let one_of =
            |wanted: &[String], found: &str| wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(found));
        match *self {
            Self::Text { wanted, found, .. } => {
                wanted.is_empty() || found.is_some_and(|found| one_of(wanted, found))
            }
            Self::Address { wanted, found, .. } => wanted.is_empty() || one_of(wanted, &found.to_string()),
            Self::Driver { wanted, device } => {
                wanted.is_empty() || drivers(device).any(|driver| one_of(wanted, driver))
            }
            Self::PfName { wanted, device } => {
                wanted.is_empty() || pf_name(device).is_some_and(|pf| in_ranges(wanted, pf, device))
            }
            Self::RootDevice { wanted, device } => {
                wanted.is_empty() || pf(device).is_some_and(|pf| in_ranges(wanted, &pf.to_string(), device))
            }
            Self::Rdma { wanted, device } => !wanted || !device.rdma.is_empty() || device.rdma_enabled,
            Self::Vdpa { wanted, device } => {
                wanted.is_none_or(|wanted| vdpa_driver(device) == Some(wanted.driver()))
            }
        }
    }

    /// What is asked for, and what there is in its place.
    fn rejection(&self) -> Rejection {
        let some = |found: Option<&str>| found.unwrap_or("none").to_owned();
        let (selector, wanted, found) = match *self {
            Self::Text { selector, wanted, found } => (selector, list(wanted), some(found)),
            Self::Driver { wanted, device } => {
                ("drivers", list(wanted), list(&drivers(device).collect::<Vec<_>>()))
            }
            Self::Address { selector, wanted, found } => (selector, list(wanted), found.to_string()),
            Self::PfName { wanted, device } => ("pfNames", list(wanted), numbered(pf_name(device), device)),
            Self::RootDevice { wanted, device } => {
                let pf = pf(device).map(|pf| pf.to_string());
                ("rootDevices", list(wanted), numbered(pf.as_deref(), device))
            }
            Self::Rdma { .. } => ("isRdma", "an RDMA device".to_owned(), some(None)),
            Self::Vdpa { wanted, device } => {
                let wanted = wanted.map_or("no driver", VdpaType::driver);
                let found = vdpa_driver(device).map(|driver| format!("one with driver {driver}"));
                ("vdpaType", format!("a vDPA device with driver {wanted}"), some(found.as_deref()))
            }
        };
        Rejection { selector, wanted, found }
    }
}

fn drivers(device: &Device) -> impl Iterator<Item = &str> {
    device.driver.iter().chain(&device.parent_driver).map(String::as_str)
}

/// The PF of a VF or SF; a function that can have no VFs, such as a VF inside a virtual machine, stands for itself. One
/// that can is none of its own VFs: it would be given away as soon as it has none.
fn pf(device: &Device) -> Option<PciAddress> {
    let is_bare_pf = device.can_have_vfs && device.kind != DeviceType::AuxNetDevice;
    (!is_bare_pf).then_some(device.pf)
}

fn pf_name(device: &Device) -> Option<&str> {
    pf(device).and(device.pf_name.as_deref())
}

fn in_ranges(wanted: &[Ranged], name: &str, device: &Device) -> bool {
    wanted.iter().any(|ranged| ranged.name.eq_ignore_ascii_case(name) && ranged.has(device.number))
}

/// A device's PF, with its number on that.
fn numbered(pf: Option<&str>, device: &Device) -> String {
    match (pf, device.number) {
        (Some(pf), Some(number)) => format!("{pf}#{number}"),
        (Some(pf), None) => pf.to_owned(),
        (None, _) => "no PF here".to_owned(),
    }
}

fn vdpa_driver(device: &Device) -> Option<&str> {
    device.vdpa.as_ref()?.driver.as_deref()
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

    fn vf() -> Device {
        Device {
            id: "0000:3b:02.1".into(),
            kind: DeviceType::NetDevice,
            address: "0000:3b:02.1".parse().unwrap(),
            vendor: "8086".into(),
            device: "154c".into(),
            driver: Some("iavf".into()),
            parent_driver: None,
            numa_node: Some(0),
            acpi_index: Some("7".into()),
            aux_type: None,
            pf: "0000:3b:00.0".parse().unwrap(),
            pf_name: Some("ens1f0".into()),
            number: Some(5),
            can_have_vfs: false,
            netdevs: vec!["ens1f0v5".into()],
            link_type: Some("ether".into()),
            carrier: Some(true),
            pf_is_down: false,
            rdma: vec!["irdma5".into()],
            rdma_enabled: false,
            ddp_profile: Some("ICE COMMS Package".into()),
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
            (
                "ddpProfiles",
                Selector { ddp_profiles: texts(&["GTPv1-C/U", "ICE COMMS Package"]), ..selector() },
                Selector { ddp_profiles: texts(&["GTPv1-C/U"]), ..selector() },
            ),
            ("pKeys", selector(), Selector { p_keys: texts(&["0x7fff"]), ..selector() }),
            ("auxTypes", selector(), Selector { aux_types: texts(&["sf"]), ..selector() }),
            ("vdpaType", selector(), Selector { vdpa_type: Some(VdpaType::Vhost), ..selector() }),
            ("needVhostNet", Selector { need_vhost_net: true, is_rdma: true, ..selector() }, selector()),
        ];
        for (key, yes, no) in cases {
            assert_eq!(yes.reject(&vf()), None, "{key}");
            assert!(yes.takes(&vf()) && no.takes(&vf()) == (key == "needVhostNet"), "{key}");
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
        assert!(rejection.ends_with("the device has no PF here"), "{rejection}");
    }

    #[test]
    fn a_pf_is_no_vf_of_its_own() {
        let mut pf = vf();
        (pf.id, pf.address, pf.number) = (pf.pf.to_string().into(), pf.pf, None);
        pf.can_have_vfs = true;
        for selector in [
            Selector { pf_names: ranges(&["ens1f0"]), ..Selector::default() },
            Selector { root_devices: ranges(&["0000:3b:00.0"]), ..Selector::default() },
        ] {
            let rejection = selector.reject(&pf).unwrap().to_string();
            assert!(rejection.ends_with("the device has no PF here"), "{rejection}");
            pf.kind = DeviceType::AuxNetDevice;
            assert_eq!(selector.reject(&pf), None, "a scalable function stands on its PF");
            pf.kind = DeviceType::NetDevice;
            let plain = Device { can_have_vfs: false, ..pf.clone() };
            assert_eq!(selector.reject(&plain), None, "it stands for itself");
        }
    }

    #[test]
    fn a_scalable_function_has_two_drivers() {
        let sf =
            Device { driver: Some("mlx5_core.sf".into()), parent_driver: Some("mlx5_core".into()), ..vf() };
        for (driver, met) in [("mlx5_core.sf", true), ("mlx5_core", true), ("vfio-pci", false)] {
            let selector = Selector { drivers: texts(&[driver]), ..Selector::default() };
            assert_eq!(selector.reject(&sf).is_none(), met, "{driver}");
        }
    }

    #[test]
    fn rdma_and_vdpa() {
        let mut device = vf();
        device.rdma.clear();
        let selector = Selector { is_rdma: true, ..Selector::default() };
        assert_eq!(selector.reject(&device).unwrap().selector, "isRdma");
        device.rdma_enabled = true;
        assert_eq!(selector.reject(&device), None, "the RDMA device is in a container");
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
