//! A cluster, and nodes in it that run the plugin.

use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;

use cni::{Args, CniResult, Command, Object, Plugin as _, Request, Version};
use e2e::sim::apiserver::ApiServer;
use ipam::config::Places;
use ipam::plugin::Whereabouts;
use ipam::tend::{Options, tend};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const GROUP: &str = "/apis/whereabouts.cni.cncf.io/v1alpha1";

/// A cluster with a namespace of its own for pools.
pub(crate) struct Cluster {
    runtime: Runtime,
    client: Client,
    /// `None` on a real cluster.
    pub(crate) server: Option<ApiServer>,
    pub(crate) namespace: String,
    kubeconfig: PathBuf,
    folder: tempfile::TempDir,
}

impl Cluster {
    /// The cluster that the environment names, or a simulated one.
    pub(crate) fn start() -> Self {
        match std::env::var_os("PODRAIL_KUBECONFIG") {
            Some(file) => Self::furnished(None, Kubeconfig::read_from(file).unwrap()),
            None => Self::simulated(),
        }
    }

    /// A simulated cluster, whatever the environment says.
    pub(crate) fn simulated() -> Self {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(ApiServer::start()).unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(None)).unwrap();
        Self::furnished(Some((server, runtime)), kubeconfig)
    }

    /// A kubeconfig that finds pools in another namespace.
    pub(crate) fn kubeconfig_in(&self, namespace: &str) -> PathBuf {
        let mut kubeconfig = Kubeconfig::read_from(&self.kubeconfig).unwrap();
        for context in &mut kubeconfig.contexts {
            context.context.as_mut().unwrap().namespace = Some(namespace.to_owned());
        }
        let path = self.folder.path().join(format!("kubeconfig-{namespace}"));
        std::fs::write(&path, serde_json::to_vec(&kubeconfig).unwrap()).unwrap();
        path
    }

    fn furnished(server: Option<(ApiServer, Runtime)>, mut kubeconfig: Kubeconfig) -> Self {
        let (server, runtime) = server
            .map_or_else(|| (None, Runtime::new().unwrap()), |(server, runtime)| (Some(server), runtime));
        let folder = tempfile::tempdir().unwrap();
        let namespace = format!("ipam-{:08x}", RandomState::new().hash_one(folder.path()) >> 32);
        for context in &mut kubeconfig.contexts {
            context.context.as_mut().unwrap().namespace = Some(namespace.clone());
        }
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, serde_json::to_vec(&kubeconfig).unwrap()).unwrap();
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
            config.default_retry = false;
            Client::try_from(config).unwrap()
        });
        let cluster = Self { runtime, client, server, namespace, kubeconfig: path, folder };
        cluster.define();
        cluster.post("/api/v1/namespaces", &json!({"metadata": {"name": cluster.namespace}})).unwrap();
        cluster
    }

    /// The definitions as they are deployed.
    fn define(&self) {
        let manifests = [
            include_str!("../../../deploy/whereabouts.yaml"),
            include_str!("../../../deploy/ipam-claims.yaml"),
        ];
        let objects = manifests.map(|manifest| serde_saphyr::from_multiple::<Value>(manifest).unwrap());
        for definition in
            objects.iter().flatten().filter(|object| object["kind"] == "CustomResourceDefinition")
        {
            match self.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition) {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => panic!("{error}"),
            }
        }
        // A real API server serves a kind only a while after it was defined.
        let served = || {
            ["ippools", "overlappingrangeipreservations"].iter().all(|kind| self.list(kind).is_ok())
                && self.send("GET", "/apis/k8s.cni.cncf.io/v1alpha1/ipamclaims", &Value::Null).is_ok()
        };
        self.until("the definitions to be served", served);
    }

    pub(crate) fn send(&self, method: &str, path: &str, body: &Value) -> kube::Result<Value> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        self.runtime.block_on(self.client.request(request.body(body).unwrap()))
    }

    pub(crate) fn post(&self, path: &str, object: &Value) -> kube::Result<Value> {
        self.send("POST", path, object)
    }

    fn list(&self, kind: &str) -> kube::Result<Value> {
        self.send("GET", &format!("{GROUP}/namespaces/{}/{kind}", self.namespace), &Value::Null)
    }

    /// The names of all objects of a kind.
    pub(crate) fn names(&self, kind: &str) -> Vec<String> {
        let list = self.list(kind).unwrap();
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The allocations of a pool.
    pub(crate) fn allocations(&self, pool: &str) -> serde_json::Map<String, Value> {
        let path = format!("{GROUP}/namespaces/{}/ippools/{pool}", self.namespace);
        self.send("GET", &path, &Value::Null).unwrap()["spec"]["allocations"].as_object().unwrap().clone()
    }

    /// Makes a pool as the peer makes it.
    pub(crate) fn peer_pool(&self, name: &str, range: &str, allocations: &Value) {
        let path = format!("{GROUP}/namespaces/{}/ippools", self.namespace);
        let pool = json!({
            "apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "IPPool",
            "metadata": {"name": name}, "spec": {"range": range, "allocations": allocations},
        });
        self.post(&path, &pool).unwrap();
    }

    /// Reserves an address as the peer does.
    pub(crate) fn peer_reservation(&self, name: &str, podref: &str) {
        let path = format!("{GROUP}/namespaces/{}/overlappingrangeipreservations", self.namespace);
        let reservation = json!({
            "apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "OverlappingRangeIPReservation",
            "metadata": {"name": name}, "spec": {"podref": podref},
        });
        self.post(&path, &reservation).unwrap();
    }

    /// Makes a pod.
    pub(crate) fn pod(&self, name: &str) {
        self.make_pod(name, &Value::Null);
    }

    /// Makes a pod of a StatefulSet. On a real cluster a controller makes it, and removes those without a set.
    pub(crate) fn pod_of(&self, set: &str, name: &str) {
        if self.server.is_none() {
            let ordinal: u32 = name.rsplit_once('-').unwrap().1.parse().unwrap();
            if self.send("GET", &self.set_path(set), &Value::Null).is_err() {
                self.stateful_set(set, ordinal + 1);
            }
            return self.until(&format!("pod {name} to be made"), || self.pod_exists(name));
        }
        let owners = json!([
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": set, "uid": "u", "controller": true},
        ]);
        self.make_pod(name, &owners);
    }

    fn make_pod(&self, name: &str, owners: &Value) {
        self.service_account();
        let metadata = json!({"name": name, "ownerReferences": owners});
        let pod = json!({"metadata": metadata, "spec": pod_spec()});
        self.post(&format!("/api/v1/namespaces/{}/pods", self.namespace), &pod).unwrap();
    }

    /// Without it a real API server takes no pods, and a controller makes it after a while.
    fn service_account(&self) {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts", self.namespace);
        drop(self.post(&path, &json!({"metadata": {"name": "default"}})));
    }

    fn pod_path(&self, name: &str) -> String {
        format!("/api/v1/namespaces/{}/pods/{name}", self.namespace)
    }

    fn pod_exists(&self, name: &str) -> bool {
        self.send("GET", &self.pod_path(name), &Value::Null).is_ok()
    }

    /// Removes a pod of a StatefulSet at once. On a real cluster it comes back as long as the set has room for it.
    pub(crate) fn delete_pod(&self, name: &str) {
        let path = format!("{}?gracePeriodSeconds=0", self.pod_path(name));
        let deleted = self.send("DELETE", &path, &Value::Null);
        assert!(deleted.is_ok() || self.server.is_none(), "{deleted:?}");
    }

    fn set_path(&self, name: &str) -> String {
        format!("/apis/apps/v1/namespaces/{}/statefulsets/{name}", self.namespace)
    }

    /// Makes a StatefulSet of so many pods.
    pub(crate) fn stateful_set(&self, name: &str, replicas: u32) {
        self.service_account();
        let labels = json!({"app": name});
        let set = json!({
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas, "serviceName": name, "selector": {"matchLabels": labels},
                // The next one does not wait for the one before to be ready: none ever is.
                "podManagementPolicy": "Parallel",
                "template": {"metadata": {"labels": labels}, "spec": pod_spec()},
            },
        });
        self.post(self.set_path("").trim_end_matches('/'), &set).unwrap();
    }

    /// Scales a StatefulSet, and waits until a real cluster has followed.
    pub(crate) fn scale(&self, name: &str, replicas: u32) {
        self.send("PATCH", &self.set_path(name), &json!({"spec": {"replicas": replicas}})).unwrap();
        if self.server.is_none() {
            self.until("the pods that are too many to be gone", || {
                !self.pod_exists(&format!("{name}-{replicas}"))
            });
        }
    }

    pub(crate) fn until(&self, what: &str, mut reached: impl FnMut() -> bool) {
        for _ in 0..300 {
            if reached() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("waited 30 s for {what} in {}", self.namespace);
    }

    /// Where a claim is, or all of them.
    pub(crate) fn claim_path(&self, name: &str) -> String {
        format!("/apis/k8s.cni.cncf.io/v1alpha1/namespaces/{}/ipamclaims/{name}", self.namespace)
    }

    /// Makes a claim for the network of the tests.
    pub(crate) fn make_claim(&self, name: &str, network: &str) {
        let claim = json!({
            "apiVersion": "k8s.cni.cncf.io/v1alpha1", "kind": "IPAMClaim",
            "metadata": {"name": name}, "spec": {"network": network, "interface": "net1"},
        });
        self.post(self.claim_path("").trim_end_matches('/'), &claim).unwrap();
    }

    /// How many requests the simulated server has seen.
    pub(crate) fn requests(&self) -> usize {
        self.server.as_ref().unwrap().requests().len()
    }

    /// A node that nothing ran on yet.
    pub(crate) fn node(&self, name: &str) -> Node {
        let dir = self.folder.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(
            dir.join("whereabouts.conf"),
            json!({"datastore": "kubernetes", "kubernetes": {"kubeconfig": self.kubeconfig}}).to_string(),
        )
        .unwrap();
        std::fs::write(dir.join("nodename"), format!("{name}\n")).unwrap();
        Node {
            namespace: self.namespace.clone(),
            plugin: Whereabouts {
                places: Places {
                    flat_files: vec![dir.join("whereabouts.conf")],
                    node_name: None,
                    host_name: dir.join("hostname"),
                    data_dir: dir.join("ledgers"),
                },
            },
        }
    }
}

/// The daemon of a node, until it is dropped.
pub(crate) struct Tending {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Tending {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// No node runs it: the suite counts what runs on the nodes.
fn pod_spec() -> Value {
    json!({
        "automountServiceAccountToken": false, "schedulerName": "nobody",
        "containers": [{"name": "c", "image": "i"}],
    })
}

/// A node.
pub(crate) struct Node {
    /// Where pods are that exist.
    namespace: String,
    pub(crate) plugin: Whereabouts,
}

/// A call for pod `POD` of namespace `ns`, whose container is `POD-id`.
pub(crate) fn request(command: Command, ipam: &Value, pod: &str, ifname: &str) -> Request {
    let mut ipam = ipam.clone();
    ipam["type"] = "whereabouts".into();
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "ipam": ipam});
    for key in ["runtimeConfig", "args", "allowPersistentIPs"] {
        if let Some(value) = ipam.get(key) {
            config[key] = value.clone();
        }
    }
    let bytes = serde_json::to_vec(&config).unwrap();
    Request {
        command,
        container_id: format!("{pod}-id"),
        netns: Some("/var/run/netns/none".into()),
        ifname: ifname.to_owned(),
        args: Args::parse(&format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME={pod};K8S_POD_UID={pod}-uid"
        ))
        .unwrap(),
        path: Vec::new(),
        version: Version::V1_1_0,
        name: "net".into(),
        config: Object::parse(&bytes).unwrap(),
        stdin: bytes,
    }
}

/// The addresses of a result, with their gateways.
pub(crate) fn texts(result: &CniResult) -> Vec<String> {
    let text = |ip: &cni::IpConfig| match ip.gateway {
        Some(gateway) => format!("{} via {gateway}", ip.address),
        None => ip.address.to_string(),
    };
    result.ips.iter().map(text).collect()
}

impl Node {
    pub(crate) fn try_add(&self, ipam: &Value, pod: &str) -> Result<Vec<String>, cni::Error> {
        self.plugin.add(&request(Command::Add, ipam, pod, "net1")).map(|result| texts(&result))
    }

    pub(crate) fn add(&self, ipam: &Value, pod: &str) -> Vec<String> {
        self.try_add(ipam, pod).unwrap_or_else(|error| panic!("{pod}: {error}"))
    }

    /// A call for a pod that exists.
    pub(crate) fn request(&self, command: Command, ipam: &Value, pod: &str, container: &str) -> Request {
        let mut request = request(command, ipam, pod, "net1");
        request.container_id = container.to_owned();
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={pod}", self.namespace);
        request.args = Args::parse(&args).unwrap();
        request
    }

    /// Makes what the node suspects older by a minute.
    pub(crate) fn wait_a_minute(&self) {
        for file in std::fs::read_dir(&self.plugin.places.data_dir).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let mut ledger: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            for suspect in ledger["suspects"].as_array_mut().unwrap() {
                for clock in ["uptime", "wall"] {
                    let earlier = suspect["since"][clock].as_u64().unwrap().saturating_sub(61_000);
                    suspect["since"][clock] = earlier.into();
                }
            }
            std::fs::write(&path, ledger.to_string()).unwrap();
        }
    }

    /// Starts the daemon of the node.
    pub(crate) fn tend(&self, metrics: Option<std::net::SocketAddr>) -> Tending {
        let kubeconfig = ipam::config::kubeconfig(&self.plugin.places).unwrap();
        let options = Options { data_dir: self.plugin.places.data_dir.clone(), kubeconfig, metrics };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    ended = tend(&options) => panic!("{ended:?}"),
                    _ = stopped => {}
                }
            });
        };
        Tending { stop: Some(stop), thread: Some(std::thread::spawn(work)) }
    }

    pub(crate) fn del(&self, ipam: &Value, pod: &str) {
        self.plugin.del(&request(Command::Del, ipam, pod, "net1")).unwrap();
    }
}
