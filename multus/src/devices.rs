//! Which allocated device goes to which attachment.
//!
//! kubelet allocates device IDs to containers, a NAD names a resource, and the attachments of the pod take the
//! resource's IDs in turn. Both sides of the pod must agree on the order, so it is fixed: containers in the
//! order kubelet reports them, within a container sorted.

use std::collections::BTreeMap;

/// What one container was allocated, as a device source (PodResources, kubelet's checkpoint) reports it. A further
/// source, such as claims of dynamic resource allocation, plugs in by reporting the same to [`DevicePool::new`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerDevices {
    /// Resource name and device IDs; a source may report a resource in several entries, for instance one for
    /// each NUMA node.
    pub entries: Vec<(String, Vec<String>)>,
}

/// The device IDs of a pod that are not given out yet, by resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DevicePool {
    by_resource: BTreeMap<String, Vec<String>>,
    taken: BTreeMap<String, usize>,
}

impl DevicePool {
    /// The devices of a pod's containers, in kubelet's order of containers.
    #[must_use]
    pub fn new(containers: &[ContainerDevices]) -> Self {
        let mut by_resource: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for container in containers {
            // Entries of one resource are one allocation: merged first, then sorted.
            let mut merged: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for (resource, ids) in &container.entries {
                merged.entry(resource).or_default().extend_from_slice(ids);
            }
            for (resource, mut ids) in merged {
                ids.sort();
                by_resource.entry(resource.to_owned()).or_default().append(&mut ids);
            }
        }
        Self { by_resource, taken: BTreeMap::new() }
    }

    /// The next device of `resource`; `None` when the pod has no more.
    pub fn take(&mut self, resource: &str) -> Option<String> {
        let index = self.taken.entry(resource.to_owned()).or_default();
        let id = self.by_resource.get(resource)?.get(*index)?.clone();
        *index += 1;
        Some(id)
    }

    /// Whether the pod was allocated devices of `resource`, in use or not.
    #[must_use]
    pub fn knows(&self, resource: &str) -> bool {
        self.by_resource.contains_key(resource)
    }

    /// Leaves out devices that are in use already.
    pub fn forget<'a>(&mut self, used: impl Iterator<Item = &'a str>) {
        let used: Vec<&str> = used.collect();
        for ids in self.by_resource.values_mut() {
            ids.retain(|id| !used.contains(&id.as_str()));
        }
    }

    /// How many devices of `resource` the pod was allocated.
    #[must_use]
    pub fn allocated(&self, resource: &str) -> usize {
        self.by_resource.get(resource).map_or(0, Vec::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(entries: &[(&str, &[&str])]) -> ContainerDevices {
        let entries = entries
            .iter()
            .map(|(resource, ids)| ((*resource).to_owned(), ids.iter().map(|id| (*id).to_owned()).collect()));
        ContainerDevices { entries: entries.collect() }
    }

    #[test]
    fn sorted_within_a_container_and_containers_in_order() {
        let table: [(&str, Vec<ContainerDevices>, &[&str]); 4] = [
            ("nothing", vec![], &[]),
            ("one container", vec![container(&[("r", &["b", "a"])])], &["a", "b"]),
            (
                "two containers keep their order",
                vec![container(&[("r", &["d", "c"])]), container(&[("r", &["b", "a"])])],
                &["c", "d", "a", "b"],
            ),
            (
                "entries of one container are merged before they are sorted",
                vec![
                    container(&[("r", &["c"]), ("other", &["x"]), ("r", &["a"])]),
                    container(&[("r", &["b"])]),
                ],
                &["a", "c", "b"],
            ),
        ];
        for (what, containers, expected) in table {
            let mut pool = DevicePool::new(&containers);
            assert_eq!(pool.allocated("r"), expected.len(), "{what}");
            let taken: Vec<String> = std::iter::from_fn(|| pool.take("r")).collect();
            assert_eq!(taken, expected, "{what}");
            assert_eq!(pool.take("r"), None, "{what}");
        }
    }

    #[test]
    fn devices_in_use_are_left_out() {
        let mut pool = DevicePool::new(&[container(&[("r", &["a", "b", "c"])])]);
        pool.forget(["a", "x"].into_iter());
        assert!(pool.knows("r") && !pool.knows("s"));
        assert_eq!(std::iter::from_fn(|| pool.take("r")).collect::<Vec<_>>(), ["b", "c"]);
    }

    #[test]
    fn resources_do_not_mix() {
        let mut pool = DevicePool::new(&[container(&[("r", &["a"]), ("s", &["b"])])]);
        assert_eq!(pool.take("s").as_deref(), Some("b"));
        assert_eq!(pool.take("t"), None);
        assert_eq!(pool.take("r").as_deref(), Some("a"));
    }
}
