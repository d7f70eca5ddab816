//! What multus asks of the API server: the pod, NADs, the network-status, events.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig, NamedCluster};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Error;
use crate::known::Known;
use crate::nad::{Nad, RESOURCE_NAME};

/// The networks a pod asks for.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// The network a pod asks for in place of the cluster's.
pub const DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";
/// What a pod got.
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

/// How many requests run at a time: each further one needs a connection of its own, whose TLS handshake takes as long
/// as several requests.
pub(crate) const PARALLEL: usize = 2;

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long a request is repeated while the server is down, restarting or overloaded.
const RETRY_LIMIT: Duration = Duration::from_secs(20);
/// How long an event may take: nobody waits for it.
const EVENT_LIMIT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is needed of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl Pod {
    /// Whether kubelet got the pod from a file: then the API server's object is a mirror with a UID of its own.
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.annotations.get(CONFIG_SOURCE).is_some_and(|source| source != "api")
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How important an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

/// An event to tell of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// How important it is.
    pub kind: EventKind,
    /// A word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// A client of the API server.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    /// What need not be asked; only a process that stays has it.
    known: Option<Arc<Known>>,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kubernetes")
    }
}

impl Kubernetes {
    /// A client by `kubeconfig`, else by the in-cluster environment; `None` when there is neither.
    ///
    /// # Errors
    /// [`Error::Access`] when there is one that cannot be used.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Option<Self>, Error> {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let (source_of_access, config) = match kubeconfig {
            Some(file) => (format!("kubeconfig {}", file.display()), from_file(file).await),
            None if set("KUBERNETES_SERVICE_HOST") && set("KUBERNETES_SERVICE_PORT") => {
                ("the in-cluster environment".to_owned(), Config::incluster_env().map_err(|e| e.to_string()))
            }
            None => return Ok(None),
        };
        let client = config.and_then(|mut config| {
            // Retried here, where the caller's deadline is known.
            config.default_retry = false;
            Client::try_from(config).map_err(|e| chain(&e))
        });
        match client {
            Ok(client) => Ok(Some(Kubernetes { client, known: None })),
            Err(message) => Err(Error::Access { source_of_access, message }),
        }
    }

    /// The same client for a process that stays: it asks only for what is not known, and waits for no event to be
    /// told.
    #[must_use]
    pub fn knowing(self, known: Arc<Known>) -> Self {
        Kubernetes { known: Some(known), ..self }
    }

    /// The connection, for watches.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The pod that the runtime means by name and UID, where that is known; else as [`pod`](Self::pod).
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn pod_with_uid(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<Option<Pod>, Error> {
        let known = self.known.as_ref().zip(uid).and_then(|(known, uid)| known.pod(namespace, name, uid));
        match known {
            Some(pod) => Ok(Some(pod)),
            None => self.pod(namespace, name).await,
        }
    }

    /// The pod; `None` when it does not exist.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, Error> {
        let api = self.api(namespace, &ApiResource::erase::<v1::Pod>(&()));
        let operation = || format!("getting pod {namespace}/{name}");
        let found = retried(operation, || api.get_metadata_opt(name)).await?;
        Ok(found.map(|object| Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: object.metadata.uid.unwrap_or_default(),
            annotations: object.metadata.annotations.unwrap_or_default(),
        }))
    }

    /// The NAD; `None` when it does not exist.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn nad(&self, namespace: &str, name: &str) -> Result<Option<Nad>, Error> {
        if let Some(nad) = self.known.as_ref().and_then(|known| known.nad(namespace, name)) {
            return Ok(Some(nad));
        }
        let api = self.api(namespace, &nad_resource());
        let operation = || format!("getting network-attachment-definition {namespace}/{name}");
        let found = retried(operation, || api.get_opt(name)).await?;
        Ok(found.map(Nad::from))
    }

    /// Writes the network-status of exactly this pod. A pod that is gone needs none.
    ///
    /// # Errors
    /// [`Error::Api`]; also when there is another pod of the name now.
    pub async fn set_network_status(&self, pod: &Pod, status: &str) -> Result<(), Error> {
        let api = self.api(&pod.namespace, &ApiResource::erase::<v1::Pod>(&()));
        // The UID is a precondition: the server refuses to change it.
        let patch = Patch::Merge(json!({
            "metadata": { "uid": pod.uid, "annotations": { NETWORK_STATUS: status } }
        }));
        let operation = || format!("setting the network-status of pod {pod}");
        let params = PatchParams::default();
        retried(operation, || async {
            match api.patch_subresource("status", &pod.name, &params, &patch).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Tells an event. One that cannot be told is not an error: it is only logged.
    pub async fn tell(&self, pod: &Pod, event: &Event) {
        if self.known.is_none() {
            return self.tell_now(pod, event).await;
        }
        let (kubernetes, pod, event) = (self.clone(), pod.clone(), event.clone());
        tokio::spawn(async move { kubernetes.tell_now(&pod, &event).await });
    }

    async fn tell_now(&self, pod: &Pod, event: &Event) {
        let resource = ApiResource::erase::<v1::Event>(&());
        let now = Timestamp::now();
        let name = format!("{}.{:x}", pod.name, now.as_nanosecond());
        let second = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let object = DynamicObject::new(&name, &resource).within(&pod.namespace).data(json!({
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod",
                "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
            },
            "type": match event.kind { EventKind::Normal => "Normal", EventKind::Warning => "Warning" },
            "reason": event.reason,
            "message": event.message,
            "source": { "component": "multus" },
            "firstTimestamp": second,
            "lastTimestamp": second,
            "count": 1,
        }));
        let api = self.api(&pod.namespace, &resource);
        let reason = event.reason;
        match tokio::time::timeout(EVENT_LIMIT, api.create(&PostParams::default(), &object)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!("event {reason} of pod {pod} was not told: {}", chain(&error)),
            Err(_) => tracing::warn!("event {reason} of pod {pod} was not told: no answer"),
        }
    }

    fn api(&self, namespace: &str, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource)
    }
}

/// The resource of NADs.
#[must_use]
pub fn nad_resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition");
    ApiResource::from_gvk_with_plural(&kind, "network-attachment-definitions")
}

impl From<DynamicObject> for Nad {
    fn from(object: DynamicObject) -> Self {
        let config = object.data.pointer("/spec/config").and_then(Value::as_str).map(str::to_owned);
        let resource = object.metadata.annotations.and_then(|mut all| all.remove(RESOURCE_NAME));
        Nad {
            namespace: object.metadata.namespace.unwrap_or_default(),
            name: object.metadata.name.unwrap_or_default(),
            config,
            resource: resource.filter(|resource| !resource.is_empty()),
        }
    }
}

async fn from_file(file: &Path) -> Result<Config, String> {
    let kubeconfig = Kubeconfig::read_from(file).map_err(|e| chain(&e))?;
    let names_proxy = |named: &NamedCluster| named.cluster.as_ref().is_some_and(|c| c.proxy_url.is_some());
    let names_proxy = kubeconfig.clusters.iter().any(names_proxy);
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|e| chain(&e))?;
    if !names_proxy {
        // That of the environment, which is the container runtime's: for images, and NO_PROXY is not asked.
        config.proxy_url = None;
    }
    Ok(config)
}

/// Repeats a request that does no harm when repeated, as long as what stands in its way may pass.
async fn retried<T, F: Future<Output = kube::Result<T>>>(
    operation: impl Fn() -> String,
    request: impl Fn() -> F,
) -> Result<T, Error> {
    let deadline = Instant::now() + RETRY_LIMIT;
    let mut pause = FIRST_PAUSE;
    loop {
        let (message, transient) = match tokio::time::timeout(REQUEST_LIMIT, request()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => explain(&error),
            Err(_) => (format!("no answer within {} s", REQUEST_LIMIT.as_secs()), true),
        };
        if !transient || Instant::now() + pause >= deadline {
            return Err(Error::Api { operation: operation(), message, transient });
        }
        tracing::debug!("{}: {message}; trying again", operation());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What an error means to the user, and whether it may pass by itself.
fn explain(error: &kube::Error) -> (String, bool) {
    let kube::Error::Api(status) = error else {
        return (
            format!("{}; is the API server reachable from this node?", chain(error)),
            is_connection(error),
        );
    };
    let (reason, message) = (&status.reason, &status.message);
    match status.code {
        401 => (
            "Unauthorized: the API server does not accept the credentials in the kubeconfig; renew its token"
                .to_owned(),
            false,
        ),
        403 => (format!("Forbidden: {message}; give multus the role of its deployment manifest"), false),
        409 | 422 => (
            format!("{reason}: {message}; the pod was probably made anew, and its own ADD will follow"),
            false,
        ),
        429 | 500..=599 => (format!("{reason}: {message}"), true),
        _ => (format!("{reason}: {message}"), false),
    }
}

fn is_connection(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Service(_) | kube::Error::HyperError(_))
}

/// An error with its causes: kube's own text often leaves them out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
