//! Giving a call up: the runtime stopped waiting, so nobody would use what it attaches.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use host::process::Group;
use tokio_util::sync::CancellationToken;

/// How long a delegate may take to end by itself before it is killed.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// One call that can be given up, shared by all who work for it.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    token: CancellationToken,
    running: Arc<Mutex<BTreeSet<Group>>>,
}

impl Cancel {
    /// Gives the call up: the delegates that run are ended.
    pub fn cancel(&self) {
        self.token.cancel();
        let running = self.running().clone();
        if running.is_empty() {
            return;
        }
        running.iter().for_each(|group| group.terminate());
        let all = Arc::clone(&self.running);
        std::thread::spawn(move || {
            std::thread::sleep(GRACE);
            // Those that ended are no longer among them: another process may have their number.
            let left = all.lock().unwrap_or_else(PoisonError::into_inner);
            running.intersection(&left).for_each(|group| group.kill());
        });
    }

    /// Whether the call was given up.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until the call is given up.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Notes that a delegate runs, until the value is dropped.
    #[must_use]
    pub fn runs(&self, group: Group) -> Running<'_> {
        self.running().insert(group);
        if self.is_cancelled() {
            group.terminate();
        }
        Running { cancel: self, group }
    }

    /// Gives the call up when the value is dropped, unless it is [disarmed](OnDrop::disarm).
    #[must_use]
    pub fn on_drop(&self) -> OnDrop {
        OnDrop(Some(self.clone()))
    }

    fn running(&self) -> MutexGuard<'_, BTreeSet<Group>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A delegate that runs.
#[derive(Debug)]
pub struct Running<'a> {
    cancel: &'a Cancel,
    group: Group,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.cancel.running().remove(&self.group);
    }
}

/// Gives a call up with whoever waits for it.
#[derive(Debug)]
pub struct OnDrop(Option<Cancel>);

impl OnDrop {
    /// The call was answered.
    pub fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(cancel) = self.0.take() {
            cancel.cancel();
        }
    }
}
