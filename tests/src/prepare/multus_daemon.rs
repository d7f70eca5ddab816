//! The Multus daemon as a process of the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::network::DAEMON_CONF;

const LOG: &str = "/var/log/podrail/multus-daemon.log";

/// How long it may take to end, with calls that it is working on.
const ENDS: Duration = Duration::from_secs(40);

/// A running Multus daemon; it ends with this value.
#[derive(Debug)]
pub struct MultusDaemon {
    program: PathBuf,
    /// The node's name in the cluster.
    node: String,
    child: Child,
}

impl MultusDaemon {
    /// Starts the daemon of the folder `programs` for the node of that name.
    ///
    /// # Errors
    /// There is no such program, or it cannot be started.
    pub(super) fn start(programs: &Path, node: &str) -> Result<MultusDaemon> {
        let program = programs.join("multus-daemon");
        Ok(MultusDaemon { child: spawn(&program, node)?, program, node: node.to_owned() })
    }

    /// Where it logs.
    pub fn log(&self) -> &'static Path {
        Path::new(LOG)
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts it anew after it has ended.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(&self.program, &self.node)?;
        Ok(())
    }

    /// Starts another one beside it; this one ends when the other one has taken over, as pods do in a rolling upgrade.
    ///
    /// # Errors
    /// It cannot be started, or the old one does not end.
    pub fn upgrade(&mut self, together: Duration) -> Result<()> {
        let next = spawn(&self.program, &self.node)?;
        std::thread::sleep(together);
        self.end(Signal::SIGTERM)?;
        self.child = next;
        Ok(())
    }

    /// Ends it with `signal` and waits.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal).context("signal multus-daemon")?;
        let deadline = Instant::now() + ENDS;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("multus-daemon does not end on {signal}; see {LOG}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for MultusDaemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.end(Signal::SIGTERM).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn spawn(program: &Path, node: &str) -> Result<Child> {
    let folder = Path::new(LOG).parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let log =
        fs::OpenOptions::new().create(true).append(true).open(LOG).with_context(|| format!("open {LOG}"))?;
    Command::new(program)
        .arg("-config")
        .arg(DAEMON_CONF)
        .env("MULTUS_NODE_NAME", node)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}
