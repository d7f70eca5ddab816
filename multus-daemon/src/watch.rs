//! What the API server tells by itself: the pods of this node and all NADs, of each no more than is used.

use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1;
use kube::api::{Api, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt as _};
use multus::known::Known;
use multus::kubernetes::{DEFAULT_NETWORK, NETWORK_STATUS, NETWORKS, Pod, nad_resource};
use multus::nad::Nad;
use tokio::sync::mpsc;

/// Annotations of pods that count.
const USED: [&str; 3] = [NETWORKS, DEFAULT_NETWORK, "kubernetes.io/config.source"];

/// The same, and what a pod has: looked at once and not kept.
const LISTED: [&str; 4] = [NETWORKS, DEFAULT_NETWORK, "kubernetes.io/config.source", NETWORK_STATUS];

/// Objects of one answer to a list: what is held in memory at once while the watch begins.
const PAGE: u32 = 100;

/// Who is told of pods.
#[derive(Debug)]
pub struct Listeners {
    /// Is told of all pods whenever they are listed, at the start for one, with their network-status.
    pub listed: mpsc::UnboundedSender<Vec<Pod>>,
    /// Is told of every pod that is new or has changed.
    pub changed: Option<mpsc::UnboundedSender<Pod>>,
}

/// Follows the pods of `node` for ever.
pub async fn pods(client: Client, node: &str, known: Arc<Known>, listeners: Listeners) {
    let api: Api<PartialObjectMeta<v1::Pod>> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}")).page_size(PAGE);
    let tell = |pod: &Pod| {
        if let Some(changed) = &listeners.changed {
            // Nobody listens when the daemon ends.
            let _ = changed.send(pod.clone());
        }
    };
    let pod = |meta: PartialObjectMeta<v1::Pod>, used: &[&str]| Pod {
        namespace: meta.namespace().unwrap_or_default(),
        name: meta.name_any(),
        uid: meta.uid().unwrap_or_default(),
        annotations: meta
            .metadata
            .annotations
            .unwrap_or_default()
            .into_iter()
            .filter(|(key, _)| used.contains(&key.as_str()))
            .collect(),
    };
    let mut all = Vec::new();
    follow("pods", watcher(api, config), |event| match event {
        Event::Init => all.clear(),
        Event::InitApply(meta) => all.push(pod(meta, &LISTED)),
        Event::InitDone => {
            let listed = std::mem::take(&mut all);
            let without_status = |pod: &Pod| {
                let mut pod = pod.clone();
                pod.annotations.remove(NETWORK_STATUS);
                pod
            };
            let pods: Vec<Pod> = listed.iter().map(without_status).collect();
            known.learn_all_pods(pods.clone());
            pods.iter().for_each(tell);
            let _ = listeners.listed.send(listed);
        }
        Event::Apply(meta) => {
            let pod = pod(meta, &USED);
            tell(&pod);
            known.learn_pod(pod);
        }
        Event::Delete(meta) => known.forget_pod(&meta.namespace().unwrap_or_default(), &meta.name_any()),
    })
    .await;
}

/// Follows all NADs for ever.
pub async fn nads(client: Client, known: Arc<Known>) {
    let api: Api<DynamicObject> = Api::all_with(client, &nad_resource());
    let mut all = Vec::new();
    follow(
        "network-attachment-definitions",
        watcher(api, watcher::Config::default().page_size(PAGE)),
        |event| match event {
            Event::Init => all.clear(),
            Event::InitApply(object) => all.push(Nad::from(object)),
            Event::InitDone => known.learn_all_nads(std::mem::take(&mut all)),
            Event::Apply(object) => known.learn_nad(Nad::from(object)),
            Event::Delete(object) => {
                known.forget_nad(&object.namespace().unwrap_or_default(), &object.name_any());
            }
        },
    )
    .await;
}

/// While the watch is broken what is known may be old; a pod that is new is asked for then.
async fn follow<T>(
    kind: &str,
    events: impl Stream<Item = watcher::Result<Event<T>>> + Send,
    mut learn: impl FnMut(Event<T>),
) {
    let mut events = std::pin::pin!(events.default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => learn(event),
            Err(error) => tracing::warn!("watching {kind}: {error}; trying again"),
        }
    }
}
