//! A VF as it stands now: its PF, its driver, its interface.

use std::time::Duration;

use host::netlink::{Link, VfOption, VfSetting, VfSettings};
use host::sysfs::{PciDevice, SysfsError};
use host::{Netlink, Netns, PciAddress, Sysfs};

use crate::error::Error;
use crate::machine::Machine;
use crate::netdev::wait_for;

/// Userspace drivers that make neither a `vfio-dev` nor a `uio` directory before Linux 6.1.
const USERSPACE_DRIVERS: [&str; 2] = ["uio_pci_generic", "igb_uio"];

/// How long a driver gets until a setting that it accepted reads back.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// A VF.
#[derive(Debug)]
pub(crate) struct Vf {
    device: PciDevice,
    /// The driver bound to it.
    pub(crate) driver: Option<String>,
    /// Which life of the VF this is.
    pub(crate) incarnation: u64,
    /// Its PF; `None` in a virtual machine, and when the PF's interface is in another namespace.
    pub(crate) pf: Option<Pf>,
}

/// The PF of a VF.
#[derive(Debug)]
pub(crate) struct Pf {
    /// Interface name.
    pub(crate) name: String,
    /// Interface index.
    pub(crate) index: u32,
    /// MTU of its interface, in bytes.
    pub(crate) mtu: u32,
    /// Driver.
    pub(crate) driver: String,
    /// The VF's number on it.
    pub(crate) vf: u32,
    /// What it said of the VF when it was looked up; `None` for drivers that report nothing.
    reported: Option<VfSettings>,
}

impl Vf {
    /// The VF at `address`; `None` when there is no such device (any more).
    pub(crate) async fn find(machine: &Machine, address: PciAddress) -> Result<Option<Self>, Error> {
        let sysfs = |source| Error::Sysfs { device: address, source };
        let device = match machine.sysfs.pci_device(address) {
            Ok(device) => device,
            Err(SysfsError::NoSuchDevice { .. }) => return Ok(None),
            Err(error) => return Err(sysfs(error)),
        };
        let Ok(incarnation) = host::incarnation(&device) else { return Ok(None) };
        let driver = device.driver().map_err(sysfs)?;
        let pf = find_pf(machine, &device).await?;
        Ok(Some(Self { device, driver, incarnation, pf }))
    }

    /// Refuses an address that is not a VF's, looking only at sysfs.
    pub(crate) fn refuse_others(machine: &Machine, address: PciAddress) -> Result<(), Error> {
        let sysfs = |source| Error::Sysfs { device: address, source };
        let device = match machine.sysfs.pci_device(address) {
            Err(SysfsError::NoSuchDevice { .. }) => return Err(gone(address)),
            found => found.map_err(sysfs)?,
        };
        if device.total_vfs().map_err(sysfs)?.is_some() {
            let reason = "is a physical function; deviceID must name one of its VFs".to_owned();
            return Err(Error::Device { device: address, reason });
        }
        Ok(())
    }

    /// The VF at `address`, which there must be.
    pub(crate) async fn require(machine: &Machine, address: PciAddress) -> Result<Self, Error> {
        Self::find(machine, address).await?.ok_or_else(|| gone(address))
    }

    pub(crate) fn address(&self) -> PciAddress {
        self.device.address()
    }

    /// The driver, for messages.
    pub(crate) fn driver_name(&self) -> &str {
        self.driver.as_deref().unwrap_or("none")
    }

    /// The driver that gives the VF to a program in user space, if it is bound to such a one.
    pub(crate) fn userspace_driver(&self) -> Result<Option<String>, Error> {
        let Some(driver) = &self.driver else { return Ok(None) };
        let sysfs = |source| Error::Sysfs { device: self.address(), source };
        let is_userspace = self.device.vfio_dev().map_err(sysfs)?.is_some()
            || self.device.uio().map_err(sysfs)?.is_some()
            || driver.contains("vfio")
            || USERSPACE_DRIVERS.contains(&driver.as_str());
        Ok(is_userspace.then(|| driver.clone()))
    }

    /// What the PF reported about the VF when it was found, which is as good as [`Vf::settings`] as long as nothing was
    /// changed.
    pub(crate) fn settings_found(&self) -> Option<&VfSettings> {
        self.pf.as_ref()?.reported.as_ref()
    }

    /// What the PF reports about the VF now; `None` without a PF and for drivers that report nothing.
    pub(crate) async fn settings(&self, machine: &Machine) -> Result<Option<VfSettings>, Error> {
        let Some(pf) = &self.pf else { return Ok(None) };
        Ok(of_number(pf.vf, machine.netlink.vfs(pf.index).await?))
    }

    /// Makes a setting through the PF.
    pub(crate) async fn set(&self, machine: &Machine, setting: VfSetting) -> Result<(), Error> {
        let Some(pf) = &self.pf else {
            return Err(Error::NoPf { device: self.address(), option: setting.to_string() });
        };
        machine.netlink.set_vf(pf.index, pf.vf, setting).await.map_err(|cause| Error::Setting {
            setting,
            place: format!("VF {} ({}) of PF {}, driver {}", pf.vf, self.address(), pf.name, pf.driver),
            cause,
        })
    }

    /// Sees that settings that were made read back, as with some drivers they do only after a while.
    pub(crate) async fn await_settings(
        &self,
        machine: &Machine,
        settings: &[VfSetting],
    ) -> Result<(), Error> {
        let differing = async || -> Result<Option<Error>, Error> {
            let Some(reported) = self.settings(machine).await? else { return Ok(None) };
            Ok(settings.iter().find_map(|setting| self.difference(&reported, *setting)))
        };
        let Some(mut difference) = differing().await? else { return Ok(()) };
        let settled = wait_for(SETTLE_LIMIT, async || match differing().await? {
            None => Ok(Some(())),
            Some(remaining) => {
                difference = remaining;
                Ok(None)
            }
        });
        settled.await?.ok_or(difference)
    }

    /// How a setting differs from what the PF reports. Only what drivers report exactly is compared: rates
    /// are rounded, and not every driver knows trust or link state.
    fn difference(&self, reported: &VfSettings, wanted: VfSetting) -> Option<Error> {
        let option = wanted.option();
        let what = match option {
            VfOption::Mac => "administrative MAC",
            VfOption::Vlan => "VLAN",
            VfOption::Spoofchk => "spoofchk",
            VfOption::Trust | VfOption::LinkState | VfOption::Rate => return None,
        };
        let found = reported.get(option).filter(|found| *found != wanted)?;
        let (found, wanted) = (found.to_string(), wanted.to_string());
        Some(Error::Differs { device: self.address(), what, found, wanted })
    }

    /// The VF's interface in the namespace `netns`, which `netlink` is connected to.
    pub(crate) async fn link_in(
        &self,
        machine: &Machine,
        netns: &Netns,
        netlink: &Netlink,
    ) -> Result<Option<Link>, Error> {
        let links = netlink.links().await?;
        let parent = self.address().to_string();
        if let Some(link) = links.iter().find(|link| link.parent_dev.as_ref() == Some(&parent)) {
            return Ok(Some(link.clone()));
        }
        if machine.names_parents().await? {
            return Ok(None);
        }
        // A kernel before 5.14 does not name the device behind an interface; sysfs does, as seen from
        // inside the namespace.
        let name = if netns.id() == machine.netns.id() {
            self.first_netdev(&machine.sysfs)?
        } else {
            netns.run_with_sysfs(|| self.first_netdev(&Sysfs::default()))??
        };
        Ok(links.into_iter().find(|link| Some(&link.name) == name.as_ref()))
    }

    /// The VF's interface in our own namespace, as far as sysfs shows it there. It asks for one interface
    /// instead of all, of which a node may have thousands.
    pub(crate) async fn shown_here(&self, machine: &Machine) -> Result<Option<Link>, Error> {
        let Some(name) = self.first_netdev(&machine.sysfs)? else { return Ok(None) };
        let link = machine.netlink.link_by_name(&name).await?;
        // The sysfs that is mounted may be of another namespace, where the name is another interface's.
        Ok(link.filter(|link| match &link.parent_dev {
            Some(parent) => *parent == self.address().to_string(),
            None => link.kind.is_none(),
        }))
    }

    /// The VF's interface in our own namespace.
    pub(crate) async fn link_here(&self, machine: &Machine) -> Result<Option<Link>, Error> {
        match self.shown_here(machine).await? {
            Some(link) => Ok(Some(link)),
            None => self.link_in(machine, &machine.netns, &machine.netlink).await,
        }
    }

    fn first_netdev(&self, sysfs: &Sysfs) -> Result<Option<String>, Error> {
        let device = self.address();
        let netdevs = sysfs.pci_device(device).and_then(|device| device.netdevs());
        let netdevs = netdevs.map_err(|source| Error::Sysfs { device, source })?;
        Ok(netdevs.first().map(|netdev| netdev.name().to_owned()))
    }
}

fn gone(device: PciAddress) -> Error {
    let reason = "does not exist: failed to get VF information; were the VFs made anew after the device plugin saw them?";
    Error::Device { device, reason: reason.to_owned() }
}

async fn find_pf(machine: &Machine, vf: &PciDevice) -> Result<Option<Pf>, Error> {
    let sysfs = |source| Error::Sysfs { device: vf.address(), source };
    let Some(pf) = vf.physfn().map_err(sysfs)? else { return Ok(None) };
    let Some(number) = vf.vf_index().map_err(sysfs)? else { return Ok(None) };
    let Some(netdev) = pf.main_netdev().map_err(sysfs)? else { return Ok(None) };
    let name = netdev.name().to_owned();
    let Some((link, vfs)) = machine.netlink.pf(&name).await? else { return Ok(None) };
    let driver = pf.driver().map_err(sysfs)?.unwrap_or_default();
    let reported = of_number(number, vfs);
    Ok(Some(Pf { name, index: link.index, mtu: link.mtu, driver, vf: number, reported }))
}

fn of_number(vf: u32, all: Vec<(u32, VfSettings)>) -> Option<VfSettings> {
    all.into_iter().find(|(number, _)| *number == vf).map(|(_, settings)| settings)
}

#[cfg(test)]
mod tests {
    use host::sysfs::fake::FakeSysfs;

    use super::*;

    #[test]
    fn drivers_for_user_space_are_known_by_what_they_make() {
        let address: PciAddress = "0000:3b:02.1".parse().unwrap();
        for (driver, made, is_userspace) in [
            ("vfio-pci", None, true),
            ("mlx5_vfio_pci", Some("vfio-dev/vfio7/uevent"), true),
            ("of-the-future", Some("vfio-dev/vfio7/uevent"), true),
            ("of-the-future", Some("uio/uio0/name"), true),
            // Before Linux 6.1 there is no such directory.
            ("mlx5-vfio-pci", None, true),
            ("igb_uio", None, true),
            ("iavf", None, false),
            ("mlx5_core", Some("infiniband/mlx5_2/node_type"), false),
        ] {
            let fake = FakeSysfs::new();
            let function = fake.pci(&address.to_string()).driver(driver);
            if let Some(made) = made {
                function.attribute(made, "");
            }
            let device = fake.sysfs().pci_device(address).unwrap();
            let bound = device.driver().unwrap();
            let vf = Vf { device, driver: bound, incarnation: 0, pf: None };
            let found = vf.userspace_driver().unwrap();
            assert_eq!(found.as_deref(), is_userspace.then_some(driver), "{driver} {made:?}");
        }
    }
}
