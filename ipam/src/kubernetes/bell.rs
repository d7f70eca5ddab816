//! Hearing that others want addresses of this node.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use kube::api::{WatchEvent, WatchParams};

use super::{Kubernetes, explain, random_part, resource};
use crate::error::Error;
use crate::pool::label;

/// After how long a watch begins anew, at most: with the server's credentials and addresses as they are then.
const LONGEST: Duration = Duration::from_secs(290);
/// How much later it is given up when the server does not end it.
const GRACE: Duration = Duration::from_secs(10);

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bell {
    /// The watch began: whatever rings is told next.
    Begun,
    /// The pool wants addresses of this node.
    Rings(String),
    /// It does not any more.
    Silent(String),
}

impl Kubernetes {
    /// Tells which pools want addresses of the node of this boot, until the watch ends. The API server picks them by a label,
    /// and sends their metadata only: of changes to other pools, and of pools that want nothing, this node hears nothing.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn listen(&self, boot: &str, mut hear: impl FnMut(Bell)) -> Result<(), Error> {
        let failed = |error: &kube::Error| {
            let (message, transient) = explain(error);
            Error::Api { operation: "watching pools".to_owned(), message, transient }
        };
        let length = random_part(LONGEST);
        let seconds = u32::try_from(length.as_secs()).unwrap_or_default();
        let params = WatchParams::default().labels(&label(boot)).timeout(seconds);
        let api = self.api(&self.namespace, &resource("IPPool"));
        let watch = async {
            // From any version on, with all that is there first.
            let events = api.watch_metadata(&params, "0").await.map_err(|e| failed(&e))?;
            hear(Bell::Begun);
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.try_next().await.map_err(|e| failed(&e))? {
                let name = |metadata: kube::core::ObjectMeta| metadata.name.unwrap_or_default();
                match event {
                    WatchEvent::Added(of) | WatchEvent::Modified(of) => hear(Bell::Rings(name(of.metadata))),
                    WatchEvent::Deleted(of) => hear(Bell::Silent(name(of.metadata))),
                    WatchEvent::Bookmark(_) => {}
                    WatchEvent::Error(status) => return Err(failed(&kube::Error::Api(status))),
                }
            }
            Ok(())
        };
        tokio::time::timeout(length + GRACE, watch).await.unwrap_or(Ok(()))
    }
}
