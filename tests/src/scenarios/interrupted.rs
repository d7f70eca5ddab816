//! Programs that are killed while they work.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::inside::Inside;
use crate::pod::PodSpec;
use crate::prepare::NETDEVICE;
use crate::session::{Session, sriov};
use crate::wait::until;

/// How long the plugins may take to get to the IPAM plugin.
const STARTS: Duration = Duration::from_secs(60);

/// kill -9 of the SR-IOV plugin.
pub(super) async fn sriov_killed(session: &mut Session) -> Result<()> {
    killed(session, "sriov").await
}

/// kill -9 of Multus; the SR-IOV plugin is orphaned and goes on.
pub(super) async fn multus_killed(session: &mut Session) -> Result<()> {
    killed(session, "multus").await
}

/// kill -9 of the shim, as a runtime does that has waited long enough: nobody waits for the ADD any more.
pub(super) async fn shim_killed(session: &mut Session) -> Result<()> {
    killed(session, "multus-shim").await
}

/// Kills `program` while the VF is on its way; the pod has to run in the end, and everything to come back after it.
async fn killed(session: &mut Session, program: &str) -> Result<()> {
    let before = session.vfs().await?;
    let gate = Gate::install()?;
    let ipam = json!({"type": Gate::NAME, "addresses": [{"address": "10.56.100.50/24"}]});
    let config = sriov(100, &ipam);
    session.cluster.create_nad("gated", &config, Some(NETDEVICE)).await?;
    let spec = PodSpec::new(&format!("{program}-killed")).networks("gated").devices(NETDEVICE, 1);
    session.cluster.create_pod(&spec).await?;
    until(STARTS, "an ADD to reach the IPAM plugin", async || Ok(gate.reached().then_some(()))).await?;
    let killed = kill_all(&Path::new("/opt/cni/bin").join(program))?;
    ensure!(killed > 0, "no process of {program} was found during ADD");
    // The orphans of the killed process run on while the runtime already cleans up: both must agree in the end.
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(gate);

    session.cluster.wait_running(spec.name()).await?;
    let inside = Inside::find(&spec).await?;
    let (link, addresses) = inside.link("net1").await?;
    ensure!(link.up, "net1 is down");
    let addresses: Vec<String> = addresses.iter().map(|address| address.net.to_string()).collect();
    ensure!(addresses.iter().any(|net| net == "10.56.100.50/24"), "net1 has addresses {addresses:?}");
    session.cluster.delete_pod(spec.name()).await?;
    session.ensure_unchanged(&before).await
}

/// An IPAM plugin that is the static one, once it is let through.
///
/// The plugin stays installed, since a DEL may need it later; without its folder it lets everybody through.
struct Gate;

impl Gate {
    const NAME: &str = "podrail-gate";
    const FOLDER: &str = "/run/podrail/gate";

    fn install() -> Result<Gate> {
        let plugin = Path::new("/opt/cni/bin").join(Gate::NAME);
        let script = format!(
            "#!/bin/sh\n\
             if [ \"$CNI_COMMAND\" = ADD ] && [ -d {0} ]; then\n\
             \x20   touch {0}/reached\n\
             \x20   while [ -d {0} ]; do sleep 0.1; done\n\
             fi\n\
             exec /opt/cni/bin/static\n",
            Gate::FOLDER
        );
        fs::write(&plugin, script).with_context(|| format!("write {}", plugin.display()))?;
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755))?;
        fs::create_dir_all(Gate::FOLDER).with_context(|| format!("create {}", Gate::FOLDER))?;
        Ok(Gate)
    }

    fn reached(&self) -> bool {
        Path::new(Gate::FOLDER).join("reached").exists()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Gate::FOLDER);
    }
}

/// Kills every process that executes `program`; how many there were.
fn kill_all(program: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let executes = fs::read_link(entry.path().join("exe")).is_ok_and(|path| path == program);
        if executes && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
            count += 1;
        }
    }
    Ok(count)
}
