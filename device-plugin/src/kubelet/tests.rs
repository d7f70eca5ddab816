//! Endpoints and a fake kubelet, in both ways of registering.

use std::sync::Arc;
use std::time::Duration;

use host::sysfs::fake::FakeSysfs;
use kubelet_api::deviceplugin::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest, Empty,
    PreferredAllocationRequest,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::fake::FakeKubelet;
use super::{Endpoint, Granter, Patience};
use crate::allocations::Allocations;
use crate::config::parse;
use crate::device_info;
use crate::discovery::DefaultRoutes;
use crate::inventory::Inventory;
use crate::places::Places;
use crate::pool::{Pool, sort};
use crate::status::Metrics;

mod faults;

const RESOURCE: &str = "intel.com/vfs";
const ONE: [&str; 1] = ["0000:3b:10.0 Healthy"];
const TWO: [&str; 2] = ["0000:3b:10.0 Healthy", "0000:3b:10.1 Healthy"];

/// A node with a plugin for `intel.com/vfs`, whose kubelet is yet to start.
struct Node {
    fake: FakeSysfs,
    _directory: TempDir,
    places: Places,
    metrics: Arc<Metrics>,
    patience: Patience,
    pool: watch::Sender<Arc<Pool>>,
    stop: CancellationToken,
    plugin: Option<JoinHandle<()>>,
}

impl Node {
    fn new(watched: bool) -> Self {
        let ms = Duration::from_millis;
        let patience =
            Patience { retry: ms(20), retry_limit: ms(100), silence: ms(300), silence_limit: ms(300) };
        Self::with_patience(watched, patience)
    }

    fn with_patience(watched: bool, patience: Patience) -> Self {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:10.0").driver("igbvf");
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let places = Places {
            sysfs: fake.root().to_owned(),
            dev: root.join("dev"),
            kubelet: root.join("kubelet"),
            device_info: root.join("devinfo"),
            cdi: root.join("cdi"),
        };
        std::fs::create_dir_all(places.device_plugins()).unwrap();
        if watched {
            std::fs::create_dir(places.plugins_registry()).unwrap();
        }
        let pool = watch::Sender::new(Arc::new(pool(&fake)));
        let mut node = Self {
            fake,
            _directory: directory,
            places,
            metrics: Arc::default(),
            patience,
            pool,
            stop: CancellationToken::new(),
            plugin: None,
        };
        node.start_plugin();
        node
    }

    fn start_plugin(&mut self) {
        self.stop = CancellationToken::new();
        let endpoint = Endpoint {
            pool: self.pool.subscribe(),
            granter: Arc::new(Granter {
                metrics: self.metrics.clone(),
                sysfs: self.fake.sysfs(),
                places: self.places.clone(),
                device_info: device_info::Directory::new(self.places.device_info.clone()),
                cdi: None,
            }),
            patience: self.patience,
        };
        self.plugin = Some(tokio::spawn(endpoint.run(self.stop.clone())));
    }

    async fn stop_plugin(&mut self) {
        self.stop.cancel();
        timeout(Duration::from_secs(5), self.plugin.take().unwrap()).await.unwrap().unwrap();
    }

    /// The second VF appears.
    fn grow(&self) {
        self.fake.pci("0000:3b:10.1").driver("vfio-pci").iommu_group(7);
        self.pool.send_replace(Arc::new(pool(&self.fake)));
    }

    fn socket(&self) -> std::path::PathBuf {
        let name = "intel.com_vfs.sock";
        let watched = self.places.plugins_registry().join(name);
        if watched.exists() { watched } else { self.places.device_plugins().join(name) }
    }
}

fn pool(fake: &FakeSysfs) -> Pool {
    let (conf, _) = parse(r#"{"resourceList": [{"resourceName": "vfs"}]}"#, "intel.com").unwrap();
    let devices = Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices();
    sort(&conf, &devices, &Allocations::default()).remove(0)
}

#[tokio::test]
async fn the_list_reaches_kubelet_at_once_and_when_it_changes() {
    for watched in [true, false] {
        let node = Node::new(watched);
        let kubelet = FakeKubelet::start(&node.places, 0);
        kubelet.wait_for(RESOURCE, &ONE).await;
        node.grow();
        kubelet.wait_for(RESOURCE, &TWO).await;
        assert_eq!(kubelet.requests().len(), usize::from(!watched));
    }
}

#[tokio::test]
async fn the_registration_says_what_kubelet_wants_to_know() {
    let node = Node::new(false);
    let kubelet = FakeKubelet::start(&node.places, 0);
    kubelet.wait_for(RESOURCE, &ONE).await;
    let request = kubelet.requests().remove(0);
    assert_eq!(request.version, "v1beta1");
    assert_eq!((request.endpoint.as_str(), request.resource_name.as_str()), ("intel.com_vfs.sock", RESOURCE));
    assert!(request.options.unwrap().get_preferred_allocation_available);
}

#[tokio::test]
async fn every_listener_has_every_list() {
    let node = Node::new(true);
    let kubelet = FakeKubelet::start(&node.places, 0);
    kubelet.wait_for(RESOURCE, &ONE).await;
    let mut second = FakeKubelet::plugin(node.socket()).await;
    let mut second = second.list_and_watch(Empty {}).await.unwrap().into_inner();
    assert_eq!(second.message().await.unwrap().unwrap().devices.len(), 1);
    node.grow();
    kubelet.wait_for(RESOURCE, &TWO).await;
    assert_eq!(second.message().await.unwrap().unwrap().devices.len(), 2);
}

#[tokio::test]
async fn a_restarted_kubelet_finds_the_plugin_again() {
    for watched in [true, false] {
        let node = Node::new(watched);
        for _ in 0..3 {
            // Starting wipes the sockets; dropping breaks off the list.
            let kubelet = FakeKubelet::start(&node.places, 0);
            kubelet.wait_for(RESOURCE, &ONE).await;
        }
    }
}

#[tokio::test]
async fn a_refusal_is_not_the_end() {
    for watched in [true, false] {
        let node = Node::new(watched);
        let kubelet = FakeKubelet::start(&node.places, 3);
        kubelet.wait_for(RESOURCE, &ONE).await;
    }
}

#[tokio::test]
async fn a_lost_socket_is_made_anew() {
    for watched in [true, false] {
        let node = Node::new(watched);
        let kubelet = FakeKubelet::start(&node.places, 0);
        kubelet.wait_for(RESOURCE, &ONE).await;
        std::fs::remove_file(node.socket()).unwrap();
        node.grow();
        kubelet.wait_for(RESOURCE, &TWO).await;
    }
}

#[tokio::test]
async fn a_kubelet_that_does_not_listen_is_told_again() {
    for watched in [true, false] {
        let node = Node::new(watched);
        // Somebody asks for the list and hangs up, as a kubelet whose stream broke does.
        let kubelet = FakeKubelet::start(&node.places, 0);
        kubelet.wait_for(RESOURCE, &ONE).await;
        let registrations = kubelet.requests().len();
        kubelet.break_streams();
        kubelet.wait_for(RESOURCE, &ONE).await;
        assert_eq!(kubelet.requests().len() > registrations, !watched);
    }
}

#[tokio::test]
async fn the_registry_may_come_later() {
    let node = Node::new(false);
    let kubelet = FakeKubelet::start(&node.places, 0);
    kubelet.wait_for(RESOURCE, &ONE).await;
    std::fs::create_dir(node.places.plugins_registry()).unwrap();
    timeout(Duration::from_secs(5), async {
        while !node.places.plugins_registry().join("intel.com_vfs.sock").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(!node.places.device_plugins().join("intel.com_vfs.sock").exists());
}

#[tokio::test]
async fn stopping_removes_the_socket_and_starting_takes_a_stale_one() {
    for watched in [true, false] {
        let mut node = Node::new(watched);
        let kubelet = FakeKubelet::start(&node.places, 0);
        kubelet.wait_for(RESOURCE, &ONE).await;
        let socket = node.socket();
        node.stop_plugin().await;
        assert!(!socket.exists());
        // As kill -9 leaves it: a file that nobody serves.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        node.start_plugin();
        kubelet.wait_for(RESOURCE, &ONE).await;
    }
}

#[tokio::test]
async fn devices_are_given_out() {
    let node = Node::new(true);
    node.grow();
    let kubelet = FakeKubelet::start(&node.places, 0);
    kubelet.wait_for(RESOURCE, &TWO).await;
    let mut plugin = FakeKubelet::plugin(node.socket()).await;
    let request = |ids: &[&[&str]]| AllocateRequest {
        container_requests: ids
            .iter()
            .map(|ids| ContainerAllocateRequest {
                devices_ids: ids.iter().map(|&id| id.to_owned()).collect(),
            })
            .collect(),
    };
    let two_containers = request(&[&["0000:3b:10.0"], &["0000:3b:10.1"]]);
    let given = plugin.allocate(two_containers).await.unwrap().into_inner().container_responses;
    assert_eq!(given[0].envs["PCIDEVICE_INTEL_COM_VFS"], "0000:3b:10.0");
    assert_eq!(given[0].devices.len(), 0);
    let paths: Vec<&str> = given[1].devices.iter().map(|spec| spec.host_path.as_str()).collect();
    assert_eq!(paths, ["/dev/vfio/7", "/dev/vfio/vfio"]);
    let file = node.places.device_info.join("intel.com-vfs-0000:3b:10.1-device.json");
    assert!(std::fs::read_to_string(file).unwrap().contains("0000:3b:10.1"));

    let unknown = plugin.allocate(request(&[&["0000:3b:10.9"]])).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("0000:3b:10.9 is not in intel.com/vfs"), "{}", unknown.message());

    let preferred = plugin
        .get_preferred_allocation(PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_ids: vec!["0000:3b:10.1".to_owned(), "0000:3b:10.0".to_owned()],
                must_include_device_ids: Vec::new(),
                allocation_size: 1,
            }],
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(preferred.container_responses[0].device_ids, ["0000:3b:10.0"]);
}
