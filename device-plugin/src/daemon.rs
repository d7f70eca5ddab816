//! The running plugin: keeps the pools true to the machine and to the configuration, and serves each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use host::{Netlink, Sysfs};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::allocations::Allocations;
use crate::changes::{Change, Changes};
use crate::cli::Options;
use crate::config::{self, Conf, Fault, Resource};
use crate::device::Device;
use crate::discovery::{self, DefaultRoutes};
use crate::firmware::Firmware;
use crate::inventory::{Inventory, Scope};
use crate::kubelet::{Endpoint, Granter, Patience, sweep_sockets};
use crate::pool::{self, Pool};
use crate::status::{self, Address, Extent, Status, View};
use crate::{cdi, device_info};

/// How long events may gather before they are looked at: a change of `sriov_numvfs` makes hundreds.
const GATHER: Duration = Duration::from_millis(150);
/// How often everything is looked at without any event.
const REGULARLY: Duration = Duration::from_secs(30);
/// How long a look at the devices waits for kubelet: a hung one must not delay the news of an event.
const KUBELET_LIMIT: Duration = Duration::from_millis(500);
/// The same for the first look and the regular ones, which are in no hurry.
const KUBELET_REGULAR_LIMIT: Duration = Duration::from_secs(2);
/// How soon kubelet is asked again if it did not say what containers hold, at first and at last.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const ASK_AGAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long all sockets together may take to close.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Configuration(#[from] config::Error),
    #[error("cannot handle signals: {0}")]
    Signals(#[from] std::io::Error),
}

/// Serves until a signal ends it.
pub(crate) async fn run(options: &Options) -> Result<(), Error> {
    let (conf, suspicions) = config::load(&options.config_file, &options.resource_prefix)?;
    warn_of(&options.config_file, &suspicions);
    let mut ending = Ending::new()?;
    let mut reload = signal(SignalKind::hangup())?;
    let changes = Changes::new(&options.config_file, Sysfs::new(&options.places.sysfs));
    let mut daemon = Daemon::new(options, conf, changes);
    daemon.sweep_sockets();
    if let Some(address) = options.status_address.clone() {
        daemon.serve_status(address);
    }
    daemon.scan(KUBELET_REGULAR_LIMIT).await;
    let mut scan_at = daemon.ask_again_at();
    let mut regular_at = Instant::now() + REGULARLY;
    loop {
        tokio::select! {
            () = ending.come() => break,
            _ = reload.recv() => {
                daemon.configuration_changed = true;
                scan_at = Some(Instant::now());
            }
            change = daemon.changes.next() => {
                daemon.note(change);
                let gathered = Instant::now() + GATHER;
                scan_at = Some(scan_at.map_or(gathered, |at| gathered.min(at)));
            }
            () = sleep_until(scan_at.unwrap_or(regular_at).min(regular_at)) => {
                let regular = Instant::now() >= regular_at;
                if regular {
                    daemon.changes.mend();
                    regular_at = Instant::now() + REGULARLY;
                }
                if regular || daemon.configuration_changed {
                    daemon.reload();
                    daemon.scope = Scope::Everything;
                }
                daemon.scan(if regular { KUBELET_REGULAR_LIMIT } else { KUBELET_LIMIT }).await;
                scan_at = daemon.ask_again_at();
            }
        }
    }
    tracing::info!("stopping");
    daemon.stop().await;
    Ok(())
}

fn warn_of(file: &std::path::Path, suspicions: &[Fault]) {
    for suspicion in suspicions {
        tracing::warn!("configuration file {}:{suspicion}", file.display());
    }
}

/// The signals that end the process.
struct Ending([Signal; 3]);

impl Ending {
    fn new() -> std::io::Result<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let [terminate, interrupt, quit] = kinds.map(signal);
        Ok(Self([terminate?, interrupt?, quit?]))
    }

    async fn come(&mut self) {
        let [terminate, interrupt, quit] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

/// A pool that is being served.
struct Served {
    pool: watch::Sender<Arc<Pool>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

struct Daemon {
    config_file: PathBuf,
    resource_prefix: String,
    conf: Arc<Conf>,
    configuration_changed: bool,
    /// Why the present configuration file is not in use, so that it is said once.
    rejected: Option<String>,
    changes: Changes,
    /// What the next look has to take in.
    scope: Scope,
    inventory: Arc<Inventory>,
    netlink: Option<Netlink>,
    default_routes: DefaultRoutes,
    firmware: Firmware,
    granter: Arc<Granter>,
    /// What containers hold, when kubelet last said so.
    allocations: Option<Arc<Allocations>>,
    /// While kubelet does not say: how long to wait before it is asked again.
    unanswered: Option<Duration>,
    /// Resources whose stale files have been removed.
    swept: BTreeSet<Resource>,
    started: SystemTime,
    served: BTreeMap<Resource, Served>,
    view: watch::Sender<Option<Arc<View>>>,
}

impl Daemon {
    fn new(options: &Options, conf: Conf, changes: Changes) -> Self {
        let places = options.places.clone();
        let granter = Granter {
            sysfs: Sysfs::new(&places.sysfs),
            metrics: Arc::default(),
            device_info: device_info::Directory::new(places.device_info.clone()),
            cdi: options.use_cdi.then(|| cdi::Directory::new(places.cdi.clone())),
            places,
        };
        Self {
            config_file: options.config_file.clone(),
            resource_prefix: options.resource_prefix.clone(),
            conf: Arc::new(conf),
            configuration_changed: false,
            rejected: None,
            changes,
            scope: Scope::Everything,
            inventory: Arc::default(),
            netlink: None,
            default_routes: DefaultRoutes::new(),
            firmware: Firmware::default(),
            granter: Arc::new(granter),
            allocations: None,
            unanswered: None,
            swept: BTreeSet::new(),
            started: SystemTime::now(),
            served: BTreeMap::new(),
            view: watch::Sender::new(None),
        }
    }

    fn serve_status(&self, address: Address) {
        let status = Status {
            view: self.view.subscribe(),
            metrics: self.granter.metrics.clone(),
            sysfs: self.granter.sysfs.clone(),
            pod_resources: self.granter.places.pod_resources_socket(),
        };
        tokio::spawn(status::serve(address, Arc::new(status)));
    }

    /// Removes what a killed process left of resources that are no longer configured.
    fn sweep_sockets(&self) {
        let pools = || self.conf.pools.iter().map(|pool| &pool.resource);
        let prefixes: BTreeSet<&str> =
            pools().map(|resource| resource.prefix.as_str()).chain([self.resource_prefix.as_str()]).collect();
        let names: BTreeSet<String> = pools().map(Resource::socket_name).collect();
        let is_stale = |name: &str| {
            let ours = name.strip_suffix(".sock").and_then(|name| name.split_once('_'));
            ours.is_some_and(|(prefix, _)| prefixes.contains(prefix)) && !names.contains(name)
        };
        let places = &self.granter.places;
        for directory in [places.plugins_registry(), places.device_plugins()] {
            sweep_sockets(&directory, is_stale);
        }
    }

    /// Reads the configuration again. One that cannot be used changes nothing.
    fn reload(&mut self) {
        self.configuration_changed = false;
        match config::load(&self.config_file, &self.resource_prefix) {
            Ok((conf, suspicions)) => {
                self.rejected = None;
                self.granter.metrics.in_use();
                if conf != *self.conf {
                    tracing::info!(pools = conf.pools.len(), "configuration changed");
                    warn_of(&self.config_file, &suspicions);
                    self.conf = Arc::new(conf);
                    self.granter.metrics.reloaded();
                }
            }
            Err(error) => {
                let error = error.to_string();
                if self.rejected.as_ref() != Some(&error) {
                    tracing::error!(error, "keeping the old configuration");
                    self.granter.metrics.rejected();
                }
                self.rejected = Some(error);
            }
        }
    }

    fn note(&mut self, change: Change) {
        match change {
            Change::Function(function) => self.scope.add(function),
            Change::Everything => self.scope = Scope::Everything,
            Change::Configuration => self.configuration_changed = true,
        }
    }

    /// Looks at what may have changed, and tells kubelet what did.
    async fn scan(&mut self, kubelet_limit: Duration) {
        self.ask_kubelet(kubelet_limit).await;
        let started = Instant::now();
        self.ask_for_routes().await;
        let scope = std::mem::take(&mut self.scope);
        self.firmware.doubt(&scope);
        let extent = match scope {
            Scope::Everything => Extent::Everything,
            Scope::Functions(_) => Extent::Some,
        };
        let (sysfs, routes, inventory) =
            (self.granter.sysfs.clone(), self.default_routes.clone(), self.inventory.clone());
        let scanned = tokio::task::spawn_blocking(move || inventory.renewed(&sysfs, &routes, &scope)).await;
        let succeeded = matches!(scanned, Ok(Ok(_)));
        match scanned {
            Ok(Ok(inventory)) => {
                let devices = self.firmware.complete(&self.conf, inventory.devices()).await;
                self.publish(devices);
                self.inventory = Arc::new(inventory);
            }
            Ok(Err(error)) => tracing::error!(%error, "cannot scan the devices; keeping the old list"),
            Err(error) => tracing::error!(%error, "the scan of the devices failed; keeping the old list"),
        }
        if !succeeded {
            // What could not be looked at is not forgotten.
            self.scope = Scope::Everything;
        }
        self.granter.metrics.scanned(extent, started.elapsed(), succeeded);
        self.sweep();
    }

    async fn ask_kubelet(&mut self, limit: Duration) {
        let socket = self.granter.places.pod_resources_socket();
        let known = match timeout(limit, Allocations::read(&socket)).await {
            Ok(Ok(allocations)) => {
                self.allocations = Some(Arc::new(allocations));
                true
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot ask kubelet what containers hold");
                error.is_final(&socket)
            }
            Err(_) => {
                tracing::debug!("kubelet is slow to say what containers hold");
                false
            }
        };
        self.unanswered = match self.unanswered {
            _ if known => None,
            Some(wait) => Some((wait * 2).min(ASK_AGAIN_LIMIT)),
            None => Some(ASK_AGAIN),
        };
    }

    /// When kubelet is to be asked again, if it did not say what containers hold.
    fn ask_again_at(&self) -> Option<Instant> {
        self.unanswered.map(|wait| Instant::now() + wait)
    }

    /// What containers may hold. As long as kubelet does not say, that is whatever it has been offered: a device that
    /// is gone or does not fit any more stays in its list, unhealthy.
    fn holdings(&self) -> Arc<Allocations> {
        let mut holdings = self.allocations.clone().unwrap_or_default();
        if self.unanswered.is_some() {
            let holdings = Arc::make_mut(&mut holdings);
            for (resource, served) in &self.served {
                let pool = served.pool.borrow();
                holdings.suppose(&resource.to_string(), pool.offers.keys().map(|id| &**id));
            }
        }
        holdings
    }

    async fn ask_for_routes(&mut self) {
        let asked = match &self.netlink {
            Some(netlink) => discovery::default_routes(netlink).await,
            None => match Netlink::connect() {
                Ok(netlink) => discovery::default_routes(self.netlink.insert(netlink)).await,
                Err(error) => Err(error),
            },
        };
        match asked {
            Ok(routes) => self.default_routes = routes,
            Err(error) => {
                tracing::error!(%error, "cannot ask for default routes; keeping what was known");
                self.netlink = None;
            }
        }
    }

    fn publish(&mut self, devices: Vec<Arc<Device>>) {
        let holdings = self.holdings();
        let pools = pool::sort(&self.conf, &devices, &holdings);
        let wanted: BTreeSet<&Resource> = pools.iter().map(|pool| &pool.conf.resource).collect();
        let gone: Vec<Resource> =
            self.served.keys().filter(|resource| !wanted.contains(resource)).cloned().collect();
        for resource in gone {
            if let Some(served) = self.served.remove(&resource) {
                tracing::info!(%resource, "no longer configured");
                served.stop.cancel();
                self.granter.metrics.forget(&resource);
            }
        }
        let pools: Vec<Arc<Pool>> = pools.into_iter().map(|pool| self.offer(pool)).collect();
        let (conf, allocations) = (self.conf.clone(), self.allocations.clone().unwrap_or_default());
        let view = View { conf, devices, allocations, holdings, pools, scanned: Instant::now() };
        self.view.send_replace(Some(Arc::new(view)));
    }

    /// Puts a pool in the place of the one that is served. One that is no other stays.
    fn offer(&mut self, pool: Pool) -> Arc<Pool> {
        let resource = pool.conf.resource.clone();
        let old = self.served.get(&resource).map(|served| served.pool.borrow().clone());
        if let Some(old) = old.as_ref().filter(|old| ***old == pool) {
            return old.clone();
        }
        log_difference(old.as_deref(), &pool);
        let pool = Arc::new(pool);
        match self.served.get(&resource) {
            Some(served) => drop(served.pool.send_replace(pool.clone())),
            None => {
                let served = self.serve(pool.clone());
                self.served.insert(resource, served);
            }
        }
        pool
    }

    fn serve(&self, pool: Arc<Pool>) -> Served {
        let pool = watch::Sender::new(pool);
        let endpoint =
            Endpoint { pool: pool.subscribe(), granter: self.granter.clone(), patience: Patience::default() };
        let stop = CancellationToken::new();
        let task = tokio::spawn(endpoint.run(stop.clone()));
        Served { pool, stop, task }
    }

    /// Removes files of devices that nobody holds, once for each resource, and when it is known what is held.
    fn sweep(&mut self) {
        let Some(allocations) = &self.allocations else { return };
        for served in self.served.values() {
            let pool = served.pool.borrow().clone();
            let resource = &pool.conf.resource;
            if !self.swept.insert(resource.clone()) {
                continue;
            }
            let held: BTreeSet<&str> = allocations.of(&resource.to_string()).map(|(id, _)| id).collect();
            if let Err(error) = self.granter.restore(&pool, &held, self.started) {
                tracing::error!(%resource, %error, "cannot tidy up what an earlier process left");
            }
        }
    }

    async fn stop(self) {
        let mut tasks = Vec::new();
        for served in self.served.into_values() {
            served.stop.cancel();
            tasks.push(served.task);
        }
        let all = async {
            for task in tasks {
                let _ = task.await;
            }
        };
        if timeout(STOP_LIMIT, all).await.is_err() {
            tracing::warn!("not all sockets closed in time");
        }
    }
}

/// Says what is new in a pool.
fn log_difference(old: Option<&Pool>, new: &Pool) {
    let resource = &new.conf.resource;
    let none = BTreeMap::new();
    let before = old.map_or(&none, |old| &old.offers);
    for (id, offer) in &new.offers {
        let id = &**id;
        let health = |offer: &pool::Offer| offer.illness.as_ref().map(ToString::to_string);
        match before.get(id) {
            Some(old) if health(old) == health(offer) => {}
            _ => match health(offer) {
                None => tracing::debug!(%resource, device = id, "offered"),
                Some(illness) => tracing::warn!(%resource, device = id, illness, "unhealthy"),
            },
        }
    }
    for id in before.keys().filter(|id| !new.offers.contains_key(*id)).map(|id| &**id) {
        tracing::debug!(%resource, device = id, "no longer offered");
    }
    if old.is_none_or(|old| !old.listed().eq(new.listed())) {
        tracing::info!(%resource, devices = new.offers.len(), healthy = new.healthy(), "pool");
    }
}

#[cfg(test)]
mod tests;
