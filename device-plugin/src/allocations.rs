//! Which containers hold which devices, as kubelet tells (PodResources v1).

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use kubelet_api::podresources::pod_resources_lister_client::PodResourcesListerClient;
use kubelet_api::podresources::{ListPodResourcesRequest, ListPodResourcesResponse};
use serde::Serialize;
use tonic::Code;

/// How long kubelet may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// A container that holds a device; the default is one that is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Holder {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, pod, container } = self;
        write!(f, "{namespace}/{pod}/{container}")
    }
}

/// Holders by resource name and device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Allocations {
    holders: BTreeMap<String, BTreeMap<String, Holder>>,
}

/// Why kubelet cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Connect(#[from] kubelet_api::ConnectError),
    #[error("kubelet refuses to list pod resources: {0}")]
    List(#[from] tonic::Status),
    #[error("kubelet did not list pod resources within {LIMIT:?}")]
    Timeout,
}

impl Error {
    /// Whether it is of no use to ask the kubelet on `socket` again: it has no such interface, as before 1.20.
    pub(crate) fn is_final(&self, socket: &Path) -> bool {
        match self {
            Self::Connect(_) => !socket.exists(),
            Self::List(status) => status.code() == Code::Unimplemented,
            Self::Timeout => false,
        }
    }
}

impl Allocations {
    /// Asks the kubelet on `socket`.
    pub(crate) async fn read(socket: &Path) -> Result<Self, Error> {
        let ask = async {
            let mut client = PodResourcesListerClient::new(kubelet_api::connect(socket).await?)
                .max_decoding_message_size(usize::MAX);
            Ok(client.list(ListPodResourcesRequest {}).await?.into_inner())
        };
        let listed = tokio::time::timeout(LIMIT, ask).await.unwrap_or(Err(Error::Timeout));
        listed.map(Self::from)
    }

    /// Adds devices of `resource` that some container may hold, if nobody is known to.
    pub(crate) fn suppose<'a>(&mut self, resource: &str, devices: impl Iterator<Item = &'a str>) {
        let holders = self.holders.entry(resource.to_owned()).or_default();
        for device in devices {
            holders.entry(device.to_owned()).or_default();
        }
    }

    /// The holders of devices of `resource`, by device.
    pub(crate) fn of(&self, resource: &str) -> impl Iterator<Item = (&str, &Holder)> {
        self.holders.get(resource).into_iter().flatten().map(|(id, holder)| (id.as_str(), holder))
    }

    /// Who holds a device, whatever resource it was given out for.
    pub(crate) fn holder(&self, id: &str) -> Option<&Holder> {
        self.holders.values().find_map(|devices| devices.get(id))
    }
}

impl From<ListPodResourcesResponse> for Allocations {
    fn from(listed: ListPodResourcesResponse) -> Self {
        let mut allocations = Self::default();
        for pod in listed.pod_resources {
            for container in pod.containers {
                let holder = Holder {
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    container: container.name,
                };
                for devices in container.devices {
                    let ids = devices.device_ids.into_iter().map(|id| (id, holder.clone()));
                    allocations.holders.entry(devices.resource_name).or_default().extend(ids);
                }
            }
        }
        allocations
    }
}

#[cfg(test)]
impl Allocations {
    /// As if a container of pod `default/pod` held the devices.
    pub(crate) fn with(resource: &str, ids: &[&str]) -> Self {
        let holder =
            Holder { namespace: "default".to_owned(), pod: "pod".to_owned(), container: "c".to_owned() };
        let devices = ids.iter().map(|&id| (id.to_owned(), holder.clone())).collect();
        Self { holders: BTreeMap::from([(resource.to_owned(), devices)]) }
    }
}
