//! Device information files: what Multus and the programs behind it may know of a device
//! (Device Information Specification 1.1.0 of the Network Plumbing Working Group).

use std::path::PathBuf;
use std::time::SystemTime;

use host::PciAddress;
use serde::Serialize;

use crate::config::{Resource, VdpaType};
use crate::public_file;

pub(crate) use crate::public_file::Error;

const VERSION: &str = "1.1.0";

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DeviceInfo {
    #[serde(rename = "type")]
    kind: &'static str,
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pci: Option<Pci>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vdpa: Option<Vdpa>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Pci {
    pci_address: PciAddress,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdma_device: Option<String>,
    #[serde(flatten)]
    pf: Parent,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Vdpa {
    parent_device: String,
    driver: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    pci_address: PciAddress,
    #[serde(flatten)]
    pf: Parent,
}

/// What the PF of a VF adds. Nothing for other functions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Parent {
    /// The PF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pf_pci_address: Option<PciAddress>,
    /// The network device that stands for the VF in the NIC's switch, in switchdev mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) representor_device: Option<String>,
}

impl DeviceInfo {
    /// Of a VF or PF, with the names of its RDMA devices.
    pub(crate) fn pci(address: PciAddress, pf: Parent, rdma: &[String]) -> Self {
        let rdma_device = (!rdma.is_empty()).then(|| rdma.join(","));
        let pci = Pci { pci_address: address, rdma_device, pf };
        Self { kind: "pci", version: VERSION, pci: Some(pci), vdpa: None }
    }

    /// Of the vDPA device `name` of a VF, with the node of a vhost device.
    pub(crate) fn vdpa(
        address: PciAddress,
        pf: Parent,
        name: &str,
        kind: VdpaType,
        path: Option<String>,
    ) -> Self {
        let vdpa =
            Vdpa { parent_device: name.to_owned(), driver: kind.as_str(), path, pci_address: address, pf };
        Self { kind: "vdpa", version: VERSION, pci: None, vdpa: Some(vdpa) }
    }
}

/// The directory of these files. Only files of the resources that it is asked about are ever touched: other device
/// plugins write there, too.
#[derive(Debug, Clone)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    fn file(&self, resource: &Resource, id: &str) -> PathBuf {
        self.0.join(format!("{}-{id}-device.json", stem(resource)))
    }

    /// Writes the file of a device.
    pub(crate) fn write(&self, resource: &Resource, id: &str, info: &DeviceInfo) -> Result<(), Error> {
        // Texts always have a JSON form.
        public_file::write(&self.file(resource, id), &serde_json::to_vec(info).unwrap_or_default())
    }

    /// Removes the files of a resource's devices that were written before `before`, but for those that `keep` names.
    pub(crate) fn sweep(
        &self,
        resource: &Resource,
        before: SystemTime,
        keep: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let stem = format!("{}-", stem(resource));
        public_file::sweep(&self.0, before, |name| {
            let id = name.strip_prefix(&stem).and_then(|name| name.strip_suffix("-device.json"));
            // Another resource's name can begin with this one's; its rest is then no device's name.
            id.is_some_and(|id| id.parse::<PciAddress>().is_ok() && !keep(id))
        })
    }
}

fn stem(resource: &Resource) -> String {
    format!("{}-{}", resource.prefix, resource.name)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    fn resource(name: &str) -> Resource {
        Resource { prefix: "intel.com".into(), name: name.into() }
    }

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn files_are_as_the_specification_has_them() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::new(parent.path().join("a/dp"));
        let vf = address("0000:3b:02.1");
        let none = Parent::default;
        let pf = Parent { pf_pci_address: Some(address("0000:3b:00.0")), ..none() };
        let switchdev = Parent { representor_device: Some("eth7".into()), ..pf.clone() };
        let rdma = ["mlx5_2".to_owned(), "mlx5_3".to_owned()];
        let cases = [
            (
                DeviceInfo::pci(vf, none(), &[]),
                r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:3b:02.1"}}"#,
            ),
            (
                DeviceInfo::pci(vf, pf, &rdma),
                r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:3b:02.1","rdma-device":"mlx5_2,mlx5_3","pf-pci-address":"0000:3b:00.0"}}"#,
            ),
            (
                DeviceInfo::pci(vf, switchdev.clone(), &[]),
                r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:3b:02.1","pf-pci-address":"0000:3b:00.0","representor-device":"eth7"}}"#,
            ),
            (
                DeviceInfo::vdpa(vf, switchdev, "vdpa1", VdpaType::Virtio, None),
                r#"{"type":"vdpa","version":"1.1.0","vdpa":{"parent-device":"vdpa1","driver":"virtio","pci-address":"0000:3b:02.1","pf-pci-address":"0000:3b:00.0","representor-device":"eth7"}}"#,
            ),
            (
                DeviceInfo::vdpa(vf, none(), "vdpa0", VdpaType::Vhost, Some("/dev/vhost-vdpa-3".into())),
                r#"{"type":"vdpa","version":"1.1.0","vdpa":{"parent-device":"vdpa0","driver":"vhost","path":"/dev/vhost-vdpa-3","pci-address":"0000:3b:02.1"}}"#,
            ),
        ];
        for (info, expected) in cases {
            directory.write(&resource("vfs"), "0000:3b:02.1", &info).unwrap();
            let path = parent.path().join("a/dp/intel.com-vfs-0000:3b:02.1-device.json");
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
            assert_eq!(fs::read_dir(parent.path().join("a/dp")).unwrap().count(), 1);
        }
    }

    #[test]
    fn only_stale_files_of_the_resource_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::new(parent.path().to_owned());
        let info = DeviceInfo::pci(address("0000:3b:02.1"), Parent::default(), &[]);
        for (name, id) in [
            ("vfs", "0000:3b:02.1"),
            ("vfs", "0000:3b:02.2"),
            ("vfs-b", "0000:3b:02.3"),
            ("b", "0000:3b:02.4"),
        ] {
            directory.write(&resource(name), id, &info).unwrap();
        }
        let (past, future) = (SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(60));
        directory.sweep(&resource("vfs"), past, |_| false).unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 4, "none is older than that");
        directory.sweep(&resource("vfs"), future, |id| id == "0000:3b:02.2").unwrap();
        let mut left: Vec<String> = fs::read_dir(parent.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "intel.com-b-0000:3b:02.4-device.json",
                "intel.com-vfs-0000:3b:02.2-device.json",
                "intel.com-vfs-b-0000:3b:02.3-device.json",
            ]
        );
        Directory::new(parent.path().join("missing")).sweep(&resource("vfs"), future, |_| false).unwrap();
    }
}
