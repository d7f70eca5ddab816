//! The HTTP server on the Unix socket.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::calls::Calls;
use crate::delegate;
use crate::metrics::Metrics;
use crate::socket::{Holder, Socket};
use crate::wire::{self, Call};

/// The largest request, in octets.
const MAX_REQUEST: usize = 16 << 20;

/// How long a client may take to send what it asks.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// How long calls may take to end when the daemon ends, less than kubelet's usual 30 s for a pod.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// Serves the socket.
#[derive(Debug)]
pub struct Server {
    calls: Arc<Calls>,
    metrics: Arc<Metrics>,
    /// Calls that are worked on.
    working: TaskTracker,
    draining: AtomicBool,
}

impl Server {
    /// A server of `calls`.
    #[must_use]
    pub fn new(calls: Arc<Calls>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Server { calls, metrics, working: TaskTracker::new(), draining: AtomicBool::new(false) })
    }

    /// Serves until the socket has gone to another daemon, or `stop` is done. A socket that was removed is made again.
    ///
    /// # Errors
    /// When there can be no socket (any more).
    pub async fn serve(
        self: &Arc<Self>,
        mut socket: Socket,
        stop: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        tokio::pin!(stop);
        loop {
            match self.accept(&socket, &mut stop).await? {
                Ended::Stopped => {
                    self.drain().await;
                    socket.remove();
                    return Ok(());
                }
                Ended::Lost(Holder::Other) => {
                    tracing::info!("another multus-daemon has taken the socket over");
                    // Who waits to be accepted here is hung up on, and asks the other one.
                    drop(socket);
                    self.drain().await;
                    return Ok(());
                }
                Ended::Lost(_) => {
                    tracing::warn!("the socket was removed; it is made again");
                    let directory = self.calls.conf.socket_dir.clone();
                    socket = Socket::take_over(&directory)?;
                }
            }
        }
    }

    async fn accept(
        self: &Arc<Self>,
        socket: &Socket,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<Ended, Error> {
        let lost = socket.lost();
        tokio::pin!(lost);
        loop {
            tokio::select! {
                accepted = socket.listener.accept() => match accepted {
                    Ok((stream, _)) => drop(tokio::spawn(Arc::clone(self).connection(stream))),
                    Err(error) => {
                        // Too many open files, most likely: those of the calls that end now are free again soon.
                        tracing::error!("cannot accept a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                holder = &mut lost => return holder.map(Ended::Lost),
                () = &mut *stop => {
                    self.draining.store(true, Ordering::SeqCst);
                    if self.working.is_empty() {
                        return Ok(Ended::Stopped);
                    }
                    // Who calls now is sent to the next daemon.
                    let (refusing, working) = (self.refuse(socket), self.ended());
                    tokio::select! { () = refusing => {}, () = working => {} }
                    return Ok(Ended::Stopped);
                }
            }
        }
    }

    async fn refuse(self: &Arc<Self>, socket: &Socket) {
        while let Ok((stream, _)) = socket.listener.accept().await {
            tokio::spawn(Arc::clone(self).connection(stream));
        }
        pending::<()>().await;
    }

    /// Waits for the calls that are worked on, within limits.
    async fn ended(&self) {
        self.working.close();
        if tokio::time::timeout(DRAIN_LIMIT, self.working.wait()).await.is_err() {
            tracing::warn!("{} calls do not end; the next daemon takes them up", self.working.len());
        }
    }

    async fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.ended().await;
    }

    async fn connection(self: Arc<Self>, stream: UnixStream) {
        let service = service_fn(|request| self.answer(request));
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = served.await {
            tracing::debug!("a connection ended early: {error}");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (path, method) = (request.uri().path().to_owned(), request.method().clone());
        let answer = self.route(&path, &method, request).await;
        self.metrics.count(&path, &method, answer.status());
        Ok(answer)
    }

    async fn route(&self, path: &str, method: &Method, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let is_probe = matches!(*method, Method::GET | Method::POST);
        match path {
            "/healthz" if is_probe => empty(StatusCode::OK),
            "/readyz" if is_probe && self.is_draining() => empty(StatusCode::INTERNAL_SERVER_ERROR),
            "/readyz" if is_probe => empty(StatusCode::OK),
            "/cni" | "/delegate" if method == Method::POST => {
                if self.is_draining() {
                    return text(StatusCode::SERVICE_UNAVAILABLE, "multus-daemon is about to end".into());
                }
                let work = self.work(path == "/delegate", request);
                self.working.track_future(work).await
            }
            "/healthz" | "/readyz" | "/cni" | "/delegate" => empty(StatusCode::METHOD_NOT_ALLOWED),
            _ => empty(StatusCode::NOT_FOUND),
        }
    }

    async fn work(&self, is_delegate: bool, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let body = match Limited::new(request.into_body(), MAX_REQUEST).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return text(StatusCode::BAD_REQUEST, error.to_string().into()),
        };
        let done = match Call::parse(&body) {
            Ok(call) if is_delegate => delegate::answer(&self.calls, &call).await,
            Ok(call) => self.calls.cni(&call).await,
            Err(error) => Err(error),
        };
        match done.and_then(|result| result.as_ref().map(wire::success).transpose()) {
            Ok(Some(body)) => json(StatusCode::OK, body),
            Ok(None) => empty(StatusCode::OK),
            Err(error) => json(StatusCode::BAD_REQUEST, error.to_json(cni::Version::LATEST)),
        }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }
}

/// Why no more connections are taken.
enum Ended {
    Stopped,
    Lost(Holder),
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    text(status, Bytes::new())
}

fn json(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = text(status, body.into());
    let value = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, value);
    response
}

fn text(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}
