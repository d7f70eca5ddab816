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
    pub fn run<T: Send + 'static>(
        &self,
        mut order: Order,
        limit: Duration,
        noted: impl FnOnce(Group) -> T + Send + 'static,
    ) -> io::Result<Output> {
        order.id = self.next.fetch_add(1, Ordering::Relaxed);
        let noted: Noted = Box::new(|group| Box::new(noted(group)));
        let (starter, news) = match self.starter()?.order(&order, noted) {
            Ok(ordered) => ordered,
            // It ended since the last order; the next one is fresh.
            Err(noted) => self.starter()?.order(&order, noted).map_err(|_| gone())?,
        };
        match news.recv_timeout(limit) {
            Ok(ended) => return ended.output(),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(gone()),
        }
        if let Some(group) = starter.group_of(order.id) {
            group.terminate();
            if news.recv_timeout(GRACE).is_err() {
                group.kill();
                // Dead or not, nobody waits for it any longer.
                let _ = news.recv_timeout(GRACE);
            }
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
    waiting: Mutex<Option<HashMap<u64, Waiter>>>,
}

/// Notes that a delegate runs, as long as what it returns is not dropped.
type Noted = Box<dyn FnOnce(Group) -> Box<dyn Send> + Send>;

/// Who waits for the end of a delegate.
struct Waiter {
    tell: Sender<Happened>,
    noted: Option<Noted>,
    /// The delegate that runs, and its note.
    running: Option<(Group, Box<dyn Send>)>,
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiter").field("group", &self.group()).finish_non_exhaustive()
    }
}

impl Waiter {
    fn group(&self) -> Option<Group> {
        self.running.as_ref().map(|(group, _)| *group)
    }

    fn learn(&mut self, pid: u32) {
        let group = Group::led_by(pid);
        self.running = self.noted.take().map(|noted| (group, noted(group)));
    }
}

impl Starter {
    fn is_there(&self) -> bool {
        lock(&self.waiting).is_some()
    }

    /// Orders a delegate; `noted` comes back when the process has gone.
    fn order(self: Arc<Self>, order: &Order, noted: Noted) -> Result<(Arc<Self>, Receiver<Happened>), Noted> {
        let (tell, news) = channel();
        match lock(&self.waiting).as_mut() {
            Some(waiting) => {
                waiting.insert(order.id, Waiter { tell, noted: Some(noted), running: None });
            }
            None => return Err(noted),
        }
        if starter::send(&mut *lock(&self.orders), order).is_ok() {
            return Ok((self, news));
        }
        let noted = lock(&self.waiting).as_mut().and_then(|waiting| waiting.remove(&order.id)?.noted);
        self.abandon();
        // It was never ordered, so nobody has used it.
        noted.map_or(Ok((self, news)), Err)
    }

    fn group_of(&self, id: u64) -> Option<Group> {
        lock(&self.waiting).as_ref().and_then(|waiting| waiting.get(&id)?.group())
    }

    /// The process has gone: nobody hears of delegates that run, and their pipes are broken.
    fn abandon(&self) {
        let waiting = lock(&self.waiting).take();
        let groups = waiting.iter().flatten().filter_map(|(_, waiter)| waiter.group());
        groups.for_each(Group::kill);
    }

    fn listen(&self, news: ChildStdout, mut child: Child) {
        let mut news = BufReader::new(news);
        while let Ok(Some(News { id, what })) = starter::receive(&mut news) {
            let mut waiting = lock(&self.waiting);
            let Some(waiting) = waiting.as_mut() else { break };
            if let Happened::Started(pid) = what {
                waiting.entry(id).and_modify(|waiter| waiter.learn(pid));
            } else if let Some(Waiter { tell, running, .. }) = waiting.remove(&id) {
                // Another process may have its number from now on.
                drop(running);
                // Who was there has given up on it.
                let _ = tell.send(what);
            }
        }
        self.abandon();
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
