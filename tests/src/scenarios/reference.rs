//! The reference plugins behind Multus.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::left::nothing_left;
use crate::neighbour::{Neighbour, end, on_node, spawn};
use crate::pod::PodSpec;
use crate::prepare::PRIMARY;
use crate::session::Session;
use crate::wait::until;

/// Leases of the bridge network.
const LEASES: &str = "/run/podrail/test-bridge";
/// Socket of the reference dhcp daemon.
const DHCP_SOCKET: &str = "/run/cni/dhcp.sock";
/// Configuration of the DHCP server.
const DHCP_SERVER: &str = "/run/podrail/udhcpd.conf";
/// How long a server may take to start.
const STARTS: Duration = Duration::from_secs(60);

/// Each plugin that attaches, each IPAM, and the chains, in one pod: all of it there, and all of it gone.
pub(super) async fn every_plugin(session: &mut Session) -> Result<()> {
    let mut neighbour = Neighbour::connect(&["uplink0", "uplink1", "uplink2", "handed0"])?;
    for (uplink, subnet) in [("uplink0", 50), ("uplink1", 51), ("uplink2", 52), ("handed0", 53)] {
        neighbour.run(&format!("ip address add 192.168.{subnet}.1/24 dev {uplink}"))?;
    }
    std::fs::create_dir_all("/run/podrail")?;
    let server = "start 192.168.50.100\nend 192.168.50.150\ninterface uplink0\nlease_file /run/podrail/udhcpd.leases\n\
                  pidfile /run/podrail/udhcpd.pid\noption subnet 255.255.255.0\noption lease 600\n";
    std::fs::write(DHCP_SERVER, server).with_context(|| format!("write {DHCP_SERVER}"))?;
    neighbour.start(&format!("busybox udhcpd -f {DHCP_SERVER}"))?;
    let _ = std::fs::remove_file(DHCP_SOCKET);
    let mut daemon = spawn(&format!("/opt/cni/bin/dhcp daemon -socketpath {DHCP_SOCKET}"))?;
    let outcome = with_dhcp(session).await;
    // These plugins need the daemon and the interfaces also to give back.
    let cleaned = session.cluster.clean().await;
    end(&mut daemon);
    outcome.and(cleaned)
}

async fn with_dhcp(session: &Session) -> Result<()> {
    until(STARTS, "the dhcp daemon", async || Ok(Path::new(DHCP_SOCKET).exists().then_some(()))).await?;
    let networks = networks();
    for (name, config, _) in &networks {
        session.cluster.create_nad(name, config, None).await?;
    }
    let names: Vec<&str> = networks.iter().map(|(name, ..)| *name).collect();
    let pod = session.run(PodSpec::new("every-plugin").networks(&names.join(","))).await?;
    for (index, (network, _, kind)) in networks.iter().enumerate() {
        let name = format!("net{}", index + 1);
        let (link, addresses) = pod.inside.link(&name).await?;
        ensure!(link.kind.as_deref() == Some(*kind) && link.up, "{network} {name}: {link:?}");
        ensure!(!addresses.is_empty(), "{network}: {name} has no address");
    }
    // Not ipvlan in mode l3: there the machine would need a route by way of the node.
    for subnet in [50, 51, 53] {
        pod.inside.reaches(Ipv4Addr::new(192, 168, subnet, 1).into()).await?;
    }
    let (vrf, _) = pod.inside.link("blue").await?;
    let (in_vrf, _) = pod.inside.link("net6").await?;
    ensure!(vrf.kind.as_deref() == Some("vrf") && in_vrf.master == Some(vrf.index), "net6: {in_vrf:?}");
    let routed = pod.inside.busybox(&["ip", "rule"]).await?;
    ensure!(routed.contains("from 192.168.57.2"), "sbr left no rule: {routed}");
    session.delete(&pod).await?;
    on_node("ip link show handed0").context("host-device gives the interface back")?;
    nothing_left(&[PRIMARY, "ptp", "chained", LEASES]).await
}

/// Name, configuration and the kind of interface that comes of it.
fn networks() -> [(&'static str, Value, &'static str); 7] {
    let fixed = |address: &str| json!({"type": "static", "addresses": [{"address": address}]});
    [
        (
            "bridge",
            json!({
                "cniVersion": "0.4.0", "type": "bridge", "bridge": "podrail3", "isGateway": true, "promiscMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": "/run/podrail",
                    "ranges": [[{
                        "subnet": "10.10.0.0/16", "rangeStart": "10.10.1.20", "rangeEnd": "10.10.3.50",
                        "gateway": "10.10.0.254",
                    }]],
                },
                "name": "test-bridge",
            }),
            "veth",
        ),
        (
            "macvlan",
            json!({
                "cniVersion": "0.3.1", "type": "macvlan", "master": "uplink0", "linkInContainer": false,
                "mode": "bridge", "ipam": {"type": "dhcp"},
            }),
            "macvlan",
        ),
        (
            "ipvlan-l2",
            json!({
                "cniVersion": "0.3.1", "type": "ipvlan", "master": "uplink1", "mode": "l2",
                "ipam": fixed("192.168.51.10/24"),
            }),
            "ipvlan",
        ),
        (
            "ipvlan-l3",
            json!({
                "cniVersion": "0.3.1", "type": "ipvlan", "master": "uplink2", "linkInContainer": false, "mode": "l3",
                "ipam": fixed("192.168.52.10/24"),
            }),
            "ipvlan",
        ),
        (
            "host-device",
            json!({
                "cniVersion": "0.4.0", "type": "host-device", "device": "handed0", "ipam": fixed("192.168.53.10/24"),
            }),
            "veth",
        ),
        (
            "ptp-vrf",
            json!({"cniVersion": "0.4.0", "name": "ptp", "plugins": [
                {"type": "ptp", "ipam": {"type": "host-local", "subnet": "192.168.56.0/24"}},
                {"type": "vrf", "vrfname": "blue"},
            ]}),
            "veth",
        ),
        (
            "bridge-sbr",
            json!({"cniVersion": "0.4.0", "name": "chained", "plugins": [
                {
                    "type": "bridge", "bridge": "podrail4", "isGateway": true,
                    "ipam": {"type": "host-local", "subnet": "192.168.57.0/24"},
                },
                {"type": "sbr"},
            ]}),
            "veth",
        ),
    ]
}
