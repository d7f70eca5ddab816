//! The call of `Register` on kubelet's own socket.

use std::path::Path;
use std::time::Duration;

use kubelet_api::deviceplugin::registration_client::RegistrationClient;
use kubelet_api::deviceplugin::{RegisterRequest, VERSION};
use tokio::time::timeout;

use super::service::OPTIONS;

/// How long kubelet may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Why kubelet does not know the plugin.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Connect(#[from] kubelet_api::ConnectError),
    #[error("kubelet answered: {0}")]
    Refused(#[from] tonic::Status),
    #[error("kubelet did not answer within {LIMIT:?}")]
    Timeout,
}

/// Tells the kubelet on `socket` of a resource, and the name of its socket in the same directory.
pub(super) async fn register(socket: &Path, endpoint: &str, resource: &str) -> Result<(), Error> {
    let call = async {
        let mut client = RegistrationClient::new(kubelet_api::connect(socket).await?);
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: endpoint.to_owned(),
            resource_name: resource.to_owned(),
            options: Some(OPTIONS),
        };
        client.register(request).await?;
        Ok(())
    };
    timeout(LIMIT, call).await.unwrap_or(Err(Error::Timeout))
}
