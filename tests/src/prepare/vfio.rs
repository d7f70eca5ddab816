//! Shares out the VFs: most keep their kernel driver, the last ones go to vfio-pci.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use host::sysfs::PciDevice;
use host::{PciAddress, Sysfs};

/// Driver of VFs that belong to a program.
pub(super) const DRIVER: &str = "vfio-pci";

/// Who has which VF.
#[derive(Debug)]
pub(super) struct Split {
    /// VFs with a kernel driver.
    pub(super) netdevices: Vec<PciAddress>,
    /// VFs with [`DRIVER`].
    pub(super) vfio: Vec<PciAddress>,
    /// The kernel drivers of the former.
    pub(super) drivers: Vec<String>,
}

/// Binds the last `count` VFs to vfio-pci and all others to the driver that the kernel has for them.
///
/// # Errors
/// There are not enough VFs, or the kernel refuses.
pub(super) fn split(sysfs: &Sysfs, count: usize) -> Result<Split> {
    let mut vfs: Vec<PciDevice> = Vec::new();
    for device in sysfs.pci_devices()? {
        if device.physfn()?.is_some() {
            vfs.push(device);
        }
    }
    ensure!(
        vfs.len() > count,
        "{} VFs found and {count} wanted for vfio-pci alone; write a number to sriov_numvfs of a PF",
        vfs.len()
    );
    let (netdevices, vfio) = vfs.split_at(vfs.len() - count);
    if count > 0 {
        let loaded = Command::new("modprobe").arg(DRIVER).output().context("run modprobe")?;
        ensure!(
            loaded.status.success(),
            "modprobe {DRIVER}: {}",
            String::from_utf8_lossy(&loaded.stderr).trim()
        );
    }
    let mut drivers = BTreeSet::new();
    for device in netdevices {
        if device.driver()?.as_deref() == Some(DRIVER) {
            device.bind_default()?;
        }
        drivers.insert(driver(device)?);
    }
    for device in vfio {
        if device.driver()?.as_deref() != Some(DRIVER) {
            device.bind(DRIVER)?;
        }
    }
    let addresses = |devices: &[PciDevice]| devices.iter().map(PciDevice::address).collect();
    Ok(Split {
        netdevices: addresses(netdevices),
        vfio: addresses(vfio),
        drivers: drivers.into_iter().collect(),
    })
}

/// The driver of a VF, once it has its interface.
fn driver(device: &PciDevice) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let (Some(driver), Some(_)) = (device.driver()?, device.main_netdev()?) {
            return Ok(driver);
        }
        if Instant::now() > deadline {
            bail!("VF {} has no network interface: is the module of its driver loaded?", device.address());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
