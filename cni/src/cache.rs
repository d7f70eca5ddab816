//! The result cache libcni keeps, file for file.
//!
//! One JSON file per attachment, `<cache>/results/<network>-<container>-<interface>`, of the kind
//! `cniCacheV1`: what ADD was called with and what it returned. Runtimes and meta-plugins of the field read it;
//! so do we theirs.

use crate::{CniResult, Error, NetworkList, Object, Version, names};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const KIND: &str = "cniCacheV1";

/// One file of the cache.
#[derive(Clone, Debug)]
pub struct CachedAttachment {
    /// The network's name.
    pub network: String,
    /// The container ID.
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// The network namespace's path; empty in caches of older libraries.
    pub netns: String,
    /// The network configuration ADD used.
    pub config: Vec<u8>,
    /// The pairs of `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What the runtime passed for capabilities, unfiltered.
    pub capabilities: Object,
    /// ADD's result.
    pub result: Option<Object>,
}

impl CachedAttachment {
    /// Reads a file of the kind `cniCacheV1`.
    ///
    /// # Errors
    /// Code 6 when it is not one.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let object = Object::parse(bytes)?;
        let text = |key| object.decode::<String>(key).map(Option::unwrap_or_default);
        let kind = text("kind")?;
        if kind != KIND {
            return Err(Error::decoding(format!("cached result has wrong kind {kind:?}, not {KIND:?}")));
        }
        let config = BASE64
            .decode(text("config")?)
            .map_err(|e| Error::decoding(format!("\"config\" is not base64: {e}")))?;
        Ok(CachedAttachment {
            network: text("networkName")?,
            container_id: text("containerId")?,
            ifname: text("ifName")?,
            netns: text("netns")?,
            config,
            args: object.decode("cniArgs")?.unwrap_or_default(),
            capabilities: object.decode("capabilityArgs")?.unwrap_or_default(),
            result: object.decode("result")?,
        })
    }

    /// The file's bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            kind: &'a str,
            container_id: &'a str,
            config: String,
            if_name: &'a str,
            network_name: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            netns: &'a str,
            #[serde(skip_serializing_if = "<[(String, String)]>::is_empty")]
            cni_args: &'a [(String, String)],
            #[serde(skip_serializing_if = "Object::is_empty")]
            capability_args: &'a Object,
            #[serde(skip_serializing_if = "Option::is_none")]
            result: Option<&'a Object>,
        }
        crate::wire::compact(&Wire {
            kind: KIND,
            container_id: &self.container_id,
            config: BASE64.encode(&self.config),
            if_name: &self.ifname,
            network_name: &self.network,
            netns: &self.netns,
            cni_args: &self.args,
            capability_args: &self.capabilities,
            result: self.result.as_ref(),
        })
    }
}

/// A cache directory.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// The cache under `cache_dir`, whose files are in `cache_dir/results`.
    pub fn new(cache_dir: &Path) -> Self {
        Cache { directory: cache_dir.join("results") }
    }

    fn file(&self, network: &str, container_id: &str, ifname: &str) -> Result<PathBuf, Error> {
        names::check_network_name(network)?;
        names::check_container_id(container_id)?;
        names::check_interface_name(ifname)?;
        Ok(self.directory.join(format!("{network}-{container_id}-{ifname}")))
    }

    /// Stores an attachment. Readers see the whole file or none; it is not forced to the disk, because after a
    /// power failure there is no container it could be about.
    ///
    /// # Errors
    /// Code 5 when it cannot be written, codes 3, 4 and 7 when a name cannot be part of a file name.
    pub fn store(&self, attachment: &CachedAttachment) -> Result<(), Error> {
        let file = self.file(&attachment.network, &attachment.container_id, &attachment.ifname)?;
        let failed = |e: std::io::Error| {
            Error::io(format!(
                "failed to set network {:?} cached result: {}: {e}",
                attachment.network,
                file.display()
            ))
        };
        create_private(&self.directory).map_err(failed)?;
        let draft = self.directory.join(format!(".{}-{}.new", attachment.container_id, attachment.ifname));
        write_private(&draft, &attachment.to_vec()).and_then(|()| std::fs::rename(&draft, &file)).map_err(
            |e| {
                // The draft is of no use to anyone.
                let _ = std::fs::remove_file(&draft);
                failed(e)
            },
        )
    }

    /// Reads an attachment; `None` when there is none or it cannot be understood.
    pub fn load(&self, network: &str, container_id: &str, ifname: &str) -> Option<CachedAttachment> {
        let bytes = std::fs::read(self.file(network, container_id, ifname).ok()?).ok()?;
        CachedAttachment::parse(&bytes).ok()
    }

    /// Whether there is a file of an attachment, understood or not: its ADD has succeeded.
    pub fn has(&self, network: &str, container_id: &str, ifname: &str) -> bool {
        self.file(network, container_id, ifname).is_ok_and(|file| file.exists())
    }

    /// The result an attachment's ADD returned; `None` when there is none or it cannot be understood. Also
    /// reads the files of libcni before `cniCacheV1`, which hold nothing but the result.
    pub fn result(&self, list: &NetworkList, container_id: &str, ifname: &str) -> Option<CniResult> {
        let bytes = std::fs::read(self.file(&list.name, container_id, ifname).ok()?).ok()?;
        let json = match CachedAttachment::parse(&bytes) {
            Ok(cached) => cached.result?.to_vec(),
            Err(_) => bytes,
        };
        CniResult::parse(&json, Version::V0_1_0).ok()
    }

    /// Forgets an attachment; one that is not there is forgotten already.
    ///
    /// # Errors
    /// Code 5 when the file cannot be removed.
    pub fn remove(&self, network: &str, container_id: &str, ifname: &str) -> Result<(), Error> {
        // What cannot be a file name was never stored.
        let Ok(file) = self.file(network, container_id, ifname) else { return Ok(()) };
        match std::fs::remove_file(&file) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Error::io(format!("cannot remove cached result {}: {e}", file.display())))
            }
            _ => Ok(()),
        }
    }

    /// Every attachment of the cache, or those of one container, in order of file names; files that cannot be
    /// understood are left out.
    ///
    /// # Errors
    /// Code 5 when the directory exists and cannot be read.
    pub fn attachments(&self, container_id: Option<&str>) -> Result<Vec<CachedAttachment>, Error> {
        let failed = |e: std::io::Error| Error::io(format!("cannot read {}: {e}", self.directory.display()));
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut files =
            entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        files.sort();
        let named = |file: &PathBuf| {
            let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            !name.starts_with('.') && container_id.is_none_or(|id| name.contains(&format!("-{id}-")))
        };
        let read = |file: PathBuf| CachedAttachment::parse(&std::fs::read(file).ok()?).ok();
        let wanted = |a: &CachedAttachment| {
            !a.network.is_empty()
                && !a.ifname.is_empty()
                && container_id.is_none_or(|id| a.container_id == id)
        };
        Ok(files.into_iter().filter(named).filter_map(read).filter(wanted).collect())
    }
}

/// Configuration may hold secrets: directory and files are for their owner alone.
fn create_private(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn write_private(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    file.write_all(bytes)
}
