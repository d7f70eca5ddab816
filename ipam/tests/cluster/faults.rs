//! An API server that refuses, breaks off, or is away.

use std::time::Duration;

use cni::{Command, Plugin as _};
use e2e::sim::apiserver::{Fault, Verb};
use serde_json::json;

use crate::node::Cluster;

#[test]
fn inside_its_block_a_node_asks_nobody() {
    let cluster = Cluster::simulated();
    let node = cluster.node("n1");
    let ipam = json!({"range": "10.20.0.0/24"});
    node.add(&ipam, "first");
    let before = cluster.requests();
    for pod in 0..10 {
        node.add(&ipam, &format!("p{pod}"));
        node.del(&ipam, &format!("p{pod}"));
    }
    assert_eq!(cluster.requests(), before);
}

#[test]
fn without_an_api_server_pods_end_and_those_in_the_block_start() {
    let mut cluster = Cluster::simulated();
    let node = cluster.node("n1");
    let (ipam, tight) = (json!({"range": "10.21.0.0/24"}), json!({"range": "10.22.0.0/31"}));
    node.add(&ipam, "a");
    node.add(&tight, "b");
    cluster.server.as_mut().unwrap().inject(Fault::on(None, "/").drop_connection());
    assert_eq!(node.add(&ipam, "c"), ["10.21.0.2/24"]);
    node.del(&ipam, "a");
    node.del(&tight, "b");
    assert!(cluster.server.as_ref().unwrap().pending_faults() > 0);
    cluster.server.as_mut().unwrap().clear_faults();
    assert_eq!(cluster.allocations("10.22.0.0-31").len(), 1, "not told yet");
    // The next call that gets through tells it.
    node.del(&tight, "b");
    assert!(cluster.allocations("10.22.0.0-31").is_empty());
}

#[test]
fn no_answer_is_no_success_and_no_leak() {
    let cluster = Cluster::simulated();
    let server = cluster.server.as_ref().unwrap();
    let pools = format!("/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/{}/ippools", cluster.namespace);
    let reservations = pools.replace("ippools", "overlappingrangeipreservations");
    let node = cluster.node("n1");
    let ipam = json!({"range": "10.23.0.0/30"});
    for (number, fault) in [
        Fault::on(Verb::Patch, &pools).times(2).answer(409),
        Fault::on(Verb::Patch, &pools).times(2).answer(429),
        Fault::on(Verb::Patch, &pools).times(1).drop_answer(),
        Fault::on(Verb::Create, &pools).times(1).drop_answer(),
        Fault::on(Verb::Get, &pools).times(2).answer(500),
        Fault::on(Verb::Create, &reservations).times(1).drop_answer(),
        Fault::on(Verb::Create, &reservations).times(3).answer(503),
    ]
    .into_iter()
    .enumerate()
    {
        server.inject(fault);
        let got = node.add(&ipam, "a");
        assert_eq!(got, ["10.23.0.1/30"], "{number}");
        assert_eq!(cluster.allocations("10.23.0.0-30").len(), 1, "{number}");
        node.del(&ipam, "a");
        assert!(cluster.allocations("10.23.0.0-30").is_empty(), "{number}");
        assert!(cluster.names("overlappingrangeipreservations").is_empty(), "{number}");
        server.clear_faults();
    }
    server.inject(Fault::on(Verb::Patch, &pools).answer(403));
    let error = node.try_add(&ipam, "a").unwrap_err();
    assert!(error.msg.contains("Forbidden"), "{error}");
    server.clear_faults();
    // What may not be reserved is not given.
    server.inject(Fault::on(Verb::Create, &reservations).answer(403));
    assert!(node.try_add(&ipam, "a").is_err());
    server.clear_faults();
    assert_eq!(node.add(&ipam, "a"), ["10.23.0.1/30"]);
}

#[test]
fn a_ledger_that_takes_the_place_of_another_hears_nothing_of_its_calls() {
    let cluster = Cluster::simulated();
    let server = cluster.server.as_ref().unwrap();
    let pools = format!("/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/{}/ippools", cluster.namespace);
    let node = cluster.node("n1");
    let ipam = json!({"range": "10.24.0.0/24"});
    let ledger = node.plugin.places.data_dir.join("10.24.0.0-24.json");
    server.inject(Fault::on(Verb::Patch, &pools).answer(503));
    std::thread::scope(|scope| {
        let call = scope.spawn(|| node.try_add(&ipam, "a"));
        while !ledger.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(100));
        std::fs::remove_file(&ledger).unwrap();
        server.clear_faults();
        let refused = call.join().unwrap().unwrap_err();
        assert_eq!(refused.code, cni::Error::TRY_AGAIN_LATER, "{refused}");
        assert!(refused.msg.contains("was replaced during the call"), "{refused}");
    });
    let taken = cluster.allocations("10.24.0.0-24");
    assert!(!taken.is_empty());
    let got = node.add(&ipam, "a");
    let offset = got[0].strip_prefix("10.24.0.").unwrap().strip_suffix("/24").unwrap();
    assert!(!taken.contains_key(offset), "{got:?} is of the lost ledger: {taken:?}");
}

#[test]
fn a_del_that_others_overtake_is_not_forgotten() {
    let cluster = Cluster::simulated();
    let server = cluster.server.as_ref().unwrap();
    let group = format!("/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/{}", cluster.namespace);
    let node = cluster.node("n1");
    let slices = json!({
        "apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "NodeSlicePool", "metadata": {"name": "net"},
        "spec": {"range": "10.25.0.0/24", "sliceSize": "/26"},
        "status": {"allocations": [{"nodeName": "n1", "sliceRange": "10.25.0.0/26"}]},
    });
    cluster.post(&format!("{group}/nodeslicepools"), &slices).unwrap();
    let entry = |id: &str| json!({"id": id, "podref": format!("ns/{id}"), "ifname": "net1"});
    cluster.peer_pool("n1-10.25.0.0-26", "10.25.0.0/26", &json!({"1": entry("a-id"), "2": entry("b-id")}));
    let ipam = json!({"range": "10.25.0.0/24", "node_slice_size": "/26"});
    let left = || cluster.allocations("n1-10.25.0.0-26").len();
    // The first has looked into the slices, and waits for the pool, when the second comes.
    server.inject(Fault::on(Verb::Get, format!("{group}/ippools/10.25.0.0-24")).answer(503));
    std::thread::scope(|scope| {
        scope.spawn(|| node.del(&ipam, "a"));
        while left() == 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        scope.spawn(|| node.del(&ipam, "b"));
        let ledger = node.plugin.places.data_dir.join("10.25.0.0-24.json");
        while !std::fs::read_to_string(&ledger).unwrap_or_default().contains("b-id") {
            std::thread::sleep(Duration::from_millis(5));
        }
        server.clear_faults();
    });
    assert_eq!(left(), 0);
}

#[test]
fn the_runtime_calls_again_until_the_address_of_a_tenant_is_back() {
    let cluster = Cluster::simulated();
    let server = cluster.server.as_ref().unwrap();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    cluster.pod_of("web", "web-0");
    cluster.pod("other");
    let ipam = json!({"range": "10.26.0.0/24", "sticky": true});
    let call = |command, pod: &str| one.request(command, &ipam, pod, pod);
    for pod in ["web-0", "other"] {
        one.plugin.add(&call(Command::Add, pod)).unwrap();
    }
    server.inject(Fault::on(None, "/").answer(503));
    for _ in 0..2 {
        let refused = one.plugin.del(&call(Command::Del, "web-0")).unwrap_err();
        assert_eq!(refused.code, cni::Error::TRY_AGAIN_LATER, "{refused}");
    }
    // Whoever owes nothing ends as ever.
    one.plugin.del(&call(Command::Del, "other")).unwrap();
    server.clear_faults();
    one.plugin.del(&call(Command::Del, "web-0")).unwrap();
    two.plugin.add(&two.request(Command::Add, &ipam, "web-0", "again")).unwrap();
}
