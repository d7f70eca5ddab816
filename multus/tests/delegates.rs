//! The multus binary without Kubernetes: networks from its own configuration, with the reference plugins, on real
//! interfaces. Needs root and the reference plugins.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

mod node;

use std::time::{Duration, Instant};

use node::{Node, ip};
use serde_json::json;

const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"main","type":"bridge","bridge":"br7","isGateway":true,
    "ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.7.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}"#;

const SECOND: &str = r#"{"cniVersion":"0.3.1","name":"second","plugins":[{"type":"bridge","bridge":"br8",
    "ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.8.0.0/24"}},{"type":"tuning","mtu":1300}]}"#;

fn delegates(list: &[&str]) -> String {
    format!(r#""delegates":[{}]"#, list.join(","))
}

#[test]
fn all_networks_and_nothing_afterwards() {
    Node::run(|node| {
        let conf = node.conf(&delegates(&[BRIDGE, SECOND]));
        let result = node.add(&conf);
        assert_eq!(result["cniVersion"], "1.1.0");
        assert_eq!(result["ips"][0]["address"], "10.7.0.2/24");
        assert_eq!(result["interfaces"][2]["name"], "eth0");
        let links = node.links();
        assert!(
            links.contains("10.7.0.2/24") && links.contains("net1") && links.contains("10.8.0.2/24"),
            "{links}"
        );
        assert_eq!(node.files("state"), ["c0ffee", "main-c0ffee-eth0", "second-c0ffee-net1"]);
        let check = node.call("CHECK", &conf);
        assert!(check.ok, "{}", check.stdout);
        node.del(&conf);
        node.assert_clean();
        node.del(&conf);
    });
}

#[test]
fn check_notices_what_is_missing() {
    Node::run(|node| {
        let conf = node.conf(&delegates(&[BRIDGE]));
        assert_eq!(node.call("CHECK", &conf).error().0, 3);
        node.add(&conf);
        ip(Some(&node.container), "link del eth0");
        let (_, message) = node.call("CHECK", &conf).error();
        assert!(message.contains("error checking container in network \"main\""), "{message}");
        node.del(&conf);
    });
}

#[test]
fn a_failing_network_takes_the_others_with_it() {
    Node::run(|node| {
        let broken = r#"{"cniVersion":"1.0.0","name":"broken","type":"macvlan","master":"nonesuch"}"#;
        let conf = node.conf(&delegates(&[BRIDGE, SECOND, broken]));
        let (_, message) = node.call("ADD", &conf).error();
        assert!(message.contains("error adding container to network \"broken\""), "{message}");
        assert!(message.starts_with("[//:broken]: ") && message.contains("type=\"macvlan\""), "{message}");
        node.assert_clean();
        node.del(&conf);
    });
}

#[test]
fn a_delegates_error_code_survives() {
    Node::run(|node| {
        node.script(
            "busy",
            r#"[ $CNI_COMMAND = ADD ] && { echo '{"code":11,"msg":"later"}'; exit 1; }; exit 0"#,
        );
        let conf = node.conf(&delegates(&[r#"{"cniVersion":"1.0.0","name":"busy","type":"busy"}"#]));
        let (code, message) = node.call("ADD", &conf).error();
        assert_eq!(code, 11, "{message}");
    });
}

#[test]
fn a_plugin_that_is_not_installed_stops_all_before_anything_happens() {
    Node::run(|node| {
        let missing =
            r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"tuning"},{"type":"nonesuch"}]}"#;
        node.script("witness", "touch called; exit 1");
        let witness = r#"{"cniVersion":"1.0.0","name":"w","type":"witness"}"#;
        let conf = node.conf(&delegates(&[witness, missing]));
        let (_, message) = node.call("ADD", &conf).error();
        assert!(message.contains("network x: failed to find plugin \"nonesuch\" in path ["), "{message}");
        assert!(!node.path("called").exists());
        node.assert_clean();
        node.del(&conf);
    });
}

#[test]
fn an_interface_that_is_there_is_told_before_anything_happens() {
    Node::run(|node| {
        ip(Some(&node.container), "link add net1 type veth peer name other");
        let conf = node.conf(&delegates(&[BRIDGE, SECOND]));
        let (_, message) = node.call("ADD", &conf).error();
        assert!(message.contains("interface name net1 already exists"), "{message}");
        assert_eq!(node.files("data"), [""; 0]);
    });
}

#[test]
fn a_namespace_that_is_not_there_is_named() {
    Node::run(|node| {
        let conf = node.conf(&delegates(&[BRIDGE]));
        let gone = node.path("no-such-netns");
        let (code, message) = node.call_for("ADD", "c1", &gone, &conf).error();
        assert_eq!(code, 8);
        assert!(
            message
                .contains("cannot set \"main\" interface name to \"eth0\": validateIfName: no net namespace")
                && message.contains("no-such-netns"),
            "{message}"
        );
        assert!(node.call_for("DEL", "c1", &gone, &conf).ok);
    });
}

#[test]
fn an_add_repeated_without_del_works() {
    Node::run(|node| {
        let conf = node.conf(&delegates(&[BRIDGE, SECOND]));
        node.add(&conf);
        let again = node.add(&conf);
        assert_eq!(again["ips"][0]["address"], "10.7.0.3/24");
        assert_eq!(node.files("data").len(), 2);
        node.del(&conf);
        node.assert_clean();
    });
}

#[test]
fn a_killed_add_is_cleaned_up_by_del_and_by_add() {
    for verb in ["DEL", "ADD"] {
        Node::run(|node| {
            // The second network hangs in ADD until multus is gone.
            node.script("slow", r#"[ $CNI_COMMAND = ADD ] && [ ! -e fast ] && { touch reached; exec sleep 600; }; echo '{"cniVersion":"1.0.0"}'"#);
            let slow = r#"{"cniVersion":"1.0.0","name":"slow","type":"slow"}"#;
            let conf = node.conf(&delegates(&[BRIDGE, slow]));
            let mut multus = node.start("ADD", &conf);
            let deadline = Instant::now() + Duration::from_secs(20);
            while !node.path("reached").exists() {
                assert!(Instant::now() < deadline, "the second network was never reached");
                std::thread::sleep(Duration::from_millis(10));
            }
            multus.kill().unwrap();
            multus.wait().unwrap();
            assert_eq!(node.files("data"), ["10.7.0.2"]);
            std::fs::write(node.path("fast"), "").unwrap();
            if verb == "ADD" {
                assert_eq!(node.add(&conf)["ips"][0]["address"], "10.7.0.3/24");
            }
            node.del(&conf);
            node.assert_clean();
        });
    }
}

#[test]
fn what_was_never_attached_keeps_no_sandbox_alive() {
    Node::run(|node| {
        // The reference plugin's DEL fails where its ADD never got anywhere.
        let device = r#"{"cniVersion":"1.0.0","name":"hd","type":"host-device","device":"nonesuch"}"#;
        let conf = node.conf(&delegates(&[BRIDGE, device]));
        let (_, message) = node.call("ADD", &conf).error();
        assert!(message.contains("network \"hd\"") && !message.contains("undoing"), "{message}");
        node.assert_clean();
        node.del(&conf);
    });
}

const STICKY: &str = r#"{"cniVersion":"1.0.0","name":"sticky","type":"sticky"}"#;

/// A plugin whose DEL fails until there is a file `loose`.
fn install_sticky(node: &Node) {
    node.script(
        "sticky",
        r#"echo $CNI_COMMAND >>calls
        [ $CNI_COMMAND = DEL ] && [ ! -e loose ] && { echo '{"code":11,"msg":"stuck"}'; exit 1; }
        echo '{"cniVersion":"1.0.0","interfaces":[{"name":"net1","sandbox":"s"}]}'"#,
    );
}

#[test]
fn del_is_told_to_forget_what_it_could_not_release() {
    Node::run(|node| {
        install_sticky(node);
        let conf =
            node.conf(&format!("\"retryDeleteOnError\":false,{}", delegates(&[BRIDGE, STICKY, SECOND])));
        node.add(&conf);
        let (code, message) = node.call("DEL", &conf).error();
        assert!(code == 11 && message.contains("stuck"), "{message}");
        node.assert_clean();
        node.del(&conf);
        assert_eq!(std::fs::read_to_string(node.path("calls")).unwrap(), "ADD\nDEL\n");
    });
}

#[test]
fn del_keeps_on_record_what_it_could_not_release() {
    Node::run(|node| {
        install_sticky(node);
        let conf = node.conf(&delegates(&[BRIDGE, STICKY, SECOND]));
        node.add(&conf);
        let (code, message) = node.call("DEL", &conf).error();
        assert_eq!(code, 11);
        assert!(message.contains("error deleting container from network \"sticky\""), "{message}");
        // The others are gone all the same.
        assert_eq!(node.files("data"), [""; 0]);
        assert_eq!(node.files("state"), ["c0ffee", "sticky-c0ffee-net1"]);
        std::fs::write(node.path("loose"), "").unwrap();
        node.del(&conf);
        node.assert_clean();
        assert_eq!(std::fs::read_to_string(node.path("calls")).unwrap(), "ADD\nDEL\nDEL\n");
    });
}

#[test]
fn del_without_namespace_without_record_and_with_half_a_record() {
    for damage in ["none", "missing", "cut", "empty"] {
        Node::run(|node| {
            let conf = node.conf(&delegates(&[BRIDGE, SECOND]));
            node.add(&conf);
            let record = node.path("state/c0ffee");
            let bytes = std::fs::read(&record).unwrap();
            match damage {
                "missing" => std::fs::remove_file(&record).unwrap(),
                "cut" => std::fs::write(&record, &bytes[..bytes.len() / 2]).unwrap(),
                "empty" => std::fs::write(&record, "").unwrap(),
                _ => {}
            }
            let outcome = node.call_for("DEL", "c0ffee", std::path::Path::new(""), &conf);
            assert!(outcome.ok, "{damage}: {}", outcome.stdout);
            assert_eq!(node.files("data"), [""; 0], "{damage}");
            assert_eq!(node.files("state"), [""; 0], "{damage}");
        });
    }
}

#[test]
fn the_next_del_needs_nothing_of_the_configuration_but_the_state_directory() {
    Node::run(|node| {
        node.add(&node.conf(&delegates(&[BRIDGE])));
        node.del(&node.conf(r#""clusterNetwork":"gone","kubeconfig":"/no/such/kubeconfig""#));
        node.assert_clean();
    });
}

#[test]
fn upstreams_records_are_deleted() {
    Node::run(|node| {
        let conf = node.conf(&delegates(&[BRIDGE, SECOND]));
        node.add(&conf);
        // What upstream would have written: no member of ours.
        let record = node.path("state/c0ffee");
        let mut elements: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
        for element in elements.as_array_mut().unwrap() {
            element.as_object_mut().unwrap().remove("podrail").unwrap();
            element["ifnameRequest"] = json!("");
        }
        std::fs::write(&record, elements.to_string()).unwrap();
        node.del(&conf);
        node.assert_clean();
    });
}

#[test]
fn status_and_gc() {
    Node::run(|node| {
        node.script("ready", r#"[ $CNI_COMMAND = STATUS ] && [ ! -e up ] && { echo '{"code":51,"msg":"half"}'; exit 1; }; exit 0"#);
        let ready = r#"{"cniVersion":"1.1.0","name":"r","type":"ready"}"#;
        let conf = node.conf(&delegates(&[ready]));
        assert_eq!(node.call("STATUS", &conf).error().0, 51);
        std::fs::write(node.path("up"), "").unwrap();
        assert!(node.call("STATUS", &conf).ok);
        let waiting =
            node.conf(&format!(r#"{},"readinessindicatorfile":"/no/such/file""#, delegates(&[ready])));
        let (code, message) = node.call("STATUS", &waiting).error();
        assert_eq!(code, 50);
        assert!(message.contains("still waiting for readinessindicatorfile @ /no/such/file"), "{message}");

        let conf = node.conf(&delegates(&[BRIDGE, SECOND]));
        node.add(&conf);
        let other = node::new_netns();
        assert!(node.call_for("ADD", "other", &node::path_of(&other), &conf).ok);
        assert_eq!(node.files("data").len(), 4);
        let valid = |containers: &[&str]| {
            let list: Vec<_> =
                containers.iter().map(|c| json!({"containerID": c, "ifname": "eth0"})).collect();
            node.conf(&format!(
                r#"{},"cni.dev/valid-attachments":{}"#,
                delegates(&[BRIDGE, SECOND]),
                json!(list)
            ))
        };
        for (conf, left) in
            [(conf.clone(), 4), (valid(&["c0ffee", "other"]), 4), (valid(&["other"]), 2), (valid(&[]), 0)]
        {
            let outcome = node.call("GC", &conf);
            assert!(outcome.ok, "{}", outcome.stdout);
            assert_eq!(node.files("data").len(), left);
        }
        assert_eq!(node.files("state"), [""; 0]);
    });
}

#[test]
fn status_is_that_of_every_network_of_the_node() {
    Node::run(|node| {
        node.script("ready", "exit 0");
        node.script(
            "late",
            r#"[ $CNI_COMMAND = STATUS ] && [ ! -e up ] && { echo '{"code":50,"msg":"not yet"}'; exit 1; }; exit 0"#,
        );
        let plugin = |kind: &str| format!(r#"{{"cniVersion":"1.1.0","name":"{kind}","type":"{kind}"}}"#);
        let conf = node.conf(&delegates(&[&plugin("ready"), &plugin("late")]));
        let (code, message) = node.call("STATUS", &conf).error();
        assert!(code == 50 && message.contains("network \"late\": not yet"), "{message}");
        std::fs::write(node.path("up"), "").unwrap();
        assert!(node.call("STATUS", &conf).ok);
    });
}

fn with_valid(members: &str, containers: &[&str]) -> String {
    let list: Vec<_> = containers.iter().map(|c| json!({"containerID": c, "ifname": "eth0"})).collect();
    format!(r#"{members},"cni.dev/valid-attachments":{}"#, json!(list))
}

#[test]
fn gc_takes_down_what_only_results_tell_of() {
    Node::run(|node| {
        let members = delegates(&[BRIDGE, SECOND]);
        node.add(&node.conf(&members));
        std::fs::remove_file(node.path("state/c0ffee")).unwrap();
        // The second network is not the node's any more.
        let outcome = node.call("GC", &node.conf(&with_valid(&delegates(&[BRIDGE]), &[])));
        assert!(outcome.ok, "{}", outcome.stdout);
        // The interfaces go with the namespace, whose path is not trusted here.
        assert_eq!((node.files("data"), node.files("state")), (Vec::new(), Vec::new()));
    });
}

#[test]
fn gc_keeps_what_is_valid_though_its_record_is_broken() {
    Node::run(|node| {
        let members = delegates(&[BRIDGE, SECOND]);
        node.add(&node.conf(&members));
        std::fs::write(node.path("state/c0ffee"), "[").unwrap();
        let outcome = node.call("GC", &node.conf(&with_valid(&members, &["c0ffee"])));
        assert!(outcome.ok, "{}", outcome.stdout);
        assert_eq!(node.files("data").len(), 2);
        assert!(node.links().contains("net1"));
        node.del(&node.conf(&members));
        node.assert_clean();
    });
}

#[test]
fn gc_leaves_a_sandbox_alone_that_is_just_being_made() {
    Node::run(|node| {
        node.script(
            "slow",
            r#"[ $CNI_COMMAND = ADD ] && { touch reached; while [ ! -e go ]; do sleep 0.05; done; }; echo '{"cniVersion":"1.0.0"}'"#,
        );
        let members = delegates(&[BRIDGE, r#"{"cniVersion":"1.0.0","name":"slow","type":"slow"}"#]);
        let adding = node.start("ADD", &node.conf(&members));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !node.path("reached").exists() {
            assert!(Instant::now() < deadline, "the second network was never reached");
            std::thread::sleep(Duration::from_millis(10));
        }
        let outcome = node.call("GC", &node.conf(&with_valid(&members, &[])));
        assert!(outcome.ok, "{}", outcome.stdout);
        assert_eq!(node.files("data"), ["10.7.0.2"]);
        std::fs::write(node.path("go"), "").unwrap();
        assert!(adding.wait_with_output().unwrap().status.success());
        node.del(&node.conf(&members));
        node.assert_clean();
    });
}

/// The networks are collected one after the other, which may take long.
#[test]
fn gc_leaves_alone_what_was_attached_since_it_began() {
    Node::run(|node| {
        let log = r#"echo "$CNI_COMMAND $CNI_CONTAINERID" >>calls; cat >"input-$CNI_COMMAND""#;
        let wait = "[ $CNI_COMMAND = GC ] && { touch reached; while [ ! -e go ]; do sleep 0.05; done; }";
        let answer = r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.1.0"}'; exit 0"#;
        node.script("slow", &format!("{wait}\n{answer}"));
        node.script("quick", &format!("{log}\n{answer}"));
        let plugin =
            |name: &str, kind: &str| format!(r#"{{"cniVersion":"1.1.0","name":"{name}","type":"{kind}"}}"#);
        let members = delegates(&[&plugin("1", "slow"), &plugin("2", "quick")]);
        let collecting = node.start("GC", &node.conf(&with_valid(&members, &[])));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !node.path("reached").exists() {
            assert!(Instant::now() < deadline, "the first network was never reached");
            std::thread::sleep(Duration::from_millis(10));
        }
        node.add(&node.conf(&members));
        std::fs::write(node.path("go"), "").unwrap();
        assert!(collecting.wait_with_output().unwrap().status.success());
        assert_eq!(node.files("state"), ["1-c0ffee-eth0", "2-c0ffee-net1", "c0ffee"]);
        assert_eq!(std::fs::read_to_string(node.path("calls")).unwrap(), "ADD c0ffee\nGC \n");
        let told: serde_json::Value =
            serde_json::from_slice(&std::fs::read(node.path("input-GC")).unwrap()).unwrap();
        let valid = json!([{"containerID": "c0ffee", "ifname": "net1"}]);
        assert_eq!(told["cni.dev/valid-attachments"], valid, "nor does the plugin free its addresses");
    });
}

/// The runtime made its list before it asked.
#[test]
fn gc_leaves_alone_what_is_younger_than_the_call() {
    Node::run(|node| {
        let members = delegates(&[BRIDGE]);
        node.add(&node.conf(&members));
        let record = std::fs::File::options().write(true).open(node.path("state/c0ffee")).unwrap();
        let written = record.metadata().unwrap().modified().unwrap();
        for (when, left) in [(written + Duration::from_secs(600), 1), (written, 0)] {
            record.set_modified(when).unwrap();
            let outcome = node.call("GC", &node.conf(&with_valid(&members, &[])));
            assert!(outcome.ok, "{}", outcome.stdout);
            assert_eq!(node.files("data").len(), left);
        }
    });
}

#[test]
fn what_is_to_be_tried_again_stays_on_record_though_its_add_failed() {
    Node::run(|node| {
        node.script(
            "leasing",
            r#"[ $CNI_COMMAND = ADD ] && { echo '{"code":999,"msg":"half"}'; exit 1; }
            [ ! -e loose ] && { echo '{"code":11,"msg":"the store is away"}'; exit 1; }; exit 0"#,
        );
        let conf =
            node.conf(&delegates(&[BRIDGE, r#"{"cniVersion":"1.0.0","name":"leasing","type":"leasing"}"#]));
        let (_, message) = node.call("ADD", &conf).error();
        assert!(message.contains("half") && message.contains("the store is away"), "{message}");
        assert_eq!(node.files("state"), ["c0ffee"]);
        let (code, message) = node.call("DEL", &conf).error();
        assert!(code == 11 && message.contains("the store is away"), "{message}");
        std::fs::write(node.path("loose"), "").unwrap();
        node.del(&conf);
        node.assert_clean();
    });
}

#[test]
fn results_of_early_upstream_count_as_attached() {
    Node::run(|node| {
        install_sticky(node);
        let conf = node.conf(&delegates(&[STICKY]));
        node.add(&conf);
        // Those held nothing but the result.
        let result = node.path("state/results/sticky-c0ffee-eth0");
        std::fs::write(&result, r#"{"cniVersion":"0.4.0","interfaces":[{"name":"eth0"}]}"#).unwrap();
        assert_eq!(node.call("DEL", &conf).error().0, 11);
        std::fs::write(node.path("loose"), "").unwrap();
        node.del(&conf);
        node.assert_clean();
    });
}

#[test]
fn runtime_capabilities_reach_the_primary_only() {
    Node::run(|node| {
        let recorder = r#"cat >>seen-$CNI_IFNAME; echo '{"cniVersion":"1.0.0"}'"#;
        node.script("recorder", recorder);
        let plugin = |name: &str| {
            format!(
                r#"{{"cniVersion":"1.0.0","name":"{name}","type":"recorder","capabilities":{{"portMappings":true,"dns":true}}}}"#
            )
        };
        let conf = node.conf(&format!(
            r#"{},"runtimeConfig":{{"portMappings":[{{"hostPort":8080}}],"dns":{{"servers":["10.0.0.1"]}},"other":1}}"#,
            delegates(&[&plugin("a"), &plugin("b")])
        ));
        node.add(&conf);
        let seen = |ifname: &str| std::fs::read_to_string(node.path(&format!("seen-{ifname}"))).unwrap();
        assert!(seen("eth0").contains(
            r#""runtimeConfig":{"portMappings":[{"hostPort":8080}],"dns":{"servers":["10.0.0.1"]}}"#
        ));
        assert!(!seen("net1").contains("runtimeConfig"));
        node.del(&conf);
    });
}

#[test]
fn bad_configurations_are_one_clear_error() {
    Node::run(|node| {
        let conf = |members: &str| node.conf(members);
        let table = [
            ("{".to_owned(), 6, "stdin"),
            (r#"{"cniVersion":"1.0.0"}"#.to_owned(), 7, "name"),
            (conf(r#""x":1"#), 7, "at least one delegate/clusterNetwork must be specified"),
            (conf(r#""delegates":[]"#), 7, "at least one delegate"),
            (conf(r#""delegates":[null]"#), 6, "delegates"),
            (conf(r#""delegates":[{}]"#), 7, "'type'"),
            (conf(r#""delegates":[{"plugins":[]}]"#), 7, "no plugins"),
            (conf(r#""delegates":[{"type":"bridge"}]"#), 7, "network name"),
            (conf(r#""delegates":[{"name":"n","type":"../bridge"}]"#), 7, "invalid plugin name"),
            (conf(r#""clusterNetwork":"none""#), 7, "failed to get clusterNetwork none"),
            (
                conf(r#""kubeconfig":"/no/such/file","delegates":[{"name":"n","type":"bridge"}]"#),
                7,
                "kubeconfig /no/such/file",
            ),
        ];
        for (conf, code, part) in table {
            let (got, message) = node.call("ADD", &conf).error();
            assert!(got == code && message.contains(part), "{conf}: {got}: {message}");
            node.assert_clean();
        }
    });
}

#[test]
fn the_log_goes_where_it_is_told() {
    Node::run(|node| {
        let log = node.path("multus.log");
        let conf = node.conf(&format!(
            r#"{},"logFile":"{}","logLevel":"verbose","logToStderr":false"#,
            delegates(&[BRIDGE]),
            log.display()
        ));
        node.add(&conf);
        node.del(&conf);
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(
            text.contains("[verbose] main: added eth0") && text.contains("[verbose] main: deleted eth0"),
            "{text}"
        );
        let quiet = node.start("ADD", &node.conf(r#""delegates":[{"name":"n","type":"none"}]"#));
        let output = quiet.wait_with_output().unwrap();
        assert!(
            String::from_utf8_lossy(&output.stderr)
                .contains("[error] ADD: Multus: network n: failed to find plugin")
        );
    });
}
