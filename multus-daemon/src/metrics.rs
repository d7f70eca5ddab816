//! How many requests were served: the peer's counter, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::Error;

/// How many may ask at a time. Everybody who reaches the node may.
const SEATS: usize = 16;

/// How long one may take to ask and to be answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest head of a request, in octets.
const MAX_HEAD: usize = 16 << 10;

/// How long after a failure a connection is accepted again.
const PAUSE: Duration = Duration::from_millis(100);

/// Handler, status code, method.
type Key = (&'static str, u16, String);

/// The counters.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<Key, u64>>);

impl Metrics {
    /// Counts a request.
    pub fn count(&self, path: &str, method: &Method, status: StatusCode) {
        let known = ["/cni", "/delegate", "/healthz", "/readyz"].into_iter().find(|known| *known == path);
        let key = (known.unwrap_or("NotFound"), status.as_u16(), method.as_str().to_ascii_lowercase());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    }

    /// The counters as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = "# HELP multus_server_request_total Counter of requests to the daemon.\n\
                        # TYPE multus_server_request_total counter\n"
            .to_owned();
        for ((handler, code, method), count) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "multus_server_request_total{{code=\"{code}\",handler=\"{handler}\",method=\"{method}\"}} {count}"
            );
        }
        text
    }

    /// Answers requests for `/metrics` on `port` with the counters, for ever.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub async fn serve(self: Arc<Self>, port: u16) -> Result<(), Error> {
        let listener = listen(port).await?;
        let seats = Arc::new(Semaphore::new(SEATS));
        loop {
            let seat = Arc::clone(&seats).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let metrics = Arc::clone(&self);
                    tokio::spawn(async move {
                        // Who asks has gone, or takes too long: nobody else has to know.
                        let _ = tokio::time::timeout(PATIENCE, metrics.answer(stream)).await;
                        drop(seat);
                    });
                }
                Err(error) => {
                    tracing::warn!("metrics: cannot accept a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MAX_HEAD {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8_lossy(&head);
        let path = head.split(' ').nth(1).and_then(|target| target.split('?').next());
        let (status, text) = match path {
            Some("/metrics") => ("200 OK", self.text()),
            _ => ("404 Not Found", "there is /metrics here\n".to_owned()),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{text}",
            text.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    }
}

/// On all addresses of both families; where the kernel has IPv4 alone, on those.
async fn listen(port: u16) -> Result<TcpListener, Error> {
    let [both, v4] = [IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::UNSPECIFIED)]
        .map(|address| SocketAddr::from((address, port)));
    match TcpListener::bind(both).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(v4)
            .await
            .map_err(|e| Error::Listen { path: v4.to_string().into(), message: e.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_by_handler_code_and_method() {
        let metrics = Metrics::default();
        for path in ["/cni", "/cni", "/x"] {
            metrics.count(path, &Method::POST, StatusCode::OK);
        }
        let text = metrics.text();
        assert!(text.contains("total{code=\"200\",handler=\"/cni\",method=\"post\"} 2\n"), "{text}");
        assert!(text.contains("handler=\"NotFound\""), "{text}");
    }

    #[tokio::test]
    async fn served_to_both_families_also_beside_one_who_asks_nothing() {
        let metrics = Arc::new(Metrics::default());
        let port = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let serving = tokio::spawn(Arc::clone(&metrics).serve(port));
        let connect = async |address: &str| loop {
            match TcpStream::connect((address, port)).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let _idle = connect("127.0.0.1").await;
        let has_v6 = std::net::TcpListener::bind("[::1]:0").is_ok();
        for (address, path, expected) in [
            ("127.0.0.1", "/metrics", "200 OK"),
            ("::1", "/metrics?x=y", "200 OK"),
            ("127.0.0.1", "/", "404 Not Found"),
        ] {
            if address == "::1" && !has_v6 {
                continue;
            }
            let mut stream = connect(address).await;
            // In two parts: a request need not come at once.
            stream.write_all(format!("GET {path} HTTP/1.1\r\n").as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            stream.write_all(b"Host: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected}\r\n")), "{address}{path}: {answer}");
            assert_eq!(answer.contains("TYPE multus_server_request_total counter"), expected == "200 OK");
        }
        serving.abort();
    }
}
