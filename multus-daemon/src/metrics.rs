//! How many requests were served: the peer's counter, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::Error;

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

    /// Answers every request on `port` with the counters, for ever.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub async fn serve(self: Arc<Self>, port: u16) -> Result<(), Error> {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let failed =
            |e: std::io::Error| Error::Listen { path: address.to_string().into(), message: e.to_string() };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            let text = self.text();
            tokio::spawn(async move {
                // Whatever is asked for, there is but one answer.
                let _ = stream.read(&mut [0; 4096]).await;
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close";
                let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
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
}
