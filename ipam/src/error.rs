//! What can go wrong in IPAM.

use std::net::IpAddr;
use std::path::PathBuf;

/// An error: what was attempted, on what, why it failed, and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be read.
    #[error("whereabouts configuration: {0}")]
    Conf(cni::Error),
    /// The flat file is there and cannot be read.
    #[error("whereabouts configuration: reading {}: {cause}", path.display())]
    FlatFile {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A value of the configuration is none.
    #[error("whereabouts configuration: {key} is {value:?}; it must be {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// The runtime did not say which pod it is.
    #[error(
        "K8S_POD_NAME and K8S_POD_NAMESPACE are missing in CNI_ARGS: an address belongs to a pod, and the runtime must name it"
    )]
    NoPod,
    /// The node's name is nowhere.
    #[error(
        "the name of this node is not known: set NODENAME, or write it into the file nodename beside the flat file, or into {}",
        host_name.display()
    )]
    NoNodeName {
        /// Where it was looked for last.
        host_name: PathBuf,
    },
    /// Figures cannot be served.
    #[error("cannot listen on {address}: {cause}; choose another --metrics")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// The directory of the ledgers cannot be watched.
    #[error("the node's ledgers: {0}")]
    Watch(#[from] host::directory_watch::Error),
    /// There is no kubeconfig.
    #[error(
        "no kubeconfig: set kubernetes.kubeconfig in the ipam section or in whereabouts.conf; pools are objects of the cluster"
    )]
    NoKubeconfig,
    /// There is no service account.
    #[error(
        "--conf-dir needs the service account of a pod, and this process is in none: leave it out, or write the kubeconfig \
         yourself"
    )]
    NoServiceAccount,
    /// The plugin, or what it needs, could not be put on the node.
    #[error(
        "{0}; mount the host's directories of plugins and network configurations where --bin-dir and --conf-dir say"
    )]
    Install(host::durable::Error),
    /// The kubeconfig that is there leads to pools elsewhere.
    #[error(
        "{} has pools in namespace {theirs:?} and this pod is in {ours:?}: run the daemon in that namespace, or remove the file \
         when no pod has an address of its pools",
        path.display()
    )]
    OtherNamespace {
        /// The file.
        path: PathBuf,
        /// Its namespace.
        theirs: String,
        /// That of the pod.
        ours: String,
    },
    /// The kubeconfig does not give a client.
    #[error("cannot talk to Kubernetes by kubeconfig {}: {message}", path.display())]
    Access {
        /// The file.
        path: PathBuf,
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
    /// Others changed the pool all the time.
    #[error(
        "pool {pool} was changed by others {tries} times in a row while an address was asked for: try again"
    )]
    Contended {
        /// The pool.
        pool: String,
        /// How often it was tried.
        tries: u32,
    },
    /// No address is left.
    // The words that alerts on the peer look for.
    #[error("Could not allocate IP in range: no address left in {}", .ranges.join("; nor in "))]
    Exhausted {
        /// Each range of the set, with its size, use and holders.
        ranges: Vec<String>,
    },
    /// An address that was asked for is another's.
    #[error("address {address} is taken by {holder}: ask for another one, or remove its holder")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: String,
    },
    /// The address of a tenant is still in use.
    #[error(
        "the address {address} of {tenant} is still with {holder}: it comes over when that one is detached (if its \
         machine is gone, delete the Node)"
    )]
    Occupied {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        tenant: String,
        /// Where it is.
        holder: String,
    },
    /// The pod names a claim that is not there.
    #[error(
        "the pod refers to IPAMClaim {name}, which does not exist: create it, or correct ipam-claim-reference"
    )]
    NoClaim {
        /// `namespace/name`.
        name: String,
    },
    /// The pod names a claim of another network.
    #[error(
        "IPAMClaim {name} is for network {network:?}, not for {wanted:?}: refer to a claim of this network"
    )]
    OtherClaim {
        /// `namespace/name`.
        name: String,
        /// Its network.
        network: String,
        /// The network of the call.
        wanted: String,
    },
    /// An address that was asked for is in no range.
    #[error(
        "address {address} was asked for and is in no range of the network ({ranges}): correct the pod's \"ips\""
    )]
    Outside {
        /// The address.
        address: IpAddr,
        /// The ranges.
        ranges: String,
    },
    /// The ledger could not be read or written.
    #[error("the node's ledger: {0}")]
    Disk(#[from] host::durable::Error),
    /// The ledger is in use.
    #[error("the node's ledger: {0}")]
    Lock(#[from] host::lock::Error),
    /// The ledger is not the one that the call began with.
    #[error(
        "the ledger of pool {pool} was replaced during the call: another version of this program is at work, or the file \
         was removed: try again"
    )]
    Replaced {
        /// The pool.
        pool: String,
    },
    /// CHECK found something else than ADD left.
    #[error("{container} {ifname}: {what}; recreate the pod")]
    Check {
        /// Container ID.
        container: String,
        /// Interface.
        ifname: String,
        /// What is wrong.
        what: String,
    },
    /// What the kernel tells of the machine could not be read.
    #[error("cannot start: {0}")]
    Start(std::io::Error),
}

impl Error {
    /// The CNI error code: 7 for configuration, 11 for what may pass, else 999.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Error::Conf(error) => error.code,
            Error::Value { .. } | Error::NoNodeName { .. } | Error::NoKubeconfig | Error::Access { .. } => {
                cni::Error::INVALID_CONFIG
            }
            Error::NoPod => cni::Error::INVALID_ENVIRONMENT,
            Error::Api { transient: true, .. }
            | Error::Contended { .. }
            | Error::Occupied { .. }
            | Error::NoClaim { .. }
            | Error::Replaced { .. }
            | Error::Lock(_) => cni::Error::TRY_AGAIN_LATER,
            Error::Disk(_) | Error::FlatFile { .. } => cni::Error::IO,
            Error::Api { .. }
            | Error::Exhausted { .. }
            | Error::Taken { .. }
            | Error::Outside { .. }
            | Error::OtherClaim { .. }
            | Error::Check { .. }
            | Error::Listen { .. }
            | Error::Watch(_)
            | Error::NoServiceAccount
            | Error::Install(_)
            | Error::OtherNamespace { .. }
            | Error::Start(_) => cni::Error::INTERNAL,
        }
    }
}
