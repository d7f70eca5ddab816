//! What the node offers.

use anyhow::{Result, ensure};

use crate::session::Session;

/// Capacity and allocatable are the number of VFs of each pool, and the device plugin runs on.
pub(super) async fn every_vf(session: &mut Session) -> Result<()> {
    for (resource, count) in session.pools() {
        let shown = session.cluster.node_resource(resource).await?;
        ensure!(
            shown == (count, count),
            "{resource}: capacity and allocatable are {shown:?}, VFs are {count}"
        );
    }
    session.prepared.device_plugin.check()
}
