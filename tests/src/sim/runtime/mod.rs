//! A stand-in for containerd: sandboxes with a network of CNI plugins, containers that are processes of this node.
//!
//! It outlives the simulated kubelet, as containerd outlives the real one. What a killed run left behind is found in
//! its state folder and removed by the next.

mod container;
mod init;
mod log;
pub(crate) mod netns;
mod sandbox;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

pub use container::{Container, ContainerSpec};
pub use init::{init, supervise};
pub use sandbox::Sandbox;

/// Where things are on a node; the defaults are containerd's and kubelet's.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Network configurations; the first one counts.
    pub conf_dir: PathBuf,
    /// Where CNI plugins are looked for.
    pub bin_dir: PathBuf,
    /// libcni's cache.
    pub cache_dir: PathBuf,
    /// Network namespaces of sandboxes.
    pub netns_dir: PathBuf,
    /// Container logs.
    pub log_dir: PathBuf,
    /// What the runtime remembers of its sandboxes and containers.
    pub state_dir: PathBuf,
    /// The program whose `sim-container` and `sim-init` subcommands start containers: [`supervise`] and [`init`].
    pub helper: PathBuf,
}

impl Paths {
    /// The paths of a node, with `helper` as the program that starts containers.
    pub fn with_helper(helper: PathBuf) -> Paths {
        Paths {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: "/opt/cni/bin".into(),
            cache_dir: "/var/lib/cni".into(),
            netns_dir: "/run/netns".into(),
            log_dir: "/var/log/pods".into(),
            state_dir: "/run/podrail/sim".into(),
            helper,
        }
    }
}

/// Whose sandbox it is.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PodIdentity {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// The container runtime of the node.
#[derive(Debug)]
pub struct Runtime {
    paths: Paths,
    cni: cni::Runtime,
    pods: Mutex<BTreeMap<String, Held>>,
}

/// What the runtime holds for one pod.
#[derive(Debug, Default)]
struct Held {
    sandboxes: Vec<Sandbox>,
    containers: Vec<Arc<Container>>,
}

impl Runtime {
    /// A runtime, after removing what a killed one left: its containers died with it, its sandboxes are detached
    /// from their networks here.
    ///
    /// # Errors
    /// The state folder cannot be used.
    pub async fn start(paths: Paths) -> Result<Arc<Runtime>> {
        let folder = paths.state_dir.join("sandboxes");
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let cni = cni::Runtime {
            path: vec![paths.bin_dir.clone()],
            cache_dir: paths.cache_dir.clone(),
            executor: Arc::new(cni::exec::Direct),
        };
        let _ = std::fs::remove_dir_all(paths.state_dir.join("containers"));
        let runtime = Arc::new(Runtime { paths, cni, pods: Mutex::default() });
        for sandbox in sandbox::recorded(&folder)? {
            info!(sandbox = sandbox.id, "removing what an earlier run left");
            if let Err(error) = runtime.remove_sandbox(&sandbox).await {
                warn!("sandbox {} of an earlier run: {error:#}", sandbox.id);
            }
        }
        Ok(runtime)
    }

    /// Creates the pod's network namespace and attaches it to the node's network.
    ///
    /// # Errors
    /// containerd's text about a CNI plugin that failed. The plugin was called again to undo, and if that worked
    /// nothing is left.
    pub async fn run_sandbox(self: &Arc<Self>, pod: &PodIdentity) -> Result<Sandbox> {
        let mut sandbox = Sandbox::new(&self.paths, pod.clone());
        sandbox.record(&self.paths.state_dir)?;
        let attached = match netns::create(&sandbox.netns) {
            Ok(()) => self.attach(&sandbox).await,
            Err(error) => Err(error),
        };
        match attached {
            Ok(addresses) => {
                sandbox.addresses = addresses;
                self.held().entry(pod.uid.clone()).or_default().sandboxes.push(sandbox.clone());
                Ok(sandbox)
            }
            Err(error) => {
                if let Err(undo) = self.remove_sandbox(&sandbox).await {
                    warn!("sandbox {} stays until its pod goes: {undo:#}", sandbox.id);
                    self.held().entry(pod.uid.clone()).or_default().sandboxes.push(sandbox);
                }
                Err(error)
            }
        }
    }

    /// The sandbox in which the pod runs, if it has one that is attached.
    pub fn sandbox(&self, uid: &str) -> Option<Sandbox> {
        let held = self.held();
        let sandboxes = &held.get(uid)?.sandboxes;
        sandboxes.iter().rev().find(|sandbox| !sandbox.addresses.is_empty()).cloned()
    }

    /// Starts a container of the pod in `sandbox`; its output goes to the log in CRI format.
    ///
    /// # Errors
    /// The process cannot be started or its log not written.
    pub fn start_container(&self, sandbox: &Sandbox, spec: ContainerSpec) -> Result<Arc<Container>> {
        let container = Arc::new(Container::start(&self.paths, sandbox, spec)?);
        let uid = sandbox.pod.uid.clone();
        self.held().entry(uid).or_default().containers.push(Arc::clone(&container));
        Ok(container)
    }

    /// The containers that were started for the pod, in order.
    pub fn containers(&self, uid: &str) -> Vec<Arc<Container>> {
        self.held().get(uid).map(|held| held.containers.clone()).unwrap_or_default()
    }

    /// The UIDs of the pods that have something here.
    pub fn pods(&self) -> Vec<String> {
        self.held().keys().cloned().collect()
    }

    /// Ends the pod's containers (SIGTERM, after `grace` SIGKILL), detaches its sandboxes and forgets the pod.
    ///
    /// # Errors
    /// A CNI plugin failed; the sandbox stays, for another try.
    pub async fn stop_pod(self: &Arc<Self>, uid: &str, grace: std::time::Duration) -> Result<()> {
        for container in self.containers(uid) {
            container.stop(grace).await;
        }
        let sandboxes = self.held().get(uid).map(|held| held.sandboxes.clone()).unwrap_or_default();
        for sandbox in sandboxes {
            self.remove_sandbox(&sandbox).await?;
            if let Some(held) = self.held().get_mut(uid) {
                held.sandboxes.retain(|other| other.id != sandbox.id);
            }
        }
        self.held().remove(uid);
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, Held>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes `value` as JSON to `path`, whose folder is made if it is missing.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let folder = path.parent().context("path without a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(host::durable::replace(path, &serde_json::to_vec(value)?)?)
}
