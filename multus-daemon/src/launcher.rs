//! The daemon's side of the [process that starts delegates](crate::starter).

use std::collections::HashMap;
use std::io::{self, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use host::process::Group;

use crate::cancel::GRACE;
use crate::executor::MARK;
use crate::layout::under;
use crate::starter::{self, Happened, News, Order};

/// This program, also when another one has its name by now.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// Has delegates started.
#[derive(Debug)]
pub struct Launcher {
    program: PathBuf,
    /// The host's root, where it is not the daemon's.
    root: Option<PathBuf>,
    starter: Mutex<Option<Arc<Starter>>>,
    next: AtomicU64,
}

impl Launcher {
    /// Delegates are started by `program`, a multus-daemon, below `root`.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, root: Option<PathBuf>) -> Self {
        Launcher { program: program.into(), root, starter: Mutex::default(), next: AtomicU64::default() }
    }

    /// The plugin called `kind` in the directories of `path` below the root that delegates have. A symbolic link may lead to
    /// where it can be followed only from there.
    ///
    /// # Errors
    /// As for [`cni::exec::find`].
    pub fn find(&self, kind: &str, path: &[PathBuf]) -> Result<PathBuf, cni::Error> {
        let Some(root) = &self.root else { return cni::exec::find(kind, path) };
        cni::exec::find_by(kind, path, |file| {
            let seen = under(root, file);
            seen.is_file() || seen.is_symlink()
        })
    }

    /// Runs what is ordered to its end, for at most `limit`; `noted` gets the process group when it runs, and what it
    /// returns is dropped when it has ended.
    ///
    /// # Errors
    /// When it cannot be started, does not end in time, or has lost its starter; then it was killed.
    pub fn run<T>(
        &self,
        mut order: Order,
        limit: Duration,
        noted: impl FnOnce(Group) -> T,
    ) -> io::Result<Output> {
        order.id = self.next.fetch_add(1, Ordering::Relaxed);
        let news = match self.starter()?.order(&order) {
            Some(news) => news,
            // It ended since the last order; the next one is fresh.
            None => self.starter()?.order(&order).ok_or_else(gone)?,
        };
        let group = match news.recv().map_err(|_| gone())? {
            Happened::Started(pid) => Group::led_by(pid),
            other => return other.output(),
        };
        let _noted = noted(group);
        match news.recv_timeout(limit) {
            Ok(ended) => return ended.output(),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                group.kill();
                return Err(gone());
            }
        }
        group.terminate();
        if news.recv_timeout(GRACE).is_err() {
            group.kill();
            // Dead or not, nobody waits for it any longer.
            let _ = news.recv_timeout(GRACE);
        }
        let message = format!("it did not end within {} s and was killed", limit.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, message))
    }

    /// The process, started where there is none.
    fn starter(&self) -> io::Result<Arc<Starter>> {
        let mut current = lock(&self.starter);
        if let Some(starter) = current.as_ref().filter(|starter| starter.is_there()) {
            return Ok(Arc::clone(starter));
        }
        let mut command = Command::new(&self.program);
        command.arg("start-delegates").stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        // It does what it was ordered after the daemon was killed, too: the next one waits for it as for a delegate.
        command.env(MARK, std::process::id().to_string());
        if let Some(root) = &self.root {
            command.arg("--root").arg(root);
        }
        let mut child = command.spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (orders, news) = pipes.ok_or_else(|| io::Error::other("a process without pipes"))?;
        let starter =
            Arc::new(Starter { orders: Mutex::new(orders), waiting: Mutex::new(Some(HashMap::new())) });
        std::thread::spawn({
            let starter = Arc::clone(&starter);
            move || starter.listen(news, child)
        });
        *current = Some(Arc::clone(&starter));
        Ok(starter)
    }
}

/// A process that starts delegates, and who waits for news of it; nobody when it has gone.
#[derive(Debug)]
struct Starter {
    orders: Mutex<ChildStdin>,
    waiting: Mutex<Option<HashMap<u64, Sender<Happened>>>>,
}

impl Starter {
    fn is_there(&self) -> bool {
        lock(&self.waiting).is_some()
    }

    /// Orders a delegate; `None` when the process has gone.
    fn order(&self, order: &Order) -> Option<Receiver<Happened>> {
        let (tell, news) = channel();
        lock(&self.waiting).as_mut()?.insert(order.id, tell);
        let sent = starter::send(&mut *lock(&self.orders), order);
        if sent.is_err() {
            lock(&self.waiting).take();
        }
        sent.ok().map(|()| news)
    }

    fn listen(&self, news: ChildStdout, mut child: Child) {
        let mut news = BufReader::new(news);
        while let Ok(Some(News { id, what })) = starter::receive(&mut news) {
            let mut waiting = lock(&self.waiting);
            let Some(waiting) = waiting.as_mut() else { break };
            let told = match what {
                Happened::Started(_) => waiting.get(&id).cloned(),
                Happened::Ended { .. } | Happened::Failed { .. } => waiting.remove(&id),
            };
            // Who was there has given up on it.
            let _ = told.map(|told| told.send(what));
        }
        lock(&self.waiting).take();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the process that starts delegates was killed")
}

// Nothing panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
