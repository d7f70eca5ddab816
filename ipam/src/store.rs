//! The ledgers on disk.
//!
//! They belong on a file system that a reboot empties: no container outlives a reboot, so a ledger that did would only
//! hold on to addresses. For the same reason nothing is forced to disk: the page cache outlives every process.

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use host::{FileLock, durable};

use crate::error::Error;
use crate::ledger::{Ledger, Moment};
use crate::pool::NodeLife;

/// How long to wait for a process that reads and writes a file.
const LEDGER_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait for a process that talks to the API server.
const CLAIM_LIMIT: Duration = Duration::from_secs(60);
const SUFFIX: &str = ".json";

/// One state of a ledger's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(u64, i64, i64);

/// The directory of a node's ledgers.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
    node: String,
    boot_id: String,
}

impl Store {
    /// The ledgers in `directory`, of the node with this name.
    ///
    /// # Errors
    /// When the directory cannot be made, or the machine does not tell its boot.
    pub fn open(directory: &Path, node: &str) -> Result<Self, Error> {
        durable::make_directory(directory)?;
        let boot_id = host::boot_id().map_err(Error::Start)?;
        Ok(Self { directory: directory.to_owned(), node: node.to_owned(), boot_id })
    }

    /// The name of the node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The kernel's identity of this boot.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Who the node is to a pool, by its ledger.
    #[must_use]
    pub fn life(&self, ledger: &Ledger) -> NodeLife {
        NodeLife {
            node: self.node.clone(),
            verified: ledger.verified,
            boot: ledger.boot.clone(),
            life: ledger.life.clone(),
        }
    }

    /// Reads a pool's ledger, lets `work` change it and writes it when it did, all under a lock. When `work` returns,
    /// its result is true of what is on disk.
    ///
    /// # Errors
    /// When the ledger is locked for long, or cannot be read or written; then nothing has changed.
    pub fn with<T>(&self, pool: &str, work: impl FnOnce(&mut Ledger, Moment) -> T) -> Result<T, Error> {
        let _lock = FileLock::acquire(&self.path(pool, ".lock"), LEDGER_LIMIT)?;
        let path = self.path(pool, SUFFIX);
        let before = self.read(pool)?;
        let mut ledger = before.clone().unwrap_or_else(|| self.fresh());
        let result = work(&mut ledger, now()?);
        if before.as_ref() != Some(&ledger) {
            let bytes = ledger.bytes().map_err(|e| Error::Start(e.into()))?;
            durable::replace(&path, &bytes)?;
        }
        Ok(result)
    }

    /// [`with`](Self::with) for a call that told the pool who it is, and may write what it heard into the ledger of that
    /// life only: one that took its place knows nothing of the containers that have those addresses.
    ///
    /// # Errors
    /// As of `with`, and [`Error::Replaced`].
    pub fn within<T>(
        &self,
        pool: &str,
        life: &NodeLife,
        work: impl FnOnce(&mut Ledger, Moment) -> T,
    ) -> Result<T, Error> {
        let result = self.with(pool, |ledger, now| ledger.is_of(life).then(|| work(ledger, now)))?;
        result.ok_or_else(|| Error::Replaced { pool: pool.to_owned() })
    }

    /// A pool's ledger as it is; `None` when there is none of this boot.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, pool: &str) -> Result<Option<Ledger>, Error> {
        let found = durable::read(&self.path(pool, SUFFIX))?.and_then(|bytes| Ledger::parse(&bytes));
        Ok(found.filter(|ledger| ledger.boot == self.boot()))
    }

    /// What tells one state of a pool's ledger from the next, as every change of it makes a new file; `None` where there is
    /// no ledger.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn stamp(&self, pool: &str) -> Result<Option<Stamp>, Error> {
        let path = self.path(pool, SUFFIX);
        match fs::metadata(&path) {
            Ok(file) => Ok(Some(Stamp(file.ino(), file.mtime(), file.mtime_nsec()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(durable::Error { operation: "reading", path, cause }.into()),
        }
    }

    /// Keeps other processes of the node from talking to the API server about the pool.
    ///
    /// # Errors
    /// When one does so for long.
    pub fn claim_lock(&self, pool: &str) -> Result<FileLock, Error> {
        Ok(FileLock::acquire(&self.path(pool, ".claim.lock"), CLAIM_LIMIT)?)
    }

    /// The same for who can come again; `None` when another process talks about the pool.
    ///
    /// # Errors
    /// When the lock cannot be made.
    pub fn try_claim_lock(&self, pool: &str) -> Result<Option<FileLock>, Error> {
        match FileLock::acquire(&self.path(pool, ".claim.lock"), Duration::ZERO) {
            Ok(lock) => Ok(Some(lock)),
            Err(host::lock::Error::Timeout { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The pools of which there are ledgers.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn pools(&self) -> Result<Vec<String>, Error> {
        let failed = |cause| durable::Error { operation: "reading", path: self.directory.clone(), cause };
        let mut pools = Vec::new();
        for file in fs::read_dir(&self.directory).map_err(failed)? {
            let name = file.map_err(failed)?.file_name();
            // Temporary files begin with a dot.
            let name = name.to_string_lossy();
            pools.extend(name.strip_suffix(SUFFIX).filter(|name| !name.starts_with('.')).map(str::to_owned));
        }
        pools.sort();
        Ok(pools)
    }

    fn fresh(&self) -> Ledger {
        let random = RandomState::new().hash_one(&self.boot_id);
        Ledger::new(self.boot(), &format!("{:08x}", random & 0xffff_ffff))
    }

    /// What stands for the boot in entries and ledgers.
    #[must_use]
    pub fn boot(&self) -> &str {
        self.boot_id.split('-').next().unwrap_or_default()
    }

    fn path(&self, pool: &str, suffix: &str) -> PathBuf {
        self.directory.join(format!("{pool}{suffix}"))
    }
}

/// The present moment.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn now() -> Result<Moment, Error> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Moment { uptime: millis(host::uptime().map_err(Error::Start)?), wall: millis(wall) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Fill, Slot, Use};

    #[test]
    fn a_ledger_is_kept_for_one_boot() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("new"), "n").unwrap();
        let slot = Slot { state: Use::Idle, reserved: true, past: None, tenant: None };
        let fill = Fill { usable: u128::MAX, taken: 1 };
        let life = store
            .with("p", |ledger, _| {
                ledger.slots.insert(u128::MAX, slot.clone());
                ledger.fill = Some(fill);
                ledger.life.clone()
            })
            .unwrap();
        let read = |store: &Store| store.with("p", |ledger, _| ledger.clone()).unwrap();
        assert_eq!(read(&store).slots.get(&u128::MAX), Some(&slot));
        assert_eq!(read(&store).fill, Some(fill));
        assert_eq!((read(&store).life, store.pools().unwrap()), (life.clone(), vec!["p".to_owned()]));
        let rebooted = Store { boot_id: "00000000-1".into(), ..store.clone() };
        let fresh = read(&rebooted);
        assert!(fresh.slots.is_empty() && fresh.life != life);
        let me = store.with("p", |ledger, _| store.life(ledger)).unwrap();
        store.within("p", &me, |_, _| ()).unwrap();
        fs::write(store.path("p", SUFFIX), "{\"version\":9}").unwrap();
        assert!(read(&store).slots.is_empty());
        let refused = store.within("p", &me, |ledger, _| ledger.slots.insert(1, slot.clone())).unwrap_err();
        assert!(matches!(refused, Error::Replaced { .. }) && read(&store).slots.is_empty(), "{refused}");
    }

    #[test]
    fn older_programs_read_a_ledger_without_tenants() {
        let tenant = crate::tenant::Tenant::Claim { name: "ns/vm".into() };
        for (tenant, wanted) in [(None, 1), (Some(tenant), 2)] {
            let mut ledger = Ledger::new("b", "l");
            ledger.slots.insert(1, Slot { state: Use::Idle, reserved: false, past: None, tenant });
            let bytes = ledger.bytes().unwrap();
            let written: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(written["version"], wanted);
            assert_eq!(Ledger::parse(&bytes), Some(ledger));
        }
    }
}
