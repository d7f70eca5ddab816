//! What a scenario does through the Kubernetes API.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::pod::{LABEL, NETWORKS, PodSpec};
use crate::wait::until;

/// Namespace of every object that the suite makes.
pub const NAMESPACE: &str = "default";
/// Annotation of a pod: what Multus attached.
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// The definition that an administrator applies.
const NAD_DEFINITION: &str = include_str!("../../deploy/network-attachment-definition.yaml");
/// Annotation of a NAD: the resource whose devices its attachments use.
const RESOURCE_NAME: &str = "k8s.v1.cni.cncf.io/resourceName";

/// How long a pod may take to run: an emulated node with a real kubelet is slow.
const RUNNING: Duration = Duration::from_secs(300);
/// How long a pod may take to disappear.
const GONE: Duration = Duration::from_secs(240);
/// How long an expected event or condition may take.
const REPORTED: Duration = Duration::from_secs(150);

/// A Kubernetes cluster with one node.
#[derive(Clone, Debug)]
pub struct Cluster {
    pods: Api<Pod>,
    nads: Api<DynamicObject>,
    events: Api<Event>,
    nodes: Api<Node>,
}

/// One element of the network-status annotation.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct NetworkStatus {
    /// Name of the network: `<namespace>/<NAD>`, or that of the primary.
    pub name: String,
    /// Interface in the pod.
    pub interface: String,
    /// Addresses without prefix length.
    pub ips: Vec<String>,
    /// MAC address.
    pub mac: String,
    /// Whether it is the primary network.
    pub default: bool,
    /// Where the VF is.
    #[serde(rename = "device-info")]
    pub device_info: Option<Value>,
}

impl Cluster {
    /// The cluster that `kubeconfig` describes.
    ///
    /// # Errors
    /// The file is no kubeconfig, or makes no client.
    pub async fn connect(kubeconfig: &Path) -> Result<Cluster> {
        let read =
            Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let nad = ApiResource {
            group: "k8s.cni.cncf.io".into(),
            version: "v1".into(),
            api_version: "k8s.cni.cncf.io/v1".into(),
            kind: "NetworkAttachmentDefinition".into(),
            plural: "network-attachment-definitions".into(),
        };
        Ok(Cluster {
            pods: Api::namespaced(client.clone(), NAMESPACE),
            nads: Api::namespaced_with(client.clone(), NAMESPACE, &nad),
            events: Api::namespaced(client.clone(), NAMESPACE),
            nodes: Api::all(client),
        })
    }

    /// The client.
    pub fn client(&self) -> Client {
        self.nodes.clone().into_client()
    }

    /// Makes the cluster know NADs and waits until it does.
    ///
    /// # Errors
    /// The API server refuses the definition.
    pub async fn define_nads(&self) -> Result<()> {
        let definition: CustomResourceDefinition =
            serde_saphyr::from_str(NAD_DEFINITION).context("decode network-attachment-definition.yaml")?;
        let api: Api<CustomResourceDefinition> = Api::all(self.client());
        match api.create(&PostParams::default(), &definition).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error).context("create the NetworkAttachmentDefinition CRD"),
        }
        until(REPORTED, "the API server to serve NADs", async || {
            Ok(self.nads.list(&ListParams::default()).await.is_ok().then_some(()))
        })
        .await
    }

    /// Creates NAD `name` with `config`, for devices of `resource` if given.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn create_nad(&self, name: &str, config: &Value, resource: Option<&str>) -> Result<()> {
        self.create(name, Some(config), resource).await
    }

    /// Creates NAD `name` without a configuration: that is a file on each node.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn create_nad_of_nodes(&self, name: &str) -> Result<()> {
        self.create(name, None, None).await
    }

    async fn create(&self, name: &str, config: Option<&Value>, resource: Option<&str>) -> Result<()> {
        let annotations: BTreeMap<&str, &str> =
            resource.map(|resource| (RESOURCE_NAME, resource)).into_iter().collect();
        let nad: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "k8s.cni.cncf.io/v1",
            "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name, "annotations": annotations, "labels": {LABEL.0: LABEL.1}},
            "spec": config.map_or_else(|| json!({}), |config| json!({"config": config.to_string()})),
        }))?;
        self.nads.create(&PostParams::default(), &nad).await.with_context(|| format!("create NAD {name}"))?;
        Ok(())
    }

    /// Creates a pod; its UID.
    ///
    /// # Errors
    /// The API server refuses, also after the time that a fresh cluster needs for its default service account.
    pub async fn create_pod(&self, spec: &PodSpec) -> Result<String> {
        let pod: Pod = serde_json::from_value(spec.to_json())?;
        let name = spec.name();
        let created = until(REPORTED, &format!("pod {name} to be accepted"), async || {
            match self.pods.create(&PostParams::default(), &pod).await {
                Ok(pod) => Ok(Some(pod)),
                Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
                Err(error) => Err(error).with_context(|| format!("create pod {name}")),
            }
        })
        .await?;
        created.metadata.uid.with_context(|| format!("pod {name} has no UID"))
    }

    /// Changes the networks that a pod asks for.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn ask_for_networks(&self, pod: &str, annotation: &(impl ToString + ?Sized)) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {NETWORKS: annotation.to_string()}}});
        let patched = self.pods.patch(pod, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.with_context(|| format!("change the networks of pod {pod}")).map(drop)
    }

    /// The pod as the API server shows it.
    ///
    /// # Errors
    /// There is none.
    pub async fn pod(&self, name: &str) -> Result<Pod> {
        self.pods.get(name).await.with_context(|| format!("get pod {name}"))
    }

    /// Waits until the pod runs.
    ///
    /// # Errors
    /// It ends or does not come up in time; the text holds what its events say.
    pub async fn wait_running(&self, name: &str) -> Result<()> {
        let running = until(RUNNING, &format!("pod {name} to run"), async || {
            let status = self.pod(name).await?.status.unwrap_or_default();
            match status.phase.as_deref() {
                Some("Running") => Ok(Some(())),
                Some(phase @ ("Failed" | "Succeeded")) => {
                    let message = status.message.or(status.reason).unwrap_or_default();
                    bail!("pod {name} is {phase} instead of running: {message}")
                }
                _ => Ok(None),
            }
        })
        .await;
        self.explain(name, running).await
    }

    /// Deletes the pod and waits until nothing of it is left in the API.
    ///
    /// # Errors
    /// It stays; the text holds what its events say.
    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        self.request_deletion(name).await?;
        self.wait_gone(name).await
    }

    /// Deletes the pod and does not wait.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn request_deletion(&self, name: &str) -> Result<()> {
        match self.pods.delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error).with_context(|| format!("delete pod {name}")),
        }
    }

    /// Waits until the pod is gone.
    ///
    /// # Errors
    /// It stays; the text holds what its events say.
    pub async fn wait_gone(&self, name: &str) -> Result<()> {
        let gone = until(GONE, &format!("pod {name} to be gone"), async || {
            Ok(self.pods.get_opt(name).await?.is_none().then_some(()))
        })
        .await;
        self.explain(name, gone).await
    }

    /// Deletes every pod and NAD of the suite and waits until they are gone.
    ///
    /// # Errors
    /// Something stays.
    pub async fn clean(&self) -> Result<()> {
        let ours = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
        let pods = self.pods.list(&ours).await.context("list pods")?;
        let names: Vec<String> = pods.items.into_iter().filter_map(|pod| pod.metadata.name).collect();
        for name in &names {
            self.request_deletion(name).await?;
        }
        for name in &names {
            self.wait_gone(name).await?;
        }
        for nad in self.nads.list(&ours).await.context("list NADs")? {
            if let Some(name) = nad.metadata.name {
                self.nads
                    .delete(&name, &DeleteParams::default())
                    .await
                    .with_context(|| format!("delete NAD {name}"))?;
            }
        }
        Ok(())
    }

    /// The messages of the pod's warning events, oldest first.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn warnings(&self, pod: &str) -> Result<Vec<String>> {
        let ours =
            ListParams::default().fields(&format!("involvedObject.name={pod},involvedObject.kind=Pod"));
        let mut events = self.events.list(&ours).await.context("list events")?.items;
        events.sort_by_key(|event| event.last_timestamp.clone());
        let warnings = events.into_iter().filter(|event| event.type_.as_deref() == Some("Warning"));
        Ok(warnings.filter_map(|event| event.message).collect())
    }

    /// Waits for a warning on the pod of UID `uid` whose message satisfies `matches`; the message.
    ///
    /// # Errors
    /// None comes in time; the text holds the last one that did come.
    pub async fn wait_warning(&self, pod: &str, uid: &str, matches: impl Fn(&str) -> bool) -> Result<String> {
        let ours = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
        let found = until(REPORTED, &format!("the expected event on pod {pod}"), async || {
            let events = self.events.list(&ours).await?.items;
            Ok(events.into_iter().filter_map(|event| event.message).find(|message| matches(message)))
        })
        .await;
        self.explain(pod, found).await
    }

    /// Adds to an error what the last warning on the pod says.
    async fn explain<T>(&self, pod: &str, outcome: Result<T>) -> Result<T> {
        match outcome {
            Ok(value) => Ok(value),
            Err(error) => {
                let warnings = self.warnings(pod).await.unwrap_or_default();
                let last = warnings.last().map_or("none", String::as_str);
                Err(error.context(format!("last warning on pod {pod}: {last}")))
            }
        }
    }

    /// Waits until the scheduler says why it does not bind the pod; its message.
    ///
    /// # Errors
    /// The scheduler binds it, or says nothing.
    pub async fn wait_unschedulable(&self, name: &str) -> Result<String> {
        until(REPORTED, &format!("pod {name} to be unschedulable"), async || {
            let pod = self.pod(name).await?;
            if pod.spec.is_some_and(|spec| spec.node_name.is_some()) {
                bail!("pod {name} was bound to the node");
            }
            let conditions = pod.status.and_then(|status| status.conditions).unwrap_or_default();
            let refused = conditions.into_iter().find(|condition| {
                condition.type_ == "PodScheduled" && condition.reason.as_deref() == Some("Unschedulable")
            });
            Ok(refused.and_then(|condition| condition.message))
        })
        .await
    }

    /// The pod's network-status, once it is there.
    ///
    /// # Errors
    /// It does not come, or is not what the annotation has to be.
    pub async fn network_status(&self, name: &str) -> Result<Vec<NetworkStatus>> {
        let text = self.network_status_text(name).await?;
        serde_json::from_str(&text).with_context(|| format!("{NETWORK_STATUS} of pod {name}: {text}"))
    }

    /// The pod's network-status as it stands in the annotation.
    ///
    /// # Errors
    /// It does not come.
    pub async fn network_status_text(&self, name: &str) -> Result<String> {
        until(REPORTED, &format!("{NETWORK_STATUS} of pod {name}"), async || {
            let annotations = self.pod(name).await?.metadata.annotations.unwrap_or_default();
            Ok(annotations.get(NETWORK_STATUS).cloned())
        })
        .await
    }

    /// How many devices of `resource` the node has: capacity and allocatable.
    ///
    /// # Errors
    /// There is not exactly one node.
    pub async fn node_resource(&self, resource: &str) -> Result<(u64, u64)> {
        let status = self.node().await?.status.unwrap_or_default();
        let count = |quantities: Option<
            BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
        >| {
            let quantity = quantities.and_then(|mut quantities| quantities.remove(resource));
            quantity.and_then(|quantity| quantity.0.parse().ok()).unwrap_or(0)
        };
        Ok((count(status.capacity), count(status.allocatable)))
    }

    /// Waits until the node has `count` allocatable devices of `resource`.
    ///
    /// # Errors
    /// It does not.
    pub async fn wait_allocatable(&self, resource: &str, count: u64) -> Result<()> {
        let mut seen = 0;
        let waited = until(REPORTED, &format!("{count} allocatable {resource}"), async || {
            seen = self.node_resource(resource).await?.1;
            Ok((seen == count).then_some(()))
        })
        .await;
        waited.map_err(|error| error.context(format!("the node shows {seen}")))
    }

    /// Waits until the node is ready.
    ///
    /// # Errors
    /// It does not become so.
    pub async fn wait_ready(&self) -> Result<()> {
        until(RUNNING, "the node to be ready", async || {
            let Ok(node) = self.node().await else { return Ok(None) };
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            let ready = |kind: &str, status: &str| kind == "Ready" && status == "True";
            Ok(conditions.iter().any(|condition| ready(&condition.type_, &condition.status)).then_some(()))
        })
        .await
    }

    /// Waits until kubelet has reported on the node after `moment`.
    ///
    /// # Errors
    /// It does not.
    pub async fn wait_heartbeat(&self, moment: Timestamp) -> Result<()> {
        until(RUNNING, "a report of kubelet", async || {
            let conditions =
                self.node().await?.status.and_then(|status| status.conditions).unwrap_or_default();
            let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
            let heartbeat = ready.and_then(|condition| condition.last_heartbeat_time);
            Ok(heartbeat.filter(|time| time.0 > moment).map(drop))
        })
        .await
    }

    /// The name of the node, once it is known to the API server.
    ///
    /// # Errors
    /// There is not exactly one node.
    pub async fn node_name(&self) -> Result<String> {
        until(RUNNING, "the node", async || Ok(self.node().await.ok().and_then(|node| node.metadata.name)))
            .await
    }

    async fn node(&self) -> Result<Node> {
        let mut nodes = self.nodes.list(&ListParams::default()).await.context("list nodes")?.items;
        let count = nodes.len();
        nodes
            .pop()
            .filter(|_| count == 1)
            .with_context(|| format!("the cluster has {count} nodes instead of one"))
    }
}
