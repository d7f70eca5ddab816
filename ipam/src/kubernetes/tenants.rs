//! Tenants: what their objects say, and whether they are still wanted.

use std::net::IpAddr;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};

use super::Kubernetes;
use crate::error::Error;
use crate::tenant::{Tenant, stateful_set};

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// What IPAM reads of a pod's metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodMeta {
    /// The networks it asks for, as the annotation has them.
    pub networks: Option<String>,
    /// The StatefulSet that it is of.
    pub stateful_set: Option<String>,
}

/// What IPAM reads of an `IPAMClaim`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// The network that it is for.
    pub network: String,
    /// The addresses that it has, with or without prefix length.
    pub ips: Vec<String>,
    /// The pod that used it last.
    pub owner: String,
}

impl Claim {
    /// The addresses that it has.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ips.iter().filter_map(|ip| ip.split('/').next()?.parse().ok())
    }
}

impl Kubernetes {
    /// The metadata of a pod; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn pod_meta(&self, namespace: &str, name: &str) -> Result<Option<PodMeta>, Error> {
        let api = self.api(namespace, &ApiResource::erase::<Pod>(&()));
        let found =
            self.retried(|| format!("getting pod {namespace}/{name}"), || api.get_metadata_opt(name)).await?;
        Ok(found.map(|found| {
            let owners = found.metadata.owner_references.unwrap_or_default();
            let set = owners.into_iter().find(|owner| {
                owner.controller == Some(true)
                    && owner.kind == "StatefulSet"
                    && owner.api_version.starts_with("apps/")
            });
            PodMeta {
                networks: found.metadata.annotations.and_then(|mut all| all.remove(NETWORKS)),
                stateful_set: set.map(|set| set.name),
            }
        }))
    }

    /// The claim of that name; `None` when it is not there.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn claim(&self, namespace: &str, name: &str) -> Result<Option<Claim>, Error> {
        let api = self.api(namespace, &claims());
        let operation = || format!("getting IPAMClaim {namespace}/{name}");
        let found = self.retried(operation, || api.get_opt(name)).await?;
        Ok(found.map(|found| {
            let text = |path| found.data.pointer(path).and_then(Value::as_str).unwrap_or_default();
            let ips = found.data.pointer("/status/ips").and_then(Value::as_array);
            let ips = ips.into_iter().flatten().filter_map(Value::as_str);
            Claim {
                network: text("/spec/network").to_owned(),
                ips: ips.map(str::to_owned).collect(),
                owner: text("/status/ownerPod/name").to_owned(),
            }
        }))
    }

    /// Writes into a claim which addresses it has and which pod uses it.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn record_claim(
        &self,
        namespace: &str,
        name: &str,
        ips: &[String],
        pod: &str,
    ) -> Result<(), Error> {
        let api = self.api(namespace, &claims());
        let patch = Patch::Merge(json!({"status": {"ips": ips, "ownerPod": {"name": pod}}}));
        let parameters = PatchParams::default();
        let operation = || format!("writing the addresses of IPAMClaim {namespace}/{name}");
        self.retried(operation, || api.patch_status(name, &parameters, &patch)).await.map(drop)
    }

    /// Whether a tenant may come back: its claim is there, or its pod, or its StatefulSet with its number.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn is_expected(&self, tenant: &Tenant) -> Result<bool, Error> {
        match tenant {
            Tenant::Claim { name } => match name.split_once('/') {
                Some((namespace, name)) => Ok(self.claim(namespace, name).await?.is_some()),
                None => Ok(false),
            },
            Tenant::Pod { podref, .. } => match podref.split_once('/') {
                Some((namespace, name)) => {
                    Ok(self.has_pod(namespace, name).await? || self.is_replica(namespace, name).await?)
                }
                None => Ok(false),
            },
        }
    }

    /// Whether a StatefulSet wants to have a pod of that name.
    async fn is_replica(&self, namespace: &str, pod: &str) -> Result<bool, Error> {
        let Some((set, ordinal)) = stateful_set(pod) else { return Ok(false) };
        let api = self.api(namespace, &ApiResource::erase::<StatefulSet>(&()));
        let found =
            self.retried(|| format!("getting StatefulSet {namespace}/{set}"), || api.get_opt(set)).await?;
        Ok(found.is_some_and(|found| {
            let number = |path, default| found.data.pointer(path).and_then(Value::as_u64).unwrap_or(default);
            let start = number("/spec/ordinals/start", 0);
            (start..start.saturating_add(number("/spec/replicas", 1))).contains(&ordinal)
        }))
    }
}

fn claims() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("k8s.cni.cncf.io", "v1alpha1", "IPAMClaim"))
}
