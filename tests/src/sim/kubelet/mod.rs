//! A stand-in for kubelet, driven by the Kubernetes API like the real one.
//!
//! It serves and calls the same sockets in the same folders, hands out devices by the same rules and writes the same
//! checkpoint; what it leaves out is everything that has nothing to do with devices and networks.

mod checkpoint;
mod devices;
mod manager;
mod node;
mod plugin;
mod pod;
mod pod_resources;
mod raw_call;
mod registration;
mod tasks;
mod watcher;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client};
use tokio::net::UnixListener;
use tokio::sync::watch as watch_channel;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::{info, warn};

use self::manager::DeviceManager;
use self::pod_resources::{Listed, Lister, Pods};
use self::registration::Register;
use self::tasks::Tasks;
use self::worker::Environment;
use crate::sim::runtime::Runtime;

/// Names, paths and patience of a simulated kubelet.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of its node.
    pub node: String,
    /// Address that the node shows.
    pub address: String,
    /// kubelet's folder.
    pub root: PathBuf,
    /// How long a resource whose plugin is gone stays on the node.
    pub plugin_grace: Duration,
    /// How long it waits after a failed sandbox, and after a failed call of the API server.
    pub sandbox_retry: Duration,
    /// How often it calls the API server for one thing.
    pub api_tries: u32,
}

impl Options {
    /// kubelet's own paths; waiting times that suit tests.
    pub fn new(node: &str) -> Options {
        Options {
            node: node.to_owned(),
            address: "127.0.0.1".to_owned(),
            root: "/var/lib/kubelet".into(),
            plugin_grace: Duration::from_secs(300),
            sandbox_retry: Duration::from_secs(1),
            api_tries: 60,
        }
    }
}

/// A running kubelet.
#[derive(Debug)]
pub struct Kubelet {
    tasks: Tasks,
}

impl Kubelet {
    /// Starts a kubelet: empties the device plugins' folder, serves its sockets, registers the node, follows its pods.
    ///
    /// # Errors
    /// A folder or socket cannot be made, or the API server does not answer.
    pub async fn start(client: Client, runtime: Arc<Runtime>, options: Options) -> Result<Kubelet> {
        let tasks = Tasks::default();
        let plugins = options.root.join("device-plugins");
        let registry = options.root.join("plugins_registry");
        let resources = options.root.join("pod-resources");
        for folder in [&plugins, &registry, &resources] {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        empty(&plugins).with_context(|| format!("empty {}", plugins.display()))?;

        let manager = DeviceManager::new(&plugins, options.plugin_grace, tasks.clone())?;
        let pods = Pods::default();
        let register = Register::server(Arc::clone(&manager), plugins.clone(), tasks.clone());
        serve(&tasks, &plugins, Server::builder().add_service(register))?;
        let lister = Lister::server(Arc::clone(&manager), Arc::clone(&pods));
        serve(&tasks, &resources, Server::builder().add_service(lister))?;
        node::register(&client, &options, &manager).await?;
        tasks.spawn(node::follow(client.clone(), options.clone(), Arc::clone(&manager)));
        tasks.spawn(watcher::watch(registry, Arc::clone(&manager)));
        let environment = Arc::new(Environment { client, runtime, manager, options });
        tasks.spawn(follow_pods(environment, pods, tasks.clone()));
        Ok(Kubelet { tasks })
    }

    /// Stops it as a signal would: its sockets go dead, its pods run on.
    pub async fn stop(self) {
        self.tasks.stop().await;
        info!("kubelet stopped");
    }
}

/// Removes everything but the checkpoint.
fn empty(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == checkpoint::FILE {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Serves `router` on `kubelet.sock` in `folder`.
fn serve(tasks: &Tasks, folder: &Path, router: tonic::transport::server::Router) -> Result<()> {
    let socket = folder.join("kubelet.sock");
    let bind = || {
        if socket.exists() {
            std::fs::remove_file(&socket)?;
        }
        UnixListener::bind(&socket)
    };
    let listener = bind().with_context(|| format!("listen on {}", socket.display()))?;
    let stopped = tasks.stopped();
    tasks.spawn(async move {
        let served = router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped).await;
        if let Err(error) = served {
            warn!("{}: {error}", socket.display());
        }
    });
    Ok(())
}

/// Starts a worker for each pod that is bound to this node, and tells it what the API server shows of it.
async fn follow_pods(environment: Arc<Environment>, listed: Pods, tasks: Tasks) {
    let api: Api<Pod> = Api::all(environment.client.clone());
    let config = Config::default().fields(&format!("spec.nodeName={}", environment.options.node));
    let mut events = Box::pin(watcher(api, config));
    let mut workers: BTreeMap<String, watch_channel::Sender<Option<Pod>>> = BTreeMap::new();
    let mut listing: Vec<String> = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listing.clear(),
            Ok(Event::InitApply(pod)) => {
                listing.extend(pod.metadata.uid.clone());
                see(&environment, &listed, &tasks, &mut workers, pod);
            }
            Ok(Event::Apply(pod)) => see(&environment, &listed, &tasks, &mut workers, pod),
            Ok(Event::InitDone) => {
                for (uid, worker) in &workers {
                    if !listing.contains(uid) {
                        worker.send_replace(None);
                    }
                }
                for uid in environment.runtime.pods() {
                    if !listing.contains(&uid)
                        && let Err(error) = environment.runtime.stop_pod(&uid, Duration::ZERO).await
                    {
                        warn!("orphaned pod {uid}: {error:#}");
                    }
                }
                environment.manager.retain(&listing);
            }
            Ok(Event::Delete(pod)) => {
                let worker = pod.metadata.uid.as_ref().and_then(|uid| workers.get(uid));
                if let Some(worker) = worker {
                    worker.send_replace(None);
                }
            }
            Err(error) => {
                warn!("watching pods: {error}");
                tokio::time::sleep(environment.options.sandbox_retry).await;
            }
        }
        workers.retain(|_, worker| !worker.is_closed());
    }
}

fn see(
    environment: &Arc<Environment>,
    listed: &Pods,
    tasks: &Tasks,
    workers: &mut BTreeMap<String, watch_channel::Sender<Option<Pod>>>,
    pod: Pod,
) {
    let Ok(identity) = pod::identity(&pod) else { return };
    if let Some(worker) = workers.get(&identity.uid)
        && !worker.is_closed()
    {
        worker.send_replace(Some(pod));
        return;
    }
    let uid = identity.uid;
    let containers = pod::containers(&pod).map(|(_, container)| container.name.clone()).collect();
    let entry = Listed { namespace: identity.namespace, name: identity.name, containers };
    listed.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.clone(), entry);
    let (sender, receiver) = watch_channel::channel(Some(pod.clone()));
    workers.insert(uid.clone(), sender);
    let (environment, listed) = (Arc::clone(environment), Arc::clone(listed));
    tasks.spawn(async move {
        worker::run(environment, pod, receiver).await;
        listed.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
    });
}
