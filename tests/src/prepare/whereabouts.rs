//! The flat file of whereabouts, with what its installer puts beside it.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::network::write;

const FOLDER: &str = "/etc/cni/net.d/whereabouts.d";

/// Writes the flat file, `kubeconfig` and the name of the node.
///
/// # Errors
/// A file cannot be written.
pub(super) fn configure(kubeconfig: &str, node: &str) -> Result<()> {
    let folder = Path::new(FOLDER);
    let path = folder.join("whereabouts.kubeconfig");
    write(&path, kubeconfig.as_bytes())?;
    write(&folder.join("nodename"), node.as_bytes())?;
    let flat = json!({"datastore": "kubernetes", "kubernetes": {"kubeconfig": path}});
    write(&folder.join("whereabouts.conf"), &serde_json::to_vec_pretty(&flat)?)
}
