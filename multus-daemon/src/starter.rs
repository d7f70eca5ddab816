//! The process that starts delegates for the daemon (`multus-daemon start-delegates`).
//!
//! A delegate may be many times as large as the daemon. Were it a child of the daemon, its memory and processor time
//! would be those of the daemon's container: a burst of new pods would have it killed. This process leaves the container's
//! accounting before it starts anything, which takes long enough (some milliseconds, for the kernel) not to be done for
//! each delegate. It reads [orders](Order) from standard input and tells on standard output what comes of them
//! ([`News`]), with one thread for all that is usual: pods wait for each that has to be made or woken. When the daemon has
//! gone it ends, once delegates have come to their end: their pipes stay whole.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;

use cni::exec::{self, PIPE_ROOM};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The largest message, in octets.
const MAX_MESSAGE: usize = 64 << 20;

/// How often is looked for the end of a delegate that has closed its output, which is the last but one that it does.
const LOOKS: u32 = 100;

/// A delegate to be started.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Order {
    /// What the news are to be called.
    pub id: u64,
    /// The program.
    pub program: PathBuf,
    /// Its whole environment.
    pub environment: BTreeMap<String, String>,
    /// Its standard input.
    pub input: String,
}

/// What came of the order `id`.
#[derive(Debug, Serialize, Deserialize)]
pub struct News {
    /// The order.
    pub id: u64,
    /// What happened.
    pub what: Happened,
}

/// What happened to a delegate.
#[derive(Debug, Serialize, Deserialize)]
pub enum Happened {
    /// It runs, and leads a process group by this ID.
    Started(u32),
    /// It has ended.
    Ended {
        /// As `wait(2)` has it.
        status: i32,
        /// What it printed.
        stdout: String,
        /// And what on standard error.
        stderr: String,
    },
    /// It could not be started, or its pipes broke.
    Failed {
        /// The number of the kernel's error, where it is one.
        code: Option<i32>,
        /// Its text.
        message: String,
    },
}

impl Happened {
    fn failed(error: &io::Error) -> Self {
        Happened::Failed { code: error.raw_os_error(), message: error.to_string() }
    }

    fn ended(done: io::Result<Output>) -> Self {
        match done {
            // What is no UTF-8 is no JSON either, and can only be shown.
            Ok(Output { status, stdout, stderr }) => Happened::Ended {
                status: status.into_raw(),
                stdout: String::from_utf8_lossy(&stdout).into_owned(),
                stderr: String::from_utf8_lossy(&stderr).into_owned(),
            },
            Err(error) => Happened::failed(&error),
        }
    }

    /// The output of a delegate that has ended, or why there is none.
    ///
    /// # Errors
    /// Why there is none.
    pub fn output(self) -> io::Result<Output> {
        match self {
            Happened::Ended { status, stdout, stderr } => Ok(Output {
                status: ExitStatus::from_raw(status),
                stdout: stdout.into_bytes(),
                stderr: stderr.into_bytes(),
            }),
            Happened::Failed { code: Some(code), .. } => Err(io::Error::from_raw_os_error(code)),
            Happened::Failed { code: None, message } => Err(io::Error::other(message)),
            Happened::Started(_) => Err(io::Error::other("it was started twice")),
        }
    }
}

/// Serves the daemon that started this process, with delegates below `host`, where that is another root.
///
/// # Errors
/// When the daemon cannot be talked to.
pub fn serve(host: Option<&Path>) -> io::Result<()> {
    let Some(host) = host else { return follow(io::stdin().lock(), io::stdout(), &Command::spawn) };
    if let Err(error) = host::cgroup::leave(host) {
        eprintln!("multus-daemon: delegates count as the daemon's memory and processor time: {error}");
    }
    let work = || follow(io::stdin().lock(), io::stdout(), &Command::spawn);
    host::chroot::within(host, work).unwrap_or_else(|error| {
        let why = format!("below {}: {error}", host.display());
        follow(io::stdin().lock(), io::stdout(), &|_| Err(io::Error::new(error.kind(), why.clone())))
    })
}

/// Starts what a command says.
type Start<'a> = &'a (dyn Fn(&mut Command) -> io::Result<Child> + Sync);

/// What tells the daemon of an order.
type Tell<'a> = &'a (dyn Fn(u64, Happened) + Sync);

fn follow(orders: impl Read + AsFd, news: impl Write + Send, start: Start<'_>) -> io::Result<()> {
    let news = Mutex::new(news);
    let tell = |id, what| {
        let mut news = news.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody listens when the daemon was killed; the delegate still comes to its end.
        let _ = send(&mut *news, &News { id, what });
    };
    std::thread::scope(|scope| {
        let mut orders = Stream::of(Some(orders));
        let mut running: Vec<Delegate> = Vec::new();
        while orders.file.is_some() || !running.is_empty() {
            let of_delegates =
                running.iter().flat_map(|delegate| [delegate.stdout.fd(), delegate.stderr.fd()]);
            let files: Vec<BorrowedFd<'_>> =
                std::iter::once(orders.fd()).chain(of_delegates).flatten().collect();
            let mut ready = host::poll::readable(&files)?.into_iter();
            orders.read(&mut ready);
            for delegate in &mut running {
                delegate.stdout.read(&mut ready);
                delegate.stderr.read(&mut ready);
            }
            running.extract_if(.., |d| !d.is_open()).for_each(|delegate| delegate.end(&tell, scope));
            while let Some(order) = orders.message()? {
                running.extend(Delegate::begin(order, start, &tell, scope));
            }
        }
        Ok(())
    })
}

/// A delegate that runs and has its input.
struct Delegate {
    id: u64,
    child: Child,
    stdout: Stream<ChildStdout>,
    stderr: Stream<ChildStderr>,
}

impl Delegate {
    /// Starts what is ordered; `None` where there is nothing (more) to be done about it here.
    fn begin<'s>(order: Order, start: Start<'s>, tell: Tell<'s>, scope: &'s Scope<'s, '_>) -> Option<Self> {
        // Its pipe may not have room for all of it.
        if order.input.len() > PIPE_ROOM {
            scope.spawn(move || perform(&order, start, tell));
            return None;
        }
        let mut command = order.command();
        let begun = start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))
            .and_then(|mut child| {
                tell(order.id, Happened::Started(child.id()));
                let fed = child.stdin.take().map(|mut pipe| exec::feed(&mut pipe, order.input.as_bytes()));
                fed.transpose().map(|_| child)
            });
        match begun {
            Ok(mut child) => {
                let (stdout, stderr) = (Stream::of(child.stdout.take()), Stream::of(child.stderr.take()));
                return Some(Delegate { id: order.id, child, stdout, stderr });
            }
            // It is being replaced; that is waited for.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                scope.spawn(move || perform(&order, start, tell));
            }
            Err(error) => tell(order.id, Happened::failed(&error)),
        }
        None
    }

    fn is_open(&self) -> bool {
        self.stdout.file.is_some() || self.stderr.file.is_some()
    }

    /// Tells of the end of a delegate that has closed its output.
    fn end<'s>(self, tell: Tell<'s>, scope: &'s Scope<'s, '_>) {
        let Delegate { id, mut child, stdout, stderr } = self;
        let output = move |status| Output { status, stdout: stdout.bytes, stderr: stderr.bytes };
        for _ in 0..LOOKS {
            match child.try_wait() {
                Ok(None) => std::thread::yield_now(),
                Ok(Some(status)) => return tell(id, Happened::ended(Ok(output(status)))),
                Err(error) => return tell(id, Happened::failed(&error)),
            }
        }
        scope.spawn(move || tell(id, Happened::ended(child.wait().map(output))));
    }
}

/// What comes out of a file, which is there until its end.
struct Stream<F> {
    file: Option<F>,
    bytes: Vec<u8>,
}

impl<F: Read + AsFd> Stream<F> {
    fn of(file: Option<F>) -> Self {
        Stream { file, bytes: Vec::new() }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Reads what is there, if the next of `ready`, which is that of this file, says that there is something.
    fn read(&mut self, ready: &mut impl Iterator<Item = bool>) {
        let Some(file) = &mut self.file else { return };
        if ready.next() != Some(true) {
            return;
        }
        let mut part = [0; 8192];
        match file.read(&mut part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(length @ 1..) => self.bytes.extend_from_slice(part.get(..length).unwrap_or_default()),
            // What it said up to here is what it said.
            Ok(_) | Err(_) => self.file = None,
        }
    }

    /// Takes the first message out of what came; `None` when it is not whole.
    fn message<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some((length, rest)) = self.bytes.split_first_chunk() else { return Ok(None) };
        let length = length_of(*length)?;
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(message)?;
        self.bytes.drain(..4 + length);
        Ok(Some(message))
    }
}

impl Order {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(&self.environment).process_group(0);
        command
    }
}

/// Does what is ordered from begin to end, with all the time that it takes.
fn perform(order: &Order, start: Start<'_>, tell: Tell<'_>) {
    let run = || {
        let child = exec::start_by(start, &mut order.command())?;
        tell(order.id, Happened::Started(child.id()));
        exec::communicate(child, order.input.as_bytes())
    };
    tell(order.id, Happened::ended(run()));
}

/// Sends a message: its length in four octets, then the message as JSON.
///
/// # Errors
/// When the other side has gone.
pub fn send(to: &mut (impl Write + ?Sized), message: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - 4).map_err(io::Error::other)?;
    bytes.splice(..4, length.to_be_bytes());
    to.write_all(&bytes)?;
    to.flush()
}

/// Receives a message; `None` when the other side has gone.
///
/// # Errors
/// What cannot be understood.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = length_of(length)?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

fn length_of(octets: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_be_bytes(octets)).map_err(io::Error::other)?;
    match length {
        0..=MAX_MESSAGE => Ok(length),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} octets"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows orders of programs with arguments in the place of their input's; what came of each, in order of their end.
    fn followed(orders: &[Order], start: Start<'_>) -> Vec<(u64, io::Result<Output>)> {
        let (reader, mut writer) = io::pipe().unwrap();
        let sent = orders.to_vec();
        let sender = std::thread::spawn(move || sent.iter().for_each(|o| send(&mut writer, o).unwrap()));
        let mut told = Vec::new();
        follow(reader, &mut told, start).unwrap();
        sender.join().unwrap();
        let (mut told, mut outputs) = (told.as_slice(), Vec::new());
        while let Some(News { id, what }) = receive(&mut told).unwrap() {
            if !matches!(what, Happened::Started(_)) {
                outputs.push((id, what.output()));
            }
        }
        outputs
    }

    fn order(id: u64, program: &str, input: impl Into<String>) -> Order {
        Order { id, program: program.into(), input: input.into(), ..Order::default() }
    }

    #[test]
    fn every_order_is_told_of() {
        let orders = [
            order(1, "/bin/cat", "x".repeat(200_000)),
            order(2, "/nonexistent", ""),
            order(3, "/bin/cat", "y"),
            order(4, "/bin/true", "unread"),
            order(5, "/bin/sh", "echo z; echo e >&2; exit 3"),
        ];
        let told: BTreeMap<_, _> = followed(&orders, &Command::spawn).into_iter().collect();
        let output = |id: u64| told[&id].as_ref().unwrap();
        assert_eq!(output(1).stdout.len(), 200_000);
        assert_eq!(told[&2].as_ref().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!((output(3).stdout.as_slice(), output(4).status.success()), (&b"y"[..], true));
        let Output { status, stdout, stderr } = output(5);
        assert_eq!(
            (status.code(), stdout.as_slice(), stderr.as_slice()),
            (Some(3), &b"z\n"[..], &b"e\n"[..])
        );
    }

    #[test]
    fn one_that_takes_long_holds_up_no_other() {
        // The first closes its output at once and goes on, the second keeps it open.
        let orders = [
            order(1, "/bin/sh", "exec >&- 2>&-; while [ -e $GATE ]; do sleep 0.01; done; exit 7"),
            order(2, "/bin/sh", "while [ -e $GATE ]; do sleep 0.01; done; echo done"),
            order(3, "/bin/sh", "sleep 0.1; rm $GATE; echo first"),
        ];
        let gate = tempfile::NamedTempFile::new().unwrap();
        let environment = BTreeMap::from([("GATE".to_owned(), gate.path().display().to_string())]);
        let orders = orders.map(|order| Order { environment: environment.clone(), ..order });
        let told: BTreeMap<_, _> = followed(&orders, &Command::spawn).into_iter().collect();
        assert_eq!(told[&1].as_ref().unwrap().status.code(), Some(7));
        assert_eq!(told[&2].as_ref().unwrap().stdout, b"done\n");
        let _ = gate.keep();
    }

    #[test]
    fn one_that_is_being_replaced_is_waited_for() {
        let tries = Mutex::new(0);
        let start = |command: &mut Command| {
            let mut tries = tries.lock().unwrap();
            *tries += 1;
            if *tries > 2 { command.spawn() } else { Err(io::ErrorKind::ExecutableFileBusy.into()) }
        };
        let told = followed(&[order(1, "/bin/cat", "x")], &start);
        assert_eq!((told.len(), told[0].1.as_ref().unwrap().stdout.as_slice()), (1, &b"x"[..]));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(receive::<Order>(&mut [].as_slice()).unwrap().is_none());
        for bytes in [&[0, 0, 0, 9, b'{'][..], &[0xff; 8], &[0, 0, 0, 1, b'{']] {
            assert!(receive::<Order>(&mut &*bytes).is_err(), "{bytes:?}");
        }
    }
}
