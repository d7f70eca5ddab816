//! A host with a container, made of two network namespaces, and the reference plugins for it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use cni::{Attachment, NetworkList, Object, Runtime, Version};

pub(crate) fn plugins() -> PathBuf {
    let directory = std::env::var_os("CNI_REFERENCE_PLUGINS").unwrap_or_else(|| "/usr/lib/cni".into());
    let directory = PathBuf::from(directory);
    assert!(directory.join("bridge").is_file(), "no reference plugins in {}", directory.display());
    directory
}

/// A network namespace that lives as long as the thread that made it.
pub(crate) struct Netns {
    pub(crate) path: PathBuf,
    thread: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl Netns {
    fn new() -> Self {
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(nix::unistd::gettid()).unwrap();
            let _ = stopped.recv();
        });
        let tid = is_ready.recv().unwrap();
        let path = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
        Netns { path: path.into(), thread: Some((stop, thread)) }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

pub(crate) fn ip(netns: Option<&Path>, args: &str) -> String {
    let mut command = match netns {
        Some(path) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", path.display())).arg("ip");
            command
        }
        None => Command::new("ip"),
    };
    let output = command.args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the kernel has this kind of interface. Call on a host of a test.
pub(crate) fn kernel_has(kind: &str) -> bool {
    let details = match kind {
        "vlan" => "link probe0 name probe1 type vlan id 5".to_owned(),
        "vrf" => "probe1 type vrf table 5".to_owned(),
        kind => format!("link probe0 name probe1 type {kind}"),
    };
    ip(None, "link add probe0 type veth peer name probe9");
    let output = Command::new("ip").args(["link", "add"]).args(details.split(' ')).output().unwrap();
    ip(None, "link del probe0");
    let has = output.status.success();
    if has && kind == "vrf" {
        ip(None, "link del probe1");
    }
    assert!(has || std::env::var_os("CNI_REFERENCE_STRICT").is_none(), "this kernel has no {kind}");
    if !has {
        eprintln!("left out: this kernel has no {kind}");
    }
    has
}

/// A host (a namespace of the calling thread, which children inherit) with a container.
pub(crate) struct Node {
    pub(crate) container: Netns,
    pub(crate) directory: tempfile::TempDir,
}

impl Node {
    /// Runs `test` on a host of its own.
    pub(crate) fn run(test: impl FnOnce(&Node) + Send) {
        std::thread::scope(|scope| {
            let host = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                ip(None, "link set lo up");
                test(&Node { container: Netns::new(), directory: tempfile::tempdir().unwrap() });
            });
            if let Err(panic) = host.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    pub(crate) fn runtime(&self) -> Runtime {
        Runtime {
            path: vec![plugins()],
            cache_dir: self.directory.path().join("cache"),
            executor: std::sync::Arc::new(cni::exec::Direct),
        }
    }

    pub(crate) fn attachment(&self) -> Attachment {
        Attachment {
            container_id: "c0ffee".into(),
            netns: Some(self.container.path.clone()),
            ifname: "net1".into(),
            args: vec![("IgnoreUnknown".into(), "1".into())],
            capabilities: Object::new(),
        }
    }

    /// The network, its `DATA` replaced by a directory of the test.
    pub(crate) fn list(&self, text: &str) -> NetworkList {
        let data = self.directory.path().join("data").display().to_string();
        NetworkList::parse(text.replace("DATA", &data).as_bytes()).unwrap()
    }

    pub(crate) fn addresses(&self) -> String {
        ip(Some(&self.container.path), "-o addr show")
    }
}

/// The versions the installed plugins speak (Debian's stop at 1.0.0).
pub(crate) fn versions() -> Vec<Version> {
    cni::exec::versions(&plugins().join("bridge")).unwrap()
}
