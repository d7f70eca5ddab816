//! The process that starts delegates for the daemon (`multus-daemon start-delegates`).
//!
//! A delegate may be many times as large as the daemon. Were it a child of the daemon, its memory and processor time
//! would be those of the daemon's container: a burst of new pods would have it killed. This process leaves the container's
//! accounting before it starts anything, which takes long enough (some milliseconds, for the kernel) not to be done for
//! each delegate. It reads [orders](Order) from standard input and tells on standard output what comes of them
//! ([`News`]). When the daemon has gone it ends, once delegates have come to their end: their pipes stay whole.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The largest message, in octets.
const MAX_MESSAGE: usize = 64 << 20;

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
    let Some(host) = host else { return follow(&mut io::stdin().lock(), &mut io::stdout(), &perform) };
    if let Err(error) = host::cgroup::leave(host) {
        eprintln!("multus-daemon: delegates count as the daemon's memory and processor time: {error}");
    }
    let work = || follow(&mut io::stdin().lock(), &mut io::stdout(), &perform);
    host::chroot::within(host, work).unwrap_or_else(|error| {
        let why = io::Error::new(error.kind(), format!("below {}: {error}", host.display()));
        follow(&mut io::stdin().lock(), &mut io::stdout(), &|_, tell| tell(Happened::failed(&why)))
    })
}

/// What tells the daemon.
type Tell<'a> = &'a (dyn Fn(Happened) + Sync);

fn follow(
    orders: &mut impl Read,
    news: &mut (impl Write + Send),
    perform: &(impl Fn(&Order, Tell<'_>) + Sync),
) -> io::Result<()> {
    let news = Mutex::new(news);
    std::thread::scope(|scope| {
        while let Some(order) = receive::<Order>(orders)? {
            let news = &news;
            scope.spawn(move || {
                let tell = |what| {
                    let mut news = news.lock().unwrap_or_else(PoisonError::into_inner);
                    // Nobody listens when the daemon was killed; the delegate still comes to its end.
                    let _ = send(&mut **news, &News { id: order.id, what });
                };
                perform(&order, &tell);
            });
        }
        Ok(())
    })
}

fn perform(order: &Order, tell: Tell<'_>) {
    let mut command = Command::new(&order.program);
    command.env_clear().envs(&order.environment).process_group(0);
    let mut run = || {
        let child = cni::exec::start(&mut command)?;
        tell(Happened::Started(child.id()));
        cni::exec::communicate(child, order.input.as_bytes())
    };
    tell(match run() {
        // What is no UTF-8 is no JSON either, and can only be shown.
        Ok(Output { status, stdout, stderr }) => Happened::Ended {
            status: status.into_raw(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        },
        Err(error) => Happened::failed(&error),
    });
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
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} octets")));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_is_told_of() {
        let mut orders = Vec::new();
        for (id, program) in [(1, "/bin/cat"), (2, "/nonexistent")] {
            let order = Order { id, program: program.into(), input: "x".repeat(10_000), ..Order::default() };
            send(&mut orders, &order).unwrap();
        }
        let mut told = Vec::new();
        follow(&mut orders.as_slice(), &mut told, &perform).unwrap();
        let mut told = told.as_slice();
        let mut outputs = BTreeMap::new();
        while let Some(News { id, what }) = receive(&mut told).unwrap() {
            if !matches!(what, Happened::Started(_)) {
                outputs.insert(id, what.output());
            }
        }
        assert_eq!(outputs[&1].as_ref().unwrap().stdout.len(), 10_000);
        assert_eq!(outputs[&2].as_ref().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(receive::<Order>(&mut [].as_slice()).unwrap().is_none());
        for bytes in [&[0, 0, 0, 9, b'{'][..], &[0xff; 8], &[0, 0, 0, 1, b'{']] {
            assert!(receive::<Order>(&mut &*bytes).is_err(), "{bytes:?}");
        }
    }
}
