//! A node on which much happens, with the program under test.

use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use host::{Netlink, Netns};
use kubelet_api::deviceplugin::device_plugin_client::DevicePluginClient;
use kubelet_api::deviceplugin::{AllocateRequest, ContainerAllocateRequest, Empty, ListAndWatchResponse};
use tokio::time::{sleep, timeout};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::kubelet::{Kubelet, MOODS, Mood};
use crate::process::{Usage, usage, wake_ups};
use crate::random::Random;
use crate::tree::{Event, Tree};

/// How long the lists may take to be true: well below the time of the regular look, so that it cannot be of help.
const SOON: Duration = Duration::from_secs(15);

/// Configurations that take turns; the first is the one at rest. The last two cannot be used.
const CONFIGURATIONS: [&str; 5] = [
    r#"{"resourceList": [{"resourceName": "net", "selectors": {"drivers": ["igbvf"]}},
        {"resourceName": "dpdk", "selectors": {"drivers": ["vfio-pci"], "pfNames": ["ens1f0", "ens2f0#0-9"]}}]}"#,
    r#"{"resourceList": [{"resourceName": "net", "ignoreLink": true, "selectors": {"pfNames": ["ens1f0#0-15"]}},
        {"resourceName": "other", "selectors": {"drivers": ["other", "igbvf"]}}]}"#,
    r#"{"resourceList": null}"#,
    r#"{"resourceList": 5}"#,
    r#"{"resourceList": [{"resourceName": "net", "selectors": {"pfNames": ["a#0-"]}}]}"#,
];
/// The resources at rest.
const RESOURCES: [&str; 2] = ["net", "dpdk"];

/// What happened so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    uevents: u64,
    links: u64,
    configurations: u64,
    connections: u64,
    kubelets: u64,
    sockets: u64,
    requests: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uevents, links, configurations, connections, kubelets, sockets, requests } = self;
        write!(
            f,
            "{uevents} uevents, {links} link events, {configurations} configurations, {connections} connections of \
             kubelet, {kubelets} kubelets, sockets removed {sockets} times, {requests} requests"
        )
    }
}

pub(crate) struct Node {
    tree: Tree,
    folder: tempfile::TempDir,
    process: Child,
    netns: Netns,
    /// The kernel's own link events of the namespace.
    netlink: Netlink,
    kubelet: Option<Kubelet>,
    lists: Vec<Streaming<ListAndWatchResponse>>,
    counts: Counts,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            for line in tail.iter().rev() {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }
}

impl Node {
    pub(crate) async fn start() -> Self {
        let tree = Tree::new();
        let folder = tempfile::tempdir().unwrap();
        for name in ["kubelet/plugins_registry", "kubelet/device-plugins", "kubelet/pod-resources"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("config.json"), CONFIGURATIONS[0]).unwrap();
        let status = format!("-status-address=unix:{}", folder.path().join("status.sock").display());
        let mut command = Command::new("unshare");
        command.arg("--net").args(Self::command(&tree, folder.path(), "kubelet"));
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let process = command.arg(status).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let deadline = Instant::now() + SOON;
        while !folder.path().join("status.sock").exists() {
            assert!(Instant::now() < deadline, "the program does not start");
            sleep(Duration::from_millis(10)).await;
        }
        let netns = Netns::open(format!("/proc/{}/ns/net", process.id())).unwrap();
        let netlink = Netlink::connect_in(&netns).unwrap();
        let kubelet = Some(Kubelet::start(&folder.path().join("kubelet"), Mood::Answers));
        Self { tree, folder, process, netns, netlink, kubelet, lists: Vec::new(), counts: Counts::default() }
    }

    /// The program and its flags, with a directory of kubelet's own.
    fn command(tree: &Tree, folder: &std::path::Path, kubelet: &str) -> Vec<String> {
        let flag = |name: &str, path: PathBuf| format!("-{name}={}", path.display());
        vec![
            env!("CARGO_BIN_EXE_sriov-device-plugin").to_owned(),
            flag("config-file", folder.join("config.json")),
            flag("sysfs-root", tree.fake.root().to_owned()),
            flag("dev-root", folder.join("dev")),
            flag("kubelet-root", folder.join(kubelet)),
            flag("device-info-dir", folder.join("devinfo")),
        ]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Something happens.
    pub(crate) async fn happen(&mut self, random: &mut Random) {
        match random.below(24) {
            0..=6 => {
                let count = random.below(40) + 1;
                // With each event of a VF come those of its queues and of what stands on it.
                let events: Vec<Event> = (0..count)
                    .flat_map(|_| [self.tree.change_vf(random)].into_iter().chain((0..29).map(Tree::foreign)))
                    .collect();
                self.announce(&events);
            }
            7 | 8 => {
                let events = self.tree.change_numvfs(random);
                self.announce(&events);
            }
            9 => {
                let event = self.tree.change_carrier(random);
                self.announce(&[event]);
            }
            10 => {
                let event = self.tree.rename_pf(random);
                self.announce(&[event]);
            }
            11 => self.change_link().await,
            12 => self.configure(random.below(CONFIGURATIONS.len())),
            13 | 14 => self.listen(random).await,
            15 => self.lists.clear(),
            16 => self.remove_sockets(),
            17 => self.wipe(random).await,
            18 => {
                self.kubelet = None;
                self.kubelet = Some(Kubelet::start(&self.path("kubelet"), MOODS[random.below(3)]));
                self.counts.kubelets += 1;
            }
            19 => self.ask("/metrics", 5),
            20 => self.ask(["/debug/devices", "/debug/devices?output=json", "/readyz"][random.below(3)], 2),
            21 => self.call_badly(),
            22 => self.flood(random),
            _ => self.allocate(random).await,
        }
        sleep(Duration::from_millis(2)).await;
    }

    fn announce(&mut self, events: &[Event]) {
        let pretend = || {
            for (action, devpath, subsystem) in events {
                host::uevent::pretend(action, devpath, subsystem).unwrap();
            }
        };
        self.netns.run(pretend).unwrap();
        self.counts.uevents += events.len() as u64;
    }

    async fn change_link(&mut self) {
        for up in [true, false].repeat(10) {
            self.netlink.set_up(1, up).await.unwrap();
            self.counts.links += 1;
        }
    }

    fn configure(&mut self, which: usize) {
        fs::write(self.path("new"), CONFIGURATIONS[which]).unwrap();
        fs::rename(self.path("new"), self.path("config.json")).unwrap();
        if which == 0 {
            self.signal("-HUP");
        }
        self.counts.configurations += 1;
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success(), "the program has ended");
    }

    /// The sockets of the program that are there now.
    fn sockets(&self) -> Vec<PathBuf> {
        let directories = ["kubelet/plugins_registry", "kubelet/device-plugins"];
        let entries = directories.iter().flat_map(|name| fs::read_dir(self.path(name)).into_iter().flatten());
        let ours = |path: &PathBuf| path.to_string_lossy().contains("/intel.com_");
        entries.flatten().map(|entry| entry.path()).filter(ours).collect()
    }

    async fn client(&self, socket: &std::path::Path) -> Option<DevicePluginClient<Channel>> {
        Some(DevicePluginClient::new(kubelet_api::connect(socket).await.ok()?))
    }

    /// kubelet listens to one more socket; some of its streams it never reads.
    async fn listen(&mut self, random: &mut Random) {
        for socket in self.sockets() {
            let Some(mut client) = self.client(&socket).await else { continue };
            let Ok(list) = client.list_and_watch(Empty {}).await else { continue };
            self.lists.push(list.into_inner());
            self.counts.connections += 1;
        }
        while self.lists.len() > 6 {
            self.lists.swap_remove(random.below(self.lists.len()));
        }
        for list in self.lists.iter_mut().take(random.below(3)) {
            let _ = timeout(Duration::from_millis(1), list.message()).await;
        }
    }

    fn remove_sockets(&mut self) {
        for socket in self.sockets() {
            let _ = fs::remove_file(socket);
        }
        self.counts.sockets += 1;
    }

    /// kubelet's directories go; a kubelet makes them again, now and then without the one of the plugin watcher.
    async fn wipe(&mut self, random: &mut Random) {
        self.kubelet = None;
        for name in ["plugins_registry", "device-plugins"] {
            let _ = fs::remove_dir_all(self.path("kubelet").join(name));
        }
        sleep(Duration::from_millis(5)).await;
        // A socket may have been made while they went.
        fs::create_dir_all(self.path("kubelet/device-plugins")).unwrap();
        if random.below(2) == 0 {
            fs::create_dir_all(self.path("kubelet/plugins_registry")).unwrap();
        }
        self.kubelet = Some(Kubelet::start(&self.path("kubelet"), MOODS[random.below(3)]));
        self.counts.kubelets += 1;
        self.counts.sockets += 1;
    }

    fn ask(&mut self, path: &str, times: u64) {
        for _ in 0..times {
            let mut stream = UnixStream::connect(self.path("status.sock")).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
            // While kubelet hangs, an answer takes its time; then whoever asked is gone.
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let _ = stream.read_to_string(&mut String::new());
        }
        self.counts.requests += times;
    }

    /// Callers that hang up at once, or talk nonsense.
    fn call_badly(&mut self) {
        for socket in self.sockets().into_iter().chain([self.path("status.sock")]) {
            for text in ["", "GET /metrics HTT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0\0\0\0\0\0\0\0"] {
                let Ok(mut stream) = UnixStream::connect(&socket) else { continue };
                let _ = stream.write_all(text.as_bytes());
                self.counts.requests += 1;
            }
        }
    }

    /// Events that concern nobody; now and then so many, while the program does not run, that the kernel loses some.
    fn flood(&mut self, random: &mut Random) {
        let stopped = random.below(4) == 0;
        let count = if stopped { 12_000 } else { 500 };
        if stopped {
            self.signal("-STOP");
        }
        let event = self.tree.change_vf(random);
        let foreign: Vec<Event> = (0..count).map(Tree::foreign).collect();
        self.announce(&foreign);
        self.announce(&[event]);
        if stopped {
            self.signal("-CONT");
        }
    }

    async fn allocate(&mut self, random: &mut Random) {
        for socket in self.sockets() {
            let Some(mut client) = self.client(&socket).await else { continue };
            for _ in 0..3 {
                let id = format!("0000:3b:1{}.{}", random.below(5), random.below(8));
                let container = ContainerAllocateRequest { devices_ids: vec![id] };
                let call = client.allocate(AllocateRequest { container_requests: vec![container] });
                let _ = timeout(Duration::from_millis(200), call).await;
                self.counts.requests += 1;
            }
        }
    }

    /// Nothing happens any more: waits until the lists are what a process finds that looks for the first time.
    pub(crate) async fn rest(&mut self, seed: u64) {
        self.lists.clear();
        if !self.path("kubelet/plugins_registry").exists() {
            fs::create_dir_all(self.path("kubelet/plugins_registry")).unwrap();
        }
        self.kubelet = None;
        self.kubelet = Some(Kubelet::start(&self.path("kubelet"), Mood::Answers));
        self.configure(0);
        let fresh = self.fresh_lists().await;
        let deadline = Instant::now() + SOON;
        loop {
            let lists = self.lists_in("kubelet").await;
            if lists.as_ref() == Some(&fresh) {
                return;
            }
            assert!(Instant::now() < deadline, "seed {seed}: {lists:?} and not {fresh:?}, {}", self.counts);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The list of each resource as a process has it that has just been started.
    async fn fresh_lists(&self) -> Vec<Vec<String>> {
        fs::create_dir_all(self.path("fresh/plugins_registry")).unwrap();
        let command = Self::command(&self.tree, self.folder.path(), "fresh");
        let mut command =
            Command::new("unshare").arg("--net").args(command).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + SOON;
        let lists = loop {
            if let Some(lists) = self.lists_in("fresh").await {
                break lists;
            }
            assert!(Instant::now() < deadline, "a second process does not serve");
            sleep(Duration::from_millis(20)).await;
        };
        command.kill().unwrap();
        command.wait().unwrap();
        fs::remove_dir_all(self.path("fresh")).unwrap();
        lists
    }

    async fn lists_in(&self, kubelet: &str) -> Option<Vec<Vec<String>>> {
        let mut lists = Vec::new();
        for resource in RESOURCES {
            let socket = self.path(kubelet).join(format!("plugins_registry/intel.com_{resource}.sock"));
            let mut list = self.client(&socket).await?.list_and_watch(Empty {}).await.ok()?.into_inner();
            let list = timeout(SOON, list.message()).await.ok()?.ok()??;
            let devices = list.devices.into_iter();
            lists.push(devices.map(|device| format!("{} {}", device.id, device.health)).collect());
        }
        Some(lists)
    }

    /// What the program uses at rest, when what it had of the last calls is gone.
    pub(crate) async fn usage(&self) -> Usage {
        // Connections end when both sides have seen that they do.
        sleep(Duration::from_millis(300)).await;
        usage(self.process.id())
    }

    pub(crate) fn wake_ups(&self) -> u64 {
        wake_ups(self.process.id())
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Brings kubelet into a situation in which it is left.
    pub(crate) async fn arrange(&mut self, situation: &str) {
        self.lists.clear();
        self.kubelet = None;
        match situation {
            "kubelet listens" => {
                self.kubelet = Some(Kubelet::start(&self.path("kubelet"), Mood::Answers));
                self.listen(&mut Random::new(1)).await;
            }
            "kubelet is away" => fs::remove_dir_all(self.path("kubelet/plugins_registry")).unwrap(),
            "kubelet hangs" => self.kubelet = Some(Kubelet::start(&self.path("kubelet"), Mood::Hangs)),
            other => panic!("no situation {other}"),
        }
        sleep(Duration::from_secs(2)).await;
    }

    /// The program ends as a container runtime ends it.
    pub(crate) async fn stop(mut self) {
        self.signal("-TERM");
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(Instant::now() < deadline, "the program does not end");
            sleep(Duration::from_millis(20)).await;
        }
    }
}
