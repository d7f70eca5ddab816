//! Pods with VFs that are network interfaces.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use host::PciAddress;
use serde_json::json;

use crate::cluster::NAMESPACE;
use crate::inside::Inside;
use crate::pod::PodSpec;
use crate::prepare::{NETDEVICE, PRIMARY};
use crate::session::Session;

/// MAC, VLAN and address are those of the request: in the pod, on the PF, and in network-status.
pub(super) async fn as_asked(session: &mut Session) -> Result<()> {
    const MAC: &str = "02:00:5e:10:00:01";
    session.vlan_network("vlan100", 100).await?;
    let request = json!([{"name": "vlan100", "ips": ["10.56.100.7/24"], "mac": MAC}]);
    let pod = session.run(PodSpec::new("as-asked").networks(&request).devices(NETDEVICE, 1)).await?;
    let [address] = devices(&pod.inside)?.try_into().ok().context("one device was asked for")?;
    ensure!(session.prepared.netdevices.contains(&address), "{address} is not a VF of {NETDEVICE}");

    let (link, addresses) = pod.inside.link("net1").await?;
    ensure!(link.up, "net1 is down");
    ensure!(link.mac.is_some_and(|mac| mac.to_string() == MAC), "net1 has MAC {:?}", link.mac);
    let addresses: Vec<String> = addresses.iter().map(|address| address.net.to_string()).collect();
    ensure!(addresses.iter().any(|net| net == "10.56.100.7/24"), "net1 has addresses {addresses:?}");
    let here = session.sysfs.pci_device(address)?.netdevs()?;
    ensure!(here.is_empty(), "{address} still shows {here:?} on the node");

    let vfs = session.vfs().await?;
    let vf = vfs.get(&address).context("the pod's VF is not on the node")?;
    ensure!(vf.admin.vlan.is_some_and(|vlan| vlan.id == 100), "VLAN on the PF: {:?}", vf.admin.vlan);
    ensure!(vf.admin.mac.is_some_and(|mac| mac.to_string() == MAC), "MAC on the PF: {:?}", vf.admin.mac);

    let status = session.cluster.network_status("as-asked").await?;
    let [primary, net1] = status.as_slice() else {
        anyhow::bail!("network-status has {} elements", status.len())
    };
    ensure!(
        primary.default && primary.interface == "eth0" && primary.name == PRIMARY,
        "primary: {primary:?}"
    );
    ensure!(!net1.default && net1.name == format!("{NAMESPACE}/vlan100"), "net1: {net1:?}");
    ensure!(net1.interface == "net1" && net1.mac == MAC && net1.ips == ["10.56.100.7"], "net1: {net1:?}");
    let info = net1.device_info.as_ref().context("network-status of net1 has no device-info")?;
    let told = info.pointer("/pci/pci-address").and_then(|told| told.as_str());
    ensure!(told == Some(&address.to_string()), "device-info: {info}");
    session.delete(&pod).await
}

/// Two elements of the annotation and two devices make two different VFs.
pub(super) async fn two_of_one_resource(session: &mut Session) -> Result<()> {
    session.vlan_network("vlan100", 100).await?;
    session.vlan_network("vlan200", 200).await?;
    let request = json!([
        {"name": "vlan100", "ips": ["10.56.100.8/24"]},
        {"name": "vlan200", "ips": ["10.56.200.8/24"], "interface": "data0"},
    ]);
    let pod = session.run(PodSpec::new("two").networks(&request).devices(NETDEVICE, 2)).await?;
    let devices: BTreeSet<PciAddress> = devices(&pod.inside)?.into_iter().collect();
    ensure!(devices.len() == 2, "the pod has {devices:?}");

    let mut found = BTreeSet::new();
    let vfs = session.vfs().await?;
    for (name, vlan) in [("net1", 100), ("data0", 200)] {
        let (link, _) = pod.inside.link(name).await?;
        let parent = link.parent_dev.with_context(|| format!("{name} has no device"))?;
        let vf = vfs.get(&parent.parse()?).with_context(|| format!("{name} is {parent}, which is no VF"))?;
        ensure!(
            vf.admin.vlan.is_some_and(|set| set.id == vlan),
            "{name}: VLAN on the PF {:?}",
            vf.admin.vlan
        );
        found.insert(vf.address);
    }
    ensure!(found == devices, "interfaces are {found:?}, devices {devices:?}");
    session.delete(&pod).await
}

/// The devices of [`NETDEVICE`] that a container's environment names.
pub(super) fn devices(inside: &Inside) -> Result<Vec<PciAddress>> {
    let name = "PCIDEVICE_INTEL_COM_SRIOV_NETDEVICE";
    let value = inside.env(name).with_context(|| format!("the pod has no {name}"))?;
    value.split(',').map(|address| address.parse().with_context(|| format!("{name} is {value}"))).collect()
}
