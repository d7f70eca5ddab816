//! One call at a time for each sandbox: a runtime that gave up waiting for ADD sends DEL while that ADD still runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use host::lock::FileLock;

use crate::Error;

/// How long another call for the same sandbox is waited for: longer than runtimes wait for an answer.
const LIMIT: Duration = Duration::from_secs(300);

/// The turn of a call; dropping it lets the next call for the sandbox begin.
#[derive(Debug)]
pub struct Turn(Option<(FileLock, PathBuf)>);

impl Turn {
    /// Waits until no other call for `container` runs. Where there is no room for a lock in `directory` (`cniDir`),
    /// calls run as they come: a full disk must not keep DEL from its work.
    ///
    /// # Errors
    /// [`Error::Turn`] when one runs for too long.
    pub fn take(directory: &Path, container: &str) -> Result<Self, Error> {
        Self::take_within(LIMIT, directory, container)
    }

    /// The turn, if surely no other call for `container` runs.
    pub(crate) fn take_at_once(directory: &Path, container: &str) -> Option<Self> {
        Self::take_within(Duration::ZERO, directory, container).ok().filter(|turn| turn.0.is_some())
    }

    fn take_within(limit: Duration, directory: &Path, container: &str) -> Result<Self, Error> {
        if let Err(error) = host::durable::make_directory(directory) {
            tracing::warn!("calls for {container} do not wait for each other: {error}");
            return Ok(Turn(None));
        }
        // No container ID begins with a dot, so no record has this name.
        let path = directory.join(format!(".{container}.lock"));
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match FileLock::acquire(&path, left) {
                Ok(lock) if lock.is_of(&path) => return Ok(Turn(Some((lock, path)))),
                // The call before removed the file at its end: nobody else sees what is locked here.
                Ok(_) => {}
                Err(source @ host::lock::Error::Timeout { .. }) => {
                    return Err(Error::Turn { container: container.to_owned(), source });
                }
                Err(error) => {
                    tracing::warn!("calls for {container} do not wait for each other: {error}");
                    return Ok(Turn(None));
                }
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some((_lock, path)) = self.0.take() else { return };
        // While the lock is held, so that nobody removes a file that another one has locked.
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!("{}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn calls_for_a_sandbox_take_turns_and_leave_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let turn = Turn::take(directory.path(), "c").unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two calls at a time");
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        done.fetch_add(1, Ordering::SeqCst);
                        drop(turn);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 400);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn without_room_for_a_lock_work_goes_on() {
        assert!(Turn::take(Path::new("/proc/no-such"), "c").unwrap().0.is_none());
        assert!(
            Turn::take_at_once(Path::new("/proc/no-such"), "c").is_none(),
            "nobody knows whose turn it is"
        );
    }

    #[test]
    fn another_sandbox_does_not_wait_and_the_same_one_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let _turn = Turn::take(directory.path(), "c").unwrap();
        assert!(Turn::take_at_once(directory.path(), "d").is_some());
        assert!(Turn::take_at_once(directory.path(), "c").is_none());
        let error = Turn::take_within(Duration::from_millis(20), directory.path(), "c").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("container c") && text.contains("still locked"), "{text}");
    }
}
