//! What the configuration of a network, the flat file and the arguments of a call come to.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::path::Path;

use cni::{Args, Command, Object, Request, Version};
use ipam::config::{Conf, Places};
use ipam::error::Error;
use serde_json::{Value, json};

fn places(dir: &Path) -> Places {
    Places {
        flat_files: vec![dir.join("first.conf"), dir.join("second.conf")],
        node_name: Some("n1".into()),
        host_name: dir.join("hostname"),
        data_dir: dir.join("ledgers"),
    }
}

fn request(config: &Value, args: &str) -> Request {
    let stdin = serde_json::to_vec(config).unwrap();
    Request {
        command: Command::Add,
        container_id: "c".into(),
        netns: None,
        ifname: "net1".into(),
        args: Args::parse(args).unwrap(),
        path: Vec::new(),
        version: Version::V1_1_0,
        name: "net".into(),
        config: Object::parse(&stdin).unwrap(),
        stdin,
    }
}

fn load(ipam: &Value, args: &str, dir: &Path) -> Result<Conf, Error> {
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "ipam": ipam});
    Conf::load(&request(&config, args), &places(dir))
}

fn range(conf: &Conf, at: usize) -> (String, Option<IpAddr>) {
    let range = &conf.sets[at][0].range;
    let first = range.offsets().next().and_then(|offset| range.address(offset));
    (range.subnet().to_string(), first)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn defaults_are_the_peers() {
    let dir = tempfile::tempdir().unwrap();
    let conf = load(&json!({"range": "10.0.0.7/24"}), "", dir.path()).unwrap();
    assert_eq!(range(&conf, 0), ("10.0.0.0/24".into(), Some(address("10.0.0.1"))));
    assert!(conf.exclusive && conf.cool_down.is_zero() && conf.slice.is_none());
    assert!(!conf.sticky && !conf.look_for_claim && conf.claim.is_none());
    assert!(conf.network_name.is_empty() && conf.requested.is_empty() && conf.addresses.is_empty());
    assert_eq!(conf.sets[0][0].pool, "10.0.0.0-24");
    assert_eq!((conf.node.kubeconfig, conf.node.name.as_str()), (None, "n1"));
}

#[test]
fn every_key_of_the_peer_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let ipam = json!({
        "type": "whereabouts", "RANGE": "192.168.002.225-192.168.2.230/28", "range_start": "192.168.2.229",
        "range_end": null, "exclude": ["192.168.2.225", "192.168.2.226/31"], "Gateway": "192.168.2.238",
        "ipRanges": [
            {"range": "fd00::/64", "range_start": "fd00::10", "range_end": "fd00::20", "exclude": ["fd00::10/127"]},
            {"range": "10.0.0.0/24", "range_start": "10.9.9.9"},
        ],
        "network_name": "red", "enable_overlapping_ranges": false, "node_slice_size": "26",
        "addresses": [{"address": "010.1.2.03/24", "gateway": "10.1.2.254"}],
        "routes": [{"dst": "10.0.0.0/8", "gw": "10.0.0.1"}], "dns": {"nameservers": ["10.0.0.53"], "domain": "d"},
        "kubernetes": {"kubeconfig": "/k", "k8s_api_root": "https://10.96.0.1"},
        "log_file": "/var/log/w", "log_level": "debug", "sleep_for_race": 5, "leader_lease_duration": 1,
        "leader_renew_deadline": 2, "leader_retry_period": 3, "reconciler_cron_expression": "@daily",
        "datastore": "kubernetes", "etcd_host": "h", "etcd_username": "u", "etcd_password": "p", "etcd_key_file": "k",
        "etcd_cert_file": "c", "etcd_ca_cert_file": "a", "unknown": {},
    });
    let conf = load(&ipam, "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p", dir.path()).unwrap();
    // What is written in the range counts more than range_start.
    assert_eq!(range(&conf, 0), ("192.168.2.224/28".into(), Some(address("192.168.2.228"))));
    assert_eq!(conf.sets[0][0].range.capacity(), 3);
    assert_eq!(conf.sets[0][0].range.gateway(), Some(address("192.168.2.238")));
    assert_eq!(range(&conf, 1), ("fd00::/64".into(), Some(address("fd00::12"))));
    assert_eq!((conf.sets[1][0].range.capacity(), conf.sets[1][0].range.gateway()), (15, None));
    // A bound outside the range counts for nothing.
    assert_eq!(range(&conf, 2), ("10.0.0.0/24".into(), Some(address("10.0.0.1"))));
    let pools: Vec<&str> = conf.sets.iter().map(|set| set[0].pool.as_str()).collect();
    assert_eq!(pools, ["red-192.168.2.224-28", "red-fd00---64", "red-10.0.0.0-24"]);
    assert_eq!((conf.exclusive, conf.slice, conf.pod.podref.as_str()), (false, Some(26), "ns/p"));
    assert_eq!(conf.addresses[0].address, "10.1.2.3/24".parse().unwrap());
    assert_eq!(conf.addresses[0].gateway, Some(address("10.1.2.254")));
    assert_eq!((conf.routes.len(), conf.dns.domain.as_str()), (1, "d"));
    assert_eq!(conf.node.kubeconfig.as_deref(), Some(Path::new("/k")));
}

#[test]
fn the_flat_file_fills_what_the_network_leaves_open() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    write(
        "second.conf",
        &json!({
            "datastore": "kubernetes", "kubernetes": {"kubeconfig": "/flat"}, "log_level": "debug",
            "range": "10.8.0.0/24", "range_start": "10.0.0.9", "exclude": ["10.0.0.9"], "log_file": "/flat.log",
            "enable_overlapping_ranges": false,
        }),
    );
    let ipam = json!({"range": "10.0.0.0/24", "exclude": [], "log_file": "", "kubernetes": {}, "log_level": "error"});
    let conf = load(&ipam, "", dir.path()).unwrap();
    assert_eq!(range(&conf, 0), ("10.0.0.0/24".into(), Some(address("10.0.0.10"))));
    assert_eq!((conf.exclusive, conf.node.kubeconfig.unwrap()), (false, "/flat".into()));
    let config = json!({"name": "net", "type": "x", "ipam": ipam});
    let logging = Conf::logging(&request(&config, "").config, &places(dir.path()));
    assert_eq!(logging, (Some("/flat.log".into()), Some("error".into())));
    // The first that is there is the only one, and what the network names comes before all.
    write("first.conf", &json!({"kubernetes": {"kubeconfig": "/first"}}));
    let kubeconfig = |ipam: Value| load(&ipam, "", dir.path()).unwrap().node.kubeconfig.unwrap();
    assert_eq!(kubeconfig(json!({"range": "10.0.0.0/24"})), Path::new("/first"));
    write("named.conf", &json!({"kubernetes": {"kubeconfig": "/named"}}));
    let named = dir.path().join("named.conf");
    assert_eq!(kubeconfig(json!({"range": "10.0.0.0/24", "configuration_path": named})), Path::new("/named"));
    let missing = dir.path().join("missing.conf");
    assert_eq!(
        kubeconfig(json!({"range": "10.0.0.0/24", "configuration_path": missing})),
        Path::new("/first")
    );
    for (name, content) in [("first.conf", Some("{")), ("directory", None)] {
        let path = dir.path().join(name);
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::create_dir(&path).unwrap(),
        }
        let ipam = json!({"range": "10.0.0.0/24", "configuration_path": path});
        let error = load(&ipam, "", dir.path()).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn arguments_of_the_call() {
    let dir = tempfile::tempdir().unwrap();
    let ipam = json!({"range": "10.0.0.0/24", "addresses": [{"address": "192.0.2.5/24"}]});
    let args =
        "IP=10.0.0.77/24, 198.51.100.7/24,fd00::7/64,10.0.0.9;GATEWAY=198.51.100.1,010.0.0.1,192.0.2.1";
    let conf = load(&ipam, args, dir.path()).unwrap();
    // Inside the range it is asked for, elsewhere it is added.
    assert_eq!(conf.requested, [address("10.0.0.9"), address("10.0.0.77")]);
    let added: Vec<String> =
        conf.addresses.iter().map(|ip| format!("{} {:?}", ip.address, ip.gateway)).collect();
    assert_eq!(
        added,
        ["192.0.2.5/24 Some(192.0.2.1)", "198.51.100.7/24 Some(198.51.100.1)", "fd00::7/64 None"]
    );
    assert_eq!(conf.gateway(&conf.sets[0][0].range), Some(address("10.0.0.1")));
    for (args, part) in [("IP=x", "IP"), ("GATEWAY=10.0.0.300", "GATEWAY"), ("IP=10.0.0.1/33", "IP")] {
        let error = load(&ipam, args, dir.path()).unwrap_err().to_string();
        assert!(error.contains(part), "{args}: {error}");
    }
    let config = json!({
        "name": "net", "type": "x", "allowPersistentIPs": true, "ipam": {"range": "10.0.0.0/24", "sticky": true},
        "args": {"cni": {"ips": ["10.0.0.5/24", "10.0.0.6"], "ipam-claim-reference": "vm"}},
        "runtimeConfig": {"ips": ["10.0.0.6"]},
    });
    let conf = Conf::load(&request(&config, "IP=10.0.0.5"), &places(dir.path())).unwrap();
    assert_eq!(conf.requested, [address("10.0.0.5"), address("10.0.0.6")]);
    assert!(conf.look_for_claim && conf.sticky && conf.claim.as_deref() == Some("vm"));
}
