//! Delegates of a daemon that was killed: they go on without it.
//!
//! The next daemon must not begin before they have ended, or both would work on one sandbox. They are let to their
//! end, because what is done whole is undone whole; who takes too long is killed.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use host::process::{self, Group};

use crate::executor::MARK;

/// How long they may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How long one that is killed takes to be gone.
const KILLED: Duration = Duration::from_secs(2);

/// Waits for the orphans of earlier daemons.
pub fn wait() {
    let marked = match process::with_variable(MARK) {
        Ok(marked) => marked,
        Err(error) => return tracing::warn!("cannot look for delegates of an earlier daemon: {error}"),
    };
    let own = std::process::id().to_string();
    let is_orphan = |parent: &str| parent != own && !Path::new("/proc").join(parent).exists();
    let leaders: BTreeSet<u32> =
        marked.into_iter().filter(|(_, parent)| is_orphan(parent)).map(|(pid, _)| pid).collect();
    let groups: Vec<Group> =
        leaders.into_iter().map(Group::led_by).filter(|group| group.is_alive()).collect();
    for group in &groups {
        tracing::info!("waiting for a delegate of an earlier daemon, {group:?}");
        if !group.ended_within(LIMIT) {
            tracing::warn!("it does not end and is killed: {group:?}");
            group.kill();
            let _ = group.ended_within(KILLED);
        }
    }
}
