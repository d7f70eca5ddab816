//! Containers: processes in the pod's network namespace with mounts of their own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::process::{ChildStdin, Command};
use tokio::sync::watch;
use tracing::debug;

use super::log::Log;
use super::{Paths, Sandbox, write_json};

/// What runs in a container.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ContainerSpec {
    /// Name of the container in its pod.
    pub name: String,
    /// How often the container was started before; names the log.
    pub attempt: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Device nodes: host path, path in the container.
    pub devices: Vec<(PathBuf, PathBuf)>,
    /// Bind mounts: host path, path in the container, read-only.
    pub mounts: Vec<(PathBuf, PathBuf, bool)>,
    /// Where a file system of huge pages is mounted.
    pub hugepages: Vec<PathBuf>,
}

/// The specification as the helper reads it.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Bundle {
    /// Network namespace to enter.
    pub(super) netns: PathBuf,
    /// What is written once the process runs: its process ID in the node's PID namespace.
    pub(super) pid_file: PathBuf,
    /// The rest.
    pub(super) spec: ContainerSpec,
}

/// A container that was started.
#[derive(Debug)]
pub struct Container {
    name: String,
    /// Closing it is what ends the supervising process, and with it everything in the container.
    lifeline: Mutex<Option<ChildStdin>>,
    bundle: PathBuf,
    exit: watch::Receiver<Option<i32>>,
}

impl Container {
    /// Starts the process of `spec` in the namespace of `sandbox`.
    ///
    /// # Errors
    /// The helper cannot be started or the log not be made.
    pub(super) fn start(paths: &Paths, sandbox: &Sandbox, spec: ContainerSpec) -> Result<Container> {
        let name = spec.name.clone();
        let folder = format!("{}-{name}-{}", sandbox.id, spec.attempt);
        let folder = paths.state_dir.join("containers").join(folder);
        let pod = &sandbox.pod;
        let log = paths
            .log_dir
            .join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
            .join(&name)
            .join(format!("{}.log", spec.attempt));
        let log = Log::create(&log).with_context(|| format!("create {}", log.display()))?;
        let bundle = folder.join("bundle.json");
        let pid_file = folder.join("pid");
        write_json(&bundle, &Bundle { netns: sandbox.netns.clone(), pid_file, spec })?;

        let mut child = Command::new(&paths.helper)
            .arg("sim-container")
            .arg(&bundle)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", paths.helper.display()))?;
        let lifeline = Mutex::new(child.stdin.take());
        let (sender, exit) = watch::channel(None);
        let stdout = child.stdout.take().context("stdout of the container")?;
        let stderr = child.stderr.take().context("stderr of the container")?;
        let output = tokio::spawn(async move {
            tokio::join!(log.clone().copy("stdout", stdout), log.copy("stderr", stderr));
        });
        tokio::spawn(async move {
            let status = child.wait().await;
            // The exit is made known only when the log is complete.
            let _ = output.await;
            sender.send_replace(Some(status.ok().and_then(|status| status.code()).unwrap_or(128 + 9)));
        });
        Ok(Container { name, lifeline, bundle: folder, exit })
    }

    /// Name of the container in its pod.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its exit code, if it has ended: 128 and the signal's number when a signal ended it.
    pub fn exit_code(&self) -> Option<i32> {
        *self.exit.borrow()
    }

    /// Waits for its end; the exit code.
    pub async fn wait(&self) -> i32 {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(code) => code.unwrap_or_default(),
            Err(_) => 128 + 9,
        }
    }

    /// Ends it: SIGTERM to its first process, SIGKILL to all after `grace`. It is gone when this returns.
    pub(super) async fn stop(&self, grace: Duration) {
        if self.exit_code().is_none()
            && !grace.is_zero()
            && let Err(error) = self.signal(Signal::SIGTERM)
        {
            debug!("SIGTERM to {}: {error:#}", self.name);
        }
        if tokio::time::timeout(grace, self.wait()).await.is_err() {
            self.cut();
            self.wait().await;
        }
        let _ = std::fs::remove_dir_all(&self.bundle);
    }

    fn cut(&self) {
        drop(self.lifeline.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = std::fs::read_to_string(self.bundle.join("pid"))?;
        let pid = pid.trim().parse::<i32>().map_err(|_| anyhow!("pid file holds {pid:?}"))?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }
}
