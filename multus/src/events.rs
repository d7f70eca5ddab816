//! Events of a process that stays, told one after the other behind everybody's back.
//!
//! A burst of new pods has two events and more for each. Told at the same time they would take the processor and a
//! connection of their own each, TLS handshake included, just when the pods are waited for.

use std::time::Duration;

use tokio::sync::mpsc::{self, Sender};

use crate::kubernetes::{Event, Kubernetes, Pod};

/// How many events may wait: those of a full node that starts.
const LIMIT: usize = 1024;

/// How long the first of them waits: the ADD that it tells of is to be answered before it takes anything.
const PAUSE: Duration = Duration::from_millis(100);

/// Events that wait to be told.
#[derive(Debug, Clone)]
pub(crate) struct Queue(Sender<(Pod, Event)>);

impl Queue {
    /// A queue whose events `kubernetes` tells, as long as anybody has the queue. It needs a runtime.
    pub(crate) fn of(kubernetes: Kubernetes) -> Self {
        let (queue, mut events) = mpsc::channel::<(Pod, Event)>(LIMIT);
        tokio::spawn(async move {
            while let Some(first) = events.recv().await {
                tokio::time::sleep(PAUSE).await;
                let mut next = Some(first);
                while let Some((pod, event)) = next {
                    kubernetes.tell(&pod, &event).await;
                    next = events.try_recv().ok();
                }
            }
        });
        Queue(queue)
    }

    /// Has an event told. Where too many wait already, this one is only logged.
    pub(crate) fn put(&self, pod: &Pod, event: &Event) {
        if self.0.try_send((pod.clone(), event.clone())).is_err() {
            let Event { reason, message, .. } = event;
            tracing::warn!("event {reason} of pod {pod} is not told, too many wait: {message}");
        }
    }
}
