//! The record of a sandbox: what its delegates were given, on disk before the first of them runs.
//!
//! One file, `<cniDir>/<container ID>`, in upstream's format ([`cached_delegates`](crate::cached_delegates)).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cni::Request;
use host::durable::Draft;

use crate::Error;
use crate::cached_delegates::{decode, encode};
use crate::delegate::Delegate;

/// What of a sandbox is needed to take it down.
#[derive(Debug, Clone)]
pub enum Record {
    /// Nothing is known.
    Absent,
    /// The delegates, in order of ADD.
    Delegates(Vec<Delegate>),
    /// There is a file, and it cannot be understood.
    Corrupt(String),
}

/// The records of a node.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// The records in `directory` (`cniDir`).
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Records { directory: directory.to_owned() }
    }

    /// Where the records are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the record of a sandbox, through to the disk; removes it when there are no delegates.
    ///
    /// # Errors
    /// [`Error::Record`].
    pub fn write(&self, container: &str, delegates: &[Delegate]) -> Result<(), Error> {
        let failed = |source| Error::Record { container: container.to_owned(), source };
        let file = self.directory.join(container);
        if delegates.is_empty() {
            return host::durable::remove(&file).map(drop).map_err(failed);
        }
        self.draft(container, delegates)?.place().map_err(failed)
    }

    /// The record of a sandbox that is to have `delegates`, on the disk; it counts when it is put in its place.
    ///
    /// # Errors
    /// [`Error::Record`].
    pub fn draft(&self, container: &str, delegates: &[Delegate]) -> Result<Draft, Error> {
        let failed = |source| Error::Record { container: container.to_owned(), source };
        host::durable::make_directory(&self.directory).map_err(failed)?;
        Draft::of(&self.directory.join(container), &encode(delegates)).map_err(failed)
    }

    /// Reads the record of the sandbox of `request`.
    ///
    /// # Errors
    /// [`Error::Record`] when there is a file that cannot be read.
    pub fn read(&self, request: &Request) -> Result<Record, Error> {
        let container = &request.container_id;
        let bytes = host::durable::read(&self.directory.join(container))
            .map_err(|source| Error::Record { container: container.clone(), source })?;
        Ok(match bytes.map(|bytes| decode(&bytes, request)) {
            None => Record::Absent,
            // Nobody writes that: what was attached is told elsewhere, if anywhere.
            Some(Ok(delegates)) if delegates.is_empty() => Record::Corrupt("it names no delegate".to_owned()),
            Some(Ok(delegates)) => Record::Delegates(delegates),
            Some(Err(error)) => Record::Corrupt(error.to_string()),
        })
    }

    /// When the record of a sandbox was written; `None` when there is none.
    #[must_use]
    pub fn written(&self, container: &str) -> Option<SystemTime> {
        std::fs::metadata(self.directory.join(container)).and_then(|metadata| metadata.modified()).ok()
    }

    /// The container IDs that have a record.
    ///
    /// # Errors
    /// [`Error::Record`] when the directory cannot be read.
    pub fn containers(&self) -> Result<Vec<String>, Error> {
        let failed = |cause| Error::Record {
            container: "(all)".to_owned(),
            source: host::durable::Error {
                operation: "reading directory",
                path: self.directory.clone(),
                cause,
            },
        };
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut containers = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if cni::names::check_container_id(&name).is_ok() && entry.path().is_file() {
                containers.push(name);
            }
        }
        containers.sort();
        Ok(containers)
    }
}
