//! Work below another root directory (`chroot(2)`).

use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

/// Runs `work` on a thread of its own whose root and working directory are `root`; the threads besides it keep theirs.
/// What `work` starts has that root too.
///
/// # Errors
/// When the process may not do that (it needs `CAP_SYS_ADMIN` and `CAP_SYS_CHROOT`), or `root` is no directory.
pub fn within<T: Send>(root: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let enter = || -> io::Result<()> {
        // Threads share their root until one asks for its own.
        unshare(CloneFlags::CLONE_FS)?;
        nix::unistd::chroot(root)?;
        nix::unistd::chdir("/")?;
        Ok(())
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| enter().map(|()| work()));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_alone_is_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("here"), "x").unwrap();
        let seen = within(root.path(), || std::fs::read_to_string("/here")).unwrap();
        assert_eq!(seen.unwrap(), "x");
        assert!(!Path::new("/here").exists());
        assert!(within(Path::new("/nonexistent"), || ()).is_err());
    }
}
