//! kubelet's device checkpoint: which devices a pod was allocated, for kubelets without PodResources.
//!
//! Source: `kubelet_internal_checkpoint` of kubelet's device manager. Before Kubernetes 1.20 device IDs were one
//! list, since then they are grouped by NUMA node.

use std::collections::BTreeMap;

use cni::Object;
use serde::Deserialize;

use crate::devices::ContainerDevices;

/// The devices of the pod with `uid`, by container in the order of the file.
///
/// # Errors
/// When `bytes` is not a checkpoint.
pub fn devices_of(bytes: &[u8], uid: &str) -> Result<Vec<ContainerDevices>, cni::Error> {
    let data: Object = Object::parse(bytes)?.decode("Data")?.unwrap_or_default();
    let entries: Vec<Object> = data.decode("PodDeviceEntries")?.unwrap_or_default();
    let mut order: Vec<String> = Vec::new();
    let mut containers: Vec<ContainerDevices> = Vec::new();
    for entry in entries {
        if entry.decode::<String>("PodUID")?.as_deref() != Some(uid) {
            continue;
        }
        let name: String = entry.decode("ContainerName")?.unwrap_or_default();
        let resource: String = entry.decode("ResourceName")?.unwrap_or_default();
        let ids = entry.decode::<DeviceIds>("DeviceIDs")?.map(DeviceIds::into_list).unwrap_or_default();
        let at = order.iter().position(|known| *known == name).unwrap_or_else(|| {
            order.push(name);
            containers.push(ContainerDevices::default());
            order.len() - 1
        });
        if let Some(container) = containers.get_mut(at) {
            container.entries.push((resource, ids));
        }
    }
    Ok(containers)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DeviceIds {
    ByNode(BTreeMap<String, Option<Vec<String>>>),
    List(Vec<String>),
}

impl DeviceIds {
    fn into_list(self) -> Vec<String> {
        match self {
            DeviceIds::ByNode(nodes) => nodes.into_values().flatten().flatten().collect(),
            DeviceIds::List(ids) => ids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::DevicePool;

    const NEW: &str = r#"{"Data":{"PodDeviceEntries":[
        {"PodUID":"u1","ContainerName":"b","ResourceName":"r","DeviceIDs":{"1":["d"],"0":["c"]},"AllocResp":"x"},
        {"PodUID":"u2","ContainerName":"b","ResourceName":"r","DeviceIDs":{"-1":["z"]}},
        {"PodUID":"u1","ContainerName":"a","ResourceName":"r","DeviceIDs":{"0":["b","a"],"1":null}},
        {"PodUID":"u1","ContainerName":"b","ResourceName":"s","DeviceIDs":null}],
        "RegisteredDevices":{"r":["a"]}},"Checksum":123}"#;
    const OLD: &str = r#"{"Data":{"PodDeviceEntries":[
        {"PodUID":"u1","ContainerName":"b","ResourceName":"r","DeviceIDs":["d","c"]}]}}"#;

    fn taken(text: &str, uid: &str) -> Vec<String> {
        let mut pool = DevicePool::new(&devices_of(text.as_bytes(), uid).unwrap());
        std::iter::from_fn(|| pool.take("r")).collect()
    }

    #[test]
    fn both_formats() {
        assert_eq!(taken(NEW, "u1"), ["c", "d", "a", "b"]);
        assert_eq!(taken(NEW, "u2"), ["z"]);
        assert_eq!(taken(OLD, "u1"), ["c", "d"]);
        for none in [taken(NEW, "u3"), taken("{}", "u1"), taken(r#"{"Data":null}"#, "u1")] {
            assert!(none.is_empty());
        }
    }

    #[test]
    fn what_is_no_checkpoint_is_an_error() {
        for text in
            ["", "[]", r#"{"Data":[]}"#, r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","DeviceIDs":7}]}}"#]
        {
            assert!(devices_of(text.as_bytes(), "u").is_err(), "{text}");
        }
    }
}
