//! kubelet's device manager: plugins come and go, containers get devices, the checkpoint follows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kubelet_api::deviceplugin::ContainerAllocateResponse;
use tokio::sync::watch;
use tracing::{info, warn};

use super::checkpoint;
use super::devices::{Allocation, Count, Devices, choose};
use super::plugin::Plugin;
use super::tasks::Tasks;

/// The device manager of one kubelet.
#[derive(Debug)]
pub(super) struct DeviceManager {
    book: Mutex<Book>,
    admission: tokio::sync::Mutex<()>,
    checkpoint: PathBuf,
    grace: Duration,
    changed: watch::Sender<u64>,
    tasks: Tasks,
}

#[derive(Debug)]
struct Book {
    devices: Devices,
    plugins: BTreeMap<String, Connected>,
    serial: u64,
}

/// A plugin with the serial number of its registration: what an earlier one of the same resource still says does
/// not count.
#[derive(Clone, Debug)]
struct Connected {
    serial: u64,
    plugin: Plugin,
}

/// What a container gets for its devices, over all resources.
#[derive(Debug, Default)]
pub(super) struct Grant {
    /// Environment.
    pub(super) env: BTreeMap<String, String>,
    /// Device nodes: host path, path in the container.
    pub(super) devices: Vec<(PathBuf, PathBuf)>,
    /// Mounts: host path, path in the container, read-only.
    pub(super) mounts: Vec<(PathBuf, PathBuf, bool)>,
}

impl DeviceManager {
    /// A device manager that takes over the checkpoint in `folder`.
    ///
    /// A resource whose plugin is away for longer than `grace` disappears from the node.
    ///
    /// # Errors
    /// The checkpoint cannot be read.
    pub(super) fn new(folder: &Path, grace: Duration, tasks: Tasks) -> Result<Arc<DeviceManager>> {
        let checkpoint = folder.join(checkpoint::FILE);
        let devices = checkpoint::load(&checkpoint)?;
        let book = Book { devices, plugins: BTreeMap::new(), serial: 0 };
        let manager = DeviceManager {
            book: Mutex::new(book),
            admission: tokio::sync::Mutex::default(),
            checkpoint,
            grace,
            changed: watch::Sender::new(0),
            tasks,
        };
        Ok(Arc::new(manager))
    }

    /// Counts the changes of what the node offers.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What the node offers.
    pub(super) fn counts(&self) -> BTreeMap<String, Count> {
        self.book().devices.counts()
    }

    /// Reads the book under its lock.
    pub(super) fn with_devices<T>(&self, read: impl FnOnce(&Devices) -> T) -> T {
        read(&self.book().devices)
    }

    /// Dials the plugin of `resource` on `socket` and follows its devices until it goes away.
    ///
    /// # Errors
    /// The plugin cannot be reached.
    pub(super) async fn connect(self: &Arc<Self>, resource: &str, socket: &Path) -> Result<()> {
        let mut plugin = Plugin::dial(socket).await?;
        let mut stream = plugin.list_and_watch().await?;
        let serial = {
            let mut book = self.book();
            book.serial += 1;
            let connected = Connected { serial: book.serial, plugin };
            book.plugins.insert(resource.to_owned(), connected);
            book.serial
        };
        info!(resource, socket = %socket.display(), "device plugin registered");

        let manager = Arc::clone(self);
        let resource = resource.to_owned();
        self.tasks.spawn(async move {
            loop {
                let message = stream.message().await;
                let mut book = manager.book();
                if book.plugins.get(&resource).is_none_or(|connected| connected.serial != serial) {
                    return;
                }
                match message {
                    Ok(Some(list)) => book.devices.report(&resource, &list.devices),
                    ended => {
                        warn!(resource, ?ended, "device plugin gone");
                        book.plugins.remove(&resource);
                        book.devices.disconnect(&resource);
                        drop(book);
                        manager.publish();
                        manager.forget_later(resource);
                        return;
                    }
                }
                drop(book);
                manager.publish();
            }
        });
        Ok(())
    }

    /// The plugin of `resource` withdrew its socket.
    pub(super) fn withdraw(self: &Arc<Self>, resource: &str) {
        {
            let mut book = self.book();
            if book.plugins.remove(resource).is_none() {
                return;
            }
            book.devices.disconnect(resource);
        }
        self.publish();
        self.forget_later(resource.to_owned());
    }

    /// Gives the containers of a pod their devices, one container after the other: `wanted` lists container, whether
    /// it is an init container, resource and count.
    ///
    /// # Errors
    /// kubelet's words for the pod's status; what was given is taken back.
    pub(super) async fn admit(&self, pod: &str, wanted: &[Wanted]) -> Result<()> {
        // kubelet admits one pod at a time, so that no two of them are offered the same device.
        let _turn = self.admission.lock().await;
        let init = wanted.iter().filter(|wish| wish.init).map(|wish| wish.container.clone()).collect();
        for wish in wanted {
            if let Err(error) = self.allocate(pod, wish, &init).await {
                self.release(pod);
                return Err(error.context("Allocate failed, which is unexpected"));
            }
        }
        Ok(())
    }

    async fn allocate(&self, pod: &str, wish: &Wanted, init: &BTreeSet<String>) -> Result<()> {
        let Wanted { container, resource, count, .. } = wish;
        let (choice, connected) = {
            let book = self.book();
            if book.devices.holds(pod, container, resource) {
                // Admitted by the kubelet before this one.
                return Ok(());
            }
            let choice = book.devices.choice(pod, resource, *count, init).map_err(anyhow::Error::msg)?;
            (choice, book.plugins.get(resource).cloned())
        };
        let mut plugin = connected.with_context(|| format!("no device plugin serves {resource} now"))?.plugin;
        let preferred = plugin.preferred(&choice, *count).await?;
        let ids = choose(&choice, &preferred, *count);
        let response = plugin.allocate(&ids).await?;
        {
            let mut book = self.book();
            let ids = book.devices.by_numa_node(resource, &ids);
            book.devices.hold(Allocation {
                pod: pod.to_owned(),
                container: container.clone(),
                resource: resource.clone(),
                ids,
                response,
            });
        }
        self.write_checkpoint();
        Ok(())
    }

    /// What `container` of `pod` was given.
    pub(super) fn grant(&self, pod: &str, container: &str) -> Grant {
        let book = self.book();
        let mut grant = Grant::default();
        let held = book.devices.allocations().iter();
        for allocation in held.filter(|held| held.pod == pod && held.container == container) {
            let ContainerAllocateResponse { envs, mounts, devices, .. } = allocation.response.clone();
            grant.env.extend(envs);
            grant.devices.extend(devices.into_iter().map(|d| (d.host_path.into(), d.container_path.into())));
            let mounts =
                mounts.into_iter().map(|m| (m.host_path.into(), m.container_path.into(), m.read_only));
            grant.mounts.extend(mounts);
        }
        grant
    }

    /// Calls PreStartContainer where a plugin wants it.
    ///
    /// # Errors
    /// A plugin objects, or is gone.
    pub(super) async fn pre_start(&self, pod: &str, container: &str) -> Result<()> {
        let due: Vec<(Plugin, Vec<String>)> = {
            let book = self.book();
            let held = book.devices.allocations().iter();
            held.filter(|held| held.pod == pod && held.container == container)
                .filter_map(|held| {
                    let connected = book.plugins.get(&held.resource)?;
                    Some((connected.plugin.clone(), held.all_ids().cloned().collect()))
                })
                .collect()
        };
        for (mut plugin, ids) in due {
            plugin.pre_start(&ids).await.context("PreStartContainer")?;
        }
        Ok(())
    }

    /// The pod is gone; its devices are free.
    pub(super) fn release(&self, pod: &str) {
        self.book().devices.release(pod);
        self.publish();
    }

    /// Only the pods of these UIDs exist; what others held, which a checkpoint may still say, is free.
    pub(super) fn retain(&self, pods: &[String]) {
        self.book().devices.retain(pods);
        self.publish();
    }

    fn forget_later(self: &Arc<Self>, resource: String) {
        let manager = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::time::sleep(manager.grace).await;
            {
                let mut book = manager.book();
                if book.plugins.contains_key(&resource) {
                    return;
                }
                book.devices.forget(&resource);
            }
            manager.publish();
        });
    }

    fn publish(&self) {
        self.write_checkpoint();
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn write_checkpoint(&self) {
        // Under the lock, so that an older state never overwrites a newer one.
        let book = self.book();
        let written = checkpoint::encode(&book.devices)
            .and_then(|bytes| Ok(host::durable::replace(&self.checkpoint, &bytes)?));
        if let Err(error) = written {
            warn!("checkpoint {}: {error:#}", self.checkpoint.display());
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A container's wish for devices of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Container name.
    pub(super) container: String,
    /// Whether it is an init container, whose devices the later ones use again.
    pub(super) init: bool,
    /// Extended resource name.
    pub(super) resource: String,
    /// How many.
    pub(super) count: usize,
}
