//! A node of the test's own: a network namespace for the host, one for the container, and directories.

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use host::Netns;
use serde_json::Value;

/// The directory of the reference plugins.
pub fn reference_plugins() -> PathBuf {
    let directory = std::env::var_os("CNI_REFERENCE_PLUGINS").unwrap_or_else(|| "/usr/lib/cni".into());
    let directory = PathBuf::from(directory);
    assert!(directory.join("bridge").is_file(), "no reference plugins in {}", directory.display());
    directory
}

/// A namespace that lives as long as the value.
pub fn new_netns() -> Netns {
    let make = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        Netns::current().unwrap()
    };
    std::thread::spawn(make).join().unwrap()
}

pub fn path_of(netns: &Netns) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd()).into()
}

pub fn ip(netns: Option<&Netns>, args: &str) -> String {
    let mut command = match netns {
        Some(netns) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", path_of(netns).display())).arg("ip");
            command
        }
        None => Command::new("ip"),
    };
    let output = command.args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub struct Node {
    pub container: Netns,
    directory: tempfile::TempDir,
}

pub struct Outcome {
    pub ok: bool,
    pub stdout: String,
}

impl Outcome {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    /// Code and message of the error object.
    pub fn error(&self) -> (u64, String) {
        assert!(!self.ok, "{}", self.stdout);
        let json = self.json();
        (json["code"].as_u64().unwrap(), json["msg"].as_str().unwrap().to_owned())
    }
}

impl Node {
    /// Runs `test` on a node whose host namespace is that of the test's thread.
    pub fn run(test: impl FnOnce(&Node) + Send) {
        let host = new_netns();
        host.run(|| {
            ip(None, "link set lo up");
            let node = Node { container: new_netns(), directory: tempfile::tempdir().unwrap() };
            std::fs::create_dir(node.path("bin")).unwrap();
            test(&node);
        })
        .unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Installs a shell script as a plugin.
    pub fn script(&self, name: &str, body: &str) {
        use std::os::unix::fs::PermissionsExt;
        let file = self.path("bin").join(name);
        let directory = self.directory.path().display();
        std::fs::write(&file, format!("#!/bin/sh\ncd {directory}\n{body}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The multus configuration with these members besides the directories of the node. `DATA` stands for a
    /// directory of the test.
    pub fn conf(&self, members: &str) -> String {
        let directory = self.directory.path().display();
        format!(
            r#"{{"cniVersion":"1.1.0","name":"multus-cni-network","type":"multus","binDir":"{directory}/bin","cniDir":"{directory}/state","confDir":"{directory}/conf",{members}}}"#
        )
        .replace("DATA", &self.path("data").display().to_string())
    }

    pub fn command(&self, verb: &str, container: &str, netns: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_multus"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", reference_plugins())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn start(&self, verb: &str, conf: &str) -> Child {
        use std::io::Write;
        let mut child = self.command(verb, "c0ffee", &path_of(&self.container)).spawn().unwrap();
        child.stdin.take().unwrap().write_all(conf.as_bytes()).unwrap();
        child
    }

    pub fn call(&self, verb: &str, conf: &str) -> Outcome {
        finish(self.start(verb, conf).wait_with_output().unwrap())
    }

    pub fn call_for(&self, verb: &str, container: &str, netns: &Path, conf: &str) -> Outcome {
        call(&mut self.command(verb, container, netns), conf)
    }

    pub fn add(&self, conf: &str) -> Value {
        let outcome = self.call("ADD", conf);
        assert!(outcome.ok, "{}", outcome.stdout);
        outcome.json()
    }

    pub fn del(&self, conf: &str) {
        let outcome = self.call("DEL", conf);
        assert!(outcome.ok, "{}", outcome.stdout);
    }

    /// The files below `name`, leases of host-local's bookkeeping left out.
    pub fn files(&self, name: &str) -> Vec<String> {
        fn walk(directory: &Path, files: &mut Vec<String>) {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                let name = entry.file_name().to_string_lossy().into_owned();
                if path.is_dir() {
                    walk(&path, files);
                } else if name != "lock" && !name.starts_with("last_reserved_ip") {
                    files.push(name);
                }
            }
        }
        let mut files = Vec::new();
        walk(&self.path(name), &mut files);
        files.sort();
        files
    }

    pub fn links(&self) -> String {
        ip(Some(&self.container), "-o addr show")
    }

    /// Nothing of the sandbox is left: no interface, no lease, no state.
    pub fn assert_clean(&self) {
        let links = self.links();
        assert!(!links.contains("eth0") && !links.contains("net1"), "{links}");
        assert_eq!(self.files("data"), [""; 0]);
        assert_eq!(self.files("state"), [""; 0]);
    }
}

/// Runs a command of [`Node::command`] with `conf` as its input.
pub fn call(command: &mut Command, conf: &str) -> Outcome {
    use std::io::Write;
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(conf.as_bytes()).unwrap();
    finish(child.wait_with_output().unwrap())
}

fn finish(output: Output) -> Outcome {
    Outcome { ok: output.status.success(), stdout: String::from_utf8(output.stdout).unwrap() }
}
