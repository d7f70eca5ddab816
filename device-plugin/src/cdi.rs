//! Container Device Interface: device nodes by name, for the container runtime
//! (<https://github.com/cncf-tags/container-device-interface>, SPEC.md 0.5.0).
//!
//! Each device has a specification file of its own, written when the device is given out, and left alone while a
//! container holds it: the runtime reads it whenever it restarts the container.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use crate::allocate::Grant;
use crate::config::{DeviceType, Resource};
use crate::public_file;

pub(crate) use crate::public_file::Error;

const VERSION: &str = "0.5.0";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    cdi_version: &'static str,
    kind: String,
    devices: [SpecDevice<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SpecDevice<'a> {
    name: &'a str,
    container_edits: Edits<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Edits<'a> {
    device_nodes: Vec<SpecNode<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SpecNode<'a> {
    path: &'a str,
    host_path: &'a str,
    permissions: &'static str,
}

/// The directory of specifications.
#[derive(Debug, Clone)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Writes the specifications of devices that are given out, and returns their names. A device without nodes has
    /// none: a specification that changes nothing is not valid.
    pub(crate) fn publish(
        &self,
        resource: &Resource,
        device_type: DeviceType,
        grants: &[Grant],
    ) -> Result<Vec<String>, Error> {
        let kind = format!("{}/{}", resource.prefix, class(device_type));
        let mut names = Vec::new();
        for grant in grants.iter().filter(|grant| !grant.nodes.is_empty()) {
            let device_nodes = grant.nodes.iter().map(|node| SpecNode {
                path: &node.container,
                host_path: &node.host,
                permissions: "rw",
            });
            let edits = Edits { device_nodes: device_nodes.collect() };
            let device = SpecDevice { name: &grant.id, container_edits: edits };
            let spec = Spec { cdi_version: VERSION, kind: kind.clone(), devices: [device] };
            let file = self.0.join(format!("{}{}.json", stem(resource), grant.id));
            // Texts and lists always have a JSON form.
            public_file::write(&file, &serde_json::to_vec(&spec).unwrap_or_default())?;
            names.push(format!("{kind}={}", grant.id));
        }
        Ok(names)
    }

    /// Removes the specifications of a resource's devices that were written before `before`, but for those that
    /// `keep` names; and the one that sriov-network-device-plugin left, which would define devices a second time.
    pub(crate) fn sweep(
        &self,
        resource: &Resource,
        device_type: DeviceType,
        before: SystemTime,
        keep: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let stem = stem(resource);
        let foreign = format!("sriov-dp-{}-{}-{}.yaml", resource.prefix, class(device_type), resource.name);
        public_file::sweep(&self.0, before, |name| {
            let id = name.strip_prefix(&stem).and_then(|name| name.strip_suffix(".json"));
            // A device's name has no dash; the name of another resource behind the same stem would bring one.
            name == foreign || id.is_some_and(|id| !id.contains('-') && !keep(id))
        })
    }
}

fn stem(resource: &Resource) -> String {
    format!("sriov-dp-{}-{}-", resource.prefix, resource.name)
}

/// The class that sriov-network-device-plugin uses for a type of device.
fn class(device_type: DeviceType) -> &'static str {
    match device_type {
        DeviceType::NetDevice => "net-pci",
        DeviceType::Accelerator => "net-accel",
        DeviceType::AuxNetDevice => "net-sf",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::allocate::Node;

    fn grant(id: &str, nodes: &[(&str, &str)]) -> Grant {
        let node =
            |(host, container): &(&str, &str)| Node { host: (*host).into(), container: (*container).into() };
        Grant { id: id.into(), facts: BTreeMap::new(), nodes: nodes.iter().map(node).collect(), info: None }
    }

    fn files(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_specification_per_device_with_nodes() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::new(parent.path().join("cdi"));
        let resource = Resource { prefix: "intel.com".into(), name: "dpdk".into() };
        let grants =
            [grant("0000:3b:10.0", &[("/dev/vfio/noiommu-3", "/dev/vfio/3")]), grant("0000:3b:10.1", &[])];
        let names = directory.publish(&resource, DeviceType::NetDevice, &grants).unwrap();
        assert_eq!(names, ["intel.com/net-pci=0000:3b:10.0"]);
        let folder = parent.path().join("cdi");
        assert_eq!(files(&folder), ["sriov-dp-intel.com-dpdk-0000:3b:10.0.json"]);
        assert_eq!(
            fs::read_to_string(folder.join("sriov-dp-intel.com-dpdk-0000:3b:10.0.json")).unwrap(),
            r#"{"cdiVersion":"0.5.0","kind":"intel.com/net-pci","devices":[{"name":"0000:3b:10.0","containerEdits":{"deviceNodes":[{"path":"/dev/vfio/3","hostPath":"/dev/vfio/noiommu-3","permissions":"rw"}]}}]}"#
        );
    }

    #[test]
    fn what_nobody_holds_is_swept() {
        let parent = tempfile::tempdir().unwrap();
        let resource = Resource { prefix: "intel.com".into(), name: "dpdk".into() };
        for name in [
            "sriov-dp-intel.com-dpdk-0000:3b:10.0.json",
            "sriov-dp-intel.com-dpdk-0000:3b:10.1.json",
            "sriov-dp-intel.com-dpdk-b-0000:3b:10.2.json",
            "sriov-dp-intel.com-net-pci-dpdk.yaml",
            "sriov-dp-intel.com-net-pci-other.yaml",
            "vendor.json",
        ] {
            fs::write(parent.path().join(name), "").unwrap();
        }
        let directory = Directory::new(parent.path().to_owned());
        let future = SystemTime::now() + std::time::Duration::from_secs(60);
        directory.sweep(&resource, DeviceType::NetDevice, future, |id| id == "0000:3b:10.1").unwrap();
        assert_eq!(
            files(parent.path()),
            [
                "sriov-dp-intel.com-dpdk-0000:3b:10.1.json",
                "sriov-dp-intel.com-dpdk-b-0000:3b:10.2.json",
                "sriov-dp-intel.com-net-pci-other.yaml",
                "vendor.json",
            ]
        );
    }
}
