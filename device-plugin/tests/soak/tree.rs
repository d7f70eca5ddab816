//! The fake sysfs and what happens in it, each time with the uevent that the kernel would send.

use std::fs;

use host::sysfs::fake::FakeSysfs;

use crate::random::Random;

const PFS: [(&str, &str); 2] = [("0000:3b:00.0", "ens1f0"), ("0000:3c:00.0", "ens2f0")];
/// A function with the one network device of the namespace, so that link events concern a device.
const LOOPBACK: &str = "0000:3d:00.0";
const VFS: usize = 32;
const DRIVERS: [&str; 3] = ["igbvf", "vfio-pci", "other"];

/// A uevent: action, path of the device, subsystem.
pub(crate) type Event = (&'static str, String, &'static str);

pub(crate) struct Tree {
    pub(crate) fake: FakeSysfs,
    /// Whether a VF is there.
    vfs: Vec<bool>,
    /// Whether the PFs have other names than at first.
    renamed: [bool; 2],
}

fn vf(number: usize) -> String {
    let (pf, index) = (number / VFS, number % VFS);
    format!("0000:{:x}:{:x}.{}", 0x3b + pf, 0x10 + index / 8, index % 8)
}

fn devpath(address: &str) -> String {
    format!("/devices/pci0000:00/{address}")
}

impl Tree {
    pub(crate) fn new() -> Self {
        let fake = FakeSysfs::new();
        for (address, name) in PFS {
            fake.pci(address).driver("igb").netdev(name).sriov(32);
        }
        fake.pci(LOOPBACK).driver("loop").netdev("lo");
        let mut tree = Self { fake, vfs: vec![false; PFS.len() * VFS], renamed: [false; 2] };
        for number in 0..tree.vfs.len() {
            tree.add(number, DRIVERS[number % 2]);
        }
        tree
    }

    fn add(&mut self, number: usize, driver: &str) {
        let (pf, index) = (PFS[number / VFS].0, u32::try_from(number % VFS).unwrap());
        let pci = self.fake.pci(&vf(number)).vf_of(pf, index).driver(driver);
        pci.iommu_group(u32::try_from(number).unwrap());
        self.vfs[number] = true;
    }

    /// A VF comes, goes or changes its driver.
    pub(crate) fn change_vf(&mut self, random: &mut Random) -> Event {
        let number = random.below(self.vfs.len());
        let address = vf(number);
        if self.vfs[number] && random.below(3) == 0 {
            self.fake.remove(&address);
            self.vfs[number] = false;
            return ("remove", devpath(&address), "pci");
        }
        self.add(number, DRIVERS[random.below(DRIVERS.len())]);
        ("bind", devpath(&address), "pci")
    }

    /// All VFs of a PF go, or those that are missing come.
    pub(crate) fn change_numvfs(&mut self, random: &mut Random) -> Vec<Event> {
        let pf = random.below(PFS.len());
        let there = random.below(2) == 0;
        let mut events = Vec::new();
        for number in
            (pf * VFS..(pf + 1) * VFS).filter(|number| self.vfs[*number] != there).collect::<Vec<_>>()
        {
            if there {
                self.add(number, DRIVERS[number % 2]);
                events.push(("add", devpath(&vf(number)), "pci"));
                events.push(("bind", devpath(&vf(number)), "pci"));
            } else {
                self.fake.remove(&vf(number));
                self.vfs[number] = false;
                events.push(("unbind", devpath(&vf(number)), "pci"));
                events.push(("remove", devpath(&vf(number)), "pci"));
            }
        }
        events
    }

    fn pf_name(&self, pf: usize) -> String {
        let name = PFS[pf].1;
        if self.renamed[pf] { format!("{name}x") } else { name.to_owned() }
    }

    pub(crate) fn change_carrier(&mut self, random: &mut Random) -> Event {
        let pf = random.below(PFS.len());
        let carrier = if random.below(2) == 0 { "1" } else { "0" };
        let (address, name) = (PFS[pf].0, self.pf_name(pf));
        self.fake.pci(address).net_attribute(&name, "carrier", carrier);
        ("change", format!("{}/net/{name}", devpath(address)), "net")
    }

    pub(crate) fn rename_pf(&mut self, random: &mut Random) -> Event {
        let pf = random.below(PFS.len());
        let (address, old) = (PFS[pf].0, self.pf_name(pf));
        let net = self.fake.root().join("devices/pci0000:00").join(address).join("net").join(&old);
        fs::remove_dir_all(net).unwrap();
        fs::remove_file(self.fake.root().join("class/net").join(&old)).unwrap();
        self.renamed[pf] = !self.renamed[pf];
        let name = self.pf_name(pf);
        self.fake.pci(address).netdev(&name);
        ("move", format!("{}/net/{name}", devpath(address)), "net")
    }

    /// Events that concern nobody: of pods' interfaces, of disks, of functions that went before anyone looked.
    pub(crate) fn foreign(number: usize) -> Event {
        match number % 3 {
            0 => ("add", format!("/devices/virtual/net/veth{number}"), "net"),
            1 => ("change", format!("/devices/pci0000:00/0000:00:1f.2/ata1/block/sd{number}"), "block"),
            _ => ("remove", devpath(&format!("0000:7f:{:02x}.0", number % 32)), "pci"),
        }
    }
}
