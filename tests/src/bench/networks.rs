//! ADD and DEL of `multus` with delegates that do nothing, against the least that starting those delegates can cost.
//! The API server is the suite's stand-in, over TLS, or with `--kubeconfig` a real one.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::Options;
use super::call::{Call, Cost};
use super::row::{Aim, Row};
use super::trial::{Subject, interleave, median};
use crate::cluster::Cluster;
use crate::sim::apiserver::{ApiServer, Verb};
use crate::sim::runtime::netns;

/// Where the container's namespace is.
const NETNS: &str = "/run/netns/podrail-bench";
const NAMESPACE: &str = "default";
const CONTAINER: &str = "podrail-bench";
/// How many networks a pod names, besides the cluster's.
const SECONDARY: [usize; 2] = [1, 8];
const VERBS: [&str; 2] = ["ADD", "DEL"];

/// Milliseconds that a call with one network besides the cluster's is to take at most, verb by verb.
const WALL_BOUNDS: [f64; 2] = [5.0, 1.5];
/// Megabytes of memory that a call may take.
const MEMORY_BOUND: f64 = 6.0;

/// The cluster whose objects multus reads.
struct Objects<'a> {
    kubeconfig: &'a Path,
    /// The stand-in also tells what was asked of it.
    stand_in: Option<&'a ApiServer>,
}

/// Measures in `folder`, which also gets the state of multus.
pub(super) fn measure(options: &Options, folder: &Path) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    netns::remove(Path::new(NETNS))?;
    netns::create(Path::new(NETNS))?;
    let measured = if let Some(kubeconfig) = &options.kubeconfig {
        of_cluster(options, folder, &runtime, &Objects { kubeconfig, stand_in: None })
    } else {
        let server = runtime.block_on(ApiServer::start()).context("start the API server")?;
        let kubeconfig = folder.join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig(None))?;
        let objects = Objects { kubeconfig: &kubeconfig, stand_in: Some(&server) };
        of_cluster(options, folder, &runtime, &objects)
    };
    netns::remove(Path::new(NETNS))?;
    measured
}

fn of_cluster(
    options: &Options,
    folder: &Path,
    runtime: &Runtime,
    objects: &Objects<'_>,
) -> Result<Vec<Row>> {
    runtime.block_on(create(objects.kubeconfig))?;
    let mut rows = Vec::new();
    for secondary in SECONDARY {
        rows.extend(of_pod(options, folder, objects, secondary)?);
    }
    Ok(rows)
}

/// Pods by the number of networks they name, and the networks.
async fn create(kubeconfig: &Path) -> Result<()> {
    let cluster = Cluster::connect(kubeconfig).await?;
    cluster.define_nads().await?;
    let client = cluster.client();
    let create = async |path: &str, object: &Value| -> Result<()> {
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(object)?)?;
        client.request::<Value>(request).await.map(|_| ()).with_context(|| format!("create in {path}"))
    };
    let nads = format!("/apis/k8s.cni.cncf.io/v1/namespaces/{NAMESPACE}/network-attachment-definitions");
    for number in 1..=SECONDARY.into_iter().max().unwrap_or_default() {
        let config = json!({"cniVersion": "1.0.0", "name": network(number), "type": "podrail-delegate"});
        let nad = json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": network(number)}, "spec": {"config": config.to_string()},
        });
        create(&nads, &nad).await?;
    }
    for secondary in SECONDARY {
        let networks: Vec<String> = (1..=secondary).map(network).collect();
        let pod = json!({
            "metadata": {
                "name": pod(secondary), "annotations": {"k8s.v1.cni.cncf.io/networks": networks.join(",")},
            },
            // On no node: a real cluster would soon delete it from one that there is not.
            "spec": {
                "schedulerName": "nobody", "automountServiceAccountToken": false,
                "containers": [{"name": "c", "image": "i"}],
            },
        });
        create(&format!("/api/v1/namespaces/{NAMESPACE}/pods"), &pod).await?;
    }
    Ok(())
}

fn network(number: usize) -> String {
    format!("net-{number}")
}

fn pod(secondary: usize) -> String {
    format!("pod-{secondary}")
}

fn of_pod(options: &Options, folder: &Path, objects: &Objects<'_>, secondary: usize) -> Result<Vec<Row>> {
    let primary = json!({"cniVersion": "1.0.0", "name": "primary", "type": "podrail-delegate"});
    let conf = json!({
        "cniVersion": "1.0.0", "name": "multus", "type": "multus", "kubeconfig": objects.kubeconfig,
        "binDir": options.programs, "cniDir": folder.join("state"), "delegates": [primary],
    });
    let call = |program: &str, verb: &'static str, stdin: &Value| Call {
        environment: vec![
            ("CNI_COMMAND", verb.into()),
            ("CNI_CONTAINERID", CONTAINER.into()),
            ("CNI_NETNS", NETNS.into()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_ARGS", format!("K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={}", pod(secondary)).into()),
            ("CNI_PATH", options.programs.clone().into()),
        ],
        stdin: stdin.to_string().into_bytes(),
        ..Call::new(options.programs.join(program))
    };
    let delegate = options.programs.join("podrail-delegate").display().to_string();
    let chain = |verb| Call {
        arguments: vec![delegate.clone(), (1 + secondary).to_string()],
        ..call("podrail-chain", verb, &primary)
    };
    let subjects = [
        Subject { name: "multus", calls: VERBS.map(|verb| call("multus", verb, &conf)).into() },
        Subject { name: "floor", calls: VERBS.map(chain).into() },
    ];
    let costs = interleave(&subjects, options.rounds, || Ok(()))?;
    let [ours, floor] = costs.as_slice() else { return Ok(Vec::new()) };
    let [Subject { calls, .. }, _] = &subjects;
    let mut rows = Vec::new();
    for ((((verb, call), bound), ours), floor) in
        VERBS.into_iter().zip(calls).zip(WALL_BOUNDS).zip(ours).zip(floor)
    {
        let place = if objects.stand_in.is_some() { "" } else { "real API server, " };
        let case = |what: &str| format!("{place}{verb} 1 + {secondary} networks, {what}");
        let (wall, cpu) = (|cost: &Cost| cost.wall, |cost: &Cost| cost.cpu);
        let aim = (secondary == 1).then_some(Aim::Value(bound));
        let (ours_wall, floor_wall) = (median(ours, wall), median(floor, wall));
        rows.push(Row::new(
            case("wall, multus / its delegates alone"),
            ours_wall,
            "ms",
            Some(floor_wall),
            aim,
        ));
        rows.push(Row::new(case("wall above its delegates"), ours_wall - floor_wall, "ms", None, None));
        let (ours, floor) = (median(ours, cpu), median(floor, cpu));
        rows.push(Row::new(case("CPU, multus / its delegates alone"), ours, "ms", Some(floor), None));
        if let Some(server) = objects.stand_in {
            server.clear_requests();
        }
        let memory = f64::from(u32::try_from(call.peak_memory()?)?) / 1e6;
        rows.push(Row::new(case("peak memory"), memory, "MB", None, Some(Aim::Value(MEMORY_BOUND))));
        let Some(server) = objects.stand_in else { continue };
        let (events, others): (Vec<_>, Vec<_>) =
            server.requests().into_iter().partition(|request| request.verb == Verb::Create);
        let number = |requests: usize| u32::try_from(requests).map(f64::from);
        // The pod, each network, the network-status.
        let bound = if verb == "ADD" { number(1 + secondary + 1)? } else { 0.0 };
        let aim = Some(Aim::Count(bound));
        rows.push(Row::new(
            case("API requests but for events"),
            number(others.len())?,
            "requests",
            None,
            aim,
        ));
        rows.push(Row::new(case("events told"), number(events.len())?, "requests", None, None));
    }
    Ok(rows)
}
