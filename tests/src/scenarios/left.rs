//! What pods leave on a node: nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::wait::until;

/// The state of Multus.
const STATE: &str = "/var/lib/cni/multus";
/// Where host-local keeps the leases of a network, unless told otherwise.
const LEASES: &str = "/var/lib/cni/networks";
/// How long what was left is seen to.
const SEEN_TO: Duration = Duration::from_secs(120);

/// Waits until there is no record, no cached result, no kept DEL, and no lease of `networks`: names of networks, or
/// folders with their leases.
pub(super) async fn nothing_left(networks: &[&str]) -> Result<()> {
    let files = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names =
            entries.filter(|e| e.path().is_file()).map(|e| e.file_name().to_string_lossy().into_owned());
        names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip")).collect()
    };
    let state = [STATE.into(), format!("{STATE}/results"), format!("{STATE}/pending")].map(Into::into);
    let leases = networks.iter().map(|network| Path::new(LEASES).join(network));
    let folders: Vec<std::path::PathBuf> = state.into_iter().chain(leases).collect();
    let left = || folders.iter().flat_map(|folder| files(folder)).collect::<Vec<_>>();
    until(SEEN_TO, "nothing to be left of any pod", async || Ok(left().is_empty().then_some(())))
        .await
        .with_context(|| format!("left: {:?}", left()))
}
