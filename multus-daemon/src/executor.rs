//! How the daemon starts delegates: as the runtime would have, and so that they can be ended.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use cni::exec::{Executor, communicate, start};
use host::process::Group;

use crate::cancel::Cancel;

/// Marks delegates, with the daemon's process ID as value: the next daemon knows by it whose parent was killed.
pub const MARK: &str = "MULTUS_DAEMON_PID";

/// Starts delegates with the environment of the call they serve, below the host's root where the daemon has one of
/// its own, each in its own process group.
#[derive(Debug, Clone)]
pub struct Supervisor {
    /// The client's environment.
    pub environment: BTreeMap<String, String>,
    /// `chrootDir`.
    pub root: Option<PathBuf>,
    /// Gives the call up.
    pub cancel: Cancel,
}

impl Supervisor {
    /// The command anew: nothing of the daemon's own environment shines through.
    fn rebuilt(&self, command: &Command) -> Command {
        let mut rebuilt = Command::new(command.get_program());
        let own = |(name, _): &(&String, &String)| !name.starts_with("CNI_");
        rebuilt
            .args(command.get_args())
            .env_clear()
            .envs(self.environment.iter().filter(own))
            .envs(command.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))))
            .env(MARK, std::process::id().to_string())
            .process_group(0);
        rebuilt
    }
}

impl Executor for Supervisor {
    fn output(&self, command: Command, stdin: &[u8]) -> io::Result<Output> {
        // What was attached is still taken away again.
        let attaches = command
            .get_envs()
            .any(|(name, value)| name == "CNI_COMMAND" && value.is_some_and(|v| v == "ADD"));
        if attaches && self.cancel.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the runtime stopped waiting"));
        }
        let mut command = self.rebuilt(&command);
        let mut run = || {
            let child = start(&mut command)?;
            let _running = attaches.then(|| self.cancel.runs(Group::led_by(child.id())));
            communicate(child, stdin)
        };
        match &self.root {
            Some(root) => host::chroot::within(root, run)?,
            None => run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn supervisor(root: Option<PathBuf>) -> Supervisor {
        let environment = [("PATH", "/usr/bin:/bin"), ("A", "b=c"), ("CNI_ARGS", "stale")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        Supervisor { environment, root, cancel: Cancel::default() }
    }

    fn shell(script: &str, verb: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("CNI_COMMAND", verb).env("CNI_ARGS", "fresh");
        command
    }

    #[test]
    fn delegates_have_the_environment_of_the_call() {
        let output = supervisor(None).output(shell("env; cat", "ADD"), b"input").unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        for part in ["A=b=c\n", "CNI_ARGS=fresh\n", "CNI_COMMAND=ADD\n", MARK] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("CARGO") && !text.contains("stale") && text.ends_with("input"), "{text}");
    }

    #[test]
    fn delegates_run_below_the_host_s_root() {
        let root = tempfile::tempdir().unwrap();
        let error = supervisor(Some(root.path().into())).output(shell("true", "ADD"), b"").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "there is no shell below an empty root: {error}");
        let output = supervisor(Some("/".into())).output(shell("pwd", "ADD"), b"").unwrap();
        assert_eq!(output.stdout, b"/\n");
    }

    #[test]
    fn add_is_given_up_and_del_is_not() {
        let supervisor = supervisor(None);
        let cancel = supervisor.cancel.clone();
        let started = Instant::now();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            cancel.cancel();
        });
        // A delegate that does not hear SIGTERM, and its child, which has the pipes too.
        let output = supervisor.output(shell("trap '' TERM; sleep 600", "ADD"), b"").unwrap();
        assert!(!output.status.success() && started.elapsed() < Duration::from_secs(60));
        other.join().unwrap();
        assert!(supervisor.output(shell("true", "ADD"), b"").is_err());
        assert!(supervisor.output(shell("true", "DEL"), b"").unwrap().status.success());
    }
}
