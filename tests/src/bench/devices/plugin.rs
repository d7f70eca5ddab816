//! The plugin at work on a fake tree.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use host::Netns;
use kubelet_api::deviceplugin::device_plugin_client::DevicePluginClient;
use kubelet_api::deviceplugin::{Empty, ListAndWatchResponse};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tonic::Streaming;
use tonic::transport::Channel;

use super::super::thick::new_netns;
use super::tree::Tree;

/// How long the plugin may take for anything.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a look may let itself be waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a look at the devices took in, as the plugin's metrics have it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Extent {
    Everything,
    Some,
}

pub(super) struct Plugin {
    process: Child,
    /// In which nothing happens but what is announced.
    netns: Netns,
    folder: tempfile::TempDir,
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Plugin {
    pub(super) async fn start(programs: &Path, tree: &Tree) -> Result<Self> {
        // Where the plugin's files are on a node: in memory.
        let folder = tempfile::Builder::new().prefix("podrail-devices").tempdir_in("/run")?;
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("kubelet/plugins_registry"))?;
        let pools = [("netdevice", "igbvf"), ("vfio", "vfio-pci")]
            .map(|(name, driver)| json!({"resourceName": name, "selectors": {"drivers": [driver]}}));
        std::fs::write(path("config.json"), json!({"resourceList": pools}).to_string())?;
        let mut command = Command::new(programs.join("sriov-device-plugin"));
        for (flag, value) in [
            ("-config-file", path("config.json")),
            ("-sysfs-root", tree.root().to_owned()),
            ("-kubelet-root", path("kubelet")),
            ("-device-info-dir", path("devinfo")),
        ] {
            command.arg(flag).arg(value);
        }
        command.arg(format!("-status-address=unix:{}", path("status.sock").display()));
        command.env_clear().stdin(Stdio::null()).stderr(Stdio::null());
        let netns = new_netns()?;
        let process = netns.run(|| command.spawn())?.context("start sriov-device-plugin")?;
        let plugin = Self { process, netns, folder };
        let deadline = Instant::now() + LIMIT;
        for name in ["netdevice", "vfio"] {
            while plugin.connect(name).await.is_err() {
                ensure!(Instant::now() < deadline, "sriov-device-plugin does not serve in {LIMIT:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(plugin)
    }

    pub(super) async fn connect(&self, resource: &str) -> Result<Channel> {
        let name = format!("kubelet/plugins_registry/intel.com_{resource}.sock");
        Ok(kubelet_api::connect(&self.folder.path().join(name)).await?)
    }

    /// The list of network devices as kubelet gets it; the first one has been read.
    pub(super) async fn list(&self) -> Result<Streaming<ListAndWatchResponse>> {
        let mut client = DevicePluginClient::new(self.connect("netdevice").await?);
        let mut list = client.list_and_watch(Empty {}).await?.into_inner();
        list.message().await?.context("no list")?;
        Ok(list)
    }

    /// Asks for a look at everything.
    pub(super) fn ask_for_a_look(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.process.id())?), Signal::SIGHUP)?)
    }

    /// Announces a change of the device at `devpath` as the kernel does.
    pub(super) fn announce(&self, devpath: &str) -> Result<()> {
        let announced = self.netns.run(|| host::uevent::pretend("bind", devpath, "pci"))?;
        announced.context("have the kernel send a uevent")
    }

    /// How long the look took that `cause` leads to.
    pub(super) fn look(&self, extent: Extent, cause: impl Fn() -> Result<()>) -> Result<Duration> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let (count, sum) = self.looks(extent)?;
            cause()?;
            let patience = Instant::now() + PATIENCE;
            let mut now = (count, sum);
            while now.0 == count && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(20));
                now = self.looks(extent)?;
            }
            // A regular look at the same time adds one to the count, or takes the place of the other.
            if now.0 == count + 1 {
                return Ok(Duration::from_secs_f64((now.1 - sum).max(0.0)));
            }
            ensure!(Instant::now() < deadline, "the plugin did not look in {LIMIT:?}");
        }
    }

    /// How many looks there were, and seconds that they took together.
    fn looks(&self, extent: Extent) -> Result<(u64, f64)> {
        let label = match extent {
            Extent::Everything => "all",
            Extent::Some => "some",
        };
        let mut stream = UnixStream::connect(self.folder.path().join("status.sock"))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = |what: &str| {
            let name = format!("sriov_device_plugin_scan_duration_seconds_{what}{{devices=\"{label}\"}} ");
            text.lines()
                .find_map(|line| line.strip_prefix(&name))
                .map(str::to_owned)
                .with_context(|| format!("no {name}in the metrics"))
        };
        Ok((value("count")?.parse()?, value("sum")?.parse()?))
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.process.id())).join(name)
    }

    /// Resident memory in megabytes.
    pub(super) fn memory(&self) -> Result<f64> {
        let status = std::fs::read_to_string(self.proc("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes * 1024.0 / 1e6)
    }

    /// Time on a processor, of all threads that live.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        for thread in std::fs::read_dir(self.proc("task"))? {
            let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            let nanoseconds = text.split_whitespace().next().context("an empty schedstat")?.parse()?;
            total += Duration::from_nanos(nanoseconds);
        }
        Ok(total)
    }
}
