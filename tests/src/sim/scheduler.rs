//! A scheduler for one node: it binds pods that fit and says of the others what is short.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Binding, Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tracing::warn;

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// Schedules to `node` until dropped.
pub async fn run(client: Client, node: String) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = round(&client, &node).await {
            warn!("scheduler: {error:#}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn round(client: &Client, node: &str) -> Result<()> {
    let all: Api<Pod> = Api::all(client.clone());
    let waiting = all.list(&ListParams::default().fields("spec.nodeName=")).await.context("list pods")?;
    let waiting: Vec<Pod> =
        waiting.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let bound = all.list(&ListParams::default().fields(&format!("spec.nodeName={node}"))).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let allocatable = nodes.get(node).await.context("get node")?.status.and_then(|status| status.allocatable);
    let mut free: BTreeMap<String, i64> = allocatable
        .unwrap_or_default()
        .iter()
        .map(|(name, quantity)| (name.clone(), whole(quantity)))
        .collect();
    for pod in bound.items.iter().filter(|pod| !has_ended(pod)) {
        take(&mut free, &requests(pod));
    }
    for pod in &waiting {
        let api: Api<Pod> =
            Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or("default"));
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let wanted = requests(pod);
        let short = missing(&free, &wanted);
        if short.is_empty() {
            take(&mut free, &wanted);
            bind(client, pod, name, node).await?;
        } else {
            refuse(&api, pod, name, &short).await?;
        }
    }
    Ok(())
}

async fn bind(client: &Client, pod: &Pod, name: &str, node: &str) -> Result<()> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let binding: Binding = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }))?;
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let bound =
        api.create_subresource::<Binding, Status>("binding", name, &PostParams::default(), &binding).await;
    match bound {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("bind pod {name}")),
    }
}

async fn refuse(api: &Api<Pod>, pod: &Pod, name: &str, short: &[String]) -> Result<()> {
    let lines: Vec<String> = short.iter().map(|resource| format!("1 Insufficient {resource}")).collect();
    let message = format!("0/1 nodes are available: {}.", lines.join(", "));
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    if conditions.into_iter().flatten().any(|condition| condition.message.as_ref() == Some(&message)) {
        return Ok(());
    }
    let status = json!({"status": {"phase": "Pending", "conditions": [{
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastTransitionTime": Timestamp::now(),
    }]}});
    match api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        patched => patched.map(drop).with_context(|| format!("status of pod {name}")),
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What the pod needs: per resource the sum over its containers or the largest init container, whichever is more.
fn requests(pod: &Pod) -> BTreeMap<String, i64> {
    let Some(spec) = &pod.spec else { return BTreeMap::new() };
    let of = |container: &k8s_openapi::api::core::v1::Container| {
        let resources = container.resources.clone().unwrap_or_default();
        let mut asked = resources.limits.unwrap_or_default();
        asked.extend(resources.requests.unwrap_or_default());
        asked
    };
    let mut sum: BTreeMap<String, i64> = BTreeMap::new();
    for (name, quantity) in spec.containers.iter().flat_map(of) {
        *sum.entry(name).or_default() += whole(&quantity);
    }
    for (name, quantity) in spec.init_containers.iter().flatten().flat_map(of) {
        let entry = sum.entry(name).or_default();
        *entry = (*entry).max(whole(&quantity));
    }
    sum
}

fn take(free: &mut BTreeMap<String, i64>, wanted: &BTreeMap<String, i64>) {
    for (name, count) in wanted {
        if let Some(left) = free.get_mut(name) {
            *left -= count;
        }
    }
}

/// The resources of which less is free than wanted.
fn missing(free: &BTreeMap<String, i64>, wanted: &BTreeMap<String, i64>) -> Vec<String> {
    let short = wanted.iter().filter(|(name, count)| **count > free.get(*name).copied().unwrap_or(0));
    short.map(|(name, _)| name.clone()).collect()
}

/// A quantity in thousandths.
fn whole(quantity: &Quantity) -> i64 {
    let text = quantity.0.as_str();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text.get(digits.len()..).unwrap_or_default() {
        "m" => 1,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        _ => 1_000,
    };
    digits.parse::<i64>().unwrap_or(0).saturating_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_compared_in_thousandths() {
        for (text, expected) in
            [("2", 2_000), ("500m", 500), ("1Ki", 1_024_000), ("128Mi", 134_217_728_000), ("x", 0)]
        {
            assert_eq!(whole(&Quantity(text.into())), expected, "{text}");
        }
    }

    #[test]
    fn what_is_short_is_named() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "i", "resources": {"limits": {"a.org/x": "3"}}}],
            "containers": [
                {"name": "one", "resources": {"limits": {"a.org/x": "1", "cpu": "1"}, "requests": {"cpu": "100m"}}},
                {"name": "two", "resources": {"limits": {"a.org/x": "1"}}}],
        }}))
        .unwrap();
        let wanted = requests(&pod);
        assert_eq!(wanted, BTreeMap::from([("a.org/x".into(), 3_000), ("cpu".into(), 100)]));
        let mut free = BTreeMap::from([("a.org/x".to_owned(), 4_000), ("cpu".to_owned(), 200)]);
        assert!(missing(&free, &wanted).is_empty());
        take(&mut free, &wanted);
        assert_eq!(missing(&free, &wanted), ["a.org/x"]);
    }
}
