//! What multus asks of the API server: the pod, NADs, the network-status, events.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderValue;
use http::header::ACCEPT;
use k8s_openapi::api::core::v1;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::Error;
use crate::access::{self, Use, chain};
use crate::events::Queue;
use crate::known::Known;
use crate::nad::{Nad, RESOURCE_NAME};

/// The networks a pod asks for.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// The network a pod asks for in place of the cluster's.
pub const DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";
/// What a pod got.
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// The form of an answer without spec and status.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Annotation of every pod that kubelet got from a file, and of its mirror: the UID that kubelet made for it.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long a request is repeated while the server is down, restarting or overloaded.
const RETRY_LIMIT: Duration = Duration::from_secs(20);
/// How long an event may take: nobody waits for it.
const EVENT_LIMIT: Duration = Duration::from_secs(2);
/// How often an update is repeated whose object was changed meanwhile.
const UPDATE_ATTEMPTS: u32 = 10;
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

    /// The UID by which kubelet knows the pod: of one from a file, the hash of its configuration.
    #[must_use]
    pub fn uid_on_node(&self) -> &str {
        let hash = self.annotations.get(CONFIG_HASH).filter(|_| self.is_static());
        hash.unwrap_or(&self.uid)
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
    parallel: usize,
    /// Where its events wait.
    events: Option<Queue>,
    /// Whether the server has refused a patch of a pod's status: the role of the peer's manifests allows update alone.
    may_not_patch: Arc<AtomicBool>,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kubernetes")
    }
}

impl Kubernetes {
    /// A client by `kubeconfig`, else by the in-cluster environment; `None` when there is neither. It is good for as long
    /// as the process runs.
    ///
    /// # Errors
    /// [`Error::Access`] when there is one that cannot be used.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Option<Self>, Error> {
        Self::connect_for(access::PROCESS, kubeconfig).await
    }

    /// As [`connect`](Self::connect), for a single call.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub async fn connect_for_call(kubeconfig: Option<&Path>) -> Result<Option<Self>, Error> {
        Self::connect_for(access::CALL, kubeconfig).await
    }

    async fn connect_for(used: Use, kubeconfig: Option<&Path>) -> Result<Option<Self>, Error> {
        let client = access::client(kubeconfig, used).await?;
        Ok(client.map(|(client, parallel)| Kubernetes {
            client,
            known: None,
            parallel,
            events: None,
            may_not_patch: Arc::default(),
        }))
    }

    /// How many requests are to run at a time.
    pub(crate) fn parallel(&self) -> usize {
        self.parallel
    }

    /// The same client for a process that stays: it asks only for what is not known, and waits for no event to be
    /// told. It needs a runtime.
    #[must_use]
    pub fn knowing(self, known: Arc<Known>) -> Self {
        let events = Some(Queue::of(self.clone()));
        Kubernetes { known: Some(known), events, ..self }
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
        let resource = ApiResource::erase::<v1::Pod>(&());
        let path = DynamicObject::url_path(&resource, Some(&pod.namespace));
        let api = self.api(&pod.namespace, &resource);
        // The UID is a precondition: the server refuses to change it.
        let patch = Patch::Merge(json!({
            "metadata": { "uid": pod.uid, "annotations": { NETWORK_STATUS: status } }
        }));
        let operation = || format!("setting the network-status of pod {pod}");
        let params = PatchParams::default();
        if self.may_not_patch.load(Ordering::Relaxed) {
            return retried(operation, || update_network_status(&api, pod, status)).await;
        }
        retried(operation, || async {
            let mut request = kube::core::Request::new(path.as_str())
                .patch_subresource("status", &pod.name, &params, &patch)
                .map_err(kube::Error::BuildRequest)?;
            // The answer is not read, and a whole pod is much to send for nothing.
            request.headers_mut().insert(ACCEPT, HeaderValue::from_static(METADATA));
            match self.client.request::<IgnoredAny>(request).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
                Err(kube::Error::Api(answer)) if answer.code == 403 => {
                    // Where this is refused as well, its message names what the role lacks.
                    update_network_status(&api, pod, status).await?;
                    self.may_not_patch.store(true, Ordering::Relaxed);
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Tells an event. One that cannot be told is not an error: it is only logged.
    pub async fn tell(&self, pod: &Pod, event: &Event) {
        match &self.events {
            Some(queue) => queue.put(pod, event),
            None => self.tell_now(pod, event).await,
        }
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

/// Writes the network-status by an update of the whole object, as the peers do it.
async fn update_network_status(api: &Api<DynamicObject>, pod: &Pod, status: &str) -> kube::Result<()> {
    let mut attempts = UPDATE_ATTEMPTS;
    loop {
        let Some(mut object) = api.get_opt(&pod.name).await? else { return Ok(()) };
        // The server refuses an update that changes the UID, as it refuses such a patch.
        object.metadata.uid = Some(pod.uid.clone());
        object.annotations_mut().insert(NETWORK_STATUS.to_owned(), status.to_owned());
        attempts -= 1;
        match api.replace_subresource("status", &pod.name, &PostParams::default(), &object).await {
            Err(kube::Error::Api(answer)) if answer.code == 404 => return Ok(()),
            // Somebody else has changed the pod since it was read.
            Err(kube::Error::Api(answer)) if answer.code == 409 && attempts > 0 => {}
            done => return done.map(drop),
        }
    }
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
        let text = chain(error);
        // rustls's words for a certificate that it does not accept.
        if text.contains("invalid peer certificate") {
            let hint = "does the kubeconfig have the certificate authority of this API server?";
            return (format!("{text}; {hint}"), false);
        }
        return (format!("{text}; is the API server reachable from this node?"), is_connection(error));
    };
    let (reason, message) = (&status.reason, &status.message);
    match status.code {
        401 => (
            "Unauthorized: the API server does not accept the credentials in the kubeconfig; renew its token"
                .to_owned(),
            false,
        ),
        403 => (format!("Forbidden: {message}; give multus the role of its deployment manifest"), false),
        // Others write the pod at the same time. That there is another pod of the name reads differently.
        409 if message.contains("the object has been modified") => (format!("{reason}: {message}"), true),
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

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn kubelet_knows_a_pod_from_a_file_by_its_hash() {
        for (source, uid) in [("file", "hash"), ("http", "hash"), ("api", "mirror")] {
            let annotations = [("config.source", source), ("config.hash", "hash")]
                .map(|(key, text)| (format!("kubernetes.io/{key}"), text.to_owned()));
            let pod = Pod { uid: "mirror".into(), annotations: annotations.into(), ..Pod::default() };
            assert_eq!(pod.uid_on_node(), uid, "{source}");
        }
    }

    #[test]
    fn what_may_pass_by_itself_is_tried_again() {
        let modified = "Operation cannot be fulfilled on pods \"p\": the object has been modified; please apply your changes";
        let made_anew = "Precondition failed: UID in precondition: u, UID in object meta: v";
        for (code, message, transient, part) in [
            (401, "", false, "Unauthorized"),
            (403, "no", false, "Forbidden"),
            (404, "none", false, "none"),
            (409, modified, true, "modified"),
            (409, made_anew, false, "made anew"),
            (422, "uid: immutable", false, "made anew"),
            (429, "later", true, "later"),
            (500, "etcd", true, "etcd"),
            (503, "", true, ""),
            (504, "", true, ""),
        ] {
            let status = Status { code, message: message.to_owned(), ..Status::default() };
            let (text, is_transient) = explain(&kube::Error::Api(Box::new(status)));
            assert!(is_transient == transient && text.contains(part), "{code} {message}: {text}");
        }
    }
}
