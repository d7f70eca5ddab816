//! The program as a whole, on a fake sysfs and with directories of its own.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use host::sysfs::fake::FakeSysfs;
use kubelet_api::deviceplugin::device_plugin_client::DevicePluginClient;
use kubelet_api::deviceplugin::{AllocateRequest, ContainerAllocateRequest, Empty, ListAndWatchResponse};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tonic::Streaming;

const SOON: Duration = Duration::from_secs(10);

struct Node {
    fake: FakeSysfs,
    directory: TempDir,
}

impl Node {
    /// A PF with two VFs, one for each kind of driver.
    fn new() -> Self {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:00.0").driver("igb").netdev("ens1f0").sriov(7);
        let node = Self { fake, directory: tempfile::tempdir().unwrap() };
        node.add_vf(0, "igbvf");
        node.add_vf(1, "vfio-pci");
        fs::create_dir_all(node.path("kubelet/plugins_registry")).unwrap();
        node
    }

    fn add_vf(&self, number: u32, driver: &str) {
        self.fake.pci(&format!("0000:3b:10.{number}")).vf_of("0000:3b:00.0", number).driver(driver);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a new file in the place of the configuration, as kubelet does with a ConfigMap.
    fn configure(&self, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("config.json")).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sriov-device-plugin"));
        for (flag, path) in [
            ("-config-file", self.path("config.json")),
            ("-sysfs-root", self.fake.root().to_owned()),
            ("-dev-root", self.path("dev")),
            ("-kubelet-root", self.path("kubelet")),
            ("-device-info-dir", self.path("devinfo")),
        ] {
            command.arg(flag).arg(path);
        }
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The program in a network namespace of its own, where nothing happens but what [`Plugin::announce`] says.
    fn isolated(&self) -> Command {
        let plain = self.command(&[]);
        let mut command = Command::new("unshare");
        command.arg("--net").arg(plain.get_program()).args(plain.get_args());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn socket(&self, resource: &str) -> PathBuf {
        self.path("kubelet/plugins_registry").join(format!("intel.com_{resource}.sock"))
    }

    async fn list(&self, resource: &str) -> List {
        let socket = self.socket(resource);
        until(|| socket.exists()).await;
        let mut client = DevicePluginClient::new(kubelet_api::connect(&socket).await.unwrap());
        List(client.list_and_watch(Empty {}).await.unwrap().into_inner())
    }
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, wait).await.unwrap();
}

/// A list as kubelet gets it.
struct List(Streaming<ListAndWatchResponse>);

impl List {
    async fn next(&mut self) -> Vec<String> {
        let list = timeout(SOON, self.0.message()).await.unwrap().unwrap().unwrap();
        list.devices.into_iter().map(|device| format!("{} {}", device.id, device.health)).collect()
    }

    /// The next list of so many devices.
    async fn until(&mut self, count: usize) -> Vec<String> {
        loop {
            let list = self.next().await;
            if list.len() == count {
                return list;
            }
        }
    }
}

struct Plugin(Child);

impl Plugin {
    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Has the kernel tell it of an event of a function of the fake tree.
    fn announce(&self, action: &str, address: &str, below: &str, subsystem: &str) {
        let netns = host::Netns::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        let devpath = format!("/devices/pci0000:00/{address}{below}");
        netns.run(|| host::uevent::pretend(action, &devpath, subsystem)).unwrap().unwrap();
    }

    /// Stops it as a container runtime does; its log.
    fn stop(mut self) -> String {
        self.signal("-TERM");
        assert!(self.0.wait().unwrap().success());
        std::io::read_to_string(self.0.stderr.take().unwrap()).unwrap()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const CONFIG: &str =
    r#"{"resourceList": [{"resourceName": "vfs", "selectors": {"pfNames": ["ens1f0#0-6"]}}]}"#;

#[tokio::test]
async fn vfs_that_come_and_go_reach_kubelet() {
    let node = Node::new();
    node.configure(CONFIG);
    let plugin = Plugin(node.command(&[]).spawn().unwrap());
    let mut list = node.list("vfs").await;
    assert_eq!(list.next().await, ["0000:3b:10.0 Healthy", "0000:3b:10.1 Healthy"]);
    node.add_vf(2, "igbvf");
    // A fake sysfs sends no events; SIGHUP looks at everything.
    plugin.signal("-HUP");
    assert_eq!(list.next().await.len(), 3);
    node.fake.remove("0000:3b:10.1");
    node.fake.pci("0000:3b:00.0").net_attribute("ens1f0", "carrier", "0");
    plugin.signal("-HUP");
    assert_eq!(list.next().await, ["0000:3b:10.0 Unhealthy", "0000:3b:10.2 Unhealthy"]);
    let log = plugin.stop();
    assert!(log.contains("the PF has no carrier"), "{log}");
    assert!(!node.socket("vfs").exists());
    assert!(list.0.message().await.is_ok_and(|end| end.is_none()), "the stream ends in order");
}

#[tokio::test]
async fn events_alone_keep_the_list_true() {
    let node = Node::new();
    node.configure(r#"{"resourceList": [{"resourceName": "vfs", "selectors": {"drivers": ["igbvf"], "pfNames": ["ens1f0"]}}]}"#);
    let plugin = Plugin(node.isolated().spawn().unwrap());
    let mut list = node.list("vfs").await;
    assert_eq!(list.next().await, ["0000:3b:10.0 Healthy"]);
    let pf = "0000:3b:00.0";
    // numvfs 2 -> 0 -> 7
    for number in 0..2 {
        node.fake.remove(&format!("0000:3b:10.{number}"));
        plugin.announce("remove", &format!("0000:3b:10.{number}"), "", "pci");
    }
    assert_eq!(list.next().await, [""; 0]);
    for number in 0..7 {
        node.add_vf(number, "igbvf");
        plugin.announce("bind", &format!("0000:3b:10.{number}"), "", "pci");
    }
    assert_eq!(list.until(7).await[6], "0000:3b:10.6 Healthy");
    node.fake.pci("0000:3b:10.6").driver("vfio-pci");
    plugin.announce("bind", "0000:3b:10.6", "", "pci");
    assert_eq!(list.next().await.len(), 6);
    node.fake.pci(pf).net_attribute("ens1f0", "carrier", "0");
    plugin.announce("change", pf, "/net/ens1f0", "net");
    assert!(list.next().await.iter().all(|device| device.ends_with("Unhealthy")));
    let net = node.fake.root().join("devices/pci0000:00").join(pf).join("net/ens1f0");
    fs::remove_dir_all(net).unwrap();
    fs::remove_file(node.fake.root().join("class/net/ens1f0")).unwrap();
    node.fake.pci(pf).netdev("wan0");
    plugin.announce("move", pf, "/net/wan0", "net");
    assert_eq!(list.next().await, [""; 0], "no PF has the name that the pool asks for");
    plugin.stop();
}

#[tokio::test]
async fn a_new_configuration_takes_effect_and_a_bad_one_does_not() {
    let node = Node::new();
    node.configure(CONFIG);
    let plugin = Plugin(node.command(&[]).spawn().unwrap());
    let mut vfs = node.list("vfs").await;
    assert_eq!(vfs.next().await.len(), 2);
    node.configure(
        r#"{"resourceList": [{"resourceName": "dpdk", "selectors": {"drivers": ["vfio-pci"]}},
        {"resourceName": "vfs"}]}"#,
    );
    assert_eq!(vfs.next().await, ["0000:3b:10.0 Healthy"]);
    let mut dpdk = node.list("dpdk").await;
    assert_eq!(dpdk.next().await, ["0000:3b:10.1 Healthy"]);
    node.configure(r#"{"resourceList": 5}"#);
    sleep(Duration::from_millis(500)).await;
    assert!(node.socket("dpdk").exists() && node.socket("vfs").exists());
    node.configure(CONFIG);
    assert_eq!(vfs.next().await.len(), 2);
    let gone = node.socket("dpdk");
    until(|| !gone.exists()).await;
    let log = plugin.stop();
    assert!(log.contains("keeping the old configuration") && log.contains("config.json:1:18"), "{log}");
}

#[tokio::test]
async fn no_devices_and_no_pools_are_no_reason_to_end() {
    let node = Node::new();
    node.configure(r#"{"resourceList": null}"#);
    let plugin = Plugin(node.command(&[]).spawn().unwrap());
    sleep(Duration::from_millis(300)).await;
    node.configure(r#"{"resourceList": [{"resourceName": "none", "selectors": {"vendors": ["ffff"]}}]}"#);
    let mut list = node.list("none").await;
    assert_eq!(list.next().await, [""; 0]);
    plugin.stop();
}

#[tokio::test]
async fn what_a_killed_process_left_is_tidied_up() {
    let node = Node::new();
    node.configure(r#"{"resourceList": [{"resourceName": "old"}]}"#);
    let mut killed = Plugin(node.command(&[]).spawn().unwrap());
    node.list("old").await.next().await;
    killed.signal("-KILL");
    killed.0.wait().unwrap();
    assert!(node.socket("old").exists());
    node.configure(CONFIG);
    let plugin = Plugin(node.command(&[]).spawn().unwrap());
    assert_eq!(node.list("vfs").await.next().await.len(), 2);
    assert!(!node.socket("old").exists());
    plugin.stop();
}

#[tokio::test]
async fn many_changes_leave_nothing_behind() {
    let node = Node::new();
    node.configure(CONFIG);
    let plugin = Plugin(node.command(&[]).spawn().unwrap());
    let process = PathBuf::from(format!("/proc/{}", plugin.0.id()));
    let files = || fs::read_dir(process.join("fd")).unwrap().count();
    let resident = || -> usize {
        let pages = fs::read_to_string(process.join("statm")).unwrap();
        pages.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let mut list = node.list("vfs").await;
    list.next().await;
    let mut start = None;
    for round in 0..60 {
        node.add_vf(2, "igbvf");
        plugin.signal("-HUP");
        assert_eq!(list.next().await.len(), 3);
        node.fake.remove("0000:3b:10.2");
        plugin.signal("-HUP");
        assert_eq!(list.next().await.len(), 2);
        // kubelet restarts: it listens anew.
        if round % 10 == 0 {
            list = node.list("vfs").await;
            list.next().await;
        }
        // The first rounds fill caches.
        if round == 20 {
            start = Some((files(), resident()));
        }
    }
    let (first_files, first_resident) = start.unwrap();
    until(|| files() <= first_files).await;
    let grown = resident().saturating_sub(first_resident);
    assert!(grown < 64, "{grown} pages more than {first_resident}");
    plugin.stop();
}

#[tokio::test]
async fn health_metrics_and_devices_can_be_asked_for() {
    let node = Node::new();
    node.configure(CONFIG);
    let address = node.path("status.sock");
    let flag = format!("-status-address=unix:{}", address.display());
    let plugin = Plugin(node.command(&[&flag]).spawn().unwrap());
    let get = |path: &str| {
        let mut stream = UnixStream::connect(&address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    until(|| address.exists() && node.socket("vfs").exists()).await;
    assert!(get("/healthz").starts_with("HTTP/1.1 200 "));
    let unready = get("/readyz");
    assert!(unready.starts_with("HTTP/1.1 503 "), "{unready}");
    assert!(unready.contains("kubelet does not listen to intel.com/vfs"), "{unready}");
    assert!(get("/elsewhere").starts_with("HTTP/1.1 404 "));

    let mut list = node.list("vfs").await;
    list.next().await;
    until(|| get("/readyz").starts_with("HTTP/1.1 200 ")).await;
    let mut client = DevicePluginClient::new(kubelet_api::connect(&node.socket("vfs")).await.unwrap());
    for id in ["0000:3b:10.0", "0000:3b:10.6"] {
        let container = ContainerAllocateRequest { devices_ids: vec![id.to_owned()] };
        let _ = client.allocate(AllocateRequest { container_requests: vec![container] }).await;
    }
    node.configure(r#"{"resourceList": 5}"#);
    until(|| get("/metrics").contains("sriov_device_plugin_config_stale 1\n")).await;
    let metrics = get("/metrics");
    for line in [
        "sriov_device_plugin_pools 1",
        "sriov_device_plugin_devices{resource=\"intel.com/vfs\",health=\"healthy\"} 2",
        "sriov_device_plugin_devices_held{resource=\"intel.com/vfs\"} 0",
        "sriov_device_plugin_allocate_duration_seconds_count{resource=\"intel.com/vfs\"} 2",
        "sriov_device_plugin_allocate_failures_total{resource=\"intel.com/vfs\"} 1",
        "sriov_device_plugin_kubelet_listeners{resource=\"intel.com/vfs\"} 1",
        "sriov_device_plugin_config_reload_failures_total 1",
        "# TYPE sriov_vf_rx_bytes counter",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
    assert!(get("/debug/devices").contains("├─ #0  0000:3b:10.0  igbvf  8086:10ca  -> intel.com/vfs"));
    assert!(get("/debug/devices?output=json").contains("\"id\": \"0000:3b:10.1\""));
    plugin.stop();
}

#[test]
fn what_is_wrong_at_the_start_is_said_in_one_line() {
    let node = Node::new();
    let said = |arguments: &[&str], code: i32| {
        let output = node.run(arguments);
        assert_eq!(output.status.code(), Some(code));
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = said(&[], 1);
    assert!(missing.contains("config.json: No such file") && missing.lines().count() == 1, "{missing}");
    node.configure("{\n  \"resourceList\": [{\"resourceName\": \"a b\"}]\n}");
    let bad = said(&[], 1);
    assert!(bad.contains("config.json:2:37: resourceList[0].resourceName"), "{bad}");
    assert!(said(&["--no-such-flag"], 2).contains("--no-such-flag is not defined"));
}

#[test]
fn reports_go_to_standard_output() {
    let node = Node::new();
    node.configure(CONFIG);
    let text = |output: Output| String::from_utf8(output.stdout).unwrap();
    let explained = text(node.run(&["-explain"]));
    assert!(explained.contains("├─ #0  0000:3b:10.0  igbvf  8086:10ca  -> intel.com/vfs"), "{explained}");
    let json = text(node.run(&["-explain", "-output", "json"]));
    assert_eq!(json.matches("\"id\": \"0000:3b:10.1\"").count(), 1, "{json}");
    assert_eq!(node.run(&["-check-config"]).status.code(), Some(0));
    node.configure(r#"{"resourceList": [{"resourceName": "a", "selector": {}}]}"#);
    let checked = node.run(&["-check-config"]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(text(checked).contains("config.json:1:53: resourceList[0].selector: unknown key"));
    assert!(text(node.run(&["-version"])).starts_with("sriov-device-plugin "));
    assert!(text(node.run(&["-help"])).contains("-config-file"));
}

/// A DDP package is known to `ddptool` alone here, as with most X710; the tool is asked once for all VFs of a PF.
#[tokio::test]
async fn a_ddp_profile_selects_vfs() {
    let node = Node::new();
    node.add_vf(2, "igbvf");
    node.configure(
        r#"{"resourceList": [
            {"resourceName": "gtp", "selectors": {"drivers": ["igbvf"], "ddpProfiles": ["GTPv1-C/U IPv4/IPv6 payload"]}},
            {"resourceName": "pppoe", "selectors": {"drivers": ["igbvf"], "ddpProfiles": ["E710 PPPoE and PPPoL2TPv2"]}}]}"#,
    );
    fs::create_dir(node.path("bin")).unwrap();
    let tool = |name: &str| {
        let (calls, tool) = (node.path("calls"), node.path("bin/ddptool"));
        let answer = format!(r#"{{"DDPInventory": {{"DDPpackage": {{"name": "{name}"}}}}}}"#);
        let script = format!("#!/bin/sh\necho \"$@\" >>{}\necho '{answer}'\n", calls.display());
        fs::write(&tool, script).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    };
    tool("GTPv1-C/U IPv4/IPv6 payload");
    let path = format!("{}:{}", node.path("bin").display(), std::env::var("PATH").unwrap());
    let explained = node.command(&["-explain"]).env("PATH", &path).output().unwrap();
    let explained = String::from_utf8(explained.stdout).unwrap();
    for line in [
        "├─ #0  0000:3b:10.0  igbvf  8086:10ca  DDP \"GTPv1-C/U IPv4/IPv6 payload\"  -> intel.com/gtp",
        "├─ #1  0000:3b:10.1  vfio-pci  8086:10ca\n",
    ] {
        assert!(explained.contains(line), "{explained}");
    }
    assert_eq!(fs::read_to_string(node.path("calls")).unwrap(), "-l -a -j -s 0000:3b:10.0\n");

    let plugin = Plugin(node.command(&[]).env("PATH", &path).spawn().unwrap());
    let (mut gtp, mut pppoe) = (node.list("gtp").await, node.list("pppoe").await);
    assert_eq!((gtp.next().await.len(), pppoe.next().await.len()), (2, 0));
    // Another package was loaded: no event, but the next look at everything finds it.
    tool("E710 PPPoE and PPPoL2TPv2");
    plugin.signal("-HUP");
    assert_eq!((gtp.next().await.len(), pppoe.next().await.len()), (0, 2));
    plugin.stop();
}
