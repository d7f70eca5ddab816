//! Clients of the API server, kept as long as their credentials.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use multus::Error;
use multus::known::Known;
use multus::kubernetes::Kubernetes;
use tokio::sync::Mutex;
use tower::BoxError;

/// The clients by kubeconfig; `None` is the in-cluster environment.
#[derive(Debug, Default)]
pub struct Clients {
    known: Arc<Known>,
    made: Mutex<HashMap<Option<PathBuf>, Made>>,
    /// Preferred where a call's configuration names no kubeconfig.
    own: Option<PathBuf>,
}

/// A client, and when the file it was made from had changed.
type Made = (Option<SystemTime>, Kubernetes);

impl Clients {
    /// Clients that need not ask for what `known` knows. Calls without a kubeconfig use `own`, where there is one.
    #[must_use]
    pub fn new(known: Arc<Known>, own: Option<PathBuf>) -> Self {
        Clients { known, own, made: Mutex::default() }
    }

    /// A client for what goes on for longer than credentials are good for: each of its requests is made with those of its
    /// time.
    #[must_use]
    pub fn lasting(self: &Arc<Self>) -> Client {
        let clients = Arc::clone(self);
        let send = move |request: Request<Body>| {
            let clients = Arc::clone(&clients);
            async move {
                let client = clients.client(None).await?.ok_or("there is no cluster any more")?;
                Ok::<Response<Body>, BoxError>(client.client().send(request).await?)
            }
        };
        Client::new(tower::service_fn(send), "default")
    }

    /// The client for `kubeconfig`; made anew when the file has changed, as it does when a token or certificate in it
    /// is renewed. `None` where there is neither kubeconfig nor cluster.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub async fn client(&self, kubeconfig: Option<&Path>) -> Result<Option<Kubernetes>, Error> {
        let kubeconfig = kubeconfig.or(self.own.as_deref());
        let changed = kubeconfig.and_then(|file| std::fs::metadata(file).and_then(|m| m.modified()).ok());
        let mut made = self.made.lock().await;
        let key = kubeconfig.map(Path::to_owned);
        if let Some((when, client)) = made.get(&key)
            && *when == changed
        {
            return Ok(Some(client.clone()));
        }
        let client =
            Kubernetes::connect(kubeconfig).await?.map(|client| client.knowing(Arc::clone(&self.known)));
        if let Some(client) = &client {
            made.insert(key, (changed, client.clone()));
        }
        Ok(client)
    }
}
