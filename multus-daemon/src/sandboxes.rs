//! One call at a time for each sandbox.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

type Turns = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// The sandboxes that are worked on.
#[derive(Debug, Clone, Default)]
pub struct Sandboxes(Arc<Turns>);

/// The turn of one call; the next one of its sandbox comes when it is dropped.
#[derive(Debug)]
pub struct Turn {
    sandboxes: Sandboxes,
    container: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Sandboxes {
    /// Waits until nobody else works on `container`; in order of asking.
    pub async fn turn(&self, container: &str) -> Turn {
        let turns = Arc::clone(self.turns().entry(container.to_owned()).or_default());
        // Made before it is waited for, so that who gives up waiting leaves nothing behind.
        let mut turn = Turn { sandboxes: self.clone(), container: container.to_owned(), guard: None };
        turn.guard = Some(turns.lock_owned().await);
        turn
    }

    /// The turn, if nobody works on `container`.
    #[must_use]
    pub fn turn_at_once(&self, container: &str) -> Option<Turn> {
        let mut turns = self.turns();
        if turns.contains_key(container) {
            return None;
        }
        let guard = Arc::clone(turns.entry(container.to_owned()).or_default()).try_lock_owned().ok();
        Some(Turn { sandboxes: self.clone(), container: container.to_owned(), guard })
    }

    /// Whether somebody works on `container`.
    #[must_use]
    pub fn is_busy(&self, container: &str) -> bool {
        self.turns().contains_key(container)
    }

    fn turns(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut turns = self.sandboxes.turns();
        // Whoever waits has a share of it.
        if turns.get(&self.container).is_some_and(|turns| Arc::strong_count(turns) == 1) {
            turns.remove(&self.container);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left() {
        let sandboxes = Sandboxes::default();
        let first = sandboxes.turn("a").await;
        let other = sandboxes.turn("b").await;
        assert!(timeout(SHORT, sandboxes.turn("a")).await.is_err());
        assert!(sandboxes.is_busy("a") && sandboxes.turn_at_once("a").is_none());
        let at_once = sandboxes.turn_at_once("c");
        assert!(at_once.is_some() && timeout(SHORT, sandboxes.turn("c")).await.is_err());
        drop(at_once);
        let waiter = tokio::spawn({
            let sandboxes = sandboxes.clone();
            async move { sandboxes.turn("a").await }
        });
        tokio::task::yield_now().await;
        drop(first);
        drop(timeout(Duration::from_secs(20), waiter).await.unwrap().unwrap());
        drop(other);
        assert!(sandboxes.turns().is_empty());
    }
}
