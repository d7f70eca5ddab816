//! Network namespaces: opening, identifying and entering them.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};

/// What identifies a network namespace for as long as it lives: device and inode number of its nsfs
/// file, as `stat(2)` gives them. A path can be reused by a later namespace, this pair cannot while
/// the namespace exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    /// Device number of the kernel's nsfs.
    pub dev: u64,
    /// Inode number of the namespace.
    pub ino: u64,
}

/// All network namespaces that a process is in or that are named in `/run/netns`, each once.
///
/// # Errors
/// [`Error::Kernel`] when `/proc` cannot be listed. What vanishes meanwhile is left out.
pub fn discover() -> Result<Vec<Netns>, Error> {
    let listed = |directory: &str| {
        let entries = fs::read_dir(directory).map(|entries| entries.flatten().map(|entry| entry.path()));
        entries.map_err(|cause| Error::Kernel { operation: "listing", path: directory.into(), cause })
    };
    let processes = listed("/proc")?.filter(|path| {
        let name = path.file_name().unwrap_or_default();
        name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
    });
    let candidates = processes.map(|process| process.join("ns/net"));
    let named = listed("/run/netns").into_iter().flatten();
    let mut found: Vec<Netns> = Vec::new();
    for path in candidates.chain(named) {
        let id = fs::metadata(&path).map(|meta| NetnsId { dev: meta.dev(), ino: meta.ino() });
        if id.is_ok_and(|id| found.iter().all(|netns| netns.id != id)) {
            found.extend(Netns::open(path));
        }
    }
    Ok(found)
}

/// Why a path did not open as a network namespace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing exists at the path: the namespace was removed.
    #[error("network namespace {} does not exist (any more)", path.display())]
    Gone {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// Something exists at the path, but it is not (or no longer) a network namespace; typically
    /// the empty file that is left when its bind mount was lost.
    #[error("{} exists but is not a network namespace; its bind mount was probably lost", path.display())]
    NotNamespace {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The kernel refused the operation.
    #[error("{operation} network namespace {}: {cause}", path.display())]
    Kernel {
        /// What was attempted.
        operation: &'static str,
        /// The namespace it was attempted on.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
}

impl Error {
    /// Whether the namespace no longer exists, in either of the two ways in which a path shows it.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. } | Self::NotNamespace { .. })
    }
}

/// An open network namespace. It stays alive while this value exists, whatever happens to its path.
pub struct Netns {
    file: File,
    path: PathBuf,
    id: NetnsId,
}

impl Netns {
    /// Opens the namespace at `path`, e.g. `/var/run/netns/x` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::NotNamespace`], or [`Error::Kernel`] for any other refusal.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(cause) => {
                // ENOTDIR, ESRCH: a parent vanished, or the process behind /proc/PID did.
                return Err(match cause.raw_os_error() {
                    Some(errno) if is_absence(errno) => Error::Gone { path },
                    _ => Error::Kernel { operation: "opening", path, cause },
                });
            }
        };
        match identify(&file) {
            Ok(Some(id)) => Ok(Self { file, path, id }),
            Ok(None) => Err(Error::NotNamespace { path }),
            Err(cause) => Err(Error::Kernel { operation: "identifying", path, cause }),
        }
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Kernel`] when `/proc` is not usable.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `f` inside the namespace, on a thread of its own that ends with it, so that no failure
    /// can leave another thread in a foreign namespace. The caller waits.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the thread cannot be started or cannot enter the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        self.run_beside(f, || ()).map(|(inside, ())| inside)
    }

    /// As [`Netns::run`]; meanwhile the caller does what is `beside` it.
    ///
    /// # Errors
    /// As for [`Netns::run`].
    pub fn run_beside<T: Send, U>(
        &self,
        f: impl FnOnce() -> T + Send,
        beside: impl FnOnce() -> U,
    ) -> Result<(T, U), Error> {
        let enter = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| self.refused("entering", errno.into()))?;
            Ok(f())
        };
        self.on_thread(enter, beside)
    }

    /// Like [`Netns::run`], but with a fresh `/sys` that shows the interfaces of this namespace;
    /// the mount is private to the thread.
    ///
    /// # Errors
    /// [`Error::Kernel`] when entering or mounting is refused.
    pub fn run_with_sysfs<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        use nix::mount::{MsFlags, mount};
        let enter = || {
            let none: Option<&str> = None;
            let mounted = || -> nix::Result<()> {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
                mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::MS_RDONLY, none)
            };
            mounted().map_err(|errno| self.refused("mounting /sys of", errno.into()))?;
            Ok(f())
        };
        self.on_thread(enter, || ()).map(|(inside, ())| inside)
    }

    fn on_thread<T: Send, U>(
        &self,
        f: impl FnOnce() -> Result<T, Error> + Send,
        beside: impl FnOnce() -> U,
    ) -> Result<(T, U), Error> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, f)
                .map_err(|cause| self.refused("starting a thread for", cause))?;
            let outside = beside();
            let inside = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((inside?, outside))
        })
    }

    fn refused(&self, operation: &'static str, cause: io::Error) -> Error {
        Error::Kernel { operation, path: self.path.clone(), cause }
    }
}

/// The identity of an open namespace file; `None` when it is something else. A namespace of another kind
/// can only be told apart while it is not bind-mounted; a bind-mounted one is refused on entering.
fn identify(file: &File) -> io::Result<Option<NetnsId>> {
    if fstatfs(file)?.filesystem_type() != NSFS_MAGIC {
        return Ok(None);
    }
    // The magic link of such a file names its kind: "net:[4026531840]".
    let link = fs::read_link(format!("/proc/thread-self/fd/{}", file.as_raw_fd()))?;
    let link = link.as_os_str().as_encoded_bytes();
    if !link.starts_with(b"/") && !link.starts_with(b"net:[") {
        return Ok(None);
    }
    let meta = file.metadata()?;
    Ok(Some(NetnsId { dev: meta.dev(), ino: meta.ino() }))
}

fn is_absence(errno: i32) -> bool {
    use nix::errno::Errno;
    matches!(Errno::from_raw(errno), Errno::ENOENT | Errno::ENOTDIR | Errno::ESRCH)
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netns").field("path", &self.path).field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_gone_from_not_a_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(matches!(Netns::open(&missing), Err(Error::Gone { .. })));
        let file = dir.path().join("empty");
        File::create(&file).unwrap();
        assert!(matches!(Netns::open(&file), Err(Error::NotNamespace { .. })));
        assert!(matches!(Netns::open(file.join("below")), Err(Error::Gone { .. })));
        assert!(matches!(Netns::open("/proc/self/ns/mnt"), Err(Error::NotNamespace { .. })));
        assert!(matches!(Netns::open(dir.path()), Err(Error::NotNamespace { .. })));
        assert!(matches!(Netns::open("/proc/4194305/ns/net"), Err(Error::Gone { .. })));
    }

    #[test]
    fn a_bind_mount_is_the_namespace_until_it_is_lost() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod");
        File::create(&path).unwrap();
        let private = std::thread::spawn(move || {
            let none: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let own = Netns::current().unwrap();
            mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none).unwrap();
            assert_eq!(Netns::open(&path).unwrap().id(), own.id());
            umount2(&path, MntFlags::MNT_DETACH).unwrap();
            assert!(Netns::open(&path).unwrap_err().is_gone());
        });
        private.join().unwrap();
    }

    #[test]
    fn runs_inside_and_leaves_the_caller_outside() {
        let before = Netns::current().unwrap().id();
        let other = crate::testing::new_netns();
        assert_ne!(other.id(), before);
        let id = || Netns::current().unwrap().id();
        assert_eq!(other.run(id).unwrap(), other.id());
        assert_eq!(other.run_beside(id, id).unwrap(), (other.id(), before));
        assert_eq!(Netns::current().unwrap().id(), before);
    }

    #[test]
    fn discovers_the_namespace_of_each_process_once() {
        let own = Netns::current().unwrap().id();
        let ids: Vec<_> = discover().unwrap().iter().map(Netns::id).collect();
        assert_eq!(ids.iter().filter(|id| **id == own).count(), 1);
    }

    #[test]
    fn fresh_sysfs_shows_only_the_namespace() {
        let other = crate::testing::new_netns();
        let names = other
            .run_with_sysfs(|| {
                let entries = fs::read_dir("/sys/class/net").unwrap();
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
            })
            .unwrap();
        assert_eq!(names, ["lo"]);
    }
}
