//! The scenarios: what a user does with the programs, and what has to come of it.
//!
//! Each file has one theme, each function is one scenario. Between two of them the runner deletes every pod and every
//! network and looks whether all VFs are as they were.

mod addresses;
mod advertise;
mod bad_configuration;
mod bad_request;
mod interrupted;
mod kubelet_faults;
mod left;
mod macvlan;
mod mixed;
mod netdevice;
mod reference;
mod replicas;
mod restarts;
mod teardown;
mod thick;
mod vfio;
mod vlan;
mod vlan_interface;

use anyhow::Result;
use futures_util::future::LocalBoxFuture;

use crate::node::Grade;
use crate::session::Session;

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it shows.
    pub name: &'static str,
    /// Where it can run.
    pub runs_on: RunsOn,
    /// Runs it.
    pub run: Run,
}

/// Runs a scenario.
pub type Run = for<'a> fn(&'a mut Session) -> LocalBoxFuture<'a, Result<()>>;

/// Where a scenario can run.
#[derive(Clone, Copy, Debug)]
pub enum RunsOn {
    /// On any node.
    Any,
    /// On nodes of this grade, for a reason that is told where it does not run.
    Only(Grade, &'static str),
    /// Where Multus is a daemon.
    Thick,
    /// Where it is not: what is about the short-lived program, and what would only be the same again and take minutes.
    Thin,
}

impl Scenario {
    const fn any(name: &'static str, run: Run) -> Scenario {
        Scenario { name, runs_on: RunsOn::Any, run }
    }

    const fn simulated(name: &'static str, reason: &'static str, run: Run) -> Scenario {
        Scenario { name, runs_on: RunsOn::Only(Grade::Simulated, reason), run }
    }

    const fn thick(name: &'static str, run: Run) -> Scenario {
        Scenario { name, runs_on: RunsOn::Thick, run }
    }

    const fn thin(name: &'static str, run: Run) -> Scenario {
        Scenario { name, runs_on: RunsOn::Thin, run }
    }

    /// Why it cannot run on nodes of `grade`, with Multus as a daemon or not.
    pub fn obstacle(&self, grade: Grade, is_thick: bool) -> Option<&'static str> {
        match self.runs_on {
            RunsOn::Only(needed, reason) if needed != grade => Some(reason),
            RunsOn::Thick if !is_thick => Some("it is about multus-daemon: --thick"),
            RunsOn::Thin if is_thick => Some("it has nothing to do with multus-daemon: without --thick"),
            RunsOn::Any | RunsOn::Only(..) | RunsOn::Thick | RunsOn::Thin => None,
        }
    }
}

/// Every scenario, in the order in which they run: from what everything else needs to what breaks things.
pub const ALL: &[Scenario] = &[
    Scenario::any("the node advertises every VF", |s| Box::pin(advertise::every_vf(s))),
    Scenario::any("a pod gets a VF with the MAC, VLAN and address it asked for", |s| {
        Box::pin(netdevice::as_asked(s))
    }),
    Scenario::any("a pod gets two VFs from one resource", |s| Box::pin(netdevice::two_of_one_resource(s))),
    Scenario::any("the device plugin explains who holds a pod's VF and where its interface is", |s| {
        Box::pin(advertise::explained(s))
    }),
    Scenario::any("pods on one VLAN reach each other and no pod on another", |s| {
        Box::pin(vlan::isolation(s))
    }),
    Scenario::any("a pod gets the device nodes of a vfio VF and no others", |s| {
        Box::pin(vfio::device_nodes(s))
    }),
    Scenario::any("dpdk-testpmd sends packets through a vfio VF", |s| Box::pin(vfio::testpmd(s))),
    Scenario::thin(
        "a pod with the name of a macvlan NAD has lo, eth0 and net1, and its status tells them",
        |s| Box::pin(macvlan::by_name(s)),
    ),
    Scenario::thin("a pod has four networks, one NAD twice and one configured by a file of the node", |s| {
        Box::pin(macvlan::four_networks(s))
    }),
    Scenario::thin("a pod chooses an address for one of two attachments to one NAD", |s| {
        Box::pin(macvlan::chosen_address(s))
    }),
    Scenario::thin("a pod has two VLAN interfaces and reaches a machine behind each", |s| {
        Box::pin(vlan_interface::two(s))
    }),
    Scenario::thin("a VLAN ID that is taken on its master is an error that names the holder", |s| {
        Box::pin(vlan_interface::taken(s))
    }),
    Scenario::thin("pods get addresses of both families that no other pod has", |s| {
        Box::pin(addresses::unique(s))
    }),
    Scenario::thin("VFs get cluster-wide addresses, and a pod that comes again its former one", |s| {
        Box::pin(addresses::former(s))
    }),
    Scenario::thin("a range without room says who has it, and serves again when one is gone", |s| {
        Box::pin(addresses::exhausted(s))
    }),
    Scenario::thin("bridge, ipvlan, macvlan with dhcp, ptp, host-device, vrf and sbr in one pod", |s| {
        Box::pin(reference::every_plugin(s))
    }),
    Scenario::thin("replicas of a pod come and go on one NAD", |s| Box::pin(replicas::scaled(s))),
    Scenario::any("two containers with a netdevice and a vfio VF each get their own device", |s| {
        Box::pin(mixed::two_resources(s))
    }),
    Scenario::any("a pod has a VF as its default network", |s| Box::pin(mixed::default_network(s))),
    Scenario::any("a VF comes back as it was, whatever the pod did to it", |s| {
        Box::pin(teardown::pod_changes_vf(s))
    }),
    Scenario::any("a VF can be used again at once", |s| Box::pin(teardown::used_again(s))),
    Scenario::any("DEL can be repeated", |s| Box::pin(teardown::repeated(s))),
    Scenario::any("DEL works while the API server refuses connections", |s| {
        Box::pin(teardown::api_refuses(s))
    }),
    Scenario::any("DEL works while the API server does not answer", |s| Box::pin(teardown::api_hangs(s))),
    Scenario::any("a device that does not exist is an error", |s| Box::pin(bad_request::unknown_device(s))),
    Scenario::any("a NAD that does not exist is an error", |s| Box::pin(bad_request::missing_nad(s))),
    Scenario::any("a NAD of a plugin that is not installed is an error", |s| {
        Box::pin(bad_request::missing_plugin(s))
    }),
    Scenario::any("a NAD with a resource and a pod without a device is an error", |s| {
        Box::pin(bad_request::no_device(s))
    }),
    Scenario::any("a NAD with a VLAN out of range is an error", |s| Box::pin(bad_request::bad_vlan(s))),
    Scenario::any("a NAD that is no JSON is an error", |s| Box::pin(bad_request::broken_nad(s))),
    Scenario::any("a broken annotation is an error", |s| Box::pin(bad_request::broken_annotation(s))),
    Scenario::any("a pod that asks for more than is free stays pending", |s| {
        Box::pin(bad_request::too_many(s))
    }),
    Scenario::any("the device plugin refuses a broken configuration", |s| {
        Box::pin(bad_configuration::device_plugin(s))
    }),
    Scenario::any("kubelet restarts: devices come back, the pod runs on", |s| Box::pin(restarts::kubelet(s))),
    Scenario::any("the device plugin is killed and started again", |s| {
        Box::pin(restarts::device_plugin_killed(s))
    }),
    Scenario::thin(
        "kubelet stands still while VFs go and come, and the node offers them when it goes on",
        |s| Box::pin(kubelet_faults::stopped(s)),
    ),
    Scenario::thin("kubelet's directories for plugins are wiped while it runs, and it restarts", |s| {
        Box::pin(kubelet_faults::wiped(s))
    }),
    Scenario::simulated(
        "somebody removes the sockets of the device plugin",
        "the sockets go with all else where the directories are wiped",
        |s| Box::pin(kubelet_faults::socket_removed(s)),
    ),
    Scenario::any("sriov is killed in the middle of ADD", |s| Box::pin(interrupted::sriov_killed(s))),
    Scenario::thin("multus is killed in the middle of ADD", |s| Box::pin(interrupted::multus_killed(s))),
    Scenario::thick("multus-shim is killed in the middle of ADD", |s| Box::pin(interrupted::shim_killed(s))),
    Scenario::thick("multus-daemon is killed while pods come and go", |s| Box::pin(thick::killed(s))),
    Scenario::thick("multus-daemon is upgraded under load, and no ADD fails", |s| {
        Box::pin(thick::upgraded(s))
    }),
    Scenario::thick("DEL while multus-daemon is away is done when it is back", |s| Box::pin(thick::away(s))),
    Scenario::thick(
        "multus-daemon follows the annotation of a pod that runs, on a VF that the pod holds",
        |s| Box::pin(thick::followed(s)),
    ),
    Scenario::thick("the API server is away while multus-daemon takes one pod down and another comes", |s| {
        Box::pin(thick::without_api(s))
    }),
    Scenario::thick("another agent renames the configuration of multus-daemon", |s| {
        Box::pin(thick::renamed(s))
    }),
    Scenario::thick("another primary network comes and goes under multus-daemon", |s| {
        Box::pin(thick::swapped(s))
    }),
    Scenario::thick("multus-daemon is uninstalled while a pod runs, and installed again", |s| {
        Box::pin(thick::uninstalled(s))
    }),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
