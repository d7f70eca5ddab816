//! A DEL that the daemon cannot take is kept on disk; the daemon does it when it is back.
//!
//! One file per attachment, `<cniDir>/pending/<container ID>-<interface>`: the request as it would have been posted.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Keeps `request` in `directory` so that it survives power loss.
///
/// # Errors
/// When it could not be written.
pub(crate) fn keep(directory: &Path, container: &str, ifname: &str, request: &[u8]) -> io::Result<()> {
    if !is_file_name(container) || ifname.contains('/') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("container ID {container:?} or interface name {ifname:?} cannot be part of a file name"),
        ));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let name = format!("{container}-{ifname}");
    // The daemon passes over names with a dot in front.
    let draft = directory.join(format!(".{name}.{}", std::process::id()));
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(request)?;
        file.sync_all()?;
        fs::rename(&draft, directory.join(&name))?;
        File::open(directory)?.sync_all()
    };
    written().inspect_err(|_| {
        let _ = fs::remove_file(&draft);
    })
}

/// What the specification allows for a container ID.
fn is_file_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_whole_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let pending = directory.path().join("a/pending");
        for request in ["first and longer", "second"] {
            keep(&pending, "c0ffee", "eth0", request.as_bytes()).unwrap();
        }
        let files: Vec<_> = fs::read_dir(&pending).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(files, ["c0ffee-eth0"]);
        assert_eq!(fs::read_to_string(pending.join("c0ffee-eth0")).unwrap(), "second");
        for (container, ifname) in [("../x", "eth0"), ("", "eth0"), ("c", "a/b"), (".c", "eth0")] {
            assert!(keep(&pending, container, ifname, b"x").is_err(), "{container} {ifname}");
        }
    }
}
