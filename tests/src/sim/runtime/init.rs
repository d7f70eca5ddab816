//! The inside of a container: what the helper process does between its start and the program's.
//!
//! Two processes of the same binary. [`supervise`] enters the pod's network namespace, opens a PID namespace and
//! starts the other in it; when the lifeline on its standard input closes, it kills that, and the kernel all the rest.
//! [`init`] builds the mounts and becomes the program.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::container::Bundle;

/// Device nodes that every container has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Where a container finds its programs, unless its environment says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the container of the bundle at `path` and returns its exit code.
///
/// # Errors
/// A namespace cannot be entered or made, or the process not be started.
pub fn supervise(path: &Path) -> Result<u8> {
    let bundle = read(path)?;
    // Before the PID namespace is left: no thread can be started after that.
    let (started, starts) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Nobody writes: the end of input is the end of whoever holds the other end, or its wish.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        if let Ok(pid) = starts.recv() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let netns = File::open(&bundle.netns).with_context(|| format!("open {}", bundle.netns.display()))?;
    setns(netns, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", bundle.netns.display()))?;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .context("new PID namespace")?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("sim-init")
        .arg(path)
        .env_clear()
        .stdin(Stdio::null())
        .spawn()
        .context("start the container's first process")?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    fs::write(&bundle.pid_file, pid.to_string())
        .with_context(|| format!("write {}", bundle.pid_file.display()))?;
    started.send(pid)?;
    let status = child.wait()?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Becomes the program of the bundle at `path`.
///
/// # Errors
/// A mount is refused, or the program cannot be executed; on success it does not return.
pub fn init(path: &Path) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("prctl")?;
    let Bundle { spec, .. } = read(path)?;
    unshare(CloneFlags::CLONE_NEWNS).context("new mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make mounts private")?;

    // Sources are opened first: what is mounted below hides some of them.
    let open = |source: &Path| {
        let flags = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(source);
        flags.with_context(|| format!("open {}", source.display()))
    };
    let nodes = DEVICES.iter().map(|name| Path::new("/dev").join(name)).map(|node| (node.clone(), node));
    let devices: Vec<(File, PathBuf)> = nodes
        .chain(spec.devices.clone())
        .map(|(source, target)| Ok((open(&source)?, target)))
        .collect::<Result<_>>()?;
    let mounts: Vec<(File, PathBuf, bool)> = spec
        .mounts
        .iter()
        .map(|(source, target, read_only)| Ok((open(source)?, target.clone(), *read_only)))
        .collect::<Result<_>>()?;

    file_system("proc", "/proc", MsFlags::empty(), None)?;
    file_system("sysfs", "/sys", MsFlags::MS_RDONLY, None)?;
    file_system("tmpfs", "/dev", MsFlags::MS_NOSUID, Some("mode=755,size=64k"))?;
    file_system("tmpfs", "/run", MsFlags::MS_NOSUID, Some("mode=755"))?;
    file_system("tmpfs", "/tmp", MsFlags::MS_NOSUID, Some("mode=1777"))?;
    for (source, target) in devices {
        bind(&source, &target, false)?;
    }
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, Path::new("/dev").join(link)).with_context(|| format!("/dev/{link}"))?;
    }
    for (kind, target, options) in [
        ("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620"),
        ("tmpfs", "/dev/shm", "mode=1777,size=64m"),
    ] {
        fs::create_dir(target).with_context(|| format!("create {target}"))?;
        file_system(kind, target, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some(options))?;
    }
    for target in &spec.hugepages {
        fs::create_dir_all(target).with_context(|| format!("create {}", target.display()))?;
        mount(Some("hugetlbfs"), target, Some("hugetlbfs"), MsFlags::empty(), Some("pagesize=2M"))
            .with_context(|| format!("mount hugetlbfs on {}", target.display()))?;
    }
    for (source, target, read_only) in mounts {
        bind(&source, &target, read_only)?;
    }

    let mut argv = spec.argv.iter();
    let program = argv.next().context("the container has no command")?;
    let error = Command::new(program).args(argv).env_clear().env("PATH", PATH).envs(&spec.env).exec();
    Err(error).with_context(|| format!("execute {program}"))
}

fn read(path: &Path) -> Result<Bundle> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("decode {}", path.display()))
}

fn file_system(kind: &str, target: &str, flags: MsFlags, options: Option<&str>) -> Result<()> {
    mount(Some(kind), target, Some(kind), flags, options).with_context(|| format!("mount {kind} on {target}"))
}

/// Binds the open `source` to `target`, which is made if it is missing.
fn bind(source: &File, target: &Path, read_only: bool) -> Result<()> {
    ensure!(target.is_absolute(), "{} is not an absolute path", target.display());
    let done = || -> Result<()> {
        if source.metadata()?.is_dir() {
            fs::create_dir_all(target)?;
        } else if !target.exists() {
            fs::create_dir_all(target.parent().context("path without a folder")?)?;
            File::create_new(target)?;
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
        mount(Some(&path), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        if read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?;
        }
        Ok(())
    };
    done().with_context(|| format!("mount on {}", target.display()))
}
