//! A thread for tasks that can be stopped all at once, wherever they are.

use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Runtime};

/// How long the tasks may take to come to a point where they wait.
const LIMIT: Duration = Duration::from_secs(30);

/// The one thread of a runtime of its own: while it does nothing, no task in it does, and no socket of theirs is
/// answered, though the kernel takes connections. A process that got SIGSTOP is the same to all who talk to it.
#[derive(Debug)]
pub(super) struct Thread {
    runtime: Option<Runtime>,
    /// The thread waits until this is gone.
    paused: Option<mpsc::Sender<()>>,
}

impl Thread {
    pub(super) fn new() -> Result<Thread> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Thread { runtime: Some(runtime), paused: None })
    }

    /// Runs `task` on the thread, to its end; what it starts goes on there.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let runtime = self.runtime.as_ref().context("the thread has ended")?;
        Ok(runtime.spawn(task).await?)
    }

    /// Stops everything; returns when it stands still.
    pub(super) fn pause(&mut self) -> Result<()> {
        let runtime = self.runtime.as_ref().context("the thread has ended")?;
        let (paused, waits) = mpsc::channel();
        let (still, stands_still) = mpsc::channel();
        runtime.spawn(async move {
            let _ = still.send(());
            // Of the thread, not of the task: that is what it is for.
            let _ = waits.recv();
        });
        stands_still.recv_timeout(LIMIT).context("the thread is busy")?;
        self.paused = Some(paused);
        Ok(())
    }

    /// Lets everything go on.
    pub(super) fn resume(&mut self) {
        self.paused = None;
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.resume();
        if let Some(runtime) = self.runtime.take() {
            // Nobody may wait for it in an asynchronous function.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread::sleep;

    #[tokio::test]
    async fn tasks_stand_still_and_go_on() {
        let mut thread = Thread::new().unwrap();
        let count = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&count);
        let start = async move {
            tokio::spawn(async move {
                loop {
                    counter.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        };
        thread.run(start).await.unwrap();
        thread.pause().unwrap();
        let before = count.load(Ordering::Relaxed);
        sleep(Duration::from_millis(100));
        assert_eq!(count.load(Ordering::Relaxed), before);
        thread.resume();
        while count.load(Ordering::Relaxed) < before + 2 {
            sleep(Duration::from_millis(1));
        }
    }
}
