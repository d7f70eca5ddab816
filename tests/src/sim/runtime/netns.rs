//! Network namespaces that outlive the process which made them: bind mounts, as containerd and `ip netns` make them.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Makes a new network namespace and binds it to `path`.
///
/// # Errors
/// The kernel refuses, or the path exists.
pub(crate) fn create(path: &Path) -> Result<()> {
    let bind = || -> Result<()> {
        let folder = path.parent().context("path without a folder")?;
        std::fs::create_dir_all(folder)?;
        File::create_new(path)?;
        // A thread of its own, so that nothing else of this process enters the new namespace.
        let bound = std::thread::scope(|scope| {
            scope
                .spawn(|| -> Result<()> {
                    unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
                    let source = Path::new("/proc/thread-self/ns/net");
                    mount(Some(source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                        .context("bind mount")
                })
                .join()
                .unwrap_or_else(|_| Err(anyhow!("thread panicked")))
        });
        bound.inspect_err(|_| drop(std::fs::remove_file(path)))
    };
    bind().with_context(|| format!("create network namespace {}", path.display()))
}

/// Unmounts the namespace at `path` and removes the file; nothing there is fine.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // EINVAL: the file is there without a mount, which a killed run can leave.
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
        Err(errno) => return Err(errno).with_context(|| format!("unmount {}", path.display())),
    }
    std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_made_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netns/cni-1");
        create(&path).unwrap();
        let made = host::Netns::open(&path).unwrap();
        assert_ne!(made.id(), host::Netns::current().unwrap().id());
        assert!(create(&path).is_err(), "the path is taken");
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
        File::create(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists(), "a file without mount goes too");
    }
}
