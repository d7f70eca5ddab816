//! What is in deploy/: that it is understood, that it names what exists, and that the image has what it starts.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cni::Object;
use multus_daemon::cli::Verb;
use multus_daemon::conf::DaemonConf;
use multus_daemon::layout::Layout;
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");

/// The objects of each manifest of multus.
fn manifests() -> BTreeMap<String, Vec<Value>> {
    let is_ours = |name: &str| {
        name.ends_with(".yaml") && (name.starts_with("multus") || name.starts_with("network-attachment"))
    };
    let names = std::fs::read_dir(FOLDER).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let ours = names.filter(|name| is_ours(name));
    let read = |name: String| {
        let text = std::fs::read_to_string(Path::new(FOLDER).join(&name)).unwrap();
        let objects: Vec<Value> =
            serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        (name, objects)
    };
    let manifests: BTreeMap<_, _> = ours.map(read).collect();
    assert!(manifests.len() >= 6, "{:?}", manifests.keys());
    manifests
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} of {value:#}"))
}

fn list<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    value[key].as_array().into_iter().flatten().collect()
}

/// Kind and name of everything.
fn named() -> BTreeSet<(String, String)> {
    let name = |object: &Value| (text(object, "/kind").to_owned(), text(object, "/metadata/name").to_owned());
    manifests().values().flatten().map(name).collect()
}

/// The pod templates, with their file.
fn pods() -> Vec<(String, Value)> {
    let pods = |(file, objects): (String, Vec<Value>)| {
        let templates = objects.into_iter().filter_map(|mut o| Some(o.pointer_mut("/spec/template")?.take()));
        templates.map(move |template| (file.clone(), template)).collect::<Vec<_>>()
    };
    manifests().into_iter().flat_map(pods).collect()
}

/// The commands that an image of ours is started with.
fn commands(pod: &Value) -> Vec<Vec<String>> {
    let spec = &pod["spec"];
    let containers = list(spec, "initContainers").into_iter().chain(list(spec, "containers"));
    let mut commands = Vec::new();
    for container in containers.filter(|c| text(c, "/image").starts_with("podrail/")) {
        let words = |value: &Value| {
            let words = value.as_array().into_iter().flatten();
            words.map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        commands.push([words(&container["command"]), words(&container["args"])].concat());
        let probe = &container["readinessProbe"]["exec"]["command"];
        commands.extend(probe.is_array().then(|| words(probe)));
    }
    commands
}

#[test]
fn the_programs_understand_what_they_are_started_with() {
    let mut count = 0;
    for (file, pod) in pods() {
        for command in commands(&pod) {
            let name = Path::new(&command[0]).file_name().unwrap().to_str().unwrap().to_owned();
            let verb = Verb::of(&name, command[1..].to_vec());
            assert!(!matches!(verb, Verb::Print(..)), "{file}: {command:?}: {verb:?}");
            count += 1;
        }
    }
    assert!(count >= 6, "{count}");
}

#[test]
fn the_image_has_what_is_started() {
    let image = std::fs::read_to_string(Path::new(FOLDER).join("multus.Containerfile")).unwrap();
    let shipped = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/build")).unwrap();
    let mut files = BTreeSet::new();
    let copies = image.lines().filter_map(|line| line.strip_prefix("COPY "));
    for line in copies.filter(|line| line.contains("target/programs/")) {
        let words: Vec<&str> = line.split(' ').collect();
        let (target, sources) = words.split_last().unwrap();
        for source in sources {
            let program = source.strip_prefix("target/programs/").unwrap();
            assert!(shipped.contains(&format!("-p {program} ")), "hack/build does not build {program}");
            let is_folder = target.ends_with('/');
            files.insert(if is_folder { format!("{target}{program}") } else { (*target).to_owned() });
        }
    }
    for (file, pod) in pods() {
        for command in commands(&pod) {
            assert!(files.contains(&command[0]), "{file}: {} is not in the image", command[0]);
        }
    }
    // Runtimes name namespaces below /var/run, and manifests mount /run.
    assert!(image.contains("\nCOPY deploy/rootfs/ /\n"));
    let link = std::fs::read_link(Path::new(FOLDER).join("rootfs/var/run")).unwrap();
    assert_eq!(link, Path::new("../run"));
    // The places that manifests and charts of the field name.
    for name in ["multus", "multus-shim", "multus-daemon", "passthru", "thin_entrypoint", "install_multus"] {
        assert!(files.contains(&format!("/usr/src/multus-cni/bin/{name}")), "{name}");
    }
    for name in ["thin_entrypoint", "install_multus", "kubeconfig_generator", "cert-approver"] {
        assert!(files.contains(&format!("/{name}")), "{name}");
        assert!(files.contains(&format!("/usr/src/multus-cni/bin/{name}")), "{name}");
    }
}

#[test]
fn pods_have_what_they_refer_to() {
    let named = named();
    let has = |kind: &str, name: &str| named.contains(&(kind.to_owned(), name.to_owned()));
    for (file, pod) in pods() {
        let spec = &pod["spec"];
        let volumes: BTreeSet<&str> = list(spec, "volumes").iter().map(|v| text(v, "/name")).collect();
        for container in list(spec, "initContainers").into_iter().chain(list(spec, "containers")) {
            for mount in list(container, "volumeMounts") {
                assert!(volumes.contains(text(mount, "/name")), "{file}: {mount}");
            }
        }
        for volume in list(spec, "volumes") {
            if let Some(map) = volume.pointer("/configMap/name").and_then(Value::as_str) {
                assert!(has("ConfigMap", map), "{file}: {map}");
            }
        }
        if let Some(account) = spec["serviceAccountName"].as_str() {
            assert!(has("ServiceAccount", account), "{file}: {account}");
        }
    }
    for binding in manifests().values().flatten().filter(|o| text(o, "/kind") == "ClusterRoleBinding") {
        assert!(has("ClusterRole", text(binding, "/roleRef/name")), "{binding}");
        for subject in list(binding, "subjects").into_iter().filter(|s| text(s, "/kind") == "ServiceAccount")
        {
            assert!(has("ServiceAccount", text(subject, "/name")), "{binding}");
        }
    }
}

#[test]
fn the_daemon_takes_its_configuration_and_sees_its_paths() {
    let manifests = manifests();
    let thick = &manifests["multus-thick.yaml"];
    let map = thick.iter().find(|object| text(object, "/kind") == "ConfigMap").unwrap();
    let raw = Object::parse(text(map, "/data/daemon-config.json").as_bytes()).unwrap();
    let documented =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/multus-thick.md")).unwrap();
    for (key, _) in raw.iter() {
        assert!(documented.contains(&format!("`{key}`")), "{key} is documented nowhere");
    }
    let conf = DaemonConf::read(raw, |_| Layout::default()).unwrap();
    let mounts = |file: &str, container: &str| -> Vec<PathBuf> {
        let (_, pod) = pods().into_iter().find(|(name, _)| name == file).unwrap();
        let spec = &pod["spec"];
        let mut all = list(spec, "initContainers").into_iter().chain(list(spec, "containers"));
        let container = all.find(|c| text(c, "/name") == container).unwrap();
        list(container, "volumeMounts").iter().map(|m| text(m, "/mountPath").into()).collect()
    };
    let places = [conf.chroot.as_ref().unwrap(), &conf.socket_dir, &conf.cni_config_dir, &conf.cni_dir];
    for (file, container) in [("multus-thick.yaml", "kube-multus"), ("multus-uninstall.yaml", "uninstall")] {
        let mounts = mounts(file, container);
        for place in places {
            assert!(mounts.iter().any(|mount| place.starts_with(mount)), "{file}: {}", place.display());
        }
    }
}
