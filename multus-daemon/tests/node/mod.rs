//! A node of the test's own: directories, delegates that are shell scripts, a daemon, and a client of its socket.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use host::Netns;
use serde_json::{Value, json};

/// Nothing here takes that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the delegates print.
pub const RESULT: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"x","sandbox":"/n"}],"ips":[{"interface":0,"address":"10.0.0.2/24"}]}"#;

pub struct Node {
    pub directory: tempfile::TempDir,
    pub container: Netns,
}

pub struct Daemon {
    pub child: Child,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    pub fn terminate(&self) {
        let status = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    pub fn wait(&mut self) -> bool {
        self.child.wait().unwrap().success()
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Node {
    /// A node with the delegates `main` and `second`; the latter runs `second` first.
    pub fn new(second: &str) -> Self {
        let make = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            Netns::current().unwrap()
        };
        let container = std::thread::spawn(make).join().unwrap();
        let node = Node { directory: tempfile::tempdir().unwrap(), container };
        for name in ["bin", "run", "state", "netns"] {
            std::fs::create_dir(node.path(name)).unwrap();
        }
        let log =
            r#"echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $WHO" >>calls; cat >"input-$CNI_COMMAND""#;
        let answer = format!("[ $CNI_COMMAND = ADD ] && echo '{RESULT}'; exit 0");
        node.script("main", &format!("{log}\n{answer}"));
        node.script("second", &format!("{log}\n{second}\n{answer}"));
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A plugin that is a shell script, in the node's directory.
    pub fn script(&self, name: &str, body: &str) {
        let file = self.path("bin").join(name);
        std::fs::write(&file, format!("#!/bin/sh\ncd {}\n{body}\n", self.directory.path().display()))
            .unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Starts a daemon whose configuration has `members` besides the directories, and waits until it serves.
    pub fn daemon(&self, members: &Value) -> Daemon {
        let daemon = self.start(members);
        self.until("the daemon serves", || {
            self.ask("GET", "/readyz", &Value::Null).is_some_and(|a| a.0 == 200)
        });
        daemon
    }

    pub fn start(&self, members: &Value) -> Daemon {
        let mut conf = json!({
            "socketDir": self.path("run"), "cniDir": self.path("state"), "binDir": self.path("bin"),
            "multusConfigFile": self.path("shim.conf"), "cniConfigDir": self.path("net.d"),
            "logLevel": "debug", "logToStderr": true,
            "delegates": [
                {"cniVersion": "1.0.0", "name": "main", "type": "main"},
                {"cniVersion": "1.0.0", "name": "second", "type": "second"},
            ],
        });
        conf.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        std::fs::write(self.path("daemon.json"), conf.to_string()).unwrap();
        std::fs::write(
            self.path("shim.conf"),
            r#"{"cniVersion":"1.0.0","name":"multus-cni-network","type":"multus-shim"}"#,
        )
        .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_multus-daemon"))
            .arg("-config")
            .arg(self.path("daemon.json"))
            .env_clear()
            .env("MULTUS_NODE_NAME", "n")
            .env("WHO", "daemon")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Daemon { child }
    }

    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "not in time: {what}; {:?}", self.calls());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn netns(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.container.as_fd().as_raw_fd()).into()
    }

    /// The body of a call of `container`.
    pub fn call(&self, command: &str, container: &str) -> Value {
        self.call_in(command, container, &self.netns())
    }

    pub fn call_in(&self, command: &str, container: &str, netns: &Path) -> Value {
        let config = r#"{"cniVersion":"1.0.0","name":"multus-cni-network","type":"multus-shim"}"#;
        json!({
            "env": {
                "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": "eth0",
                "CNI_PATH": "/nonexistent", "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p",
                "PATH": std::env::var("PATH").unwrap(), "WHO": "runtime",
            },
            "config": STANDARD.encode(config),
        })
    }

    /// Sends a request and does not wait for the answer.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> Option<UnixStream> {
        let mut stream = UnixStream::connect(self.path("run/multus.sock")).ok()?;
        let body = body.to_string();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: dummy\r\nContent-Length: {}\r\n", body.len());
        stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes()).ok()?;
        Some(stream)
    }

    /// Status and body of the answer; `None` when there is none.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Option<(u16, String)> {
        read(self.send(method, path, body)?)
    }

    /// GC with the attachments that are valid, as JSON.
    pub fn gc(&self, valid: &str) -> (u16, String) {
        let config = format!(r#"{{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":{valid}}}"#);
        let call = json!({"env": {"CNI_COMMAND": "GC"}, "config": STANDARD.encode(config)});
        self.ask("POST", "/cni", &call).unwrap()
    }

    pub fn cni(&self, command: &str, container: &str) -> Option<(u16, String)> {
        self.ask("POST", "/cni", &self.call(command, container))
    }

    /// What the delegates were called with: verb, container, interface, and whose environment they had.
    pub fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What the last delegate of this verb had on standard input.
    pub fn input(&self, command: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(&format!("input-{command}"))).unwrap()).unwrap()
    }

    pub fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|line| line.starts_with(call)).count()
    }

    /// The files of the state directory, those of sub-directories included.
    pub fn state(&self) -> Vec<String> {
        let mut files = Vec::new();
        for directory in ["state", "state/results", "state/pending"] {
            for entry in std::fs::read_dir(self.path(directory)).into_iter().flatten().flatten() {
                if entry.path().is_file() {
                    files.push(entry.file_name().into_string().unwrap());
                }
            }
        }
        files.sort();
        files
    }
}

pub fn read(mut stream: UnixStream) -> Option<(u16, String)> {
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
