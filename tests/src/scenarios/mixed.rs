//! Devices of several kinds in one pod, beside networks without one.

use anyhow::{Context as _, Result, ensure};
use host::PciAddress;
use serde_json::json;

use super::left::nothing_left;
use super::netdevice::devices;
use crate::cluster::NAMESPACE;
use crate::inside::Inside;
use crate::neighbour::Neighbour;
use crate::pod::PodSpec;
use crate::prepare::{NETDEVICE, PRIMARY, VFIO};
use crate::session::Session;

/// A container with a network interface and one with a vfio VF, and a macvlan between: each network gets the
/// device of its own resource.
pub(super) async fn two_resources(session: &mut Session) -> Result<()> {
    const DPDK: &str = "PCIDEVICE_INTEL_COM_SRIOV_DPDK";
    let before = session.vfs().await?;
    let _neighbour = Neighbour::connect(&["uplink0"])?;
    let macvlan = json!({
        "cniVersion": "0.3.1", "type": "macvlan", "master": "uplink0", "mode": "bridge",
        "ipam": {"type": "host-local", "subnet": "192.168.60.0/24"},
    });
    session.cluster.create_nad("between", &macvlan, None).await?;
    session.vlan_network("vlan100", 100).await?;
    session.vfio_network("dpdk300", 300).await?;
    let request = json!([
        {"name": "dpdk300"}, {"name": "between"}, {"name": "vlan100", "ips": ["10.56.100.40/24"]},
    ]);
    let spec = PodSpec::new("mixed").networks(&request).devices(NETDEVICE, 1).beside(VFIO, 1);
    let pod = session.run(spec).await?;
    let names = pod.inside.interfaces().await?;
    ensure!(names == ["eth0", "lo", "net2", "net3"], "the pod has interfaces {names:?}");

    let beside = Inside::find_with(&pod.spec, DPDK).await?;
    let vfio = beside.env(DPDK).context("the second container has no device")?.parse()?;
    let main = Inside::find_with(&pod.spec, "PCIDEVICE_INTEL_COM_SRIOV_NETDEVICE").await?;
    ensure!(main.env(DPDK).is_none(), "the first container has the device of the second one");
    let [netdevice] = devices(&main)?.try_into().ok().context("one device was asked for")?;
    let (net3, _) = pod.inside.link("net3").await?;
    ensure!(net3.parent_dev == Some(netdevice.to_string()), "net3 is {net3:?}, not {netdevice}");
    let vfs = session.vfs().await?;
    for (address, vlan) in [(netdevice, 100), (vfio, 300)] {
        let set = vfs.get(&address).and_then(|vf| vf.admin.vlan).map(|set| set.id);
        ensure!(set == Some(vlan), "{address} has VLAN {set:?}, not {vlan}");
    }
    let status = session.cluster.network_status("mixed").await?;
    let told: Vec<Option<&str>> = status
        .iter()
        .map(|state| state.device_info.as_ref()?.pointer("/pci/pci-address")?.as_str())
        .collect();
    let (vfio, netdevice) = (vfio.to_string(), netdevice.to_string());
    ensure!(told.contains(&Some(&vfio)) && told.contains(&Some(&netdevice)), "network-status: {status:?}");
    session.delete(&pod).await?;
    nothing_left(&[PRIMARY, "between"]).await?;
    session.ensure_unchanged(&before).await
}

/// The default network is an SR-IOV one: eth0 is a VF, and a second network of the same resource gets another one.
pub(super) async fn default_network(session: &mut Session) -> Result<()> {
    let before = session.vfs().await?;
    session.vlan_network("vlan100", 100).await?;
    let default = json!([{"name": "vlan100", "namespace": NAMESPACE, "ips": ["10.56.100.41/24"]}]);
    let further = json!([{"name": "vlan100", "ips": ["10.56.100.42/24"]}]);
    let spec = PodSpec::new("default-vf").default_network(&default).networks(&further).devices(NETDEVICE, 2);
    let pod = session.run(spec).await?;
    let mut found: Vec<PciAddress> = Vec::new();
    for name in ["eth0", "net1"] {
        let (link, _) = pod.inside.link(name).await?;
        found.push(link.parent_dev.with_context(|| format!("{name} is no VF"))?.parse()?);
    }
    found.sort();
    let mut allocated = devices(&pod.inside)?;
    allocated.sort();
    ensure!(found == allocated, "eth0 and net1 are {found:?}, allocated are {allocated:?}");
    let status = session.cluster.network_status("default-vf").await?;
    let [eth0, net1] = status.as_slice() else {
        anyhow::bail!("network-status has {} elements", status.len())
    };
    let name = format!("{NAMESPACE}/vlan100");
    ensure!(eth0.default && eth0.name == name && eth0.ips == ["10.56.100.41"], "eth0: {eth0:?}");
    ensure!(!net1.default && net1.name == name && net1.ips == ["10.56.100.42"], "net1: {net1:?}");
    ensure!(eth0.device_info.is_some(), "network-status of eth0 has no device-info: {eth0:?}");
    session.delete(&pod).await?;
    nothing_left(&[PRIMARY]).await?;
    session.ensure_unchanged(&before).await
}
