//! The pods of the suite.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Label of everything that the suite makes.
pub const LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "podrail-e2e");
/// Variable by which a pod's processes are found on the node.
pub const MARK: &str = "PODRAIL_POD";
/// Annotation of a pod: the networks that it wants.
pub(crate) const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// Annotation of a pod: the network that it wants in place of the primary one.
const DEFAULT_NETWORK: &str = "v1.multus-cni.io/default-network";
/// The image that `hack/kubernetes` imports; the simulated kubelet runs the node's own programs instead.
const IMAGE: &str = "localhost/podrail/pod:1";
/// What a pod does that has nothing to do, and ends at once when it is told to.
const IDLE: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"];

/// A pod to create.
#[derive(Clone, Debug)]
pub struct PodSpec {
    name: String,
    mark: String,
    annotations: BTreeMap<&'static str, String>,
    resources: BTreeMap<String, String>,
    resources_beside: BTreeMap<String, String>,
    command: Vec<String>,
    hugepages: bool,
}

impl PodSpec {
    /// A pod that idles on the primary network.
    pub fn new(name: &str) -> PodSpec {
        PodSpec {
            name: name.to_owned(),
            mark: mark(name),
            annotations: BTreeMap::new(),
            resources: BTreeMap::new(),
            resources_beside: BTreeMap::new(),
            command: IDLE.map(str::to_owned).into(),
            hugepages: false,
        }
    }

    /// With the networks annotation, in either of its grammars.
    pub fn networks(mut self, annotation: &(impl ToString + ?Sized)) -> PodSpec {
        self.annotations.insert(NETWORKS, annotation.to_string());
        self
    }

    /// With the default-network annotation, in either of its grammars.
    pub fn default_network(mut self, annotation: &(impl ToString + ?Sized)) -> PodSpec {
        self.annotations.insert(DEFAULT_NETWORK, annotation.to_string());
        self
    }

    /// With `count` devices of `resource`.
    pub fn devices(mut self, resource: &str, count: u64) -> PodSpec {
        self.resources.insert(resource.to_owned(), count.to_string());
        self
    }

    /// With a second container, which idles and has `count` devices of `resource`.
    pub fn beside(mut self, resource: &str, count: u64) -> PodSpec {
        self.resources_beside.insert(resource.to_owned(), count.to_string());
        self
    }

    /// With this shell command.
    pub fn shell(mut self, command: &str) -> PodSpec {
        self.command = vec!["sh".into(), "-c".into(), command.into()];
        self
    }

    /// With 128 MiB of huge pages on /dev/hugepages and the right to lock memory, for DPDK.
    pub fn hugepages(mut self) -> PodSpec {
        self.hugepages = true;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Value of the variable [`MARK`] in its processes.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// The Pod object.
    pub fn to_json(&self) -> Value {
        let mut resources = json!(self.resources);
        let mut container = self.container("main", &self.command);
        let mut volumes = json!([]);
        if self.hugepages {
            set(&mut resources, "hugepages-2Mi", json!("128Mi"));
            set(&mut resources, "memory", json!("512Mi"));
            set(
                &mut container,
                "volumeMounts",
                json!([{"name": "hugepages", "mountPath": "/dev/hugepages"}]),
            );
            set(
                &mut container,
                "securityContext",
                json!({"capabilities": {"add": ["IPC_LOCK", "SYS_RAWIO"]}}),
            );
            volumes = json!([{"name": "hugepages", "emptyDir": {"medium": "HugePages"}}]);
        }
        set(&mut container, "resources", json!({"limits": resources}));
        let mut containers = vec![container];
        if !self.resources_beside.is_empty() {
            let mut beside = self.container("beside", &IDLE.map(str::to_owned));
            set(&mut beside, "resources", json!({"limits": self.resources_beside}));
            containers.push(beside);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "annotations": self.annotations, "labels": {LABEL.0: LABEL.1}},
            "spec": {
                "restartPolicy": "OnFailure",
                "terminationGracePeriodSeconds": 2,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "containers": containers,
                "volumes": volumes,
            },
        })
    }

    fn container(&self, name: &str, command: &[String]) -> Value {
        json!({
            "name": name,
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "command": command,
            "env": [{"name": MARK, "value": self.mark}],
        })
    }
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
}

/// A value that no other pod of this or another run has.
fn mark(name: &str) -> String {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{name}-{random:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn a_spec_is_a_pod() {
        let spec =
            PodSpec::new("p").networks("a,b").default_network("c").devices("intel.com/x", 2).hugepages();
        let pod: Pod = serde_json::from_value(spec.beside("intel.com/y", 1).to_json()).unwrap();
        let annotations = pod.metadata.annotations.unwrap();
        assert_eq!((&*annotations[NETWORKS], &*annotations[DEFAULT_NETWORK]), ("a,b", "c"));
        let containers = &pod.spec.unwrap().containers;
        let beside = containers[1].resources.as_ref().unwrap().limits.as_ref().unwrap();
        assert_eq!((beside.len(), &*beside["intel.com/y"].0), (1, "1"));
        let container = &containers[0];
        let limits = container.resources.as_ref().unwrap().limits.as_ref().unwrap();
        assert_eq!(limits["intel.com/x"].0, "2");
        assert_eq!(limits["hugepages-2Mi"].0, "128Mi");
        assert_ne!(PodSpec::new("p").mark(), PodSpec::new("p").mark());
    }
}
