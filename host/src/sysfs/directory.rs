//! A directory in sysfs, and the reading of what stands in it.
//!
//! A directory can be opened. What is read then is looked up from there, without the walk from the root, which takes
//! longer than the reading; and it is read of one device, even if another one comes to the same address meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::unistd::read;

use super::{Result, SysfsError};

/// Longer than any attribute that is read here; the kernel allows a page.
const PAGE: usize = 4096;

/// A directory by its path, open or not.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    path: PathBuf,
    /// A directory at or above this one that is open, and the way from there to here.
    open: Option<(Arc<OwnedFd>, PathBuf)>,
}

impl Directory {
    /// The directory at `path`, there or not.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    /// The same directory, open; `None` if there is none.
    pub(super) fn opened(self) -> Result<Option<Self>> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match openat(AT_FDCWD, &self.path, flags, Mode::empty()) {
            Ok(open) => Ok(Some(Self { path: self.path, open: Some((Arc::new(open), PathBuf::new())) })),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(failed(self.path, error)),
        }
    }

    /// The directory `name` in this one.
    pub(super) fn child(&self, name: &str) -> Self {
        let open = self.open.as_ref().map(|(open, way)| (open.clone(), way.join(name)));
        Self { path: self.path.join(name), open }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The text of an attribute without its final newline; `None` if the attribute does not exist.
    pub(super) fn attribute(&self, name: &str) -> Result<Option<String>> {
        self.at(name, |at, path| {
            let file = openat(at, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            // One read gives all of an attribute. A scan reads thousands of them.
            let mut page = [0; PAGE];
            let length = read(&file, &mut page)?;
            Ok(String::from_utf8_lossy(page.get(..length).unwrap_or_default()).trim().to_owned())
        })
    }

    /// An attribute as a value of type `T`.
    pub(super) fn parsed<T: FromStr>(&self, name: &str, expected: &'static str) -> Result<Option<T>> {
        let Some(text) = self.attribute(name)? else { return Ok(None) };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(SysfsError::Parse { path: self.path.join(name), text, expected }),
        }
    }

    /// The last component of a symbolic link's target; `None` if there is no such link.
    pub(super) fn link_name(&self, name: &str) -> Result<Option<String>> {
        let target = self.at(name, |at, path| readlinkat(at, path))?;
        Ok(target.and_then(|target| Some(Path::new(&target).file_name()?.to_string_lossy().into_owned())))
    }

    /// The names in this directory, sorted; none if it does not exist.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = match &self.open {
            Some((open, way)) if way.as_os_str().is_empty() => Dir::openat(open, ".", flags, Mode::empty()),
            Some((open, way)) => Dir::openat(open, way, flags, Mode::empty()),
            None => Dir::open(&self.path, flags, Mode::empty()),
        };
        let directory = match opened {
            Ok(directory) => directory,
            Err(Errno::ENOENT) => return Ok(Vec::new()),
            Err(error) => return Err(failed(self.path.clone(), error)),
        };
        let mut names = Vec::new();
        for entry in directory {
            match entry {
                Ok(entry) => names.push(entry.file_name().to_string_lossy().into_owned()),
                // The directory went away between opening and listing it.
                Err(Errno::ENOENT) => break,
                Err(error) => return Err(failed(self.path.clone(), error)),
            }
        }
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    /// Does something with the file `name`; `None` if there is none, or it has no value to give.
    fn at<T>(
        &self,
        name: &str,
        act: impl FnOnce(BorrowedFd<'_>, &Path) -> nix::Result<T>,
    ) -> Result<Option<T>> {
        let done = match &self.open {
            Some((open, way)) if way.as_os_str().is_empty() => act(open.as_fd(), Path::new(name)),
            Some((open, way)) => act(open.as_fd(), &way.join(name)),
            None => act(AT_FDCWD, &self.path.join(name)),
        };
        match done {
            Ok(value) => Ok(Some(value)),
            // A driver that has no value to give answers EOPNOTSUPP, EINVAL (carrier of a link that is
            // down) or ENODEV (device on its way out): for a reader all of these are "no value".
            Err(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(failed(self.path.join(name), error)),
        }
    }
}

fn failed(path: PathBuf, error: Errno) -> SysfsError {
    SysfsError::Read { path, source: io::Error::from_raw_os_error(error as i32) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn open_or_not_it_reads_the_same() {
        let tree = tempfile::tempdir().unwrap();
        let path = tree.path().join("device");
        std::fs::create_dir_all(path.join("net/eth0")).unwrap();
        std::fs::write(path.join("vendor"), "0x8086\n").unwrap();
        std::fs::write(path.join("net/eth0/type"), "1\n").unwrap();
        symlink("../../drivers/igb", path.join("driver")).unwrap();
        let closed = Directory::new(path);
        let open = closed.clone().opened().unwrap().unwrap();
        for directory in [&closed, &open] {
            assert_eq!(directory.attribute("vendor").unwrap().as_deref(), Some("0x8086"));
            assert_eq!(directory.attribute("device").unwrap(), None);
            assert_eq!(directory.link_name("driver").unwrap().as_deref(), Some("igb"));
            assert_eq!(directory.link_name("vendor").unwrap(), None, "it is no link");
            assert_eq!(directory.child("net").names().unwrap(), ["eth0"]);
            let netdev = directory.child("net").child("eth0");
            assert_eq!(netdev.parsed::<u16>("type", "a type").unwrap(), Some(1));
            let error = directory.parsed::<u16>("vendor", "a number").unwrap_err().to_string();
            assert!(error.ends_with("device/vendor holds \"0x8086\", which is not a number"), "{error}");
            assert!(directory.attribute("net").is_err(), "a directory is no attribute");
        }
        assert!(Directory::new(tree.path().join("other")).opened().unwrap().is_none());
    }

    #[test]
    fn an_open_directory_is_of_one_device() {
        let tree = tempfile::tempdir().unwrap();
        let path = tree.path().join("device");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("vendor"), "0x8086\n").unwrap();
        let open = Directory::new(path.clone()).opened().unwrap().unwrap();
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("vendor"), "0x15b3\n").unwrap();
        assert_eq!(open.attribute("vendor").unwrap(), None);
    }
}
