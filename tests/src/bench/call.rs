//! One call of a program, and what it costs.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::ptrace::{self, Options};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// How a program is started, always in the same way.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// The program.
    pub(super) program: PathBuf,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
    /// All of its environment.
    pub(super) environment: Vec<(&'static str, OsString)>,
    /// Its standard input.
    pub(super) stdin: Vec<u8>,
}

/// What one call cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// From before the start until the end is known.
    pub(super) wall: Duration,
    /// User and system time of the program and of those it started and waited for.
    pub(super) cpu: Duration,
}

impl Call {
    /// A call of `program`.
    pub(super) fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), environment: Vec::new(), stdin: Vec::new() }
    }

    /// Runs it and says what it cost.
    ///
    /// # Errors
    /// It cannot be started, or fails.
    pub(super) fn measure(&self) -> Result<Cost> {
        let before = children_cpu()?;
        let start = Instant::now();
        let output = feed(self.command(&self.program).stdout(Stdio::piped()).spawn(), &self.stdin)
            .and_then(|child| Ok(child.wait_with_output()?));
        let wall = start.elapsed();
        let cpu = children_cpu()?.saturating_sub(before);
        self.succeeded(&output.with_context(|| self.describe())?)?;
        Ok(Cost { wall, cpu })
    }

    /// Runs it under strace and counts its system calls, with all its threads but without the programs it starts.
    ///
    /// # Errors
    /// strace is missing, or the program fails.
    pub(super) fn system_calls(&self) -> Result<u64> {
        let mut counts = tempfile::NamedTempFile::new()?;
        let mut traced = self.command(Path::new("strace"));
        traced
            .args(["-f", "-b", "execve", "-c", "-o"])
            .arg(counts.path())
            .arg(&self.program)
            .args(&self.arguments);
        let child = feed(traced.stdout(Stdio::piped()).spawn(), &self.stdin).context("run strace")?;
        self.succeeded(&child.wait_with_output()?)?;
        let mut summary = String::new();
        counts.read_to_string(&mut summary)?;
        total(&summary).with_context(|| format!("strace's summary has no total: {summary}"))
    }

    /// Runs it and reads its peak resident memory in bytes: its own, without that of programs it starts. It must read
    /// its standard input to the end.
    ///
    /// # Errors
    /// It cannot be traced, or fails.
    pub(super) fn peak_memory(&self) -> Result<u64> {
        // The resource usage of an ended child would be of no use: it starts from the memory of the process that
        // forked it, and includes the child's own children.
        let mut child =
            self.command(&self.program).stdout(Stdio::null()).spawn().with_context(|| self.describe())?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT).context("trace the program")?;
        child.stdin.take().context("no pipe")?.write_all(&self.stdin)?;
        let mut peak = None;
        loop {
            match waitpid(pid, None)? {
                WaitStatus::PtraceEvent(..) => {
                    peak = high_water(pid)?;
                    ptrace::cont(pid, None)?;
                }
                WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal)?,
                WaitStatus::Exited(_, 0) => {
                    return peak.with_context(|| format!("no peak of {}", self.describe()));
                }
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => bail!("{} failed", self.describe()),
                _ => {}
            }
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if program == self.program {
            command.args(&self.arguments);
        }
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stderr(Stdio::null());
        command
    }

    fn succeeded(&self, output: &Output) -> Result<()> {
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{}: {}: {}", self.describe(), output.status, text.trim());
        Ok(())
    }

    fn describe(&self) -> String {
        let verb = self.environment.iter().find(|(name, _)| *name == "CNI_COMMAND");
        let verb = verb.map(|(_, verb)| verb.to_string_lossy().into_owned());
        let words = verb.into_iter().chain(self.arguments.iter().cloned());
        std::iter::once(self.program.display().to_string()).chain(words).collect::<Vec<_>>().join(" ")
    }
}

fn feed(child: std::io::Result<Child>, stdin: &[u8]) -> Result<Child> {
    let mut child = child?;
    let mut pipe = child.stdin.take().context("no pipe")?;
    match pipe.write_all(stdin) {
        // A program that does not want its input is free to end.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    Ok(child)
}

fn children_cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(Duration::from_micros(u64::try_from(microseconds)?))
}

/// `VmHWM` of a process, in bytes.
fn high_water(pid: Pid) -> Result<Option<u64>> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kibibytes.map(|kibibytes| kibibytes * 1024))
}

/// The number of calls in the last line of what `strace -c` writes.
fn total(summary: &str) -> Option<u64> {
    let words: Vec<&str> = summary.lines().last()?.split_whitespace().collect();
    match *words.as_slice() {
        [_, _, _, calls, .., "total"] => calls.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_with_and_without_errors() {
        let rule = "------ ----------- ----------- --------- --------- ------------------\n";
        assert_eq!(
            total(&format!("{rule}100.00    0.010496           9      1163        36 total\n")),
            Some(1163)
        );
        assert_eq!(
            total(&format!("{rule}100.00    0.010496           9        17           total\n")),
            Some(17)
        );
        assert_eq!(total(rule), None);
        assert_eq!(total(""), None);
    }

    #[test]
    fn a_call_costs_what_the_program_takes() {
        let sleep = Call { arguments: vec!["0.05".to_owned()], ..Call::new("/bin/sleep") };
        assert!(sleep.measure().unwrap().wall >= Duration::from_millis(50));
        assert!(Call::new("/bin/false").measure().is_err());
    }

    #[test]
    fn the_peak_is_that_of_the_program_alone() {
        // 16 MiB in a child of cat's shell must not count.
        let script = "head -c 16777216 /dev/zero | tail | wc -c >/dev/null; cat >/dev/null";
        let shell = Call { arguments: vec!["-c".to_owned(), script.to_owned()], ..Call::new("/bin/sh") };
        let peak = shell.peak_memory().unwrap();
        assert!((100_000..10_000_000).contains(&peak), "{peak}");
        let wrong =
            Call { arguments: vec!["-c".to_owned(), "cat; exit 3".to_owned()], ..Call::new("/bin/sh") };
        assert!(wrong.peak_memory().is_err());
    }
}
