//! Runs of the program that end at one of its system calls.
//!
//! All threads of the program and all programs that it starts are followed, and what they call is counted together. A
//! call is a point unless it is known to change nothing: one that nobody thought of is a point, not a gap. Registers are
//! read as x86-64 has them, which is what the lab's guests are.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::machine::{Outcome, Pod, command};

/// Calls that leave the machine as it is: they read, wait, or concern the memory, the descriptors, the signals and the
/// threads of the process alone. `setns` and `unshare` are a thread's own, too; what it does afterwards counts.
const HARMLESS: &[i64] = &[
    // Reading and looking.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_sched_getaffinity,
    libc::SYS_prlimit64,
    // Waiting.
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_futex,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_setsockopt,
    // Memory, signals, threads.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_arch_prctl,
    libc::SYS_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_setns,
    libc::SYS_unshare,
];

/// How a traced run ended.
pub(crate) struct Run {
    /// As of any call; `killed` tells whether the point was reached.
    pub(crate) outcome: Outcome,
    /// The call at the point: whose and which, for messages.
    pub(crate) point: String,
}

/// Runs the program and kills it on entering the `n`-th call that may change something, counted from 1: all calls
/// before it were made, this one was not. A program that it started is not killed with it, as in life; the run is
/// over when that has ended, too.
#[expect(clippy::zombie_processes, reason = "the trace waits for it, and for all that it started")]
pub(crate) fn run_until(verb: &str, pod: &Pod, conf: &Value, n: usize) -> Run {
    let [stdout, stderr] = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
    let stream = |file: &tempfile::NamedTempFile| Stdio::from(File::create(file.path()).unwrap());
    let mut child = command(verb, pod, &pod.netns(), &[])
        .stdin(Stdio::piped())
        .stdout(stream(&stdout))
        .stderr(stream(&stderr))
        .spawn()
        .unwrap();
    let program = Pid::from_raw(i32::try_from(child.id()).unwrap());
    // It waits for its standard input before it does anything.
    let followed = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
    ptrace::seize(program, followed | Options::PTRACE_O_TRACESYSGOOD).unwrap();
    ptrace::interrupt(program).unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();

    let mut trace = Trace { program, left: n, point: None, end: None };
    // Children of this thread alone: other tests have theirs.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    loop {
        match waitpid(None, Some(flags)) {
            Ok(status) => trace.follow(status),
            Err(Errno::ECHILD) => break,
            Err(errno) => panic!("waiting for the program: {errno}"),
        }
    }
    let read = |file: &tempfile::NamedTempFile| std::fs::read(file.path()).unwrap();
    let outcome = Outcome::new(trace.end.unwrap(), &read(&stdout), &read(&stderr));
    Run { outcome, point: trace.point.unwrap_or_default() }
}

struct Trace {
    program: Pid,
    /// Calls up to the point.
    left: usize,
    point: Option<String>,
    /// Exit code or signal of the program.
    end: Option<Result<i32, Signal>>,
}

impl Trace {
    /// Looks at one stop, and lets the thread go on.
    fn follow(&mut self, status: WaitStatus) {
        let (thread, signal) = match status {
            WaitStatus::Exited(pid, code) => {
                if pid == self.program {
                    self.end = Some(Ok(code));
                }
                return;
            }
            WaitStatus::Signaled(pid, signal, _) => {
                if pid == self.program {
                    self.end = Some(Err(signal));
                }
                return;
            }
            WaitStatus::PtraceSyscall(thread) => {
                if self.point.is_none() {
                    self.count(thread);
                }
                (thread, None)
            }
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            other => (other.pid().unwrap(), None),
        };
        let go_on = if self.point.is_some() { ptrace::cont } else { ptrace::syscall };
        match go_on(thread, signal) {
            // A thread of the program that was just killed.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => panic!("letting thread {thread} go on: {errno}"),
        }
    }

    fn count(&mut self, thread: Pid) {
        let Some(call) = entered(thread) else { return };
        self.left -= 1;
        if self.left == 0 {
            self.point = Some(format!("system call {call} of {}", name_of(thread)));
            kill(self.program, Signal::SIGKILL).unwrap();
        }
    }
}

/// The number of the call that a thread is about to make, if that may change something.
fn entered(thread: Pid) -> Option<i64> {
    let registers = ptrace::getregs(thread).ok()?;
    // On entry the kernel has put this into the register of the result.
    let is_entry = registers.rax.cast_signed() == -i64::from(libc::ENOSYS);
    let call = registers.orig_rax.cast_signed();
    let makes_file = |flags: u64| flags.cast_signed() & i64::from(libc::O_CREAT | libc::O_TRUNC) != 0;
    let is_harmless = match call {
        libc::SYS_open => !makes_file(registers.rsi),
        libc::SYS_openat => !makes_file(registers.rdx),
        _ => HARMLESS.contains(&call),
    };
    (is_entry && !is_harmless).then_some(call)
}

fn name_of(thread: Pid) -> String {
    let program = std::fs::read_link(Path::new("/proc").join(thread.to_string()).join("exe"));
    let program = program.unwrap_or_default();
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
