//! The PodResources socket: which container holds which devices.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kubelet_api::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use kubelet_api::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse,
    NumaNode, PodResources, TopologyInfo,
};
use tonic::{Request, Response, Status};

use super::devices::NO_NUMA_NODE;
use super::manager::DeviceManager;

/// The pods of this node by UID: namespace, name and containers in the order of the pod's specification.
pub(super) type Pods = Arc<Mutex<BTreeMap<String, Listed>>>;

/// What PodResources says of a pod besides its devices.
#[derive(Clone, Debug, Default)]
pub(super) struct Listed {
    /// Namespace.
    pub(super) namespace: String,
    /// Name.
    pub(super) name: String,
    /// Container names.
    pub(super) containers: Vec<String>,
}

/// The PodResourcesLister service of one kubelet.
#[derive(Debug)]
pub(super) struct Lister {
    manager: Arc<DeviceManager>,
    pods: Pods,
}

impl Lister {
    /// The service over the devices of `manager` and the pods of `pods`.
    pub(super) fn server(manager: Arc<DeviceManager>, pods: Pods) -> PodResourcesListerServer<Lister> {
        PodResourcesListerServer::new(Lister { manager, pods })
    }

    fn pod(&self, uid: &str, listed: &Listed) -> PodResources {
        let containers = listed.containers.iter().map(|container| {
            let devices = self.manager.with_devices(|devices| {
                let held = devices.allocations().iter();
                held.filter(|held| held.pod == uid && held.container == *container)
                    .flat_map(|held| {
                        held.ids.iter().map(|(node, ids)| (held.resource.clone(), *node, ids.clone()))
                    })
                    .map(|(resource_name, node, device_ids)| ContainerDevices {
                        resource_name,
                        device_ids,
                        topology: topology(node),
                    })
                    .collect()
            });
            ContainerResources { name: container.clone(), devices, ..Default::default() }
        });
        PodResources {
            name: listed.name.clone(),
            namespace: listed.namespace.clone(),
            containers: containers.collect(),
        }
    }

    fn listed(&self) -> BTreeMap<String, Listed> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let pods = self.listed();
        let pod_resources = pods.iter().map(|(uid, listed)| self.pod(uid, listed)).collect();
        Ok(Response::new(ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        let devices = self.manager.with_devices(|devices| {
            let one = |(resource, id, node): (&str, &str, i64)| ContainerDevices {
                resource_name: resource.to_owned(),
                device_ids: vec![id.to_owned()],
                topology: topology(node),
            };
            devices.healthy().map(one).collect()
        });
        Ok(Response::new(AllocatableResourcesResponse { devices, ..Default::default() }))
    }

    async fn get(
        &self,
        request: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let pods = self.listed();
        let mut matching =
            pods.iter().filter(|(_, pod)| pod.name == pod_name && pod.namespace == pod_namespace);
        let (uid, listed) = matching.next().ok_or_else(|| {
            Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found"))
        })?;
        Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(self.pod(uid, listed)) }))
    }
}

fn topology(node: i64) -> Option<TopologyInfo> {
    (node != NO_NUMA_NODE).then(|| TopologyInfo { nodes: vec![NumaNode { id: node }] })
}
