//! Many nodes at once.

use std::collections::BTreeSet;

use serde_json::json;

use crate::node::Cluster;

const NODES: usize = 50;
const EACH: usize = 40;

#[test]
fn fifty_nodes_and_two_thousand_addresses() {
    let cluster = Cluster::start();
    let ipam = json!({"range": "10.30.0.0/20", "enable_overlapping_ranges": false});
    let nodes: Vec<_> = (0..NODES).map(|number| cluster.node(&format!("n{number}"))).collect();
    let got: Vec<Vec<String>> = std::thread::scope(|scope| {
        let start = |(number, node)| {
            let ipam = &ipam;
            let node: &crate::node::Node = node;
            scope.spawn(move || {
                let add = |pod| node.add(ipam, &format!("p{number}-{pod}")).remove(0);
                (0..EACH).map(add).collect()
            })
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
