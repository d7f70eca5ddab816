//! How the daemon runs delegates: as the runtime would have, and so that they can be ended.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use cni::exec::Executor;

use crate::cancel::Cancel;
use crate::launcher::Launcher;
use crate::starter::Order;

/// Marks delegates, with the daemon's process ID as value: the next daemon knows by it whose parent was killed.
pub const MARK: &str = "MULTUS_DAEMON_PID";

/// Runs delegates with the environment of the call they serve, each in its own process group.
#[derive(Debug, Clone)]
pub struct Supervisor {
    /// The client's environment.
    pub environment: BTreeMap<String, String>,
    /// Starts them.
    pub launcher: Arc<Launcher>,
    /// How long one may take.
    pub limit: Duration,
    /// Gives the call up.
    pub cancel: Cancel,
}

impl Supervisor {
    /// The command anew: nothing of the daemon's own environment shines through.
    fn order(&self, command: &Command, stdin: &[u8]) -> io::Result<Order> {
        let own = |(name, _): &(&String, &String)| !name.starts_with("CNI_");
        let mut environment: BTreeMap<String, String> =
            self.environment.iter().filter(own).map(|(name, value)| (name.clone(), value.clone())).collect();
        for (name, value) in command.get_envs() {
            let Some(value) = value else { continue };
            let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
            environment.insert(text(name), text(value));
        }
        environment.insert(MARK.to_owned(), std::process::id().to_string());
        let input = String::from_utf8(stdin.to_vec())
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("configuration: {e}")))?;
        Ok(Order { program: command.get_program().into(), environment, input, ..Order::default() })
    }
}

impl Executor for Supervisor {
    fn find(&self, kind: &str, path: &[PathBuf]) -> Result<PathBuf, cni::Error> {
        self.launcher.find(kind, path)
    }

    fn output(&self, command: Command, stdin: &[u8]) -> io::Result<Output> {
        // What was attached is still taken away again.
        let attaches = command
            .get_envs()
            .any(|(name, value)| name == "CNI_COMMAND" && value.is_some_and(|v| v == "ADD"));
        if attaches && self.cancel.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the runtime stopped waiting"));
        }
        let order = self.order(&command, stdin)?;
        self.launcher.run(order, self.limit, |group| attaches.then(|| self.cancel.runs(group)))
    }
}
