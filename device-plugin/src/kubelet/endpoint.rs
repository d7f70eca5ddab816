//! A resource's socket, kept alive and announced for ever.
//!
//! kubelet learns of a device plugin in one of two ways. Its plugin watcher finds the socket in `plugins_registry`; or,
//! where there is no such directory, the plugin calls `Register` on `kubelet.sock` with a socket beside it. kubelet
//! empties the second directory when it starts, and in both ways it never comes back to a plugin by itself once its
//! list has broken off. So the endpoint watches for a lost socket, for a new kubelet, and for a kubelet that does not
//! listen, and announces itself anew.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use host::DirectoryWatch;
use kubelet_api::deviceplugin::device_plugin_server::DevicePluginServer;
use kubelet_api::registration::registration_server::RegistrationServer;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::backoff::Backoff;
use super::register::{self, register};
use super::service::{Granter, Service};
use super::socket::{self, Identity, SocketFile, identity};
use crate::config::Resource;
use crate::places::Places;
use crate::pool::Pool;

/// How long a stopping server waits for calls in progress.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// How patient an endpoint is. [`Patience::default`] suits kubelet; tests have less.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// The first wait after a failure; the next ones are longer.
    pub(crate) retry: Duration,
    /// The longest wait after a failure.
    pub(crate) retry_limit: Duration,
    /// How long kubelet may go without listening before the endpoint announces itself again, the first time.
    pub(crate) silence: Duration,
    /// The longest such time.
    pub(crate) silence_limit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            retry: Duration::from_secs(1),
            retry_limit: Duration::from_secs(60),
            silence: Duration::from_secs(15),
            silence_limit: Duration::from_secs(600),
        }
    }
}

/// One resource, to be served to kubelet.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) pool: watch::Receiver<Arc<Pool>>,
    pub(crate) granter: Arc<Granter>,
    pub(crate) patience: Patience,
}

/// Why a socket is given up, and another one made.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("cannot watch for kubelet: {0}")]
    Watch(#[from] host::directory_watch::Error),
    #[error(transparent)]
    Socket(#[from] socket::Error),
    #[error("the server ended")]
    Ended,
    #[error("kubelet refused the plugin: {0}")]
    Refused(String),
    #[error("kubelet does not listen")]
    Silence,
    #[error("kubelet now has the directory {}", path.display())]
    Mode { path: PathBuf },
}

impl Lost {
    /// Whether making the next socket at once is right: it is the announcement that is due.
    fn is_routine(&self) -> bool {
        matches!(self, Self::Socket(socket::Error::Removed { .. }) | Self::Mode { .. } | Self::Silence)
    }
}

/// The way in which kubelet is told of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// kubelet's plugin watcher finds the socket.
    Watched,
    /// The plugin calls kubelet.
    Direct,
}

impl Mode {
    fn of(places: &Places) -> Self {
        if places.plugins_registry().is_dir() { Self::Watched } else { Self::Direct }
    }

    fn directory(self, places: &Places) -> PathBuf {
        match self {
            Self::Watched => places.plugins_registry(),
            Self::Direct => places.device_plugins(),
        }
    }
}

impl Endpoint {
    /// Serves until stopped, and removes the socket then.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Patience { retry, retry_limit, silence, silence_limit } = self.patience;
        let mut waits = Waits {
            failure: Backoff::new(retry, retry_limit),
            silence: Backoff::new(silence, silence_limit),
        };
        let resource = self.pool.borrow().conf.resource.clone();
        while !stop.is_cancelled() {
            let begun = Instant::now();
            match self.serve(&resource, &mut waits, &stop).await {
                Ok(()) => return,
                Err(lost) if lost.is_routine() => {
                    tracing::info!(%resource, reason = %lost, "serving anew");
                    // At once, unless somebody takes sockets away as fast as they are made.
                    let wait = retry.saturating_sub(begun.elapsed());
                    let _ = timeout(wait, stop.cancelled()).await;
                }
                Err(lost) => {
                    let wait = waits.failure.step();
                    tracing::error!(%resource, reason = %lost, ?wait, "will serve anew");
                    let _ = timeout(wait, stop.cancelled()).await;
                }
            }
        }
    }

    /// Serves one socket until stopped, or until it is of no use any more.
    async fn serve(
        &self,
        resource: &Resource,
        waits: &mut Waits,
        stop: &CancellationToken,
    ) -> Result<(), Lost> {
        let places = &self.granter.places;
        let Some(mode) = self.mode(stop).await else { return Ok(()) };
        let directory = mode.directory(places);
        let name = resource.socket_name();
        let path = directory.join(&name);
        // Before anything is looked at, so that no change is missed.
        let mut sockets = DirectoryWatch::new(&directory)?;
        let mut directories = DirectoryWatch::new(&places.kubelet)?;
        let (listener, file) = socket::bind(&path).await?;
        let ending = stop.child_token();
        let service =
            Service::new(self.pool.clone(), self.granter.clone(), path.display().to_string(), ending.clone());
        let (mut listeners, mut refusals) = (service.listeners(), service.refusals());
        let server = Server::builder()
            .add_service(DevicePluginServer::new(service.clone()))
            .add_service(RegistrationServer::new(service))
            .serve_with_incoming_shutdown(kubelet_api::incoming(listener), ending.clone().cancelled_owned());
        let mut server = tokio::spawn(server);
        // However this function ends, the server ends with it.
        let _end = ending.drop_guard();
        tracing::info!(%resource, socket = %path.display(), ?mode, "serving");
        self.granter.metrics.serving(resource);

        let mut session = Session::new(places, resource, name, mode, file, waits);
        // What came before the watch did.
        session.directories_changed()?;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    let _ = timeout(STOP_LIMIT, &mut server).await;
                    session.file.remove();
                    return Ok(());
                }
                _ = &mut server => return Err(Lost::Ended),
                changed = sockets.changed() => {
                    changed?;
                    session.sockets_changed()?;
                }
                changed = directories.changed() => {
                    changed?;
                    session.directories_changed()?;
                }
                Ok(()) = refusals.changed() => {
                    let reason = refusals.borrow_and_update().clone();
                    return Err(session.give_up(Lost::Refused(reason.unwrap_or_default())));
                }
                Ok(()) = listeners.changed() => {
                    let count = *listeners.borrow_and_update();
                    self.granter.metrics.listeners(resource, count);
                    session.listeners_changed(count);
                }
                Some(result) = session.calls.join_next() => session.called(result),
                () = until(session.announce_at) => session.announce(),
                () = until(session.silent_at) => session.silence()?,
            }
        }
    }

    /// The way in which kubelet can be told, once it has made a directory for that; `None` if stopped before.
    async fn mode(&self, stop: &CancellationToken) -> Option<Mode> {
        let places = &self.granter.places;
        let mut told = false;
        while !stop.is_cancelled() {
            let mode = Mode::of(places);
            let directory = mode.directory(places);
            if directory.is_dir() {
                return Some(mode);
            }
            if !told {
                tracing::warn!(directory = %directory.display(), "waiting for kubelet to make it");
                told = true;
            }
            let _ = timeout(self.patience.retry, stop.cancelled()).await;
        }
        None
    }
}

/// The waits of an endpoint, which outlive its sockets.
struct Waits {
    failure: Backoff,
    silence: Backoff,
}

/// The time of one socket: what kubelet is known to know, and what is to be done about it when.
struct Session<'a> {
    places: &'a Places,
    resource: &'a Resource,
    name: String,
    mode: Mode,
    file: SocketFile,
    waits: &'a mut Waits,
    /// The kubelet socket on which the resource was last registered.
    kubelet: Option<Identity>,
    /// Calls of `Register` that kubelet has yet to answer.
    calls: JoinSet<Result<(), register::Error>>,
    /// When to call `Register`.
    announce_at: Option<Instant>,
    /// When kubelet will have been silent for too long.
    silent_at: Option<Instant>,
}

impl<'a> Session<'a> {
    fn new(
        places: &'a Places,
        resource: &'a Resource,
        name: String,
        mode: Mode,
        file: SocketFile,
        waits: &'a mut Waits,
    ) -> Self {
        let now = Instant::now();
        let announce_at = (mode == Mode::Direct).then_some(now);
        let silent_at = Some(now + waits.silence.step());
        let calls = JoinSet::new();
        Self { places, resource, name, mode, file, waits, kubelet: None, calls, announce_at, silent_at }
    }

    /// Gives the socket up. Its removal tells the plugin watcher, and the next one is news to it.
    fn give_up(&self, reason: Lost) -> Lost {
        self.file.remove();
        reason
    }

    /// A file in the socket's directory came or went.
    fn sockets_changed(&mut self) -> Result<(), Lost> {
        self.file.check()?;
        let kubelet = identity(&self.places.registration_socket());
        // A kubelet that has just come deserves an answer at once.
        if self.mode == Mode::Direct && kubelet.is_some() && kubelet != self.kubelet {
            self.waits.failure.reset();
            self.announce_at = Some(Instant::now());
        }
        Ok(())
    }

    /// A file or directory of kubelet's came or went.
    fn directories_changed(&mut self) -> Result<(), Lost> {
        self.file.check()?;
        if Mode::of(self.places) != self.mode {
            return Err(self.give_up(Lost::Mode { path: self.places.plugins_registry() }));
        }
        Ok(())
    }

    fn listeners_changed(&mut self, count: usize) {
        if count > 0 {
            self.waits.failure.reset();
            self.waits.silence.reset();
            (self.announce_at, self.silent_at) = (None, None);
        } else if self.silent_at.is_none() {
            tracing::warn!(resource = %self.resource, "kubelet no longer listens");
            self.silent_at = Some(Instant::now() + self.waits.silence.step());
        }
    }

    /// Calls `Register`, and does not wait for the answer: kubelet can listen before it comes.
    fn announce(&mut self) {
        let socket = self.places.registration_socket();
        let (name, resource) = (self.name.clone(), self.resource.to_string());
        self.announce_at = None;
        self.kubelet = identity(&socket);
        self.calls.spawn(async move { register(&socket, &name, &resource).await });
    }

    fn called(&mut self, result: Result<Result<(), register::Error>, JoinError>) {
        let resource = self.resource;
        match result {
            Ok(Ok(())) => tracing::info!(%resource, "registered with kubelet"),
            Ok(Err(error)) => self.call_failed(&error),
            Err(error) => self.call_failed(&error),
        }
    }

    fn call_failed(&mut self, error: &impl std::fmt::Display) {
        let wait = self.waits.failure.step();
        tracing::warn!(resource = %self.resource, %error, ?wait, "cannot register with kubelet, will try again");
        self.kubelet = None;
        self.announce_at = Some(Instant::now() + wait);
    }

    /// kubelet has been silent for too long.
    fn silence(&mut self) -> Result<(), Lost> {
        match self.mode {
            Mode::Watched => Err(self.give_up(Lost::Silence)),
            Mode::Direct => {
                let now = Instant::now();
                if self.calls.is_empty() {
                    self.announce_at = self.announce_at.or(Some(now));
                }
                self.silent_at = Some(now + self.waits.silence.step());
                Ok(())
            }
        }
    }
}

/// Waits for a moment that may never come.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}
