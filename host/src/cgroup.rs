//! Leaving the control group that a process was started in (`cgroups(7)`).

use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

/// Version 1 has a hierarchy for each of these; those that are mounted elsewhere or not at all count for nothing here.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "cpuacct", "pids"];

/// Moves this process, with all its threads, to the root groups of the host whose root directory is `host`: what it and
/// its children take is no longer accounted to the group it was started in.
///
/// # Errors
/// When there is no hierarchy below `host`, or the process may not do that: it has to be privileged, and
/// `sys/fs/cgroup` writable.
pub fn leave(host: &Path) -> io::Result<()> {
    let hierarchies = host.join("sys/fs/cgroup");
    // A process of a namespace of its own may not move to what is outside of it. The first reason is the one to mend.
    move_to_root(&hierarchies)
        .or_else(|error| in_namespace_of(host, || move_to_root(&hierarchies)).map_err(|_| error))
}

/// Does `work` on a thread of its own that sees control groups as process 1 of the host does.
fn in_namespace_of(host: &Path, work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let namespace = std::fs::File::open(host.join("proc/1/ns/cgroup"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWCGROUP)?;
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn move_to_root(hierarchies: &Path) -> io::Result<()> {
    if hierarchies.join("cgroup.controllers").exists() {
        return enter(hierarchies);
    }
    let mounted = CONTROLLERS.map(|name| hierarchies.join(name));
    let mut mounted = mounted.iter().filter(|group| group.join("cgroup.procs").exists()).peekable();
    if mounted.peek().is_none() {
        let message = format!("no cgroup hierarchy is mounted at {}", hierarchies.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    mounted.try_for_each(|group| enter(group))
}

/// The kernel takes 0 for who writes.
fn enter(group: &Path) -> io::Result<()> {
    let file = group.join("cgroup.procs");
    std::fs::write(&file, "0")
        .map_err(|e| io::Error::new(e.kind(), format!("entering {}: {e}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[&str]) -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        for file in files {
            let path = host.path().join("sys/fs/cgroup").join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        host
    }

    fn entered(host: &tempfile::TempDir, file: &str) -> bool {
        std::fs::read(host.path().join("sys/fs/cgroup").join(file)).is_ok_and(|content| content == b"0")
    }

    #[test]
    fn the_root_of_each_hierarchy_is_entered() {
        let unified = host(&["cgroup.controllers", "cgroup.procs"]);
        leave(unified.path()).unwrap();
        assert!(entered(&unified, "cgroup.procs"));

        let several = host(&["memory/cgroup.procs", "cpu/cgroup.procs", "freezer/cgroup.procs"]);
        leave(several.path()).unwrap();
        assert!(entered(&several, "memory/cgroup.procs") && entered(&several, "cpu/cgroup.procs"));
        assert!(!entered(&several, "freezer/cgroup.procs"));

        let none = host(&[]);
        assert!(leave(none.path()).is_err());
    }
}
