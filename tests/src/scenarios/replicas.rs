//! Many pods of one kind.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::json;

use super::left::nothing_left;
use crate::pod::PodSpec;
use crate::prepare::PRIMARY;
use crate::session::{Running, Session};

/// The network of all of them.
const NETWORK: &str = "replicas";

/// Replicas come and go on one NAD: no two of them have one address, and nothing of them is left.
pub(super) async fn scaled(session: &mut Session) -> Result<()> {
    let config = json!({
        "cniVersion": "1.0.0", "name": NETWORK, "type": "bridge", "bridge": "podrail5",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.87.0.0/24"}]]},
    });
    session.cluster.create_nad(NETWORK, &config, None).await?;
    let replicas = |indices: std::ops::Range<u32>| {
        indices
            .map(|index| PodSpec::new(&format!("replica-{index}")).networks(&format!("{NETWORK},{NETWORK}")))
    };
    let mut pods = session.run_all(replicas(0..2)).await?;
    pods.extend(session.run_all(replicas(2..4)).await?);
    addresses_differ(session, &pods).await?;
    let some = pods.split_off(3);
    session.delete_all(&some).await?;
    session.node.restart_kubelet().await?;
    pods.extend(session.run_all(replicas(4..5)).await?);
    addresses_differ(session, &pods).await?;
    session.delete_all(&pods).await?;
    nothing_left(&[PRIMARY, NETWORK]).await
}

async fn addresses_differ(session: &Session, pods: &[Running]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for pod in pods {
        let status = session.cluster.network_status(pod.spec.name()).await?;
        let addresses: Vec<&String> = status.iter().flat_map(|state| &state.ips).collect();
        ensure!(addresses.len() == 3, "pod {} has {addresses:?}", pod.spec.name());
        for address in addresses {
            ensure!(seen.insert(address.clone()), "{address} was given twice");
        }
    }
    Ok(())
}
