//! Files that are either wholly old or wholly new, also after a crash.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// An operation on a file that failed, with its object.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {cause}", path.display())]
pub struct Error {
    /// What was attempted.
    pub operation: &'static str,
    /// On which file or directory.
    pub path: PathBuf,
    /// The cause.
    pub cause: io::Error,
}

/// Writes `content` to `path` (mode 0600) so that it survives power loss: temporary file in the same
/// directory, fsync, rename over `path`, fsync of the directory. Writers of one path must exclude each
/// other, as they must anyway when they read before they write.
///
/// # Errors
/// Names the step that failed; `path` then still holds what it held before.
pub fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    Draft::of(path, content)?.place()
}

/// What [`write`] writes, on disk and under another name: nobody finds it before it is put in its place. Where that does not
/// happen it goes.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    is_placed: bool,
}

impl Draft {
    /// A draft of `path`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn of(path: &Path, content: &[u8]) -> Result<Self, Error> {
        compose(path, content, true)?;
        Ok(Draft { path: path.to_owned(), is_placed: false })
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// Names the step that failed.
    pub fn place(mut self) -> Result<(), Error> {
        rename(&self.path)?;
        self.is_placed = true;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(|cause| Error {
            operation: "syncing directory",
            path: directory.to_owned(),
            cause,
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_placed {
            let _ = fs::remove_file(temporary(&self.path));
        }
    }
}

/// As [`write`], without forcing the content to disk: readers and later processes see the old or the
/// new content whole, also when this process is killed at any point. It is right for state that a
/// reboot makes void anyway: the page cache outlives every process, and two fsyncs cost more than all
/// the netlink messages of an ADD.
///
/// # Errors
/// Names the step that failed; `path` then still holds what it held before.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    compose(path, content, false)?;
    rename(path)
}

fn compose(path: &Path, content: &[u8], sync: bool) -> Result<(), Error> {
    let temporary = temporary(path);
    let written = || -> io::Result<()> {
        // What a killed predecessor left under this name is overwritten.
        let mut file =
            OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        if sync { file.sync_all() } else { Ok(()) }
    };
    written().map_err(|cause| failed_to_write(path, cause))
}

fn rename(path: &Path) -> Result<(), Error> {
    fs::rename(temporary(path), path).map_err(|cause| failed_to_write(path, cause))
}

fn failed_to_write(path: &Path, cause: io::Error) -> Error {
    let _ = fs::remove_file(temporary(path));
    Error { operation: "writing", path: path.to_owned(), cause }
}

// One fixed name per path, so that what a killed process leaves is found and removed.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Removes `path`, and what a killed writer of it left; true when `path` was there.
///
/// # Errors
/// Any refusal other than absence.
pub fn remove(path: &Path) -> Result<bool, Error> {
    unlink(&temporary(path))?;
    unlink(path)
}

fn unlink(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(Error { operation: "removing", path: path.to_owned(), cause }),
    }
}

/// Reads `path` whole; `None` when it does not exist.
///
/// # Errors
/// Any refusal other than absence.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(Error { operation: "reading", path: path.to_owned(), cause }),
    }
}

/// Makes `path` and its parents where missing, for root's eyes only (mode 0700).
///
/// # Errors
/// When a directory cannot be made.
pub fn make_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|cause| Error {
        operation: "making directory",
        path: path.to_owned(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replaces_whole_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, b"a long first content").unwrap();
        replace(&path, b"second").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // A writer that was killed half-way.
        fs::write(temporary(&path), "sec").unwrap();
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_draft_is_seen_by_nobody_before_it_is_placed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write(&path, b"first").unwrap();
        drop(Draft::of(&path, b"second").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let draft = Draft::of(&path, b"third").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"first");
        draft.place().unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"third");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn failure_names_the_file_and_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let occupied = dir.path().join("state");
        make_directory(&occupied.join("child")).unwrap();
        let error = write(&occupied, b"x").unwrap_err();
        assert!(error.to_string().contains(&*occupied.to_string_lossy()), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
