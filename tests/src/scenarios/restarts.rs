//! Daemons that restart while pods run.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::inside::Inside;
use crate::pod::PodSpec;
use crate::prepare::NETDEVICE;
use crate::session::{Running, Session};
use crate::wait::until;

/// How long the devices may take to disappear from the node when their plugin or kubelet is gone.
const DISAPPEARS: Duration = Duration::from_secs(60);

/// A new kubelet offers every VF again, the pod keeps its interface, the next pod gets a VF.
pub(super) async fn kubelet(session: &mut Session) -> Result<()> {
    let (first, address) = first_pod(session).await?;
    session.node.restart_kubelet().await?;
    // Until then the node shows what the old kubelet knew.
    session.cluster.wait_heartbeat(Timestamp::now()).await?;
    session.wait_advertised().await?;
    untouched(&first).await?;
    next_pod(session, &first, address).await
}

/// Without its plugin the node offers no VF, with it all of them; the pod keeps its interface.
pub(super) async fn device_plugin_killed(session: &mut Session) -> Result<()> {
    let (first, address) = first_pod(session).await?;
    session.prepared.device_plugin.end(Signal::SIGKILL)?;
    until(DISAPPEARS, "the node to offer no VF without the device plugin", async || {
        Ok((session.cluster.node_resource(NETDEVICE).await?.1 == 0).then_some(()))
    })
    .await?;
    untouched(&first).await?;
    session.prepared.device_plugin.restart()?;
    session.wait_advertised().await?;
    next_pod(session, &first, address).await
}

/// A pod that has a VF, and its address.
pub(super) async fn first_pod(session: &Session) -> Result<(Running, IpAddr)> {
    session.vlan_network("vlan100", 100).await?;
    let request = json!([{"name": "vlan100", "ips": ["10.56.100.41/24"]}]);
    let pod = session.run(PodSpec::new("before").networks(&request).devices(NETDEVICE, 1)).await?;
    Ok((pod, IpAddr::from([10, 56, 100, 41])))
}

/// Fails if the pod is not what it was.
pub(super) async fn untouched(pod: &Running) -> Result<()> {
    let now = Inside::find(&pod.spec).await.context("the running pod was ended")?;
    ensure!(now.pid() == pod.inside.pid(), "the running pod was started again");
    pod.inside.link("net1").await.context("the running pod lost its interface")?;
    Ok(())
}

/// Another pod gets another VF and reaches the first.
pub(super) async fn next_pod(session: &Session, first: &Running, address: IpAddr) -> Result<()> {
    let request = json!([{"name": "vlan100", "ips": ["10.56.100.42/24"]}]);
    let second = session.run(PodSpec::new("after").networks(&request).devices(NETDEVICE, 1)).await?;
    second.inside.reaches(address).await?;
    session.delete(&second).await?;
    session.delete(first).await
}
