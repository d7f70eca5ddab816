//! Files that other programs read: whole or not at all, and by anyone.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// An operation on such a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub(crate) struct Error {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error { operation, path, source }
}

/// Writes a file (mode 0644), and its directory (mode 0755) if there is none.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(failed("making directory", directory))?;
    // Readers look at files that end in .json; they must not meet this one.
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = || -> io::Result<()> {
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary)?;
        file.write_all(content)?;
        fs::rename(&temporary, path)
    };
    written().map_err(failed("writing", path)).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Removes the files of a directory whose names are `stale` and that were written before `before`. No directory has
/// none.
pub(crate) fn sweep(directory: &Path, before: SystemTime, stale: impl Fn(&str) -> bool) -> Result<(), Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("listing", directory)(error)),
    };
    for entry in entries.flatten() {
        let is_old = || entry.metadata().and_then(|file| file.modified()).is_ok_and(|time| time < before);
        if entry.file_name().to_str().is_some_and(&stale) && is_old() {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("removing", &entry.path())(error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
