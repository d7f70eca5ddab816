//! Results of every version, read and printed: tables from the specification and from what the reference
//! plugins print, and the invariants that hold for all results.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use cni::{CniResult, Dns, Error, Interface, IpConfig, Route, Version};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(value: &Value) -> CniResult {
    CniResult::parse(value.to_string().as_bytes(), Version::V0_1_0).unwrap()
}

fn print(result: &CniResult, version: Version) -> Value {
    serde_json::from_slice(&result.to_json(version).unwrap()).unwrap()
}

/// A result in which every field is set, as version 1.1.0 spells it.
fn full() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "br0", "mac": "0a:00:00:00:00:01"},
            {"name": "eth0", "mac": "0a:00:00:00:00:02", "mtu": 1400, "sandbox": "/run/netns/a",
             "socketPath": "/run/s", "pciID": "0000:01:00.1"},
        ],
        "ips": [
            {"interface": 1, "address": "10.1.0.5/16", "gateway": "10.1.0.1"},
            {"interface": 1, "address": "2001:db8::42/64", "gateway": "2001:db8::1"},
            {"address": "10.2.0.5/16"},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1300, "advmss": 1200, "priority": 10, "table": 100, "scope": 0},
            {"dst": "::/0"},
            {"dst": "10.3.0.0/16", "gw": "10.1.0.9"},
        ],
        "dns": {"nameservers": ["10.1.0.1"], "domain": "local", "search": ["a.local"], "options": ["ndots:2"]},
    })
}

#[test]
fn the_full_result_in_every_version() {
    let result = parse(&full());
    let newest = full();
    for (version, text) in [(Version::V1_1_0, "1.1.0"), (Version::V1_0_0, "1.0.0")] {
        let mut want = newest.clone();
        want["cniVersion"] = json!(text);
        assert_eq!(print(&result, version), want);
    }
    for (version, text) in
        [(Version::V0_4_0, "0.4.0"), (Version::V0_3_1, "0.3.1"), (Version::V0_3_0, "0.3.0")]
    {
        let mut want = newest.clone();
        want["cniVersion"] = json!(text);
        for key in ["mtu", "socketPath", "pciID"] {
            want["interfaces"][1].as_object_mut().unwrap().remove(key);
        }
        for (index, family) in ["4", "6", "4"].iter().enumerate() {
            want["ips"][index]["version"] = json!(family);
        }
        assert_eq!(print(&result, version), want);
    }
    for (version, text) in [(Version::V0_2_0, "0.2.0"), (Version::V0_1_0, "0.1.0")] {
        let want = json!({
            "cniVersion": text,
            "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1",
                    "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "10.3.0.0/16", "gw": "10.1.0.9"}]},
            "ip6": {"ip": "2001:db8::42/64", "gateway": "2001:db8::1", "routes": [{"dst": "::/0"}]},
            "dns": newest["dns"],
        });
        assert_eq!(print(&result, version), want);
    }
}

#[test]
fn old_results_become_new_ones() {
    let old = json!({
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
        "ip6": {"ip": "2001:db8::42/64", "routes": [{"dst": "::/0", "gw": "2001:db8::1"}]},
        "dns": {"domain": "local"},
    });
    let want = json!({
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1"}, {"address": "2001:db8::42/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "2001:db8::1"}],
        "dns": {"domain": "local"},
    });
    assert_eq!(print(&parse(&old), Version::V1_0_0), want);
    assert_eq!(print(&parse(&old), Version::V0_2_0), old);
}

#[test]
fn what_is_empty_is_left_out_but_for_dns_below_1_0_0() {
    let empty = CniResult::default();
    for version in Version::ALL {
        let mut want = json!({"cniVersion": version.as_str()});
        if *version < Version::V1_0_0 {
            want["dns"] = json!({});
        }
        assert_eq!(print(&empty, *version), want);
    }
}

#[test]
fn a_result_without_address_has_no_form_below_0_3_0() {
    let layer_two = CniResult {
        interfaces: vec![Interface { name: "net1".into(), ..Interface::default() }],
        ..CniResult::default()
    };
    for version in Version::ALL {
        match layer_two.to_json(*version) {
            Ok(_) => assert!(*version >= Version::V0_3_0, "{version}"),
            Err(error) => {
                assert!(*version < Version::V0_3_0, "{version}");
                assert_eq!(error.code, Error::INCOMPATIBLE_VERSION);
                assert!(error.msg.contains("no valid IP addresses"), "{error}");
            }
        }
    }
}

#[test]
fn reading_is_as_tolerant_as_the_reference() {
    let address: IpConfig =
        IpConfig { interface: None, address: "10.0.0.1/8".parse().unwrap(), gateway: None };
    let ips = |ips| CniResult { ips, ..CniResult::default() };
    let table: &[(&str, CniResult)] = &[
        ("null", CniResult::default()),
        ("{}", CniResult::default()),
        (r#"{"cniVersion":"","ips":null,"interfaces":null,"routes":null,"dns":null}"#, CniResult::default()),
        (r#"{"IPs":[{"Address":"10.0.0.1/8","gateway":""}]}"#, ips(vec![address.clone()])),
        (
            r#"{"ips":[{"version":"4","interface":-1,"address":"10.0.0.1/8","x":{}}]}"#,
            ips(vec![address.clone()]),
        ),
        (r#"{"cniVersion":"0.1.0","ip4":{"ip":"10.0.0.1/8","routes":null},"ip6":null}"#, ips(vec![address])),
        (
            r#"{"interfaces":[null,{"name":"a"}]}"#,
            CniResult {
                interfaces: vec![
                    Interface::default(),
                    Interface { name: "a".into(), ..Interface::default() },
                ],
                ..CniResult::default()
            },
        ),
    ];
    for (text, want) in table {
        assert_eq!(&CniResult::parse(text.as_bytes(), Version::V1_0_0).unwrap(), want, "{text}");
    }
}

#[test]
fn what_is_no_result_is_named() {
    let table: &[(&str, u32, &str)] = &[
        ("", Error::DECODING, "JSON"),
        ("[]", Error::DECODING, "JSON"),
        (r#"{"cniVersion":"9.0.0"}"#, Error::INCOMPATIBLE_VERSION, "9.0.0"),
        (r#"{"ips":[{}]}"#, Error::DECODING, "ips[0]: \"address\" is missing"),
        (r#"{"ips":[{"address":"10.0.0.1"}]}"#, Error::DECODING, "address"),
        (r#"{"ips":[{"address":"10.0.0.1/33"}]}"#, Error::DECODING, "address"),
        (r#"{"ips":[{"address":"010.0.0.1/8"}]}"#, Error::DECODING, "address"),
        (r#"{"ips":[{"address":"10.0.0.1/8","gateway":"x"}]}"#, Error::DECODING, "gateway"),
        (r#"{"routes":[{"gw":"10.0.0.1"}]}"#, Error::DECODING, "routes[0]: \"dst\""),
        (r#"{"interfaces":{}}"#, Error::DECODING, "interfaces"),
    ];
    for (text, code, part) in table {
        let error = CniResult::parse(text.as_bytes(), Version::V1_0_0).unwrap_err();
        assert_eq!(error.code, *code, "{text}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
}

fn any_result() -> impl Strategy<Value = CniResult> {
    let interface = ("[a-z]{0,4}", "[0-9a-f:]{0,4}", 0..9u32, "[a-z/]{0,4}", "[a-z/]{0,2}", "[0-9:.]{0,3}")
        .prop_map(|(name, mac, mtu, sandbox, socket_path, pci_id)| Interface {
            name,
            mac,
            mtu,
            sandbox,
            socket_path,
            pci_id,
        });
    let v4 =
        (any::<std::net::Ipv4Addr>(), 0..=32u8).prop_map(|(a, p)| ipnet::Ipv4Net::new(a, p).unwrap().into());
    let v6 =
        (any::<std::net::Ipv6Addr>(), 0..=128u8).prop_map(|(a, p)| ipnet::Ipv6Net::new(a, p).unwrap().into());
    let net = prop_oneof![v4, v6];
    let gateway = proptest::option::of(any::<std::net::IpAddr>());
    let ip = (proptest::option::of(0..9usize), net.clone(), gateway.clone())
        .prop_map(|(interface, address, gateway)| IpConfig { interface, address, gateway });
    let number = || proptest::option::of(0..300u32);
    let route = (net, gateway, 0..9u32, 0..9u32, 0..9u32, number(), number()).prop_map(
        |(dst, gw, mtu, advmss, priority, table, scope)| Route {
            dst,
            gw,
            mtu,
            advmss,
            priority,
            table,
            scope,
        },
    );
    let list = || proptest::collection::vec("[a-z0-9.]{0,4}", 0..3);
    let dns = (list(), "[a-z.]{0,4}", list(), list())
        .prop_map(|(nameservers, domain, search, options)| Dns { nameservers, domain, search, options });
    let many = 0..4usize;
    (
        proptest::collection::vec(interface, many.clone()),
        proptest::collection::vec(ip, many.clone()),
        proptest::collection::vec(route, many),
        dns,
    )
        .prop_map(|(interfaces, ips, routes, dns)| CniResult { interfaces, ips, routes, dns })
}

proptest! {
    /// Nothing is lost within the newest shape.
    #[test]
    fn the_newest_shape_round_trips(result in any_result()) {
        for version in [Version::V1_0_0, Version::V1_1_0] {
            let json = result.to_json(version).unwrap();
            prop_assert_eq!(&CniResult::parse(&json, Version::V0_1_0).unwrap(), &result);
        }
    }

    /// Going down loses once and then no more: reading an old form and printing it again changes nothing.
    #[test]
    fn every_older_form_is_stable(result in any_result()) {
        for version in Version::ALL {
            let Ok(first) = result.to_json(*version) else { continue };
            let again = CniResult::parse(&first, Version::LATEST).unwrap();
            prop_assert_eq!(again.to_json(*version).unwrap(), first);
            prop_assert_eq!(again.dns, result.dns.clone());
        }
    }

    /// By way of 0.4.0, only the interface's newer members are lost.
    #[test]
    fn the_middle_shape_keeps_the_rest(result in any_result()) {
        let json = result.to_json(Version::V0_4_0).unwrap();
        let mut want = result;
        for interface in &mut want.interfaces {
            interface.mtu = 0;
            interface.socket_path.clear();
            interface.pci_id.clear();
        }
        prop_assert_eq!(CniResult::parse(&json, Version::V0_1_0).unwrap(), want);
    }
}
