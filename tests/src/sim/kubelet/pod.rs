//! What a pod's specification asks of the node, as far as the simulated kubelet goes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::manager::{Grant, Wanted};
use super::registration::is_extended_resource;
use crate::sim::runtime::{ContainerSpec, PodIdentity};

/// Grace period of a pod that does not name one.
const GRACE: Duration = Duration::from_secs(30);

/// Whose pod it is.
///
/// # Errors
/// The object has no name, namespace or UID, so it does not come from an API server.
pub(super) fn identity(pod: &Pod) -> Result<PodIdentity> {
    let metadata = &pod.metadata;
    Ok(PodIdentity {
        namespace: metadata.namespace.clone().context("pod without namespace")?,
        name: metadata.name.clone().context("pod without name")?,
        uid: metadata.uid.clone().context("pod without UID")?,
    })
}

/// Init containers, then containers.
pub(super) fn containers(pod: &Pod) -> impl Iterator<Item = (bool, &Container)> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    let main = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    init.map(|container| (true, container)).chain(main.iter().map(|container| (false, container)))
}

/// The extended resources that the pod's containers want, in kubelet's order of allocation.
///
/// # Errors
/// A quantity is not a whole number.
pub(super) fn wanted(pod: &Pod) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    for (init, container) in containers(pod) {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        for (resource, quantity) in limits.into_iter().flatten() {
            if is_extended_resource(resource) {
                let count =
                    quantity.0.parse().map_err(|_| anyhow!("{resource}: {:?} is not whole", quantity.0))?;
                let container = container.name.clone();
                wanted.push(Wanted { container, init, resource: resource.clone(), count });
            }
        }
    }
    wanted.retain(|wish| wish.count > 0);
    Ok(wanted)
}

/// How long the pod's processes may take to end after SIGTERM.
pub(super) fn grace(pod: &Pod) -> Duration {
    let asked = pod.metadata.deletion_grace_period_seconds;
    let asked = asked.or_else(|| pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds));
    asked.and_then(|seconds| u64::try_from(seconds).ok()).map_or(GRACE, Duration::from_secs)
}

/// How `container` of `pod` runs with what its devices bring along; volumes lie under `folder`.
///
/// # Errors
/// The specification uses something that the simulated kubelet does not do.
pub(super) fn container_spec(
    pod: &Pod,
    container: &Container,
    grant: Grant,
    folder: &Path,
) -> Result<ContainerSpec> {
    let mut argv = container.command.clone().unwrap_or_default();
    if argv.is_empty() {
        bail!("container {}: the simulated kubelet pulls no images and needs a command", container.name);
    }
    argv.extend(container.args.clone().unwrap_or_default());

    // kubelet's order: what devices bring is overridden by what the pod says.
    let mut env: BTreeMap<String, String> = grant.env;
    for variable in container.env.iter().flatten() {
        if variable.value_from.is_some() {
            bail!("container {}: the simulated kubelet has no valueFrom ({})", container.name, variable.name);
        }
        env.insert(variable.name.clone(), variable.value.clone().unwrap_or_default());
    }
    env.insert("HOSTNAME".into(), pod.metadata.name.clone().unwrap_or_default());

    let mut spec = ContainerSpec {
        name: container.name.clone(),
        attempt: 0,
        argv: argv.iter().map(|word| expand(word, &env)).collect(),
        env,
        devices: grant.devices,
        mounts: grant.mounts,
        hugepages: Vec::new(),
    };
    for volume_mount in container.volume_mounts.iter().flatten() {
        let name = &volume_mount.name;
        let target = PathBuf::from(&volume_mount.mount_path);
        let read_only = volume_mount.read_only.unwrap_or(false);
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
        let volume = volumes.into_iter().flatten().find(|volume| volume.name == *name);
        let volume = volume.with_context(|| format!("volume {name} is mounted and not defined"))?;
        if let Some(empty) = &volume.empty_dir {
            if empty.medium.as_deref().is_some_and(|medium| medium.starts_with("HugePages")) {
                spec.hugepages.push(target);
            } else {
                let source = folder.join("volumes").join(name);
                std::fs::create_dir_all(&source).with_context(|| format!("create {}", source.display()))?;
                spec.mounts.push((source, target, read_only));
            }
        } else if let Some(host) = &volume.host_path {
            spec.mounts.push((PathBuf::from(&host.path), target, read_only));
        } else {
            bail!("volume {name}: the simulated kubelet has emptyDir and hostPath only");
        }
    }
    Ok(spec)
}

/// Replaces `$(NAME)` by the variable's value, as kubelet does in command and args; `$$` stays a dollar.
fn expand(word: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = word;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let after = from.strip_prefix('$').unwrap_or_default();
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn resources_are_wanted_container_by_container() {
        let pod = pod(json!({"spec": {
            "initContainers": [{"name": "i", "resources": {"limits": {"a.org/x": "1"}}}],
            "containers": [
                {"name": "one", "resources": {"limits": {"b.org/y": "2", "a.org/x": "1", "cpu": "1"}}},
                {"name": "two", "resources": {"limits": {"a.org/x": "0"}}}]
        }}));
        let wish = |container: &str, init, resource: &str, count| Wanted {
            container: container.into(),
            init,
            resource: resource.into(),
            count,
        };
        let expected = [
            wish("i", true, "a.org/x", 1),
            wish("one", false, "a.org/x", 1),
            wish("one", false, "b.org/y", 2),
        ];
        assert_eq!(wanted(&pod).unwrap(), expected);
    }

    #[test]
    fn a_container_gets_environment_mounts_and_nodes() {
        let pod = pod(json!({"metadata": {"name": "p"}, "spec": {
            "volumes": [{"name": "huge", "emptyDir": {"medium": "HugePages"}},
                        {"name": "h", "hostPath": {"path": "/srv"}}],
            "containers": [{"name": "c", "command": ["run", "-a", "$(DEV)"], "args": ["$(NONE)", "$$x"],
                "env": [{"name": "X", "value": "1"}],
                "volumeMounts": [{"name": "huge", "mountPath": "/dev/hugepages"},
                                 {"name": "h", "mountPath": "/srv", "readOnly": true}]}]
        }}));
        let grant = Grant {
            env: [("DEV".to_owned(), "0000:01:10.0".to_owned())].into(),
            devices: vec![("/dev/vfio/7".into(), "/dev/vfio/7".into())],
            mounts: vec![],
        };
        let (_, container) = containers(&pod).next().unwrap();
        let spec = container_spec(&pod, container, grant, Path::new("/nowhere")).unwrap();
        assert_eq!(spec.argv, ["run", "-a", "0000:01:10.0", "$(NONE)", "$x"]);
        assert_eq!(spec.env["X"], "1");
        assert_eq!(spec.env["HOSTNAME"], "p");
        assert_eq!(spec.hugepages, [PathBuf::from("/dev/hugepages")]);
        assert_eq!(spec.mounts, [("/srv".into(), "/srv".into(), true)]);
    }

    #[test]
    fn what_the_simulation_lacks_is_an_error() {
        for (container, text) in [
            (json!({"name": "c"}), "needs a command"),
            (json!({"name": "c", "command": ["x"], "env": [{"name": "E", "valueFrom": {}}]}), "no valueFrom"),
            (
                json!({"name": "c", "command": ["x"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
                "emptyDir and hostPath only",
            ),
        ] {
            let volumes = json!([{"name": "v", "secret": {}}]);
            let pod = pod(json!({"spec": {"volumes": volumes, "containers": [container]}}));
            let (_, container) = containers(&pod).next().unwrap();
            let error = container_spec(&pod, container, Grant::default(), Path::new("/nowhere")).unwrap_err();
            assert!(format!("{error:#}").contains(text), "{error:#}");
        }
    }
}
