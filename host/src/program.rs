//! Programs where a runtime looks for them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::durable::Error;

/// Copies the program `from` to `directory` under `name`; whether it was not there as it should be. A program that runs is
/// replaced all the same: the new one gets its name when it is whole. What killed installations left goes.
///
/// # Errors
/// Names the program and what failed; what was there is still there.
pub fn install(from: &Path, directory: &Path, name: &str) -> Result<bool, Error> {
    let to = directory.join(name);
    remove_drafts(directory, name);
    if is_same(from, &to) {
        return Ok(false);
    }
    copy(from, &to, &draft(directory, name)).map_err(|cause| Error {
        operation: "installing",
        path: to,
        cause,
    })?;
    Ok(true)
}

fn draft(target: &Path, name: &str) -> PathBuf {
    target.join(format!(".{name}.new"))
}

/// What a killed installation left, ours or that of a peer (`<name>.<number>`).
fn remove_drafts(target: &Path, name: &str) {
    let peers = format!("{name}.");
    for entry in fs::read_dir(target).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let is_peers = file.strip_prefix(&peers).is_some_and(|rest| {
            let number = rest.trim_end_matches(".temp");
            !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
        });
        if is_peers {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_file(draft(target, name));
}

fn is_same(one: &Path, other: &Path) -> bool {
    let size = |path| fs::metadata(path).map(|m| (m.len(), m.permissions().mode() & 0o111 != 0)).ok();
    matches!((size(one), size(other)), (Some((a, _)), Some((b, true))) if a == b)
        && matches!((fs::read(one), fs::read(other)), (Ok(a), Ok(b)) if a == b)
}

fn copy(from: &Path, to: &Path, draft: &Path) -> io::Result<()> {
    let bytes = fs::read(from)?;
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o755).open(draft)?;
        file.write_all(&bytes)?;
        file.set_permissions(Permissions::from_mode(0o755))?;
        file.sync_all()?;
        // Closed before it gets its name: a program that is open for writing cannot be started.
        drop(file);
        fs::rename(draft, to)?;
        to.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    written().inspect_err(|_| {
        let _ = fs::remove_file(draft);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_running_program_is_replaced_and_the_same_one_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let target = path("bin");
        assert!(install(Path::new("/bin/sleep"), &target, "plugin").is_err(), "no directory");
        fs::create_dir(&target).unwrap();
        assert!(install(&path("none"), &target, "plugin").is_err(), "no program");

        assert!(install(Path::new("/bin/sleep"), &target, "plugin").unwrap());
        let plugin = target.join("plugin");
        let inode = || fs::metadata(&plugin).unwrap().ino();
        let first = inode();
        assert!(!install(Path::new("/bin/sleep"), &target, "plugin").unwrap());
        assert_eq!(inode(), first);

        let mut running = Command::new(&plugin).arg("600").spawn().unwrap();
        for leftover in [".plugin.new", "plugin.12345", "plugin.678.temp"] {
            fs::write(target.join(leftover), "half").unwrap();
        }
        fs::write(target.join("plugin.conf"), "somebody's").unwrap();
        assert!(install(Path::new("/bin/true"), &target, "plugin").unwrap());
        running.kill().unwrap();
        running.wait().unwrap();
        assert!(Command::new(&plugin).status().unwrap().success());
        let mut files: Vec<_> = fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["plugin", "plugin.conf"]);
    }
}
