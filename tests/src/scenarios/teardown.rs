//! What is left when a pod is gone: nothing.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use cni::NetworkList;
use host::Netlink;
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};

use super::netdevice::devices;
use crate::pod::PodSpec;
use crate::prepare::{KUBECONFIG, NETDEVICE};
use crate::session::{Running, Session, sriov};

/// A trusted pod changes MAC and MTU of its VF: the VF comes back with the old ones, and not trusted.
pub(super) async fn pod_changes_vf(session: &mut Session) -> Result<()> {
    let before = session.vfs().await?;
    let mut config = sriov(100, &json!({"type": "static"}));
    config.as_object_mut().context("a configuration is an object")?.insert("trust".to_owned(), json!("on"));
    session.cluster.create_nad("trusted", &config, Some(NETDEVICE)).await?;
    let request = json!([{"name": "trusted", "ips": ["10.56.100.22/24"]}]);
    let pod = session.run(PodSpec::new("changer").networks(&request).devices(NETDEVICE, 1)).await?;
    let (link, _) = pod.inside.link("net1").await?;
    let netlink = Netlink::connect_in(&pod.inside.netns()?)?;
    netlink.set_mtu(link.index, 1400).await?;
    netlink.set_up(link.index, false).await?;
    netlink.set_mac(link.index, "02:00:5e:99:00:01".parse()?).await?;
    session.delete(&pod).await?;
    session.ensure_unchanged(&before).await
}

/// As many pods as there are VFs, one after the other and all at once.
pub(super) async fn used_again(session: &mut Session) -> Result<()> {
    session.vlan_network("vlan100", 100).await?;
    for round in 1..=2 {
        let all = session.prepared.netdevices.len();
        let specs = (1..=all).map(|host| {
            let request = json!([{"name": "vlan100", "ips": [format!("10.56.100.{host}/24")]}]);
            PodSpec::new(&format!("all-{round}-{host}")).networks(&request).devices(NETDEVICE, 1)
        });
        let started = session.run_all(specs).await?;
        let mut used = Vec::new();
        for pod in &started {
            used.extend(devices(&pod.inside)?);
        }
        used.sort();
        ensure!(used == session.prepared.netdevices, "the pods hold {used:?}");
        session.delete_all(&started).await?;
    }
    Ok(())
}

/// The same DEL again, and once more when another pod has the VF: it succeeds and changes nothing.
pub(super) async fn repeated(session: &mut Session) -> Result<()> {
    let before = session.vfs().await?;
    let first = one_vf(session, "first").await?;
    let sandbox = Sandbox::of(&first)?;
    session.delete(&first).await?;
    for _ in 0..2 {
        sandbox.del()?;
        session.ensure_unchanged(&before).await?;
    }
    let request = json!([{"name": "vlan100", "ips": ["10.56.100.21/24"]}]);
    let second = session.run(PodSpec::new("second").networks(&request).devices(NETDEVICE, 1)).await?;
    let during = session.vfs().await?;
    sandbox.del()?;
    session.ensure_unchanged(&during).await?;
    second.inside.link("net1").await.context("DEL of another pod took the interface away")?;
    session.delete(&second).await
}

/// DEL needs nobody but the node.
pub(super) async fn api_refuses(session: &mut Session) -> Result<()> {
    let (_socket, port) = refusing_port()?;
    without_api(session, "api-refuses", port).await
}

/// A port of this node at which every connection is refused, as long as the socket is there: bound and not listened on.
pub(super) fn refusing_port() -> Result<(TcpSocket, u16)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, 1], 0).into())?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

/// DEL does not wait for an API server that takes the connection and says nothing.
pub(super) async fn api_hangs(session: &mut Session) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let silent = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            connections.push(connection);
        }
    });
    let outcome = without_api(session, "api-hangs", port).await;
    silent.abort();
    outcome
}

/// Deletes a pod while Multus' kubeconfig points to `port` of this node.
async fn without_api(session: &mut Session, name: &str, port: u16) -> Result<()> {
    let before = session.vfs().await?;
    let pod = one_vf(session, name).await?;
    let elsewhere = Elsewhere::at(port)?;
    session.delete(&pod).await?;
    drop(elsewhere);
    session.ensure_unchanged(&before).await
}

/// The API server is looked for where it is not, while the value lives.
pub(super) struct Elsewhere {
    /// Where it is.
    kubeconfig: Vec<u8>,
}

impl Elsewhere {
    /// It is looked for at `port` of this node.
    ///
    /// # Errors
    /// The kubeconfig of Multus cannot be replaced.
    pub(super) fn at(port: u16) -> Result<Self> {
        let kubeconfig = std::fs::read(KUBECONFIG).with_context(|| format!("read {KUBECONFIG}"))?;
        let bad = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": format!("https://127.0.0.1:{port}")}}],
            "users": [{"name": "u", "user": {"token": "none"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        });
        host::durable::replace(Path::new(KUBECONFIG), bad.to_string().as_bytes())?;
        Ok(Elsewhere { kubeconfig })
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // What comes next fails, and tells, where it cannot be put back.
        let _ = host::durable::replace(Path::new(KUBECONFIG), &self.kubeconfig);
    }
}

async fn one_vf(session: &Session, name: &str) -> Result<Running> {
    session.vlan_network("vlan100", 100).await?;
    let request = json!([{"name": "vlan100", "ips": ["10.56.100.20/24"], "mac": "02:00:5e:10:00:20"}]);
    session.run(PodSpec::new(name).networks(&request).devices(NETDEVICE, 1)).await
}

/// What a container runtime knows of a pod's attachment: a file of libcni's cache.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sandbox {
    network_name: String,
    container_id: String,
    cni_args: Vec<(String, String)>,
    result: CachedResult,
}

/// The part of a result that every libcni caches and that names the network namespace.
#[derive(Debug, Deserialize)]
struct CachedResult {
    interfaces: Vec<CachedInterface>,
}

#[derive(Debug, Deserialize)]
struct CachedInterface {
    #[serde(default)]
    sandbox: String,
}

impl Sandbox {
    fn of(pod: &Running) -> Result<Sandbox> {
        let folder = "/var/lib/cni/results";
        for entry in std::fs::read_dir(folder).with_context(|| format!("read {folder}"))? {
            let Ok(bytes) = std::fs::read(entry?.path()) else { continue };
            let Ok(sandbox) = serde_json::from_slice::<Sandbox>(&bytes) else { continue };
            // Not the UID: containerd tells it only since 1.7.
            let is_ours = |(key, value): &(String, String)| key == "K8S_POD_NAME" && value == pod.spec.name();
            if sandbox.network_name == "multus-cni-network" && sandbox.cni_args.iter().any(is_ours) {
                return Ok(sandbox);
            }
        }
        bail!("no file in {folder} belongs to pod {}", pod.spec.name())
    }

    fn del(&self) -> Result<()> {
        let mut sandboxes = self.result.interfaces.iter().map(|interface| interface.sandbox.as_str());
        let netns = sandboxes.rfind(|path| !path.is_empty()).unwrap_or_default();
        let args: Vec<String> = self.cni_args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        // As a runtime reads it: multus, or multus-shim where there is a daemon.
        let network = NetworkList::load_first(Path::new("/etc/cni/net.d"))?;
        let plugin = network.plugins.first().context("a network without plugins")?;
        let mut conf = plugin.config.clone();
        conf.set("name", &network.name)?;
        conf.set("cniVersion", &network.version)?;
        let mut child = Command::new(Path::new("/opt/cni/bin").join(&plugin.kind))
            .env_clear()
            .env("CNI_COMMAND", "DEL")
            .env("CNI_CONTAINERID", &self.container_id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", args.join(";"))
            .env("CNI_PATH", "/opt/cni/bin")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {} DEL", plugin.kind))?;
        child.stdin.take().context("no pipe")?.write_all(&conf.to_vec())?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "multus DEL: {} {}", output.status, text.trim());
        Ok(())
    }
}
