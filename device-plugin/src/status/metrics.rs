//! What the plugin counts about itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::exposition::{Exposition, Histogram};
use crate::config::Resource;

/// How many of the devices a look took in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Everything,
    /// Those that an event can have changed.
    Some,
}

/// Counters, shared by all that do something worth counting.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    resources: BTreeMap<Resource, Serving>,
    full_scans: Histogram,
    partial_scans: Histogram,
    failed_scans: u64,
    reloads: u64,
    rejected: u64,
    /// Whether the configuration in use is an old one, because the file cannot be used.
    stale: bool,
}

/// Of one resource.
#[derive(Debug, Default)]
struct Serving {
    /// Calls of Allocate, those that failed among them.
    allocations: Histogram,
    refused: u64,
    /// Sockets made.
    sockets: u64,
    /// kubelets that listen to the list.
    listeners: usize,
}

impl Metrics {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Numbers cannot be left in a state that is of no use.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, resource: &Resource, change: impl FnOnce(&mut Serving)) {
        change(self.counts().resources.entry(resource.clone()).or_default());
    }

    /// Allocate was called.
    pub(crate) fn allocated(&self, resource: &Resource, took: Duration, succeeded: bool) {
        self.of(resource, |serving| {
            serving.allocations.record(took);
            serving.refused += u64::from(!succeeded);
        });
    }

    /// A socket is being served, to nobody yet.
    pub(crate) fn serving(&self, resource: &Resource) {
        self.of(resource, |serving| {
            serving.sockets += 1;
            serving.listeners = 0;
        });
    }

    /// So many kubelets listen to the list now.
    pub(crate) fn listeners(&self, resource: &Resource, count: usize) {
        self.of(resource, |serving| serving.listeners = count);
    }

    /// A resource is no longer configured.
    pub(crate) fn forget(&self, resource: &Resource) {
        self.counts().resources.remove(resource);
    }

    /// The devices have been looked at.
    pub(crate) fn scanned(&self, extent: Extent, took: Duration, succeeded: bool) {
        let mut counts = self.counts();
        match extent {
            Extent::Everything => counts.full_scans.record(took),
            Extent::Some => counts.partial_scans.record(took),
        }
        counts.failed_scans += u64::from(!succeeded);
    }

    /// A changed configuration file was taken into use.
    pub(crate) fn reloaded(&self) {
        let mut counts = self.counts();
        counts.reloads += 1;
        counts.stale = false;
    }

    /// The configuration file is the one in use again.
    pub(crate) fn in_use(&self) {
        self.counts().stale = false;
    }

    /// A changed configuration file cannot be used.
    pub(crate) fn rejected(&self) {
        let mut counts = self.counts();
        counts.rejected += 1;
        counts.stale = true;
    }

    /// Whether a kubelet listens to the list of a resource.
    pub(crate) fn is_heard(&self, resource: &Resource) -> bool {
        self.counts().resources.get(resource).is_some_and(|serving| serving.listeners > 0)
    }

    /// How many sockets were made for a resource.
    #[cfg(test)]
    pub(crate) fn sockets(&self, resource: &Resource) -> u64 {
        self.counts().resources.get(resource).map_or(0, |serving| serving.sockets)
    }

    pub(super) fn write(&self, text: &mut Exposition) {
        let counts = self.counts();
        let resources: Vec<(String, &Serving)> =
            counts.resources.iter().map(|(resource, serving)| (resource.to_string(), serving)).collect();
        let mut family = text
            .histogram("sriov_device_plugin_allocate_duration_seconds", "How long calls of Allocate took.");
        for (resource, serving) in &resources {
            family.distribution(&[("resource", resource)], &serving.allocations);
        }
        let mut family =
            text.counter("sriov_device_plugin_allocate_failures_total", "Calls of Allocate that failed.");
        for (resource, serving) in &resources {
            family.sample(&[("resource", resource)], serving.refused);
        }
        let mut family = text.counter(
            "sriov_device_plugin_sockets_total",
            "Sockets served to kubelet: more than one if it restarted, refused or fell silent.",
        );
        for (resource, serving) in &resources {
            family.sample(&[("resource", resource)], serving.sockets);
        }
        let mut family = text
            .gauge("sriov_device_plugin_kubelet_listeners", "kubelets that listen to the list: 1 is right.");
        for (resource, serving) in &resources {
            family.sample(&[("resource", resource)], serving.listeners);
        }
        let mut family = text.histogram(
            "sriov_device_plugin_scan_duration_seconds",
            "How long looks at the devices took, until the lists were renewed.",
        );
        for (extent, scans) in [("all", &counts.full_scans), ("some", &counts.partial_scans)] {
            family.distribution(&[("devices", extent)], scans);
        }
        text.counter("sriov_device_plugin_scan_failures_total", "Looks at the devices that failed.")
            .sample(&[], counts.failed_scans);
        text.counter("sriov_device_plugin_config_reloads_total", "Changed configurations taken into use.")
            .sample(&[], counts.reloads);
        text.counter(
            "sriov_device_plugin_config_reload_failures_total",
            "Changed configuration files that could not be used.",
        )
        .sample(&[], counts.rejected);
        text.gauge(
            "sriov_device_plugin_config_stale",
            "1 while an old configuration is in use because the file cannot be used.",
        )
        .sample(&[], u8::from(counts.stale));
    }
}
