//! Install, restart, uninstall and install again, as processes. Needs root, for a network namespace.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking"
)]

mod node;

use std::path::Path;
use std::process::Command;

use node::Node;
use serde_json::{Value, json};

const PRIMARY: &str =
    r#"{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"main","capabilities":{"ips":true}}]}"#;

fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    files.sort();
    files
}

/// What manifests do: the programs of an image onto the host, then the daemon in auto mode.
struct Host {
    node: Node,
}

impl Host {
    fn new() -> Self {
        let host = Host { node: Node::new("") };
        for directory in ["image", "opt", "net.d"] {
            std::fs::create_dir(host.node.path(directory)).unwrap();
        }
        for name in ["multus-shim", "passthru", "multus"] {
            std::fs::write(host.node.path("image").join(name), name).unwrap();
        }
        std::fs::write(host.node.path("net.d/10-a.conflist"), PRIMARY).unwrap();
        host
    }

    fn conf(&self) -> Value {
        let net_d = self.node.path("net.d");
        json!({"multusConfigFile": "auto", "cniConfigDir": net_d, "multusAutoconfigDir": net_d, "delegates": null})
    }

    fn run(&self, verb: &str, arguments: &[&str]) -> bool {
        let mut command = Command::new(env!("CARGO_BIN_EXE_multus-daemon"));
        command.arg(verb).arg("--source-dir").arg(self.node.path("image")).args(arguments);
        command.status().unwrap().success()
    }

    fn install(&self) {
        let opt = self.node.path("opt");
        assert!(self.run("install", &["--type=thick", "--dest-dir", opt.to_str().unwrap()]));
    }

    fn uninstall(&self) {
        let [config, opt, net_d] =
            ["daemon.json", "opt", "net.d"].map(|name| self.node.path(name).display().to_string());
        assert!(
            self.run("uninstall", &["--config", &config, "--cni-bin-dir", &opt, "--cni-conf-dir", &net_d])
        );
    }

    fn is_configured(&self) -> bool {
        self.node.path("net.d/00-multus.conflist").exists()
    }
}

#[test]
fn uninstalled_with_pods_that_run_and_installed_again() {
    let host = Host::new();
    let node = &host.node;
    host.install();
    let daemon = node.daemon(&host.conf());
    node.until("the runtime's configuration is written", || host.is_configured());
    let gone = node.path("netns/gone");
    std::os::unix::fs::symlink(node.netns(), &gone).unwrap();
    let (status, body) = node.ask("POST", "/cni", &with_primary(node, "c1", &gone)).unwrap();
    assert_eq!(status, 200, "{body}");

    // An upgrade, or a crash: what the runtime reads stays.
    daemon.kill();
    assert!(host.is_configured());

    // The daemon runs while it is uninstalled, and must not write its configuration again.
    let _daemon = node.daemon(&host.conf());
    host.uninstall();
    assert_eq!(files(&node.path("net.d")), ["10-a.conflist"], "the primary alone");
    assert_eq!(files(&node.path("run")), [""; 0]);
    assert_eq!(files(&node.path("opt")), ["multus-shim"]);
    let left = std::fs::read_to_string(node.path("opt/multus-shim")).unwrap();
    assert_eq!(left, "multus", "what is called to take the sandbox down needs no daemon");
    assert_eq!(node.count("DEL c1"), 0, "a pod that runs keeps its networks");

    std::fs::create_dir(node.path("state/followed")).unwrap();
    std::fs::write(node.path("state/followed/uid"), "{}").unwrap();
    std::fs::remove_file(&gone).unwrap();
    host.uninstall();
    assert_eq!(node.count("DEL c1 eth0"), 1);
    assert!(files(&node.path("opt")).is_empty() && !node.path("state").exists());

    host.install();
    assert_eq!(files(&node.path("opt")), ["multus-shim", "passthru"]);
    let _again = node.daemon(&host.conf());
    node.until("the runtime's configuration is written", || host.is_configured());
    let (status, body) = node.ask("POST", "/cni", &with_primary(node, "c2", &node.netns())).unwrap();
    assert_eq!(status, 200, "{body}");
}

/// Some runtimes remember how a sandbox was attached, and call multus-shim for it while multus is being uninstalled.
#[test]
fn pods_that_go_during_the_uninstallation_are_taken_down() {
    let host = Host::new();
    let node = &host.node;
    host.install();
    let _daemon = node.daemon(&host.conf());
    node.until("the runtime's configuration is written", || host.is_configured());
    let (status, body) = node.ask("POST", "/cni", &with_primary(node, "c1", &node.netns())).unwrap();
    assert_eq!(status, 200, "{body}");
    let [config, opt, net_d] = ["daemon.json", "opt", "net.d"].map(|name| node.path(name));
    let child = Command::new(env!("CARGO_BIN_EXE_multus-daemon"))
        .args(["uninstall", "--wait=600", "--config"])
        .arg(config)
        .arg("--cni-bin-dir")
        .arg(opt)
        .arg("--cni-conf-dir")
        .arg(net_d)
        .spawn()
        .unwrap();
    let mut uninstall = node::Daemon { child };
    node.until("the primary's configuration is in force", || !host.is_configured());
    node.until("nobody is asked any more", || node.cni("DEL", "c1").is_none());
    std::fs::create_dir_all(node.path("state/pending")).unwrap();
    std::fs::write(node.path("state/pending/.draft"), node.call("DEL", "c1").to_string()).unwrap();
    std::fs::rename(node.path("state/pending/.draft"), node.path("state/pending/c1-eth0")).unwrap();
    assert!(uninstall.wait());
    assert_eq!(node.count("DEL c1 eth0"), 1);
    assert!(files(&node.path("opt")).is_empty() && files(&node.path("run")).is_empty());
}

/// An ADD with what the runtime has read.
fn with_primary(node: &Node, container: &str, netns: &Path) -> Value {
    use base64::Engine;
    let file: Value =
        serde_json::from_slice(&std::fs::read(node.path("net.d/00-multus.conflist")).unwrap()).unwrap();
    let mut plugin = file["plugins"][0].clone();
    for key in ["name", "cniVersion"] {
        plugin[key] = file[key].clone();
    }
    assert_eq!(plugin["capabilities"], json!({"ips": true}));
    let mut call = node.call_in("ADD", container, netns);
    call["config"] = json!(base64::engine::general_purpose::STANDARD.encode(plugin.to_string()));
    call
}

#[test]
fn a_daemon_that_is_to_clean_up_does() {
    let host = Host::new();
    let conf = host.conf();
    let mut conf = conf.as_object().unwrap().clone();
    conf.insert("cleanupConfigOnExit".into(), json!(true));
    let mut daemon = host.node.daemon(&Value::Object(conf));
    host.node.until("the runtime's configuration is written", || host.is_configured());
    daemon.terminate();
    assert!(daemon.wait());
    assert!(!host.is_configured());
}

#[test]
fn thin_multus_is_installed_kept_and_removed() {
    let host = Host::new();
    let node = &host.node;
    let flag = |name: &str, path: &str| format!("--{name}={}", node.path(path).display());
    let child = Command::new(env!("CARGO_BIN_EXE_multus-daemon"))
        .arg("thin-entrypoint")
        .args([
            flag("cni-bin-dir", "opt"),
            flag("cni-conf-dir", "net.d"),
            flag("multus-autoconfig-dir", "net.d"),
        ])
        .args([flag("multus-bin-file", "image/multus"), flag("multus-cni-conf-dir", "nads")])
        .args(["--cleanup-config-on-exit", "--namespace-isolation=true", "--cni-version", "0.3.1"])
        .env_remove("KUBERNETES_SERVICE_HOST")
        .spawn()
        .unwrap();
    let mut entrypoint = node::Daemon { child };
    let path = node.path("net.d/00-multus.conf");
    node.until("the configuration is written", || path.exists());
    assert_eq!(files(&node.path("opt")), ["multus"]);
    let conf: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((&conf["type"], &conf["namespaceIsolation"]), (&json!("multus"), &json!(true)));
    assert_eq!(conf["delegates"], json!([serde_json::from_str::<Value>(PRIMARY).unwrap()]));
    std::fs::remove_file(&path).unwrap();
    node.until("it is written again", || path.exists());
    entrypoint.terminate();
    assert!(entrypoint.wait());
    assert_eq!(files(&node.path("net.d")), ["10-a.conflist"]);
    assert!(!host.run("thin-entrypoint", &[]), "it has no such flag");
}

#[test]
fn the_probe_tells_who_is_ready() {
    let host = Host::new();
    let probe = |path: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_multus-daemon"));
        command.args(["probe", "--path", path, "--socket-dir"]).arg(host.node.path("run"));
        command.status().unwrap().success()
    };
    assert!(!probe("/readyz"));
    let _daemon = host.node.daemon(&host.conf());
    assert!(probe("/readyz") && probe("/healthz") && !probe("/nothing"));
}
