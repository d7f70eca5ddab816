//! The devices kubelet allocated to a pod.

use std::time::Duration;

use kubelet_api::podresources::pod_resources_lister_client::PodResourcesListerClient;
use kubelet_api::podresources::{GetPodResourcesRequest, ListPodResourcesRequest, PodResources};
use tonic::Code;

use crate::Error;
use crate::checkpoint;
use crate::devices::{ContainerDevices, DevicePool};
use crate::kubernetes::Pod;
use crate::node::Node;

/// How long kubelet may take for one answer.
const LIMIT: Duration = Duration::from_secs(10);

/// The largest answer that is accepted, in bytes: a List of a full node.
const MAX_ANSWER: usize = 16 << 20;

/// The devices of a pod: from the PodResources socket, or where there is none from kubelet's checkpoint.
///
/// # Errors
/// [`Error::Kubelet`] when kubelet does not answer, or neither source is there.
pub async fn devices(node: &Node, pod: &Pod) -> Result<DevicePool, Error> {
    let failed = |message: String| Error::Kubelet { pod: pod.to_string(), message };
    let socket = node.pod_resources.display();
    let containers = if node.pod_resources.exists() {
        tokio::time::timeout(LIMIT, ask(node, pod))
            .await
            .unwrap_or_else(|_| Err("no answer".to_owned()))
            .map_err(|e| failed(format!("PodResources at {socket}: {e}; is kubelet running?")))?
    } else {
        let file = node.checkpoint.display();
        let neither = |e: std::io::Error| {
            failed(format!(
                "there is no PodResources socket at {socket}, and its checkpoint {file} cannot be read: {e}"
            ))
        };
        let bytes = std::fs::read(&node.checkpoint).map_err(neither)?;
        checkpoint::devices_of(&bytes, pod.uid_on_node())
            .map_err(|e| failed(format!("its checkpoint {file} cannot be understood: {e}")))?
    };
    Ok(DevicePool::new(&containers))
}

async fn ask(node: &Node, pod: &Pod) -> Result<Vec<ContainerDevices>, String> {
    let channel = kubelet_api::connect(&node.pod_resources).await.map_err(|e| e.to_string())?;
    let mut client = PodResourcesListerClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let request = GetPodResourcesRequest { pod_name: pod.name.clone(), pod_namespace: pod.namespace.clone() };
    let resources = match client.get(request).await {
        Ok(answer) => answer.into_inner().pod_resources,
        // Get is younger than List, and switched off in some versions: then kubelet answers with one of these.
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unknown | Code::NotFound) => {
            let list = client.list(ListPodResourcesRequest {}).await.map_err(|s| describe(&s))?;
            let of_pod = |r: &PodResources| r.name == pod.name && r.namespace == pod.namespace;
            list.into_inner().pod_resources.into_iter().find(of_pod)
        }
        Err(status) => return Err(describe(&status)),
    };
    Ok(resources.map(containers).unwrap_or_default())
}

fn describe(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn containers(pod: PodResources) -> Vec<ContainerDevices> {
    let of_container = |container: kubelet_api::podresources::ContainerResources| ContainerDevices {
        entries: container.devices.into_iter().map(|d| (d.resource_name, d.device_ids)).collect(),
    };
    pod.containers.into_iter().map(of_container).collect()
}
