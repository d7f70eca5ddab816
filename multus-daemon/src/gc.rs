//! Collecting what nobody will ask to be taken down: sandboxes whose network namespace is gone, without a DEL.
//!
//! A reboot leaves them, and runtimes that forget. Most runtimes never call GC.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cni::cache::Cache;
use multus::hotplug;
use multus::record::Records;

use crate::calls::Calls;
use crate::on_record;

/// How often garbage is collected.
const EVERY: Duration = Duration::from_secs(300);

/// How old a file must be whose owner is not known: an ADD may just be writing it.
const YOUNG: Duration = Duration::from_secs(600);

/// Collects garbage for ever, first at once: after a reboot there is most of it.
pub async fn follow(calls: Arc<Calls>) {
    loop {
        let collected = collect(&calls).await;
        if collected > 0 {
            tracing::info!("collected what {collected} sandboxes without a namespace had left");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Takes down every sandbox whose namespace is gone; how many that were.
pub async fn collect(calls: &Arc<Calls>) -> usize {
    let mut collected = 0;
    for container in containers(&calls.conf.cni_dir) {
        if calls.sandboxes.is_busy(&container) || !is_gone(calls, &container) {
            continue;
        }
        match calls.release(&container).await {
            Ok(()) => collected += 1,
            Err(error) => tracing::warn!("sandbox {container} is gone, and cannot be taken down: {error}"),
        }
    }
    expire(&calls.node.device_info.join("cni"), &containers(&calls.conf.cni_dir));
    collected
}

/// The sandboxes of which something is known.
#[must_use]
pub fn containers(cni_dir: &Path) -> Vec<String> {
    let mut containers = Records::new(cni_dir).containers().unwrap_or_default();
    let cached = Cache::new(cni_dir).attachments(None).unwrap_or_default();
    containers.extend(cached.into_iter().map(|cached| cached.container_id));
    containers.sort();
    containers.dedup();
    containers
}

/// Whether the sandbox had namespaces, and has none of them any more.
fn is_gone(calls: &Calls, container: &str) -> bool {
    let Ok((request, conf)) = on_record::call(calls, container, "DEL", None, "eth0") else { return false };
    let attached = hotplug::attached(&conf, &request).unwrap_or_default();
    let cached = Cache::new(&conf.cni_dir).attachments(Some(container)).unwrap_or_default();
    let cached = cached.into_iter().map(|cached| PathBuf::from(cached.netns));
    let mut namespaces = attached
        .into_iter()
        .filter_map(|delegate| delegate.attachment.netns)
        .chain(cached)
        .filter(|path| !path.as_os_str().is_empty())
        .peekable();
    namespaces.peek().is_some() && namespaces.all(|path| is_absent(&path))
}

/// Whether there surely is no namespace of this name any more. A path below `/proc` tells nothing: the number may be
/// another process's. Neither does a directory that is not there: a manifest that does not mount it here must not cost
/// the pods of the node their networks.
fn is_absent(path: &Path) -> bool {
    !path.starts_with("/proc") && !path.exists() && path.parent().is_some_and(Path::is_dir)
}

/// Removes device-info files of attachments (`<network>-<container ID>_<interface>`) whose sandbox is not known.
fn expire(directory: &Path, known: &[String]) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|time| time.elapsed().ok());
        let is_known = known.iter().any(|container| name.contains(container.as_str()));
        let is_expired = !is_known && name.contains('_') && age.is_some_and(|age| age > YOUNG);
        if is_expired && let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::warn!("removing {}: {error}", entry.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_not_gone() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("there");
        std::fs::write(&there, "").unwrap();
        for (path, expected) in [
            (there, false),
            (directory.path().join("gone"), true),
            (directory.path().join("not-mounted/gone"), false),
            ("/proc/4194305/ns/net".into(), false),
        ] {
            assert_eq!(is_absent(&path), expected, "{}", path.display());
        }
    }
}
