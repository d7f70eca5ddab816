//! Device-info files: what a device plugin or a CNI plugin says of the device behind an attachment.
//!
//! Source: Device Information Specification 1.1.0. The device plugin writes one file for each allocated device,
//! multus copies it to where the delegate may amend it, and reports it in the network-status.

use serde::{Deserialize, Serialize};

/// The content of a device-info file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceInfo {
    /// `pci`, `vhost-user`, `memif` or `vdpa`; says which of the members below counts.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Version of the specification.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Of a PCI function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci: Option<Pci>,
    /// Of a vDPA device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vdpa: Option<Vdpa>,
    /// Of a vhost-user socket.
    #[serde(rename = "vhost-user", skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<VhostUser>,
    /// Of a memif socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memif: Option<Memif>,
}

/// A PCI function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Pci {
    /// Its address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pci_address: String,
    /// The vhost-net node given along with it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub vhost_net: String,
    /// Its RDMA devices, comma-separated.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rdma_device: String,
    /// The address of its PF.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pf_pci_address: String,
    /// The netdev that represents it in switchdev mode.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub representor_device: String,
}

/// A vDPA device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Vdpa {
    /// Its name on the vdpa bus.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parent_device: String,
    /// `vhost` or `virtio`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// Its node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The address of the PCI function behind it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pci_address: String,
    /// The address of that function's PF.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pf_pci_address: String,
    /// The netdev that represents it in switchdev mode.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub representor_device: String,
}

/// A vhost-user socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VhostUser {
    /// `client` or `server`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// The socket.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// A memif socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memif {
    /// `master` or `slave`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// The socket.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// `ethernet`, `ip` or `inject-punt`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
}

/// The name of the file that the device plugin writes for a device.
#[must_use]
pub fn plugin_file_name(resource: &str, device_id: &str) -> String {
    format!("{}-{}-device.json", resource.replace('/', "-"), device_id.replace('/', "-"))
}

/// The name of the file of one attachment, which the delegate is told in the capability `CNIDeviceInfoFile`.
#[must_use]
pub fn attachment_file_name(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{}-{container_id}_{ifname}", network.replace('/', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_order_and_omits_what_it_lacks() {
        let text =
            r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:3b:10.0","rdma-device":"a,b"}}"#;
        let info: DeviceInfo = serde_json::from_str(text).unwrap();
        assert_eq!(info.pci.as_ref().map(|pci| pci.pci_address.as_str()), Some("0000:3b:10.0"));
        assert_eq!(serde_json::to_string(&info).unwrap(), text);
    }

    #[test]
    fn file_names_have_no_slash() {
        assert_eq!(
            plugin_file_name("intel.com/sriov", "0000:3b:10.0"),
            "intel.com-sriov-0000:3b:10.0-device.json"
        );
        assert_eq!(attachment_file_name("ns/net", "c0ffee", "net1"), "ns-net-c0ffee_net1");
    }
}
