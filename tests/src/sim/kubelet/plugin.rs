//! kubelet's side of one device plugin: dial it, follow its devices, ask it to allocate.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use kubelet_api::deviceplugin::device_plugin_client::DevicePluginClient;
use kubelet_api::deviceplugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreferredAllocationRequest,
};
use tonic::Streaming;
use tonic::transport::Channel;

use super::devices::Choice;

/// A connected device plugin.
#[derive(Clone, Debug)]
pub(super) struct Plugin {
    client: DevicePluginClient<Channel>,
    options: DevicePluginOptions,
}

impl Plugin {
    /// Dials the plugin on its socket and asks for its options, as kubelet does since 1.26.
    ///
    /// # Errors
    /// Nobody listens there, or GetDevicePluginOptions fails.
    pub(super) async fn dial(socket: &Path) -> Result<Plugin> {
        let mut client = DevicePluginClient::new(kubelet_api::connect(socket).await?);
        let options = client
            .get_device_plugin_options(Empty {})
            .await
            .with_context(|| format!("GetDevicePluginOptions on {}", socket.display()))?
            .into_inner();
        Ok(Plugin { client, options })
    }

    /// Opens the stream of device lists.
    ///
    /// # Errors
    /// The plugin refuses the call.
    pub(super) async fn list_and_watch(&mut self) -> Result<Streaming<ListAndWatchResponse>> {
        Ok(self.client.list_and_watch(Empty {}).await.context("ListAndWatch")?.into_inner())
    }

    /// The devices that the plugin would take; none if it does not offer the method.
    ///
    /// # Errors
    /// The plugin offers the method and fails.
    pub(super) async fn preferred(&mut self, choice: &Choice, count: usize) -> Result<Vec<String>> {
        if !self.options.get_preferred_allocation_available {
            return Ok(Vec::new());
        }
        let request = ContainerPreferredAllocationRequest {
            available_device_ids: choice.available.clone(),
            must_include_device_ids: choice.must_include.clone(),
            allocation_size: i32::try_from(count)?,
        };
        let request = PreferredAllocationRequest { container_requests: vec![request] };
        let response = self.client.get_preferred_allocation(request).await.map_err(rpc_error)?.into_inner();
        Ok(response.container_responses.into_iter().flat_map(|container| container.device_ids).collect())
    }

    /// Asks for what the container gets together with devices `ids`.
    ///
    /// # Errors
    /// The plugin fails, or answers for no container.
    pub(super) async fn allocate(&mut self, ids: &[String]) -> Result<ContainerAllocateResponse> {
        let request = ContainerAllocateRequest { devices_ids: ids.to_vec() };
        let request = AllocateRequest { container_requests: vec![request] };
        let response = self.client.allocate(request).await.map_err(rpc_error)?.into_inner();
        response.container_responses.into_iter().next().context("no containers in the Allocate response")
    }

    /// Tells the plugin that the container with devices `ids` is about to start, if it asked to be told.
    ///
    /// # Errors
    /// The plugin objects.
    pub(super) async fn pre_start(&mut self, ids: &[String]) -> Result<()> {
        if self.options.pre_start_required {
            let request = PreStartContainerRequest { devices_ids: ids.to_vec() };
            self.client.pre_start_container(request).await.map_err(rpc_error)?;
        }
        Ok(())
    }
}

/// The text that a Go client makes of a gRPC status.
#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn rpc_error(status: tonic::Status) -> anyhow::Error {
    anyhow!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}
