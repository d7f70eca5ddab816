//! The reference plugins, as delegates of our runtime, on real interfaces in network namespaces of the test; and the
//! reference library, as a runtime beside ours.
//!
//! Needs root, the reference plugins, from `CNI_REFERENCE_PLUGINS` or where Debian installs them, and `cnitool`. A kind of
//! interface that the running kernel lacks is left out with a note, unless `CNI_REFERENCE_STRICT` is set, as it
//! is where the kernel is known to have them all.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod cnitool;
mod node;

use std::path::Path;
use std::process::{Command, Stdio};

use cni::Command::Add;
use cni::exec::Environment;
use cni::{Attachment, CniResult, NetworkList, Object, Version};

use node::{Node, ip, kernel_has, plugins, versions};

/// ADD, CHECK where there is one, DEL twice; `seen` looks at the container in between.
fn cycle(node: &Node, list: &NetworkList, seen: impl Fn(&CniResult)) {
    let runtime = node.runtime();
    let result = runtime.add(list, &node.attachment()).unwrap();
    seen(&result);
    if list.version.has_check() {
        runtime.check(list, &node.attachment()).unwrap();
    }
    runtime.del(list, &node.attachment()).unwrap();
    runtime.del(list, &node.attachment()).unwrap();
    assert!(!node.addresses().contains("net1"), "{}", node.addresses());
    assert!(runtime.cache().attachments(None).unwrap().is_empty());
}

/// A program that runs as long as this value lives.
struct Running(std::process::Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn bridge_and_host_local_in_every_version() {
    for version in versions() {
        Node::run(|node| {
            let list = node.list(&format!(
                r#"{{"cniVersion":"{version}","name":"net","type":"bridge","bridge":"br7","isGateway":true,
                    "ipam":{{"type":"host-local","dataDir":"DATA","ranges":[[{{"subnet":"10.7.0.0/24"}}],[{{"subnet":"fd07::/64"}}]],
                    "routes":[{{"dst":"0.0.0.0/0"}}]}}}}"#
            ));
            cycle(node, &list, |result| {
                assert_eq!(result.ips.len(), 2, "{version}: {result:?}");
                assert_eq!(result.ips[0].address.to_string(), "10.7.0.2/24");
                assert_eq!(result.ips[0].gateway, Some("10.7.0.1".parse().unwrap()));
                assert!(result.routes.iter().any(cni::Route::is_default));
                if version >= Version::V0_3_0 {
                    assert_eq!(result.interfaces.len(), 3);
                    assert_eq!(result.interfaces[2].name, "net1");
                    assert_eq!(result.interfaces[2].sandbox, node.container.path.display().to_string());
                    assert_eq!(result.ips[0].interface, Some(2));
                }
                assert!(node.addresses().contains("10.7.0.2/24"));
            });
        });
    }
}

/// What the reference prints is read and printed again byte for byte, in every version; so is what it prints of a
/// previous result that we print.
#[test]
fn results_are_spelt_as_the_reference_spells_them() {
    let host_local = r#""ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.7.0.0/24"}],
        [{"subnet":"fd07::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"fd08::/64","gw":"fd07::9"}],
        "resolvConf":"DATA.resolv"}"#;
    let fixed = r#""ipam":{"type":"static","addresses":[{"address":"10.7.0.5/24","gateway":"10.7.0.1"}],
        "dns":{"nameservers":["10.7.0.1"],"domain":"local","search":["a.local"],"options":["ndots:2"]}}"#;
    for (plugin, ipam) in [
        (r#""type":"bridge","bridge":"br7","isGateway":true"#, host_local),
        (r#""type":"bridge","bridge":"br7""#, fixed),
        (r#""type":"ptp""#, host_local),
        (r#""type":"macvlan","master":"master0""#, fixed),
        (r#""type":"host-local""#, host_local),
        (r#""type":"static""#, fixed),
        (r#""type":"loopback""#, r#""x":1"#),
    ] {
        // loopback prints the shape of 1.0.0 whatever it is asked for.
        let is_faithful = |version: &Version| *version >= Version::V1_0_0 || !plugin.contains("loopback");
        for version in versions().into_iter().filter(is_faithful) {
            Node::run(|node| {
                ip(None, "link add master0 type veth peer name wire0");
                let data = node.directory.path().join("data").display().to_string();
                std::fs::write(format!("{data}.resolv"), "nameserver 10.7.0.1\nsearch a b\noptions x\n")
                    .unwrap();
                let text = format!(r#"{{"cniVersion":"{version}","name":"net",{plugin},{ipam}}}"#);
                let mut config = Object::parse(text.replace("DATA", &data).as_bytes()).unwrap();
                let kind: String = config.decode("type").unwrap().unwrap();
                let add = |kind: &str, config: &Object| {
                    let environment = Environment {
                        container_id: "c0ffee",
                        netns: Some(&node.container.path),
                        ifname: if kind == "loopback" { "lo" } else { "net1" },
                        args: "",
                        path: &[plugins()],
                    };
                    cni::exec::run(&plugins().join(kind), Add, &environment, &config.to_vec()).unwrap()
                };
                let printed = add(&kind, &config);
                let result = CniResult::parse(&printed, version).unwrap();
                let again = result.to_json(version).unwrap();
                // The reference's library leaves an empty `dns` out since it knows 1.1.0; the plugins may be older.
                let empty = if version >= Version::V1_0_0 { ",\n    \"dns\": {}" } else { "none" };
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().replace(empty, "");
                assert_eq!(text(&again), text(&printed), "{kind} {version}");

                // sbr, tuning and the like pass the previous result on.
                if version >= Version::V0_3_0 && kind == "macvlan" {
                    config.set("type", "tuning").unwrap();
                    config.set("prevResult", &result.to_object(version).unwrap()).unwrap();
                    assert_eq!(text(&add("tuning", &config)), text(&printed), "tuning {version}");
                }
            });
        }
    }
}

#[test]
fn dhcp_with_its_daemon_and_a_server() {
    Node::run(|node| {
        let path = |name: &str| node.directory.path().join(name).display().to_string();
        ip(None, "link add br9 type bridge");
        ip(None, "address add 10.5.0.1/24 dev br9");
        ip(None, "link set br9 up");
        let (conf, leases, socket) = (path("udhcpd.conf"), path("leases"), path("dhcp.sock"));
        std::fs::write(&leases, "").unwrap();
        let text = format!(
            "start 10.5.0.20\nend 10.5.0.20\ninterface br9\nlease_file {leases}\npidfile {}\nopt subnet 255.255.255.0\n\
             opt router 10.5.0.1\nopt lease 600\n",
            path("pid")
        );
        std::fs::write(&conf, text).unwrap();
        let _server = Running::start(Command::new("busybox").args(["udhcpd", "-f", &conf]));
        let _daemon =
            Running::start(Command::new(plugins().join("dhcp")).args(["daemon", "-socketpath", &socket]));
        while !Path::new(&socket).exists() {
            std::thread::yield_now();
        }
        let list = node.list(&format!(
            r#"{{"cniVersion":"1.0.0","name":"net","plugins":[{{"type":"bridge","bridge":"br9",
                "ipam":{{"type":"dhcp","daemonSocketPath":"{socket}"}}}}]}}"#
        ));
        // Its CHECK and second DEL ask the daemon for a lease that is gone.
        let runtime = node.runtime();
        let result = runtime.add(&list, &node.attachment()).unwrap();
        assert_eq!(result.ips[0].address.to_string(), "10.5.0.20/24");
        assert_eq!(result.ips[0].gateway, Some("10.5.0.1".parse().unwrap()));
        assert!(node.addresses().contains("10.5.0.20/24"));
        runtime.del(&list, &node.attachment()).unwrap();
        assert!(!node.addresses().contains("net1"));
    });
}

#[test]
fn portmap_and_firewall_program_the_host() {
    Node::run(|node| {
        let list = node.list(
            r#"{"cniVersion":"1.0.0","name":"net","plugins":[
                {"type":"bridge","bridge":"br8","isGateway":true,
                 "ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.8.0.0/24"}},
                {"type":"portmap","capabilities":{"portMappings":true},"snat":true},
                {"type":"firewall","backend":"iptables"}]}"#,
        );
        let mut attachment = node.attachment();
        attachment.capabilities =
            Object::parse(br#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#)
                .unwrap();
        let rules = || {
            let of = |table: &str| {
                let output = Command::new("iptables-save").args(["-t", table]).output().unwrap();
                String::from_utf8(output.stdout).unwrap()
            };
            of("nat") + &of("filter")
        };
        let runtime = node.runtime();
        runtime.add(&list, &attachment).unwrap();
        let added = rules();
        assert!(added.contains("--to-destination 10.8.0.2:80"), "{added}");
        assert!(added.contains("-s 10.8.0.2/32"), "{added}");
        for _ in 0..2 {
            runtime.del(&list, &attachment).unwrap();
        }
        let left = rules();
        assert!(!left.contains("10.8.0.2"), "{left}");
    });
}

#[test]
fn macvlan_with_capabilities_and_tuning() {
    Node::run(|node| {
        ip(None, "link add master0 type veth peer name wire0");
        ip(None, "link set master0 up");
        let list = node.list(
            r#"{"cniVersion":"0.3.1","name":"mac","plugins":[
                {"type":"macvlan","master":"master0","mode":"bridge","capabilities":{"ips":true},"ipam":{"type":"static"}},
                {"type":"tuning","capabilities":{"mac":true},"mtu":1300}]}"#,
        );
        let mut attachment = node.attachment();
        attachment.capabilities =
            Object::parse(br#"{"ips":["10.1.1.11/24"],"mac":"02:11:22:33:44:55","portMappings":[]}"#)
                .unwrap();
        let result = node.runtime().add(&list, &attachment).unwrap();
        assert_eq!(result.ips[0].address.to_string(), "10.1.1.11/24");
        assert_eq!(result.interfaces[0].mac, "02:11:22:33:44:55");
        let link = ip(Some(&node.container.path), "-o link show net1");
        assert!(link.contains("02:11:22:33:44:55") && link.contains("mtu 1300"), "{link}");
        node.runtime().del(&list, &attachment).unwrap();
        assert!(!node.addresses().contains("net1"));
    });
}

#[test]
fn other_mains_with_static_addresses() {
    for (kind, plugin) in [
        ("ipvlan", r#""type":"ipvlan","master":"master0","mode":"l2""#),
        ("macvlan", r#""type":"macvlan","master":"master0""#),
        ("vlan", r#""type":"vlan","master":"master0","vlanId":100"#),
        ("", r#""type":"ptp""#),
    ] {
        Node::run(|node| {
            if !kind.is_empty() && !kernel_has(kind) {
                return;
            }
            ip(None, "link add master0 type veth peer name wire0");
            ip(None, "link set master0 up");
            let list = node.list(&format!(
                r#"{{"cniVersion":"1.0.0","name":"net","plugins":[{{{plugin},"ipam":{{"type":"static","addresses":[{{"address":"10.9.0.9/24","gateway":"10.9.0.1"}}]}}}}]}}"#
            ));
            cycle(node, &list, |result| {
                assert_eq!(result.ips[0].address.to_string(), "10.9.0.9/24", "{plugin}");
                assert!(node.addresses().contains("10.9.0.9"), "{plugin}");
            });
        });
    }
}

#[test]
fn host_device_moves_and_comes_back() {
    Node::run(|node| {
        ip(None, "link add spare0 type veth peer name wire0");
        let list = node.list(r#"{"cniVersion":"1.0.0","name":"net","type":"host-device","device":"spare0"}"#);
        // Its DEL fails where there is nothing to do, so that it gets but one.
        let runtime = node.runtime();
        runtime.add(&list, &node.attachment()).unwrap();
        assert!(!ip(None, "-o link show").contains("spare0"));
        assert!(ip(Some(&node.container.path), "-o link show").contains("net1"));
        runtime.del(&list, &node.attachment()).unwrap();
        assert!(ip(None, "-o link show").contains("spare0"));
    });
}

#[test]
fn loopback_takes_the_only_name_it_can() {
    Node::run(|node| {
        let list = node.list(r#"{"cniVersion":"1.0.0","name":"lo","plugins":[{"type":"loopback"}]}"#);
        let attachment = Attachment { ifname: "lo".into(), ..node.attachment() };
        let result = node.runtime().add(&list, &attachment).unwrap();
        assert_eq!(result.ips[0].address.to_string(), "127.0.0.1/8");
        node.runtime().del(&list, &attachment).unwrap();
    });
}

#[test]
fn meta_plugins_follow_a_bridge() {
    for plugin in [
        r#""type":"bandwidth","ingressRate":1000000,"ingressBurst":100000,"egressRate":1000000,"egressBurst":100000"#,
        r#""type":"vrf","vrfname":"red""#,
        r#""type":"sbr""#,
        r#""type":"tuning","sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1"}"#,
    ] {
        Node::run(|node| {
            if plugin.contains("vrf") && !kernel_has("vrf") {
                return;
            }
            let list = node.list(&format!(
                r#"{{"cniVersion":"1.0.0","name":"net","plugins":[
                    {{"type":"bridge","bridge":"br8","ipam":{{"type":"host-local","dataDir":"DATA","subnet":"10.8.0.0/24"}}}},{{{plugin}}}]}}"#
            ));
            // Their CHECK is not all sound; what counts here is the chain.
            let runtime = node.runtime();
            let result = runtime.add(&list, &node.attachment()).unwrap();
            assert_eq!(result.ips.len(), 1, "{plugin}");
            runtime.del(&list, &node.attachment()).unwrap();
            assert!(!node.addresses().contains("net1"), "{plugin}");
        });
    }
}

#[test]
fn a_namespace_that_is_gone_does_not_stop_del() {
    Node::run(|node| {
        let list = node.list(
            r#"{"cniVersion":"1.0.0","name":"net","type":"bridge","bridge":"br7","ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.7.0.0/24"}}"#,
        );
        let runtime = node.runtime();
        let mut attachment = node.attachment();
        runtime.add(&list, &attachment).unwrap();
        let lease = node.directory.path().join("data/net/10.7.0.2");
        assert!(lease.exists());
        attachment.netns = None;
        runtime.del(&list, &attachment).unwrap();
        assert!(!lease.exists());
    });
}

#[test]
fn a_plugin_that_is_not_installed_is_named() {
    Node::run(|node| {
        let list = node.list(r#"{"cniVersion":"1.0.0","name":"net","type":"nonesuch"}"#);
        let error = node.runtime().add(&list, &node.attachment()).unwrap_err();
        assert!(error.msg.contains("failed to find plugin \"nonesuch\" in path ["), "{error}");
    });
}
