//! What happens to the Multus daemon, and what pods notice of it: nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use serde_json::json;

use super::left::nothing_left;
use super::teardown::{Elsewhere, refusing_port};
use crate::cluster::NETWORK_STATUS;
use crate::node::Grade;
use crate::pod::PodSpec;
use crate::prepare::{MultusDaemon, NETDEVICE, PRIMARY, in_front, other_primary, wait_in_front};
use crate::session::{Running, Session};
use crate::wait::until;

/// The second network.
const SECOND: &str = "second";
/// A primary network that comes later.
const OTHER: &str = "podrail-other";
/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(25);
/// How long what was left is seen to.
const SEEN_TO: Duration = Duration::from_secs(120);

/// kill -9 while pods come and go: each gets both of its networks in the end, and nothing of any of them is left.
pub(super) async fn killed(session: &mut Session) -> Result<()> {
    let before = session.vfs().await?;
    second_network(session).await?;
    // A real node takes a minute for each, and differs in the runtime alone.
    let rounds = if session.node.grade() == Grade::Kubernetes { 1 } else { 3 };
    for round in 0..rounds {
        let specs: Vec<PodSpec> =
            (0..4).map(|index| two_networks(&format!("killed-{round}-{index}"))).collect();
        try_join_all(specs.iter().map(|spec| session.cluster.create_pod(spec))).await?;
        kill_at_some_point(session, round).await?;
        for spec in &specs {
            session.cluster.wait_running(spec.name()).await?;
            ensure_both(session, spec.name()).await?;
        }
        try_join_all(specs.iter().map(|spec| session.cluster.request_deletion(spec.name()))).await?;
        kill_at_some_point(session, round + 1).await?;
        try_join_all(specs.iter().map(|spec| session.cluster.wait_gone(spec.name()))).await?;
    }
    nothing_left(&[SECOND]).await?;
    session.ensure_unchanged(&before).await
}

/// An upgrade while pods start: none of them has to be tried twice.
pub(super) async fn upgraded(session: &mut Session) -> Result<()> {
    second_network(session).await?;
    let specs: Vec<PodSpec> = (0..6).map(|index| two_networks(&format!("upgraded-{index}"))).collect();
    try_join_all(specs.iter().map(|spec| session.cluster.create_pod(spec))).await?;
    for pause in [0, 300, 900] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let daemon = daemon(session)?;
        tokio::task::block_in_place(|| daemon.upgrade(Duration::from_secs(1)))?;
    }
    for spec in &specs {
        session.cluster.wait_running(spec.name()).await?;
        ensure_both(session, spec.name()).await?;
        let warnings = session.cluster.warnings(spec.name()).await?;
        ensure!(warnings.is_empty(), "pod {} had to be tried again: {warnings:?}", spec.name());
    }
    try_join_all(specs.iter().map(|spec| session.cluster.delete_pod(spec.name()))).await?;
    nothing_left(&[SECOND]).await
}

/// A pod goes while the daemon is away.
pub(super) async fn away(session: &mut Session) -> Result<()> {
    let before = session.vfs().await?;
    let pod = vf_and_second(session, "away").await?;
    daemon(session)?.end(Signal::SIGKILL)?;
    let deleted = session.delete(&pod).await;
    daemon(session)?.restart()?;
    deleted.context("while the daemon is away")?;
    nothing_left(&[SECOND]).await?;
    session.ensure_unchanged(&before).await
}

/// The annotation of a pod that runs gets another network, on the VF that the pod holds already, and loses it again.
pub(super) async fn followed(session: &mut Session) -> Result<()> {
    let before = session.vfs().await?;
    second_network(session).await?;
    session.vlan_network("vlan100", 100).await?;
    let name = "followed";
    let pod = session.run(two_networks(name).devices(NETDEVICE, 1)).await?;
    ensure_both(session, name).await?;
    let more = json!([{"name": SECOND}, {"name": "vlan100", "ips": ["10.56.100.70/24"]}]);
    session.cluster.ask_for_networks(name, &more).await?;
    wait_interfaces(session, name, &["eth0", "net1", "net2"]).await?;
    let (link, addresses) = pod.inside.link("net2").await?;
    ensure!(link.up && !addresses.is_empty(), "the VF that came later: {link:?} with {addresses:?}");
    session.cluster.ask_for_networks(name, SECOND).await?;
    wait_interfaces(session, name, &["eth0", "net1"]).await?;
    session.ensure_unchanged(&before).await.context("while the pod runs on")?;
    ensure!(pod.inside.link("net1").await?.0.up, "the pod has lost what it was to keep");
    session.delete(&pod).await?;
    nothing_left(&[SECOND]).await
}

/// The API server is away while one pod goes and another one comes.
pub(super) async fn without_api(session: &mut Session) -> Result<()> {
    let before = session.vfs().await?;
    let old = vf_and_second(session, "old").await?;
    let (_socket, port) = refusing_port()?;
    let elsewhere = Elsewhere::at(port)?;
    let new = two_networks("new");
    session.cluster.create_pod(&new).await?;
    session.delete(&old).await.context("while the API server is away")?;
    session.ensure_unchanged(&before).await.context("while the API server is away")?;
    // An ADD waits for the server for less than that, and fails whole.
    tokio::time::sleep(AWAY).await;
    let told = session.cluster.pod(new.name()).await?.metadata.annotations.unwrap_or_default();
    ensure!(!told.contains_key(NETWORK_STATUS), "who told the status of a pod without the API server?");
    drop(elsewhere);
    session.cluster.wait_running(new.name()).await?;
    ensure_both(session, new.name()).await?;
    session.cluster.delete_pod(new.name()).await?;
    nothing_left(&[SECOND]).await
}

/// Cilium renames what is not its own, for instance.
pub(super) async fn renamed(session: &mut Session) -> Result<()> {
    second_network(session).await?;
    let ours = in_front();
    let renamed = ours.with_extension("conflist.cilium_bak");
    std::fs::rename(&ours, &renamed).context("rename the configuration")?;
    wait_in_front().await?;
    std::fs::remove_file(&renamed)?;
    let pod = session.run(two_networks("renamed")).await?;
    ensure_both(session, "renamed").await?;
    session.delete(&pod).await
}

/// New pods are on the primary that is there; those from before are taken off theirs.
pub(super) async fn swapped(session: &mut Session) -> Result<()> {
    second_network(session).await?;
    let primary = async |session: &Session, pod: &str, name: &str| -> Result<()> {
        let status = session.cluster.network_status(pod).await?;
        let has = status.iter().find(|state| state.default).map(|state| state.name.as_str());
        ensure!(has == Some(name), "the primary network of pod {pod} is {has:?} and not {name}");
        Ok(())
    };
    let stands_before = async |file: &'static str| {
        until(SEEN_TO, "the configuration of multus to follow", async || {
            let text = std::fs::read_to_string(in_front()).unwrap_or_default();
            Ok(text.contains(file).then_some(()))
        })
        .await
    };
    let before = session.run(two_networks("before")).await?;
    primary(session, "before", PRIMARY).await?;
    let file = other_primary(OTHER)?;
    stands_before("05-podrail-other.conflist").await?;
    let during = session.run(two_networks("during")).await?;
    primary(session, "during", OTHER).await?;
    session.delete(&before).await?;
    std::fs::remove_file(file)?;
    stands_before("10-podrail-primary.conflist").await?;
    session.delete(&during).await?;
    for network in [PRIMARY, OTHER] {
        let left = leases(network);
        ensure!(left.is_empty(), "addresses of {network} are left: {left:?}");
    }
    nothing_left(&[SECOND]).await
}

/// The addresses that are taken of a network.
fn leases(network: &str) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/var/lib/cni/networks/{network}")).into_iter().flatten();
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("10.")).collect()
}

/// The pod keeps its networks and gives them back; new pods get the primary alone until Multus is there again.
pub(super) async fn uninstalled(session: &mut Session) -> Result<()> {
    let before = session.vfs().await?;
    let pod = vf_and_second(session, "before").await?;
    let program = daemon(session)?.program().to_owned();
    let source = program.parent().unwrap_or(Path::new("/")).to_owned();
    let multus = |verb: &str, arguments: &[&str]| -> Result<std::process::Child> {
        let mut command = Command::new(&program);
        command.arg(verb).arg("--source-dir").arg(&source).args(arguments).stdin(Stdio::null());
        Ok(command.stderr(Stdio::null()).spawn()?)
    };
    let places = ["--cni-bin-dir=/opt/cni/bin", "--cni-conf-dir=/etc/cni/net.d", "--wait=600"];
    let credentials = std::fs::read(crate::prepare::KUBECONFIG)?;
    let mut uninstall = multus("uninstall", &places)?;
    until(SEEN_TO, "the primary's configuration to be in force", async || {
        Ok((!in_front().exists()).then_some(()))
    })
    .await?;
    let plain = session.run(PodSpec::new("plain").networks(SECOND)).await?;
    ensure!(plain.inside.link("net1").await.is_err(), "a pod has a second network without Multus");
    session.delete(&plain).await?;
    ensure!(pod.inside.link("net1").await?.0.up, "the running pod has lost its VF");
    session.delete(&pod).await?;
    let ended = tokio::task::spawn_blocking(move || uninstall.wait()).await??;
    ensure!(ended.success(), "uninstall: {ended}");
    ensure!(!Path::new("/opt/cni/bin/multus-shim").exists(), "multus-shim is left");
    nothing_left(&[SECOND]).await?;
    session.ensure_unchanged(&before).await?;

    // The one that was told to make place waits for its end.
    daemon(session)?.end(Signal::SIGTERM)?;
    let installed = multus("install", &["--type=thick", "--dest-dir=/opt/cni/bin"])?.wait()?;
    ensure!(installed.success(), "install: {installed}");
    std::fs::create_dir_all("/etc/cni/net.d/multus.d")?;
    host::durable::write(Path::new(crate::prepare::KUBECONFIG), &credentials)?;
    daemon(session)?.restart()?;
    wait_in_front().await?;
    let pod = session.run(two_networks("after")).await?;
    ensure_both(session, "after").await?;
    session.delete(&pod).await
}

fn daemon(session: &mut Session) -> Result<&mut MultusDaemon> {
    session.prepared.multus_daemon.as_mut().context("there is no multus-daemon")
}

/// Each time at another moment of what is going on.
async fn kill_at_some_point(session: &mut Session, round: u64) -> Result<()> {
    for turn in 0..3 {
        tokio::time::sleep(Duration::from_millis(150 + 370 * ((round + turn) % 4))).await;
        daemon(session)?.end(Signal::SIGKILL)?;
        daemon(session)?.restart()?;
    }
    Ok(())
}

/// A network without a VF, so that there can be as many pods as wanted.
async fn second_network(session: &Session) -> Result<()> {
    let config = json!({
        "cniVersion": "1.0.0", "name": SECOND, "type": "bridge", "bridge": "podrail1",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.89.0.0/24"}]]},
    });
    session.cluster.create_nad(SECOND, &config, None).await
}

fn two_networks(name: &str) -> PodSpec {
    PodSpec::new(name).networks(SECOND)
}

async fn vf_and_second(session: &Session, name: &str) -> Result<Running> {
    second_network(session).await?;
    session.vlan_network("vlan100", 100).await?;
    let request = json!([{"name": "vlan100", "ips": ["10.56.100.60/24"]}, {"name": SECOND}]);
    session.run(PodSpec::new(name).networks(&request).devices(NETDEVICE, 1)).await
}

async fn ensure_both(session: &Session, pod: &str) -> Result<()> {
    let interfaces = interfaces(session, pod).await?;
    ensure!(interfaces == ["eth0", "net1"], "pod {pod} has {interfaces:?}");
    Ok(())
}

async fn wait_interfaces(session: &Session, pod: &str, expected: &[&str]) -> Result<()> {
    until(SEEN_TO, &format!("pod {pod} to have {expected:?}"), async || {
        Ok((interfaces(session, pod).await? == expected).then_some(()))
    })
    .await
}

/// The interfaces of the pod's network-status.
async fn interfaces(session: &Session, pod: &str) -> Result<Vec<String>> {
    let status = session.cluster.network_status(pod).await?;
    Ok(status.into_iter().map(|state| state.interface).collect())
}
