//! kubelet's side of the device plugin interface, as far as a plugin can tell.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kubelet_api::deviceplugin::device_plugin_client::DevicePluginClient;
use kubelet_api::deviceplugin::registration_server::{Registration, RegistrationServer};
use kubelet_api::deviceplugin::{Empty, RegisterRequest};
use kubelet_api::registration::registration_client::RegistrationClient;
use kubelet_api::registration::{InfoRequest, RegistrationStatus};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use crate::places::Places;

/// How long anything that must happen may take.
const SOON: Duration = Duration::from_secs(10);

/// The last list of each resource, one line for each device: `<id> <health>`.
type Lists = BTreeMap<String, Vec<String>>;

/// A kubelet; stops when dropped, and its streams with it.
pub(super) struct FakeKubelet {
    state: State,
    _stop: DropGuard,
}

#[derive(Clone)]
struct State {
    places: Places,
    stop: CancellationToken,
    lists: Arc<watch::Sender<Lists>>,
    requests: Arc<Mutex<Vec<RegisterRequest>>>,
    /// Ends the streams that listen now.
    streams: Arc<Mutex<CancellationToken>>,
    /// How many registrations are refused before the first is accepted.
    refusals: Arc<Mutex<usize>>,
}

impl FakeKubelet {
    /// Starts as kubelet does: empties the sockets' directory and listens there. `refusals` registrations fail.
    pub(super) fn start(places: &Places, refusals: usize) -> Self {
        let directory = places.device_plugins();
        std::fs::create_dir_all(&directory).unwrap();
        for entry in std::fs::read_dir(&directory).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let stop = CancellationToken::new();
        let state = State {
            places: places.clone(),
            stop: stop.clone(),
            lists: Arc::default(),
            requests: Arc::default(),
            streams: Arc::new(Mutex::new(stop.child_token())),
            refusals: Arc::new(Mutex::new(refusals)),
        };
        let listener = UnixListener::bind(places.registration_socket()).unwrap();
        tokio::spawn(
            Server::builder()
                .add_service(RegistrationServer::new(state.clone()))
                .serve_with_incoming_shutdown(
                    kubelet_api::incoming(listener),
                    stop.clone().cancelled_owned(),
                ),
        );
        tokio::spawn(state.clone().watch_plugins());
        Self { state, _stop: stop.drop_guard() }
    }

    /// Waits until the list of `resource` is `expected`.
    pub(super) async fn wait_for(&self, resource: &str, expected: &[&str]) {
        let mut lists = self.state.lists.subscribe();
        let reached = lists.wait_for(|lists| lists.get(resource).is_some_and(|list| list == expected));
        if timeout(SOON, reached).await.is_err() {
            panic!("{resource} is not {expected:?} but {:?}", self.state.lists.borrow());
        }
    }

    /// Breaks off all lists, as a kubelet in trouble does, and forgets them.
    pub(super) fn break_streams(&self) {
        let mut streams = self.state.streams.lock().unwrap();
        streams.cancel();
        *streams = self.state.stop.child_token();
        self.state.lists.send_modify(Lists::clear);
    }

    /// The calls of `Register`, in their order.
    pub(super) fn requests(&self) -> Vec<RegisterRequest> {
        self.state.requests.lock().unwrap().clone()
    }

    /// A client of the plugin behind `socket`.
    pub(super) async fn plugin(socket: PathBuf) -> DevicePluginClient<Channel> {
        DevicePluginClient::new(kubelet_api::connect(&socket).await.unwrap())
    }
}

impl State {
    fn refuses(&self) -> bool {
        let mut left = self.refusals.lock().unwrap();
        let refuses = *left > 0;
        *left = left.saturating_sub(1);
        refuses
    }

    /// Listens to a plugin until one of the two ends.
    fn listen(&self, resource: String, socket: PathBuf) {
        let lists = self.lists.clone();
        let stop = self.streams.lock().unwrap().clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let mut plugin = FakeKubelet::plugin(socket).await;
            plugin.get_device_plugin_options(Empty {}).await.unwrap();
            let mut stream = plugin.list_and_watch(Empty {}).await.unwrap().into_inner();
            while let Ok(Some(list)) = stream.message().await {
                let line =
                    |device: kubelet_api::deviceplugin::Device| format!("{} {}", device.id, device.health);
                let list = list.devices.into_iter().map(line).collect();
                lists.send_modify(|lists| drop(lists.insert(resource.clone(), list)));
            }
            lists.send_modify(|lists| drop(lists.remove(&resource)));
        }));
    }

    /// The plugin watcher: meets every socket that appears.
    async fn watch_plugins(self) {
        let mut met = BTreeMap::new();
        while !self.stop.is_cancelled() {
            for entry in std::fs::read_dir(self.places.plugins_registry()).into_iter().flatten().flatten() {
                let Ok(made) = entry.metadata().and_then(|file| file.modified()) else { continue };
                if met.insert(entry.path(), made) != Some(made) {
                    self.meet(entry.path()).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn meet(&self, socket: PathBuf) {
        let Ok(channel) = kubelet_api::connect(&socket).await else { return };
        let mut client = RegistrationClient::new(channel);
        let info = client.get_info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!(
            (info.r#type.as_str(), info.supported_versions),
            ("DevicePlugin", vec!["v1beta1".to_owned()])
        );
        assert_eq!(PathBuf::from(&info.endpoint), socket);
        let refused = self.refuses();
        let error = if refused { "not today" } else { "" }.to_owned();
        let status = RegistrationStatus { plugin_registered: !refused, error };
        client.notify_registration_status(status).await.unwrap();
        if !refused {
            self.listen(info.name, socket);
        }
    }
}

#[tonic::async_trait]
impl Registration for State {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        self.requests.lock().unwrap().push(request.clone());
        if self.refuses() {
            return Err(Status::unavailable("not today"));
        }
        self.listen(request.resource_name, self.places.device_plugins().join(request.endpoint));
        Ok(Response::new(Empty {}))
    }
}
