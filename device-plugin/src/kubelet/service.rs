//! The gRPC services of one resource: `v1beta1.DevicePlugin`, and `pluginregistration.Registration` for kubelet's
//! plugin watcher.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use host::Sysfs;
use kubelet_api::deviceplugin::device_plugin_server::DevicePlugin;
use kubelet_api::deviceplugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationResponse,
    Device, DevicePluginOptions, Empty, ListAndWatchResponse, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse, VERSION,
};
use kubelet_api::registration::registration_server::Registration;
use kubelet_api::registration::{
    DEVICE_PLUGIN, InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status};

use crate::allocate::{self, Grant};
use crate::allocations::Allocations;
use crate::cdi;
use crate::device_info;
use crate::iommu;
use crate::places::Places;
use crate::pool::Pool;
use crate::status::Metrics;

/// How long kubelet may take to say who holds the other devices of an IOMMU group.
const KUBELET_LIMIT: Duration = Duration::from_millis(500);

/// Gives devices out: what all services share.
#[derive(Debug, Clone)]
pub(crate) struct Granter {
    pub(crate) sysfs: Sysfs,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) places: Places,
    pub(crate) device_info: device_info::Directory,
    /// The directory of CDI specifications, if devices are given to the runtime by CDI name.
    pub(crate) cdi: Option<cdi::Directory>,
}

/// Why a container gets no devices.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Allocate(#[from] allocate::Error),
    #[error(transparent)]
    Split(#[from] iommu::Split),
    #[error("IOMMU group: {0}")]
    Group(#[from] host::sysfs::SysfsError),
    #[error("device information file: {0}")]
    DeviceInfo(device_info::Error),
    #[error("CDI specification: {0}")]
    Cdi(cdi::Error),
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Allocate(allocate::Error::Unknown { .. } | allocate::Error::Gone { .. }) => {
                Self::not_found(text)
            }
            Error::Allocate(_) | Error::Split(_) => Self::failed_precondition(text),
            Error::Group(_) | Error::DeviceInfo(_) | Error::Cdi(_) => Self::internal(text),
        }
    }
}

impl Granter {
    /// Gives devices of `pool` to the containers of a pod.
    async fn give_all(&self, pool: &Pool, request: AllocateRequest) -> Result<AllocateResponse, Error> {
        let resource = &pool.conf.resource;
        let mut response = AllocateResponse::default();
        for container in request.container_requests {
            let devices = container.devices_ids.join(",");
            let given = match self.keep_groups_whole(pool, &container.devices_ids).await {
                Ok(()) => self.give(pool, &container.devices_ids),
                Err(error) => Err(error),
            };
            response.container_responses.push(
                given.inspect_err(|error| tracing::error!(%resource, devices, %error, "cannot allocate"))?,
            );
            tracing::info!(%resource, devices, "allocated");
        }
        Ok(response)
    }

    /// Refuses devices whose IOMMU group another container has.
    async fn keep_groups_whole(&self, pool: &Pool, ids: &[String]) -> Result<(), Error> {
        let companions = iommu::companions(pool, ids, &self.sysfs)?;
        if companions.is_empty() {
            return Ok(());
        }
        // What was known at the last look is too old: pods may have come since.
        match timeout(KUBELET_LIMIT, Allocations::read(&self.places.pod_resources_socket())).await {
            Ok(Ok(allocations)) => Ok(iommu::split(companions, &allocations)?),
            // The kernel still protects the group; to refuse every pod would be worse.
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot ask kubelet who has the rest of the IOMMU group");
                Ok(())
            }
            Err(_) => {
                tracing::warn!("kubelet is slow to say who has the rest of the IOMMU group");
                Ok(())
            }
        }
    }

    /// Gives `ids` of `pool` to a container: looks everything up before anything is written.
    fn give(&self, pool: &Pool, ids: &[String]) -> Result<ContainerAllocateResponse, Error> {
        let resource = &pool.conf.resource;
        let mut grants: Vec<Grant> = Vec::new();
        for id in ids {
            grants.push(pool.grant(id, &self.sysfs, &self.places)?);
        }
        for grant in &grants {
            if let Some(info) = &grant.info {
                self.device_info.write(resource, &grant.id, info).map_err(Error::DeviceInfo)?;
            }
        }
        let names = match &self.cdi {
            Some(directory) => {
                let names = directory.publish(resource, pool.conf.device_type, &grants);
                Some(names.map_err(Error::Cdi)?)
            }
            None => None,
        };
        Ok(allocate::response(resource, &grants, names))
    }
}

impl Granter {
    /// Puts the files of a resource right that were written before `before`, by an earlier process: `held` devices
    /// keep theirs, all others have none.
    pub(crate) fn restore(
        &self,
        pool: &Pool,
        held: &BTreeSet<&str>,
        before: SystemTime,
    ) -> Result<(), Error> {
        let resource = &pool.conf.resource;
        let keep = |id: &str| held.contains(id);
        self.device_info.sweep(resource, before, keep).map_err(Error::DeviceInfo)?;
        let Some(cdi) = &self.cdi else { return Ok(()) };
        // A device that is gone, or ill, keeps the specification that it has.
        let grants = held.iter().filter_map(|id| pool.grant(id, &self.sysfs, &self.places).ok());
        let grants: Vec<Grant> = grants.collect();
        cdi.publish(resource, pool.conf.device_type, &grants).map_err(Error::Cdi)?;
        cdi.sweep(resource, pool.conf.device_type, before, keep).map_err(Error::Cdi)
    }
}

/// The services of one resource on one socket. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pool: watch::Receiver<Arc<Pool>>,
    granter: Arc<Granter>,
    /// Path of the socket, for the plugin watcher.
    socket: String,
    /// How many kubelets are listening to the list: one, when all is well.
    listeners: Arc<watch::Sender<usize>>,
    /// Why kubelet refused the plugin, the last time it did.
    refusal: Arc<watch::Sender<Option<String>>>,
    /// Ends all streams.
    stop: CancellationToken,
}

/// What every pool tells kubelet about itself.
pub(super) const OPTIONS: DevicePluginOptions =
    DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true };

impl Service {
    pub(super) fn new(
        pool: watch::Receiver<Arc<Pool>>,
        granter: Arc<Granter>,
        socket: String,
        stop: CancellationToken,
    ) -> Self {
        let (listeners, refusal) = (Arc::new(watch::Sender::new(0)), Arc::new(watch::Sender::new(None)));
        Self { pool, granter, socket, listeners, refusal, stop }
    }

    /// The number of kubelets that listen to the list, as it changes.
    pub(super) fn listeners(&self) -> watch::Receiver<usize> {
        self.listeners.subscribe()
    }

    /// kubelet's refusals, as they come.
    pub(super) fn refusals(&self) -> watch::Receiver<Option<String>> {
        self.refusal.subscribe()
    }

    fn resource(&self) -> String {
        self.pool.borrow().conf.resource.to_string()
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(OPTIONS))
    }

    type ListAndWatchStream = Lists;

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Lists>, Status> {
        tracing::info!(resource = self.resource(), "kubelet listens");
        Ok(Response::new(Lists {
            pools: WatchStream::new(self.pool.clone()),
            last: None,
            stopped: Box::pin(self.stop.clone().cancelled_owned()),
            _listener: Listener::new(self.listeners.clone()),
        }))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let pool = self.pool.borrow().clone();
        let containers = request.into_inner().container_requests;
        let prefer = |container: kubelet_api::deviceplugin::ContainerPreferredAllocationRequest| {
            let size = usize::try_from(container.allocation_size).unwrap_or(0);
            let device_ids = pool.prefer(
                &container.available_device_ids,
                &container.must_include_device_ids,
                size,
                &self.granter.sysfs,
            );
            ContainerPreferredAllocationResponse { device_ids }
        };
        let container_responses = containers.into_iter().map(prefer).collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let pool = self.pool.borrow().clone();
        let started = Instant::now();
        let given = self.granter.give_all(&pool, request.into_inner()).await;
        self.granter.metrics.allocated(&pool.conf.resource, started.elapsed(), given.is_ok());
        Ok(Response::new(given?))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

#[tonic::async_trait]
impl Registration for Service {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: DEVICE_PLUGIN.to_owned(),
            name: self.resource(),
            endpoint: self.socket.clone(),
            supported_versions: vec![VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = status.into_inner();
        if status.plugin_registered {
            tracing::info!(resource = self.resource(), "registered with kubelet");
        } else {
            self.refusal.send_replace(Some(status.error));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// The answer to ListAndWatch: the list as it is, and again whenever it changes.
pub(crate) struct Lists {
    pools: WatchStream<Arc<Pool>>,
    last: Option<Vec<Device>>,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    _listener: Listener,
}

impl Stream for Lists {
    type Item = Result<ListAndWatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        loop {
            let Poll::Ready(pool) = Pin::new(&mut self.pools).poll_next(cx) else { return Poll::Pending };
            let Some(pool) = pool else { return Poll::Ready(None) };
            let devices = pool.advertised();
            // A pool also changes in ways that kubelet is not told of.
            if self.last.as_ref() != Some(&devices) {
                self.last = Some(devices.clone());
                return Poll::Ready(Some(Ok(ListAndWatchResponse { devices })));
            }
        }
    }
}

/// Counts a stream for as long as it lives.
struct Listener(Arc<watch::Sender<usize>>);

impl Listener {
    fn new(count: Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}
