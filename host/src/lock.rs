//! Advisory file locks with a deadline.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// An exclusive `flock(2)` on a file, released when the value is dropped or the process ends.
///
/// The file is close-on-exec, so programs that are started meanwhile do not inherit the lock.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

/// Why a lock was not obtained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process held the lock for the whole time.
    #[error("{} is still locked by another process after {} s", path.display(), waited.as_secs())]
    Timeout {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// The file could not be made, opened or locked.
    #[error("locking {}: {cause}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
}

impl FileLock {
    /// Takes the lock at `path`, waiting at most `limit` for another holder. The file is made when
    /// it is missing (mode 0600) and not removed: removing a lock file lets two processes hold
    /// "the" lock on two different files, unless all of them ask [`is_of`](Self::is_of).
    ///
    /// # Errors
    /// [`Error::Timeout`] when the limit passed, [`Error::Io`] when the file is unusable.
    pub fn acquire(path: &Path, limit: Duration) -> Result<Self, Error> {
        let failed = |cause| Error::Io { path: path.to_owned(), cause };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => wait(file, limit, path),
            Err(TryLockError::Error(cause)) => Err(failed(cause)),
        }
    }

    /// Whether the locked file is (still) the one at `path`. A holder that removes the file before it releases the lock
    /// leaves those who waited with a lock on a file that nobody finds any more.
    #[must_use]
    pub fn is_of(&self, path: &Path) -> bool {
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let own = self.file.metadata().map(identity);
        own.is_ok_and(|own| std::fs::metadata(path).map(identity).is_ok_and(|at_path| at_path == own))
    }

    /// Gives the lock back now. Dropping does the same.
    pub fn release(self) {
        drop(self.file);
    }
}

// flock has no deadline of its own, so a thread does the waiting. When the deadline passes first, the
// thread stays behind and, should it ever get the lock, finds nobody to hand it to and drops it.
fn wait(file: File, limit: Duration, path: &Path) -> Result<FileLock, Error> {
    let failed = |cause| Error::Io { path: path.to_owned(), cause };
    let (sender, receiver) = mpsc::sync_channel(0);
    std::thread::Builder::new()
        .name("flock".to_owned())
        .spawn(move || {
            let locked = file.lock().map(|()| FileLock { file });
            let _ = sender.send(locked);
        })
        .map_err(failed)?;
    match receiver.recv_timeout(limit) {
        Ok(locked) => locked.map_err(failed),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(Error::Timeout { path: path.to_owned(), waited: limit })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn second_taker_waits_for_release_or_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let first = FileLock::acquire(&path, Duration::ZERO).unwrap();
        let refused = FileLock::acquire(&path, Duration::from_millis(50));
        assert!(matches!(refused, Err(Error::Timeout { .. })), "{refused:?}");

        let (ready, started) = mpsc::channel();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || {
                ready.send(()).unwrap();
                FileLock::acquire(&path, Duration::from_secs(20))
            }
        });
        started.recv().unwrap();
        let released = Instant::now();
        first.release();
        assert!(waiter.join().unwrap().is_ok());
        assert!(released.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_removed_file_is_not_the_one_that_comes_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let first = FileLock::acquire(&path, Duration::ZERO).unwrap();
        assert!(first.is_of(&path));
        std::fs::remove_file(&path).unwrap();
        assert!(!first.is_of(&path));
        let second = FileLock::acquire(&path, Duration::ZERO).unwrap();
        assert!(second.is_of(&path) && !first.is_of(&path));
    }

    #[test]
    fn unusable_path_is_named() {
        let error = FileLock::acquire(Path::new("/proc/no/such.lock"), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("/proc/no/such.lock"), "{error}");
    }
}
