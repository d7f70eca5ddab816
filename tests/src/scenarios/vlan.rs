//! VLANs keep pods apart.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::pod::PodSpec;
use crate::prepare::NETDEVICE;
use crate::session::Session;

/// How many pings must stay without an answer.
const PINGS: u32 = 3;

/// Two pods on VLAN 100 and two on VLAN 200, all in one subnet: each pair talks, and nobody across.
pub(super) async fn isolation(session: &mut Session) -> Result<()> {
    session.vlan_network("vlan100", 100).await?;
    session.vlan_network("vlan200", 200).await?;
    let wanted = [("a", "vlan100", 1), ("b", "vlan100", 2), ("c", "vlan200", 3), ("d", "vlan200", 4)];
    let specs = wanted.map(|(name, network, host)| {
        let request = json!([{"name": network, "ips": [format!("10.57.0.{host}/24")]}]);
        PodSpec::new(&format!("vlan-{name}")).networks(&request).devices(NETDEVICE, 1)
    });
    let pods = session.run_all(specs).await?;
    let address = |host: u8| IpAddr::from([10, 57, 0, host]);
    let [a, b, c, d] = pods.as_slice() else { anyhow::bail!("four pods were created") };
    a.inside.reaches(address(2)).await?;
    b.inside.reaches(address(1)).await?;
    c.inside.reaches(address(4)).await?;
    d.inside.reaches(address(3)).await?;
    for (pod, target) in [(a, 3), (c, 2)] {
        let answers = pod.inside.ping(address(target), PINGS).await?;
        let name = pod.spec.name();
        ensure!(answers == 0, "{name} got {answers} answers from 10.57.0.{target} on another VLAN");
    }
    session.delete_all(&pods).await
}
