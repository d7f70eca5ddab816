//! The node's network configuration: Multus in front of a primary network of the reference plugins.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::wait::until;

/// How long the daemon may take to start, on an emulated processor.
const WRITES: Duration = Duration::from_secs(60);

/// Name of the primary network.
pub const PRIMARY: &str = "podrail-primary";
/// Its bridge on the node.
pub const BRIDGE: &str = "podrail0";
/// The kubeconfig of Multus.
pub const KUBECONFIG: &str = "/etc/cni/net.d/multus.d/multus.kubeconfig";

/// Folder of the runtime's configurations.
const FOLDER: &str = "/etc/cni/net.d";
/// Multus in thin mode: sorts before whatever else is in the folder.
const THIN: &str = "00-multus.conf";
/// Multus in thick mode, as its daemon writes it for a primary of version 1.0.0.
const THICK: &str = "00-multus.conflist";
/// The primary network by itself, in thick mode.
const ALONE: &str = "10-podrail-primary.conflist";

/// Configuration of the Multus daemon.
pub(super) const DAEMON_CONF: &str = "/etc/cni/net.d/multus.d/daemon-config.json";

/// Writes Multus' configuration, and `kubeconfig` for it.
///
/// # Errors
/// A file cannot be written.
pub(super) fn configure(kubeconfig: &str) -> Result<()> {
    write(Path::new(KUBECONFIG), kubeconfig.as_bytes())?;
    for other in [THICK, ALONE] {
        host::durable::remove(&Path::new(FOLDER).join(other))?;
    }
    let conf = json!({
        "cniVersion": "0.4.0",
        "name": "multus-cni-network",
        "type": "multus",
        "kubeconfig": KUBECONFIG,
        "delegates": [primary("0.4.0")],
    });
    write(&Path::new(FOLDER).join(THIN), &serde_json::to_vec_pretty(&conf)?)
}

/// Writes the primary network's configuration, and that of the Multus daemon, which puts itself in front of it.
///
/// # Errors
/// A file cannot be written.
pub(super) fn configure_thick(kubeconfig: &str) -> Result<()> {
    write(Path::new(KUBECONFIG), kubeconfig.as_bytes())?;
    for other in [THIN, THICK] {
        host::durable::remove(&Path::new(FOLDER).join(other))?;
    }
    write(&Path::new(FOLDER).join(ALONE), &serde_json::to_vec_pretty(&primary("1.0.0"))?)?;
    let conf = json!({
        "kubeconfig": KUBECONFIG, "logLevel": "debug", "logToStderr": true, "followAnnotations": true,
    });
    write(Path::new(DAEMON_CONF), &serde_json::to_vec_pretty(&conf)?)
}

/// Waits until the daemon has put Multus in front of the primary network.
///
/// # Errors
/// It does not.
pub async fn wait_in_front() -> Result<()> {
    until(WRITES, "multus-daemon to write the runtime's configuration", async || {
        Ok(Path::new(FOLDER).join(THICK).exists().then_some(()))
    })
    .await
}

/// The file that puts Multus in front of the primary network in thick mode.
pub fn in_front() -> PathBuf {
    Path::new(FOLDER).join(THICK)
}

/// Puts another primary network, called `name`, in front of the one that is there; the file to remove to have that back.
///
/// # Errors
/// The file cannot be written.
pub fn other_primary(name: &str) -> Result<PathBuf> {
    let file = Path::new(FOLDER).join(format!("05-{name}.conflist"));
    write(&file, &serde_json::to_vec_pretty(&bridge("1.0.0", name, "podrail2", "10.90.0.0/24"))?)?;
    Ok(file)
}

fn primary(version: &str) -> Value {
    bridge(version, PRIMARY, BRIDGE, "10.88.0.0/24")
}

fn bridge(version: &str, name: &str, bridge: &str, subnet: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": name,
        "plugins": [{
            "type": "bridge",
            "bridge": bridge,
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("path without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(host::durable::replace(path, bytes)?)
}
