//! Connections, and what they share.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch as signal};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::api::Api;
use super::fault::Faults;
use super::log::Log;
use super::{Options, http, tls};

/// What connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) api: Mutex<Api>,
    pub(super) faults: Mutex<Faults>,
    pub(super) requests: Mutex<Log>,
    /// Revision of the last write; wakes watches.
    pub(super) revisions: signal::Sender<u64>,
    /// Counts how often all watches were ended.
    pub(super) watch_drops: signal::Sender<u64>,
    /// Counts how often the faults were cleared.
    pub(super) clearings: signal::Sender<u64>,
    pub(super) options: Options,
}

/// Who sends a request.
pub(super) enum Caller {
    /// A user whose credentials are good.
    Known(String),
    /// Somebody without credentials.
    Anonymous,
    /// Somebody with wrong credentials.
    Unknown,
}

/// A panic while a lock was held, if there ever is one, does not take the server down.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Who sends a request with that `Authorization` header, over a connection with that client certificate.
    pub(super) fn caller(&self, authorization: Option<&[u8]>, certified: Option<&str>) -> Caller {
        if let Some(user) = certified {
            return Caller::Known(user.to_owned());
        }
        let Some(authorization) = authorization else { return Caller::Anonymous };
        std::str::from_utf8(authorization)
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .and_then(|(_, token)| lock(&self.api).user_of(token, Timestamp::now()).map(str::to_owned))
            .map_or(Caller::Unknown, Caller::Known)
    }

    /// Runs a verb under the lock, and wakes watches if it wrote.
    pub(super) fn transact<T>(&self, verb: impl FnOnce(&mut Api) -> T) -> T {
        let mut api = lock(&self.api);
        let done = verb(&mut api);
        let revision = api.store.revision();
        self.revisions.send_if_modified(|last| std::mem::replace(last, revision) != revision);
        done
    }

    /// Waits until a test ends its faults.
    pub(super) async fn faults_cleared(&self) {
        let mut clearings = self.clearings.subscribe();
        // An error means that the server is gone, which ends the wait as well.
        let _ended = clearings.changed().await;
    }
}

/// Connections live in a set that this task owns, so that they end with it.
pub(super) async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
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

/// Serves one client until it leaves, or until a fault breaks the connection.
async fn connection(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    // As Go's servers do: an answer does not wait until the client has acknowledged the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "answers may be late");
    }
    let stream = match acceptor.accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "TLS handshake with a client failed");
            return;
        }
    };
    // The verifier let through only certificates of our own authority.
    let certificates = stream.get_ref().1.peer_certificates();
    let certified: Option<Arc<str>> =
        certificates.and_then(<[_]>::first).and_then(|first| tls::user_of(first)).map(Into::into);
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
