//! Addresses that outlive a container: those of StatefulSets, and claims.

use cni::{Command, Error, Plugin as _};
use serde_json::{Value, json};

use crate::node::{Cluster, Node, texts};

fn add(node: &Node, ipam: &Value, pod: &str, container: &str) -> Result<Vec<String>, Error> {
    node.plugin.add(&node.request(Command::Add, ipam, pod, container)).map(|result| texts(&result))
}

fn del(node: &Node, ipam: &Value, pod: &str, container: &str) {
    node.plugin.del(&node.request(Command::Del, ipam, pod, container)).unwrap();
}

#[test]
fn a_pod_of_a_stateful_set_has_its_address_on_every_node() {
    let cluster = Cluster::start();
    let nodes: Vec<_> = (0..3).map(|number| cluster.node(&format!("n{number}"))).collect();
    cluster.stateful_set("web", 2);
    for pod in ["web-0", "web-1"] {
        cluster.pod_of("web", pod);
    }
    cluster.pod("alone-0");
    let ipam = json!({"ipRanges": [{"range": "10.40.0.0/24"}, {"range": "fd40::/64"}], "sticky": true});
    let first = add(&nodes[0], &ipam, "web-0", "c0").unwrap();
    let other = add(&nodes[1], &ipam, "web-1", "c1").unwrap();
    assert_ne!(first, other);
    for (turn, node) in [&nodes[1], &nodes[2], &nodes[2], &nodes[0]].into_iter().enumerate() {
        // A former container that still runs keeps it: better no pod than two with one address.
        let refused = add(node, &ipam, "web-0", "second").unwrap_err();
        assert_eq!(refused.code, Error::TRY_AGAIN_LATER, "{refused}");
        let (address, _) = first[0].split_once('/').unwrap();
        assert!(refused.msg.contains(address) && refused.msg.contains("is still with"), "{refused}");
        node.plugin.del(&node.request(Command::Del, &ipam, "web-0", "second")).unwrap();
        let former = if turn == 0 { &nodes[0] } else { [&nodes[1], &nodes[2], &nodes[2]][turn - 1] };
        del(former, &ipam, "web-0", &format!("c{}", turn * 2));
        // Nobody gets it in between.
        let passing = add(node, &ipam, "alone-0", "passing").unwrap();
        assert_ne!(passing[0], first[0]);
        del(node, &ipam, "alone-0", "passing");
        let container = format!("c{}", turn * 2 + 2);
        assert_eq!(add(node, &ipam, "web-0", &container).unwrap(), first, "{turn}");
        assert_eq!(add(node, &ipam, "web-0", &container).unwrap(), first, "asked again");
        node.plugin.check(&node.request(Command::Check, &ipam, "web-0", &container)).unwrap();
    }
    let id = format!("=pod/{}/web-0/net1", cluster.namespace);
    let entries = cluster.allocations("10.40.0.0-24");
    let its: Vec<&Value> = entries.values().filter(|e| e["id"].as_str().unwrap().ends_with(&id)).collect();
    assert!(its.len() == 1 && its[0]["podref"] == "", "{entries:?}");
}

#[test]
fn what_waits_for_nobody_any_more_is_given_to_others() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    cluster.stateful_set("db", 2);
    let ipam = json!({"range": "10.41.0.0/30", "sticky": true});
    let mut had = Vec::new();
    for pod in ["db-0", "db-1"] {
        cluster.pod_of("db", pod);
        had.extend(add(&one, &ipam, pod, pod).unwrap());
        del(&one, &ipam, pod, pod);
        cluster.delete_pod(pod);
    }
    let refused = add(&two, &ipam, "new", "new").unwrap_err();
    assert!(refused.msg.contains("waiting for pod/"), "{refused}");
    two.wait_a_minute();
    // Both may come back.
    assert!(add(&two, &ipam, "new", "new").is_err());
    cluster.scale("db", 1);
    assert!(add(&two, &ipam, "new", "new").is_err(), "not missing for long");
    two.wait_a_minute();
    let got = add(&two, &ipam, "new", "new").unwrap();
    assert_eq!(got[0], had[1]);
    cluster.pod_of("db", "db-0");
    assert_eq!(add(&two, &ipam, "db-0", "again").unwrap()[0], had[0]);
    let reservations = cluster.names("overlappingrangeipreservations");
    assert_eq!(reservations.len(), 2, "{reservations:?}");
    for pod in ["new", "db-0"] {
        del(&two, &ipam, pod, if pod == "new" { "new" } else { "again" });
    }
    assert_eq!(cluster.allocations("10.41.0.0-30").len(), 1, "that of db-0");
    assert_eq!(cluster.names("overlappingrangeipreservations").len(), 1);
}

#[test]
fn a_stateful_set_keeps_what_it_has_from_the_peer() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    let podref = format!("{}/web-0", cluster.namespace);
    let entry = |ifname: &str| json!({"id": "gone", "podref": podref, "ifname": ifname});
    cluster.peer_pool(
        "10.42.0.0-24",
        "10.42.0.0/24",
        &json!({"1": entry("net2"), "9": entry("net1"), "200": {"id": "x", "podref": "ns/x", "ifname": "net1"}}),
    );
    for address in ["10.42.0.1", "10.42.0.9"] {
        cluster.peer_reservation(address, &podref);
    }
    cluster.pod_of("web", "web-0");
    for ipam in [json!({"range": "10.42.0.0/24", "sticky": true}), json!({"range": "10.42.0.0/24"})] {
        assert_eq!(add(&node, &ipam, "web-0", "c").unwrap(), ["10.42.0.9/24"], "{ipam}");
        assert_eq!(cluster.allocations("10.42.0.0-24").len(), 3);
        assert!(cluster.names("overlappingrangeipreservations").contains(&"10.42.0.9".to_owned()));
    }
}

#[test]
fn a_claim_keeps_its_addresses() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    let ranges = json!([{"range": "10.43.0.0/24"}, {"range": "fd43::/64"}]);
    let ipam = json!({"ipRanges": ranges, "args": {"cni": {"ipam-claim-reference": "vm"}}});
    let missing = add(&one, &ipam, "vm-a", "a").unwrap_err();
    assert!(
        missing.code == Error::TRY_AGAIN_LATER && missing.msg.contains("/vm, which does not exist"),
        "{missing}"
    );
    cluster.make_claim("vm", "net");
    cluster.make_claim("foreign", "other");
    let foreign = json!({"ipRanges": ranges, "args": {"cni": {"ipam-claim-reference": "foreign"}}});
    let refused = add(&one, &foreign, "vm-a", "a").unwrap_err();
    assert!(refused.msg.contains("\"other\"") && refused.msg.contains("\"net\""), "{refused}");
    let got = add(&one, &ipam, "vm-a", "a").unwrap();
    let status = || cluster.send("GET", &cluster.claim_path("vm"), &Value::Null).unwrap()["status"].clone();
    assert_eq!(status(), json!({"ips": got, "ownerPod": {"name": "vm-a"}}));
    // One at a time, and another pod after it, wherever.
    assert_eq!(add(&two, &ipam, "vm-b", "b").unwrap_err().code, Error::TRY_AGAIN_LATER);
    del(&one, &ipam, "vm-a", "a");
    assert_eq!(add(&two, &ipam, "vm-b", "b").unwrap(), got);
    assert_eq!(status()["ownerPod"]["name"], "vm-b");
    del(&two, &ipam, "vm-b", "b");
    // A claim that says its addresses gets these, also when the pools know nothing of it.
    let asked = json!({"status": {"ips": ["10.43.0.77/24", "fd43::77/64"]}});
    cluster.make_claim("fixed", "net");
    cluster.send("PATCH", &format!("{}/status", cluster.claim_path("fixed")), &asked).unwrap();
    let fixed = json!({"ipRanges": ranges, "args": {"cni": {"ipam-claim-reference": "fixed"}}});
    assert_eq!(add(&two, &fixed, "vm-c", "c").unwrap(), ["10.43.0.77/24", "fd43::77/64"]);
}

#[test]
fn a_claim_is_found_in_the_annotation_where_the_runtime_does_not_tell_it() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    cluster.make_claim("vm", "net");
    cluster.pod("vm-a");
    let networks = r#"[{"name": "x", "ipam-claim-reference": "vm"}]"#;
    let path = format!("/api/v1/namespaces/{}/pods/vm-a", cluster.namespace);
    let annotation = json!({"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": networks}}});
    cluster.send("PATCH", &path, &annotation).unwrap();
    let ipam = json!({"range": "10.44.0.0/24", "allowPersistentIPs": true});
    add(&node, &ipam, "vm-a", "a").unwrap();
    let id = format!("podrail:=claim/{}/vm", cluster.namespace);
    del(&node, &ipam, "vm-a", "a");
    assert_eq!(cluster.allocations("10.44.0.0-24")["1"], json!({"id": id, "podref": ""}));
    // Without the key nobody looks.
    add(&node, &json!({"range": "10.44.0.0/24"}), "vm-a", "b").unwrap();
    assert_eq!(cluster.allocations("10.44.0.0-24")["1"]["id"], id);
}

#[test]
fn in_a_list_of_ranges_a_tenant_finds_its_own() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    cluster.pod_of("web", "web-0");
    let ipam = json!({"ipRanges": [[{"range": "10.45.0.0/31"}, {"range": "10.45.1.0/24"}]], "sticky": true});
    one.add(&ipam, "a");
    one.add(&ipam, "b");
    let got = add(&one, &ipam, "web-0", "c").unwrap();
    assert_eq!(got, ["10.45.1.1/24"]);
    del(&one, &ipam, "web-0", "c");
    one.del(&ipam, "a");
    assert_eq!(add(&two, &ipam, "web-0", "d").unwrap(), got);
}

#[test]
fn an_address_that_others_have_does_not_wait_for_a_tenant() {
    let cluster = Cluster::start();
    let node = cluster.node("n1");
    cluster.pod_of("web", "web-0");
    cluster.peer_reservation("10.46.0.1", "ns/peer");
    let ipam = json!({"range": "10.46.0.0/30", "sticky": true});
    assert_eq!(add(&node, &ipam, "web-0", "c").unwrap(), ["10.46.0.2/30"]);
    assert_eq!(cluster.allocations("10.46.0.0-30").keys().collect::<Vec<_>>(), ["2"]);
    del(&node, &ipam, "web-0", "c");
    let left = cluster.allocations("10.46.0.0-30");
    assert!(left.len() == 1 && left["2"]["id"].as_str().unwrap().contains(":=pod/"), "{left:?}");
}

#[test]
fn sets_that_share_a_subnet_share_the_addresses_of_a_claim() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    let part =
        |first: &str, last: &str| json!({"range": "10.47.0.0/24", "range_start": first, "range_end": last});
    let parts = json!([part("10.47.0.10", "10.47.0.19"), part("10.47.0.30", "10.47.0.39")]);
    let alike = json!([{"range": "10.48.0.0/24"}, {"range": "10.48.0.0/24"}]);
    for (ranges, claim, asked, wanted) in [
        (&parts, "turned", json!(["10.47.0.33/24", "10.47.0.12/24"]), ["10.47.0.12/24", "10.47.0.33/24"]),
        (&parts, "half", json!(["10.47.0.34/24"]), ["10.47.0.10/24", "10.47.0.34/24"]),
        (&parts, "outside", json!(["10.47.0.35/24", "10.47.0.77/24"]), ["10.47.0.77/24", "10.47.0.35/24"]),
        (&alike, "alike", json!(["10.48.0.7/24", "10.48.0.5/24"]), ["10.48.0.7/24", "10.48.0.5/24"]),
        (&alike, "twice", json!(["10.48.0.9/24", "10.48.0.9/24"]), ["10.48.0.9/24", "10.48.0.1/24"]),
    ] {
        cluster.make_claim(claim, "net");
        let status = json!({"status": {"ips": asked}});
        cluster.send("PATCH", &format!("{}/status", cluster.claim_path(claim)), &status).unwrap();
        let ipam = json!({"ipRanges": ranges, "args": {"cni": {"ipam-claim-reference": claim}}});
        for (node, container) in [(&one, "a"), (&two, "b")] {
            let container = format!("{claim}-{container}");
            assert_eq!(add(node, &ipam, claim, &container).unwrap(), wanted, "{claim}");
            assert_eq!(add(node, &ipam, claim, &container).unwrap(), wanted, "{claim}, asked again");
            del(node, &ipam, claim, &container);
        }
    }
}

#[test]
fn a_suspicion_ends_when_the_tenant_is_back() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.node("n1"), cluster.node("n2"));
    cluster.stateful_set("db", 1);
    cluster.pod_of("db", "db-0");
    let ipam = json!({"range": "10.49.0.0/31", "sticky": true});
    let had = add(&one, &ipam, "db-0", "first").unwrap();
    del(&one, &ipam, "db-0", "first");
    add(&two, &ipam, "other", "other").unwrap();
    cluster.delete_pod("db-0");
    cluster.scale("db", 0);
    for _ in 0..2 {
        assert!(add(&two, &ipam, "new", "new").is_err(), "not missing for long");
        two.wait_a_minute();
        cluster.scale("db", 1);
        cluster.pod_of("db", "db-0");
        assert_eq!(add(&two, &ipam, "db-0", "again").unwrap(), had);
        del(&two, &ipam, "db-0", "again");
        cluster.delete_pod("db-0");
        cluster.scale("db", 0);
    }
}
