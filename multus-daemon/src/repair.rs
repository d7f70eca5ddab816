//! Network-status of pods that run, told again where it was lost: the API server was away, the daemon was killed before
//! it could tell, or somebody has removed it.

use std::collections::BTreeSet;
use std::sync::Arc;

use multus::kubernetes::{NETWORK_STATUS, Pod};
use multus::status::NetworkStatus;
use serde::Deserialize;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::calls::Calls;
use crate::on_record;

/// Looks at all pods of the node whenever they were listed anew, for ever.
pub async fn follow(calls: Arc<Calls>, mut listed: UnboundedReceiver<Vec<Pod>>) {
    while let Some(pods) = listed.recv().await {
        let calls = Arc::clone(&calls);
        let lacking = tokio::task::spawn_blocking({
            let calls = Arc::clone(&calls);
            move || lacking(&calls, pods)
        });
        for (container, pod) in lacking.await.unwrap_or_default() {
            repair(&calls, &container, &pod).await;
        }
    }
}

async fn repair(calls: &Arc<Calls>, container: &str, pod: &Pod) {
    let turn = calls.sandboxes.turn(container).await;
    let told = match calls.clients.client(calls.conf.kubeconfig.as_deref()).await {
        Ok(Some(kubernetes)) => on_record::report(calls, container, pod, &kubernetes).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    drop(turn);
    match told {
        Ok(()) => tracing::info!("pod {pod}: its network-status was lost and is told again"),
        Err(error) => tracing::warn!("pod {pod}: its network-status is lost: {error}"),
    }
}

/// The pods whose status does not tell of every network that they have, with their sandboxes. Those that are worked on
/// are told of when that is done.
fn lacking(calls: &Calls, pods: Vec<Pod>) -> Vec<(String, Pod)> {
    let mut sandboxes = on_record::by_pod(calls);
    let mut found = Vec::new();
    for pod in pods {
        let Some(container) = sandboxes.remove(&pod.uid) else { continue };
        let has = on_record::states(calls, &container).unwrap_or_default();
        let status = pod.annotations.get(NETWORK_STATUS).map_or("", String::as_str);
        if lacks(status, &has) && !calls.sandboxes.is_busy(&container) {
            found.push((container, pod));
        }
    }
    found
}

fn lacks(status: &str, has: &[NetworkStatus]) -> bool {
    #[derive(Deserialize)]
    struct State {
        #[serde(default)]
        name: String,
    }
    let states: Vec<State> = serde_json::from_str(status).unwrap_or_default();
    let told: BTreeSet<&str> = states.iter().map(|state| state.name.as_str()).collect();
    has.iter().any(|state| !told.contains(state.name.as_str()))
}
