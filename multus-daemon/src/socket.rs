//! The socket, and giving it from one daemon to the next without a moment in which nobody has it.
//!
//! A daemon makes its socket under another name and renames it over `multus.sock`: from then on calls reach it, and
//! wait. The daemon before it sees that the socket is no longer its own, takes no more calls, ends those it has, and
//! lets go of the lock beside the socket. Only who has the lock works: two daemons never work on one sandbox.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use host::{DirectoryWatch, FileLock};
use tokio::net::UnixListener;

use crate::Error;

/// The socket's name in its directory.
pub const NAME: &str = "multus.sock";

/// The lock's name in the same directory.
pub const LOCK: &str = "multus.lock";

/// How long the daemon before this one may take to end its calls.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(60);

/// How often a daemon that gave way looks whether the next one is still there.
const ABANDONED_EVERY: Duration = Duration::from_secs(2);

/// The socket of this daemon.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// Takes connections.
    pub listener: UnixListener,
    identity: (u64, u64),
}

impl Socket {
    /// Takes the socket in `directory` over from whoever has it.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn take_over(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(NAME);
        let draft = directory.join(format!(".{NAME}.{}", std::process::id()));
        let take = || -> std::io::Result<_> {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let _ = std::fs::remove_file(&draft);
            let listener = UnixListener::bind(&draft)?;
            std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
            let identity = identity(&draft)?;
            std::fs::rename(&draft, &path)?;
            Ok((listener, identity))
        };
        match take() {
            Ok((listener, identity)) => Ok(Socket { path, listener, identity }),
            Err(error) => Err(Error::Listen { path, message: error.to_string() }),
        }
    }

    /// Who has the socket now.
    #[must_use]
    pub fn holder(&self) -> Holder {
        match identity(&self.path) {
            Ok(identity) if identity == self.identity => Holder::This,
            Ok(_) => Holder::Other,
            Err(_) => Holder::Nobody,
        }
    }

    /// Waits until the socket is no longer this daemon's; who has it then.
    ///
    /// # Errors
    /// When the directory cannot be watched.
    pub async fn lost(&self) -> Result<Holder, Error> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let failed = |e: host::directory_watch::Error| Error::file("watching", directory, e);
        let mut watch = DirectoryWatch::new(directory).map_err(failed)?;
        loop {
            match self.holder() {
                Holder::This => watch.changed().await.map_err(failed)?,
                holder => return Ok(holder),
            }
        }
    }

    /// Removes the socket, if it is still this daemon's.
    pub fn remove(&self) {
        if self.holder() == Holder::This {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Who has the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// This daemon.
    This,
    /// Another one.
    Other,
    /// It was removed.
    Nobody,
}

/// Waits for the right to work, which the daemon before this one may still have.
///
/// # Errors
/// When it does not let go.
pub async fn lock(directory: &Path) -> Result<FileLock, Error> {
    let path = directory.join(LOCK);
    let locked = tokio::task::spawn_blocking({
        let path = path.clone();
        move || FileLock::acquire(&path, PREDECESSOR_LIMIT)
    });
    let failed = |e: String| Error::file("locking", &path, format!("{e}; is another multus-daemon running?"));
    locked.await.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
}

/// Waits until nobody has the right to work: who has taken over has gone.
pub async fn abandoned(directory: &Path) {
    loop {
        tokio::time::sleep(ABANDONED_EVERY).await;
        if FileLock::acquire(&directory.join(LOCK), Duration::ZERO).is_ok() {
            return;
        }
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_one_takes_over() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("somebody-else-s"), "").unwrap();
        let first = Socket::take_over(directory.path()).unwrap();
        let mode = std::fs::metadata(directory.path().join(NAME)).unwrap().permissions().mode();
        assert_eq!((first.holder(), mode & 0o777), (Holder::This, 0o600));
        let watching = tokio::spawn(async move { (first.lost().await.unwrap(), first) });
        let second = Socket::take_over(directory.path()).unwrap();
        let (holder, first) = watching.await.unwrap();
        assert_eq!((holder, second.holder()), (Holder::Other, Holder::This));
        first.remove();
        assert_eq!(second.holder(), Holder::This, "the first one has nothing to remove");
        second.remove();
        assert_eq!(second.holder(), Holder::Nobody);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
