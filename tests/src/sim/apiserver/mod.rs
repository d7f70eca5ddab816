//! A small Kubernetes API server in memory, over TLS, on a loopback port.
//!
//! It is real on the wire: `kube` clients, client-go programs that speak JSON, and kubectl work with it as with any
//! cluster. It serves pods, nodes, namespaces, events (both faces), service accounts, secrets, config maps, leases,
//! definitions of custom resources, and whatever those define; NetworkAttachmentDefinition is defined from the start.
//! Its semantics are those of kube-apiserver 1.20, against which the same tests run.
//!
//! What it does not have: server-side apply, protobuf bodies, access rules (any known user may do anything), field
//! validation of built-in kinds beyond what tests stumble over, garbage collection by owner. Work of controllers is
//! done on the spot where tests rely on it: namespaces get a service account, and are emptied when deleted.
//!
//! ```no_run
//! # use e2e::sim::apiserver::{ApiServer, Fault, Verb};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let server = ApiServer::start().await?;
//! let client = server.client().await?;
//! server.inject(Fault::on(Verb::Patch, "/api/v1/namespaces/default/pods").times(2).answer(429));
//! // ... let the program under test work with server.kubeconfig(None) ...
//! assert_eq!(server.count(Verb::Patch, "pods"), 3);
//! # drop(client);
//! # Ok(())
//! # }
//! ```

mod api;
mod discovery;
mod events;
mod failure;
mod fault;
mod http;
mod kinds;
mod list;
mod log;
mod meta;
mod patch;
mod pods;
mod rules;
mod schema;
mod selector;
mod store;
mod tls;
mod url;
mod watch;

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch as signal};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use self::api::{Api, Scope};
pub use self::fault::Fault;
use self::fault::Faults;
use self::kinds::Nature;
pub use self::log::Request;
pub use self::url::Verb;

/// How the server is to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub address: SocketAddr,
    /// How many writes the history remembers. A watch that falls behind further gets 410.
    pub history: usize,
    /// How often a watch that asked for bookmarks gets one; kube-apiserver does it every minute.
    pub bookmark_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            history: 10_000,
            bookmark_every: Duration::from_secs(60),
        }
    }
}

/// User that the server's own token and client certificate stand for.
const ADMIN: &str = "podrail:admin";

/// The server; stops when dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    identity: tls::Identity,
    token: String,
    acceptor: TlsAcceptorHandle,
    running: AbortHandle,
}

/// `TlsAcceptor` without a `Debug` of its own.
struct TlsAcceptorHandle(TlsAcceptor);

impl std::fmt::Debug for TlsAcceptorHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

/// What connections share.
#[derive(Debug)]
struct Shared {
    api: Mutex<Api>,
    faults: Mutex<Faults>,
    requests: Mutex<Vec<Request>>,
    /// User of each bearer token.
    tokens: Mutex<BTreeMap<String, String>>,
    /// Revision of the last write; wakes watches.
    revisions: signal::Sender<u64>,
    /// Counts how often all watches were ended.
    watch_drops: signal::Sender<u64>,
    /// Counts how often the faults were cleared.
    clearings: signal::Sender<u64>,
    options: Options,
}

/// A panic while a lock was held, if there ever is one, does not take the server down.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The user behind a request: `Ok(None)` without credentials, `Err` with wrong ones.
    fn user(&self, authorization: Option<&[u8]>, certified: Option<&str>) -> Result<Option<String>, ()> {
        let bearer = authorization.map(|value| {
            let value = std::str::from_utf8(value).unwrap_or_default();
            value
                .split_once(' ')
                .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
                .map(|(_, token)| token)
        });
        match (certified, bearer) {
            (Some(user), _) => Ok(Some(user.to_owned())),
            (None, None) => Ok(None),
            (None, Some(None)) => Err(()),
            (None, Some(Some(token))) => lock(&self.tokens).get(token).cloned().map(Some).ok_or(()),
        }
    }

    fn log(&self, request: Request) -> usize {
        let mut requests = lock(&self.requests);
        requests.push(request);
        requests.len() - 1
    }

    fn note_status(&self, number: usize, status: u16) {
        if let Some(request) = lock(&self.requests).get_mut(number) {
            request.status = Some(status);
        }
    }

    /// Runs a verb under the lock, and wakes watches if it wrote.
    fn transact<T>(&self, verb: impl FnOnce(&mut Api) -> T) -> T {
        let mut api = lock(&self.api);
        let done = verb(&mut api);
        let revision = api.store.revision();
        self.revisions.send_if_modified(|last| std::mem::replace(last, revision) != revision);
        done
    }

    async fn faults_cleared(&self) {
        let mut clearings = self.clearings.subscribe();
        // An error means that the server is gone, which ends the wait as well.
        let _ended = clearings.changed().await;
    }
}

impl ApiServer {
    /// Starts a server on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// If no port can be had, or no certificate be made.
    pub async fn start() -> io::Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts a server.
    ///
    /// # Errors
    /// If the address is taken, or no certificate can be made.
    pub async fn start_with(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.address).await?;
        let address = listener.local_addr()?;
        let (identity, config) = tls::make(ADMIN)?;
        let token = format!("{:016x}", RandomState::new().hash_one(address));
        let shared = Arc::new(Shared {
            api: Mutex::new(Api::new(options.history, Timestamp::now())),
            faults: Mutex::default(),
            requests: Mutex::default(),
            tokens: Mutex::new(BTreeMap::from([(token.clone(), ADMIN.to_owned())])),
            revisions: signal::Sender::new(0),
            watch_drops: signal::Sender::new(0),
            clearings: signal::Sender::new(0),
            options,
        });
        let acceptor = TlsAcceptor::from(config);
        let running = tokio::spawn(accept(listener, acceptor.clone(), Arc::clone(&shared))).abort_handle();
        let server =
            Self { shared, address, identity, token, acceptor: TlsAcceptorHandle(acceptor), running };
        server.define(&network_attachment_definition())?;
        Ok(server)
    }

    /// Address that the server listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Certificate authority of the server's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.identity.ca_pem
    }

    /// Client certificate and its key, PEM, of a user who may do anything.
    #[must_use]
    pub fn client_pem(&self) -> (&str, &str) {
        (&self.identity.client_pem, &self.identity.client_key_pem)
    }

    /// Bearer token of a user who may do anything.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Lets another token stand for a user.
    pub fn add_token(&self, token: &str, user: &str) {
        lock(&self.shared.tokens).insert(token.to_owned(), user.to_owned());
    }

    /// Refuses a token from now on with 401.
    pub fn revoke_token(&self, token: &str) {
        lock(&self.shared.tokens).remove(token);
    }

    /// A kubeconfig file (YAML) with the server's own token.
    ///
    /// `server` replaces the URL, for clients that reach the server in another way; the certificate is good for
    /// 127.0.0.1, ::1, 10.0.2.2, 10.96.0.1, `localhost`, `kubernetes` and `kubernetes.default.svc`.
    #[must_use]
    pub fn kubeconfig(&self, server: Option<&str>) -> String {
        let url = server.map_or_else(|| format!("https://{}", self.address), str::to_owned);
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: podrail-sim\n\
             \x20 cluster:\n\
             \x20   server: {url}\n\
             \x20   certificate-authority-data: {ca}\n\
             users:\n\
             - name: admin\n\
             \x20 user:\n\
             \x20   token: \"{token}\"\n\
             contexts:\n\
             - name: podrail-sim\n\
             \x20 context:\n\
             \x20   cluster: podrail-sim\n\
             \x20   user: admin\n\
             current-context: podrail-sim\n",
            ca = STANDARD.encode(&self.identity.ca_pem),
            token = self.token,
        )
    }

    /// A client of this server that does not retry: a test sees every refusal.
    ///
    /// # Errors
    /// If `kube` cannot make one.
    pub async fn client(&self) -> Result<kube::Client, Box<dyn std::error::Error + Send + Sync>> {
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&self.kubeconfig(None))?;
        let options = kube::config::KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        config.default_retry = false;
        Ok(config.try_into()?)
    }

    /// Serves the kind that a CustomResourceDefinition (apiextensions v1) describes, without a request.
    ///
    /// # Errors
    /// If the definition is refused; the text is what a client would have read.
    pub fn define(&self, definition: &serde_json::Value) -> io::Result<()> {
        let created = self.shared.transact(|api| {
            let kind = api.kinds.of(Nature::Definition)?;
            let scope = Scope { kind, version: "v1".to_owned(), namespace: String::new() };
            Some(api.create(&scope, definition.clone(), Timestamp::now()))
        });
        match created {
            Some(Err(failure)) => Err(io::Error::other(failure.message)),
            _ => Ok(()),
        }
    }

    /// Orders trouble.
    pub fn inject(&self, fault: Fault) {
        lock(&self.shared.faults).push(fault);
    }

    /// Ends all trouble, requests that hang included.
    pub fn clear_faults(&self) {
        lock(&self.shared.faults).clear();
        self.shared.clearings.send_modify(|count| *count += 1);
    }

    /// How many of the ordered faults have not ended yet.
    #[must_use]
    pub fn pending_faults(&self) -> usize {
        lock(&self.shared.faults).len()
    }

    /// Forgets the history: watches that resume from an older resourceVersion get 410 Gone.
    pub fn compact(&self) {
        lock(&self.shared.api).store.compact();
    }

    /// Ends every watch, as a restart of the API server or a load balancer does. Clients resume.
    pub fn drop_watches(&self) {
        self.shared.watch_drops.send_modify(|count| *count += 1);
    }

    /// Every request so far, in order of arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// How many requests with that verb concerned that resource (plural name), subresources included.
    #[must_use]
    pub fn count(&self, verb: Verb, resource: &str) -> usize {
        lock(&self.shared.requests)
            .iter()
            .filter(|request| request.verb == verb && request.resource == resource)
            .count()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        lock(&self.shared.requests).clear();
    }

    /// Closes the port and all connections; the objects stay. `resume` undoes it.
    pub fn pause(&self) {
        self.running.abort();
    }

    /// Listens again on the same address.
    ///
    /// # Errors
    /// If somebody else took the port meanwhile.
    pub async fn resume(&mut self) -> io::Result<()> {
        self.pause();
        while !self.running.is_finished() {
            tokio::task::yield_now().await;
        }
        let listener = TcpListener::bind(self.address).await?;
        let accepting = accept(listener, self.acceptor.0.clone(), Arc::clone(&self.shared));
        self.running = tokio::spawn(accepting).abort_handle();
        Ok(())
    }

    /// Stops the server, as dropping it does.
    pub fn shutdown(self) {}
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// Connections live in a set that this task owns, so that they end with it.
async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, acceptor.clone(), Arc::clone(&shared)));
                }
                Err(error) => {
                    tracing::warn!(%error, "API server cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let stream = match acceptor.accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "TLS handshake with a client failed");
            return;
        }
    };
    // The verifier let through only certificates of our own authority, which signed one client.
    let certified: Option<Arc<str>> = stream.get_ref().1.peer_certificates().map(|_| ADMIN.into());
    let broken = Arc::new(Notify::new());
    let service = service_fn(|request| {
        let (shared, certified, broken) = (Arc::clone(&shared), certified.clone(), Arc::clone(&broken));
        async move {
            http::answer(shared, certified, request).await.map_err(|http::Broken| {
                broken.notify_one();
                io::Error::other("connection broken on purpose")
            })
        }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // Without this branch an HTTP/2 connection would outlive the stream that is to break it.
        () = broken.notified() => {}
        served = serving => if let Err(error) = served {
            tracing::debug!(%error, "connection to a client ended");
        },
    }
}

/// The definition of the Network Plumbing Working Group's NetworkAttachmentDefinition.
fn network_attachment_definition() -> serde_json::Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
        "spec": {
            "group": "k8s.cni.cncf.io",
            "scope": "Namespaced",
            "names": {
                "plural": "network-attachment-definitions",
                "singular": "network-attachment-definition",
                "kind": "NetworkAttachmentDefinition",
                "shortNames": ["net-attach-def"],
            },
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {
                        "spec": {"type": "object", "properties": {"config": {"type": "string"}}},
                    },
                }},
            }],
        },
    })
}
