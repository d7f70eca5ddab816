//! The node of a real Kubernetes, brought up by `hack/kubernetes` before the suite starts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::LocalBoxFuture;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Grade, Node};
use crate::wait::until;

/// Where the guest's loop keeps the process ID of the kubelet that runs.
const KUBELET_PID: &str = "/run/podrail/kubelet.pid";

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
}

impl Node for KubeNode {
    fn grade(&self) -> Grade {
        Grade::Kubernetes
    }

    fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
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

    fn pause_kubelet(&mut self) -> Result<()> {
        kill(Pid::from_raw(kubelet()?), Signal::SIGSTOP).context("stop kubelet")
    }

    fn continue_kubelet(&mut self) -> Result<()> {
        kill(Pid::from_raw(kubelet()?), Signal::SIGCONT).context("let kubelet go on")
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
