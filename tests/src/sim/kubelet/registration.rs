//! `kubelet.sock`: plugins that register themselves.

use std::path::PathBuf;
use std::sync::Arc;

use kubelet_api::deviceplugin::registration_server::{Registration, RegistrationServer};
use kubelet_api::deviceplugin::{Empty, RegisterRequest, VERSION};
use tonic::{Request, Response, Status};
use tracing::warn;

use super::manager::DeviceManager;
use super::tasks::Tasks;

/// The Registration service of one kubelet.
#[derive(Debug)]
pub(super) struct Register {
    manager: Arc<DeviceManager>,
    folder: PathBuf,
    tasks: Tasks,
}

impl Register {
    /// The service for plugins whose sockets lie in `folder`.
    pub(super) fn server(
        manager: Arc<DeviceManager>,
        folder: PathBuf,
        tasks: Tasks,
    ) -> RegistrationServer<Register> {
        RegistrationServer::new(Register { manager, folder, tasks })
    }
}

#[tonic::async_trait]
impl Registration for Register {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let RegisterRequest { version, endpoint, resource_name, .. } = request.into_inner();
        if version != VERSION {
            return Err(Status::unknown(format!(
                "requested API version \"{version}\" is not supported by kubelet. Supported version is \"{VERSION}\""
            )));
        }
        if !is_extended_resource(&resource_name) {
            return Err(Status::unknown(format!("the ResourceName \"{resource_name}\" is invalid")));
        }
        // kubelet answers first and dials afterwards.
        let manager = Arc::clone(&self.manager);
        let socket = self.folder.join(endpoint);
        self.tasks.spawn(async move {
            if let Err(error) = manager.connect(&resource_name, &socket).await {
                warn!("{resource_name}: {error:#}");
            }
        });
        Ok(Response::new(Empty {}))
    }
}

/// Whether Kubernetes takes `name` for an extended resource: a domain that is not its own, a slash, a label name.
pub(super) fn is_extended_resource(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else { return false };
    let label = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    let named =
        rest.len() <= 63 && rest.chars().all(label) && end(rest.chars().next()) && end(rest.chars().last());
    !own && !domain.is_empty() && domain.chars().all(|c| label(c) && c != '_') && named
}

#[cfg(test)]
mod tests {
    use super::is_extended_resource;

    #[test]
    fn extended_resources_have_a_foreign_domain() {
        for (name, expected) in [
            ("intel.com/sriov_netdevice", true),
            ("example.org/a-b.c", true),
            ("cpu", false),
            ("kubernetes.io/x", false),
            ("requests.kubernetes.io/x", false),
            ("intel.com/", false),
            ("intel.com/a/b", false),
            ("/x", false),
            ("intel.com/-x", false),
        ] {
            assert_eq!(is_extended_resource(name), expected, "{name}");
        }
    }
}
