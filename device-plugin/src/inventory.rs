//! All devices of the machine, kept true function by function.
//!
//! What is known of a device comes from its function, from the PF of that function, and from the default routes.
//! [`Inventory::renewed`] reads again what an event can have changed, and so ends where a look at everything ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use host::PciAddress;
use host::sysfs::{Sysfs, SysfsError};

use crate::device::Device;
use crate::discovery::{self, Carriers, DefaultRoutes, PhysicalFunction, PhysicalFunctions, Reader};

/// How much of the machine may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    Everything,
    /// These functions, and what takes its facts from them.
    Functions(BTreeSet<PciAddress>),
}

impl Default for Scope {
    fn default() -> Self {
        Self::Functions(BTreeSet::new())
    }
}

impl Scope {
    /// Widens it by one function.
    pub(crate) fn add(&mut self, function: PciAddress) {
        if let Self::Functions(functions) = self {
            functions.insert(function);
        }
    }
}

/// The devices, and what they have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inventory {
    carriers: Carriers,
    physical: PhysicalFunctions,
    /// Of each function that has any.
    devices: BTreeMap<PciAddress, Vec<Arc<Device>>>,
}

impl Inventory {
    /// Looks at everything.
    ///
    /// # Errors
    /// A bus cannot be listed. Single devices that cannot be read are left out.
    pub(crate) fn read(sysfs: &Sysfs, default_routes: &DefaultRoutes) -> Result<Self, SysfsError> {
        Self::default().read_again(sysfs, discovery::carriers(sysfs, default_routes)?)
    }

    /// Looks at everything, and keeps the devices that are as they were.
    fn read_again(&self, sysfs: &Sysfs, carriers: Carriers) -> Result<Self, SysfsError> {
        let mut reader = Reader::of_everything(sysfs, &carriers)?;
        let mut devices = BTreeMap::new();
        for function in sysfs.pci_addresses()? {
            let found = reader.devices(function);
            if !found.is_empty() {
                devices.insert(function, self.kept(function, found));
            }
        }
        Ok(Self { physical: reader.into_physical(), carriers, devices })
    }

    /// The devices that were `found`; where one is as it was, the one that was: whoever compares them sees that at once.
    fn kept(&self, function: PciAddress, mut found: Vec<Arc<Device>>) -> Vec<Arc<Device>> {
        let known = self.devices.get(&function).map_or(&[][..], Vec::as_slice);
        for device in &mut found {
            if let Some(same) = known.iter().find(|known| *known == device) {
                *device = same.clone();
            }
        }
        found
    }

    /// Looks again at what may have changed.
    ///
    /// # Errors
    /// As [`Inventory::read`].
    pub(crate) fn renewed(
        &self,
        sysfs: &Sysfs,
        default_routes: &DefaultRoutes,
        scope: &Scope,
    ) -> Result<Self, SysfsError> {
        let carriers = discovery::carriers(sysfs, default_routes)?;
        match scope {
            // A route that moves changes devices that no event names.
            Scope::Functions(functions) if carriers == self.carriers => {
                self.clone().look_at(sysfs, functions.clone())
            }
            _ => self.read_again(sysfs, carriers),
        }
    }

    /// Every device, by PCI address; auxiliary devices after their function, by name.
    pub(crate) fn devices(&self) -> Vec<Arc<Device>> {
        self.devices.values().flatten().cloned().collect()
    }

    fn look_at(mut self, sysfs: &Sysfs, touched: BTreeSet<PciAddress>) -> Result<Self, SysfsError> {
        let mut physical = BTreeMap::new();
        for function in self.physical_of(sysfs, &touched) {
            physical.insert(function, discovery::physical(sysfs, function));
        }
        let reach = self.reach(touched, &physical);
        for (function, found) in physical {
            match found {
                Some(found) => drop(self.physical.insert(function, found)),
                None => drop(self.physical.remove(&function)),
            }
        }
        let mut reader = Reader::new(sysfs, &self.carriers, std::mem::take(&mut self.physical))?;
        let found: Vec<_> = reach.into_iter().map(|function| (function, reader.devices(function))).collect();
        self.physical = reader.into_physical();
        for (function, devices) in found {
            match self.kept(function, devices) {
                devices if devices.is_empty() => drop(self.devices.remove(&function)),
                devices => drop(self.devices.insert(function, devices)),
            }
        }
        Ok(self)
    }

    /// The PFs of `touched`, as they were and as they are; functions that are no VFs stand for themselves.
    fn physical_of(&self, sysfs: &Sysfs, touched: &BTreeSet<PciAddress>) -> BTreeSet<PciAddress> {
        let before = |function: &PciAddress| self.devices.get(function)?.first().map(|device| device.pf);
        let now = |function: &PciAddress| {
            let pf = sysfs.pci_device(*function).and_then(|function| function.physfn());
            pf.ok().flatten().map_or(*function, |pf| pf.address())
        };
        touched.iter().flat_map(|function| before(function).into_iter().chain([now(function)])).collect()
    }

    /// All functions with facts that can have changed, if events named `touched`, and `physical` is what their PFs are
    /// now: a PF that changed takes its VFs along.
    fn reach(
        &self,
        mut touched: BTreeSet<PciAddress>,
        physical: &BTreeMap<PciAddress, Option<Arc<PhysicalFunction>>>,
    ) -> BTreeSet<PciAddress> {
        let changed: BTreeSet<PciAddress> = physical
            .iter()
            .filter(|(pf, now)| touched.contains(pf) || self.physical.get(pf) != now.as_ref())
            .map(|(pf, _)| *pf)
            .collect();
        let now = physical.iter().filter(|(pf, _)| changed.contains(pf)).filter_map(|(_, now)| now.as_ref());
        touched.extend(now.flat_map(|pf| pf.vfs.keys()));
        if !changed.is_empty() {
            let is_of_changed =
                |devices: &[Arc<Device>]| devices.iter().any(|device| changed.contains(&device.pf));
            let before = self.devices.iter().filter(|(_, devices)| is_of_changed(devices));
            touched.extend(before.map(|(function, _)| function));
        }
        touched.extend(changed);
        touched
    }
}

#[cfg(test)]
mod tests;
