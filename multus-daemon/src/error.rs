//! What can go wrong in the daemon besides the calls it serves.

use std::path::PathBuf;

/// An error: what was attempted, on what, why it failed, and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The daemon's configuration file cannot be used.
    #[error("configuration {}: {message}", path.display())]
    Conf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file or directory could not be read, written or watched.
    #[error("{operation} {}: {message}", path.display())]
    File {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed, and what to do.
        message: String,
    },
    /// The socket could not be had.
    #[error("cannot listen on {}: {message}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// There is no network configuration to put multus in front of.
    #[error(
        "no primary network in {}: {message}; install the cluster's default network, or name its file by \"multusMasterCNI\"",
        directory.display()
    )]
    NoPrimary {
        /// Where it was looked for.
        directory: PathBuf,
        /// What is there instead.
        message: String,
    },
    /// The primary's configuration cannot be used.
    #[error("the primary network's configuration {}: {message}", path.display())]
    Primary {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The default network is not there yet.
    #[error(
        "have you checked that your default network is ready? still waiting for readinessindicatorfile @ {}",
        path.display()
    )]
    NotReady {
        /// The file that is waited for.
        path: PathBuf,
    },
    /// The node's own certificate cannot be had.
    #[error("the node's certificate: {message}")]
    Certificate {
        /// Why, and what to do.
        message: String,
    },
    /// Nobody could be asked for the node's own certificate.
    #[error("asking for the node's certificate: {message}")]
    NotAsked {
        /// Why, and what to do.
        message: String,
    },
    /// A call of ours to the API server, kubelet or a delegate failed.
    #[error("{0}")]
    Multus(#[from] multus::Error),
    /// The daemon was started in a way that it cannot run.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// The peer's exit codes: 1 for what is configured, 2 for the primary network, 3 for the socket.
    #[must_use]
    pub fn exit_code(&self) -> std::process::ExitCode {
        let code: u8 = match self {
            Error::NoPrimary { .. } | Error::Primary { .. } => 2,
            Error::Listen { .. } => 3,
            _ => 1,
        };
        code.into()
    }

    /// An operation on a file that failed.
    pub(crate) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
        cause: impl std::fmt::Display,
    ) -> Self {
        Error::File { operation, path: path.into(), message: cause.to_string() }
    }
}

impl From<host::durable::Error> for Error {
    fn from(error: host::durable::Error) -> Self {
        Error::file(error.operation, error.path, error.cause)
    }
}
