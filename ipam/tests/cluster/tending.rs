//! The daemon of a node beside the plugin.

use std::io::{Read as _, Write as _};

use cni::{Command, Plugin as _};
use e2e::sim::apiserver::Fault;
use serde_json::{Value, json};

use crate::node::{Cluster, Node, request};

/// How many addresses a node keeps idle.
fn idle(node: &Node, pool: &str) -> usize {
    let path = node.plugin.places.data_dir.join(format!("{pool}.json"));
    let ledger: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    ledger["slots"].as_object().unwrap().values().filter(|slot| slot["use"] == "idle").count()
}

/// Adds as many pods as get an address.
fn add_all(node: &Node, ipam: &Value, got: &mut usize) {
    while node.try_add(ipam, &format!("b{got}")).is_ok() {
        *got += 1;
    }
}

#[test]
fn an_idle_node_answers_those_in_need() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    let ipam = json!({"range": "10.60.0.0/28", "node_slice_size": "/30"});
    one.add(&ipam, "a");
    let _daemon = one.tend(None);
    for round in 0..2 {
        let mut got = 0;
        // No call comes to the first node.
        cluster.until("the other node's addresses to come", || {
            add_all(&two, &ipam, &mut got);
            got == 13
        });
        assert_eq!(cluster.allocations("10.60.0.0-28").len(), 14);
        for pod in 0..got {
            two.del(&ipam, &format!("b{pod}"));
        }
        one.del(&ipam, "a");
        two.del(&ipam, "unknown");
        assert_eq!(one.add(&ipam, "a").len(), 1);
        if let Some(server) = cluster.server.as_ref().filter(|_| round == 0) {
            server.drop_watches();
        }
    }
}

#[test]
fn a_pool_elsewhere_is_left_to_the_plugin() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    let elsewhere = cluster.kubeconfig_in("kube-public");
    let theirs = json!({"range": "10.68.0.0/24", "kubernetes": {"kubeconfig": elsewhere}});
    let ours = json!({"range": "10.69.0.0/24"});
    for ipam in [&theirs, &ours] {
        for pod in 0..13 {
            node.add(ipam, &format!("p{pod}"));
        }
    }
    let (before, _daemon) = (idle(&node, "10.68.0.0-24"), node.tend(None));
    let few = idle(&node, "10.69.0.0-24");
    cluster.until("the next block to come", || idle(&node, "10.69.0.0-24") > few);
    assert_eq!(idle(&node, "10.68.0.0-24"), before);
}

#[test]
fn the_next_block_is_there_before_it_is_needed() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    // 254 addresses: blocks of 15, and of 14 for the next.
    let ipam = json!({"range": "10.61.0.0/24"});
    node.add(&ipam, "p0");
    let _daemon = node.tend(None);
    for pod in 1..11 {
        node.add(&ipam, &format!("p{pod}"));
    }
    assert_eq!(idle(&node, "10.61.0.0-24"), 4, "a quarter of a block is enough");
    node.add(&ipam, "p11");
    cluster.until("the next block", || idle(&node, "10.61.0.0-24") > 3);
    assert_eq!(idle(&node, "10.61.0.0-24"), 3 + 14);
    let reservations = || cluster.names("overlappingrangeipreservations").len();
    cluster.until("its reservations", || reservations() == 15 + 14);
    if let Some(server) = &cluster.server {
        server.inject(Fault::on(None, "/").answer(503));
        for pod in 12..29 {
            node.add(&ipam, &format!("p{pod}"));
        }
        server.clear_faults();
    }
}

#[test]
fn a_small_range_serves_many_nodes_that_are_tended() {
    let cluster = Cluster::start();
    let nodes: Vec<_> = (0..4).map(|number| cluster.node(&format!("n{number}"))).collect();
    let _daemons: Vec<_> = nodes.iter().map(|node| node.tend(None)).collect();
    let ipam = json!({"range": "10.62.0.0/30"});
    for round in 0..3 {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let mut got = nodes[round].add(&ipam, &a);
        got.extend(nodes[round + 1].add(&ipam, &b));
        got.sort();
        assert_eq!(got, ["10.62.0.1/30", "10.62.0.2/30"]);
        assert!(nodes[0].try_add(&ipam, "z").is_err());
        nodes[round].del(&ipam, &a);
        assert_eq!(nodes[3].add(&ipam, "z").len(), 1);
        nodes[3].del(&ipam, "z");
        nodes[round + 1].del(&ipam, &b);
    }
    cluster.until("nothing to be kept", || cluster.allocations("10.62.0.0-30").is_empty());
    assert!(cluster.names("overlappingrangeipreservations").is_empty());
}

#[test]
fn what_a_call_could_not_tell_is_told() {
    let cluster = Cluster::simulated();
    let server = cluster.server.as_ref().unwrap();
    let node = cluster.node("n1");
    let tight = json!({"range": "10.63.0.0/31"});
    node.add(&tight, "a");
    server.inject(Fault::on(None, "/").answer(503));
    let _daemon = node.tend(None);
    node.del(&tight, "a");
    assert_eq!(cluster_allocations_behind(&cluster, "10.63.0.0-31"), 1);
    server.clear_faults();
    cluster.until("the address to be back", || cluster.allocations("10.63.0.0-31").is_empty());
}

/// Through the faults, as nobody but the test gets an answer in time.
fn cluster_allocations_behind(cluster: &Cluster, pool: &str) -> usize {
    let server = cluster.server.as_ref().unwrap();
    server.clear_faults();
    let count = cluster.allocations(pool).len();
    server.inject(Fault::on(None, "/").answer(503));
    count
}

#[test]
fn a_container_whose_del_never_came_is_looked_for_when_others_are_in_need() {
    let cluster = Cluster::simulated();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let object = json!({"metadata": {"name": "n1"}, "status": {"nodeInfo": {"bootID": boot.trim()}}});
    cluster.post("/api/v1/nodes", &object).unwrap();
    let namespaces = tempfile::tempdir().unwrap();
    let ipam = json!({"range": "10.64.0.0/31"});
    for pod in ["gone", "lives"] {
        let mut add = request(Command::Add, &ipam, pod, "net1");
        let path = namespaces.path().join(pod);
        std::fs::write(&path, "").unwrap();
        add.netns = Some(path);
        one.plugin.add(&add).unwrap();
    }
    let _daemon = one.tend(None);
    assert!(two.try_add(&ipam, "c").is_err());
    std::fs::remove_file(namespaces.path().join("gone")).unwrap();
    cluster.until("the address of the one that is gone", || two.try_add(&ipam, "c").is_ok());
    assert!(two.try_add(&ipam, "d").is_err(), "the other one lives");
    one.plugin.check(&request(Command::Check, &ipam, "lives", "net1")).unwrap();
}

#[test]
fn figures_are_served() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    node.add(&json!({"range": "10.65.0.0/24"}), "a");
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _daemon = node.tend(Some(address));
    let ask = |path: &str| -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    cluster.until("an answer", || ask("/metrics").is_ok());
    let answer = ask("/metrics?x=y").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("whereabouts_node_addresses{pool=\"10.65.0.0-24\",state=\"held\"} 1\n"),
        "{answer}"
    );
    assert!(ask("/").unwrap().starts_with("HTTP/1.1 404 "));
}
