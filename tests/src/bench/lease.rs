//! The scheme that IPAM is compared with: for each ADD one lease for the cluster, a GET and a PATCH of the pool.
//!
//! It is kinder than the peer: the client is connected already, nothing is listed, and no process is started.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

/// How long one that does not get the lease waits, as the peer does.
const RETRY: Duration = Duration::from_millis(500);
const NAMESPACE: &str = "kube-system";

/// A client that allocates as the peer does.
#[derive(Clone)]
pub(super) struct Peer {
    client: Client,
    pools: Api<DynamicObject>,
    leases: Api<DynamicObject>,
    lease: ApiResource,
    pool: ApiResource,
}

impl Peer {
    pub(super) async fn connect(kubeconfig: &Path) -> Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig)?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        config.default_retry = false;
        let client = Client::try_from(config)?;
        let pool =
            ApiResource::from_gvk(&GroupVersionKind::gvk("whereabouts.cni.cncf.io", "v1alpha1", "IPPool"));
        let lease = ApiResource::from_gvk(&GroupVersionKind::gvk("coordination.k8s.io", "v1", "Lease"));
        let api = |resource| Api::namespaced_with(client.clone(), NAMESPACE, resource);
        let (pools, leases) = (api(&pool), api(&lease));
        Ok(Self { client, pools, leases, lease, pool })
    }

    /// Makes a pool of which that many addresses are taken.
    pub(super) async fn fill(&self, name: &str, taken: usize) -> Result<()> {
        let entry = |offset: usize| {
            let entry =
                json!({"id": format!("c{offset}"), "podref": format!("bench/p{offset}"), "ifname": "net1"});
            (offset.to_string(), entry)
        };
        let allocations: serde_json::Map<String, Value> = (1..=taken).map(entry).collect();
        let object = DynamicObject::new(name, &self.pool)
            .data(json!({"spec": {"range": "10.128.0.0/22", "allocations": allocations}}));
        self.pools
            .create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("make pool {name}"))?;
        Ok(())
    }

    /// One ADD.
    pub(super) async fn add(&self, pool: &str, podref: &str) -> Result<()> {
        let name = "podrail-bench";
        let object = DynamicObject::new(name, &self.lease).data(json!({"spec": {"holderIdentity": podref}}));
        // Whoever makes the lease has it.
        loop {
            match self.leases.create(&PostParams::default(), &object).await {
                Ok(_) => break,
                Err(kube::Error::Api(status)) if status.code == 409 => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(error.into()),
            }
        }
        let allocated = self.allocate(pool, podref).await;
        self.leases.delete(name, &kube::api::DeleteParams::default()).await?;
        allocated
    }

    async fn allocate(&self, name: &str, podref: &str) -> Result<()> {
        loop {
            let pool = self.pools.get(name).await?;
            let allocations = pool.data.pointer("/spec/allocations").and_then(Value::as_object);
            let allocations = allocations.context("a pool without allocations")?;
            let free = (1_usize..).find(|offset| !allocations.contains_key(&offset.to_string()));
            let path = format!("/spec/allocations/{}", free.context("no free address")?);
            let version = pool.metadata.resource_version;
            let patch: Patch<()> = Patch::Json(serde_json::from_value(json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": version},
                {"op": "add", "path": path, "value": {"id": podref, "podref": podref, "ifname": "net1"}},
            ]))?);
            match self.pools.patch(name, &PatchParams::default(), &patch).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.code == 422 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How many requests about pools, leases and nodes the API server has had, by its own metrics.
    pub(super) async fn requests(&self) -> Result<f64> {
        let request = hyper::Request::get("/metrics").body(Vec::new())?;
        let metrics = self.client.request_text(request).await.context("read the API server's metrics")?;
        let concerns = |line: &&str| {
            let of = |resource: &str| line.contains(&format!("resource=\"{resource}\""));
            line.starts_with("apiserver_request_total{") && (of("ippools") || of("nodes") || of("leases"))
        };
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        Ok(metrics.lines().filter(concerns).filter_map(value).sum())
    }
}
