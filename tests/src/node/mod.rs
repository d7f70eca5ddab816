//! The node under the scenarios: simulated, or of a real Kubernetes.

mod kubernetes;
mod simulated;
mod thread;

use std::fmt;
use std::path::Path;

use anyhow::Result;
use futures_util::future::LocalBoxFuture;

pub use kubernetes::KubeNode;
pub use simulated::SimNode;

/// What surrounds the programs under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// The stand-ins of [`crate::sim`].
    Simulated,
    /// kube-apiserver, kubelet and containerd.
    Kubernetes,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Grade::Simulated => "simulated node",
            Grade::Kubernetes => "real Kubernetes",
        })
    }
}

/// What differs between the grades; everything else goes through the API and the node's files.
pub trait Node: fmt::Debug + Send {
    /// Which one it is.
    fn grade(&self) -> Grade;

    /// A kubeconfig whose user may do anything.
    fn kubeconfig(&self) -> &Path;

    /// Restarts kubelet, as an upgrade does: pods run on. Returns when a new one is starting.
    ///
    /// # Errors
    /// The old one does not end, or no new one starts.
    fn restart_kubelet(&mut self) -> LocalBoxFuture<'_, Result<()>>;

    /// Stops kubelet wherever it is, as SIGSTOP does: its sockets stay, and nobody answers.
    ///
    /// # Errors
    /// There is none that could be stopped.
    fn pause_kubelet(&mut self) -> Result<()>;

    /// Lets a stopped kubelet go on.
    ///
    /// # Errors
    /// There is none.
    fn continue_kubelet(&mut self) -> Result<()>;

    /// Ends what [`Node`]'s implementation started.
    fn stop(self: Box<Self>) -> LocalBoxFuture<'static, ()>;
}
