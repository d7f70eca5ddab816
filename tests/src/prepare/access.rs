//! What a program may ask of the API server: a service account with the rights of its manifest, and a kubeconfig for it.

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

/// A program's manifest, as an administrator applies it, and the service account in it.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    name: &'static str,
    manifest: &'static str,
}

/// What Multus may do.
pub const MULTUS: Account =
    Account { name: "multus", manifest: include_str!("../../../deploy/multus-rbac.yaml") };
/// What whereabouts may do, with the definitions of its objects.
pub const WHEREABOUTS: Account =
    Account { name: "whereabouts", manifest: include_str!("../../../deploy/whereabouts.yaml") };

/// How long the token is good, in seconds: longer than the suite runs.
const VALID: i64 = 86_400;

/// Applies the account's manifest with `client`; text of a kubeconfig for the server that `admin` names.
///
/// # Errors
/// The API server refuses, or `admin` cannot be read.
pub async fn kubeconfig(client: &Client, admin: &Path, account: Account) -> Result<String> {
    let Account { name, manifest } = account;
    let read = Kubeconfig::read_from(admin).with_context(|| format!("read {}", admin.display()))?;
    let cluster = read.clusters.into_iter().next().and_then(|named| named.cluster);
    let cluster = cluster.with_context(|| format!("{} names no cluster", admin.display()))?;
    let objects: Vec<DynamicObject> =
        serde_saphyr::from_multiple(manifest).with_context(|| format!("decode the manifest of {name}"))?;
    // The suite runs the programs under test itself.
    let is_daemon = |object: &&DynamicObject| object.types.as_ref().is_some_and(|of| of.kind == "DaemonSet");
    for object in objects.iter().filter(|object| !is_daemon(object)) {
        create(client, object).await?;
    }
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "kube-system");
    let request = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: Some(VALID), ..TokenRequestSpec::default() },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(name, &PostParams::default(), &request)
        .await
        .with_context(|| format!("token of service account {name}"))?;
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
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": "local", "user": name}}],
        "current-context": name,
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
