//! The terminal of whoever started the program, kept apart from what CNI plugins print.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Where standard error goes: plugins of the simulated runtime inherit it, as they inherit containerd's.
pub const LOG: &str = "/var/log/podrail/cni.log";

/// The standard error that the program was started with.
#[derive(Debug)]
pub struct Terminal(File);

impl Terminal {
    /// Lets standard error go to [`LOG`] from now on.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub fn keep() -> Result<Terminal> {
        let terminal = File::from(std::io::stderr().as_fd().try_clone_to_owned()?);
        let folder = Path::new(LOG).parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let log =
            OpenOptions::new().create(true).append(true).open(LOG).with_context(|| format!("open {LOG}"))?;
        nix::unistd::dup2_stderr(&log).context("redirect standard error")?;
        Ok(Terminal(terminal))
    }

    /// Another handle of it.
    ///
    /// # Errors
    /// The process has too many open files.
    pub fn writer(&self) -> Result<File> {
        Ok(self.0.try_clone()?)
    }

    /// Tells an error.
    pub fn complain(&mut self, error: &anyhow::Error) {
        // There is nobody left to tell if this fails.
        let _ = writeln!(self.0, "podrail-e2e: {error:#}");
    }
}
