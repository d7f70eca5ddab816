//! What the peer's users expect of it, as far as nodes without traffic can show it.

use std::collections::BTreeSet;

use cni::{Command, Plugin as _};
use serde_json::{Value, json};

use crate::node::{Cluster, Node, request, texts};

fn add(node: &Node, ipam: &Value, pod: &str, ifname: &str) -> Vec<String> {
    texts(&node.plugin.add(&request(Command::Add, ipam, pod, ifname)).unwrap())
}

/// What the ledgers of all nodes and the pool say together: the pods that have an address, by what ADD told.
fn is_true(cluster: &Cluster, pool: &str, running: &[(String, String)]) {
    let unique: BTreeSet<&String> = running.iter().map(|(_, address)| address).collect();
    assert_eq!(unique.len(), running.len(), "{running:?}");
    let kept = cluster.allocations(pool);
    for (pod, address) in running {
        let offset = address.split('/').next().unwrap().rsplit('.').next().unwrap();
        assert!(kept.contains_key(offset), "{pod} has {address}, of which the pool knows nothing");
    }
}

#[test]
fn several_interfaces_of_one_pod() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    let ipam = json!({"range": "10.50.0.0/24"});
    let (first, second) = (add(&node, &ipam, "a", "net1"), add(&node, &ipam, "a", "net2"));
    assert_ne!(first, second);
    for (ifname, had) in [("net2", &second), ("net1", &first)] {
        node.plugin.del(&request(Command::Del, &ipam, "a", ifname)).unwrap();
        let other = ["net1", "net2"].into_iter().find(|of| *of != ifname).unwrap();
        if ifname == "net2" {
            node.plugin.check(&request(Command::Check, &ipam, "a", other)).unwrap();
        }
        assert_eq!(&add(&node, &ipam, "a", ifname), had, "each interface has its former address");
    }
}

#[test]
fn replicas_come_and_go() {
    let cluster = Cluster::start();
    let nodes: Vec<_> = (0..5).map(|number| cluster.node(&format!("n{number}"))).collect();
    // A little more than there are pods at once, so that nodes have to lend to each other.
    let ipam = json!({"range": "10.51.0.0/25", "enable_overlapping_ranges": false});
    let (mut running, mut serial): (Vec<(String, String)>, usize) = (Vec::new(), 0);
    for round in 0..10 {
        while running.len() < 100 {
            let pod = format!("p{serial}");
            let mut got = nodes[serial % 5].add(&ipam, &pod);
            running.push((pod, got.remove(0)));
            serial += 1;
        }
        is_true(&cluster, "10.51.0.0-25", &running);
        // The oldest twenty, then the youngest, in turn.
        let gone: Vec<_> = if round % 2 == 0 { running.drain(..20).collect() } else { running.split_off(80) };
        for (pod, _) in gone {
            let number: usize = pod[1..].parse().unwrap();
            nodes[number % 5].del(&ipam, &pod);
        }
        is_true(&cluster, "10.51.0.0-25", &running);
    }
    for (pod, _) in running {
        let number: usize = pod[1..].parse().unwrap();
        nodes[number % 5].del(&ipam, &pod);
    }
    // Nothing leaked: all of it can be had by one node, once the others were asked.
    let ask = |round: usize| {
        (0..126).take_while(|pod| nodes[0].try_add(&ipam, &format!("z{round}-{pod}")).is_ok()).count()
    };
    let mut got = ask(0);
    for round in 1..4 {
        for node in &nodes[1..] {
            node.del(&ipam, "unknown");
        }
        got += ask(round);
    }
    assert_eq!(got, 126);
}

#[test]
fn an_address_is_free_as_soon_as_its_pod_is_gone() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    let ipam = json!({"range": "10.52.0.0/30"});
    one.add(&ipam, "a");
    two.add(&ipam, "b");
    let begun = std::time::Instant::now();
    let error = one.try_add(&ipam, "c").unwrap_err();
    assert!(error.msg.contains("Could not allocate IP in range"), "{error}");
    two.del(&ipam, "b");
    one.add(&ipam, "c");
    assert!(begun.elapsed().as_secs() < 3 || std::env::var_os("PODRAIL_KUBECONFIG").is_some());
}

#[test]
fn one_cidr_under_several_network_names() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    for network in ["", "red", "blue"] {
        let ipam = json!({"range": "10.53.0.0/24", "network_name": network});
        assert_eq!(node.add(&ipam, "a"), ["10.53.0.1/24"], "{network}");
    }
    for pool in ["10.53.0.0-24", "red-10.53.0.0-24", "blue-10.53.0.0-24"] {
        assert!(cluster.names("ippools").contains(&pool.to_owned()), "{pool}");
    }
    for reservation in ["10.53.0.1", "red-10.53.0.1", "blue-10.53.0.1"] {
        assert!(cluster.names("overlappingrangeipreservations").contains(&reservation.to_owned()));
    }
}

/// The peer takes its cluster over address by address, while both are at work.
#[test]
fn beside_the_peer() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    let peers = |offset: u32| json!({"id": format!("p{offset}"), "podref": format!("ns/p{offset}"), "ifname": "net1"});
    let allocations: Value = (1..=6).map(|offset| (offset.to_string(), peers(offset))).collect();
    cluster.peer_pool("10.54.0.0-28", "10.54.0.0/28", &allocations);
    let ipam = json!({"range": "10.54.0.0/28", "enable_overlapping_ranges": false});
    let mut ours = BTreeSet::new();
    for (number, node) in [&one, &two, &one, &two].into_iter().enumerate() {
        ours.extend(node.add(&ipam, &format!("ours{number}")));
        // A pod of the peer ends by way of us, and one of ours by way of the peer would find nothing.
        node.plugin.del(&request_of(&ipam, &format!("p{}", number + 1))).unwrap();
        let kept = cluster.allocations("10.54.0.0-28");
        let left =
            kept.values().filter(|entry| entry["podref"].as_str().unwrap().starts_with("ns/p")).count();
        assert_eq!(left, 5 - number, "{kept:?}");
    }
    assert_eq!(ours.len(), 4);
    assert!(ours.iter().all(|address| !["10.54.0.5/28", "10.54.0.6/28"].contains(&address.as_str())));
}

fn request_of(ipam: &Value, container: &str) -> cni::Request {
    let mut request = request(Command::Del, ipam, "x", "net1");
    request.container_id = container.to_owned();
    request
}
