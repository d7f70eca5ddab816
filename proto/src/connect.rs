//! The client's side of a unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

/// How long the other end of a unix socket may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why no connection to a gRPC server on a unix socket came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The path cannot be written as a `unix:` URI: it is relative or not UTF-8.
    #[error("{}: not an absolute UTF-8 path of a socket", path.display())]
    Path {
        /// The path as given.
        path: PathBuf,
    },
    /// Nobody listens there, or not yet.
    #[error("connect to {}: is the server running and is this its socket?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What tonic says, with the operating system's error beneath.
        source: tonic::transport::Error,
    },
}

/// Connects to the gRPC server that listens on the unix socket `path` (absolute), for any of this crate's clients.
///
/// # Errors
/// The path is unusable, or nothing accepts the connection within five seconds.
pub async fn connect(path: &Path) -> Result<Channel, ConnectError> {
    let unusable = || ConnectError::Path { path: path.to_owned() };
    if !path.is_absolute() {
        return Err(unusable());
    }
    let text = path.to_str().ok_or_else(unusable)?;
    let endpoint = Endpoint::from_shared(format!("unix://{text}")).map_err(|_| unusable())?;
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .connect()
        .await
        .map_err(|source| ConnectError::Connect { path: path.to_owned(), source })
}
