//! What pods get, and what the pools then say.

use cni::{Command, Plugin as _};
use serde_json::{Value, json};

use crate::node::{Cluster, request};

#[test]
fn a_range_gives_its_addresses_in_turn() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    let ipam = json!({
        "range": "10.1.0.0/24", "gateway": "10.1.0.1", "exclude": ["10.1.0.2/32"],
        "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.1.0.1"]},
        "addresses": [{"address": "192.0.2.9/24"}],
    });
    let result = node.plugin.add(&request(Command::Add, &ipam, "a", "net1")).unwrap();
    assert_eq!(crate::node::texts(&result), ["10.1.0.3/24 via 10.1.0.1", "192.0.2.9/24"]);
    assert_eq!((result.routes.len(), result.dns.nameservers.len()), (1, 1));
    assert_eq!(node.add(&ipam, "b")[0], "10.1.0.4/24 via 10.1.0.1");
    // Asked again for the same attachment.
    assert_eq!(node.add(&ipam, "a")[0], "10.1.0.3/24 via 10.1.0.1");
    let pool = cluster.allocations("10.1.0.0-24");
    assert!(pool["3"]["id"].as_str().unwrap().starts_with("podrail:"));
    assert_eq!(pool["3"]["podref"], "");
    assert!(cluster.names("overlappingrangeipreservations").contains(&"10.1.0.3".to_owned()));
    // Addresses rest behind those that were never used, but the same pod gets the same.
    node.del(&ipam, "a");
    node.del(&ipam, "a");
    assert_eq!(node.add(&ipam, "c")[0], "10.1.0.5/24 via 10.1.0.1");
    assert_eq!(node.add(&ipam, "a")[0], "10.1.0.3/24 via 10.1.0.1");
}

#[test]
fn every_family_and_size() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    let table: &[(Value, &[&str])] = &[
        (
            json!({"ipRanges": [{"range": "10.2.0.0/24", "gateway": "10.2.0.254"}, {"range": "fd00:2::/64", "gateway": "fd00:2::fe"}]}),
            &["10.2.0.1/24 via 10.2.0.254", "fd00:2::1/64 via fd00:2::fe"],
        ),
        (
            json!({"range": "10.3.0.0/16", "gateway": "10.3.0.1", "ipRanges": [{"range": "fd00:3::/112"}]}),
            &["10.3.0.2/16 via 10.3.0.1", "fd00:3::1/112"],
        ),
        (json!({"range": "10.4.0.10-10.4.0.20/24", "exclude": ["10.4.0.10"]}), &["10.4.0.11/24"]),
        (
            json!({"range": "10.5.0.7/24", "range_start": "10.5.0.40", "range_end": "10.9.0.1"}),
            &["10.5.0.40/24"],
        ),
        (json!({"range": "10.6.0.6/31"}), &["10.6.0.6/31"]),
        (json!({"range": "10.6.0.9/32"}), &["10.6.0.9/32"]),
        (json!({"range": "fd00:4::4/127"}), &["fd00:4::4/127"]),
        (json!({"range": "fd00:4::9/128"}), &["fd00:4::9/128"]),
        (
            json!({"range": "fd00:5::/32", "range_start": "fd00:5:ffff:ffff:ffff:ffff::"}),
            &["fd00:5:ffff:ffff:ffff:ffff::/32"],
        ),
    ];
    for (ipam, wanted) in table {
        assert_eq!(&one.add(ipam, "p"), wanted, "{ipam}");
        let other = two.try_add(ipam, "q");
        let single =
            wanted[0].ends_with("/32") && wanted[0].starts_with("10.") || wanted[0].ends_with("/128");
        assert_eq!(other.is_err(), single, "{ipam}: {other:?}");
        assert!(other.is_err() || other.unwrap()[0] != wanted[0]);
    }
}

#[test]
fn a_list_in_ip_ranges_is_used_in_turn() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    let ipam = json!({"ipRanges": [[{"range": "10.7.0.0/31"}, {"range": "10.7.1.0/31"}]]});
    let got: Vec<String> = ["a", "b", "c", "d"].iter().flat_map(|pod| node.add(&ipam, pod)).collect();
    assert_eq!(got, ["10.7.0.0/31", "10.7.0.1/31", "10.7.1.0/31", "10.7.1.1/31"]);
    let error = node.try_add(&ipam, "e").unwrap_err().to_string();
    assert!(
        error.contains("10.7.0.0/31 (2 usable, 2 taken or kept") && error.contains("10.7.1.0/31"),
        "{error}"
    );
}

#[test]
fn a_small_range_serves_many_nodes() {
    let cluster = Cluster::start();
    let nodes: Vec<_> = (0..4).map(|number| cluster.node(&format!("n{number}"))).collect();
    let ipam = json!({"range": "10.8.0.0/30"});
    for round in 0..3 {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let mut got = nodes[round].add(&ipam, &a);
        got.extend(nodes[round + 1].add(&ipam, &b));
        got.sort();
        assert_eq!(got, ["10.8.0.1/30", "10.8.0.2/30"]);
        let error = nodes[0].try_add(&ipam, "z").unwrap_err().to_string();
        assert!(error.contains("no address left in 10.8.0.0/30 (2 usable, 2 taken or kept: node"), "{error}");
        // What one gives back the next gets.
        nodes[round].del(&ipam, &a);
        assert_eq!(nodes[3].add(&ipam, "z").len(), 1);
        nodes[3].del(&ipam, "z");
        nodes[round + 1].del(&ipam, &b);
    }
    assert!(cluster.allocations("10.8.0.0-30").is_empty());
    assert!(cluster.names("overlappingrangeipreservations").is_empty());
}

#[test]
fn what_another_node_does_not_use_comes_back() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    // A block of four, of which one is used; the other node takes the rest.
    let ipam = json!({"range": "10.9.0.0/28", "node_slice_size": "/30", "enable_overlapping_ranges": false});
    one.add(&ipam, "a");
    let mut got = 0;
    while two.try_add(&ipam, &format!("b{got}")).is_ok() {
        got += 1;
    }
    assert_eq!(cluster.allocations("10.9.0.0-28").len(), 14, "all are kept");
    assert!(got < 13);
    // It was asked back, and goes back when the node next has to do with the pool.
    one.plugin.del(&request(Command::Del, &ipam, "unknown", "net1")).unwrap();
    while two.try_add(&ipam, &format!("b{got}")).is_ok() {
        got += 1;
    }
    assert_eq!(got, 13);
    assert_eq!(one.add(&ipam, "a"), ["10.9.0.1/28"]);
}

#[test]
fn pools_of_the_peer_are_taken_over() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    cluster.peer_pool(
        "red-10.10.0.0-29",
        "10.10.0.0/29",
        &json!({
            "1": {"id": "old-id", "podref": "ns/old", "ifname": "net1"},
            "2": {"id": "web-0-former", "podref": "ns/web-0", "ifname": "net1"},
            "3": {"id": "web-0-former", "podref": "ns/web-0", "ifname": "net2"},
        }),
    );
    for (name, podref) in
        [("red-10.10.0.1", "ns/old"), ("red-10.10.0.2", "ns/web-0"), ("red-10.10.0.3", "ns/web-0")]
    {
        cluster.peer_reservation(name, podref);
    }
    let ipam = json!({"range": "10.10.0.0/29", "network_name": "red"});
    assert_eq!(node.add(&ipam, "new"), ["10.10.0.4/29"]);
    // A pod that the peer attached is detached by us.
    node.del(&ipam, "old");
    assert!(!cluster.allocations("red-10.10.0.0-29").contains_key("1"));
    let left = cluster.names("overlappingrangeipreservations");
    assert!(
        !left.contains(&"red-10.10.0.1".to_owned()) && left.contains(&"red-10.10.0.2".to_owned()),
        "{left:?}"
    );
}

#[test]
fn slices_of_the_peer_are_emptied() {
    let cluster = Cluster::start();
    let (node, other) = (cluster.node("n1"), cluster.node("n2"));
    let path =
        format!("/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/{}/nodeslicepools", cluster.namespace);
    // Kubernetes 1.20, built by a newer Go than its own, takes an empty name in a list for null and refuses it.
    let nobody = if cluster.server.is_some() { "" } else { "n3" };
    let slices = json!({
        "apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "NodeSlicePool", "metadata": {"name": "net"},
        "spec": {"range": "10.16.0.0/24", "sliceSize": "/26"},
        "status": {"allocations": [
            {"nodeName": "n2", "sliceRange": "10.16.0.0/26"}, {"nodeName": "n1", "sliceRange": "10.16.0.64/26"},
            {"nodeName": nobody, "sliceRange": "10.16.0.128/26"},
        ]},
    });
    cluster.post(&path, &slices).unwrap();
    let entry = |id: &str| json!({"id": id, "podref": format!("ns/{id}"), "ifname": "net1"});
    cluster.peer_pool(
        "n1-10.16.0.64-26",
        "10.16.0.64/26",
        &json!({"1": entry("old-id"), "2": entry("stays")}),
    );
    cluster.peer_pool("n2-10.16.0.0-26", "10.16.0.0/26", &json!({"1": entry("other")}));
    for (name, podref) in [("10.16.0.65", "ns/old-id"), ("10.16.0.66", "ns/stays"), ("10.16.0.1", "ns/other")]
    {
        cluster.peer_reservation(name, podref);
    }
    let ipam = json!({"range": "10.16.0.0/24", "node_slice_size": "/26"});
    // What the peer gave is reserved.
    let got = [node.add(&ipam, "a"), other.add(&ipam, "b")].concat();
    for taken in ["10.16.0.1/24", "10.16.0.65/24", "10.16.0.66/24"] {
        assert!(!got.contains(&taken.to_owned()), "{got:?}");
    }
    node.del(&ipam, "old");
    assert_eq!(cluster.allocations("n1-10.16.0.64-26").keys().collect::<Vec<_>>(), ["2"]);
    let left = cluster.names("overlappingrangeipreservations");
    assert!(!left.contains(&"10.16.0.65".to_owned()) && left.contains(&"10.16.0.66".to_owned()), "{left:?}");
    assert_eq!(cluster.allocations("n2-10.16.0.0-26").len(), 1);
}

#[test]
fn overlapping_ranges_exclude_each_other_within_a_network() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    let narrow = json!({"range": "10.11.0.0/28", "node_slice_size": "/30"});
    let wide = json!({"range": "10.11.0.0/24"});
    let (first, second) = (one.add(&narrow, "a"), two.add(&wide, "b"));
    assert_eq!(first, ["10.11.0.1/28"]);
    assert_ne!(second, ["10.11.0.1/24"]);
    let apart = json!({"range": "10.11.0.0/24", "network_name": "blue"});
    assert_eq!(two.add(&apart, "c"), ["10.11.0.1/24"]);
    let careless = json!({"range": "10.11.0.0/25", "enable_overlapping_ranges": false});
    assert_eq!(two.add(&careless, "d"), ["10.11.0.1/25"]);
    cluster.peer_reservation("10.12.0.1", "ns/peer");
    assert_eq!(two.add(&json!({"range": "10.12.0.0/24"}), "e"), ["10.12.0.2/24"]);
}

#[test]
fn addresses_are_had_by_name() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    let ask = |ips: &[&str]| {
        json!({
            "ipRanges": [{"range": "10.13.0.0/24", "exclude": ["10.13.0.128/25"]}, {"range": "fd00:13::/64"}],
            "runtimeConfig": {"ips": ips},
        })
    };
    assert_eq!(
        one.add(&ask(&["10.13.0.200/24", "fd00:13::abcd"]), "a"),
        ["10.13.0.200/24", "fd00:13::abcd/64"]
    );
    assert_eq!(
        one.add(&ask(&["10.13.0.200/24", "fd00:13::abcd"]), "a"),
        ["10.13.0.200/24", "fd00:13::abcd/64"]
    );
    for (node, holder) in [(&one, "ns/a"), (&two, "node n1")] {
        let error = node.try_add(&ask(&["10.13.0.200"]), "b").unwrap_err().to_string();
        assert!(error.contains("10.13.0.200 is taken by") && error.contains(holder), "{error}");
    }
    let error = two.try_add(&ask(&["10.99.0.1"]), "b").unwrap_err().to_string();
    assert!(error.contains("in no range"), "{error}");
    assert!(two.try_add(&ask(&["10.13.0.255"]), "b").is_err());
    one.del(&ask(&[]), "a");
    // The node keeps it; the other one gets it once it is given back.
    assert_eq!(one.add(&ask(&["10.13.0.200"]), "c")[0], "10.13.0.200/24");
}

#[test]
fn sets_that_share_a_subnet_share_the_addresses_that_are_had_by_name() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    let range = json!({"range": "10.17.0.0/24"});
    for (pod, ranges, asked, wanted) in [
        (
            "a",
            json!([range, range]),
            json!(["10.17.0.7", "10.17.0.5"]),
            &["10.17.0.7/24", "10.17.0.5/24"][..],
        ),
        ("b", json!([range, range]), json!(["10.17.0.9"]), &["10.17.0.9/24", "10.17.0.1/24"]),
        ("c", json!([range]), json!(["10.17.0.11", "10.17.0.12"]), &["10.17.0.11/24", "10.17.0.12/24"]),
    ] {
        let ipam = json!({"ipRanges": ranges, "runtimeConfig": {"ips": asked}});
        assert_eq!(node.add(&ipam, pod), wanted, "{pod}");
        assert_eq!(node.add(&ipam, pod), wanted, "{pod}, asked again");
    }
}

#[test]
fn an_address_rests() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    let ipam = json!({"range": "10.14.0.0/31", "cool_down": 3600});
    assert_eq!(node.add(&ipam, "a"), ["10.14.0.0/31"]);
    assert_eq!(node.add(&ipam, "b"), ["10.14.0.1/31"]);
    node.del(&ipam, "a");
    assert!(node.try_add(&ipam, "c").is_err(), "it rests");
    assert_eq!(node.add(&ipam, "a"), ["10.14.0.0/31"], "but not for the pod that had it");
}

#[test]
fn check_status_and_gc_are_real() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    let ipam = json!({"range": "10.15.0.0/24"});
    let plugin = &node.plugin;
    plugin.status(&request(Command::Status, &ipam, "", "")).unwrap();
    node.add(&ipam, "a");
    node.add(&ipam, "b");
    plugin.check(&request(Command::Check, &ipam, "a", "net1")).unwrap();
    assert!(plugin.check(&request(Command::Check, &ipam, "c", "net1")).is_err());
    let mut check = request(Command::Check, &ipam, "a", "net1");
    check
        .config
        .set_raw("prevResult", r#"{"cniVersion":"1.0.0","ips":[{"address":"10.15.0.77/24"}]}"#)
        .unwrap();
    assert!(plugin.check(&check).unwrap_err().msg.contains("10.15.0.77"));
    let mut gc = request(Command::Gc, &ipam, "", "");
    plugin.gc(&gc).unwrap();
    plugin.check(&request(Command::Check, &ipam, "b", "net1")).unwrap();
    gc.config.set_raw("cni.dev/valid-attachments", r#"[{"containerID":"a-id","ifname":"net1"}]"#).unwrap();
    plugin.gc(&gc).unwrap();
    plugin.check(&request(Command::Check, &ipam, "a", "net1")).unwrap();
    assert!(plugin.check(&request(Command::Check, &ipam, "b", "net1")).is_err());
}

#[test]
fn what_is_wrong_is_named() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    for (ipam, part) in [
        (json!({}), "range"),
        (json!({"range": "10.0.0.0"}), "10.0.0.0"),
        (json!({"range": "10.0.0.9-10.0.1.2/24"}), "10.0.0.9-10.0.1.2/24"),
        (json!({"range": "10.0.0.0/24", "exclude": ["10.0.0.0/23"]}), "leave an address"),
        (json!({"range": "10.0.0.0/24", "exclude": ["x"]}), "exclude"),
        (json!({"range": "10.0.0.0/24", "gateway": "x"}), "gateway"),
        (json!({"range": "10.0.0.0/24", "network_name": "../x"}), "network_name"),
        (json!({"range": "10.0.0.0/24", "node_slice_size": "/999"}), "node_slice_size"),
        (json!({"range": 5}), "range"),
        (json!({"ipRanges": [[]]}), "ipRanges"),
        (json!({"range": "10.0.0.0/24", "kubernetes": {"kubeconfig": "/nowhere"}}), "/nowhere"),
    ] {
        let error = node.try_add(&ipam, "a").unwrap_err();
        assert!(error.msg.contains(part), "{ipam}: {error}");
        // Whatever the configuration, DEL does what can be done.
        node.del(&ipam, "a");
    }
    let mut nameless = request(Command::Add, &json!({"range": "10.0.0.0/24"}), "a", "net1");
    nameless.args = cni::Args::default();
    assert!(node.plugin.add(&nameless).unwrap_err().msg.contains("K8S_POD_NAME"));
}
