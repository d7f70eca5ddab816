//! Puts CNI plugins where container runtimes look for them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Sources;

/// The CNI plugins under test.
const UNDER_TEST: [&str; 3] = ["multus", "sriov", "whereabouts"];

/// The one that is there in place of `multus` in thick mode.
const SHIM: &str = "multus-shim";

/// The reference plugins that the suite's networks use.
const REFERENCE: [&str; 14] = [
    "bridge",
    "dhcp",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tuning",
    "vlan",
    "vrf",
];

/// Installs the reference plugins and the plugins under test into `target`.
///
/// # Errors
/// A program is missing, or `target` cannot be written.
pub(super) fn install(sources: &Sources, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("create {}", target.display()))?;
    for name in REFERENCE {
        copy(&sources.reference.join(name), target)
            .context("the reference CNI plugins are needed (package containernetworking-plugins)")?;
    }
    for name in UNDER_TEST {
        let name = if sources.thick && name == "multus" { SHIM } else { name };
        copy(&sources.programs.join(name), target)?;
    }
    Ok(())
}

/// Copies a program so that it is never seen half-written, nor "busy" when it is running.
fn copy(program: &Path, target: &Path) -> Result<()> {
    let copied = || -> Result<()> {
        let name = program.file_name().context("no file name")?;
        let mut temporary = tempfile::Builder::new().prefix(".").tempfile_in(target)?;
        let mut source = fs::File::open(program)?;
        std::io::copy(&mut source, &mut temporary)?;
        temporary.as_file().set_permissions(fs::Permissions::from_mode(0o755))?;
        // Closed before it gets its name: a program that is open for writing cannot be executed.
        let temporary = temporary.into_temp_path();
        temporary.persist(target.join(name))?;
        Ok(())
    };
    copied().with_context(|| format!("install {} into {}", program.display(), target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_come_from_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let [programs, reference, target] = ["ours", "reference", "bin"].map(|name| folder.path().join(name));
        for (from, names) in [(&programs, &UNDER_TEST[..]), (&reference, &REFERENCE[..])] {
            fs::create_dir(from).unwrap();
            for name in names {
                fs::write(from.join(name), from.to_str().unwrap()).unwrap();
            }
        }
        let sources =
            Sources { programs: programs.clone(), reference: reference.clone(), vfio: 0, thick: false };
        for _ in 0..2 {
            install(&sources, &target).unwrap();
            assert_eq!(fs::read_dir(&target).unwrap().count(), UNDER_TEST.len() + REFERENCE.len());
        }
        assert_eq!(fs::read_to_string(target.join("sriov")).unwrap(), programs.to_str().unwrap());
        assert_eq!(fs::read_to_string(target.join("bridge")).unwrap(), reference.to_str().unwrap());
        let mode = fs::metadata(target.join("bridge")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);

        fs::remove_file(programs.join("multus")).unwrap();
        let error = format!("{:#}", install(&sources, &target).unwrap_err());
        assert!(error.contains("multus"), "{error}");
    }
}
