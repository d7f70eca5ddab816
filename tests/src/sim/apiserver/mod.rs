//! A small Kubernetes API server in memory, over TLS, on a loopback port.
//!
//! It is real on the wire: `kube` clients, client-go programs that speak JSON, and kubectl work with it as with any
//! cluster. It serves pods, nodes, namespaces, events (both faces), service accounts, secrets, config maps, leases,
//! roles and their bindings, definitions of custom resources, and whatever those define; NetworkAttachmentDefinition
//! is defined from the start.
//! Its semantics are those of kube-apiserver 1.20, against which the same tests run.
//!
//! What it does not have: server-side apply, protobuf bodies, field validation of built-in kinds beyond what tests
//! stumble over, schema keywords that need an expression language (`pattern`, CEL), garbage collection by owner. Work of controllers is
//! done on the spot where tests rely on it: namespaces get a service account, and are emptied when deleted.
//!
//! ```no_run
//! # use e2e::sim::apiserver::{ApiServer, Fault, Verb};
//! # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let server = ApiServer::start().await?;
//! let client = server.client().await?;
//! server.inject(Fault::on(Verb::Patch, "/api/v1/namespaces/default/pods").times(2).answer(429));
//! // ... let the program under test work with server.kubeconfig(None) ...
//! assert_eq!(server.count(Verb::Patch, "pods"), 3);
//! # drop(client);
//! # Ok(())
//! # }
//! ```

mod access;
mod api;
mod definitions;
mod delete;
mod discovery;
mod events;
mod failure;
mod fault;
mod http;
mod kinds;
mod list;
mod log;
mod meta;
mod names;
mod patch;
mod pods;
mod rules;
mod schema;
mod selector;
mod serve;
mod store;
mod tls;
mod url;
mod watch;

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch as signal;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use self::api::{Api, Scope};
pub use self::fault::Fault;
use self::kinds::Nature;
pub use self::log::Request;
use self::serve::{Shared, accept, lock};
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
        let mut api = Api::new(options.history, Timestamp::now());
        api.tokens.insert(&token, ADMIN);
        let shared = Arc::new(Shared {
            api: Mutex::new(api),
            faults: Mutex::default(),
            requests: Mutex::default(),
            revisions: signal::Sender::new(0),
            watch_drops: signal::Sender::new(0),
            clearings: signal::Sender::new(0),
            options,
        });
        let acceptor = TlsAcceptor::from(config);
        let running = tokio::spawn(accept(listener, acceptor.clone(), Arc::clone(&shared))).abort_handle();
        let server =
            Self { shared, address, identity, token, acceptor: TlsAcceptorHandle(acceptor), running };
        server.define(&definitions::network_attachment_definition())?;
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

    /// Signs a client's certificate, PEM, by its request (PKCS #10, PEM); its common name is the user.
    ///
    /// # Errors
    /// If the request cannot be understood.
    pub fn sign(&self, request: &str, life: Duration) -> io::Result<String> {
        self.identity.sign(request, life)
    }

    /// Bearer token of a user who may do anything.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Lets another token stand for a user, who may do what roles bound to that name allow.
    pub fn add_token(&self, token: &str, user: &str) {
        lock(&self.shared.api).tokens.insert(token, user);
    }

    /// Refuses a token from now on with 401.
    pub fn revoke_token(&self, token: &str) {
        lock(&self.shared.api).tokens.remove(token);
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
        lock(&self.shared.requests).iter().cloned().collect()
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
