//! What this crate's own tests share: fresh network namespaces and an executor.

use nix::sched::{CloneFlags, unshare};

use crate::netns::Netns;

/// A network namespace of its own, made on a thread that ends at once; the open file keeps it alive.
pub(crate) fn new_netns() -> Netns {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Netns::current().unwrap()
    })
    .join()
    .unwrap()
}

/// Runs `test` on a thread inside a fresh network namespace, with a tokio runtime of its own.
pub(crate) fn in_new_netns<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    new_netns()
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(test());
        })
        .unwrap();
}
