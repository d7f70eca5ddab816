//! How far the annotation of each pod was followed, on disk: what changes while the daemon is away is followed when it is
//! back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Error;

/// The version of the file.
const VERSION: u32 = 2;

/// How far the annotation of a pod was followed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    version: u32,
    /// The annotation.
    pub networks: String,
    /// Interfaces of which it could not be followed, and will be, with the network that was tried.
    pub failed: BTreeMap<String, String>,
}

/// The file of version 1, which does not tell the networks that failed.
#[derive(Deserialize)]
struct First {
    networks: String,
    failed: BTreeSet<String>,
}

impl Followed {
    /// The annotation `networks`, but for the interfaces `failed`.
    #[must_use]
    pub fn new(networks: impl Into<String>, failed: BTreeMap<String, String>) -> Self {
        Followed { version: VERSION, networks: networks.into(), failed }
    }

    /// Whether there is nothing left to do for the annotation `networks`.
    #[must_use]
    pub fn is_up_to(&self, networks: &str) -> bool {
        self.failed.is_empty() && self.networks == networks
    }
}

/// A file for each pod, `<cniDir>/followed/<UID>`. After a power failure no sandbox is left that it could be about, so
/// nothing is forced to the disk.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// The files below `cni_dir`.
    #[must_use]
    pub fn below(cni_dir: &Path) -> Self {
        Files { directory: cni_dir.join("followed") }
    }

    /// What is known of a pod. A file that cannot be understood tells nothing.
    #[must_use]
    pub fn read(&self, uid: &str) -> Option<Followed> {
        let bytes = host::durable::read(&self.file(uid)?).ok()??;
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        match serde_json::from_slice(&bytes).ok()? {
            Versioned { version: VERSION } => serde_json::from_slice(&bytes).ok(),
            Versioned { version: 1 } => {
                let First { networks, failed } = serde_json::from_slice(&bytes).ok()?;
                // No network is called nothing.
                let failed = failed.into_iter().map(|ifname| (ifname, String::new())).collect();
                Some(Followed::new(networks, failed))
            }
            Versioned { .. } => None,
        }
    }

    /// Remembers it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, uid: &str, followed: &Followed) -> Result<(), Error> {
        let Some(file) = self.file(uid) else { return Ok(()) };
        let content = serde_json::to_vec(followed).map_err(|e| Error::file("writing", &file, e))?;
        host::durable::make_directory(&self.directory)?;
        host::durable::replace(&file, &content)?;
        Ok(())
    }

    /// Forgets the pods that are not among `alive`.
    pub fn retain(&self, alive: &BTreeSet<String>) {
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if !alive.contains(entry.file_name().to_string_lossy().as_ref())
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::warn!("removing {}: {error}", entry.path().display());
            }
        }
    }

    /// Forgets all pods.
    pub fn clear(&self) {
        self.retain(&BTreeSet::new());
        // Where it cannot go something else is in it.
        let _ = std::fs::remove_dir(&self.directory);
    }

    fn file(&self, uid: &str) -> Option<PathBuf> {
        cni::names::check_container_id(uid).ok()?;
        Some(self.directory.join(uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_until_the_pod_has_gone() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::below(directory.path());
        let followed = Followed::new("a,b", [("net2".to_owned(), "ns/b".to_owned())].into());
        for uid in ["u1", "u2", "../u3", ""] {
            files.write(uid, &followed).unwrap();
        }
        std::fs::write(directory.path().join("followed/u4"), "{").unwrap();
        std::fs::write(directory.path().join("followed/u5"), r#"{"version":3,"networks":"","failed":{}}"#)
            .unwrap();
        let old = r#"{"version":1,"networks":"a","failed":["net1"]}"#;
        std::fs::write(directory.path().join("followed/u6"), old).unwrap();
        assert_eq!(
            ["u1", "../u3", "", "u4", "u5"].map(|uid| files.read(uid).is_some()),
            [true, false, false, false, false]
        );
        let failed = [("net1".to_owned(), String::new())].into();
        assert_eq!(files.read("u6"), Some(Followed::new("a", failed)));
        assert_eq!(files.read("u2"), Some(followed.clone()));
        assert!(!followed.is_up_to("a,b") && Followed::new("a", BTreeMap::new()).is_up_to("a"));
        files.retain(&["u2".to_owned()].into());
        assert_eq!(std::fs::read_dir(directory.path().join("followed")).unwrap().count(), 1);
        assert!(files.read("u2").is_some());
        for _ in 0..2 {
            files.clear();
            assert!(!directory.path().join("followed").exists());
        }
    }
}
