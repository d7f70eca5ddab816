//! Pods with macvlan networks and addresses of host-local.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use host::netlink::Link;
use serde_json::{Value, json};

use super::bad_request::refused;
use super::left::nothing_left;
use crate::cluster::NAMESPACE;
use crate::neighbour::Neighbour;
use crate::pod::PodSpec;
use crate::prepare::PRIMARY;
use crate::session::{Running, Session};

/// The interface that the pods' networks use, and the other end of its cable.
const UPLINK: &str = "uplink0";
/// Where the node keeps the configuration of NADs that have none.
const ON_NODE: &str = "/etc/cni/multus/net.d";

/// A NAD without a name in its configuration, an annotation that is the NAD's name: lo, eth0 and net1, and a
/// network-status that is what the kernel has, to the letter.
pub(super) async fn by_name(session: &mut Session) -> Result<()> {
    let neighbour = Neighbour::connect(&[UPLINK])?;
    neighbour.run(&format!("ip address add 192.168.1.1/24 dev {UPLINK}"))?;
    let config = json!({
        "cniVersion": "0.3.0",
        "type": "macvlan",
        "master": UPLINK,
        "mode": "bridge",
        "ipam": {
            "type": "host-local",
            "subnet": "192.168.1.0/24",
            "rangeStart": "192.168.1.200",
            "rangeEnd": "192.168.1.216",
            "routes": [{"dst": "0.0.0.0/0"}],
            "gateway": "192.168.1.1",
        },
    });
    session.cluster.create_nad("macvlan-conf", &config, None).await?;
    let pod = session.run(PodSpec::new("macvlan").networks("macvlan-conf")).await?;
    let names = pod.inside.interfaces().await?;
    ensure!(names == ["eth0", "lo", "net1"], "the pod has interfaces {names:?}");
    pod.inside.reaches(Ipv4Addr::new(192, 168, 1, 1).into()).await?;

    let (eth0, eth0_address) = interface(&pod, "eth0").await?;
    let (net1, net1_address) = interface(&pod, "net1").await?;
    ensure!(net1.kind.as_deref() == Some("macvlan"), "net1 is {:?}", net1.kind);
    ensure!(within(net1_address, [192, 168, 1, 200], 216), "net1 has {net1_address}");
    let mac = |link: &Link| link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let expected = format!(
        "[{{\n    \"name\": \"{PRIMARY}\",\n    \"interface\": \"eth0\",\n    \"ips\": [\n        \"{eth0_address}\"\n    ],\n    \
         \"mac\": \"{}\",\n    \"default\": true,\n    \"dns\": {{}}\n}},\
         {{\n    \"name\": \"{NAMESPACE}/macvlan-conf\",\n    \"interface\": \"net1\",\n    \"ips\": [\n        \"{net1_address}\"\n    ],\n    \
         \"mac\": \"{}\",\n    \"dns\": {{}}\n}}]",
        mac(&eth0),
        mac(&net1),
    );
    let status = session.cluster.network_status_text("macvlan").await?;
    ensure!(status == expected, "network-status is\n{status}\nand not\n{expected}");
    session.delete(&pod).await?;
    nothing_left(&[PRIMARY, "macvlan-conf"]).await
}

/// One NAD twice, with a portmap behind it, and one whose configuration is a file of the node.
pub(super) async fn four_networks(session: &mut Session) -> Result<()> {
    let _neighbour = Neighbour::connect(&[UPLINK])?;
    let bridge = json!({
        "cniVersion": "0.3.1",
        "name": "vlan-conf",
        "plugins": [
            {
                "type": "bridge", "bridge": "podrail2", "hairpinMode": true, "isDefaultGateway": true,
                "ipam": {"type": "host-local", "subnet": "10.244.3.0/24"},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    });
    session.cluster.create_nad("vlan-conf", &bridge, None).await?;
    session.cluster.create_nad_of_nodes("macvlan-conf").await?;
    let on_node = json!({
        "cniVersion": "0.3.0", "name": "macvlan-conf", "type": "macvlan", "master": UPLINK, "mode": "bridge",
        "ipam": {"type": "host-local", "ranges": [[{
            "subnet": "172.16.1.0/24", "rangeStart": "172.16.1.100", "rangeEnd": "172.16.1.149",
        }]]},
    });
    std::fs::create_dir_all(ON_NODE).with_context(|| format!("create {ON_NODE}"))?;
    let file = Path::new(ON_NODE).join("macvlan.conf");
    host::durable::replace(&file, on_node.to_string().as_bytes())?;
    let outcome = four_networks_with_file(session).await;
    host::durable::remove(&file)?;
    outcome
}

async fn four_networks_with_file(session: &Session) -> Result<()> {
    let specs = (1..=2)
        .map(|index| PodSpec::new(&format!("four-{index}")).networks("vlan-conf, vlan-conf, macvlan-conf"));
    let pods = session.run_all(specs).await?;
    let mut seen = std::collections::BTreeSet::new();
    for pod in &pods {
        let names = pod.inside.interfaces().await?;
        ensure!(names == ["eth0", "lo", "net1", "net2", "net3"], "the pod has interfaces {names:?}");
        for name in ["net1", "net2"] {
            let (_, address) = interface(pod, name).await?;
            ensure!(within(address, [10, 244, 3, 2], 254), "{name} has {address}");
            ensure!(seen.insert(address), "{address} was given twice");
        }
        let (net3, address) = interface(pod, "net3").await?;
        ensure!(net3.kind.as_deref() == Some("macvlan"), "net3 is {:?}", net3.kind);
        ensure!(within(address, [172, 16, 1, 100], 149), "net3 has {address}");
        ensure!(seen.insert(address), "{address} was given twice");
        let status = session.cluster.network_status(pod.spec.name()).await?;
        let told: Vec<&str> = status.iter().map(|state| state.name.as_str()).collect();
        let vlan = format!("{NAMESPACE}/vlan-conf");
        ensure!(told == [PRIMARY, &vlan, &vlan, &format!("{NAMESPACE}/macvlan-conf")], "networks {told:?}");
    }
    let [one, other] = pods.as_slice() else { anyhow::bail!("two pods were created") };
    one.inside.reaches(interface(other, "net3").await?.1.into()).await?;
    one.inside.reaches(interface(other, "net2").await?.1.into()).await?;
    session.delete_all(&pods).await?;
    nothing_left(&[PRIMARY, "vlan-conf", "macvlan-conf"]).await
}

/// An address and a MAC for one of two attachments to the same NAD; an address that the range does not have is an
/// error, and the pod waits and holds nothing.
pub(super) async fn chosen_address(session: &mut Session) -> Result<()> {
    const MAC: &str = "02:00:5e:20:00:01";
    let _neighbour = Neighbour::connect(&[UPLINK])?;
    let config = json!({
        "cniVersion": "0.3.1",
        "name": "chosen",
        "plugins": [
            {
                "type": "macvlan", "master": UPLINK, "mode": "bridge", "capabilities": {"ips": true},
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{
                        "subnet": "172.16.1.0/24", "rangeStart": "172.16.1.200", "rangeEnd": "172.16.1.246",
                        "gateway": "172.16.1.1",
                    }]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "tuning", "capabilities": {"mac": true}},
        ],
    });
    session.cluster.create_nad("macvlan-conf", &config, None).await?;
    let request = |address: &str| -> Value {
        json!([{"name": "macvlan-conf"}, {"name": "macvlan-conf", "ips": [address], "mac": MAC}])
    };
    let inside = PodSpec::new("inside-range").networks(&request("172.16.1.201"));
    let pod = session.run(inside).await?;
    let (_, any) = interface(&pod, "net1").await?;
    ensure!(within(any, [172, 16, 1, 200], 246) && any != Ipv4Addr::new(172, 16, 1, 201), "net1 has {any}");
    let (net2, chosen) = interface(&pod, "net2").await?;
    ensure!(chosen == Ipv4Addr::new(172, 16, 1, 201), "net2 has {chosen}");
    ensure!(net2.mac.is_some_and(|mac| mac.to_string() == MAC), "net2 has MAC {:?}", net2.mac);
    session.delete(&pod).await?;

    let outside = PodSpec::new("outside-range").networks(&request("172.16.1.20"));
    refused(session, outside, &["172.16.1.20", "macvlan-conf"]).await?;
    nothing_left(&[PRIMARY, "chosen"]).await
}

/// An interface of the pod with its one IPv4 address.
async fn interface(pod: &Running, name: &str) -> Result<(Link, Ipv4Addr)> {
    let (link, addresses) = pod.inside.link(name).await?;
    let mut ipv4 = addresses.iter().filter_map(|address| match address.net.addr() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    let address = ipv4.next().with_context(|| format!("{name} has no IPv4 address"))?;
    ensure!(ipv4.next().is_none(), "{name} has more than one IPv4 address");
    Ok((link, address))
}

/// Whether `address` is from `first` to the address of the same /24 that ends with `last`.
fn within(address: Ipv4Addr, first: [u8; 4], last: u8) -> bool {
    let [a, b, c, _] = first;
    (Ipv4Addr::from(first)..=Ipv4Addr::new(a, b, c, last)).contains(&address)
}
