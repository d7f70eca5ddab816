//! kubelet's gRPC interfaces over unix sockets: device plugin, plugin registration, pod resources.
//!
//! Messages, clients and servers are generated from the `.proto` files of the `kubelet` folder. Their documentation
//! is kubelet's own: <https://github.com/kubernetes/kubelet/tree/master/pkg/apis>.

#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all, clippy::pedantic)]
mod generated {
    pub mod deviceplugin {
        tonic::include_proto!("v1beta1");
    }
    pub mod registration {
        tonic::include_proto!("pluginregistration");
    }
    pub mod podresources {
        tonic::include_proto!("v1");
    }
}

mod authority;
mod connect;
mod hpack;
mod incoming;

pub use connect::{ConnectError, connect};
pub use incoming::{Connection, Incoming, incoming};

/// The device plugin interface, package `v1beta1`: `Registration` is kubelet's, `DevicePlugin` is the plugin's.
pub mod deviceplugin {
    pub use crate::generated::deviceplugin::*;

    /// The version that a plugin names in [`RegisterRequest`] and in its
    /// [`PluginInfo`](crate::registration::PluginInfo).
    pub const VERSION: &str = "v1beta1";
    /// [`Device::health`] of a device that kubelet may hand out.
    pub const HEALTHY: &str = "Healthy";
    /// [`Device::health`] of a device that kubelet must not hand out.
    pub const UNHEALTHY: &str = "Unhealthy";
    /// Where kubelet looks for sockets of plugins that register through its [`SOCKET`]; emptied when it starts.
    pub const DIR: &str = "/var/lib/kubelet/device-plugins";
    /// File name of kubelet's own socket in [`DIR`].
    pub const SOCKET: &str = "kubelet.sock";
}

/// Plugin registration through a watched folder, package `pluginregistration`: kubelet calls every socket it finds.
pub mod registration {
    pub use crate::generated::registration::*;

    /// The folder that kubelet's plugin watcher looks at.
    pub const DIR: &str = "/var/lib/kubelet/plugins_registry";
    /// [`PluginInfo::type`](PluginInfo) of a device plugin.
    pub const DEVICE_PLUGIN: &str = "DevicePlugin";
}

/// Which container holds which devices, package `v1`.
pub mod podresources {
    pub use crate::generated::podresources::*;

    /// kubelet's socket of this interface.
    pub const SOCKET: &str = "/var/lib/kubelet/pod-resources/kubelet.sock";
}
