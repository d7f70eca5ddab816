//! `kubelet_internal_checkpoint`: the file in which kubelet remembers allocations over a restart.
//!
//! Multus reads it where the PodResources socket is missing, so its shape is kubelet's to the letter.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubelet_api::deviceplugin::ContainerAllocateResponse;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::devices::{Allocation, Devices};

/// Name of the file in the device plugins' folder.
pub(super) const FILE: &str = "kubelet_internal_checkpoint";

#[derive(Deserialize, Serialize)]
struct Checkpoint {
    #[serde(rename = "Data")]
    data: Data,
    #[serde(rename = "Checksum")]
    checksum: u32,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Option<Vec<Entry>>,
    registered_devices: BTreeMap<String, Option<Vec<String>>>,
}

#[derive(Deserialize, Serialize)]
struct Entry {
    #[serde(rename = "PodUID")]
    pod: String,
    #[serde(rename = "ContainerName")]
    container: String,
    #[serde(rename = "ResourceName")]
    resource: String,
    #[serde(rename = "DeviceIDs")]
    ids: BTreeMap<String, Vec<String>>,
    #[serde(rename = "AllocResp")]
    response: String,
}

/// The checkpoint of `devices`.
///
/// # Errors
/// JSON cannot be written, which does not happen.
pub(super) fn encode(devices: &Devices) -> Result<Vec<u8>> {
    let entries = devices.allocations().iter().map(|held| Entry {
        pod: held.pod.clone(),
        container: held.container.clone(),
        resource: held.resource.clone(),
        ids: held.ids.iter().map(|(node, ids)| (node.to_string(), ids.clone())).collect(),
        response: STANDARD.encode(held.response.encode_to_vec()),
    });
    let entries: Vec<Entry> = entries.collect();
    let mut registered: BTreeMap<String, Option<Vec<String>>> =
        devices.counts().into_keys().map(|resource| (resource, None)).collect();
    for (resource, id, _) in devices.healthy() {
        if let Some(ids) = registered.get_mut(resource) {
            ids.get_or_insert_default().push(id.to_owned());
        }
    }
    let data =
        Data { pod_device_entries: (!entries.is_empty()).then_some(entries), registered_devices: registered };
    let checksum = fnv32a(&serde_json::to_vec(&data)?);
    Ok(serde_json::to_vec(&Checkpoint { data, checksum })?)
}

/// What a starting kubelet takes over from the checkpoint at `path`: allocations, and resources that count zero.
///
/// # Errors
/// The file exists and is not a checkpoint.
pub(super) fn load(path: &Path) -> Result<Devices> {
    let mut devices = Devices::default();
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(devices),
        read => read.with_context(|| format!("read {}", path.display()))?,
    };
    let checkpoint: Checkpoint =
        serde_json::from_slice(&bytes).with_context(|| format!("decode {}", path.display()))?;
    for resource in checkpoint.data.registered_devices.keys() {
        devices.disconnect(resource);
    }
    for entry in checkpoint.data.pod_device_entries.unwrap_or_default() {
        let ids = entry.ids.into_iter().map(|(node, ids)| Ok((node.parse()?, ids)));
        devices.hold(Allocation {
            pod: entry.pod,
            container: entry.container,
            resource: entry.resource,
            ids: ids.collect::<Result<_>>().context("NUMA node in the checkpoint")?,
            response: ContainerAllocateResponse::decode(STANDARD.decode(entry.response)?.as_slice())
                .context("AllocResp in the checkpoint")?,
        });
    }
    Ok(devices)
}

/// The hash that kubelet uses, over the JSON text where kubelet takes a dump of its Go values: readers of the file
/// other than kubelet do not verify it.
fn fnv32a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubelet_api::deviceplugin::{Device, HEALTHY};
    use serde_json::json;

    #[test]
    fn the_file_has_kubelets_shape_and_is_read_back() {
        let mut devices = Devices::default();
        let device = Device { id: "0000:01:10.0".into(), health: HEALTHY.into(), topology: None };
        devices.report("intel.com/sriov", &[device]);
        let response = ContainerAllocateResponse {
            envs: [("PCIDEVICE".to_owned(), "0000:01:10.0".to_owned())].into(),
            ..Default::default()
        };
        let ids = BTreeMap::from([(-1, vec!["0000:01:10.0".to_owned()])]);
        let held = Allocation {
            pod: "uid".into(),
            container: "app".into(),
            resource: "intel.com/sriov".into(),
            ids,
            response,
        };
        devices.hold(held.clone());

        let text = encode(&devices).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let entry = &value["Data"]["PodDeviceEntries"][0];
        assert_eq!(entry["PodUID"], "uid");
        assert_eq!(entry["DeviceIDs"], json!({"-1": ["0000:01:10.0"]}));
        assert_eq!(value["Data"]["RegisteredDevices"], json!({"intel.com/sriov": ["0000:01:10.0"]}));
        assert!(value["Checksum"].is_u64());

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, text).unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!(loaded.allocations(), [held]);
        assert_eq!(loaded.counts()["intel.com/sriov"].capacity, 0);
        assert!(load(&folder.path().join("absent")).unwrap().allocations().is_empty());
    }

    #[test]
    fn fnv_is_the_published_one() {
        assert_eq!(fnv32a(b""), 0x811c_9dc5);
        assert_eq!(fnv32a(b"foobar"), 0xbf9c_f968);
    }
}
