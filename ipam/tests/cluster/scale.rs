//! Many nodes at once.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::node::{Cluster, Node};

const NODES: usize = 50;
const EACH: usize = 40;
/// How often a pod is tried while the API server is too slow. kubelet does so for ever.
const TRIES: usize = 5;

#[test]
fn fifty_nodes_and_two_thousand_addresses() {
    let cluster = Cluster::start();
    let ipam = json!({"range": "10.30.0.0/20", "enable_overlapping_ranges": false});
    let nodes: Vec<_> = (0..NODES).map(|number| cluster.node(&format!("n{number}"))).collect();
    let got: Vec<Vec<String>> = std::thread::scope(|scope| {
        let start = |(number, node)| {
            let ipam = &ipam;
            let node: &Node = node;
            scope.spawn(move || (0..EACH).map(|pod| add(node, ipam, &format!("p{number}-{pod}"))).collect())
        };
        let running: Vec<_> = nodes.iter().enumerate().map(start).collect();
        running.into_iter().map(|node| node.join().unwrap()).collect()
    });
    let all: BTreeSet<&String> = got.iter().flatten().collect();
    assert_eq!(all.len(), NODES * EACH);
    for (number, node) in nodes.iter().enumerate() {
        for pod in 0..EACH {
            node.del(&ipam, &format!("p{number}-{pod}"));
        }
    }
}

/// The address of a pod, which is tried again when it is told to come later.
fn add(node: &Node, ipam: &Value, pod: &str) -> String {
    let later = |error: &cni::Error| error.code == cni::Error::TRY_AGAIN_LATER;
    let mut refused = Vec::new();
    while refused.len() < TRIES {
        match node.try_add(ipam, pod) {
            Ok(mut addresses) => return addresses.remove(0),
            Err(error) if later(&error) => refused.push(error.to_string()),
            Err(error) => panic!("{pod}: {error}"),
        }
    }
    panic!("{pod}: {refused:#?}")
}
