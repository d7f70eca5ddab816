//! Leaves the node as it was: able to start pods, with the primary network alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use multus::node::Node;

use crate::Error;
use crate::calls::Calls;
use crate::clients::Clients;
use crate::conf::DaemonConf;
use crate::enrolment::Enrolment;
use crate::followed::Files;
use crate::install::{self, THICK};
use crate::primary::{OWN_PREFIX, Primary};
use crate::socket::{self, Socket};
use crate::{gc, pending};

/// How often is looked whether sandboxes have gone.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where things are, as this process sees them.
#[derive(Debug, Clone)]
pub struct Places {
    /// The runtime's plugins.
    pub bin_dir: PathBuf,
    /// The runtime's configurations.
    pub conf_dir: PathBuf,
    /// Programs of this image.
    pub source: PathBuf,
}

/// Uninstalls multus: the primary's configuration is in force again, and configuration, credentials, socket and
/// programs of multus are gone. Sandboxes that are gone are taken down.
///
/// Those that run keep their networks. They are taken down when they have gone, as long as this is waited for (`wait`);
/// until then a program stays in the place of multus-shim, because a runtime that remembers by which network a sandbox
/// was attached calls it to take it down. It is the thin plugin, which needs nothing but what is on disk for that.
/// The number of sandboxes left.
///
/// # Errors
/// What could not be removed.
pub async fn uninstall(conf: DaemonConf, places: &Places, wait: Duration) -> Result<usize, Error> {
    let socket_dir = conf.socket_dir.clone();
    // A daemon that runs gives way, and writes no configuration any more.
    let socket = Socket::take_over(&socket_dir)?;
    let lock = socket::lock(&socket_dir).await?;
    // Nobody answers from now on: the shim keeps DELs, which are done below, and must not wait for an answer.
    socket.remove();
    drop(socket);
    remove_configuration(&places.conf_dir, conf.config_file.as_deref())?;
    remove_certificates(&conf)?;
    let cni_dir = conf.cni_dir.clone();
    let calls = Arc::new(Calls::new(conf, Node::default(), Clients::default()));
    let deadline = tokio::time::Instant::now() + wait;
    let left = loop {
        pending::drain(&calls).await;
        gc::collect(&calls).await;
        let left = gc::containers(&cni_dir).len();
        if left == 0 || tokio::time::Instant::now() >= deadline {
            break left;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    for name in ["multus", "passthru"] {
        host::durable::remove(&places.bin_dir.join(name))?;
    }
    if left == 0 {
        host::durable::remove(&places.bin_dir.join("multus-shim"))?;
        Files::below(&cni_dir).clear();
        remove_if_empty(&pending::directory(&cni_dir));
        remove_if_empty(&cni_dir.join("results"));
        remove_if_empty(&cni_dir);
    } else {
        leave_successor(places)?;
        tracing::warn!(
            "{left} sandboxes still have networks of multus; {} stays for them. Run this again when their pods have gone",
            places.bin_dir.join("multus-shim").display()
        );
    }
    lock.release();
    host::durable::remove(&socket_dir.join(socket::LOCK))?;
    remove_if_empty(&socket_dir);
    Ok(left)
}

/// Puts the primary's configuration in force again; what was `copied` from a file of the administrator's goes like what was
/// generated.
///
/// # Errors
/// When a file cannot be removed or renamed.
pub fn remove_configuration(conf_dir: &Path, copied: Option<&Path>) -> Result<(), Error> {
    let failed = |path: &Path, e: std::io::Error| Error::file("uninstalling", path, e);
    let entries = match std::fs::read_dir(conf_dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| failed(conf_dir, e))?,
    };
    let names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    // First the primary's, so that the runtime is never without a network: it was renamed by --rename-conf-file.
    if Primary::find(conf_dir, None).is_err() {
        for name in &names {
            let Some(original) = name.strip_suffix(".old") else { continue };
            if original.ends_with(".conf") || original.ends_with(".conflist") {
                let (from, to) = (conf_dir.join(name), conf_dir.join(original));
                std::fs::rename(&from, &to).map_err(|e| failed(&from, e))?;
                tracing::info!("{} is in force again", to.display());
            }
        }
    }
    let source = copied.filter(|file| file.parent() != Some(conf_dir));
    let copy = source.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    for name in names.iter().filter(|name| name.starts_with(OWN_PREFIX) || copy.as_ref() == Some(name)) {
        host::durable::remove(&conf_dir.join(name))?;
    }
    let credentials = conf_dir.join("multus.d");
    host::durable::remove(&credentials.join("multus.kubeconfig"))?;
    remove_if_empty(&credentials);
    Ok(())
}

/// The node's own certificates, where it has some.
fn remove_certificates(conf: &DaemonConf) -> Result<(), Error> {
    // Nobody asks for one any more: the node's name does not matter.
    let enrolment =
        Enrolment::of_daemon(&conf.raw, Some("")).map_err(|e| Error::Usage(format!("configuration: {e}")))?;
    let Some(Enrolment { store, kubeconfig, .. }) = enrolment else { return Ok(()) };
    host::durable::remove(&kubeconfig)?;
    store.clear()
}

/// The thin plugin in the place of the shim.
fn leave_successor(places: &Places) -> Result<(), Error> {
    let (thin, shim) = (places.source.join("multus"), THICK.first().copied().unwrap_or_default());
    if !thin.exists() {
        return Ok(());
    }
    install::install_as(&thin, &places.bin_dir, shim)
}

/// A directory that others use as well stays.
fn remove_if_empty(directory: &Path) {
    let _ = std::fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primary_is_in_force_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("multus.d")).unwrap();
        for (name, content) in [
            ("00-multus.conf", "{}"),
            ("00-multus.conflist.cilium_bak", "{}"),
            ("10-flannel.conflist.old", r#"{"name":"x","plugins":[{"type":"y"}]}"#),
            ("notes.old", "x"),
            ("01-own.conf", "{}"),
            ("multus.d/multus.kubeconfig", "{}"),
        ] {
            std::fs::write(path(name), content).unwrap();
        }
        for _ in 0..2 {
            remove_configuration(directory.path(), Some(Path::new("/etc/multus/01-own.conf"))).unwrap();
            let mut files: Vec<_> =
                std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            files.sort();
            assert_eq!(files, ["10-flannel.conflist", "notes.old"]);
        }
        // A file that was not copied from anywhere is the administrator's.
        std::fs::write(path("01-own.conf"), "{}").unwrap();
        remove_configuration(directory.path(), Some(&path("01-own.conf"))).unwrap();
        assert!(path("01-own.conf").exists());
        remove_configuration(&path("nonexistent"), None).unwrap();
    }
}
