//! The files below `/var/lib/cni/sriov`: ours, and those that peers write and read.
//!
//! * `podrail/<BDF>.json`: our record of a VF, see [`crate::record`].
//! * `<containerID>-<ifname>`: the peers' cache of an attachment; to us an index from attachment to VF.
//! * `pci/<BDF>`: the peers' allocation mark, the path of the namespace that has the VF.
//! * `pci/vf_lock/<BDF>.lock`: the lock that all implementations take around work on a VF.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cni::Object;
use host::{FileLock, PciAddress, durable};
use tracing::warn;

use crate::error::Error;
use crate::record::Record;

/// As long as the peers wait.
const LOCK_LIMIT: Duration = Duration::from_secs(60);

/// The state directory.
#[derive(Debug, Clone)]
pub struct State {
    root: PathBuf,
}

/// A peer's cache file: the attachment's name, the content, when it was written.
pub(crate) struct PeerFile {
    pub(crate) name: String,
    pub(crate) content: Object,
    pub(crate) written: Option<SystemTime>,
}

impl State {
    /// State below `root`; nothing is read or made yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes the directories that are missing.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        durable::make_directory(&self.root.join("pci/vf_lock"))?;
        durable::make_directory(&self.records_directory())?;
        Ok(())
    }

    /// Takes the lock of a VF. It is held until the value is dropped, at the latest at process exit.
    pub(crate) fn lock(&self, device: PciAddress) -> Result<FileLock, Error> {
        let path = self.root.join("pci/vf_lock").join(format!("{device}.lock"));
        Ok(FileLock::acquire(&path, LOCK_LIMIT)?)
    }

    fn records_directory(&self) -> PathBuf {
        self.root.join("podrail")
    }

    fn record_path(&self, device: PciAddress) -> PathBuf {
        self.records_directory().join(format!("{device}.json"))
    }

    fn allocation_path(&self, device: PciAddress) -> PathBuf {
        self.root.join("pci").join(device.to_string())
    }

    fn cache_path(&self, container_id: &str, ifname: &str) -> PathBuf {
        self.root.join(format!("{container_id}-{ifname}"))
    }

    /// The record of a VF.
    pub(crate) fn record(&self, device: PciAddress) -> Result<Option<Record>, Error> {
        let path = self.record_path(device);
        let Some(json) = durable::read(&path)? else { return Ok(None) };
        match Record::parse(&json) {
            Ok(Some(record)) => Ok(Some(record)),
            Ok(None) => {
                warn!(path = %path.display(), "record is torn and therefore of an earlier boot; ignored");
                Ok(None)
            }
            Err(reason) => Err(Error::Record { path, reason }),
        }
    }

    /// The VFs that have a record.
    pub(crate) fn devices(&self) -> Result<Vec<PciAddress>, Error> {
        let names = names_in(&self.records_directory())?;
        Ok(names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect())
    }

    /// The VFs that have a record or a peer's allocation mark, each once.
    pub(crate) fn taken(&self) -> Result<BTreeSet<PciAddress>, Error> {
        let marks = names_in(&self.root.join("pci"))?;
        let marked = marks.iter().filter_map(|name| name.parse().ok());
        Ok(self.devices()?.into_iter().chain(marked).collect())
    }

    /// Writes a record.
    pub(crate) fn save(&self, record: &Record) -> Result<(), Error> {
        // A record means nothing after a reboot, so it need not survive power loss, only processes.
        Ok(durable::replace(&self.record_path(record.device), &record.to_json())?)
    }

    /// Writes the peers' two files for a record.
    pub(crate) fn save_for_peers(&self, record: &Record, cache: &[u8]) -> Result<(), Error> {
        let owner = &record.owner;
        durable::replace(&self.cache_path(&owner.container_id, &owner.ifname), cache)?;
        durable::replace(&self.allocation_path(record.device), owner.netns.as_os_str().as_bytes())?;
        Ok(())
    }

    /// Removes all traces of a record whose VF is given back, the record itself last: until then the
    /// work can be repeated.
    pub(crate) fn forget(&self, record: &Record) -> Result<(), Error> {
        self.forget_for_peers(record)?;
        durable::remove(&self.record_path(record.device))?;
        Ok(())
    }

    /// Removes the peers' two files of a record.
    pub(crate) fn forget_for_peers(&self, record: &Record) -> Result<(), Error> {
        durable::remove(&self.allocation_path(record.device))?;
        self.forget_cache(&record.owner.container_id, &record.owner.ifname)
    }

    /// Removes the cache file of an attachment.
    pub(crate) fn forget_cache(&self, container_id: &str, ifname: &str) -> Result<(), Error> {
        durable::remove(&self.cache_path(container_id, ifname))?;
        Ok(())
    }

    /// The namespace path in the allocation mark of a VF.
    pub(crate) fn allocation(&self, device: PciAddress) -> Result<Option<PathBuf>, Error> {
        let content = durable::read(&self.allocation_path(device))?;
        Ok(content.map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path.trim_ascii()))))
    }

    /// The cache file of an attachment; one that is not JSON counts as absent, as with the peers.
    pub(crate) fn cache(&self, container_id: &str, ifname: &str) -> Result<Option<PeerFile>, Error> {
        read_peer(&self.cache_path(container_id, ifname))
    }

    /// The cache file of the attachment that has `device`.
    pub(crate) fn cache_of_device(&self, device: PciAddress) -> Result<Option<PeerFile>, Error> {
        for name in names_in(&self.root)? {
            if let Some(file) = read_peer(&self.root.join(&name))?
                && crate::config::device_of(&file.content) == Some(device)
            {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// Whether files can be made here; STATUS asks.
    pub(crate) fn probe(&self) -> Result<(), Error> {
        self.prepare()?;
        let path = self.records_directory().join("status");
        durable::replace(&path, b"")?;
        durable::remove(&path)?;
        Ok(())
    }
}

fn read_peer(path: &Path) -> Result<Option<PeerFile>, Error> {
    if path.is_dir() {
        return Ok(None);
    }
    let written = fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let Some(json) = durable::read(path)? else { return Ok(None) };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Object::parse(&json).ok().map(|content| PeerFile { name, content, written }))
}

fn names_in(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => {
            return Err(durable::Error { operation: "listing", path: directory.to_owned(), cause }.into());
        }
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
