//! The simulated node: API server, scheduler, kubelet and container runtime in this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use futures_util::future::LocalBoxFuture;
use tokio::task::JoinHandle;

use super::thread::Thread;
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
    server: Arc<ApiServer>,
    scheduler: JoinHandle<()>,
    runtime: Arc<Runtime>,
    /// Everything of kubelet runs here.
    thread: Thread,
    kubelet: Option<Kubelet>,
    kubeconfig: PathBuf,
}

impl SimNode {
    /// Starts one with the default paths of kubelet and containerd; containers are started by `helper`.
    ///
    /// # Errors
    /// A port or a folder cannot be had.
    pub async fn start(helper: PathBuf) -> Result<SimNode> {
        let server = Arc::new(ApiServer::start().await.context("start the simulated API server")?);
        let kubeconfig = PathBuf::from(KUBECONFIG);
        std::fs::create_dir_all(Path::new(KUBECONFIG).parent().unwrap_or(Path::new("/")))?;
        host::durable::replace(&kubeconfig, server.kubeconfig(None).as_bytes())?;
        let runtime = Runtime::start(Paths::with_helper(helper)).await?;
        let scheduler = tokio::spawn(scheduler::run(client(&server).await?, NAME.to_owned()));
        let thread = Thread::new().context("start the thread of the simulated kubelet")?;
        let mut node = SimNode { server, scheduler, runtime, thread, kubelet: None, kubeconfig };
        node.start_kubelet().await?;
        Ok(node)
    }

    async fn start_kubelet(&mut self) -> Result<()> {
        let (server, runtime) = (Arc::clone(&self.server), Arc::clone(&self.runtime));
        let start = async move { Kubelet::start(client(&server).await?, runtime, Options::new(NAME)).await };
        self.kubelet = Some(self.thread.run(start).await??);
        Ok(())
    }

    async fn stop_kubelet(&mut self) {
        self.thread.resume();
        if let Some(kubelet) = self.kubelet.take() {
            kubelet.stop().await;
        }
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
            self.stop_kubelet().await;
            self.start_kubelet().await
        })
    }

    fn pause_kubelet(&mut self) -> Result<()> {
        self.thread.pause().context("stop the simulated kubelet")
    }

    fn continue_kubelet(&mut self) -> Result<()> {
        self.thread.resume();
        Ok(())
    }

    fn stop(mut self: Box<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            self.scheduler.abort();
            self.stop_kubelet().await;
        })
    }
}

async fn client(server: &ApiServer) -> Result<kube::Client> {
    server.client().await.map_err(|error| anyhow!("client of the simulated API server: {error}"))
}
