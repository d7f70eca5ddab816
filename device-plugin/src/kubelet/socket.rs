//! A listening socket and its file.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

/// How often, and how long apart, a socket that somebody serves is tried: a plugin that is being replaced stops.
const TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// What tells one socket file from another at the same path: inode numbers alone are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    made: (i64, i64),
}

/// The identity of the file at `path`; `None` if there is none.
pub(super) fn identity(path: &Path) -> Option<Identity> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some(Identity { device: file.dev(), inode: file.ino(), made: (file.mtime(), file.mtime_nsec()) })
}

/// Why a socket is not ours, or not any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot listen on {}: {source}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("another process serves {}; is a second device plugin running?", path.display())]
    Taken { path: PathBuf },
    #[error("socket {} was removed", path.display())]
    Removed { path: PathBuf },
}

/// The file of a socket of ours, as long as it is ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: Option<Identity>,
}

/// Listens on `path`, in the place of a socket that nobody serves any more.
pub(super) async fn bind(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    if is_served(path).await {
        return Err(Error::Taken { path: path.to_owned() });
    }
    // Whoever sees the socket must be able to connect; between bind and listen that is not so. kubelet does not look
    // at names that begin with a dot.
    let hidden = hidden(path);
    let listen = || -> io::Result<UnixListener> {
        match std::fs::remove_file(&hidden) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&hidden)?;
        std::fs::rename(&hidden, path)?;
        Ok(listener)
    };
    let listener = listen().map_err(|source| Error::Listen { path: path.to_owned(), source })?;
    Ok((listener, SocketFile { path: path.to_owned(), identity: identity(path) }))
}

fn hidden(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

async fn is_served(path: &Path) -> bool {
    for _ in 0..TRIES {
        if UnixStream::connect(path).await.is_err() {
            return false;
        }
        sleep(BETWEEN_TRIES).await;
    }
    true
}

impl SocketFile {
    /// Whether the file is still there and ours.
    pub(super) fn check(&self) -> Result<(), Error> {
        let path = self.path.clone();
        match identity(&self.path) {
            None => Err(Error::Removed { path }),
            found if found == self.identity => Ok(()),
            Some(_) => Err(Error::Taken { path }),
        }
    }

    /// Removes the file, unless somebody else has put another one there.
    pub(super) fn remove(&self) {
        if self.check().is_ok() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes the sockets in `directory` that `is_stale` by name and that nobody serves. kubelet would dial them for ever.
pub(crate) fn sweep(directory: &Path, is_stale: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let refused = || {
            let connected = std::os::unix::net::UnixStream::connect(&path);
            connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        };
        if entry.file_name().to_str().is_some_and(&is_stale) && refused() {
            tracing::info!(socket = %path.display(), "removing a socket that nobody serves");
            let _ = std::fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_stale_sockets_are_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (listener, file) = bind(&path).await.unwrap();
        file.check().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(matches!(bind(&path).await, Err(Error::Taken { .. })));
        drop(listener);
        let (_listener, _) = bind(&path).await.unwrap();
        assert!(matches!(file.check(), Err(Error::Taken { .. })));
        file.remove();
        assert!(path.exists(), "it is somebody else's now");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(file.check(), Err(Error::Removed { .. })));
    }

    #[test]
    fn only_sockets_that_nobody_serves_are_swept() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["a_old.sock", "b_old.sock"] {
            drop(std::os::unix::net::UnixListener::bind(path(name)).unwrap());
        }
        let _served = std::os::unix::net::UnixListener::bind(path("a_served.sock")).unwrap();
        std::fs::write(path("a_file"), "").unwrap();
        sweep(directory.path(), |name| name.starts_with("a_"));
        assert!(!path("a_old.sock").exists());
        assert!(path("b_old.sock").exists() && path("a_served.sock").exists());
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_listened_on_is_named() {
        let error = bind(Path::new("/nonexistent/a.sock")).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot listen on /nonexistent/a.sock"), "{error}");
    }
}
