//! What Multus may do: a service account with the rights of `deploy/multus-rbac.yaml`, and a kubeconfig for it.

use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::config::Kubeconfig;
use kube::core::{GroupVersionKind, TypeMeta};
use kube::{Api, Client};
use serde_json::json;

/// The manifest that an administrator applies.
const RBAC: &str = include_str!("../../../deploy/multus-rbac.yaml");

/// How long the token is good, in seconds: longer than the suite runs.
const VALID: i64 = 86_400;

/// Applies the manifest with `client`; text of a kubeconfig for the server that `admin` names.
///
/// # Errors
/// The API server refuses, or `admin` cannot be read.
pub async fn multus_kubeconfig(client: &Client, admin: &Path) -> Result<String> {
    let read = Kubeconfig::read_from(admin).with_context(|| format!("read {}", admin.display()))?;
    let cluster = read.clusters.into_iter().next().and_then(|named| named.cluster);
    let cluster = cluster.with_context(|| format!("{} names no cluster", admin.display()))?;
    let objects: Vec<DynamicObject> = serde_saphyr::from_multiple(RBAC).context("decode multus-rbac.yaml")?;
    for object in &objects {
        create(client, object).await?;
    }
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "kube-system");
    let request = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: Some(VALID), ..TokenRequestSpec::default() },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request("multus", &PostParams::default(), &request)
        .await
        .context("token of service account multus")?;
    let token = answer.status.context("a token request without a token")?.token;
    let authority = match (cluster.certificate_authority_data, cluster.certificate_authority) {
        (Some(data), _) => data,
        (None, Some(path)) => STANDARD.encode(std::fs::read(&path).with_context(|| format!("read {path}"))?),
        (None, None) => String::new(),
    };
    // JSON is YAML.
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": {
            "server": cluster.server,
            "certificate-authority-data": authority,
        }}],
        "users": [{"name": "multus", "user": {"token": token}}],
        "contexts": [{"name": "multus-context", "context": {"cluster": "local", "user": "multus"}}],
        "current-context": "multus-context",
    });
    Ok(serde_json::to_string_pretty(&kubeconfig)?)
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
