//! A small HTTP server: a few paths to read, for a probe, for Prometheus and for people.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::either::Either;

use super::Status;

/// How many clients are served at once; further ones wait.
const CLIENTS: usize = 16;
/// How long one client may take.
const LIMIT: Duration = Duration::from_secs(15);
/// How long to wait before an address that is taken is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// `127.0.0.1:9808`, `[::1]:9808`, `:9808` (all addresses), `unix:/run/x.sock`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("unix:") {
            Some(path) => path.starts_with('/').then(|| Self::Unix(path.into())),
            None if text.starts_with(':') => format!("[::]{text}").parse().ok().map(Self::Tcp),
            None => text.parse().ok().map(Self::Tcp),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            Address::Unix(path) => {
                // A socket that a killed process left: nobody else has this name.
                let _ = std::fs::remove_file(path);
                UnixListener::bind(path).map(Self::Unix)
            }
        }
    }

    async fn accept(&self) -> io::Result<Either<TcpStream, UnixStream>> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| Either::Left(stream)),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Either::Right(stream)),
        }
    }
}

/// Serves for ever. An address that is taken, as by the process that this one replaces, is tried again.
pub(crate) async fn serve(address: Address, status: Arc<Status>) {
    loop {
        let ended = match Listener::bind(&address).await {
            Ok(listener) => {
                tracing::info!(%address, "serving status");
                accept(&listener, &status).await
            }
            Err(error) => error,
        };
        tracing::error!(%address, error = %ended, wait = ?RETRY, "cannot serve status, will try again");
        sleep(RETRY).await;
    }
}

/// Serves clients until no more can be accepted; why not.
async fn accept(listener: &Listener, status: &Arc<Status>) -> io::Error {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(permit) = clients.clone().acquire_owned().await else {
            return io::Error::other("no client is let in");
        };
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let status = status.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let status = status.clone();
                async move { Ok::<_, Infallible>(answer(&status, &request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            match timeout(LIMIT, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a client of the status server broke off"),
                Err(_) => tracing::debug!("a client of the status server is too slow"),
            }
            drop(permit);
        });
    }
}

/// What a path gives.
pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) text: String,
}

async fn answer(status: &Status, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let readable = matches!(*request.method(), Method::GET | Method::HEAD);
    let page = if readable {
        status.page(request.uri().path(), request.uri().query().unwrap_or_default()).await
    } else {
        Page::text(StatusCode::METHOD_NOT_ALLOWED, "this server is only read\n")
    };
    let mut response = Response::new(Full::from(page.text));
    *response.status_mut() = page.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    if !readable {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

impl Page {
    pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", text: text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("127.0.0.1:9808", Some("http://127.0.0.1:9808")),
            ("[::1]:80", Some("http://[::1]:80")),
            (":9808", Some("http://[::]:9808")),
            ("unix:/run/status.sock", Some("unix:/run/status.sock")),
            ("unix:status.sock", None),
            ("9808", None),
            ("", None),
            ("localhost", None),
        ] {
            let parsed = Address::parse(text).map(|address| address.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
    }
}
