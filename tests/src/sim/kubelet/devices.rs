//! kubelet's device manager without its sockets: which devices exist, and which container holds which.
//!
//! The rules are those of `pkg/kubelet/cm/devicemanager` in Kubernetes: a resource whose plugin is gone keeps its
//! capacity but loses its allocatable count until it is forgotten, devices of init containers are handed on to the
//! containers that follow, and a resource known only from the checkpoint counts zero until its plugin is back.

use std::collections::{BTreeMap, BTreeSet};

use kubelet_api::deviceplugin::{ContainerAllocateResponse, Device, HEALTHY};

/// NUMA node that kubelet writes for a device without topology.
pub(super) const NO_NUMA_NODE: i64 = -1;

/// What the device manager knows.
#[derive(Debug, Default)]
pub(super) struct Devices {
    resources: BTreeMap<String, BTreeMap<String, State>>,
    allocations: Vec<Allocation>,
}

/// One device as its plugin last reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    healthy: bool,
    numa_node: i64,
}

/// Devices of one resource in the hands of one container.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Allocation {
    /// UID of the pod.
    pub(super) pod: String,
    /// Name of the container.
    pub(super) container: String,
    /// Extended resource name.
    pub(super) resource: String,
    /// Device IDs by NUMA node.
    pub(super) ids: BTreeMap<i64, Vec<String>>,
    /// What the plugin answered to Allocate.
    pub(super) response: ContainerAllocateResponse,
}

impl Allocation {
    /// Every device ID, in NUMA node order.
    pub(super) fn all_ids(&self) -> impl Iterator<Item = &String> {
        self.ids.values().flatten()
    }
}

/// How many devices of a resource the node shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// `status.capacity`: all that the plugin reported.
    pub(super) capacity: usize,
    /// `status.allocatable`: the healthy ones.
    pub(super) allocatable: usize,
}

/// What a container may be given, before the plugin is asked for its preference.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// Devices that the container may get, those of `must_include` among them.
    pub(super) available: Vec<String>,
    /// Devices that the pod's init containers hold and that are to be used again.
    pub(super) must_include: Vec<String>,
}

impl Devices {
    /// The resource exists, with the devices that its plugin reports now.
    pub(super) fn report(&mut self, resource: &str, devices: &[Device]) {
        let states = devices.iter().map(|device| {
            let numa_node = device
                .topology
                .as_ref()
                .and_then(|topology| topology.nodes.first())
                .map_or(NO_NUMA_NODE, |node| node.id);
            (device.id.clone(), State { healthy: device.health == HEALTHY, numa_node })
        });
        self.resources.insert(resource.to_owned(), states.collect());
    }

    /// The plugin of `resource` is gone: nothing of it can be handed out until it is back.
    pub(super) fn disconnect(&mut self, resource: &str) {
        for state in self.resources.entry(resource.to_owned()).or_default().values_mut() {
            state.healthy = false;
        }
    }

    /// The plugin of `resource` stayed away for longer than kubelet remembers it.
    pub(super) fn forget(&mut self, resource: &str) {
        self.resources.remove(resource);
    }

    /// Whether the container holds its devices of the resource.
    pub(super) fn holds(&self, pod: &str, container: &str, resource: &str) -> bool {
        self.allocations
            .iter()
            .any(|held| held.pod == pod && held.container == container && held.resource == resource)
    }

    /// What the node's status shows for each resource.
    pub(super) fn counts(&self) -> BTreeMap<String, Count> {
        let count = |devices: &BTreeMap<String, State>| Count {
            capacity: devices.len(),
            allocatable: devices.values().filter(|state| state.healthy).count(),
        };
        self.resources.iter().map(|(name, devices)| (name.clone(), count(devices))).collect()
    }

    /// What `count` devices of `resource` for a container of `pod` can be chosen from.
    ///
    /// `init` names the pod's init containers, whose devices are used again.
    ///
    /// # Errors
    /// kubelet's own words when too few are free.
    pub(super) fn choice(
        &self,
        pod: &str,
        resource: &str,
        count: usize,
        init: &BTreeSet<String>,
    ) -> Result<Choice, String> {
        let devices = self.resources.get(resource).ok_or_else(|| {
            format!("no healthy devices present; cannot allocate unhealthy devices {resource}")
        })?;
        let reusable: BTreeSet<&String> = self
            .allocations
            .iter()
            .filter(|held| held.pod == pod && held.resource == resource && init.contains(&held.container))
            .flat_map(Allocation::all_ids)
            .collect();
        let held: BTreeSet<&String> = self
            .allocations
            .iter()
            .filter(|held| held.resource == resource)
            .flat_map(Allocation::all_ids)
            .collect();
        let must_include: Vec<String> = reusable.iter().take(count).map(|id| (*id).clone()).collect();
        let free = devices.iter().filter(|(id, state)| state.healthy && !held.contains(id));
        let mut available = must_include.clone();
        available.extend(free.map(|(id, _)| id.clone()));
        if available.len() < count {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {count}, Available: {}",
                available.len()
            ));
        }
        Ok(Choice { available, must_include })
    }

    /// Sorts `ids` of a resource by the NUMA node that their plugin reported.
    pub(super) fn by_numa_node(&self, resource: &str, ids: &[String]) -> BTreeMap<i64, Vec<String>> {
        let known = self.resources.get(resource);
        let mut nodes: BTreeMap<i64, Vec<String>> = BTreeMap::new();
        for id in ids {
            let state = known.and_then(|devices| devices.get(id));
            nodes.entry(state.map_or(NO_NUMA_NODE, |state| state.numa_node)).or_default().push(id.clone());
        }
        nodes
    }

    /// A container holds devices.
    pub(super) fn hold(&mut self, allocation: Allocation) {
        self.allocations.push(allocation);
    }

    /// The pod is gone.
    pub(super) fn release(&mut self, pod: &str) {
        self.allocations.retain(|held| held.pod != pod);
    }

    /// Only the pods of these UIDs exist.
    pub(super) fn retain(&mut self, pods: &[String]) {
        self.allocations.retain(|held| pods.contains(&held.pod));
    }

    /// Who holds what, in the order of allocation.
    pub(super) fn allocations(&self) -> &[Allocation] {
        &self.allocations
    }

    /// Every device of every resource with its NUMA node, as `GetAllocatableResources` lists them.
    pub(super) fn healthy(&self) -> impl Iterator<Item = (&str, &str, i64)> {
        self.resources.iter().flat_map(|(resource, devices)| {
            devices
                .iter()
                .filter(|(_, state)| state.healthy)
                .map(move |(id, state)| (resource.as_str(), id.as_str(), state.numa_node))
        })
    }
}

/// Takes `count` devices: what the plugin prefers first, then in order of ID, as kubelet does.
pub(super) fn choose(choice: &Choice, preferred: &[String], count: usize) -> Vec<String> {
    let mut chosen: Vec<String> = choice.must_include.iter().take(count).cloned().collect();
    let wanted = preferred.iter().filter(|id| choice.available.contains(id));
    for id in wanted.chain(&choice.available) {
        if chosen.len() < count && !chosen.contains(id) {
            chosen.push(id.clone());
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubelet_api::deviceplugin::{NumaNode, TopologyInfo, UNHEALTHY};

    fn device(id: &str, health: &str, numa: Option<i64>) -> Device {
        let topology = numa.map(|id| TopologyInfo { nodes: vec![NumaNode { id }] });
        Device { id: id.into(), health: health.into(), topology }
    }

    fn three() -> Devices {
        let mut devices = Devices::default();
        devices.report(
            "r",
            &[device("a", HEALTHY, Some(1)), device("b", UNHEALTHY, None), device("c", HEALTHY, None)],
        );
        devices
    }

    fn held(devices: &Devices, pod: &str, container: &str, ids: &[&str]) -> Allocation {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        Allocation {
            pod: pod.into(),
            container: container.into(),
            resource: "r".into(),
            ids: devices.by_numa_node("r", &ids),
            response: ContainerAllocateResponse::default(),
        }
    }

    #[test]
    fn a_lost_plugin_keeps_capacity_and_loses_allocatable() {
        let mut devices = three();
        assert_eq!(devices.counts()["r"], Count { capacity: 3, allocatable: 2 });
        devices.disconnect("r");
        assert_eq!(devices.counts()["r"], Count { capacity: 3, allocatable: 0 });
        devices.forget("r");
        assert!(!devices.counts().contains_key("r"));
        devices.disconnect("r");
        assert_eq!(devices.counts()["r"], Count::default(), "known from the checkpoint only");
    }

    #[test]
    fn only_free_and_healthy_devices_are_offered() {
        let mut devices = three();
        devices.hold(held(&devices, "one", "app", &["a"]));
        let init = BTreeSet::new();
        let choice = devices.choice("two", "r", 1, &init).unwrap();
        assert_eq!(choice, Choice { available: vec!["c".into()], must_include: vec![] });
        let error = devices.choice("two", "r", 2, &init).unwrap_err();
        assert!(error.contains("Requested: 2, Available: 1"), "{error}");
        devices.release("one");
        assert_eq!(devices.choice("two", "r", 2, &init).unwrap().available, ["a", "c"]);
    }

    #[test]
    fn devices_of_init_containers_are_used_again() {
        let mut devices = three();
        devices.hold(held(&devices, "one", "setup", &["c"]));
        let init = BTreeSet::from(["setup".to_owned()]);
        let choice = devices.choice("one", "r", 2, &init).unwrap();
        assert_eq!(choice.must_include, ["c"]);
        assert_eq!(choose(&choice, &[], 2), ["c", "a"]);
        assert!(devices.choice("two", "r", 2, &init).is_err(), "not for another pod");
    }

    #[test]
    fn preference_counts_only_among_what_is_available() {
        let choice = Choice { available: vec!["a".into(), "b".into(), "c".into()], must_include: vec![] };
        let preferred = ["x".to_owned(), "c".to_owned()];
        assert_eq!(choose(&choice, &preferred, 2), ["c", "a"]);
    }

    #[test]
    fn devices_are_grouped_by_numa_node() {
        let nodes = three().by_numa_node("r", &["c".into(), "a".into()]);
        assert_eq!(nodes, BTreeMap::from([(NO_NUMA_NODE, vec!["c".into()]), (1, vec!["a".into()])]));
    }
}
