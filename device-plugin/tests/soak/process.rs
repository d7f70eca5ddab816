//! What a process uses, as `/proc` has it.

use std::fmt;
use std::fs;
use std::path::PathBuf;

/// Of one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) kibibytes: u64,
    pub(crate) files: usize,
    pub(crate) threads: usize,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB, {} files, {} threads", self.kibibytes, self.files, self.threads)
    }
}

fn proc(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}")).join(name)
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

pub(crate) fn usage(pid: u32) -> Usage {
    Usage {
        kibibytes: field(&fs::read_to_string(proc(pid, "status")).unwrap(), "VmRSS:"),
        files: fs::read_dir(proc(pid, "fd")).unwrap().count(),
        threads: fs::read_dir(proc(pid, "task")).unwrap().count(),
    }
}

/// How often its threads have been given a processor.
pub(crate) fn wake_ups(pid: u32) -> u64 {
    let threads = fs::read_dir(proc(pid, "task")).unwrap().flatten();
    let of_thread = |status: String| {
        field(&status, "voluntary_ctxt_switches:") + field(&status, "nonvoluntary_ctxt_switches:")
    };
    threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok()).map(of_thread).sum()
}
