//! Devices that the IOMMU cannot tell apart go to one container.
//!
//! A VFIO group has one owner (`Documentation/driver-api/vfio.rst`). Where the platform puts several functions into one
//! group, as without ACS, the second container that opens it fails when it starts, with an error that names neither
//! the group nor the first one. So it is refused at Allocate.

use host::PciAddress;
use host::sysfs::{Sysfs, SysfsError};

use crate::allocations::{Allocations, Holder};
use crate::pool::Pool;

/// A function that shares the IOMMU group of a device that a container asks for, and that it does not ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Companion {
    id: String,
    group: u32,
    other: PciAddress,
}

/// A group that two containers would share.
#[derive(Debug, thiserror::Error)]
#[error(
    "device {id} shares IOMMU group {group} with {other}, which {holder} holds, and only one container can open a \
     group; let one container ask for all devices of the group, or enable ACS on the platform"
)]
pub(crate) struct Split {
    id: String,
    group: u32,
    other: PciAddress,
    holder: Holder,
}

/// Everything that shares an IOMMU group with those of `ids` that a VFIO driver drives.
pub(crate) fn companions(pool: &Pool, ids: &[String], sysfs: &Sysfs) -> Result<Vec<Companion>, SysfsError> {
    let mut companions = Vec::new();
    for id in ids {
        // An unknown device is refused elsewhere.
        let Some(device) = pool.offers.get(id.as_str()).and_then(|offer| offer.device.as_ref()) else {
            continue;
        };
        let function = sysfs.pci_device(device.address)?;
        if function.driver()?.as_deref() != Some("vfio-pci") && function.vfio_dev()?.is_none() {
            continue;
        }
        let Some(group) = function.iommu_group()? else { continue };
        for other in function.iommu_group_devices()? {
            if !ids.contains(&other.to_string()) {
                companions.push(Companion { id: id.clone(), group: group.id, other });
            }
        }
    }
    Ok(companions)
}

/// The first companion that another container holds.
pub(crate) fn split(companions: Vec<Companion>, allocations: &Allocations) -> Result<(), Split> {
    for Companion { id, group, other } in companions {
        if let Some(holder) = allocations.holder(&other.to_string()) {
            return Err(Split { id, group, other, holder: holder.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use host::sysfs::fake::FakeSysfs;

    use super::*;
    use crate::config::parse;
    use crate::discovery::DefaultRoutes;
    use crate::inventory::Inventory;
    use crate::pool::sort;

    #[test]
    fn a_group_is_never_split() {
        let fake = FakeSysfs::new();
        for (id, driver, group) in [
            ("0000:3b:10.0", "vfio-pci", 5),
            ("0000:3b:10.1", "vfio-pci", 5),
            ("0000:3b:10.2", "vfio-pci", 6),
            ("0000:3b:10.3", "igbvf", 5),
        ] {
            fake.pci(id).driver(driver).iommu_group(group);
        }
        let (conf, _) = parse(r#"{"resourceList": [{"resourceName": "a"}]}"#, "intel.com").unwrap();
        let devices = Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices();
        let pool = sort(&conf, &devices, &Allocations::default()).remove(0);
        // What is asked for, what another container holds, and which device stands in the way.
        for (asked, held, blocked) in [
            (&["10.0"][..], &[][..], None),
            (&["10.0"], &["10.1"], Some("10.1")),
            (&["10.0", "10.1"], &["10.2"], None),
            (&["10.0", "10.1"], &["10.3"], Some("10.3")),
            (&["10.2"], &["10.0", "10.1"], None),
            (&["10.3"], &["10.0"], None),
            (&["10.7"], &["10.0"], None),
        ] {
            let full = |short: &&str| format!("0000:3b:{short}");
            let asked: Vec<String> = asked.iter().map(full).collect();
            let held: Vec<String> = held.iter().map(full).collect();
            let held: Vec<&str> = held.iter().map(String::as_str).collect();
            let companions = companions(&pool, &asked, &fake.sysfs()).unwrap();
            let split = split(companions, &Allocations::with("intel.com/a", &held));
            let found = split.err().map(|split| split.other.to_string());
            assert_eq!(found, blocked.as_ref().map(full), "{asked:?} while {held:?} are held");
        }
    }
}
