//! Work that may keep a thread waiting in the kernel, away from the thread that serves kubelet.

use std::io;
use std::thread;

use tokio::runtime::Builder;
use tokio::sync::oneshot;

/// Has a thread with a runtime of its own do what `work` makes, and gives the place where the result will be. netlink
/// does its work within `sendmsg`, where a driver may wait for its firmware or for a lock; such a thread is waited for
/// by nobody when the process ends.
///
/// # Errors
/// The thread or its runtime cannot be made. Where the result is waited for: the work panicked.
pub(crate) fn aside<T, F>(work: impl FnOnce() -> F + Send + 'static) -> io::Result<oneshot::Receiver<T>>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (tell, told) = oneshot::channel();
    thread::Builder::new().name("aside".to_owned()).spawn(move || {
        // Nobody may want to know any more.
        drop(tell.send(runtime.block_on(work())));
    })?;
    Ok(told)
}
