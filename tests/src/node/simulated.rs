//! The simulated node: API server, scheduler, kubelet and container runtime in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use futures_util::future::LocalBoxFuture;
use tokio::task::JoinHandle;

use super::{Grade, Node};
use crate::sim::apiserver::ApiServer;
use crate::sim::kubelet::{Kubelet, Options};
use crate::sim::runtime::{Paths, Runtime};
use crate::sim::scheduler;

/// Where the kubeconfig is left.
const KUBECONFIG: &str = "/run/podrail/sim/kubeconfig";

/// Name of the simulated node.
pub(crate) const NAME: &str = "simulated";

/// A simulated node.
#[derive(Debug)]
pub struct SimNode {
    server: ApiServer,
    scheduler: JoinHandle<()>,
    runtime: Arc<Runtime>,
    kubelet: Option<Kubelet>,
    kubeconfig: PathBuf,
}

impl SimNode {
    /// Starts one with the default paths of kubelet and containerd; containers are started by `helper`.
    ///
    /// # Errors
    /// A port or a folder cannot be had.
    pub async fn start(helper: PathBuf) -> Result<SimNode> {
        let server = ApiServer::start().await.context("start the simulated API server")?;
        let kubeconfig = PathBuf::from(KUBECONFIG);
        std::fs::create_dir_all(Path::new(KUBECONFIG).parent().unwrap_or(Path::new("/")))?;
        host::durable::replace(&kubeconfig, server.kubeconfig(None).as_bytes())?;
        let runtime = Runtime::start(Paths::with_helper(helper)).await?;
        let client = client(&server).await?;
        let kubelet = Kubelet::start(client.clone(), Arc::clone(&runtime), Options::new(NAME)).await?;
        let scheduler = tokio::spawn(scheduler::run(client, NAME.to_owned()));
        Ok(SimNode { server, scheduler, runtime, kubelet: Some(kubelet), kubeconfig })
    }
}

impl Node for SimNode {
    fn grade(&self) -> Grade {
        Grade::Simulated
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn restart_kubelet(&mut self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(async {
            if let Some(kubelet) = self.kubelet.take() {
                kubelet.stop().await;
            }
            let client = client(&self.server).await?;
            let kubelet = Kubelet::start(client, Arc::clone(&self.runtime), Options::new(NAME)).await?;
            self.kubelet = Some(kubelet);
            Ok(())
        })
    }

    fn stop(mut self: Box<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            self.scheduler.abort();
            if let Some(kubelet) = self.kubelet.take() {
                kubelet.stop().await;
            }
        })
    }
}

async fn client(server: &ApiServer) -> Result<kube::Client> {
    server.client().await.map_err(|error| anyhow!("client of the simulated API server: {error}"))
}
