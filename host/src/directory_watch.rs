//! Being told when something changes in a directory (`inotify(7)`).

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How much is read of the queue at a time; an event takes 16 octets and a file name.
const EVENTS_SIZE: usize = 4096;

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("watching {}: {source}", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// A watch on one directory.
///
/// It tells that something changed, not what: whoever looks at the directory after starting the watch and
/// again after each change misses nothing, however events were merged or lost.
#[derive(Debug)]
pub struct DirectoryWatch {
    path: PathBuf,
    inotify: AsyncFd<OwnedFd>,
}

impl DirectoryWatch {
    /// Watches `path`. Requires a tokio runtime with I/O.
    ///
    /// # Errors
    /// The directory does not exist, or the system's limit of watches is reached.
    pub fn new(path: &Path) -> Result<Self, Error> {
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let open = || -> io::Result<_> {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            inotify.add_watch(path, changes)?;
            #[expect(
                deprecated,
                reason = "the new constructor is unsafe for types that may change their descriptor; OwnedFd does not"
            )]
            AsyncFd::with_interest(OwnedFd::from(inotify), Interest::READABLE)
        };
        let path = path.to_owned();
        match open() {
            Ok(inotify) => Ok(Self { path, inotify }),
            Err(source) => Err(Error { path, source }),
        }
    }

    /// Waits until the directory has changed since the watch began or was last asked. A directory that
    /// was itself removed or moved away counts as changed; a new watch is needed then.
    ///
    /// # Errors
    /// The watch broke.
    pub async fn changed(&mut self) -> Result<(), Error> {
        let waited = self.inotify.async_io(Interest::READABLE, |inotify| {
            // What the events say is not asked: only that they are gone from the queue.
            let mut events = [0; EVENTS_SIZE];
            while nix::unistd::read(inotify, &mut events)? == EVENTS_SIZE {}
            Ok(())
        });
        waited.await.map_err(|source| Error { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn tells_of_every_kind_of_change_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        let mut watch = DirectoryWatch::new(directory.path()).unwrap();
        fs::write(&file, "1").unwrap();
        timeout(SOON, watch.changed()).await.unwrap().unwrap();
        assert!(timeout(Duration::from_millis(50), watch.changed()).await.is_err(), "nothing new");
        fs::rename(&file, directory.path().join("b")).unwrap();
        timeout(SOON, watch.changed()).await.unwrap().unwrap();
        std::os::unix::fs::symlink("x", &file).unwrap();
        timeout(SOON, watch.changed()).await.unwrap().unwrap();
        fs::remove_dir_all(directory.path()).unwrap();
        timeout(SOON, watch.changed()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_missing_directory_is_named() {
        let error = DirectoryWatch::new(Path::new("/nonexistent/dir")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/dir"), "{error}");
    }
}
