//! What IPAM asks of the API server: pools, reservations, tenants, whether nodes and pods are there, events.

mod bell;
mod reservations;
mod tenants;

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig, NamedCluster};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::error::Error;
use crate::pool::Pool;

pub use bell::Bell;
pub use reservations::Reserver;
pub use tenants::{Claim, PodMeta};

const GROUP: &str = "whereabouts.cni.cncf.io";
/// Where pools are when a kubeconfig does not say it.
const DEFAULT_NAMESPACE: &str = "kube-system";
/// Where kubelet puts the service account of a pod.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long one request may take. Whoever gives up on a server that is merely slow, and asks again, makes it slower.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A client of the API server.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    /// URL of the server.
    server: String,
    /// Where pools are.
    namespace: String,
    /// How long a request is repeated while the server is down, restarting or overloaded.
    patience: Duration,
}

/// The namespace of pools by a kubeconfig: that of its context.
#[must_use]
pub fn namespace_of(file: &Kubeconfig) -> String {
    let current = file.contexts.iter().find(|context| Some(&context.name) == file.current_context.as_ref());
    let named = current.and_then(|context| context.context.as_ref()?.namespace.clone());
    named.filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kubernetes")
    }
}

/// A pod as a node has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LivePod {
    /// `namespace/name`.
    pub podref: String,
    /// UID.
    pub uid: String,
}

impl Kubernetes {
    /// A client by `kubeconfig`; pools are in the namespace of its context, else in `kube-system`.
    ///
    /// # Errors
    /// [`Error::NoKubeconfig`], [`Error::Access`].
    pub async fn connect(kubeconfig: Option<&Path>, patience: Duration) -> Result<Self, Error> {
        let path = kubeconfig.ok_or(Error::NoKubeconfig)?;
        let failed = |message: String| Error::Access { path: path.to_owned(), message };
        let file = Kubeconfig::read_from(path).map_err(|e| failed(chain(&e)))?;
        let namespace = namespace_of(&file);
        let names_proxy =
            |named: &NamedCluster| named.cluster.as_ref().is_some_and(|c| c.proxy_url.is_some());
        let names_proxy = file.clusters.iter().any(names_proxy);
        let options = KubeConfigOptions::default();
        let mut config =
            Config::from_custom_kubeconfig(file, &options).await.map_err(|e| failed(chain(&e)))?;
        if !names_proxy {
            // That of the environment, which is the container runtime's: for images, and NO_PROXY is not asked.
            config.proxy_url = None;
        }
        // Retried here, where the caller's patience is known.
        config.default_retry = false;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|e| failed(chain(&e)))?;
        Ok(Self { client, server, namespace, patience })
    }

    /// A client by the service account of the pod in which this runs; pools are in the pod's namespace.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn of_pod(patience: Duration) -> Result<Self, Error> {
        let account = Path::new(SERVICE_ACCOUNT);
        let failed = |message: String| Error::Access { path: account.to_owned(), message };
        let mut config = Config::incluster().map_err(|e| failed(chain(&e)))?;
        (config.proxy_url, config.default_retry) = (None, false);
        let namespace = config.default_namespace.clone();
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|e| failed(chain(&e)))?;
        Ok(Self { client, server, namespace, patience })
    }

    /// The server and the namespace of the pools.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{} {}", self.server, self.namespace)
    }

    /// The pool, made when it is not there.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn pool(&self, name: &str, range: &str) -> Result<Pool, Error> {
        let api = self.api(&self.namespace, &resource("IPPool"));
        let operation = || format!("getting pool {name}");
        if let Some(found) = self.retried(operation, || api.get_opt(name)).await? {
            return Ok(Pool::parse(&whole(&found)));
        }
        let object = DynamicObject::new(name, &resource("IPPool"))
            .data(json!({"spec": {"range": range, "allocations": {}}}));
        let operation = || format!("making pool {name}");
        let made = self
            .retried(operation, || async {
                match api.create(&PostParams::default(), &object).await {
                    // Another node was quicker.
                    Err(kube::Error::Api(status)) if status.code == 409 => api.get(name).await,
                    made => made,
                }
            })
            .await?;
        Ok(Pool::parse(&whole(&made)))
    }

    /// The pool as it is; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn existing_pool(&self, name: &str) -> Result<Option<Pool>, Error> {
        let api = self.api(&self.namespace, &resource("IPPool"));
        let found = self.retried(|| format!("getting pool {name}"), || api.get_opt(name)).await?;
        Ok(found.map(|found| Pool::parse(&whole(&found))))
    }

    /// The slices of a range that the peer's controller gave to a node; none where it cut none.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn slices(&self, name: &str, node: &str) -> Result<Vec<IpNet>, Error> {
        let api = self.api(&self.namespace, &resource("NodeSlicePool"));
        let found = self.retried(|| format!("getting NodeSlicePool {name}"), || api.get_opt(name)).await?;
        let allocations =
            found.as_ref().and_then(|found| found.data.pointer("/status/allocations")?.as_array());
        let text = |of: &Value, key| of.get(key).and_then(Value::as_str).map(str::to_owned);
        let of_node =
            allocations.into_iter().flatten().filter(|of| text(of, "nodeName").as_deref() == Some(node));
        Ok(of_node
            .filter_map(|of| cni::parse_cidr(&text(of, "sliceRange")?))
            .map(|slice| slice.trunc())
            .collect())
    }

    /// Changes a pool, and answers with the pool as it is then; `None` when it has changed since it was read, or is gone.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn change_pool(&self, name: &str, patch: &Value) -> Result<Option<Pool>, Error> {
        let patch = serde_json::from_value(patch.clone()).map(Patch::<()>::Json).map_err(|e| Error::Api {
            operation: format!("changing pool {name}"),
            message: e.to_string(),
            transient: false,
        })?;
        let api = self.api(&self.namespace, &resource("IPPool"));
        // A repetition of a change that was made is refused, like any other that comes late.
        self.retried(
            || format!("changing pool {name}"),
            || async {
                match api.patch(name, &PatchParams::default(), &patch).await {
                    Ok(changed) => Ok(Some(Pool::parse(&whole(&changed)))),
                    // A failed test is 422, as is an object that the definition forbids; only that has causes.
                    Err(kube::Error::Api(status))
                        if matches!(status.code, 404 | 409) || status.code == 422 && !has_causes(&status) =>
                    {
                        Ok(None)
                    }
                    Err(error) => Err(error),
                }
            },
        )
        .await
    }

    /// The boot that a Node object tells; `None` when there is no such object.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn boot_of_node(&self, name: &str) -> Result<Option<String>, Error> {
        let api: Api<DynamicObject> =
            Api::all_with(self.client.clone(), &ApiResource::erase::<v1::Node>(&()));
        let found = self.retried(|| format!("getting node {name}"), || api.get_opt(name)).await?;
        Ok(found.map(|node| {
            let boot = node.data.pointer("/status/nodeInfo/bootID").and_then(Value::as_str);
            boot.unwrap_or_default().to_owned()
        }))
    }

    /// The pods that are bound to a node, whatever their phase.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn pods_of_node(&self, node: &str) -> Result<BTreeSet<LivePod>, Error> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &ApiResource::erase::<v1::Pod>(&()));
        let params = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let list = self
            .retried(|| format!("listing the pods of node {node}"), || api.list_metadata(&params))
            .await?;
        let pod = |object: kube::core::PartialObjectMeta<DynamicObject>| {
            let metadata = object.metadata;
            let part = Option::unwrap_or_default;
            LivePod {
                podref: format!("{}/{}", part(metadata.namespace), part(metadata.name)),
                uid: part(metadata.uid),
            }
        };
        Ok(list.items.into_iter().map(pod).collect())
    }

    /// Whether there is a pod of that name.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn has_pod(&self, namespace: &str, name: &str) -> Result<bool, Error> {
        let api = self.api(namespace, &ApiResource::erase::<v1::Pod>(&()));
        let found =
            self.retried(|| format!("getting pod {namespace}/{name}"), || api.get_metadata_opt(name)).await?;
        Ok(found.is_some())
    }

    /// Tells how full a pool is. An event that cannot be told is only logged.
    pub async fn tell_fill(&self, pool: &str, percent: u32, message: &str) {
        let kind = ApiResource::erase::<v1::Event>(&());
        let now = Timestamp::now();
        let second = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let name = format!("{pool}.{:x}", now.as_nanosecond());
        let object = DynamicObject::new(&name, &kind).within(&self.namespace).data(json!({
            "involvedObject": {
                "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "IPPool",
                "namespace": self.namespace, "name": pool,
            },
            "type": "Warning",
            "reason": if percent >= 100 { "IPPoolExhausted" } else { "IPPoolFillingUp" },
            "message": message,
            "source": { "component": "whereabouts" },
            "firstTimestamp": second, "lastTimestamp": second, "count": 1,
        }));
        let api = self.api(&self.namespace, &kind);
        let told =
            tokio::time::timeout(Duration::from_secs(2), api.create(&PostParams::default(), &object)).await;
        if !matches!(told, Ok(Ok(_))) {
            tracing::warn!("the event that {message} was not told: {told:?}");
        }
    }

    fn api(&self, namespace: &str, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource)
    }

    /// Repeats a request that does no harm when repeated, as long as what stands in its way may pass.
    async fn retried<T, F: Future<Output = kube::Result<T>>>(
        &self,
        operation: impl Fn() -> String,
        request: impl Fn() -> F,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.patience;
        let limit = REQUEST_LIMIT.min(self.patience);
        let mut pause = FIRST_PAUSE;
        loop {
            let (message, transient) = match tokio::time::timeout(limit, request()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => explain(&error),
                Err(_) => (format!("no answer within {} s", limit.as_secs()), true),
            };
            if !transient || Instant::now() + pause >= deadline {
                return Err(Error::Api { operation: operation(), message, transient });
            }
            tracing::debug!("{}: {message}; trying again", operation());
            // Not when all the others do who were refused with us.
            tokio::time::sleep(random_part(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Between half and all of `pause`.
fn random_part(pause: Duration) -> Duration {
    let random = u32::try_from(RandomState::new().hash_one(pause) % 1024).unwrap_or_default();
    pause / 2 + pause / 2 * random / 1024
}

fn resource(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, "v1alpha1", kind))
}

/// The object with its metadata, as one value.
fn whole(object: &DynamicObject) -> Value {
    let mut value = object.data.clone();
    if let Some(members) = value.as_object_mut() {
        let metadata = &object.metadata;
        let managers = metadata.managed_fields.as_ref().map_or(0, Vec::len);
        members.insert(
            "metadata".to_owned(),
            json!({
                "resourceVersion": metadata.resource_version, "managedFields": vec![Value::Null; managers],
                "labels": metadata.labels,
            }),
        );
    }
    value
}

fn has_causes(status: &kube::core::Status) -> bool {
    status.details.as_ref().is_some_and(|details| !details.causes.is_empty())
}

/// What an error means to the user, and whether it may pass by itself.
fn explain(error: &kube::Error) -> (String, bool) {
    let kube::Error::Api(status) = error else {
        let is_connection = matches!(error, kube::Error::Service(_) | kube::Error::HyperError(_));
        return (format!("{}; is the API server reachable from this node?", chain(error)), is_connection);
    };
    let (reason, message) = (&status.reason, &status.message);
    match status.code {
        401 => (
            "Unauthorized: the API server does not accept the token in the kubeconfig: renew it".to_owned(),
            false,
        ),
        403 => (format!("Forbidden: {message}; apply deploy/whereabouts.yaml"), false),
        404 => (format!("{reason}: {message}; apply the definitions of deploy/whereabouts.yaml"), false),
        429 | 500..=599 => (format!("{reason}: {message}"), true),
        _ => (format!("{reason}: {message}"), false),
    }
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
