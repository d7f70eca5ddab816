//! The running plugin, and kubelet's side of it.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kubelet_api::deviceplugin::Empty;
use kubelet_api::deviceplugin::device_plugin_client::DevicePluginClient;
use kubelet_api::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use kubelet_api::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse,
    PodResources,
};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// How long the plugin may take to start, and the list to become what it must be. What is wanted is a second; an
/// emulated machine proves nothing about that, least of all while others use its host.
const LIMIT: Duration = Duration::from_secs(90);

/// The running plugin with directories of its own; it ends with this value.
pub(crate) struct Plugin {
    process: Child,
    folder: tempfile::TempDir,
    held: Arc<Mutex<Vec<(String, String)>>>,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            let _ = writeln!(io::stderr(), "--- log of the plugin\n{log}---");
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Plugin {
    /// Starts it with `pools`, from a directory such as kubelet makes of a ConfigMap.
    pub(crate) fn start(pools: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["kubelet/plugins_registry", "kubelet/pod-resources", "config"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        symlink("..data/config.json", path("config/config.json")).unwrap();
        configure(&path("config"), &text(pools));
        let held = Arc::default();
        serve_pod_resources(&path("kubelet/pod-resources/kubelet.sock"), Arc::clone(&held));
        let mut command = Command::new(env!("CARGO_BIN_EXE_sriov-device-plugin"));
        for (flag, value) in [
            ("-config-file", path("config/config.json")),
            ("-kubelet-root", path("kubelet")),
            ("-device-info-dir", path("devinfo")),
        ] {
            command.arg(flag).arg(value);
        }
        command.arg(format!("-status-address=unix:{}", path("status.sock").display()));
        let log = fs::File::create(path("log")).unwrap();
        let process = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        Self { process, folder, held }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Exchanges the configuration as kubelet does when the ConfigMap has changed.
    pub(crate) fn configure(&self, pools: &Value) {
        self.configure_with(&text(pools));
    }

    pub(crate) fn configure_with(&self, text: &str) {
        configure(&self.path("config"), text);
    }

    /// Changes the configuration where no watch of its directory sees it, as with a file that is mounted by itself.
    pub(crate) fn configure_unseen(&self, pools: &Value) {
        fs::write(self.path("config/..data/config.json"), text(pools)).unwrap();
    }

    pub(crate) fn hang_up(&self) {
        let sent = Command::new("kill").args(["-HUP", &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// From now on a container has the device.
    pub(crate) fn hold(&self, resource: &str, device: &str) {
        self.held.lock().unwrap().push((resource.to_owned(), device.to_owned()));
    }

    /// Listens as kubelet does.
    pub(crate) async fn list(&self, resource: &str) -> List {
        let socket = self.path(&format!("kubelet/plugins_registry/intel.com_{resource}.sock"));
        let deadline = Instant::now() + LIMIT;
        while !socket.exists() {
            assert!(Instant::now() < deadline, "no socket {}", socket.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut client = DevicePluginClient::new(kubelet_api::connect(&socket).await.unwrap());
        let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
        let (sender, receiver) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Ok(Some(list)) = lists.message().await {
                let devices = list.devices.into_iter();
                let lines = devices.map(|device| format!("{} {}", device.id, device.health)).collect();
                sender.send_modify(|lists: &mut Vec<_>| lists.push((Instant::now(), lines)));
            }
        });
        List { resource: resource.to_owned(), lists: receiver }
    }

    /// The value of a metric.
    pub(crate) fn metric(&self, name: &str) -> String {
        let mut stream = UnixStream::connect(self.path("status.sock")).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {answer}")).to_owned()
    }
}

fn text(pools: &Value) -> String {
    json!({ "resourceList": pools }).to_string()
}

/// What kubelet's `AtomicWriter` does: a new directory, and a link to it that takes the place of the old one.
fn configure(directory: &Path, text: &str) {
    let data = directory.join("..data");
    let old = fs::read_link(&data).ok();
    let number = old.as_ref().and_then(|old| old.to_str()?.strip_prefix("..")?.parse().ok()).unwrap_or(0);
    let new = format!("..{}", number + 1);
    fs::create_dir(directory.join(&new)).unwrap();
    fs::write(directory.join(&new).join("config.json"), text).unwrap();
    symlink(&new, directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), &data).unwrap();
    if let Some(old) = old {
        fs::remove_dir_all(directory.join(old)).unwrap();
    }
}

/// A list as kubelet has it: all that came, and when.
pub(crate) struct List {
    resource: String,
    lists: watch::Receiver<Vec<(Instant, Vec<String>)>>,
}

impl List {
    /// Waits until the devices are all `health` and exactly these.
    pub(crate) async fn becomes(&mut self, situation: &str, devices: &[String], health: &str) {
        let lines: Vec<String> = devices.iter().map(|device| format!("{device} {health}")).collect();
        self.becomes_exactly(situation, &lines).await;
    }

    /// Waits until the list is `expected`, and tells how long that took from now: the kernel is done.
    pub(crate) async fn becomes_exactly(&mut self, situation: &str, expected: &[String]) {
        let done = Instant::now();
        let mut expected = expected.to_vec();
        expected.sort();
        let reached = self.lists.wait_for(|lists| lists.last().is_some_and(|(_, list)| *list == expected));
        let Ok(reached) = tokio::time::timeout(LIMIT, reached).await else {
            let lists = self.lists.borrow();
            panic!("{situation}: {} is {:?} and not {expected:?}", self.resource, lists.last());
        };
        let reached = reached.expect("the plugin ended the list");
        let took = reached.last().map_or(Duration::ZERO, |(at, _)| at.saturating_duration_since(done));
        let line = format!("{situation}: {} is true {} ms later", self.resource, took.as_millis());
        // Past the test harness, which shows only what a test that fails prints.
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// How many lists came.
    pub(crate) fn changes(&self) -> usize {
        self.lists.borrow().len()
    }

    /// Fails if the device was missing from any list.
    pub(crate) fn always_had(&self, device: &str) {
        for (_, list) in self.lists.borrow().iter() {
            assert!(list.iter().any(|line| line.starts_with(device)), "{device} is not in {list:?}");
        }
    }
}

/// kubelet's socket that tells which container holds what.
struct Lister(Arc<Mutex<Vec<(String, String)>>>);

fn serve_pod_resources(socket: &Path, held: Arc<Mutex<Vec<(String, String)>>>) {
    let listener = UnixListener::bind(socket).unwrap();
    let server = Server::builder().add_service(PodResourcesListerServer::new(Lister(held)));
    tokio::spawn(server.serve_with_incoming(kubelet_api::incoming(listener)));
}

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let held = self.0.lock().unwrap().clone();
        let devices = held.into_iter().map(|(resource, device)| ContainerDevices {
            resource_name: format!("intel.com/{resource}"),
            device_ids: vec![device],
            ..Default::default()
        });
        let container =
            ContainerResources { name: "app".into(), devices: devices.collect(), ..Default::default() };
        let pod =
            PodResources { name: "holder".into(), namespace: "default".into(), containers: vec![container] };
        Ok(Response::new(ListPodResourcesResponse { pod_resources: vec![pod] }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Err(Status::unimplemented("as kubelet 1.20 answers"))
    }

    async fn get(
        &self,
        _: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        Err(Status::unimplemented("as kubelet 1.20 answers"))
    }
}
