//! Clients of the API server: by a kubeconfig, or by the environment of a pod.

use std::path::Path;
use std::time::Duration;

use http::Request;
use hyper_rustls::builderstates::WantsProtocols1;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt as _, RustlsTlsError};
use kube::config::{KubeConfigOptions, Kubeconfig, NamedCluster};
use kube::{Client, Config};
use tower::{BoxError, ServiceExt};

use crate::Error;

/// How a client is made that reaches the server without a proxy. (By function: what the other use needs is not linked.)
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    client: fn(&Config) -> kube::Result<Client>,
    at_a_time: usize,
}

/// For one call. All of its requests share one HTTP/2 connection, because to open another one takes as long as several
/// requests.
pub(crate) const CALL: Use = Use { client: for_call, at_a_time: SHARED };
/// As long as the process runs, with watches.
pub(crate) const PROCESS: Use = Use { client: for_process, at_a_time: SEPARATE };

/// How long a process keeps a connection that no request uses. A burst of pods takes one each.
const KEPT: Duration = Duration::from_secs(10);

/// How many requests run at a time over one connection.
const SHARED: usize = 16;
/// How many do where each needs a connection of its own.
const SEPARATE: usize = 2;

/// How often a connection that all requests share is tried, and how long that may take. One to a server that is gone would
/// cost every request of the call its time; so it is given up while there is time to ask over another one.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_LIMIT: Duration = Duration::from_secs(3);

/// A client by `kubeconfig`, else by the in-cluster environment, and how many requests are to run at a time; `None` when
/// there is neither.
///
/// # Errors
/// [`Error::Access`] when there is one that cannot be used.
pub(crate) async fn client(kubeconfig: Option<&Path>, used: Use) -> Result<Option<(Client, usize)>, Error> {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let (source_of_access, config) = match kubeconfig {
        Some(file) => (format!("kubeconfig {}", file.display()), from_file(file).await),
        None if set("KUBERNETES_SERVICE_HOST") && set("KUBERNETES_SERVICE_PORT") => {
            ("the in-cluster environment".to_owned(), Config::incluster_env().map_err(|e| e.to_string()))
        }
        None => return Ok(None),
    };
    let client = config.and_then(|mut config| {
        // Retried by whoever asks, who knows for how long.
        config.default_retry = false;
        match config.proxy_url {
            None => (used.client)(&config).map(|client| (client, used.at_a_time)),
            Some(_) => Client::try_from(config).map(|client| (client, SEPARATE)),
        }
        .map_err(|e| chain(&e))
    });
    client.map(Some).map_err(|message| Error::Access { source_of_access, message })
}

async fn from_file(file: &Path) -> Result<Config, String> {
    let kubeconfig = Kubeconfig::read_from(file).map_err(|e| chain(&e))?;
    let names_proxy = |named: &NamedCluster| named.cluster.as_ref().is_some_and(|c| c.proxy_url.is_some());
    let names_proxy = kubeconfig.clusters.iter().any(names_proxy);
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|e| chain(&e))?;
    if !names_proxy {
        // That of the environment, which is the container runtime's: for images, and NO_PROXY is not asked.
        config.proxy_url = None;
    }
    Ok(config)
}

fn for_call(config: &Config) -> kube::Result<Client> {
    let connector = tls(config)?.enable_all_versions().wrap_connector(tcp());
    let http = HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_LIMIT)
        .build(connector);
    around(http, config)
}

/// As the library's own, but that connections are given up by the clock, not when somebody happens to look for one.
fn for_process(config: &Config) -> kube::Result<Client> {
    let mut connector = TimeoutConnector::new(tls(config)?.enable_http1().wrap_connector(tcp()));
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let http = HttpClient::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(KEPT)
        .build(connector);
    around(http, config)
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp
}

fn tls(config: &Config) -> kube::Result<HttpsConnectorBuilder<WantsProtocols1>> {
    let mut tls =
        HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into().map_err(RustlsTlsError::InvalidServerName);
        tls = tls
            .with_server_name_resolver(FixedServerNameResolver::new(name.map_err(kube::Error::RustlsTls)?));
    }
    Ok(tls)
}

/// The client of Kubernetes around one of HTTP: with credentials, and relative to the server.
fn around<C: Connect + Clone + Send + Sync + 'static>(
    http: HttpClient<C, Body>,
    config: &Config,
) -> kube::Result<Client> {
    // A layer of credentials fails with any error.
    let http = ServiceExt::<Request<Body>>::map_err(http, BoxError::from);
    let builder =
        ClientBuilder::new(http, config.default_namespace.clone()).with_layer(&config.extra_headers_layer()?);
    let base = config.base_uri_layer();
    Ok(match config.auth_layer()? {
        Some(credentials) => builder.with_layer(&credentials).with_layer(&base).build(),
        None => builder.with_layer(&base).build(),
    })
}

/// An error with its causes: kube's own text often leaves them out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
