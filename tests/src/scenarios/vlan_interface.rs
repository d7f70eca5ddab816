//! Pods with VLAN interfaces of the node's own interfaces, without SR-IOV.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::left::nothing_left;
use crate::neighbour::{Neighbour, on_node};
use crate::pod::PodSpec;
use crate::prepare::PRIMARY;
use crate::session::Session;

/// Two VLANs on two masters in one pod, their addresses from the annotation: both reach the other machine, which
/// takes nothing but frames with the tag.
pub(super) async fn two(session: &mut Session) -> Result<()> {
    let neighbour = Neighbour::connect(&["uplink0", "uplink1"])?;
    for (uplink, id) in [("uplink0", 100), ("uplink1", 200)] {
        session.cluster.create_nad(&format!("vlan{id}-conf"), &vlan(uplink, id), None).await?;
        neighbour.run(&format!("ip link add link {uplink} name vlan{id} type vlan id {id}"))?;
        neighbour.run(&format!("ip address add 192.168.{id}.1/24 dev vlan{id}"))?;
        neighbour.run(&format!("ip link set vlan{id} up"))?;
    }
    let request = json!([
        {"name": "vlan100-conf", "ips": ["192.168.100.211/24"]},
        {"name": "vlan200-conf", "ips": ["192.168.200.211/24"]},
    ]);
    let pod = session.run(PodSpec::new("two-vlans").networks(&request)).await?;
    for (name, id) in [("net1", 100), ("net2", 200)] {
        let (link, _) = pod.inside.link(name).await?;
        ensure!(link.kind.as_deref() == Some("vlan") && link.up, "{name}: {link:?}");
        pod.inside.reaches(Ipv4Addr::new(192, 168, id, 1).into()).await?;
    }
    session.delete(&pod).await?;
    nothing_left(&[PRIMARY]).await
}

/// The VLAN ID is taken on the master, first by an interface of the node, then by another pod's: the error says by
/// which and what to do, and once that is done the pod runs.
pub(super) async fn taken(session: &mut Session) -> Result<()> {
    let _neighbour = Neighbour::connect(&["uplink0"])?;
    session.cluster.create_nad("vlan100-conf", &vlan("uplink0", 100), None).await?;
    on_node("ip link add link uplink0 name uplink0.100 type vlan id 100")?;
    let request = |host: u8| json!([{"name": "vlan100-conf", "ips": [format!("192.168.100.{host}/24")]}]);

    let spec = PodSpec::new("first").networks(&request(1));
    let uid = session.cluster.create_pod(&spec).await?;
    let words = ["interface uplink0.100", "VLAN ID 100", "master uplink0", "ip link delete uplink0.100"];
    told(session, "first", &uid, &words).await?;
    on_node("ip link delete uplink0.100")?;
    session.cluster.wait_running("first").await?;

    let uid = session.cluster.create_pod(&PodSpec::new("second").networks(&request(2))).await?;
    told(session, "second", &uid, &["interface net1", "network namespace /", "VLAN ID 100"]).await?;
    session.cluster.delete_pod("first").await?;
    session.cluster.wait_running("second").await?;
    session.cluster.delete_pod("second").await?;
    nothing_left(&[PRIMARY]).await
}

async fn told(session: &Session, pod: &str, uid: &str, words: &[&str]) -> Result<()> {
    let all = |message: &str| words.iter().all(|word| message.contains(word));
    let found = session.cluster.wait_warning(pod, uid, all).await;
    found.map(drop).with_context(|| format!("an error with {}", words.join(" and ")))
}

fn vlan(master: &str, id: u8) -> Value {
    json!({
        "cniVersion": "0.3.1", "type": "vlan", "master": master, "vlanId": id,
        "capabilities": {"ips": true}, "ipam": {"type": "static"},
    })
}
