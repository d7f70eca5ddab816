//! The node of a real Kubernetes, brought up by `hack/kubernetes` before the suite starts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::LocalBoxFuture;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::config::Kubeconfig;
use kube::core::{GroupVersionKind, TypeMeta};
use kube::{Api, Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{Grade, Node};
use crate::wait::until;

/// Where the guest's loop keeps the process ID of the kubelet that runs.
const KUBELET_PID: &str = "/run/podrail/kubelet.pid";
/// What Multus may do.
const RBAC: &str = include_str!("../../../deploy/multus-rbac.yaml");

/// The node of a real Kubernetes.
#[derive(Debug)]
pub struct KubeNode {
    kubeconfig: PathBuf,
}

impl KubeNode {
    /// The one node of the cluster of `kubeconfig`, on which this process runs.
    pub fn new(kubeconfig: PathBuf) -> KubeNode {
        KubeNode { kubeconfig }
    }

    async fn grant(&self) -> Result<String> {
        let read = Kubeconfig::read_from(&self.kubeconfig)
            .with_context(|| format!("read {}", self.kubeconfig.display()))?;
        let server = read.clusters.first().and_then(|named| named.cluster.as_ref()).cloned();
        let server = server.context("the kubeconfig names no cluster")?;
        let config =
            Config::from_custom_kubeconfig(read, &kube::config::KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let documents: Vec<DynamicObject> =
            serde_saphyr::from_multiple(RBAC).context("decode multus-rbac.yaml")?;
        for object in &documents {
            create(&client, object).await?;
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "kube-system");
        let request = TokenRequest {
            spec: TokenRequestSpec { expiration_seconds: Some(86_400), ..TokenRequestSpec::default() },
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request("multus", &PostParams::default(), &request)
            .await
            .context("token of service account multus")?;
        let token = answer.status.context("a token request without a token")?.token;
        let authority = match (&server.certificate_authority_data, &server.certificate_authority) {
            (Some(data), _) => data.clone(),
            (None, Some(path)) => {
                STANDARD.encode(std::fs::read(path).with_context(|| format!("read {path}"))?)
            }
            (None, None) => String::new(),
        };
        // JSON is YAML.
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": {
                "server": server.server,
                "certificate-authority-data": authority,
            }}],
            "users": [{"name": "multus", "user": {"token": token}}],
            "contexts": [{"name": "multus-context", "context": {"cluster": "local", "user": "multus"}}],
            "current-context": "multus-context",
        });
        Ok(serde_json::to_string_pretty(&kubeconfig)?)
    }
}

impl Node for KubeNode {
    fn grade(&self) -> Grade {
        Grade::Kubernetes
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn multus_kubeconfig(&self) -> LocalBoxFuture<'_, Result<String>> {
        Box::pin(self.grant())
    }

    fn restart_kubelet(&mut self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async {
            let old = kubelet()?;
            kill(Pid::from_raw(old), Signal::SIGTERM).context("end kubelet")?;
            until(Duration::from_secs(60), "the next kubelet", async || {
                Ok(kubelet().is_ok_and(|pid| pid != old).then_some(()))
            })
            .await
        })
    }

    fn stop(self: Box<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// The process ID of the kubelet that runs now.
fn kubelet() -> Result<i32> {
    let text = std::fs::read_to_string(KUBELET_PID)
        .with_context(|| format!("read {KUBELET_PID}: does this run in the guest of hack/kubernetes?"))?;
    let pid = text.trim().parse().with_context(|| format!("{KUBELET_PID} holds {text:?}"))?;
    ensure!(Path::new("/proc").join(format!("{pid}")).exists(), "kubelet {pid} does not run");
    Ok(pid)
}

async fn create(client: &Client, object: &DynamicObject) -> Result<()> {
    let TypeMeta { api_version, kind } = object.types.clone().context("an object without a kind")?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        created => created.map(drop).with_context(|| format!("create {kind} {:?}", object.metadata.name)),
    }
}
