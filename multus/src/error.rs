//! What can go wrong in multus itself. A delegate's own error is carried along, with its code.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::selection::SelectionError;

/// An error: what was attempted, on what, why it failed, and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration on standard input cannot be used.
    #[error("failed to load netconf: {0}")]
    Conf(cni::Error),
    /// The default network is not there yet.
    #[error(
        "have you checked that your default network is ready? still waiting for readinessindicatorfile @ {}. pollimmediate error: timed out waiting for the condition",
        path.display()
    )]
    NotReady {
        /// The file that is waited for.
        path: PathBuf,
    },
    /// Another call for the same container stands in the way.
    #[error("another call for container {container} does not end: {source}; see which of its plugins hangs")]
    Turn {
        /// The container's ID.
        container: String,
        /// The lock that was waited for.
        source: host::lock::Error,
    },
    /// The kubeconfig (or the in-cluster environment) does not give a client.
    #[error(
        "cannot talk to Kubernetes by {source_of_access}: {message}; check the \"kubeconfig\" of the multus configuration"
    )]
    Access {
        /// The file, or the in-cluster environment.
        source_of_access: String,
        /// What is wrong with it.
        message: String,
    },
    /// The API server refused or did not answer.
    #[error("error {operation}: {message}")]
    Api {
        /// What was attempted on what.
        operation: String,
        /// The server's answer, or the lack of one, and what to do.
        message: String,
        /// Whether a later attempt may succeed without a change.
        transient: bool,
    },
    /// The pod was deleted and made again under the same name.
    #[error(
        "expected pod UID {expected:?} but got {found:?} from Kube API: the pod was made anew, and its own ADD will follow"
    )]
    PodUid {
        /// What the runtime told.
        expected: String,
        /// What the API server has.
        found: String,
    },
    /// An annotation of the pod cannot be understood.
    #[error("annotation {key} of the pod: {source}")]
    Annotation {
        /// The annotation's key.
        key: &'static str,
        /// Which part of it and why.
        source: SelectionError,
    },
    /// There is no such NAD.
    #[error(
        "cannot find a network-attachment-definition ({name}) in namespace ({namespace}): create it, or correct the name in the pod's annotation"
    )]
    NoSuchNad {
        /// The NAD's namespace.
        namespace: String,
        /// The NAD's name.
        name: String,
    },
    /// Networks are asked for by name, and no API server is configured.
    #[error(
        "network {network} is a network-attachment-definition, and without a \"kubeconfig\" in the multus configuration there is no way to read it"
    )]
    NoKubernetes {
        /// The network.
        network: String,
    },
    /// The pod may not use a network of that namespace.
    #[error(
        "namespace isolation enabled, annotation violates permission, pod is in namespace {pod} but refers to target namespace {target}: use a network of the pod's own namespace, or have {target} added to \"globalNamespaces\""
    )]
    Isolation {
        /// The pod's namespace.
        pod: String,
        /// The network's namespace.
        target: String,
    },
    /// A network's configuration cannot be used.
    #[error("network {network}: {source}")]
    Network {
        /// The network.
        network: String,
        /// Why.
        source: cni::Error,
    },
    /// `clusterNetwork` or an entry of `defaultNetworks` cannot be resolved.
    #[error("failed to get clusterNetwork {reference} in namespace {namespace}: {source}")]
    ClusterNetwork {
        /// The reference as configured.
        reference: String,
        /// The namespace in which it was looked for.
        namespace: String,
        /// Why.
        source: Box<Error>,
    },
    /// A network needs a device and the pod has none (left) of its resource.
    #[error(
        "network {network} needs a device of resource {resource}, and kubelet allocated {allocated} of it to pod {pod}, all in use by other networks: request one for each such network in resources.limits of the pod's containers"
    )]
    NoDevice {
        /// The network.
        network: String,
        /// The resource its NAD names.
        resource: String,
        /// The pod.
        pod: String,
        /// How many devices of the resource the pod has.
        allocated: usize,
    },
    /// The pod asks of a network what none of its plugins declares, and the node's policy is to refuse that.
    #[error(
        "the pod asks for {capabilities} of network {network}, and no plugin of it declares that capability: add it to \"capabilities\" of the plugin that honours it, or take the request out of the pod's annotation"
    )]
    Undeclared {
        /// The network.
        network: String,
        /// The capabilities, with commas.
        capabilities: String,
    },
    /// kubelet could not be asked for the pod's devices.
    #[error("cannot learn from kubelet which devices pod {pod} was allocated: {message}")]
    Kubelet {
        /// The pod.
        pod: String,
        /// Why, and what to do.
        message: String,
    },
    /// Two networks want the same interface name, or the container has it already.
    #[error(
        "cannot set {network:?} interface name to {ifname:?}: validateIfName: interface name {ifname} already exists: {holder}"
    )]
    InterfaceTaken {
        /// The network.
        network: String,
        /// The name.
        ifname: String,
        /// Who has the name, and what to do.
        holder: String,
    },
    /// The container's network namespace cannot be used.
    #[error(
        "cannot set {first}: validateIfName: no net namespace {} found: {source}",
        path.display()
    )]
    Netns {
        /// The first network and its interface: `"main" interface name to "eth0"`.
        first: String,
        /// The namespace's path.
        path: PathBuf,
        /// Why.
        source: host::netns::Error,
    },
    /// The container's interfaces or routes could not be read or changed.
    #[error("{context}: {source}")]
    Netlink {
        /// What was attempted.
        context: String,
        /// The kernel's answer.
        source: host::netlink::Error,
    },
    /// More than one network asks for a default route of the same family.
    #[error(
        "multus does not support ECMP for default-route: {first} and {second} are both asked for; keep one gateway for each of IPv4 and IPv6"
    )]
    Ecmp {
        /// One gateway.
        first: IpAddr,
        /// Another one of the same family.
        second: IpAddr,
    },
    /// The state of a sandbox could not be read or written.
    #[error("state of container {container}: {source}")]
    Record {
        /// The container ID.
        container: String,
        /// Why.
        source: host::durable::Error,
    },
    /// A delegate failed.
    #[error("error {verb} network {network:?}: {source}")]
    Delegate {
        /// What was attempted, for example `adding container to`.
        verb: &'static str,
        /// The CNI network's name.
        network: String,
        /// What status, events and logs call it.
        label: String,
        /// The delegate's error.
        source: cni::Error,
    },
    /// Several things failed, and all were attempted.
    #[error("errors: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(" / "))]
    Several(Vec<Error>),
    /// An ADD failed, and so did its undoing.
    #[error(
        "{cause}; undoing the networks attached so far failed too and will be tried again by the next DEL: {undo}"
    )]
    Undo {
        /// Why ADD failed.
        cause: Box<Error>,
        /// Why undoing failed.
        undo: Box<Error>,
    },
    /// CHECK of a sandbox nothing is known of.
    #[error("no record of container {container} in {}: it was not attached by multus, or its state was lost; recreate the pod", directory.display())]
    NoRecord {
        /// The container ID.
        container: String,
        /// Where records are kept.
        directory: PathBuf,
    },
    /// The executor could not be started.
    #[error("cannot start: {0}")]
    Start(std::io::Error),
}

impl Error {
    /// The CNI error code: a delegate's own, 7 for configuration, 11 for what may pass, else 999.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Error::Conf(source) | Error::Network { source, .. } | Error::Delegate { source, .. } => {
                source.code
            }
            Error::Annotation { .. }
            | Error::NoSuchNad { .. }
            | Error::NoKubernetes { .. }
            | Error::Isolation { .. }
            | Error::NoDevice { .. }
            | Error::Undeclared { .. }
            | Error::Ecmp { .. }
            | Error::Access { .. } => cni::Error::INVALID_CONFIG,
            Error::NotReady { .. } | Error::Kubelet { .. } | Error::Turn { .. } => {
                cni::Error::TRY_AGAIN_LATER
            }
            Error::Api { transient: true, .. } => cni::Error::TRY_AGAIN_LATER,
            Error::ClusterNetwork { source, .. } | Error::Undo { cause: source, .. } => source.code(),
            Error::Several(errors) => errors.first().map_or(cni::Error::INTERNAL, Error::code),
            Error::Netns { .. } => cni::Error::INVALID_NETNS,
            Error::NoRecord { .. } => cni::Error::UNKNOWN_CONTAINER,
            Error::Record { .. } => cni::Error::IO,
            Error::Api { .. }
            | Error::PodUid { .. }
            | Error::InterfaceTaken { .. }
            | Error::Netlink { .. }
            | Error::Start(_) => cni::Error::INTERNAL,
        }
    }

    /// All of `errors` as one; nothing when there are none.
    ///
    /// # Errors
    /// When there is at least one.
    pub fn join(mut errors: Vec<Error>) -> Result<(), Error> {
        match (errors.pop(), errors.is_empty()) {
            (None, _) => Ok(()),
            (Some(only), true) => Err(only),
            (Some(last), false) => {
                errors.push(last);
                Err(Error::Several(errors))
            }
        }
    }
}
