//! The calls of the shim: one at a time for each sandbox, a bounded number at a time on the node.
//!
//! A call is worked on in a thread of its own, because a delegate is waited for without doing anything else. ADD and
//! DEL have separate limits, first come first served, so that a burst of new pods does not keep old ones from going.
//! When the client goes away, its ADD is given up and taken back; its DEL is brought to its end.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use cni::{CniResult, Command, Request, Version};
use multus::config::Conf;
use multus::kubernetes::Kubernetes;
use multus::node::Node;
use multus::plugin::complaint;
use multus::{attach, check, detach};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cancel::Cancel;
use crate::clients::Clients;
use crate::conf::DaemonConf;
use crate::executor::Supervisor;
use crate::launcher::{Launcher, THIS_PROGRAM};
use crate::pending;
use crate::sandboxes::{Sandboxes, Turn};
use crate::wire::Call;

/// Serves calls.
#[derive(Debug)]
pub struct Calls {
    /// The daemon's configuration.
    pub conf: DaemonConf,
    /// The node it runs on.
    pub node: Node,
    /// Its clients of the API server.
    pub clients: Arc<Clients>,
    /// The sandboxes that are worked on.
    pub sandboxes: Sandboxes,
    launcher: Arc<Launcher>,
    adds: Arc<Semaphore>,
    dels: Arc<Semaphore>,
}

/// What a call needs to be worked on.
struct Job {
    asked: SystemTime,
    request: Request,
    conf: Conf,
    kubernetes: Option<Kubernetes>,
    cancel: Cancel,
    turn: Option<Turn>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Calls {
    /// Serves calls as `conf` says.
    #[must_use]
    pub fn new(conf: DaemonConf, node: Node, clients: Clients) -> Self {
        let (adds, dels) = (Semaphore::new(conf.add_limit), Semaphore::new(conf.del_limit));
        let launcher = Launcher::new(THIS_PROGRAM, conf.chroot.clone());
        Calls {
            conf,
            node,
            clients: Arc::new(clients),
            sandboxes: Sandboxes::default(),
            launcher: Arc::new(launcher),
            adds: Arc::new(adds),
            dels: Arc::new(dels),
        }
    }

    /// How many calls may be worked on at the same time.
    #[must_use]
    pub fn limit(conf: &DaemonConf) -> usize {
        // Probes of the runtime and our own collection of garbage come on top.
        conf.add_limit + conf.del_limit + 4
    }

    /// Does what the client of `/cni` asks; a result for ADD alone. Dropping the future gives an ADD up.
    ///
    /// # Errors
    /// What the client is to be told.
    pub async fn cni(self: &Arc<Self>, call: &Call) -> Result<Option<CniResult>, cni::Error> {
        let asked = SystemTime::now();
        let config = self.conf.overlay(&call.config)?;
        let request = call.request(&config)?;
        let failed = |error: multus::Error| complaint(&request, &error);
        let cancel = Cancel::default();
        let given_up = cancel.on_drop();
        let conf = self.conf_of(call, &request, &cancel).map_err(failed)?;
        let turn = match request.command.concerns_attachment() {
            true => Some(self.sandboxes.turn(&request.container_id).await),
            false => None,
        };
        let permit = self.permit(request.command).await;
        // DEL and CHECK need nothing but what is on disk.
        let kubernetes = match request.command {
            Command::Add | Command::Status => {
                self.clients.client(conf.kubeconfig.as_deref()).await.map_err(failed)?
            }
            // Networks that need none are collected all the same.
            Command::Gc => {
                let client = self.clients.client(conf.kubeconfig.as_deref()).await;
                client.inspect_err(|error| tracing::warn!("GC: {error}")).unwrap_or_default()
            }
            Command::Del | Command::Check | Command::Version => None,
        };
        let job = Job { asked, request: request.clone(), conf, kubernetes, cancel, turn, permit };
        let done = self.work(job).await;
        given_up.disarm();
        done.inspect_err(|error| {
            tracing::error!("{} of {}: {error}", request.command.as_str(), request.container_id);
        })
    }

    /// The validated configuration of a call, with delegates that run for it.
    ///
    /// # Errors
    /// [`multus::Error::Conf`].
    pub(crate) fn conf_of(
        &self,
        call: &Call,
        request: &Request,
        cancel: &Cancel,
    ) -> Result<Conf, multus::Error> {
        let mut conf = Conf::load(request)?;
        conf.executor = Arc::new(Supervisor {
            environment: call.environment.clone(),
            launcher: Arc::clone(&self.launcher),
            limit: self.conf.delegate_limit,
            cancel: cancel.clone(),
        });
        Ok(conf)
    }

    /// Takes the sandbox of `container` down, of which the runtime says nothing (any more).
    ///
    /// # Errors
    /// What could not be released.
    pub async fn release(self: &Arc<Self>, container: &str) -> Result<(), cni::Error> {
        let turn = self.sandboxes.turn(container).await;
        let permit = self.permit(Command::Del).await;
        let call = Call {
            environment: [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", container)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into_iter()
                .chain(std::env::var("PATH").ok().map(|path| ("PATH".to_owned(), path)))
                .collect(),
            ..Call::default()
        };
        let request = self.own_request(&call)?;
        let cancel = Cancel::default();
        let conf = self.conf_of(&call, &request, &cancel).map_err(|error| complaint(&request, &error))?;
        let job = Job {
            asked: SystemTime::now(),
            request,
            conf,
            kubernetes: None,
            cancel,
            turn: Some(turn),
            permit,
        };
        self.work(job).await.map(drop)
    }

    /// A call of the daemon's own: the client's variables, and no configuration but the daemon's.
    ///
    /// # Errors
    /// As a plugin answers them: codes 1, 4, 6 and 7.
    pub(crate) fn own_request(&self, call: &Call) -> Result<Request, cni::Error> {
        let mut config = self.conf.overlay(br#"{"type":"multus-shim"}"#)?;
        config.set("name", "multus-cni-network")?;
        config.set("cniVersion", Version::LATEST.as_str())?;
        call.request(&config)
    }

    /// The configuration of the runtime's calls, as far as it is known without one.
    ///
    /// # Errors
    /// [`multus::Error::Conf`].
    pub(crate) fn conf_of_runtime(&self) -> Result<Conf, multus::Error> {
        let request = || {
            let mut config = self.conf.of_runtime()?;
            config.set("name", "multus-cni-network")?;
            config.set("cniVersion", Version::LATEST.as_str())?;
            let environment = [("CNI_COMMAND".to_owned(), "STATUS".to_owned())].into();
            Call { environment, ..Call::default() }.request(&config)
        };
        Conf::load(&request().map_err(multus::Error::Conf)?)
    }

    /// A place among those who work; probes need none.
    pub(crate) async fn permit(&self, command: Command) -> Option<OwnedSemaphorePermit> {
        let places = match command {
            Command::Add | Command::Check => &self.adds,
            Command::Del | Command::Gc => &self.dels,
            Command::Status | Command::Version => return None,
        };
        // Fails only when the semaphore is closed, which nobody does.
        Arc::clone(places).acquire_owned().await.ok()
    }

    async fn work(self: &Arc<Self>, job: Job) -> Result<Option<CniResult>, cni::Error> {
        let (calls, handle) = (Arc::clone(self), Handle::current());
        let worked = tokio::task::spawn_blocking(move || {
            let done = calls.perform(&job, &handle);
            let Job { request, turn, permit, .. } = job;
            drop((turn, permit));
            done.map_err(|error| complaint(&request, &error))
        });
        worked
            .await
            .map_err(|e| cni::Error::internal(format!("the call broke off: {e}; please report this")))?
    }

    fn perform(&self, job: &Job, handle: &Handle) -> Result<Option<CniResult>, multus::Error> {
        let Job { request, conf, kubernetes, .. } = job;
        let kubernetes = kubernetes.as_ref();
        match request.command {
            Command::Add => {
                forget_pending(&self.conf.cni_dir, request);
                self.add(job, kubernetes, handle).map(Some)
            }
            Command::Del => detach::release_sandbox(&self.node, conf, request).map(|()| None),
            Command::Check => check::check(conf, request).map(|()| None),
            Command::Gc => {
                let turn = |container: &str| self.sandboxes.turn_at_once(container);
                let gc = check::gc(&self.node, conf, kubernetes, request, job.asked, turn);
                handle.block_on(gc).map(|()| None)
            }
            Command::Status => handle.block_on(check::status_with(conf, kubernetes)).map(|()| None),
            Command::Version => Ok(None),
        }
    }

    fn add(
        &self,
        job: &Job,
        kubernetes: Option<&Kubernetes>,
        handle: &Handle,
    ) -> Result<CniResult, multus::Error> {
        let Job { request, conf, cancel, .. } = job;
        let added = handle.block_on(async {
            tokio::select! {
                added = attach::add_with(&self.node, conf, kubernetes, request) => added,
                () = cancel.cancelled() => Err(given_up()),
            }
        });
        if cancel.is_cancelled() {
            tracing::info!("ADD of {} was given up: the runtime stopped waiting", request.container_id);
            detach::release_sandbox(&self.node, conf, request)?;
            return Err(given_up());
        }
        added
    }
}

fn given_up() -> multus::Error {
    multus::Error::Conf(cni::Error::try_again_later("the runtime stopped waiting"))
}

/// A DEL that was kept is about an attachment before this one, which ADD clears away itself.
fn forget_pending(cni_dir: &Path, request: &Request) {
    if let Err(error) = pending::forget(cni_dir, &request.container_id, &request.ifname) {
        tracing::warn!("{error}");
    }
}
