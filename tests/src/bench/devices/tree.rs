//! A fake sysfs full of VFs, and its bare reading.

use std::fs::{File, read_dir};
use std::path::Path;

use anyhow::{Context as _, Result};
use host::sysfs::fake::FakeSysfs;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;

/// VFs of a PF.
pub(super) const VFS: usize = 128;
const PER_DEVICE: usize = 8;

/// Drivers of a VF of the first PF.
#[derive(Clone, Copy, Debug)]
pub(super) enum Driver {
    /// The one that the pool of network devices asks for.
    Netdev,
    /// One that no pool asks for.
    Other,
}

pub(super) struct Tree {
    fake: FakeSysfs,
    /// `bus/pci/devices`.
    bus: File,
}

fn pf(number: usize) -> String {
    format!("0000:{:02x}:00.0", number + 0x10)
}

impl Tree {
    /// A tree with `pfs` PFs. VFs with even numbers are network devices, the others bound to vfio-pci.
    pub(super) fn new(pfs: usize) -> Result<Self> {
        let fake = FakeSysfs::new();
        for number in 0..pfs {
            let numa_node = (number % 2).to_string();
            let physical = fake.pci(&pf(number)).driver("igb").sriov(u32::try_from(VFS)?);
            physical.attribute("numa_node", &numa_node).netdev(&format!("ens{number}f0"));
            for index in 0..VFS {
                let overall = number * VFS + index;
                let vf = fake.pci(&Self::vf(overall)).attribute("numa_node", &numa_node);
                let vf = vf.vf_of(&pf(number), u32::try_from(index)?).iommu_group(u32::try_from(overall)?);
                if index % 2 == 0 {
                    vf.driver("igbvf").netdev(&format!("ens{number}f0v{index}"));
                } else {
                    vf.driver("vfio-pci");
                }
            }
        }
        let bus = File::open(fake.root().join("bus/pci/devices"))?;
        Ok(Self { fake, bus })
    }

    pub(super) fn root(&self) -> &Path {
        self.fake.root()
    }

    /// The address of a VF, counted through all PFs.
    pub(super) fn vf(overall: usize) -> String {
        let (pf, index) = (overall / VFS, overall % VFS);
        format!("0000:{:02x}:{:02x}.{}", pf + 0x10, 1 + index / PER_DEVICE, index % PER_DEVICE)
    }

    /// The path of a VF's device in uevents.
    pub(super) fn devpath(overall: usize) -> String {
        format!("/devices/pci0000:00/{}", Self::vf(overall))
    }

    pub(super) fn bind(&self, overall: usize, driver: Driver) {
        let driver = match driver {
            Driver::Netdev => "igbvf",
            Driver::Other => "other",
        };
        self.fake.pci(&Self::vf(overall)).driver(driver);
    }

    /// Reads what there is to know of all functions; how many files that were.
    pub(super) fn read_all(&self) -> Result<u64> {
        let mut files = 0;
        for entry in read_dir(self.root().join("bus/pci/devices"))? {
            files += self.read(&entry?.file_name().to_string_lossy())?;
        }
        Ok(files)
    }

    /// The same of one VF.
    pub(super) fn read_one(&self, overall: usize) -> Result<u64> {
        self.read(&Self::vf(overall))
    }

    fn read(&self, address: &str) -> Result<u64> {
        const ATTRIBUTES: [&str; 5] = ["class", "vendor", "device", "numa_node", "acpi_index"];
        const LINKS: [&str; 3] = ["physfn", "driver", "iommu_group"];
        let mut files = 0;
        for name in ATTRIBUTES {
            files += self.attribute(&format!("{address}/{name}"))?;
        }
        for name in LINKS {
            files += self.link(&format!("{address}/{name}"))?;
        }
        let directory = self.root().join("bus/pci/devices").join(address);
        for netdev in read_dir(directory.join("net")).into_iter().flatten() {
            let netdev = format!("{address}/net/{}", netdev?.file_name().to_string_lossy());
            files += self.attribute(&format!("{netdev}/type"))? + self.link(&format!("{netdev}/master"))?;
        }
        if self.attribute(&format!("{address}/sriov_totalvfs"))? > 0 {
            for entry in read_dir(&directory)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if name.starts_with("virtfn") {
                    files += self.link(&format!("{address}/{name}"))?;
                }
            }
        }
        Ok(files)
    }

    /// 1 if there is such a file.
    fn attribute(&self, path: &str) -> Result<u64> {
        let mut page = [0; 4096];
        let read = openat(&self.bus, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .and_then(|file| nix::unistd::read(&file, &mut page));
        present(&read).with_context(|| format!("read {path}"))
    }

    /// 1 if there is such a link.
    fn link(&self, path: &str) -> Result<u64> {
        present(&readlinkat(&self.bus, path)).with_context(|| format!("read the link {path}"))
    }
}

fn present<T>(result: &nix::Result<T>) -> Result<u64> {
    match result {
        Ok(_) => Ok(1),
        Err(Errno::ENOENT) => Ok(0),
        Err(error) => Err((*error).into()),
    }
}
