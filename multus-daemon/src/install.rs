//! Puts programs where the runtime looks for them.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::Error;

/// Where an image has the programs.
pub const SOURCE: &str = "/usr/src/multus-cni/bin";

/// What thick mode puts on the host. `passthru` is a plugin that does nothing, which some configurations name.
pub const THICK: [&str; 2] = ["multus-shim", "passthru"];

/// What thin mode puts on the host.
pub const THIN: [&str; 2] = ["multus", "passthru"];

/// Copies each of `names` that is in `source` to `target`; the first must be there. What is there already and the same
/// is left alone. A program that runs is replaced all the same: the new one gets its name when it is whole.
///
/// # Errors
/// [`Error::File`], naming the program.
pub fn install(source: &Path, target: &Path, names: &[&str]) -> Result<(), Error> {
    if !target.is_dir() {
        return Err(Error::file(
            "installing into",
            target,
            "it is no directory: mount the host's CNI plugins there",
        ));
    }
    for (index, name) in names.iter().enumerate() {
        let from = source.join(name);
        if index > 0 && !from.exists() {
            continue;
        }
        install_as(&from, target, name)?;
    }
    Ok(())
}

/// Copies the program `from` to `target` under `name`, as [`install`] does.
///
/// # Errors
/// [`Error::File`].
pub fn install_as(from: &Path, target: &Path, name: &str) -> Result<(), Error> {
    let to = target.join(name);
    remove_drafts(target, name);
    if is_same(from, &to) {
        tracing::info!("{} is up to date", to.display());
        return Ok(());
    }
    copy(from, &to, &draft(target, name)).map_err(|e| Error::file("installing", &to, e))?;
    tracing::info!("installed {}", to.display());
    Ok(())
}

fn draft(target: &Path, name: &str) -> PathBuf {
    target.join(format!(".{name}.new"))
}

/// What a killed installation left, ours or that of a peer (`<name>.<number>`).
fn remove_drafts(target: &Path, name: &str) {
    let peers = format!("{name}.");
    for entry in std::fs::read_dir(target).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let is_peers = file.strip_prefix(&peers).is_some_and(|rest| {
            let number = rest.trim_end_matches(".temp");
            !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
        });
        if is_peers {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let _ = std::fs::remove_file(draft(target, name));
}

fn is_same(one: &Path, other: &Path) -> bool {
    let size = |path| std::fs::metadata(path).map(|m| (m.len(), m.permissions().mode() & 0o111 != 0)).ok();
    matches!((size(one), size(other)), (Some((a, _)), Some((b, true))) if a == b)
        && matches!((std::fs::read(one), std::fs::read(other)), (Ok(a), Ok(b)) if a == b)
}

fn copy(from: &Path, to: &Path, draft: &Path) -> io::Result<()> {
    let bytes = std::fs::read(from)?;
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o755).open(draft)?;
        file.write_all(&bytes)?;
        file.set_permissions(Permissions::from_mode(0o755))?;
        file.sync_all()?;
        // Closed before it gets its name: a program that is open for writing cannot be started.
        drop(file);
        std::fs::rename(draft, to)?;
        to.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    written().inspect_err(|_| {
        let _ = std::fs::remove_file(draft);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    #[test]
    fn a_running_program_is_replaced_and_the_same_one_left() {
        let directory = tempfile::tempdir().unwrap();
        let [source, target] = ["source", "target"].map(|name| directory.path().join(name));
        std::fs::create_dir(&source).unwrap();
        assert!(install(&source, &target, &THICK).is_err(), "no target");
        std::fs::create_dir(&target).unwrap();
        assert!(install(&source, &target, &THICK).is_err(), "no program");

        std::fs::copy("/bin/sleep", source.join("multus-shim")).unwrap();
        install(&source, &target, &THICK).unwrap();
        let shim = target.join("multus-shim");
        let inode = || std::fs::metadata(&shim).unwrap().ino();
        let first = inode();
        install(&source, &target, &THICK).unwrap();
        assert_eq!(inode(), first);

        let mut running = Command::new(&shim).arg("600").spawn().unwrap();
        for leftover in [".multus-shim.new", "multus-shim.12345", "multus-shim.678.temp"] {
            std::fs::write(target.join(leftover), "half").unwrap();
        }
        std::fs::write(target.join("multus-shim.conf"), "somebody's").unwrap();
        std::fs::copy("/bin/true", source.join("multus-shim")).unwrap();
        install(&source, &target, &THICK).unwrap();
        running.kill().unwrap();
        running.wait().unwrap();
        assert!(Command::new(&shim).status().unwrap().success());
        let mut files: Vec<_> = std::fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["multus-shim", "multus-shim.conf"]);
    }
}
