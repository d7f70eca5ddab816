//! A resource's socket, kept alive and announced for ever.
//!
//! kubelet learns of a device plugin in one of two ways. Its plugin watcher finds the socket in `plugins_registry`; or,
//! where there is no such directory, the plugin calls `Register` on `kubelet.sock` with a socket beside it. kubelet
//! empties the second directory when it starts, and in both ways it never comes back to a plugin by itself once its
//! list has broken off. So the endpoint watches for a lost socket, for a new kubelet, and for a kubelet that does not
//! listen, and announces itself anew.

use std::future::pending;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use host::DirectoryWatch;
use kubelet_api::deviceplugin::device_plugin_server::DevicePluginServer;
use kubelet_api::deviceplugin::registration_client::RegistrationClient;
use kubelet_api::deviceplugin::{RegisterRequest, VERSION};
use kubelet_api::registration::registration_server::RegistrationServer;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::backoff::Backoff;
use super::service::{Granter, OPTIONS, Service};
use crate::pool::Pool;

/// How long kubelet may take to answer a registration.
const REGISTER_LIMIT: Duration = Duration::from_secs(10);
/// How long a stopping server waits for calls in progress.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// How patient an endpoint is. [`Patience::default`] suits kubelet; tests have less.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// The first wait after a failed announcement.
    pub(crate) retry: Duration,
    /// How long kubelet may go without listening before the endpoint announces itself again, the first time.
    pub(crate) silence: Duration,
    /// The longest wait of either kind.
    pub(crate) limit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            retry: Duration::from_secs(1),
            silence: Duration::from_secs(15),
            limit: Duration::from_secs(60),
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
    #[error("cannot listen on {}: {source}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("another process serves {}; is a second device plugin running?", path.display())]
    Taken { path: PathBuf },
    #[error("socket {} was removed", path.display())]
    Removed { path: PathBuf },
    #[error("the server ended")]
    Ended,
    #[error("kubelet refused the plugin: {0}")]
    Refused(String),
    #[error("kubelet does not listen")]
    Silence,
    #[error("kubelet now has the directory {}", path.display())]
    Mode { path: PathBuf },
}

/// The way in which kubelet is told of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// kubelet's plugin watcher finds the socket.
    Watched,
    /// The plugin calls kubelet.
    Direct,
}

/// What tells one socket file from another at the same path: inode numbers alone are used again.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> Option<Identity> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.mtime(), file.mtime_nsec()))
}

impl Endpoint {
    /// Serves until stopped, and removes the socket then.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let resource = self.pool.borrow().conf.resource.to_string();
        let Patience { retry, limit, .. } = self.patience;
        let mut failures = Backoff::new(retry, limit);
        let mut silence = Backoff::new(self.patience.silence, limit * 10);
        while !stop.is_cancelled() {
            let wait = match self.serve(&stop, &mut failures, &mut silence).await {
                Ok(()) => return,
                // The next socket is the announcement: it must not wait.
                Err(lost @ (Lost::Removed { .. } | Lost::Mode { .. })) => {
                    tracing::info!(resource, reason = %lost, "serving anew");
                    Duration::ZERO
                }
                Err(lost @ Lost::Silence) => {
                    tracing::warn!(resource, reason = %lost, "serving anew");
                    Duration::ZERO
                }
                Err(lost) => {
                    let wait = failures.step();
                    tracing::error!(resource, reason = %lost, ?wait, "will serve anew");
                    wait
                }
            };
            let _ = timeout(wait, stop.cancelled()).await;
        }
    }

    /// Serves one socket until stopped, or until it is of no use any more.
    async fn serve(
        &self,
        stop: &CancellationToken,
        failures: &mut Backoff,
        silence: &mut Backoff,
    ) -> Result<(), Lost> {
        let places = &self.granter.places;
        let resource = self.pool.borrow().conf.resource.clone();
        let mode = if places.plugins_registry().is_dir() { Mode::Watched } else { Mode::Direct };
        let directory = match mode {
            Mode::Watched => places.plugins_registry(),
            Mode::Direct => places.device_plugins(),
        };
        let name = format!("{}_{}.sock", resource.prefix, resource.name);
        let path = directory.join(&name);
        if !self.exists(&directory, stop).await {
            return Ok(());
        }
        let mut watch = DirectoryWatch::new(&directory)?;
        let mut parent = DirectoryWatch::new(&places.kubelet)?;
        let socket = Socket::bind(&path).await?;
        let ending = stop.child_token();
        let service =
            Service::new(self.pool.clone(), self.granter.clone(), path.display().to_string(), ending.clone());
        let (mut listeners, mut refusals) = (service.listeners(), service.refusals());
        let server = Server::builder()
            .add_service(DevicePluginServer::new(service.clone()))
            .add_service(RegistrationServer::new(service))
            .serve_with_incoming_shutdown(
                kubelet_api::incoming(socket.listener),
                ending.clone().cancelled_owned(),
            );
        let mut server = tokio::spawn(server);
        // Whatever ends this function ends the server.
        let _end = ending.clone().drop_guard();
        tracing::info!(%resource, socket = %path.display(), ?mode, "serving");

        let kubelet_socket = places.registration_socket();
        let mut kubelet = None;
        let mut announce_at = (mode == Mode::Direct).then(Instant::now);
        let mut silent_at = Some(Instant::now() + silence.step());
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    let _ = timeout(STOP_LIMIT, &mut server).await;
                    socket.file.remove();
                    return Ok(());
                }
                _ = &mut server => return Err(Lost::Ended),
                changed = watch.changed() => {
                    changed?;
                    socket.file.check()?;
                    let seen = identity(&kubelet_socket);
                    // A kubelet that has just come deserves an answer at once.
                    if mode == Mode::Direct && seen.is_some() && seen != kubelet {
                        failures.reset();
                        announce_at = Some(Instant::now());
                    }
                }
                changed = parent.changed() => {
                    changed?;
                    socket.file.check()?;
                    if mode == Mode::Direct && places.plugins_registry().is_dir() {
                        socket.file.remove();
                        return Err(Lost::Mode { path: places.plugins_registry() });
                    }
                }
                changed = refusals.changed() => {
                    let reason = refusals.borrow_and_update().clone().unwrap_or_default();
                    if changed.is_ok() {
                        socket.file.remove();
                        return Err(Lost::Refused(reason));
                    }
                }
                changed = listeners.changed() => {
                    let listening = *listeners.borrow_and_update() > 0;
                    if changed.is_ok() && listening {
                        failures.reset();
                        silence.reset();
                        (announce_at, silent_at) = (None, None);
                    } else if silent_at.is_none() {
                        tracing::warn!(%resource, "kubelet no longer listens");
                        silent_at = Some(Instant::now() + silence.step());
                    }
                }
                () = until(announce_at) => {
                    announce_at = None;
                    let (seen, named) = (identity(&kubelet_socket), resource.to_string());
                    let result = tokio::select! {
                        result = register(&kubelet_socket, &name, &named) => result,
                        () = stop.cancelled() => continue,
                    };
                    match result {
                        Ok(()) => {
                            tracing::info!(%resource, "registered with kubelet");
                            kubelet = seen;
                        }
                        Err(error) => {
                            let wait = failures.step();
                            tracing::warn!(%resource, %error, ?wait, "cannot register with kubelet, will try again");
                            announce_at = Some(Instant::now() + wait);
                        }
                    }
                }
                () = until(silent_at) => match mode {
                    Mode::Direct => {
                        silent_at = Some(Instant::now() + silence.step());
                        announce_at = Some(announce_at.unwrap_or_else(Instant::now));
                    }
                    Mode::Watched => {
                        socket.file.remove();
                        return Err(Lost::Silence);
                    }
                },
            }
        }
    }
}

impl Endpoint {
    /// Waits until kubelet has made its directory; false if stopped before.
    async fn exists(&self, directory: &Path, stop: &CancellationToken) -> bool {
        if !directory.is_dir() {
            tracing::warn!(directory = %directory.display(), "no such directory: waiting for kubelet to make it");
        }
        while !directory.is_dir() && !stop.is_cancelled() {
            let _ = timeout(self.patience.retry, stop.cancelled()).await;
        }
        !stop.is_cancelled()
    }
}

/// Waits for a moment that may never come.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// Why `Register` failed.
#[derive(Debug, thiserror::Error)]
enum RegisterError {
    #[error(transparent)]
    Connect(#[from] kubelet_api::ConnectError),
    #[error("kubelet answered: {0}")]
    Refused(#[from] tonic::Status),
    #[error("kubelet did not answer within {REGISTER_LIMIT:?}")]
    Timeout,
}

async fn register(socket: &Path, endpoint: &str, resource: &str) -> Result<(), RegisterError> {
    let call = async {
        let mut client = RegistrationClient::new(kubelet_api::connect(socket).await?);
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: endpoint.to_owned(),
            resource_name: resource.to_owned(),
            options: Some(OPTIONS),
        };
        client.register(request).await?;
        Ok(())
    };
    timeout(REGISTER_LIMIT, call).await.unwrap_or(Err(RegisterError::Timeout))
}

/// A listening socket and its file.
struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket of ours, as long as it is ours.
struct SocketFile {
    path: PathBuf,
    identity: Option<Identity>,
}

impl Socket {
    /// Listens on `path`, in the place of a socket that nobody serves any more.
    async fn bind(path: &Path) -> Result<Self, Lost> {
        if is_served(path).await {
            return Err(Lost::Taken { path: path.to_owned() });
        }
        let listen = || -> io::Result<UnixListener> {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            UnixListener::bind(path)
        };
        let listener = listen().map_err(|source| Lost::Listen { path: path.to_owned(), source })?;
        let file = SocketFile { path: path.to_owned(), identity: identity(path) };
        Ok(Self { listener, file })
    }
}

/// Whether somebody accepts connections on `path`, also after a moment: a plugin that is just being replaced stops.
async fn is_served(path: &Path) -> bool {
    for _ in 0..3 {
        if UnixStream::connect(path).await.is_err() {
            return false;
        }
        sleep(STOP_LIMIT / 4).await;
    }
    true
}

impl SocketFile {
    /// Whether the file is still there and ours.
    fn check(&self) -> Result<(), Lost> {
        let path = || self.path.clone();
        match identity(&self.path) {
            None => Err(Lost::Removed { path: path() }),
            found if found == self.identity => Ok(()),
            Some(_) => Err(Lost::Taken { path: path() }),
        }
    }

    fn remove(&self) {
        if self.check().is_ok() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
