//! Puts programs where the runtime looks for them.

use std::path::Path;

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
    let done = if host::program::install(from, target, name)? { "installed" } else { "up to date:" };
    tracing::info!("{done} {}", target.join(name).display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_program_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let [source, target] = ["source", "target"].map(|name| directory.path().join(name));
        std::fs::create_dir(&source).unwrap();
        assert!(install(&source, &target, &THICK).is_err(), "no target");
        std::fs::create_dir(&target).unwrap();
        assert!(install(&source, &target, &THICK).is_err(), "no program");
        std::fs::copy("/bin/true", source.join("multus-shim")).unwrap();
        install(&source, &target, &THICK).unwrap();
        assert!(target.join("multus-shim").is_file());
    }
}
