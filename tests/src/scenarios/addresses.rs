//! Addresses of whereabouts.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::NAMESPACE;
use crate::pod::PodSpec;
use crate::prepare::NETDEVICE;
use crate::session::{Running, Session, sriov};

/// Four pods on a bridge with a range of each family: eight different addresses, each in the range and in
/// network-status, and every pod reaches every other.
pub(super) async fn unique(session: &mut Session) -> Result<()> {
    let ranges = json!({"type": "whereabouts", "network_name": "unique", "ipRanges": [
        {"range": "10.58.0.0/24", "exclude": ["10.58.0.0/30"]},
        {"range": "fd58::/64"},
    ]});
    session.cluster.create_nad("unique", &bridge("podrail58", &ranges), None).await?;
    let specs = ["a", "b", "c", "d"].map(|name| PodSpec::new(&format!("unique-{name}")).networks("unique"));
    let pods = session.run_all(specs).await?;
    let mut all = BTreeSet::new();
    for pod in &pods {
        let addresses = net1(session, pod).await?;
        let [IpAddr::V4(four), IpAddr::V6(six)] = addresses.as_slice() else {
            anyhow::bail!("{} has {addresses:?}, and not one address of each family", pod.spec.name())
        };
        ensure!(four.octets().starts_with(&[10, 58, 0]) && four.octets()[3] >= 4, "{four} is excluded");
        ensure!(six.segments().starts_with(&[0xfd58, 0, 0, 0]), "{six} is not of fd58::/64");
        all.extend(addresses);
    }
    ensure!(all.len() == pods.len() * 2, "{} pods have the addresses {all:?}", pods.len());
    for pod in &pods {
        for address in &all {
            pod.inside.reaches(*address).await?;
        }
    }
    session.delete_all(&pods).await
}

/// Two pods with VFs reach each other by addresses of one range. One that is deleted and made again has its former
/// address, also when others came in between.
pub(super) async fn former(session: &mut Session) -> Result<()> {
    let range = json!({"type": "whereabouts", "range": "10.59.0.0/24", "network_name": "former"});
    session.cluster.create_nad("former", &sriov(300, &range), Some(NETDEVICE)).await?;
    let spec = |name: &str| PodSpec::new(&format!("former-{name}")).networks("former").devices(NETDEVICE, 1);
    let mut pods = session.run_all(["a", "b"].map(spec)).await?;
    let [a, b] = pods.as_slice() else { anyhow::bail!("two pods were created") };
    let (of_a, of_b) = (net1(session, a).await?, net1(session, b).await?);
    ensure!(of_a != of_b, "both pods have {of_a:?}");
    for address in &of_b {
        a.inside.reaches(*address).await?;
    }
    session.delete(a).await?;
    let between = session.run(spec("c")).await?;
    ensure!(net1(session, &between).await? != of_b, "the third pod has an address of the second");
    let again = session.run(spec("a")).await?;
    let now = net1(session, &again).await?;
    ensure!(now == of_a, "the pod that came again has {now:?} instead of {of_a:?}");
    pods.splice(..1, [between, again]);
    session.delete_all(&pods).await
}

/// A /30 has two addresses. The third pod hears whose they are, and starts when one of them is gone.
pub(super) async fn exhausted(session: &mut Session) -> Result<()> {
    let range = json!({"type": "whereabouts", "range": "10.60.0.0/30", "network_name": "exhausted"});
    session.cluster.create_nad("exhausted", &bridge("podrail60", &range), None).await?;
    let spec = |name: &str| PodSpec::new(&format!("exhausted-{name}")).networks("exhausted");
    let pods = session.run_all(["a", "b"].map(spec)).await?;
    let third = spec("c");
    let uid = session.cluster.create_pod(&third).await?;
    let message = session
        .cluster
        .wait_warning(third.name(), &uid, |message| {
            message.contains("10.60.0.0/30") && message.contains("2 usable")
        })
        .await?;
    ensure!(message.contains("2 taken"), "the event does not say how many addresses are taken: {message}");
    let [a, b] = pods.as_slice() else { anyhow::bail!("two pods were created") };
    let freed = net1(session, a).await?;
    session.delete(a).await?;
    session.cluster.wait_running(third.name()).await?;
    let status = session.cluster.network_status(third.name()).await?;
    let got = status.get(1).map(|net1| net1.ips.clone()).unwrap_or_default();
    ensure!(
        got == freed.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
        "the third pod has {got:?} instead of {freed:?}"
    );
    session.cluster.delete_pod(third.name()).await?;
    session.delete(b).await
}

fn bridge(name: &str, ipam: &Value) -> Value {
    json!({"cniVersion": "1.0.0", "type": "bridge", "bridge": name, "ipam": ipam})
}

/// The addresses of net1, as the pod has them and as network-status tells.
async fn net1(session: &Session, pod: &Running) -> Result<Vec<IpAddr>> {
    let name = pod.spec.name();
    let (_, addresses) = pod.inside.link("net1").await?;
    let has: BTreeSet<IpAddr> = addresses
        .iter()
        .map(|address| address.net.addr())
        .filter(|address| !is_link_local(*address))
        .collect();
    let status = session.cluster.network_status(name).await?;
    let told =
        status.iter().find(|of| of.interface == "net1").with_context(|| format!("{name} without net1"))?;
    let told: Vec<IpAddr> = told.ips.iter().map(|ip| ip.parse()).collect::<Result<_, _>>()?;
    ensure!(
        has == told.iter().copied().collect(),
        "{NAMESPACE}/{name} has {has:?}, its network-status says {told:?}"
    );
    Ok(told)
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.segments()[0] == 0xfe80)
}
