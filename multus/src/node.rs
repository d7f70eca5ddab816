//! Where a node keeps what multus reads and writes outside its own configuration.

use std::path::PathBuf;

/// Paths that are fixed on a node by other programs.
#[derive(Debug, Clone)]
pub struct Node {
    /// kubelet's PodResources socket.
    pub pod_resources: PathBuf,
    /// kubelet's record of allocated devices, read where there is no socket.
    pub checkpoint: PathBuf,
    /// The directory of device-info files; those of device plugins are in `dp`, those of attachments in `cni`.
    pub device_info: PathBuf,
}

impl Default for Node {
    fn default() -> Self {
        Node {
            pod_resources: kubelet_api::podresources::SOCKET.into(),
            checkpoint: PathBuf::from(kubelet_api::deviceplugin::DIR).join("kubelet_internal_checkpoint"),
            device_info: "/var/run/k8s.cni.cncf.io/devinfo".into(),
        }
    }
}
