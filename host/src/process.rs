//! Other processes: finding and ending them.

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How often is looked whether a process has ended.
const PAUSE: Duration = Duration::from_millis(20);

/// A process group, by the process ID of its leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group(u32);

impl Group {
    /// The group that process `pid` leads.
    #[must_use]
    pub fn led_by(pid: u32) -> Self {
        Group(pid)
    }

    /// Asks every process of the group to end (SIGTERM).
    pub fn terminate(self) {
        self.signal(Signal::SIGTERM);
    }

    /// Ends every process of the group (SIGKILL).
    pub fn kill(self) {
        self.signal(Signal::SIGKILL);
    }

    /// Whether the group has a process.
    #[must_use]
    pub fn is_alive(self) -> bool {
        self.pid().is_some_and(|pid| killpg(pid, None) != Err(Errno::ESRCH))
    }

    /// Waits until the group has no process; whether that came to pass within `limit`.
    #[must_use]
    pub fn ended_within(self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        true
    }

    fn signal(self, signal: Signal) {
        // A group that has ended has what it was to get.
        let _ = self.pid().map(|pid| killpg(pid, signal));
    }

    /// Group 0 would be our own, and 1 everybody's.
    fn pid(self) -> Option<Pid> {
        i32::try_from(self.0).ok().filter(|pid| *pid > 1).map(Pid::from_raw)
    }
}

/// The processes that were started with variable `name`, with its value. Those that end meanwhile are left out.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn with_variable(name: &str) -> io::Result<Vec<(u32, String)>> {
    let prefix = format!("{name}=");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
        let value = environment.split(|b| *b == 0).find_map(|pair| pair.strip_prefix(prefix.as_bytes()));
        if let Some(value) = value {
            found.push((pid, String::from_utf8_lossy(value).into_owned()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_group_is_found_by_its_variable_and_ends_whole() {
        let value = format!("test-{}", std::process::id());
        let mut leader = Command::new("/bin/sh")
            .args(["-c", "sleep 600 & sleep 600"])
            .env("PODRAIL_TEST_GROUP", &value)
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Group::led_by(leader.id());
        let deadline = Instant::now() + Duration::from_secs(20);
        let count = || {
            with_variable("PODRAIL_TEST_GROUP").unwrap().iter().filter(|(_, found)| *found == value).count()
        };
        while count() < 3 {
            assert!(Instant::now() < deadline);
        }
        assert!(group.is_alive() && !group.ended_within(Duration::from_millis(50)));
        group.terminate();
        leader.wait().unwrap();
        assert!(group.ended_within(Duration::from_secs(20)));
        assert_eq!(count(), 0);
        group.kill();
    }

    #[test]
    fn nobody_s_group_is_not_everybody_s() {
        for pid in [0, 1, u32::MAX] {
            assert!(!Group::led_by(pid).is_alive());
        }
    }
}
