//! Which devices of a pool go together best (`GetPreferredAllocation`).

use std::cell::RefCell;
use std::collections::BTreeMap;

use host::PciAddress;
use host::sysfs::{Position, Sysfs};

use crate::config::Placement;
use crate::device::Device;
use crate::pool::Pool;

/// How many devices of a set share a property.
#[derive(Default)]
struct Tally {
    groups: BTreeMap<u32, usize>,
    pfs: BTreeMap<PciAddress, usize>,
    nodes: BTreeMap<Option<u32>, usize>,
    total: usize,
}

impl Tally {
    fn add(&mut self, device: &Device) {
        if let Some(group) = device.iommu_group {
            *self.groups.entry(group).or_default() += 1;
        }
        *self.pfs.entry(device.pf).or_default() += 1;
        *self.nodes.entry(device.numa_node).or_default() += 1;
        self.total += 1;
    }

    fn remove(&mut self, device: &Device) {
        let group = device.iommu_group.and_then(|group| self.groups.get_mut(&group));
        let counts = [group, self.pfs.get_mut(&device.pf), self.nodes.get_mut(&device.numa_node)];
        for count in counts.into_iter().flatten() {
            *count -= 1;
        }
        self.total -= 1;
    }

    fn in_group(&self, device: &Device) -> usize {
        device.iommu_group.and_then(|group| self.groups.get(&group)).copied().unwrap_or(0)
    }

    fn on_pf(&self, device: &Device) -> usize {
        self.pfs.get(&device.pf).copied().unwrap_or(0)
    }

    fn on_node(&self, device: &Device) -> usize {
        self.nodes.get(&device.numa_node).copied().unwrap_or(0)
    }
}

/// How far devices are from the function that the pool wants them near to.
struct Nearness<'a> {
    sysfs: &'a Sysfs,
    wanted: Option<Position>,
    /// By PF: a VF stands beside its PF.
    known: RefCell<BTreeMap<PciAddress, usize>>,
}

impl<'a> Nearness<'a> {
    fn new(sysfs: &'a Sysfs, near: Option<PciAddress>) -> Self {
        let wanted = near.and_then(|near| sysfs.pci_device(near).and_then(|near| near.position()).ok());
        Self { sysfs, wanted, known: RefCell::default() }
    }

    /// The distance of a device; the same for all if nothing is wanted, or if that is not there.
    fn of(&self, device: &Device) -> usize {
        let Some(wanted) = &self.wanted else { return 0 };
        *self.known.borrow_mut().entry(device.pf).or_insert_with(|| {
            let position = self.sysfs.pci_device(device.pf).and_then(|pf| pf.position());
            position.map_or(usize::MAX, |position| position.distance(wanted))
        })
    }
}

impl Pool {
    /// Chooses `size` of the `available` devices, `required` ones first; fewer if there are not so many.
    ///
    /// Devices that share an IOMMU group go to one container whenever the choice allows it, because only one
    /// process can own a group. Then those come that are nearest to what the pool wants them near to. Beyond that the
    /// pool's placement decides, and the name where all else is equal.
    pub(crate) fn prefer(
        &self,
        available: &[String],
        required: &[String],
        size: usize,
        sysfs: &Sysfs,
    ) -> Vec<String> {
        let nearness = Nearness::new(sysfs, self.conf.near);
        let device = |id: &str| self.offers.get(id).and_then(|offer| offer.device.as_deref());
        let (mut chosen, mut taken) = (Vec::new(), Tally::default());
        let (mut free, mut left) = (BTreeMap::new(), Tally::default());
        for id in required {
            chosen.push(id.clone());
            device(id).inspect(|device| taken.add(device));
        }
        for id in available.iter().filter(|id| !required.contains(id)) {
            if free.insert(id, device(id)).is_none() {
                device(id).inspect(|device| left.add(device));
            }
        }
        while chosen.len() < size {
            let wanted = size - chosen.len();
            let cost = |device: &Option<&Device>| match device {
                Some(device) => {
                    let [group, rest @ ..] = cost(self.conf.placement, device, &taken, &left, wanted);
                    (group, nearness.of(device), rest)
                }
                None => (usize::MAX, usize::MAX, [usize::MAX; 3]),
            };
            let Some((&id, &device)) = free.iter().min_by_key(|(id, device)| (cost(device), **id)) else {
                break;
            };
            free.remove(id);
            chosen.push(id.clone());
            if let Some(device) = device {
                left.remove(device);
                taken.add(device);
            }
        }
        chosen
    }
}

/// How badly a device goes with those already taken: the first number counts most.
fn cost(placement: Placement, device: &Device, taken: &Tally, left: &Tally, wanted: usize) -> [usize; 4] {
    // To complete a group is best; to break one that is larger than what is wanted is worst.
    let group = match (taken.in_group(device), left.in_group(device)) {
        (0, members) if members > wanted => 2,
        (0, _) => 1,
        _ => 0,
    };
    let room = left.on_pf(device);
    match placement {
        Placement::Pack => {
            let elsewhere = usize::from(taken.total > 0 && taken.on_pf(device) == 0);
            let far = usize::from(taken.total > 0 && taken.on_node(device) == 0);
            // The fullest PF that still has room for all; failing that, the emptiest.
            let fit = if room >= wanted { room } else { usize::MAX - room };
            [group, elsewhere, far, fit]
        }
        Placement::Spread => [group, taken.on_pf(device), usize::MAX - room, 0],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use host::sysfs::fake::FakeSysfs;

    use super::*;
    use crate::allocations::Allocations;
    use crate::config::parse;
    use crate::discovery::DefaultRoutes;
    use crate::inventory::Inventory;
    use crate::pool::{Pool, sort};

    /// Two PFs, the first with two VFs and the second with three; `grouped` puts VFs into IOMMU group 1.
    fn pool(placement: &str, grouped: &[&str]) -> Pool {
        let fake = FakeSysfs::new();
        for (pf, vfs) in [("0000:01:00.0", 2), ("0000:02:00.0", 3)] {
            fake.pci(pf).driver("igb").sriov(7);
            for number in 0..vfs {
                let id = pf.replace("00.0", &format!("10.{number}"));
                let vf = fake.pci(&id).vf_of(pf, number).driver("igbvf");
                if grouped.contains(&id.as_str()) {
                    vf.iommu_group(1);
                }
            }
        }
        let text = format!(r#"{{"resourceList": [{{"resourceName": "a", "placement": "{placement}"}}]}}"#);
        let (conf, _) = parse(&text, "intel.com").unwrap();
        let devices = Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices();
        sort(&conf, &devices, &Allocations::default()).remove(0)
    }

    #[test]
    fn near_to_another_device() {
        let fake = FakeSysfs::new();
        // Behind one switch with the first NIC; the second is at another port of the root.
        fake.pci("0000:03:00.0").attribute("class", "0x030000");
        for (pf, vfs) in [("0000:01:00.0", 2), ("0000:02:00.0", 3)] {
            fake.pci(pf).driver("igb").sriov(7);
            for number in 0..vfs {
                fake.pci(&pf.replace("00.0", &format!("10.{number}"))).vf_of(pf, number).driver("igbvf");
            }
        }
        fake.behind("0000:00:01.0", &["0000:03:00.0", "0000:01:00.0"]);
        fake.behind("0000:00:02.0", &["0000:02:00.0"]);
        let devices = Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices();
        for (near, chosen) in [
            (r#", "near": "0000:03:00.0""#, "0000:01:10.0 0000:01:10.1 0000:02:10.0"),
            (r#", "near": "0000:02:00.0""#, "0000:02:10.0 0000:02:10.1 0000:02:10.2"),
            (r#", "near": "0000:07:00.0""#, "0000:02:10.0 0000:02:10.1 0000:02:10.2"),
            ("", "0000:02:10.0 0000:02:10.1 0000:02:10.2"),
        ] {
            let text = format!(r#"{{"resourceList": [{{"resourceName": "a"{near}}}]}}"#);
            let (conf, _) = parse(&text, "intel.com").unwrap();
            let pool = sort(&conf, &devices, &Allocations::default()).remove(0);
            let available: Vec<String> = pool.offers.keys().map(ToString::to_string).collect();
            assert_eq!(pool.prefer(&available, &[], 3, &fake.sysfs()).join(" "), chosen, "{near}");
        }
    }

    fn preferred(pool: &Pool, required: &[&str], size: usize) -> String {
        let available: Vec<String> = pool.offers.keys().rev().map(ToString::to_string).collect();
        let required: Vec<String> = required.iter().map(|&id| id.to_owned()).collect();
        let chosen = pool.prefer(&available, &required, size, &Sysfs::new("/nonexistent"));
        let short = |id: String| id.trim_start_matches("0000:0").replace(":10.", ".");
        chosen.into_iter().map(short).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn choices() {
        /// Placement, devices in one IOMMU group, required devices, size, and what is chosen.
        type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str], usize, &'a str);
        let cases: [Case<'_>; 9] = [
            ("pack", &[], &[], 1, "1.0"),
            ("pack", &[], &[], 2, "1.0 1.1"),
            ("pack", &[], &[], 3, "2.0 2.1 2.2"),
            ("pack", &[], &[], 4, "2.0 2.1 2.2 1.0"),
            ("pack", &[], &["0000:02:10.1"], 2, "2.1 2.0"),
            ("spread", &[], &[], 2, "2.0 1.0"),
            ("spread", &[], &["0000:02:10.1"], 3, "2.1 1.0 2.0"),
            ("pack", &["0000:01:10.1", "0000:02:10.2"], &["0000:01:10.1"], 2, "1.1 2.2"),
            ("pack", &["0000:01:10.0", "0000:01:10.1"], &[], 1, "2.0"),
        ];
        for (placement, grouped, required, size, expected) in cases {
            let pool = pool(placement, grouped);
            assert_eq!(
                preferred(&pool, required, size),
                expected,
                "{placement} {grouped:?} {required:?} {size}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn the_answer_is_what_kubelet_asked_for(
            available in proptest::collection::btree_set(0u32..8, 0..8),
            required: usize,
            size in 0usize..10,
        ) {
            static POOL: LazyLock<Pool> = LazyLock::new(|| pool("pack", &[]));
            let available: Vec<String> = available.iter().map(|n| format!("0000:02:10.{n}")).collect();
            let required = &available[..required.checked_rem(available.len() + 1).unwrap_or(0).min(size)];
            let chosen = POOL.prefer(&available, required, size, &Sysfs::new("/nonexistent"));
            proptest::prop_assert_eq!(chosen.len(), size.min(available.len()));
            proptest::prop_assert!(required.iter().all(|id| chosen.contains(id)));
            proptest::prop_assert!(chosen.iter().all(|id| available.contains(id)));
            let mut unique = chosen.clone();
            unique.sort();
            unique.dedup();
            proptest::prop_assert_eq!(unique.len(), chosen.len());
        }
    }
}
