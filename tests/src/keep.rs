//! One node of a cluster, prepared as for the suite, while something else acts on the cluster.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use host::Sysfs;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::Cluster;
use crate::prepare::{Access, MULTUS, Sources, WHEREABOUTS, kubeconfig, prepare, wait_in_front};

/// How often the processes of the node are looked after.
const LOOKS: Duration = Duration::from_secs(1);

/// Prepares the node on which this runs and keeps it so until SIGTERM or SIGINT.
///
/// # Errors
/// The node cannot be prepared, or a process of it has ended.
pub async fn keep(sources: &Sources, admin: &Path) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the host name")?;
    let cluster = Cluster::connect(admin).await?;
    cluster.define_nads().await?;
    let client = cluster.client();
    let access = Access {
        multus: kubeconfig(&client, admin, MULTUS).await?,
        whereabouts: kubeconfig(&client, admin, WHEREABOUTS).await?,
        node: name.trim().to_owned(),
    };
    let mut prepared = prepare(sources, &Sysfs::default(), &access, &mut |line| println!("{line}"))?;
    if prepared.multus_daemon.is_some() {
        wait_in_front().await?;
    }
    println!("{} is prepared", access.node);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            () = tokio::time::sleep(LOOKS) => prepared.device_plugin.check()?,
        }
    }
}
