//! The machine a call works on: its sysfs, its netlink, the namespace and the boot we are in.

use std::cell::OnceCell;
use std::time::{Duration, SystemTime};

use host::{Netlink, Netns, Sysfs};

use crate::error::Error;

/// Everything of the machine that a call needs. Opened once per call.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) sysfs: Sysfs,
    /// Our own namespace, where VFs live while no container has them.
    pub(crate) netns: Netns,
    /// Netlink in our own namespace.
    pub(crate) netlink: Netlink,
    pub(crate) boot_id: String,
    names_parents: OnceCell<bool>,
}

impl Machine {
    /// Opens the machine; must be called inside a tokio runtime.
    pub(crate) fn open(sysfs: Sysfs) -> Result<Self, Error> {
        let boot_id = host::boot_id().map_err(|cause| Error::Machine { what: "the boot id", cause })?;
        Ok(Self {
            sysfs,
            netns: Netns::current()?,
            netlink: Netlink::connect()?,
            boot_id,
            names_parents: OnceCell::new(),
        })
    }

    /// Whether the kernel tells which device is behind an interface, which it does since 5.14. The NICs of
    /// the host show it, once and for all.
    pub(crate) async fn names_parents(&self) -> Result<bool, Error> {
        if let Some(known) = self.names_parents.get() {
            return Ok(*known);
        }
        let named = self.netlink.links().await?.iter().any(|link| link.parent_dev.is_some());
        Ok(*self.names_parents.get_or_init(|| named))
    }

    /// Whether something that was written at this time was written since the machine booted.
    pub(crate) fn is_of_this_boot(&self, written: SystemTime) -> bool {
        // The clock may have been set since boot; a minute is less than any reboot takes.
        const TOLERANCE: Duration = Duration::from_secs(60);
        let uptime = host::uptime().unwrap_or(Duration::MAX);
        SystemTime::now().duration_since(written).map_or(true, |age| age <= uptime.saturating_add(TOLERANCE))
    }
}
