//! Where things stand on a node.

use std::path::{Path, PathBuf};

/// The directories that the plugin works with. [`Places::default`] is a node; a test has its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    /// Where sysfs is mounted.
    pub(crate) sysfs: PathBuf,
    /// Where device nodes are, as this process sees them.
    pub(crate) dev: PathBuf,
    /// kubelet's directory.
    pub(crate) kubelet: PathBuf,
    /// Device information files for Multus, of device plugins.
    pub(crate) device_info: PathBuf,
    /// CDI specifications that do not outlive a boot.
    pub(crate) cdi: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            sysfs: "/sys".into(),
            dev: "/dev".into(),
            kubelet: "/var/lib/kubelet".into(),
            device_info: "/var/run/k8s.cni.cncf.io/devinfo/dp".into(),
            cdi: "/var/run/cdi".into(),
        }
    }
}

impl Places {
    /// The directory that kubelet's plugin watcher looks at.
    pub(crate) fn plugins_registry(&self) -> PathBuf {
        self.kubelet.join("plugins_registry")
    }

    /// The directory of `kubelet.sock`, which kubelet empties when it starts.
    pub(crate) fn device_plugins(&self) -> PathBuf {
        self.kubelet.join("device-plugins")
    }

    /// kubelet's socket for registering.
    pub(crate) fn registration_socket(&self) -> PathBuf {
        self.device_plugins().join(kubelet_api::deviceplugin::SOCKET)
    }

    /// kubelet's socket that tells which container holds which device.
    pub(crate) fn pod_resources_socket(&self) -> PathBuf {
        self.kubelet.join("pod-resources/kubelet.sock")
    }

    /// Whether a device node exists below `/dev`.
    pub(crate) fn has_node(&self, name: impl AsRef<Path>) -> bool {
        self.dev.join(name).exists()
    }
}
