//! The Node object: registered once, its status following the device manager.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use tracing::warn;

use super::Options;
use super::manager::DeviceManager;

/// How often the status is reported when nothing has changed; the kubelet of the lab has the same time.
const REGULARLY: Duration = Duration::from_secs(2);

/// Where the kernel counts huge pages of 2 MiB.
const HUGEPAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Creates the Node if it does not exist, and shows it ready with what it has now.
///
/// # Errors
/// The API server refuses.
pub(super) async fn register(client: &Client, options: &Options, manager: &DeviceManager) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let name = &options.node;
    let node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
    });
    match api.create(&PostParams::default(), &serde_json::from_value(node)?).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => return Err(error).with_context(|| format!("create node {name}")),
    }
    publish(&api, options, manager).await
}

/// Keeps the status up to date until dropped.
pub(super) async fn follow(client: Client, options: Options, manager: Arc<DeviceManager>) {
    let api: Api<Node> = Api::all(client);
    let mut changes = manager.changes();
    let mut due = false;
    loop {
        if !due && let Ok(Err(_)) = tokio::time::timeout(REGULARLY, changes.changed()).await {
            return;
        }
        changes.mark_unchanged();
        due = false;
        if let Err(error) = publish(&api, &options, &manager).await {
            warn!("{error:#}");
            due = true;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn publish(api: &Api<Node>, options: &Options, manager: &DeviceManager) -> Result<()> {
    let current = api.get(&options.node).await.with_context(|| format!("get node {}", options.node))?;
    let status = current.status.unwrap_or_default();
    let mut capacity: Map<String, Value> =
        [("cpu", cpus()), ("memory", "4Gi".to_owned()), ("pods", "110".to_owned())]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
    if let Some(pages) =
        std::fs::read_to_string(HUGEPAGES).ok().and_then(|text| text.trim().parse::<u64>().ok())
    {
        capacity.insert("hugepages-2Mi".into(), format!("{}Mi", pages * 2).into());
    }
    let mut allocatable = capacity.clone();
    let counts = manager.counts();
    for (resource, count) in &counts {
        capacity.insert(resource.clone(), count.capacity.to_string().into());
        allocatable.insert(resource.clone(), count.allocatable.to_string().into());
    }
    // A merge patch removes a key by null: resources that this kubelet does not know any more.
    for (shown, now) in [(status.capacity, &mut capacity), (status.allocatable, &mut allocatable)] {
        for name in shown.into_iter().flatten().map(|(name, _)| name) {
            now.entry(name).or_insert(Value::Null);
        }
    }
    let now = Timestamp::now();
    let status = json!({"status": {
        "capacity": capacity,
        "allocatable": allocatable,
        "addresses": [{"type": "InternalIP", "address": options.address}],
        "nodeInfo": {"bootID": host::boot_id().context("read which boot this is")?},
        "conditions": [{
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "simulated kubelet is posting ready status",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }],
    }});
    api.patch_status(&options.node, &PatchParams::default(), &Patch::Merge(&status))
        .await
        .with_context(|| format!("status of node {}", options.node))?;
    Ok(())
}

fn cpus() -> String {
    std::thread::available_parallelism().map_or(1, usize::from).to_string()
}
