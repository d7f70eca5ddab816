//! Keeps the runtime's configuration: multus in front of the primary network, whatever others do to either.
//!
//! It stays when the daemon ends: a daemon that is being replaced must not leave pods with the primary alone. It is
//! replaced whole and never empty: while the primary cannot be read, what was written last stays.

use std::path::{Path, PathBuf};
use std::time::Duration;

use host::DirectoryWatch;

use crate::Error;
use crate::conf::DaemonConf;
use crate::generate::{self, Generated};
use crate::primary::Primary;

/// Others write their files in steps.
const SETTLE: Duration = Duration::from_millis(100);

/// How long the second and later restorations in a row wait: whoever removes the file may do it at once again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often is looked for a directory that is not there yet.
const LOOK_FOR_DIRECTORY: Duration = Duration::from_secs(5);

/// How often is looked without being told.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Where things are, and which of them count.
#[derive(Debug, Clone)]
pub struct Places {
    /// Where the runtime reads configurations.
    pub target: PathBuf,
    /// Where the primary's configuration is; mostly the same.
    pub source: PathBuf,
    /// The primary's file name; `None` takes the first.
    pub master: Option<String>,
    /// A configuration to copy in place of a generated one.
    pub copied: Option<PathBuf>,
    /// A file whose presence says that the default network is ready.
    pub readiness_indicator: Option<PathBuf>,
}

/// Makes the configuration for a primary.
type Generate = Box<dyn Fn(&Primary) -> Result<Generated, cni::Error> + Send + Sync>;

/// What keeps the configuration.
pub struct Manager {
    places: Places,
    generate: Generate,
    written: Option<PathBuf>,
    restored: u32,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Manager {
    /// A manager that writes what `generate` makes.
    #[must_use]
    pub fn new(places: Places, generate: Generate) -> Self {
        Manager { places, generate, written: None, restored: 0 }
    }

    /// A manager for the daemon of `conf`.
    #[must_use]
    pub fn of_daemon(conf: &DaemonConf) -> Self {
        let places = Places {
            target: conf.cni_config_dir.clone(),
            source: conf.autoconfig_dir.clone().unwrap_or_else(|| conf.cni_config_dir.clone()),
            master: conf.master.clone(),
            copied: conf.config_file.clone(),
            readiness_indicator: conf.readiness_indicator.clone(),
        };
        let raw = conf.raw.clone();
        Self::new(places, Box::new(move |primary| generate::shim(&raw, primary)))
    }

    /// Keeps the configuration for ever. What stands in the way is told once, and waited for.
    pub async fn run(mut self) {
        let mut told = String::new();
        loop {
            // Watched before it is looked at: no change falls between.
            let watches = self.watch();
            match watches
                .as_ref()
                .map_or_else(|e| Err(e.to_string()), |_| self.keep().map_err(|e| e.to_string()))
            {
                Ok(()) => told.clear(),
                Err(error) if error == told => {}
                Err(error) => {
                    tracing::error!("{error}");
                    told = error;
                }
            }
            match watches {
                Ok(mut watches) => {
                    let changes = watches.iter_mut().map(|watch| Box::pin(watch.changed()));
                    let _ = tokio::time::timeout(LOOK_EVERY, futures_util::future::select_all(changes)).await;
                }
                Err(_) => tokio::time::sleep(LOOK_FOR_DIRECTORY).await,
            }
            tokio::time::sleep(self.pause()).await;
        }
    }

    fn watch(&self) -> Result<Vec<DirectoryWatch>, Error> {
        let readiness = self.places.readiness_indicator.as_deref().and_then(Path::parent);
        let directories = [Some(self.source()), Some(&self.places.target), readiness];
        let watch = |directory: &Path| {
            DirectoryWatch::new(directory).map_err(|e| Error::file("watching", directory, e))
        };
        directories.into_iter().flatten().map(watch).collect()
    }

    /// Writes what should be there, where it is not.
    ///
    /// # Errors
    /// When there is no primary, or the file cannot be written. What is there stays.
    pub fn keep(&mut self) -> Result<(), Error> {
        if let Some(path) = self.places.readiness_indicator.as_ref().filter(|path| !path.exists()) {
            return Err(Error::NotReady { path: path.clone() });
        }
        let (path, content, sibling) = match &self.places.copied {
            Some(source) => self.copied(source)?,
            None => self.generated()?,
        };
        if std::fs::read(&path).is_ok_and(|there| there == content) {
            self.restored = 0;
        } else {
            if self.written.as_ref() == Some(&path) && !path.exists() {
                self.restored += 1;
                tracing::warn!(
                    "{} was removed or renamed by somebody else and is written again; if that is another network's \
                     agent, tell it to leave foreign files alone (Cilium: cni-exclusive=false)",
                    path.display()
                );
            }
            host::durable::write(&path, &content)?;
            tracing::info!("wrote {}", path.display());
            self.written = Some(path);
        }
        if let Some(sibling) = sibling
            && host::durable::remove(&sibling)?
        {
            tracing::info!("removed {}, which an earlier version had left", sibling.display());
        }
        Ok(())
    }

    fn generated(&self) -> Result<(PathBuf, Vec<u8>, Option<PathBuf>), Error> {
        let primary = Primary::find(self.source(), self.places.master.as_deref())?;
        let failed = |e: cni::Error| Error::Primary { path: primary.path.clone(), message: e.to_string() };
        let Generated { name, content, sibling } = (self.generate)(&primary).map_err(failed)?;
        let directory = &self.places.target;
        Ok((directory.join(name), content, Some(directory.join(sibling))))
    }

    fn copied(&self, source: &Path) -> Result<(PathBuf, Vec<u8>, Option<PathBuf>), Error> {
        let failed = |e: &dyn std::fmt::Display| Error::file("copying \"multusConfigFile\"", source, e);
        let content = std::fs::read(source).map_err(|e| failed(&e))?;
        cni::Object::parse(&content).map_err(|e| failed(&e))?;
        let name = source.file_name().ok_or_else(|| failed(&"it has no file name"))?;
        Ok((self.places.target.join(name), content, None))
    }

    /// The directory of what is read.
    fn source(&self) -> &Path {
        match &self.places.copied {
            Some(file) => file.parent().unwrap_or(Path::new("/")),
            None => &self.places.source,
        }
    }

    fn pause(&self) -> Duration {
        SETTLE.saturating_mul(2_u32.saturating_pow(self.restored)).min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::Object;

    struct Host {
        directory: tempfile::TempDir,
        manager: Manager,
    }

    impl Host {
        fn new(members: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().display();
            let json = format!(r#"{{"cniConfigDir":"{path}","multusAutoconfigDir":"{path}"{members}}}"#);
            let conf = DaemonConf::read(
                Object::parse(json.replace("DIR", &path.to_string()).as_bytes()).unwrap(),
                |_| crate::layout::Layout::default(),
            )
            .unwrap();
            Host { directory, manager: Manager::of_daemon(&conf) }
        }

        fn write(&self, name: &str, content: &str) {
            std::fs::write(self.directory.path().join(name), content).unwrap();
        }

        fn remove(&self, name: &str) {
            std::fs::remove_file(self.directory.path().join(name)).unwrap();
        }

        fn files(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.directory.path()).unwrap();
            let mut files: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            files.sort();
            files
        }

        fn cluster_network(&self, name: &str) -> String {
            let text = std::fs::read_to_string(self.directory.path().join(name)).unwrap();
            text.split("clusterNetwork")
                .nth(1)
                .unwrap()
                .split('"')
                .nth(2)
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap()
                .to_owned()
        }
    }

    fn network(version: &str) -> String {
        format!(r#"{{"cniVersion":"{version}","name":"x","plugins":[{{"type":"bridge"}}]}}"#)
    }

    #[test]
    fn follows_the_primary_and_is_never_without_a_file() {
        let mut host = Host::new("");
        assert!(matches!(host.manager.keep(), Err(Error::NoPrimary { .. })));
        host.write("20-a.conflist", &network("0.4.0"));
        host.manager.keep().unwrap();
        assert_eq!(host.files(), ["00-multus.conf", "20-a.conflist"]);
        // It moves to a newer version: no pair of files, of which the old one would be read.
        host.write("20-a.conflist", &network("1.0.0"));
        host.manager.keep().unwrap();
        assert_eq!(host.files(), ["00-multus.conflist", "20-a.conflist"]);
        // Another one comes that sorts before it.
        host.write("10-b.conflist", &network("1.0.0"));
        host.manager.keep().unwrap();
        assert_eq!(host.cluster_network("00-multus.conflist"), "10-b.conflist");
        // It is being written, then gone: what is there stays, then the other one counts again.
        host.write("10-b.conflist", "{");
        host.manager.keep().unwrap();
        assert_eq!(host.cluster_network("00-multus.conflist"), "20-a.conflist");
        host.remove("10-b.conflist");
        host.remove("20-a.conflist");
        assert!(host.manager.keep().is_err());
        assert_eq!(host.files(), ["00-multus.conflist"]);
    }

    #[test]
    fn is_written_again_when_somebody_removes_it() {
        let mut host = Host::new("");
        host.write("20-a.conflist", &network("1.0.0"));
        host.manager.keep().unwrap();
        let calm = host.manager.pause();
        for _ in 0..3 {
            let path = host.directory.path();
            std::fs::rename(path.join("00-multus.conflist"), path.join("00-multus.conflist.cilium_bak"))
                .unwrap();
            host.manager.keep().unwrap();
        }
        assert_eq!(host.files(), ["00-multus.conflist", "00-multus.conflist.cilium_bak", "20-a.conflist"]);
        assert!(host.manager.pause() > calm, "two that fight must not burn the node");
        host.manager.keep().unwrap();
        assert_eq!(host.manager.pause(), calm);
    }

    #[test]
    fn waits_for_the_default_network_and_its_named_file() {
        let mut host =
            Host::new(r#","readinessindicatorfile":"DIR/ready","multusMasterCNI":"30-c.conflist""#);
        host.write("20-a.conflist", &network("1.0.0"));
        host.write("30-c.conflist", &network("1.0.0"));
        assert!(matches!(host.manager.keep(), Err(Error::NotReady { .. })));
        host.write("ready", "");
        host.manager.keep().unwrap();
        assert_eq!(host.cluster_network("00-multus.conflist"), "30-c.conflist");
    }

    #[test]
    fn a_file_of_the_administrator_s_is_copied() {
        let source = tempfile::tempdir().unwrap();
        let file = source.path().join("70-multus.conf");
        std::fs::write(&file, r#"{"name":"n","type":"multus-shim"}"#).unwrap();
        let mut host = Host::new(&format!(r#","multusConfigFile":"{}""#, file.display()));
        host.manager.keep().unwrap();
        assert_eq!(host.files(), ["70-multus.conf"]);
        std::fs::write(&file, "{").unwrap();
        assert!(host.manager.keep().is_err());
        assert!(
            std::fs::read_to_string(host.directory.path().join("70-multus.conf")).unwrap().contains("shim")
        );
    }

    #[tokio::test]
    async fn is_told_of_changes() {
        let host = Host::new("");
        let path = host.directory.path().join("00-multus.conflist");
        let running = tokio::spawn(host.manager.run());
        let written = async |file: &Path| {
            let look = async {
                while !file.exists() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), look).await.unwrap();
        };
        std::fs::write(host.directory.path().join("20-a.conflist"), network("1.0.0")).unwrap();
        written(&path).await;
        std::fs::remove_file(&path).unwrap();
        written(&path).await;
        running.abort();
    }
}
