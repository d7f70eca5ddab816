//! What the node offers.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::netdevice::devices;
use crate::cluster::NAMESPACE;
use crate::pod::PodSpec;
use crate::prepare::NETDEVICE;
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

/// `-explain` tells who holds a pod's VF, and in which namespace its interface is; of a free one neither.
pub(super) async fn explained(session: &mut Session) -> Result<()> {
    session.vlan_network("vlan100", 100).await?;
    let networks = json!([{"name": "vlan100", "ips": ["10.56.100.9/24"]}]);
    let pod = session.run(PodSpec::new("explained").networks(&networks).devices(NETDEVICE, 1)).await?;
    let [held] = devices(&pod.inside)?.try_into().ok().context("one device was asked for")?;
    let report = session.prepared.device_plugin.explain()?;
    let lines = report.get("devices").and_then(Value::as_array).context("no devices are explained")?;
    for vf in &session.prepared.netdevices {
        let line = lines.iter().find(|line| line.get("id") == Some(&json!(vf.to_string())));
        let line = line.with_context(|| format!("{vf} is not explained"))?;
        let told = |pointer: &str| line.pointer(pointer).unwrap_or(&Value::Null);
        ensure!(told("/resource") == NETDEVICE && told("/unhealthy").is_null(), "{line}");
        if *vf == held {
            let holder = json!({"namespace": NAMESPACE, "pod": "explained", "container": "main"});
            ensure!(*told("/holder") == holder && *told("/netdevs") == json!([]), "{line}");
            ensure!(told("/away/interface") == "net1" && told("/away/netns").is_string(), "{line}");
        } else {
            ensure!(told("/holder").is_null() && told("/away").is_null(), "{line}");
            ensure!(told("/netdevs/0").is_string(), "{line}");
        }
    }
    session.delete(&pod).await
}
