//! The plugin watcher: sockets that appear in `plugins_registry` are asked who they are.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kubelet_api::deviceplugin::VERSION;
use kubelet_api::registration::{
    DEVICE_PLUGIN, InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use tracing::warn;

use super::manager::DeviceManager;
use super::raw_call::unary;
use super::registration::is_extended_resource;

const GET_INFO: &str = "/pluginregistration.Registration/GetInfo";
const NOTIFY: &str = "/pluginregistration.Registration/NotifyRegistrationStatus";

/// How often the folder is looked at.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long a socket that failed is left alone, as by kubelet's reconciler.
const RETRY: Duration = Duration::from_millis(500);

/// A socket file; one that is removed and made again is another.
type Identity = (u64, i64, i64);

/// What became of a socket.
#[derive(Debug)]
enum Seen {
    /// It registered this resource.
    Registered(Identity, String),
    /// It failed then.
    Failed(Identity, Instant),
}

/// Follows `folder` until dropped.
pub(super) async fn watch(folder: PathBuf, manager: Arc<DeviceManager>) {
    let mut seen: BTreeMap<PathBuf, Seen> = BTreeMap::new();
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tick.tick().await;
        let present = sockets(&folder);
        seen.retain(|path, state| {
            let stays = match state {
                Seen::Registered(identity, _) | Seen::Failed(identity, _) => {
                    present.get(path) == Some(identity)
                }
            };
            if let (false, Seen::Registered(_, resource)) = (stays, state) {
                manager.withdraw(resource);
            }
            stays
        });
        for (path, identity) in present {
            let due = match seen.get(&path) {
                None => true,
                Some(Seen::Registered(..)) => false,
                Some(Seen::Failed(_, at)) => at.elapsed() > RETRY,
            };
            if due {
                let state = match register(&path, &manager).await {
                    Ok(resource) => Seen::Registered(identity, resource),
                    Err(error) => {
                        warn!("plugin registration: {error:#}");
                        Seen::Failed(identity, Instant::now())
                    }
                };
                seen.insert(path, state);
            }
        }
    }
}

fn sockets(folder: &Path) -> BTreeMap<PathBuf, Identity> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            let identity = (metadata.ino(), metadata.ctime(), metadata.ctime_nsec());
            metadata.file_type().is_socket().then(|| (entry.path(), identity))
        })
        .collect()
}

async fn register(socket: &Path, manager: &Arc<DeviceManager>) -> Result<String> {
    let info: PluginInfo = unary(socket, GET_INFO, &InfoRequest {}).await?;
    let connected = connect(socket, &info, manager).await;
    let error = connected.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
    let status = RegistrationStatus { plugin_registered: connected.is_ok(), error };
    unary::<RegistrationStatusResponse>(socket, NOTIFY, &status).await?;
    connected.map(|()| info.name)
}

async fn connect(socket: &Path, info: &PluginInfo, manager: &Arc<DeviceManager>) -> Result<()> {
    ensure!(
        info.r#type == DEVICE_PLUGIN,
        "plugin type {:?}: this kubelet has a handler for none",
        info.r#type
    );
    ensure!(
        info.supported_versions.iter().any(|version| version == VERSION),
        "versions {:?} without {VERSION}",
        info.supported_versions
    );
    ensure!(is_extended_resource(&info.name), "the ResourceName {:?} is invalid", info.name);
    let endpoint = if info.endpoint.is_empty() { socket } else { Path::new(&info.endpoint) };
    manager.connect(&info.name, endpoint).await.with_context(|| format!("register {}", info.name))
}
