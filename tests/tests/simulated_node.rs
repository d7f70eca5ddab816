//! The simulated node behaves as a node does, shown with a device plugin of the test's own and the reference plugins.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use e2e::cluster::Cluster;
use e2e::sim::apiserver::ApiServer;
use e2e::sim::kubelet::{Kubelet, Options};
use e2e::sim::runtime::{Paths, Runtime};
use e2e::sim::scheduler;
use e2e::wait::until;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use kubelet_api::deviceplugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use kubelet_api::deviceplugin::registration_client::RegistrationClient;
use kubelet_api::deviceplugin::*;
use kubelet_api::podresources::pod_resources_lister_client::PodResourcesListerClient;
use kubelet_api::podresources::{GetPodResourcesRequest, ListPodResourcesRequest};
use kubelet_api::registration::registration_server::{Registration, RegistrationServer};
use kubelet_api::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

const RESOURCE: &str = "example.org/thing";

/// A device plugin with devices a, b and c that prefers c.
#[derive(Clone)]
struct Things {
    /// Closed when the plugin ends.
    ended: watch::Receiver<()>,
}

#[tonic::async_trait]
impl DevicePlugin for Things {
    type ListAndWatchStream = ReceiverStream<Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        let options =
            DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true };
        Ok(Response::new(options))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let devices =
            ["a", "b", "c"].map(|id| Device { id: id.into(), health: HEALTHY.into(), topology: None });
        let mut ended = self.ended.clone();
        tokio::spawn(async move {
            let _ = sender.send(Ok(ListAndWatchResponse { devices: devices.into() })).await;
            tokio::select! {
                () = sender.closed() => {}
                _ = ended.changed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let container = request.into_inner().container_requests.remove(0);
        let mut ids = container.available_device_ids;
        ids.sort_by(|one, two| two.cmp(one));
        ids.truncate(usize::try_from(container.allocation_size).unwrap());
        let container_responses = vec![ContainerPreferredAllocationResponse { device_ids: ids }];
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let ids = request.into_inner().container_requests.remove(0).devices_ids.join(",");
        let node = DeviceSpec {
            container_path: "/dev/things/zero".into(),
            host_path: "/dev/zero".into(),
            permissions: "rw".into(),
        };
        let response = ContainerAllocateResponse {
            envs: [("THINGS".to_owned(), ids)].into(),
            devices: vec![node],
            ..Default::default()
        };
        Ok(Response::new(AllocateResponse { container_responses: vec![response] }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

#[tonic::async_trait]
impl Registration for Things {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DevicePlugin".into(),
            name: RESOURCE.into(),
            endpoint: String::new(),
            supported_versions: vec![VERSION.into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        assert!(request.into_inner().plugin_registered);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// A device plugin that serves until this value is dropped.
struct Plugin(AbortHandle, #[expect(dead_code, reason = "its end is what counts")] watch::Sender<()>);

impl Drop for Plugin {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn serve(socket: &Path) -> Plugin {
    let _ = std::fs::remove_file(socket);
    let incoming = kubelet_api::incoming(UnixListener::bind(socket).unwrap());
    let (alive, ended) = watch::channel(());
    let things = Things { ended };
    let server = tonic::transport::Server::builder()
        .add_service(DevicePluginServer::new(things.clone()))
        .add_service(RegistrationServer::new(things));
    let serving = tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
    Plugin(serving.abort_handle(), alive)
}

/// Everything of a simulated node in a folder and a network namespace of its own.
struct Node {
    folder: tempfile::TempDir,
    /// Runs as long as this value exists.
    _server: ApiServer,
    runtime: Arc<Runtime>,
    kubelet: Kubelet,
    cluster: Cluster,
    pods: Api<Pod>,
}

impl Node {
    async fn start() -> Node {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("net.d")).unwrap();
        let conf = json!({
            "cniVersion": "0.4.0",
            "name": "net",
            "plugins": [{
                "type": "bridge",
                "bridge": "sim0",
                "isGateway": true,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}]], "dataDir": at("ipam")},
            }],
        });
        std::fs::write(at("net.d/10-net.conflist"), conf.to_string()).unwrap();
        let server = ApiServer::start().await.unwrap();
        std::fs::write(at("kubeconfig"), server.kubeconfig(None)).unwrap();
        let cluster = Cluster::connect(&at("kubeconfig")).await.unwrap();
        let runtime = Runtime::start(paths(folder.path())).await.unwrap();
        let kubelet =
            Kubelet::start(cluster.client(), Arc::clone(&runtime), options(folder.path())).await.unwrap();
        tokio::spawn(scheduler::run(cluster.client(), "n1".into()));
        let pods = Api::namespaced(cluster.client(), "default");
        Node { folder, _server: server, runtime, kubelet, cluster, pods }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn restart_kubelet(self) -> Node {
        self.kubelet.stop().await;
        let client = self.cluster.client();
        let kubelet =
            Kubelet::start(client, Arc::clone(&self.runtime), options(self.folder.path())).await.unwrap();
        Node { kubelet, ..self }
    }

    async fn create(&self, name: &str, count: u32, script: &str) -> String {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main",
                    "image": "none",
                    "command": ["sh", "-c", script],
                    "resources": {"limits": {RESOURCE: count.to_string()}},
                }],
            },
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.pods.create(&PostParams::default(), &pod).await.unwrap().metadata.uid.unwrap()
    }

    fn log(&self, name: &str, uid: &str) -> String {
        std::fs::read_to_string(self.path("pods").join(format!("default_{name}_{uid}/main/0.log")))
            .unwrap_or_default()
    }
}

fn paths(folder: &Path) -> Paths {
    Paths {
        conf_dir: folder.join("net.d"),
        bin_dir: "/usr/lib/cni".into(),
        cache_dir: folder.join("cni"),
        netns_dir: folder.join("netns"),
        log_dir: folder.join("pods"),
        state_dir: folder.join("state"),
        helper: env!("CARGO_BIN_EXE_podrail-e2e").into(),
    }
}

fn options(folder: &Path) -> Options {
    Options {
        root: folder.join("kubelet"),
        plugin_grace: Duration::from_millis(300),
        sandbox_retry: Duration::from_millis(100),
        ..Options::new("n1")
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// Runs `test` in a network namespace of its own.
fn in_own_network(test: impl Future<Output = ()>) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests run as root");
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test);
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    until(Duration::from_secs(20), what, async || Ok(holds().await.then_some(()))).await.unwrap();
}

#[test]
fn a_pod_gets_devices_network_and_log_and_gives_all_back() {
    in_own_network(async {
        let node = Node::start().await;
        let plugin = serve(&node.path("kubelet/plugins_registry/things.sock"));
        node.cluster.wait_allocatable(RESOURCE, 3).await.unwrap();

        let script = "echo $THINGS; ls /dev /dev/things; ip -o addr show dev eth0; echo oops >&2; \
                      trap 'echo bye; exit 0' TERM; sleep 1000 & wait";
        let uid = node.create("one", 2, script).await;
        node.cluster.wait_running("one").await.unwrap();
        eventually("the log", async || node.log("one", &uid).contains("oops")).await;
        let log = node.log("one", &uid);
        assert!(log.contains(" stdout F c,b\n"), "what the plugin prefers: {log}");
        assert!(log.contains(" stdout F zero\n") && log.contains(" stdout F null\n"), "{log}");
        assert!(!log.contains("kmsg"), "no other device nodes: {log}");
        assert!(log.contains(" stderr F oops\n") && log.contains("10.77.0."), "{log}");
        let status = node.cluster.pod("one").await.unwrap().status.unwrap();
        assert!(status.pod_ip.unwrap().starts_with("10.77.0."));

        // Whoever asks which devices the pod has is told the same in three ways.
        let channel = kubelet_api::connect(&node.path("kubelet/pod-resources/kubelet.sock")).await.unwrap();
        let mut client = PodResourcesListerClient::new(channel);
        let list = client.list(ListPodResourcesRequest {}).await.unwrap().into_inner();
        let listed = &list.pod_resources[0];
        assert_eq!(listed.containers[0].devices[0].device_ids, ["c", "b"]);
        let get = GetPodResourcesRequest { pod_name: "one".into(), pod_namespace: "default".into() };
        let got = client.get(get).await.unwrap().into_inner();
        assert_eq!(got.pod_resources.as_ref(), Some(listed));
        let checkpoint =
            std::fs::read(node.path("kubelet/device-plugins/kubelet_internal_checkpoint")).unwrap();
        let checkpoint: serde_json::Value = serde_json::from_slice(&checkpoint).unwrap();
        let entry = &checkpoint["Data"]["PodDeviceEntries"][0];
        assert_eq!((entry["PodUID"].as_str(), &entry["DeviceIDs"]["-1"]), (Some(&*uid), &json!(["c", "b"])));

        // One is left, two are wanted.
        node.create("two", 2, "true").await;
        let message = node.cluster.wait_unschedulable("two").await.unwrap();
        assert_eq!(message, format!("0/1 nodes are available: 1 Insufficient {RESOURCE}."));

        node.cluster.delete_pod("one").await.unwrap();
        assert!(node.log("one", &uid).contains("bye"), "SIGTERM came first");
        eventually("the second pod to run and end", async || {
            let status = node.cluster.pod("two").await.unwrap().status.unwrap_or_default();
            status.phase.as_deref() == Some("Succeeded")
        })
        .await;
        node.cluster.delete_pod("two").await.unwrap();
        // A pod that has ended leaves the API at once, and the node soon after.
        for folder in ["netns", "cni/results", "state/sandboxes", "state/containers"] {
            eventually(&format!("{folder} to be empty"), async || names(&node.path(folder)).is_empty()).await;
        }
        drop(plugin);
    });
}

#[test]
fn a_restarted_kubelet_finds_its_pods_and_waits_for_its_plugins() {
    in_own_network(async {
        let node = Node::start().await;
        let register = async |node: &Node| {
            let socket = node.path("kubelet/device-plugins/things.sock");
            let plugin = serve(&socket);
            let kubelet =
                kubelet_api::connect(&node.path("kubelet/device-plugins/kubelet.sock")).await.unwrap();
            let request = RegisterRequest {
                version: VERSION.into(),
                endpoint: "things.sock".into(),
                resource_name: RESOURCE.into(),
                options: None,
            };
            RegistrationClient::new(kubelet).register(request).await.unwrap();
            plugin
        };
        let plugin = register(&node).await;
        node.cluster.wait_allocatable(RESOURCE, 3).await.unwrap();
        let uid = node.create("one", 1, "echo $$; sleep 1000").await;
        node.cluster.wait_running("one").await.unwrap();
        eventually("the log", async || !node.log("one", &uid).is_empty()).await;

        let node = node.restart_kubelet().await;
        assert!(!node.path("kubelet/device-plugins/things.sock").exists(), "sockets are removed");
        assert_eq!(node.cluster.node_resource(RESOURCE).await.unwrap(), (0, 0), "known, and not there");
        drop(plugin);
        let plugin = register(&node).await;
        node.cluster.wait_allocatable(RESOURCE, 3).await.unwrap();
        node.create("two", 2, "sleep 1000").await;
        node.cluster.wait_running("two").await.unwrap();
        node.create("three", 1, "true").await;
        node.cluster.wait_unschedulable("three").await.unwrap();
        assert_eq!(node.log("one", &uid).lines().count(), 1, "the first pod was not started again");

        // Without its plugin the resource first loses its devices, and is then forgotten.
        drop(plugin);
        node.cluster.wait_allocatable(RESOURCE, 0).await.unwrap();
        eventually("the resource to be forgotten", async || {
            node.cluster.node_resource(RESOURCE).await.unwrap() == (0, 0)
        })
        .await;
        for pod in ["one", "two", "three"] {
            node.cluster.delete_pod(pod).await.unwrap();
        }
    });
}

#[test]
fn a_network_that_fails_is_an_event_and_is_tried_again() {
    in_own_network(async {
        let node = Node::start().await;
        let conf = node.path("net.d/10-net.conflist");
        let good = std::fs::read(&conf).unwrap();
        std::fs::write(&conf, r#"{"cniVersion":"0.4.0","name":"net","plugins":[{"type":"absent"}]}"#)
            .unwrap();
        let uid = node.create("one", 0, "sleep 1000").await;
        let message =
            node.cluster.wait_warning("one", &uid, |message| message.contains("absent")).await.unwrap();
        assert!(
            message.starts_with("Failed to create pod sandbox: rpc error: code = Unknown desc = "),
            "{message}"
        );

        std::fs::write(&conf, good).unwrap();
        node.cluster.wait_running("one").await.unwrap();
        node.cluster.delete_pod("one").await.unwrap();
        assert_eq!(names(&node.path("netns")), [""; 0], "no sandbox is left");
    });
}

#[test]
fn what_a_killed_run_left_is_removed() {
    in_own_network(async {
        let node = Node::start().await;
        node.create("one", 0, "sleep 1000").await;
        node.cluster.wait_running("one").await.unwrap();
        assert_eq!(names(&node.path("netns")).len(), 1);

        // A second runtime on the same folder is what the next run starts with.
        let runtime = Runtime::start(paths(node.folder.path())).await.unwrap();
        assert!(runtime.pods().is_empty());
        for folder in ["netns", "cni/results"] {
            assert_eq!(names(&node.path(folder)), [""; 0], "{folder}");
        }
        let leases: Vec<String> =
            names(&node.path("ipam/net")).into_iter().filter(|name| name.starts_with("10.")).collect();
        assert_eq!(leases, [""; 0]);
    });
}
