//! Makes a node ready: programs installed, networks configured, VFs shared out, the device plugin running.
//!
//! Everything happens in the places and formats in which administrators do it for the programs under test.

mod access;
mod device_plugin;
mod multus_daemon;
mod network;
mod programs;
mod vfio;
mod whereabouts;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use host::{PciAddress, Sysfs};

pub use access::{MULTUS, WHEREABOUTS, kubeconfig};
pub use device_plugin::{DevicePlugin, NETDEVICE, VFIO, write_config};
pub use multus_daemon::MultusDaemon;
pub use network::{BRIDGE, KUBECONFIG, PRIMARY, in_front, other_primary, wait_in_front};

/// What programs need to reach the API server, and the name of the node there.
#[derive(Debug)]
pub struct Access {
    /// Text of Multus' kubeconfig.
    pub multus: String,
    /// Text of whereabouts' kubeconfig.
    pub whereabouts: String,
    /// The node.
    pub node: String,
}

/// Where the parts of a node come from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Folder of the programs under test.
    pub programs: PathBuf,
    /// Folder of the reference CNI plugins.
    pub reference: PathBuf,
    /// How many VFs are bound to vfio-pci.
    pub vfio: usize,
    /// Whether Multus is a daemon with a shim.
    pub thick: bool,
}

/// What a prepared node has.
#[derive(Debug)]
pub struct Prepared {
    /// The running device plugin.
    pub device_plugin: DevicePlugin,
    /// The running Multus daemon, in thick mode.
    pub multus_daemon: Option<MultusDaemon>,
    /// VFs with a kernel driver.
    pub netdevices: Vec<PciAddress>,
    /// VFs that are bound to vfio-pci.
    pub vfio: Vec<PciAddress>,
}

impl Prepared {
    /// Shares the VFs out again after they have been made anew.
    ///
    /// # Errors
    /// There are fewer than before, or the kernel refuses.
    pub fn share_out(&self, sysfs: &Sysfs) -> Result<()> {
        let split = vfio::split(sysfs, self.vfio.len())?;
        ensure!(
            (&split.netdevices, &split.vfio) == (&self.netdevices, &self.vfio),
            "the VFs are others than before: {split:?}"
        );
        Ok(())
    }
}

/// Prepares the node and tells what it does through `tell`.
///
/// # Errors
/// Something is missing or refused; the text says what to do.
pub fn prepare(
    sources: &Sources,
    sysfs: &Sysfs,
    access: &Access,
    tell: &mut dyn FnMut(String),
) -> Result<Prepared> {
    programs::install(sources, Path::new("/opt/cni/bin"))?;
    tell(format!(
        "/opt/cni/bin has the plugins from {}, and the reference plugins",
        sources.programs.display()
    ));
    whereabouts::configure(&access.whereabouts, &access.node)?;
    let multus_daemon = if sources.thick {
        network::configure_thick(&access.multus)?;
        let daemon = MultusDaemon::start(&sources.programs, &access.node)?;
        tell(format!("multus-daemon started, its log is {}", daemon.log().display()));
        Some(daemon)
    } else {
        network::configure(&access.multus)?;
        None
    };
    tell(format!("Multus stands in front of the primary network {PRIMARY} (bridge {BRIDGE})"));
    let split = vfio::split(sysfs, sources.vfio)?;
    tell(format!(
        "{} VFs with a network interface, {} bound to vfio-pci",
        split.netdevices.len(),
        split.vfio.len()
    ));
    reserve_hugepages()?;
    let device_plugin = DevicePlugin::start(&sources.programs, &split.drivers)?;
    tell(format!("device plugin started, its log is {}", device_plugin.log().display()));
    Ok(Prepared { device_plugin, multus_daemon, netdevices: split.netdevices, vfio: split.vfio })
}

/// Reserves at least 128 MiB of huge pages, which DPDK needs.
fn reserve_hugepages() -> Result<()> {
    const PAGES: u64 = 64;
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    let read = || -> Result<u64> { Ok(std::fs::read_to_string(path)?.trim().parse()?) };
    let reserve = || -> Result<()> {
        if read()? < PAGES {
            std::fs::write(path, PAGES.to_string())?;
        }
        let got = read()?;
        ensure!(got >= PAGES, "only {got} pages of 2 MiB could be reserved; the node needs more free memory");
        Ok(())
    };
    reserve().with_context(|| format!("reserve {PAGES} huge pages in {path}"))
}
