//! Where network devices are that have left the node's namespace: mostly in a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use host::{Netlink, Netns, PciAddress, netns};
use serde::Serialize;

use crate::aside::aside;
use crate::device::Device;

/// A network device in another namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Away {
    /// A path that leads to the namespace: a name in `/run/netns`, or a process in it.
    pub(crate) netns: PathBuf,
    /// Its name there.
    pub(crate) interface: String,
}

/// By the function that the device belongs to.
pub(crate) type AwayDevices = BTreeMap<PciAddress, Away>;

/// Looks for the network devices of those `devices` that have none here, in every namespace that can be found. A kernel
/// before 5.14 does not say which function a network device belongs to, and a namespace may end while it is looked
/// at: nothing is found there.
pub(crate) async fn find(devices: &[Arc<Device>]) -> AwayDevices {
    let missing = devices.iter().filter(|device| device.netdevs.is_empty());
    let missing: BTreeSet<PciAddress> = missing.map(|device| device.address).collect();
    if missing.is_empty() {
        return AwayDevices::new();
    }
    // A node has a namespace for each pod, and a process for each container.
    match aside(move || look_for(missing)) {
        Ok(found) => found.await.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "cannot look into other network namespaces");
            AwayDevices::new()
        }
    }
}

async fn look_for(missing: BTreeSet<PciAddress>) -> AwayDevices {
    let mut away = AwayDevices::new();
    let here = Netns::current().map(|netns| netns.id()).ok();
    for netns in netns::discover().unwrap_or_default() {
        if Some(netns.id()) == here {
            continue;
        }
        let links = match Netlink::connect_in(&netns) {
            Ok(netlink) => netlink.links().await.unwrap_or_default(),
            Err(_) => continue,
        };
        for link in links {
            if let Some(Ok(function)) = link.parent_dev.as_deref().map(str::parse)
                && missing.contains(&function)
            {
                let netns = netns.path().to_owned();
                away.insert(function, Away { netns, interface: link.name });
            }
        }
    }
    away
}
