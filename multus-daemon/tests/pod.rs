//! The manifests of thick mode as pods: their image, mounts and commands, below root directories of the test's own, as
//! kubelet and a container runtime set them up. Needs root, for mounts.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use host::Netns;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

const REPO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Nothing here takes that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The primary network's plugin: notes who called it, and whether the namespace is where it was told.
const PLUGIN: &str = r#"#!/bin/sh
cat >/dev/null
[ -e "$CNI_NETNS" ] && seen=seen || seen=
echo "$CNI_COMMAND $CNI_CONTAINERID $seen" >>/calls
[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"/n"}]}'
exit 0
"#;

/// What the peer's manifest of thick mode (v4.3) mounts, and how it starts its programs.
fn peers_manifest() -> Vec<Value> {
    let volumes = [
        ("cni", "/etc/cni/net.d", "/host/etc/cni/net.d"),
        ("cnibin", "/opt/cni/bin", "/opt/cni/bin"),
        ("host-run", "/run", "/host/run"),
        ("host-var-lib-cni-multus", "/var/lib/cni/multus", "/var/lib/cni/multus"),
        ("host-var-lib-kubelet", "/var/lib/kubelet", "/var/lib/kubelet"),
        ("host-run-k8s-cni-cncf-io", "/run/k8s.cni.cncf.io", "/run/k8s.cni.cncf.io"),
        ("host-run-netns", "/run/netns/", "/run/netns"),
        ("hostroot", "/", "/hostroot"),
        ("multus-conf-dir", "/etc/cni/multus/net.d", "/etc/cni/multus/net.d"),
    ];
    let mut mounts: Vec<Value> =
        volumes.iter().map(|(name, _, path)| json!({"name": name, "mountPath": path})).collect();
    mounts.push(json!({"name": "multus-daemon-config", "mountPath": "/etc/cni/net.d/multus.d"}));
    let mut sources: Vec<Value> =
        volumes.iter().map(|(name, path, _)| json!({"name": name, "hostPath": {"path": path}})).collect();
    sources.push(json!({"name": "multus-daemon-config", "configMap": {"name": "multus-daemon-config"}}));
    let install = ["/usr/src/multus-cni/bin/install_multus", "-d", "/host/opt/cni/bin", "-t", "thick"];
    let spec = json!({
        "initContainers": [{
            "name": "install-multus-binary", "command": install,
            "volumeMounts": [{"name": "cnibin", "mountPath": "/host/opt/cni/bin"}],
        }],
        "containers": [{
            "name": "kube-multus", "command": ["/usr/src/multus-cni/bin/multus-daemon"],
            "env": [{"name": "MULTUS_NODE_NAME"}], "volumeMounts": mounts,
        }],
        "volumes": sources,
    });
    let conf = json!({
        "chrootDir": "/hostroot", "cniVersion": "0.3.1", "logLevel": "verbose", "logToStderr": true,
        "cniConfigDir": "/host/etc/cni/net.d", "multusAutoconfigDir": "/host/etc/cni/net.d",
        "multusConfigFile": "auto", "socketDir": "/host/run/multus/",
    });
    vec![
        json!({"kind": "ConfigMap", "data": {"daemon-config.json": conf.to_string()}}),
        json!({"kind": "DaemonSet", "spec": {"template": {"spec": spec}}}),
    ]
}

fn manifest(file: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&fs::read_to_string(Path::new(REPO).join("deploy").join(file)).unwrap())
        .unwrap()
}

/// A machine: the root directory of its host, and that of the image.
struct Machine {
    folder: tempfile::TempDir,
    /// Namespaces of sandboxes.
    namespaces: Vec<Netns>,
}

/// A container that runs.
struct Container(Child);

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = umount2(&self.host(""), MntFlags::MNT_DETACH);
        let _ = umount2(&self.image("lib"), MntFlags::MNT_DETACH);
        let _ = umount2(&self.image("lib64"), MntFlags::MNT_DETACH);
    }
}

impl Machine {
    fn host(&self, path: &str) -> PathBuf {
        self.folder.path().join("host").join(path)
    }

    fn image(&self, path: &str) -> PathBuf {
        self.folder.path().join("image").join(path)
    }

    /// Runs `test` on a machine whose mounts are its own.
    fn run(test: impl FnOnce(&mut Machine) + Send) {
        std::thread::scope(|scope| {
            let alone = || {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                let none: Option<&str> = None;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                let mut machine = Machine { folder: tempfile::tempdir().unwrap(), namespaces: Vec::new() };
                machine.make_host();
                machine.make_image();
                test(&mut machine);
            };
            scope.spawn(alone).join().unwrap();
        });
    }

    fn make_host(&self) {
        for directory in [
            "usr",
            "proc",
            "dev",
            "tmp",
            "run/netns",
            "run/k8s.cni.cncf.io",
            "var/lib/cni/multus",
            "var/lib/kubelet",
        ] {
            fs::create_dir_all(self.host(directory)).unwrap();
        }
        for directory in ["etc/cni/net.d", "etc/cni/multus/net.d", "opt/cni/bin"] {
            fs::create_dir_all(self.host(directory)).unwrap();
        }
        // What is mounted on the host appears in its containers.
        bind(&self.host(""), &self.host(""), MsFlags::empty());
        let none: Option<&str> = None;
        mount(none, &self.host(""), none, MsFlags::MS_SHARED, none).unwrap();
        for (link, target) in
            [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("var/run", "/run")]
        {
            symlink(target, self.host(link)).unwrap();
        }
        for directory in ["usr", "proc", "dev"] {
            bind(&Path::new("/").join(directory), &self.host(directory), MsFlags::MS_REC);
        }
        fs::write(self.host("opt/cni/bin/main"), PLUGIN).unwrap();
        fs::set_permissions(self.host("opt/cni/bin/main"), fs::Permissions::from_mode(0o755)).unwrap();
        let primary = r#"{"cniVersion":"0.4.0","name":"cbr0","plugins":[{"type":"main"}]}"#;
        fs::write(self.host("etc/cni/net.d/10-main.conflist"), primary).unwrap();
    }

    /// What deploy/multus.Containerfile makes of the programs that were built beside the daemon.
    fn make_image(&self) {
        let built = Path::new(env!("CARGO_BIN_EXE_multus-daemon")).parent().unwrap();
        let recipe = fs::read_to_string(Path::new(REPO).join("deploy/multus.Containerfile")).unwrap();
        let recipe = recipe.split("\nFROM ").nth(1).unwrap();
        for line in recipe.lines() {
            if let Some(directory) = line.strip_prefix("WORKDIR /") {
                fs::create_dir_all(self.image(directory)).unwrap();
            }
            let Some(copy) = line.strip_prefix("COPY ") else { continue };
            let mut words: Vec<&str> = copy.split(' ').collect();
            let target = self.image(words.pop().unwrap().trim_start_matches('/'));
            for source in words {
                let source = match source.strip_prefix("target/programs/") {
                    Some(program) => built.join(program),
                    None => Path::new(REPO).join(source).join("."),
                };
                assert!(
                    source.exists(),
                    "{} is needed: cargo build -p multus -p multus-shim",
                    source.display()
                );
                fs::create_dir_all(if copy.ends_with('/') { &target } else { target.parent().unwrap() })
                    .unwrap();
                run(Command::new("cp").arg("-a").args([&source, &target]));
            }
        }
        // The libraries of programs that are not built as they are shipped, and what every container has.
        for (library, source) in [("lib", "/usr/lib"), ("lib64", "/usr/lib64")] {
            fs::create_dir_all(self.image(library)).unwrap();
            if Path::new(source).is_dir() {
                bind(Path::new(source), &self.image(library), MsFlags::empty());
            }
        }
        fs::create_dir_all(self.image("var/run/secrets/kubernetes.io/serviceaccount")).unwrap();
    }

    /// A sandbox with its namespace where runtimes have it.
    fn sandbox(&mut self, name: &str) {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Netns::current().unwrap()
        };
        let netns = std::thread::scope(|scope| scope.spawn(make).join().unwrap());
        let (path, fd) = (self.host("run/netns").join(name), netns.as_fd().as_raw_fd());
        fs::write(&path, "").unwrap();
        bind(Path::new(&format!("/proc/{}/fd/{fd}", std::process::id())), &path, MsFlags::empty());
        self.namespaces.push(netns);
    }

    fn end_sandbox(&self, name: &str) {
        let path = self.host("run/netns").join(name);
        umount2(&path, MntFlags::empty()).unwrap();
        fs::remove_file(path).unwrap();
    }

    /// A container of the pod that `objects` describe.
    fn container(&self, objects: &[Value], list: &str, arguments: Option<&[&str]>) -> Command {
        let is_pod = |object: &&Value| object.pointer("/spec/template").is_some();
        let spec = &objects.iter().find(is_pod).unwrap()["spec"]["template"]["spec"];
        let container = &spec[list][0];
        let mut script = "set -e\n".to_owned();
        let mut mount = |source: &Path, target: &Path| {
            let (source, target) = (source.display(), target.display());
            writeln!(script, "mkdir -p {target}\nmount --rbind {source} {target}").unwrap();
        };
        for directory in ["proc", "dev"] {
            mount(&Path::new("/").join(directory), &self.image(directory));
        }
        for wanted in container["volumeMounts"].as_array().unwrap() {
            let volumes = spec["volumes"].as_array().unwrap();
            let volume = volumes.iter().find(|volume| volume["name"] == wanted["name"]).unwrap();
            let source = match volume["hostPath"]["path"].as_str() {
                Some(path) => self.host(path.trim_start_matches('/')),
                None => self.folder.path().join("config-map"),
            };
            let may_be_made = volume["hostPath"]["type"] == "DirectoryOrCreate";
            if may_be_made || volume["configMap"].is_object() {
                fs::create_dir_all(&source).unwrap();
            }
            mount(&source, &self.image(wanted["mountPath"].as_str().unwrap().trim_start_matches('/')));
        }
        let given: Vec<&str> =
            container["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        let words = arguments.map_or(given.clone(), |arguments| [&given[..1], arguments].concat());
        writeln!(script, "exec chroot {} {}", self.image("").display(), words.join(" ")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "sh", "-c", &script]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("MULTUS_NODE_NAME", "n");
        command.stdin(Stdio::null());
        command
    }

    fn config_map(&self, objects: &[Value]) {
        let map = objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
        fs::create_dir_all(self.folder.path().join("config-map")).unwrap();
        let conf = map["data"]["daemon-config.json"].as_str().unwrap();
        fs::write(self.folder.path().join("config-map/daemon-config.json"), conf).unwrap();
    }

    /// What the container runtime does: the first configuration of its directory.
    fn runtime(&self, verb: &str, sandbox: &str) -> Result<String, String> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(self.host("etc/cni/net.d")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.is_file());
        files.sort();
        let conf: Value = serde_json::from_slice(&fs::read(files.first().unwrap()).unwrap()).unwrap();
        let mut plugin = conf["plugins"].get(0).unwrap_or(&conf).clone();
        for key in ["name", "cniVersion"] {
            plugin[key] = conf[key].clone();
        }
        let program = format!("/opt/cni/bin/{}", plugin["type"].as_str().unwrap());
        let mut child = Command::new("chroot")
            .arg(self.host(""))
            .arg(program)
            .env_clear()
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", sandbox), ("CNI_IFNAME", "eth0")])
            .envs([("CNI_PATH", "/opt/cni/bin"), ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")])
            .env("CNI_NETNS", format!("/var/run/netns/{sandbox}"))
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(plugin.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        if output.status.success() { Ok(text) } else { Err(text) }
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.host("calls")).unwrap_or_default();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    fn in_front(&self) -> bool {
        ["conf", "conflist"].iter().any(|end| self.host(&format!("etc/cni/net.d/00-multus.{end}")).exists())
    }
}

fn bind(source: &Path, target: &Path, more: MsFlags) {
    let none: Option<&str> = None;
    mount(Some(source), target, none, MsFlags::MS_BIND | more, none)
        .unwrap_or_else(|e| panic!("{} on {}: {e}", source.display(), target.display()));
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_node_with_our_manifests_and_with_the_peers() {
    for objects in [manifest("multus-thick.yaml"), peers_manifest()] {
        Machine::run(|machine| installed_used_and_taken_away(machine, &objects));
    }
}

fn installed_used_and_taken_away(machine: &mut Machine, objects: &[Value]) {
    machine.config_map(objects);
    let start = |machine: &Machine| {
        run(&mut machine.container(objects, "initContainers", None));
        let daemon = Container(machine.container(objects, "containers", None).spawn().unwrap());
        until("the configuration is in front", || machine.in_front());
        daemon
    };
    let daemon = start(machine);
    let probe = ["probe", "--socket-dir=/host/run/multus"];
    run(&mut machine.container(objects, "containers", Some(&probe)));
    // Made while the daemon runs, as any pod's.
    for sandbox in ["c1", "c2"] {
        machine.sandbox(sandbox);
        let result = machine.runtime("ADD", sandbox).unwrap();
        assert!(result.contains("\"eth0\""), "{result}");
    }
    assert_eq!(machine.calls(), ["ADD c1 seen", "ADD c2 seen"]);
    drop(daemon);
    assert!(machine.in_front(), "it stays while there is no daemon");

    // One of them goes without a DEL. Who comes back sees which.
    machine.end_sandbox("c2");
    let daemon = start(machine);
    until("what is gone is taken down", || machine.calls().contains(&"DEL c2".to_owned()));
    let records = || {
        let entries = fs::read_dir(machine.host("var/lib/cni/multus")).unwrap();
        let files = entries.map(|entry| entry.unwrap()).filter(|entry| entry.path().is_file());
        files.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    until("its record goes", || records() == ["c1"]);
    assert!(!machine.calls().contains(&"DEL c1".to_owned()), "{:?}", machine.calls());

    // Taken off the node while a pod still runs.
    drop(daemon);
    let uninstall = manifest("multus-uninstall.yaml");
    let mut uninstalling = Container(machine.container(&uninstall, "initContainers", None).spawn().unwrap());
    until("the primary is in force", || !machine.in_front());
    machine.end_sandbox("c1");
    assert!(uninstalling.0.wait().unwrap().success());
    assert!(machine.calls().contains(&"DEL c1".to_owned()), "{:?}", machine.calls());
    let names = |path: &str| {
        let entries = fs::read_dir(machine.host(path)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names("opt/cni/bin"), ["main"]);
    assert_eq!(names("etc/cni/net.d"), ["10-main.conflist"]);
    machine.sandbox("c3");
    machine.runtime("ADD", "c3").unwrap();
}
