//! kubelet hangs, and kubelet's directories lose what plugins keep there; VFs that come and go meanwhile.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use host::sysfs::PciDevice;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::restarts::{first_pod, next_pod, untouched};
use crate::node::Grade;
use crate::pod::PodSpec;
use crate::prepare::{NETDEVICE, VFIO};
use crate::session::Session;
use crate::wait::until;

const REGISTRY: &str = "/var/lib/kubelet/plugins_registry";
const PLUGINS: &str = "/var/lib/kubelet/device-plugins";

/// How long a plugin may take to make its socket anew.
const MADE_ANEW: Duration = Duration::from_secs(60);
/// kubelet may take so long to see a socket that came or went.
const SEEN: SignedDuration = SignedDuration::from_secs(3);

/// How many VFs a PF has for a while.
const FEWER: u32 = 4;

/// While kubelet stands still, a PF gets fewer VFs; when it goes on, the node offers those. Then it gets all of them,
/// under the eyes of kubelet, and a pod has one.
pub(super) async fn stopped(session: &mut Session) -> Result<()> {
    // A kubelet that takes no part for a minute is declared lost; the times of the simulated one are shorter.
    let standstill = Duration::from_secs(if session.node.grade() == Grade::Kubernetes { 60 } else { 5 });
    let pf = first_pf(session)?;
    let count = pf.num_vfs()?.context("a PF without VFs")?;
    session.renewed = true;
    session.node.pause_kubelet()?;
    let changed = make_vfs(&pf, FEWER);
    tokio::time::sleep(standstill).await;
    session.node.continue_kubelet()?;
    changed?;
    let of_others = |vfs: &[host::PciAddress]| -> Result<u64> {
        let mut number = 0;
        for vf in vfs {
            let exists = session.sysfs.pci_device(*vf).ok().and_then(|vf| vf.physfn().ok().flatten());
            number += u64::from(exists.is_some_and(|owner| owner.address() != pf.address()));
        }
        Ok(number)
    };
    let netdevices = of_others(&session.prepared.netdevices)? + u64::from(FEWER);
    let vfio = of_others(&session.prepared.vfio)?;
    session.cluster.wait_ready().await?;
    session.cluster.wait_allocatable(NETDEVICE, netdevices).await?;
    session.cluster.wait_allocatable(VFIO, vfio).await?;

    make_vfs(&pf, count)?;
    session.prepared.share_out(&session.sysfs)?;
    session.wait_advertised().await?;
    session.vlan_network("vlan100", 100).await?;
    let networks = serde_json::json!([{"name": "vlan100", "ips": ["10.56.100.41/24"]}]);
    let pod = session.run(PodSpec::new("afterwards").networks(&networks).devices(NETDEVICE, 1)).await?;
    pod.inside.link("net1").await?;
    session.delete(&pod).await?;
    session.prepared.device_plugin.check()
}

/// Everything in kubelet's directories for plugins is removed while it runs: it finds the plugin again by itself. Then
/// one of them is removed as a whole, and kubelet restarts. The pod runs on, the next one gets another VF.
pub(super) async fn wiped(session: &mut Session) -> Result<()> {
    let (first, address) = first_pod(session).await?;
    let before = SystemTime::now();
    for directory in [REGISTRY, PLUGINS] {
        empty(Path::new(directory))?;
    }
    announced_anew(session, before).await?;
    untouched(&first).await?;

    std::fs::remove_dir_all(REGISTRY).with_context(|| format!("remove {REGISTRY}"))?;
    session.node.restart_kubelet().await?;
    session.cluster.wait_heartbeat(Timestamp::now()).await?;
    session.wait_advertised().await?;
    untouched(&first).await?;
    next_pod(session, &first, address).await?;
    session.prepared.device_plugin.check()
}

/// Somebody removes the sockets of the plugin.
pub(super) async fn socket_removed(session: &mut Session) -> Result<()> {
    for _ in 0..3 {
        let before = SystemTime::now();
        for socket in sockets()? {
            std::fs::remove_file(&socket).with_context(|| format!("remove {}", socket.display()))?;
        }
        announced_anew(session, before).await?;
    }
    let (first, address) = first_pod(session).await?;
    next_pod(session, &first, address).await
}

/// The PF of the first VF.
fn first_pf(session: &Session) -> Result<PciDevice> {
    let vf = session.prepared.netdevices.first().context("no VF")?;
    session.sysfs.pci_device(*vf)?.physfn()?.with_context(|| format!("VF {vf} has no PF"))
}

/// Changes how many VFs there are; from one number to another the kernel goes through none.
fn make_vfs(pf: &PciDevice, count: u32) -> Result<()> {
    let write = |count| pf.set_num_vfs(count).with_context(|| format!("{count} VFs on PF {}", pf.address()));
    write(0)?;
    write(count)
}

/// The sockets of device plugins, in both directories.
fn sockets() -> Result<Vec<PathBuf>> {
    let mut sockets = Vec::new();
    for directory in [REGISTRY, PLUGINS] {
        for entry in std::fs::read_dir(directory).with_context(|| format!("list {directory}"))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.ends_with(".sock") && !name.starts_with("kubelet.") && !name.starts_with('.') {
                sockets.push(path);
            }
        }
    }
    Ok(sockets)
}

fn empty(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry?.path();
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// Waits until there is a socket for each resource that is newer than `before`, and the node has all VFs again.
async fn announced_anew(session: &mut Session, before: SystemTime) -> Result<()> {
    until(MADE_ANEW, "sockets of the device plugin, made anew", async || {
        let made = |path: &PathBuf| std::fs::metadata(path).and_then(|socket| socket.modified());
        let new = sockets()?.iter().filter(|path| made(path).is_ok_and(|made| made >= before)).count();
        Ok((new >= session.pools().len()).then_some(()))
    })
    .await?;
    // What the node shows until kubelet has seen it does not count.
    session.cluster.wait_heartbeat(Timestamp::now().checked_add(SEEN)?).await?;
    session.wait_advertised().await?;
    ensure!(sockets()?.len() == session.pools().len(), "sockets are left: {:?}", sockets()?);
    Ok(())
}
