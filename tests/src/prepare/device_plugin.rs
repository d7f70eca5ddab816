//! The device plugin as a process of the node.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::vfio;

/// The resource of VFs with a kernel driver.
pub const NETDEVICE: &str = "intel.com/sriov_netdevice";
/// The resource of VFs that are bound to vfio-pci.
pub const VFIO: &str = "intel.com/sriov_dpdk";

/// Names of the program: ours, and its peer's.
const NAMES: [&str; 2] = ["sriov-device-plugin", "sriovdp"];
const CONFIG: &str = "/etc/pcidp/config.json";
/// Process ID of the last one that was started, for the run after a run that was killed.
const PID: &str = "/run/podrail/device-plugin.pid";
const LOG: &str = "/var/log/podrail/sriov-device-plugin.log";

/// A running device plugin; it ends with this value.
#[derive(Debug)]
pub struct DevicePlugin {
    program: PathBuf,
    child: Child,
}

impl DevicePlugin {
    /// Writes the configuration, with a pool for VFs with one of `drivers`, and starts the program.
    ///
    /// # Errors
    /// There is no such program, or it cannot be started.
    pub(super) fn start(programs: &Path, drivers: &[String]) -> Result<DevicePlugin> {
        let candidates = NAMES.map(|name| programs.join(name));
        let found = candidates.iter().find(|path| path.is_file());
        let program =
            found.with_context(|| format!("no program {} in {}", NAMES.join(" or "), programs.display()))?;
        end_leftover()?;
        write_config(Path::new(CONFIG), &config(drivers).to_string())?;
        Ok(DevicePlugin { program: program.clone(), child: spawn(program)? })
    }

    /// Where it logs.
    pub fn log(&self) -> &'static Path {
        Path::new(LOG)
    }

    /// Starts it anew after it has ended.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(&self.program)?;
        Ok(())
    }

    /// Ends it with `signal` and waits.
    ///
    /// # Errors
    /// It has ended already, or does not end in ten seconds.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the device plugin had ended before ({status}); see {LOG}");
        }
        kill(Pid::from_raw(i32::try_from(self.child.id())?), signal).context("signal the device plugin")?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the device plugin does not end on {signal}; see {LOG}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// It has; the text says how.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let how =
                    status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
                bail!("the device plugin has ended ({how}); see {LOG}")
            }
        }
    }

    /// Runs the program with another configuration file until it ends by itself; its exit status and output.
    ///
    /// # Errors
    /// It is still running after `patience`.
    pub fn try_config(&self, config: &Path, patience: Duration) -> Result<(ExitStatus, String)> {
        let folder = tempfile::tempdir()?;
        let output = folder.path().join("output");
        let log = fs::File::create(&output)?;
        let mut child = command(&self.program, config).stdout(log.try_clone()?).stderr(log).spawn()?;
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                let text = fs::read_to_string(&output).unwrap_or_default();
                bail!("the device plugin runs with {}: {text}", config.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        Ok((status, fs::read_to_string(&output)?))
    }

    /// What `-explain` says of every device, beside the running plugin.
    ///
    /// # Errors
    /// It fails, or says what cannot be understood.
    pub fn explain(&self) -> Result<Value> {
        let mut explain = command(&self.program, Path::new(CONFIG));
        let output = explain.args(["-explain", "-output", "json"]).output().context("run -explain")?;
        ensure!(output.status.success(), "-explain: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).context("decode what -explain says")
    }
}

impl Drop for DevicePlugin {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.end(Signal::SIGTERM).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Writes a configuration file.
///
/// # Errors
/// It cannot be written.
pub fn write_config(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("path without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn config(drivers: &[String]) -> Value {
    let short = |resource: &str| resource.split_once('/').map_or("", |(_, name)| name).to_owned();
    json!({"resourceList": [
        {"resourceName": short(NETDEVICE), "selectors": [{"drivers": drivers}]},
        {"resourceName": short(VFIO), "selectors": [{"drivers": [vfio::DRIVER]}]},
    ]})
}

fn spawn(program: &Path) -> Result<Child> {
    let folder = Path::new(LOG).parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let log =
        fs::OpenOptions::new().create(true).append(true).open(LOG).with_context(|| format!("open {LOG}"))?;
    let child = command(program, Path::new(CONFIG))
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    fs::create_dir_all("/run/podrail")?;
    fs::write(PID, child.id().to_string()).with_context(|| format!("write {PID}"))?;
    Ok(child)
}

/// Ends the device plugin of a run that was killed before it could do so itself.
fn end_leftover() -> Result<()> {
    let Ok(pid) = fs::read_to_string(PID) else { return Ok(()) };
    let pid: i32 = pid.trim().parse().with_context(|| format!("{PID} holds {pid:?}"))?;
    let process = Path::new("/proc").join(pid.to_string());
    // Another program may have the number by now.
    let is_plugin = || {
        let program = fs::read_link(process.join("exe")).unwrap_or_default();
        let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        NAMES.contains(&name.trim_end_matches(" (deleted)"))
    };
    if is_plugin() {
        kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("end device plugin {pid}"))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_plugin() {
            ensure!(Instant::now() < deadline, "device plugin {pid} of an earlier run does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

fn command(program: &Path, config: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("-config-file").arg(config).args(["-resource-prefix", "intel.com"]).stdin(Stdio::null());
    command
}
