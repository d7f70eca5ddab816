//! Watches: selection, resumption, the end of history.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, WatchEvent, WatchParams};
use kube::runtime::watcher;
use serde_json::{Value, json};

use crate::cluster::{Cluster, MAPS, MERGE, named};
use crate::custom::Pools;

/// A real cluster puts a map of that name into every namespace.
const OURS: &str = "metadata.name!=kube-root-ca.crt";

fn maps(cluster: &Cluster) -> Api<ConfigMap> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace)
}

fn version_of(map: &ConfigMap) -> u64 {
    map.metadata.resource_version.as_ref().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_watch_shows_what_enters_and_leaves_its_selection() {
    let cluster = Cluster::start("watch").await;
    let before = cluster.post(MAPS, &named("before")).await.unwrap();
    let version = before["metadata"]["resourceVersion"].as_str().unwrap();
    let path = &format!("{MAPS}/a");
    cluster.post(MAPS, &named("a")).await.unwrap();
    for labels in [json!({"on": "1"}), json!({"x": "y"}), json!({"on": null}), json!({"on": "1"})] {
        cluster.patch(path, MERGE, &json!({"metadata": {"labels": labels}})).await.unwrap();
    }
    let gone = cluster.delete(path, &Value::Null).await.unwrap();
    assert_eq!((&gone["status"], &gone["details"]["name"]), (&json!("Success"), &json!("a")));

    let seen = async |params: WatchParams, count: usize| {
        let events = maps(&cluster).watch(&params, version).await.unwrap();
        let named = events.map_ok(|event| match event {
            WatchEvent::Added(map) => ("ADDED", version_of(&map)),
            WatchEvent::Modified(map) => ("MODIFIED", version_of(&map)),
            WatchEvent::Deleted(map) => ("DELETED", version_of(&map)),
            other => panic!("{other:?}"),
        });
        let (names, versions): (Vec<_>, Vec<_>) =
            named.take(count).try_collect::<Vec<_>>().await.unwrap().into_iter().unzip();
        assert!(
            versions.is_sorted_by(|a, b| a < b),
            "a client that resumes would see something twice: {versions:?}"
        );
        names
    };
    assert_eq!(
        seen(WatchParams::default().labels("on=1"), 5).await,
        ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
    );
    assert_eq!(
        seen(WatchParams::default().fields("metadata.name=a"), 6).await,
        ["ADDED", "MODIFIED", "MODIFIED", "MODIFIED", "MODIFIED", "DELETED"]
    );
}

#[tokio::test]
async fn a_watch_ends_in_time_and_resumes_without_a_gap() {
    let cluster = Cluster::start("resume").await;
    cluster.post(MAPS, &named("a")).await.unwrap();
    let params = WatchParams::default().timeout(1).fields(OURS);
    let events: Vec<_> = maps(&cluster).watch(&params, "0").await.unwrap().try_collect().await.unwrap();
    let versions: Vec<String> = events
        .into_iter()
        .filter_map(|event| match event {
            WatchEvent::Added(map) => map.metadata.resource_version,
            WatchEvent::Bookmark(_) => None,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(versions.len(), 1);
    let made = cluster.post(MAPS, &named("b")).await.unwrap();
    let events = maps(&cluster).watch(&params, &versions[0]).await.unwrap();
    let next = std::pin::pin!(events).next().await.unwrap().unwrap();
    let WatchEvent::Added(map) = next else { panic!("{next:?}") };
    assert_eq!(map.metadata.uid.as_deref(), made["metadata"]["uid"].as_str());
}

#[tokio::test]
async fn a_watch_from_a_forgotten_past_is_told_so() {
    let cluster = Cluster::start("gone").await;
    // A real server's memory of a kind begins when the kind is defined.
    let pools = Pools::define(&cluster).await;
    if let Some(server) = &cluster.server {
        server.compact();
    }
    let kind =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(&pools.group, "v1", "IPPool"), "ippools");
    let objects = Api::<DynamicObject>::namespaced_with(cluster.client.clone(), &cluster.namespace, &kind);
    let events = objects.watch(&WatchParams::default(), "1").await.unwrap();
    let first = std::pin::pin!(events).next().await.unwrap().unwrap();
    let WatchEvent::Error(status) = first else { panic!("{first:?}") };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    pools.forget(&cluster).await;
}

#[tokio::test]
async fn kubes_watcher_follows() {
    let cluster = Cluster::start("watcher").await;
    cluster.post(MAPS, &named("a")).await.unwrap();
    let mut events = std::pin::pin!(watcher(maps(&cluster), watcher::Config::default().fields(OURS)));
    let mut seen = Vec::new();
    let name = |map: ConfigMap| map.metadata.name.unwrap();
    while seen.len() < 5 {
        let event =
            tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap().unwrap();
        seen.push(match event {
            watcher::Event::Init => "init".to_owned(),
            watcher::Event::InitApply(map) => format!("init {}", name(map)),
            watcher::Event::InitDone => {
                cluster.post(MAPS, &named("b")).await.unwrap();
                cluster.delete(&format!("{MAPS}/a"), &Value::Null).await.unwrap();
                "done".to_owned()
            }
            watcher::Event::Apply(map) => format!("apply {}", name(map)),
            watcher::Event::Delete(map) => format!("delete {}", name(map)),
        });
    }
    assert_eq!(seen, ["init", "init a", "done", "apply b", "delete a"]);
}
