//! The daemon: everything that runs, from start to end.

use std::sync::Arc;
use std::time::Duration;

use multus::known::Known;
use multus::node::Node;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::calls::Calls;
use crate::clients::Clients;
use crate::conf::DaemonConf;
use crate::enrolment::Enrolment;
use crate::followed::Files;
use crate::manager::Manager;
use crate::metrics::Metrics;
use crate::server::Server;
use crate::socket::{self, Socket};
use crate::watch::Listeners;
use crate::{follow, gc, orphans, pending, repair, uninstall, watch};

/// How long kept DELs may keep new pods waiting.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// How long the first certificate of a node may keep everything waiting; the shim waits for a minute.
const ENROLMENT_LIMIT: Duration = Duration::from_secs(45);

/// How often it is tried to reach the API server for the first time.
const ACCESS_RETRY: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to end; `node_name` is the node's name in the cluster.
///
/// # Errors
/// Whatever it cannot start for.
pub async fn run(conf: DaemonConf, node: Node, node_name: Option<String>) -> Result<(), Error> {
    let stop = told_to_end()?;
    let enrolment = Enrolment::of_daemon(&conf.raw, node_name.as_deref())
        .map_err(|e| Error::Usage(format!("configuration: {e}")))?;
    let socket_dir = conf.socket_dir.clone();
    let socket = Socket::take_over(&socket_dir)?;
    let lock = socket::lock(&conf.socket_dir).await?;
    let blocking = tokio::task::spawn_blocking(orphans::wait);
    blocking.await.map_err(|e| Error::Usage(format!("waiting for delegates broke off: {e}")))?;

    if !conf.follow_annotations {
        // When it is switched on again, what changed meanwhile is nobody's to follow.
        Files::below(&conf.cni_dir).clear();
    }
    let known = Arc::new(Known::default());
    let mut tasks = tokio::task::JoinSet::new();
    let kubeconfig = match enrolment {
        Some(enrolment) => {
            let kubeconfig = enrolment.kubeconfig.clone();
            if tokio::time::timeout(ENROLMENT_LIMIT, enrolment.ensure()).await.is_err() {
                tracing::warn!("there is no certificate yet; pods are refused until there is one");
            }
            tasks.spawn(enrolment.keep());
            Some(kubeconfig)
        }
        None => conf.kubeconfig.clone(),
    };
    let clients = Clients::new(Arc::clone(&known), kubeconfig);
    let calls = Arc::new(Calls::new(conf, node, clients));
    if tokio::time::timeout(DRAIN_LIMIT, pending::drain(&calls)).await.is_err() {
        tracing::warn!("kept DELs take long; new calls are taken meanwhile");
    }
    let metrics = Arc::new(Metrics::default());
    tasks.spawn(follow_cluster(Arc::clone(&calls), known, node_name));
    tasks.spawn(gc::follow(Arc::clone(&calls)));
    tasks.spawn(complain("kept DELs", pending::follow(Arc::clone(&calls))));
    if let Some(port) = calls.conf.metrics_port {
        tasks.spawn(complain("metrics", Arc::clone(&metrics).serve(port)));
    }
    tasks.spawn(Manager::of_daemon(&calls.conf).run());
    tracing::info!("serving {}", calls.conf.socket_dir.join(socket::NAME).display());
    let goodbye = calls
        .conf
        .cleanup_on_exit
        .then(|| (calls.conf.cni_config_dir.clone(), calls.conf.config_file.clone()));
    let server = Server::new(calls, metrics);
    server.serve(socket, stop.cancelled()).await?;
    tasks.shutdown().await;
    if let Some((directory, copied)) = goodbye.filter(|_| stop.is_cancelled()) {
        uninstall::remove_configuration(&directory, copied.as_deref())?;
    }
    lock.release();
    // Another daemon may work now. Ending before being told to would have this one started again.
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = socket::abandoned(&socket_dir) => {
            let message = "the multus-daemon that took over has gone; this one has to be started again";
            Err(Error::Usage(message.to_owned()))
        }
    }
}

/// Is cancelled when the daemon is told to end (SIGTERM or SIGINT).
pub(crate) fn told_to_end() -> Result<CancellationToken, Error> {
    let listen = |kind| signal(kind).map_err(|e| Error::Usage(format!("cannot listen to signals: {e}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let told = CancellationToken::new();
    let tell = told.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tell.cancel();
    });
    Ok(told)
}

async fn complain(what: &str, task: impl Future<Output = Result<(), Error>>) {
    if let Err(error) = task.await {
        tracing::error!("{what}: {error}");
    }
}

/// Watches pods of this node and NADs, as soon as there is a cluster.
async fn follow_cluster(calls: Arc<Calls>, known: Arc<Known>, node_name: Option<String>) {
    loop {
        match calls.clients.client(None).await {
            Ok(Some(_)) => break,
            Ok(None) => {
                return tracing::info!("there is no cluster: networks are those of the configuration alone");
            }
            Err(error) => tracing::warn!("{error}"),
        }
        tokio::time::sleep(ACCESS_RETRY).await;
    }
    let client = calls.clients.lasting();
    let nads = watch::nads(client.clone(), Arc::clone(&known));
    match node_name {
        Some(node) => {
            let (tell_listed, listed) = mpsc::unbounded_channel();
            let (tell_changed, changed) = mpsc::unbounded_channel();
            let changes = calls.conf.follow_annotations.then_some(tell_changed);
            let listeners = Listeners { listed: tell_listed, changed: changes };
            tokio::join!(
                nads,
                repair::follow(Arc::clone(&calls), listed),
                // Ends at once where nobody tells of changes.
                follow::follow(calls, Arc::clone(&known), changed),
                watch::pods(client, &node, known, listeners),
            );
        }
        None => {
            tracing::warn!("MULTUS_NODE_NAME is not set: every pod is asked for by itself");
            nads.await;
        }
    }
}
