//! Pods and networks that cannot work: one clear error, no VF changed.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::pod::PodSpec;
use crate::prepare::NETDEVICE;
use crate::session::Session;

/// A NAD names a device that the node does not have.
pub(super) async fn unknown_device(session: &mut Session) -> Result<()> {
    let config = json!({"cniVersion": "1.0.0", "type": "sriov", "deviceID": "0000:ff:1f.7"});
    session.cluster.create_nad("unknown-device", &config, None).await?;
    refused(session, PodSpec::new("unknown-device").networks("unknown-device"), &["0000:ff:1f.7"]).await
}

/// The annotation names a NAD that nobody made.
pub(super) async fn missing_nad(session: &mut Session) -> Result<()> {
    let spec = PodSpec::new("missing-nad").networks("nobody-made-this").devices(NETDEVICE, 1);
    refused(session, spec, &["nobody-made-this"]).await
}

/// A NAD names a plugin that is not in /opt/cni/bin.
pub(super) async fn missing_plugin(session: &mut Session) -> Result<()> {
    let config = json!({"cniVersion": "1.0.0", "type": "nobody-installed-this"});
    session.cluster.create_nad("missing-plugin", &config, Some(NETDEVICE)).await?;
    let spec = PodSpec::new("missing-plugin").networks("missing-plugin").devices(NETDEVICE, 1);
    refused(session, spec, &["nobody-installed-this"]).await
}

/// A NAD has a resource and the pod asked for no device of it: that is no ADD without a device.
pub(super) async fn no_device(session: &mut Session) -> Result<()> {
    session.vlan_network("vlan100", 100).await?;
    let request = json!([{"name": "vlan100", "ips": ["10.56.100.30/24"]}]);
    refused(session, PodSpec::new("no-device").networks(&request), &[NETDEVICE, "vlan100"]).await
}

/// VLAN 4095 does not exist.
pub(super) async fn bad_vlan(session: &mut Session) -> Result<()> {
    session.vlan_network("bad-vlan", 4095).await?;
    let request = json!([{"name": "bad-vlan", "ips": ["10.56.100.30/24"]}]);
    refused(session, PodSpec::new("bad-vlan").networks(&request).devices(NETDEVICE, 1), &["vlan", "4095"])
        .await
}

/// The configuration in a NAD is a JSON string instead of an object.
pub(super) async fn broken_nad(session: &mut Session) -> Result<()> {
    session.cluster.create_nad("broken-nad", &json!("type: sriov"), Some(NETDEVICE)).await?;
    let spec = PodSpec::new("broken-nad").networks("broken-nad").devices(NETDEVICE, 1);
    refused(session, spec, &["broken-nad"]).await
}

/// The annotation looks like JSON and is none.
pub(super) async fn broken_annotation(session: &mut Session) -> Result<()> {
    let spec = PodSpec::new("broken-annotation").networks(r#"[{"name": "vlan100""#).devices(NETDEVICE, 1);
    refused(session, spec, &["annotation"]).await
}

/// One device more than the node has.
pub(super) async fn too_many(session: &mut Session) -> Result<()> {
    let before = session.vfs().await?;
    let count = session.prepared.netdevices.len() as u64 + 1;
    let spec = PodSpec::new("too-many").devices(NETDEVICE, count);
    session.cluster.create_pod(&spec).await?;
    let message = session.cluster.wait_unschedulable("too-many").await?;
    ensure!(message.contains(&format!("Insufficient {NETDEVICE}")), "the scheduler says: {message}");
    session.ensure_unchanged(&before).await
}

/// Creates the pod; the node has to refuse it with a message that contains all of `words`, and touch no VF.
pub(super) async fn refused(session: &Session, spec: PodSpec, words: &[&str]) -> Result<()> {
    let before = session.vfs().await?;
    let uid = session.cluster.create_pod(&spec).await?;
    let name = spec.name();
    let contains = |message: &str| {
        let message = message.to_lowercase();
        message.contains("failed to create pod sandbox")
            && words.iter().all(|word| message.contains(&word.to_lowercase()))
    };
    let message = session
        .cluster
        .wait_warning(name, &uid, contains)
        .await
        .with_context(|| format!("an error about {}", words.join(" and ")))?;
    ensure!(!message.contains("panic"), "a program panicked: {message}");
    session.ensure_unchanged(&before).await.context("the pod was refused")?;
    session.cluster.delete_pod(name).await
}
