//! `default-route` on real interfaces in a network namespace. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking"
)]

mod node;

use cni::{Attachment, NetworkList, Object};
use host::Netns;
use multus::delegate::Delegate;
use multus::routes::DefaultRoutes;
use node::{ip, new_netns};

fn delegates(wanted: &[Option<&[&str]>]) -> Vec<Delegate> {
    let each = |(index, gateways): (usize, &Option<&[&str]>)| Delegate {
        label: format!("n{index}"),
        is_primary: index == 0,
        list: NetworkList::parse(br#"{"name":"n","type":"x"}"#).unwrap(),
        attachment: Attachment {
            container_id: "c".into(),
            netns: None,
            ifname: format!("e{index}"),
            args: Vec::new(),
            capabilities: Object::new(),
        },
        resource: None,
        device_id: None,
        default_route: gateways.map(|list| list.iter().map(|g| g.parse().unwrap()).collect()),
    };
    wanted.iter().enumerate().map(each).collect()
}

/// A container with e0 to e2, each with a subnet of both families, and default routes over e0 and e2.
fn container() -> Netns {
    let netns = new_netns();
    for (index, address) in ["10.0.0.2", "10.1.0.2", "10.2.0.2"].iter().enumerate() {
        ip(Some(&netns), &format!("link add e{index} type veth peer name peer{index}"));
        ip(Some(&netns), &format!("link set peer{index} up"));
        ip(Some(&netns), &format!("link set e{index} up"));
        ip(Some(&netns), &format!("addr add {address}/24 dev e{index}"));
        ip(Some(&netns), &format!("addr add fd0{index}::2/64 dev e{index} nodad"));
    }
    ip(Some(&netns), "route add default via 10.0.0.1 dev e0");
    ip(Some(&netns), "route add default via 10.2.0.1 dev e2 metric 200");
    ip(Some(&netns), "-6 route add default via fd00::1 dev e0");
    netns
}

fn defaults(netns: &Netns) -> Vec<String> {
    let text = ip(Some(netns), "-4 route show default") + &ip(Some(netns), "-6 route show default");
    let word = |line: &str, key: &str| {
        line.split(key).nth(1).map(|rest| rest.split_whitespace().next().unwrap().to_owned()).unwrap()
    };
    let mut routes: Vec<_> =
        text.lines().map(|line| format!("{} {}", word(line, " via "), word(line, " dev "))).collect();
    routes.sort();
    routes
}

fn apply(netns: &Netns, wanted: &[Option<&[&str]>]) -> Result<(), multus::Error> {
    let delegates = delegates(wanted);
    let routes = DefaultRoutes::wanted(&delegates)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().unwrap();
    runtime.block_on(routes.apply(netns, &delegates))
}

#[test]
fn a_gateway_replaces_the_defaults_of_its_family() {
    type Case<'a> = (&'a [Option<&'a [&'a str]>], &'a [&'a str]);
    let table: [Case<'_>; 5] = [
        (&[None, Some(&["10.1.0.1"]), None], &["10.1.0.1 e1", "fd00::1 e0"]),
        (&[None, Some(&["fd01::1"]), None], &["10.0.0.1 e0", "10.2.0.1 e2", "fd01::1 e1"]),
        (&[None, Some(&["10.1.0.1"]), Some(&["fd02::1"])], &["10.1.0.1 e1", "fd02::1 e2"]),
        (&[Some(&["10.0.0.9"]), None, None], &["10.0.0.9 e0", "fd00::1 e0"]),
        (&[None, None, Some(&[])], &["10.0.0.1 e0", "fd00::1 e0"]),
    ];
    for (wanted, want) in table {
        let netns = container();
        apply(&netns, wanted).unwrap();
        assert_eq!(defaults(&netns), want, "{wanted:?}");
    }
}

#[test]
fn a_gateway_that_cannot_be_reached_is_named() {
    let text = apply(&container(), &[None, Some(&["192.0.2.1"]), None]).unwrap_err().to_string();
    assert!(text.starts_with("error setting default gateway: 192.0.2.1 on e1"), "{text}");
}

#[test]
fn what_cannot_be_done_whole_is_not_done() {
    for wanted in [
        [None, Some(&["192.0.2.1"][..]), None],
        // The first of the two works, and takes the place of a route.
        [None, Some(&["10.1.0.1"][..]), Some(&["2001:db8::1"][..])],
        [Some(&["10.0.0.9", "2001:db8::1"][..]), None, None],
    ] {
        let netns = container();
        // Who made them is not told of routes that are made again.
        let routes = |family: &str| {
            ip(Some(&netns), &format!("{family} route show default")).replace(" proto static", "")
        };
        let before = [routes("-4"), routes("-6")];
        apply(&netns, &wanted).unwrap_err();
        assert_eq!([routes("-4"), routes("-6")], before, "{wanted:?}");
    }
}

#[test]
fn an_interface_of_no_delegate_keeps_its_route() {
    let netns = container();
    ip(Some(&netns), "link add other type veth peer name another");
    ip(Some(&netns), "link set other up");
    ip(Some(&netns), "link set another up");
    ip(Some(&netns), "addr add 10.9.0.2/24 dev other");
    ip(Some(&netns), "route add default via 10.9.0.1 dev other metric 900");
    apply(&netns, &[None, Some(&["10.1.0.1"]), None]).unwrap();
    assert_eq!(defaults(&netns), ["10.1.0.1 e1", "10.9.0.1 other", "fd00::1 e0"]);
}
