//! Advisory file locks with a deadline.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
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
    /// it is missing (mode 0600) and never removed: removing a lock file lets two processes hold
    /// "the" lock on two different files.
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
    fn unusable_path_is_named() {
        let error = FileLock::acquire(Path::new("/proc/no/such.lock"), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("/proc/no/such.lock"), "{error}");
    }
}
