//! DELs that the shim kept while the daemon was away: `<cniDir>/pending/<container ID>-<interface>`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use host::DirectoryWatch;

use crate::Error;
use crate::calls::Calls;
use crate::wire::Call;

/// How long until a DEL that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Where DELs are kept.
#[must_use]
pub fn directory(cni_dir: &Path) -> PathBuf {
    cni_dir.join("pending")
}

/// Forgets what is kept of an attachment.
///
/// # Errors
/// When it cannot be removed.
pub fn forget(cni_dir: &Path, container: &str, ifname: &str) -> Result<(), Error> {
    host::durable::remove(&directory(cni_dir).join(format!("{container}-{ifname}")))?;
    Ok(())
}

/// Does every DEL that is kept, as many at a time as the daemon works on. What fails stays; how many that are.
pub async fn drain(calls: &Arc<Calls>) -> usize {
    let files = kept(&directory(&calls.conf.cni_dir));
    let done = join_all(files.iter().map(|file| one(calls, file))).await;
    done.into_iter().filter(|done| !done).count()
}

/// Does DELs as they come, and again what failed, for ever.
///
/// # Errors
/// When the directory cannot be watched.
pub async fn follow(calls: Arc<Calls>) -> Result<(), Error> {
    let directory = directory(&calls.conf.cni_dir);
    host::durable::make_directory(&directory)?;
    let watch = || DirectoryWatch::new(&directory).map_err(|e| Error::file("watching", &directory, e));
    let mut watched = watch()?;
    loop {
        let left = drain(&calls).await;
        let changed = watched.changed();
        let broken = match left {
            0 => changed.await.is_err(),
            _ => tokio::time::timeout(RETRY, changed).await.is_ok_and(|changed| changed.is_err()),
        };
        if broken || !directory.exists() {
            host::durable::make_directory(&directory)?;
            watched = watch()?;
        }
    }
}

/// The files, the oldest first.
fn kept(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| (entry.metadata().and_then(|m| m.modified()).ok(), entry.path()))
        .collect();
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

async fn one(calls: &Arc<Calls>, file: &Path) -> bool {
    let done = match std::fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return true,
        Err(error) => Err(cni::Error::io(error.to_string())),
        Ok(bytes) => match Call::parse(&bytes) {
            Ok(call) => calls.cni(&of_the_past(call)).await.map(drop),
            Err(error) => {
                // The shim writes whole files or none: there is nothing to wait for. Our own collection of garbage
                // finds the sandbox by its record.
                tracing::error!("{} is no kept DEL and goes: {error}", file.display());
                Ok(())
            }
        },
    };
    match done.and_then(|()| host::durable::remove(file).map_err(|e| cni::Error::io(e.to_string()))) {
        Ok(_) => {
            tracing::info!("done: the DEL kept in {}", file.display());
            true
        }
        Err(error) => {
            tracing::error!("the DEL kept in {} fails and will be tried again: {error}", file.display());
            false
        }
    }
}

/// A namespace that was named by a process may be another one's by now.
fn of_the_past(mut call: Call) -> Call {
    if call.variable("CNI_NETNS").is_some_and(|path| path.starts_with("/proc/")) {
        call.environment.remove("CNI_NETNS");
    }
    call
}
