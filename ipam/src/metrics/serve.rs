//! The figures over HTTP, for as long as the daemon runs.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::error::Error;

/// How long one may take to ask and to be answered. Who asks next waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest head of a request, in octets.
const MAX_HEAD: usize = 16 << 10;
/// How long after a failure a connection is accepted again.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes the address.
///
/// # Errors
/// [`Error::Listen`].
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|cause| Error::Listen { address, cause })
}

/// Answers requests for `/metrics` with what the ledgers in `directory` say then, for ever.
pub(crate) async fn serve(listener: &TcpListener, directory: &Path) -> std::convert::Infallible {
    loop {
        match listener.accept().await {
            // Who asks has gone, or takes too long: nobody else has to know.
            Ok((stream, _)) => drop(tokio::time::timeout(PATIENCE, answer(stream, directory)).await),
            Err(error) => {
                tracing::warn!("metrics: cannot accept a connection: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, directory: &Path) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MAX_HEAD {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).and_then(|target| target.split('?').next());
    let (status, text) = match path.map(|path| (path, super::read(directory))) {
        Some(("/metrics", Ok(ledgers))) => ("200 OK", super::text(&ledgers)),
        Some(("/metrics", Err(error))) => ("500 Internal Server Error", format!("{error}\n")),
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
