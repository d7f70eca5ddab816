//! Plugins that are really run: small scripts that behave as plugins of the field do, and worse.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use cni::exec::{self, Environment};
use cni::{Attachment, AttachmentId, Command, Error, NetworkList, Object, Runtime, Version};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A directory of plugins and a cache.
struct Node {
    directory: TempDir,
}

impl Node {
    fn new(plugins: &[(&str, &str)]) -> Self {
        let node = Node { directory: tempfile::tempdir().unwrap() };
        std::fs::create_dir(node.bin()).unwrap();
        for (name, body) in plugins {
            let file = node.bin().join(name);
            std::fs::write(&file, format!("#!/bin/sh\ncd {}\n{body}\n", node.directory.path().display()))
                .unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        node
    }

    fn bin(&self) -> PathBuf {
        self.directory.path().join("bin")
    }

    fn runtime(&self) -> Runtime {
        Runtime {
            path: vec![self.bin()],
            cache_dir: self.directory.path().join("cache"),
            executor: std::sync::Arc::new(cni::exec::Direct),
        }
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(file)).unwrap_or_default()
    }

    fn run(&self, plugin: &str, stdin: &[u8]) -> Result<Vec<u8>, Error> {
        exec::run(&self.bin().join(plugin), Command::Add, &Environment::default(), stdin)
    }
}

fn attachment() -> Attachment {
    Attachment {
        container_id: "c1".into(),
        netns: Some("/run/netns/c1".into()),
        ifname: "eth0".into(),
        args: vec![("K".into(), "v".into())],
        capabilities: Object::parse(br#"{"ips":["10.0.0.9/8"],"mac":"02:00:00:00:00:01","other":1}"#)
            .unwrap(),
    }
}

/// Logs its verb and input, and answers with one address.
const RECORDER: &str = r#"
input=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS" >>log
echo "$input" >>stdin
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"s"}],"ips":[{"address":"10.0.0.2/8","interface":0}]}'
exit 0
"#;

#[test]
fn finding() {
    let node = Node::new(&[("here", "")]);
    std::fs::create_dir(node.bin().join("folder")).unwrap();
    let path = [PathBuf::from("/nowhere"), node.bin()];
    assert_eq!(exec::find("here", &path).unwrap(), node.bin().join("here"));
    for (kind, code, part) in [
        ("gone", Error::PLUGIN_NOT_AVAILABLE, "failed to find plugin \"gone\" in path [/nowhere "),
        ("folder", Error::PLUGIN_NOT_AVAILABLE, "failed to find plugin"),
        ("a/b", Error::INVALID_CONFIG, "invalid plugin name: a/b"),
        ("..", Error::INVALID_CONFIG, "invalid plugin name"),
        ("", Error::INVALID_CONFIG, "no plugin name"),
    ] {
        let error = exec::find(kind, &path).unwrap_err();
        assert_eq!(error.code, code, "{kind}");
        assert!(error.msg.contains(part), "{error}");
    }
}

#[test]
fn failures_are_told_as_well_as_they_can_be() {
    let node = Node::new(&[
        ("spec", r#"echo '{"code":11,"msg":"later","details":"d"}'; exit 1"#),
        ("silent", "exit 3"),
        ("stderr", "echo oops >&2; exit 1"),
        ("text", "echo panic: nil; exit 2"),
        ("empty", "echo '{}'; exit 1"),
        ("killed", "kill -9 $$"),
    ]);
    let table: &[(&str, u32, &str)] = &[
        ("spec", 11, "later; d"),
        ("silent", 999, "netplugin failed with no error message: exit status 3"),
        ("stderr", 999, "netplugin failed: \"oops\": exit status 1"),
        ("text", 999, "netplugin failed but error parsing its diagnostic message \"panic: nil\""),
        ("empty", 0, "netplugin failed with no error message: exit status 1"),
        ("killed", 11, "netplugin failed with no error message: signal: killed"),
        ("absent", 5, "cannot run plugin"),
    ];
    for (plugin, code, part) in table {
        let error = node.run(plugin, b"{}").unwrap_err();
        assert_eq!(error.code, *code, "{plugin}: {error}");
        assert!(error.to_string().contains(part), "{plugin}: {error}");
    }
}

#[test]
fn input_and_output_of_any_size_and_order() {
    let node = Node::new(&[
        ("deaf", "exec 0<&-; echo '{}'"),
        ("loud", "head -c 300000 /dev/zero | tr '\\0' ' '; cat"),
    ]);
    let large = format!("{{\"x\":\"{}\"}}", "y".repeat(300_000));
    assert_eq!(node.run("deaf", large.as_bytes()).unwrap(), b"{}\n");
    assert_eq!(node.run("loud", large.as_bytes()).unwrap().len(), 300_000 + large.len());
}

#[test]
fn a_plugin_being_written_is_waited_for() {
    let node = Node::new(&[("busy", "echo '{}'")]);
    let mut file = std::fs::OpenOptions::new().append(true).open(node.bin().join("busy")).unwrap();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        file.write_all(b"\n").unwrap();
    });
    assert_eq!(node.run("busy", b"{}").unwrap(), b"{}\n");
    writer.join().unwrap();
}

#[test]
fn versions_are_asked_for() {
    let node = Node::new(&[
        ("new", r#"echo '{"cniVersion":"1.2.0","supportedVersions":["0.4.0","1.2.0"]}'"#),
        ("second", r#"echo '{"cniVersion":"0.2.0"}'"#),
        ("first", r#"echo '{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1"#),
        ("odd", "echo '{}'"),
    ]);
    let ask = |name: &str| exec::versions(&node.bin().join(name));
    assert_eq!(ask("new").unwrap(), [Version::V0_4_0]);
    assert_eq!(ask("second").unwrap(), [Version::V0_1_0, Version::V0_2_0]);
    assert_eq!(ask("first").unwrap(), [Version::V0_1_0]);
    assert!(ask("odd").is_err());
}

#[test]
fn a_chain_from_add_to_del() {
    let node = Node::new(&[("one", RECORDER), ("two", RECORDER)]);
    let list = NetworkList::parse(
        br#"{"name":"net","cniVersion":"0.4.0","plugins":[
            {"type":"one","capabilities":{"ips":true,"other":false},"big":123456789012345678901},
            {"type":"two","runtimeConfig":{"stale":1}}]}"#,
    )
    .unwrap();
    let runtime = node.runtime();
    let result = runtime.add(&list, &attachment()).unwrap();
    assert_eq!(result.ips.len(), 1);
    runtime.check(&list, &attachment()).unwrap();
    let cached = runtime.cache().load("net", "c1", "eth0").unwrap();
    assert_eq!((cached.netns.as_str(), cached.args.len()), ("/run/netns/c1", 1));
    assert_eq!(cached.capabilities, attachment().capabilities);
    assert_eq!(cached.config, list.to_vec());
    assert_eq!(runtime.cache().attachments(Some("c1")).unwrap().len(), 1);
    assert_eq!(runtime.cache().attachments(Some("c")).unwrap().len(), 0);
    runtime.del(&list, &attachment()).unwrap();
    assert!(runtime.cache().load("net", "c1", "eth0").is_none());
    runtime.del(&list, &attachment()).unwrap();

    let verbs: Vec<String> = node.read("log").lines().map(str::to_owned).collect();
    assert_eq!(verbs.len(), 8);
    assert!(verbs.iter().all(|v| v.ends_with(" c1 /run/netns/c1 eth0 K=v")), "{verbs:?}");
    let inputs: Vec<Object> =
        node.read("stdin").lines().map(|l| Object::parse(l.as_bytes()).unwrap()).collect();
    let has_result = |o: &Object| o.get("prevResult").is_some();
    // ADD one, ADD two, CHECK one, CHECK two, DEL two, DEL one, DEL two, DEL one.
    assert_eq!(
        inputs.iter().map(|o| o.decode::<String>("type").unwrap().unwrap()).collect::<Vec<_>>(),
        ["one", "two", "one", "two", "two", "one", "two", "one"]
    );
    assert_eq!(
        inputs.iter().map(has_result).collect::<Vec<_>>(),
        [false, true, true, true, true, true, false, false]
    );
    let first = &inputs[0];
    assert_eq!(first.get("big"), Some("123456789012345678901"));
    assert_eq!(first.get("name"), Some("\"net\""));
    assert_eq!(first.get("cniVersion"), Some("\"0.4.0\""));
    assert_eq!(first.get("runtimeConfig"), Some(r#"{"ips":["10.0.0.9/8"]}"#));
    let previous: Object = inputs[1].decode("prevResult").unwrap().unwrap();
    assert_eq!(previous.get("cniVersion"), Some("\"0.4.0\""));
    assert!(previous.get("ips").unwrap().contains("\"version\":\"4\""));
}

#[test]
fn no_previous_result_on_del_below_0_4_0() {
    let node = Node::new(&[("one", RECORDER)]);
    let list = NetworkList::parse(br#"{"name":"net","cniVersion":"0.3.1","type":"one"}"#).unwrap();
    node.runtime().add(&list, &attachment()).unwrap();
    assert_eq!(node.runtime().check(&list, &attachment()).unwrap_err().code, Error::INCOMPATIBLE_VERSION);
    node.runtime().del(&list, &attachment()).unwrap();
    assert!(!node.read("stdin").contains("prevResult"));
}

#[test]
fn a_failing_plugin_is_named_and_keeps_its_code() {
    let node = Node::new(&[("one", RECORDER), ("bad", r#"echo '{"code":7,"msg":"no master"}'; exit 1"#)]);
    let list = NetworkList::parse(
        br#"{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"one"},{"type":"bad"}]}"#,
    )
    .unwrap();
    let error = node.runtime().add(&list, &attachment()).unwrap_err();
    assert_eq!((error.code, error.msg.as_str()), (7, "plugin type=\"bad\" failed (add): no master"));
    assert!(node.runtime().cache().attachments(None).unwrap().is_empty());
    let error = node.runtime().del(&list, &attachment()).unwrap_err();
    assert_eq!(error.msg, "plugin type=\"bad\" failed (delete): no master");
}

#[test]
fn gc_detaches_what_is_not_valid_and_asks_the_plugins() {
    let node = Node::new(&[("one", RECORDER)]);
    let list =
        NetworkList::parse(br#"{"name":"net","cniVersion":"1.1.0","plugins":[{"type":"one"}]}"#).unwrap();
    let other = NetworkList::parse(br#"{"name":"other","cniVersion":"1.1.0","type":"one"}"#).unwrap();
    let runtime = node.runtime();
    for id in ["c1", "c2"] {
        let attachment = Attachment { container_id: id.into(), ..attachment() };
        runtime.add(&list, &attachment).unwrap();
        runtime.add(&other, &attachment).unwrap();
    }
    let valid = [AttachmentId { container_id: "c2".into(), ifname: "eth0".into() }];
    runtime.gc(&list, &valid).unwrap();
    let left: Vec<_> =
        runtime.cache().attachments(None).unwrap().into_iter().map(|a| (a.network, a.container_id)).collect();
    let pair = |n: &str, c: &str| (n.to_owned(), c.to_owned());
    assert_eq!(left, [pair("net", "c2"), pair("other", "c1"), pair("other", "c2")]);
    let log = node.read("log");
    assert!(log.contains("DEL c1 /run/netns/c1 eth0 K=v\nGC    \n"), "{log}");
    let last = node.read("stdin").lines().last().unwrap().to_owned();
    assert!(last.contains(r#""cni.dev/valid-attachments":[{"containerID":"c2","ifname":"eth0"}]"#), "{last}");
    runtime.status(&list).unwrap();
    assert!(node.read("log").ends_with("STATUS    \n"));
    runtime.validate(&list).unwrap_err();
}

#[test]
fn caches_of_others_are_read() {
    let node = Node::new(&[("one", RECORDER)]);
    let list = NetworkList::parse(br#"{"name":"net","cniVersion":"0.4.0","type":"one"}"#).unwrap();
    let results = node.directory.path().join("cache/results");
    std::fs::create_dir_all(&results).unwrap();
    let legacy = r#"{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/8"}]}"#;
    let libcni = r#"{"kind":"cniCacheV1","containerId":"c1","config":"e30=","ifName":"eth0","networkName":"net",
        "cniArgs":[["K8S_POD_NAME","p"],["K","v"]],"capabilityArgs":{"mac":"02:00:00:00:00:01"},
        "result":{"cniVersion":"0.4.0","dns":{},"ips":[{"version":"4","address":"10.0.0.2/8"}]}}"#;
    for text in [legacy, libcni] {
        std::fs::write(results.join("net-c1-eth0"), text).unwrap();
        let result = node.runtime().cache().result(&list, "c1", "eth0").unwrap();
        assert_eq!(result.ips.len(), 1);
    }
    let cached = node.runtime().cache().load("net", "c1", "eth0").unwrap();
    assert_eq!(
        (cached.args.len(), cached.netns.as_str(), cached.config.as_slice()),
        (2, "", b"{}".as_slice())
    );
    for broken in ["", "{", "{\"kind\":\"v2\"}", "null"] {
        std::fs::write(results.join("net-c1-eth0"), broken).unwrap();
        assert!(node.runtime().cache().load("net", "c1", "eth0").is_none(), "{broken}");
        node.runtime().del(&list, &attachment()).unwrap();
    }
}

#[test]
fn cache_files_are_private_and_leave_no_drafts() {
    let node = Node::new(&[("one", RECORDER)]);
    let list = NetworkList::parse(br#"{"name":"net","cniVersion":"0.4.0","type":"one"}"#).unwrap();
    node.runtime().add(&list, &attachment()).unwrap();
    let results = node.directory.path().join("cache/results");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&results), mode(&results.join("net-c1-eth0"))), (0o700, 0o600));
    assert_eq!(std::fs::read_dir(&results).unwrap().count(), 1);
}
