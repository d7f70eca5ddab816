//! Pod sandboxes: a network namespace and its attachment to the node's network.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use cni::{Attachment, CniResult, NetworkList, Object};
use serde::{Deserialize, Serialize};

use super::{Paths, PodIdentity, Runtime, netns, write_json};

/// The interface of the node's network in every pod.
const INTERFACE: &str = "eth0";

/// containerd's own network for every sandbox.
const LOOPBACK: &str = r#"{"cniVersion":"0.3.1","name":"cni-loopback","plugins":[{"type":"loopback"}]}"#;

/// A pod sandbox.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Sandbox {
    /// Container ID of the sandbox, the one that CNI plugins see.
    pub id: String,
    /// Whose it is.
    pub pod: PodIdentity,
    /// Path of the network namespace.
    pub netns: PathBuf,
    /// Addresses of `eth0`; empty until the sandbox is attached.
    pub addresses: Vec<IpAddr>,
}

impl Sandbox {
    /// A sandbox with a fresh ID and a fresh path for its namespace; nothing exists of it yet.
    pub(super) fn new(paths: &Paths, pod: PodIdentity) -> Sandbox {
        let id = random_id();
        let netns = paths.netns_dir.join(format!("cni-{}", uuid(&id)));
        Sandbox { id, pod, netns, addresses: Vec::new() }
    }

    /// Writes down that the sandbox exists, before anything of it does.
    ///
    /// # Errors
    /// The state folder cannot be written.
    pub(super) fn record(&self, state_dir: &Path) -> Result<()> {
        write_json(&self.file(state_dir), self)
    }

    fn file(&self, state_dir: &Path) -> PathBuf {
        state_dir.join("sandboxes").join(format!("{}.json", self.id))
    }

    fn attachment(&self, ifname: &str) -> Attachment {
        let pod = &self.pod;
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &pod.namespace),
            ("K8S_POD_NAME", &pod.name),
            ("K8S_POD_INFRA_CONTAINER_ID", &self.id),
            ("K8S_POD_UID", &pod.uid),
        ];
        Attachment {
            container_id: self.id.clone(),
            netns: Some(self.netns.clone()).filter(|path| path.exists()),
            ifname: ifname.to_owned(),
            args: args.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            capabilities: Object::new(),
        }
    }
}

impl Runtime {
    /// Attaches the sandbox to loopback and to the node's network; the addresses of `eth0`.
    pub(super) async fn attach(self: &Arc<Self>, sandbox: &Sandbox) -> Result<Vec<IpAddr>> {
        let (runtime, sandbox) = (Arc::clone(self), sandbox.clone());
        let id = sandbox.id.clone();
        let attached = tokio::task::spawn_blocking(move || -> Result<Vec<IpAddr>> {
            let loopback = NetworkList::parse(LOOPBACK.as_bytes())?;
            let network = runtime.network()?;
            let add = |list: &NetworkList, ifname: &str| {
                let attachment = sandbox.attachment(ifname);
                runtime.cni.add(list, &attachment).map_err(|error| plugin_failed(list, &error))
            };
            add(&loopback, "lo")?;
            let addresses = addresses(&add(&network, INTERFACE)?);
            if addresses.is_empty() {
                return Err(anyhow!("failed to find network info for sandbox {:?}", sandbox.id));
            }
            Ok(addresses)
        });
        attached.await?.map_err(|error| anyhow!("failed to setup network for sandbox {id:?}: {error:#}"))
    }

    /// Detaches the sandbox, removes its namespace and forgets it.
    ///
    /// # Errors
    /// A plugin failed; the sandbox stays recorded.
    pub(super) async fn remove_sandbox(self: &Arc<Self>, sandbox: &Sandbox) -> Result<()> {
        let (runtime, sandbox) = (Arc::clone(self), sandbox.clone());
        tokio::task::spawn_blocking(move || {
            let loopback = NetworkList::parse(LOOPBACK.as_bytes())?;
            let network = runtime.network()?;
            for (list, ifname) in [(&network, INTERFACE), (&loopback, "lo")] {
                let attachment = sandbox.attachment(ifname);
                runtime.cni.del(list, &attachment).map_err(|error| {
                    let error = plugin_failed(list, &error);
                    anyhow!("failed to destroy network for sandbox {:?}: {error:#}", sandbox.id)
                })?;
            }
            netns::remove(&sandbox.netns)?;
            let file = sandbox.file(&runtime.paths.state_dir);
            std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))
        })
        .await?
    }

    fn network(&self) -> Result<NetworkList> {
        NetworkList::load_first(&self.paths.conf_dir).context("cni plugin not initialized")
    }
}

/// The sandboxes that are written down in `folder`.
///
/// # Errors
/// The folder or one of its files cannot be read.
pub(super) fn recorded(folder: &Path) -> Result<Vec<Sandbox>> {
    let mut sandboxes = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let read = std::fs::read(&path).map_err(anyhow::Error::from);
            let sandbox = read.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
            sandboxes.push(sandbox.with_context(|| format!("read {}", path.display()))?);
        }
    }
    Ok(sandboxes)
}

/// The words of go-cni and libcni about a plugin's error.
fn plugin_failed(list: &NetworkList, error: &cni::Error) -> anyhow::Error {
    let separator = if error.details.is_empty() { "" } else { "; " };
    anyhow!("network {:?}: {}{separator}{}", list.name, error.msg, error.details)
}

/// The addresses of `eth0`: those that belong to it, or to no interface.
fn addresses(result: &CniResult) -> Vec<IpAddr> {
    let of_eth0 = |index: Option<usize>| {
        index.is_none_or(|index| {
            result.interfaces.get(index).is_some_and(|interface| interface.name == INTERFACE)
        })
    };
    result.ips.iter().filter(|ip| of_eth0(ip.interface)).map(|ip| ip.address.addr()).collect()
}

/// 64 hexadecimal digits, as container runtimes make them.
fn random_id() -> String {
    use std::fmt::Write as _;
    use std::hash::{BuildHasher as _, Hasher as _};
    let mut id = String::new();
    for _ in 0..4 {
        // The standard library's only source of randomness is enough for a name.
        let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
        let _ = write!(id, "{hash:016x}");
    }
    id
}

/// A UUID of version 4 from an ID of hexadecimal digits.
pub(crate) fn uuid(id: &str) -> String {
    let part = |from: usize, to: usize| id.get(from..to).unwrap_or("0");
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::Version;

    #[test]
    fn ids_are_unique_and_uuids_well_formed() {
        let (one, two) = (random_id(), random_id());
        assert_eq!(one.len(), 64);
        assert_ne!(one, two);
        let uuid = uuid(&one);
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
    }

    #[test]
    fn addresses_are_those_of_eth0() {
        let json = br#"{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/n"},
            {"name":"net1","sandbox":"/n"}],"ips":[{"address":"10.0.0.2/24","interface":1},
            {"address":"10.9.0.2/24","interface":2},{"address":"fd00::2/64"}]}"#;
        let result = CniResult::parse(json, Version::LATEST).unwrap();
        let texts: Vec<String> = addresses(&result).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.2", "fd00::2"]);
    }
}
