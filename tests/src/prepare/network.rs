//! The node's network configuration: Multus in front of a primary network of the reference plugins.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

/// Name of the primary network.
pub const PRIMARY: &str = "podrail-primary";
/// Its bridge on the node.
pub const BRIDGE: &str = "podrail0";
/// The kubeconfig of Multus.
pub const KUBECONFIG: &str = "/etc/cni/net.d/multus.d/multus.kubeconfig";

/// Sorts before whatever else is in the folder.
const CONF: &str = "/etc/cni/net.d/00-multus.conf";

/// Writes Multus' configuration, and `kubeconfig` for it.
///
/// # Errors
/// A file cannot be written.
pub(super) fn configure(kubeconfig: &str) -> Result<()> {
    write(Path::new(KUBECONFIG), kubeconfig.as_bytes())?;
    let conf = json!({
        "cniVersion": "0.4.0",
        "name": "multus-cni-network",
        "type": "multus",
        "kubeconfig": KUBECONFIG,
        "delegates": [{
            "cniVersion": "0.4.0",
            "name": PRIMARY,
            "plugins": [{
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "10.88.0.0/24"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }],
        }],
    });
    write(Path::new(CONF), &serde_json::to_vec_pretty(&conf)?)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("path without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(host::durable::replace(path, bytes)?)
}
