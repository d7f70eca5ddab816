//! A cluster to test against, and short ways to ask it.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use e2e::sim::apiserver::ApiServer;
use hyper::Request;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

/// Media types of patches.
pub(crate) const MERGE: &str = "application/merge-patch+json";
pub(crate) const JSON: &str = "application/json-patch+json";
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Paths of collections.
pub(crate) const MAPS: &str = "/api/v1/namespaces/{ns}/configmaps";
pub(crate) const PODS: &str = "/api/v1/namespaces/{ns}/pods";
pub(crate) const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/{ns}/leases";

/// Code and reason of a refusal.
pub(crate) type Refusal = (u16, String);

pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// A namespace that nobody else uses.
    pub(crate) namespace: String,
    /// `None` on a real cluster.
    pub(crate) server: Option<ApiServer>,
    config: Config,
}

impl Cluster {
    /// The cluster that the environment names, or a simulated one.
    pub(crate) async fn start(test: &str) -> Self {
        match std::env::var_os("PODRAIL_KUBECONFIG") {
            Some(file) => Self::furnished(test, Kubeconfig::read_from(file).unwrap(), None).await,
            None => Self::simulated(test).await,
        }
    }

    /// A simulated cluster, whatever the environment says.
    pub(crate) async fn simulated(test: &str) -> Self {
        let server = ApiServer::start().await.unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(None)).unwrap();
        Self::furnished(test, kubeconfig, Some(server)).await
    }

    async fn furnished(test: &str, kubeconfig: Kubeconfig, server: Option<ApiServer>) -> Self {
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        config.default_retry = false;
        let client = Client::try_from(config.clone()).unwrap();
        let namespace = format!("{test}-{:08x}", RandomState::new().hash_one(test) >> 32);
        let cluster = Self { client, namespace, server, config };
        cluster.post("/api/v1/namespaces", &named(&cluster.namespace)).await.unwrap();
        // On a cluster without a controller-manager nobody else makes it, and pods need it.
        let made = cluster.post("/api/v1/namespaces/{ns}/serviceaccounts", &named("default")).await;
        assert!(matches!(&made, Ok(_) | Err((409, _))), "{made:?}");
        cluster
    }

    /// The same cluster for whom a token stands for.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        let mut config = self.config.clone();
        config.auth_info = AuthInfo { token: Some(token.into()), ..AuthInfo::default() };
        let client = Client::try_from(config.clone()).unwrap();
        Self { client, namespace: self.namespace.clone(), server: None, config }
    }

    /// Sends a request as it is; `{ns}` in the path stands for the cluster's namespace.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        media_type: &str,
        body: &Value,
    ) -> Result<Value, Refusal> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder()
            .method(method)
            .uri(path.replace("{ns}", &self.namespace))
            .header("content-type", media_type)
            .body(body)
            .unwrap();
        match self.client.request::<Value>(request).await {
            Ok(answer) => Ok(answer),
            Err(kube::Error::Api(status)) => Err((status.code, status.reason)),
            Err(other) => panic!("{method} {path}: {other}"),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, Refusal> {
        self.ask("GET", path, "application/json", &Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Refusal> {
        self.ask("POST", path, "application/json", body).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value, Refusal> {
        self.ask("PUT", path, "application/json", body).await
    }

    pub(crate) async fn patch(&self, path: &str, media_type: &str, body: &Value) -> Result<Value, Refusal> {
        self.ask("PATCH", path, media_type, body).await
    }

    pub(crate) async fn delete(&self, path: &str, options: &Value) -> Result<Value, Refusal> {
        self.ask("DELETE", path, "application/json", options).await
    }
}

pub(crate) fn refusal<T>(code: u16, reason: &str) -> Result<T, Refusal> {
    Err((code, reason.to_owned()))
}

pub(crate) fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

/// A pod on a node that does not exist, where neither scheduler nor kubelet touches it.
pub(crate) fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "nodeName": "nowhere", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "i"}],
        },
    })
}

/// A pod that no scheduler takes.
pub(crate) fn unbound_pod(name: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["nodeName"] = Value::Null;
    pod["spec"]["schedulerName"] = "nobody".into();
    pod
}

/// Waits until a condition holds that the server reaches on its own time.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    for _ in 0..100 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what} did not come to pass in 10 s");
}
