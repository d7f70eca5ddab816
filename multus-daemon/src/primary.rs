//! The primary network: the configuration of the node that multus stands in front of.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cni::{NetworkList, Object};

use crate::Error;

/// Names of our own files start with this.
pub const OWN_PREFIX: &str = "00-multus";

/// The primary network.
#[derive(Debug, Clone)]
pub struct Primary {
    /// Its file.
    pub path: PathBuf,
    /// Its network.
    pub network: NetworkList,
    /// The file as it is.
    pub object: Object,
    /// The capabilities that its plugins declare.
    pub capabilities: BTreeSet<String>,
}

impl Primary {
    /// The primary in `directory`: the file called `master`, else the first `.conf` or `.conflist` that is not
    /// multus' own and can be understood.
    ///
    /// # Errors
    /// [`Error::NoPrimary`] when there is none, [`Error::Primary`] when `master` cannot be used.
    pub fn find(directory: &Path, master: Option<&str>) -> Result<Self, Error> {
        let none = |message: String| Error::NoPrimary { directory: directory.to_owned(), message };
        if let Some(master) = master {
            let path = directory.join(master);
            return match path.exists() {
                true => Self::load(&path),
                false => Err(none(format!("{master} does not exist"))),
            };
        }
        let files = cni::conf_files(directory, &["conf", "conflist"]).map_err(|e| none(e.to_string()))?;
        let mut passed_over = String::new();
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(OWN_PREFIX) {
                continue;
            }
            match Self::load(&file) {
                Ok(primary) if primary.is_multus() => {
                    passed_over.push_str(&format!("; {name} is multus itself"));
                }
                Ok(primary) => return Ok(primary),
                Err(error) => passed_over.push_str(&format!("; {error}")),
            }
        }
        Err(none(format!("there is no usable .conf or .conflist{passed_over}")))
    }

    fn load(path: &Path) -> Result<Self, Error> {
        let failed = |message: String| Error::Primary { path: path.to_owned(), message };
        let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
        let object = Object::parse(&bytes).map_err(|e| failed(e.to_string()))?;
        let network = NetworkList::load(path).map_err(|e| failed(e.to_string()))?;
        if network.name.is_empty() {
            return Err(failed("it has no \"name\"".to_owned()));
        }
        let capabilities = network.plugins.iter().flat_map(capabilities).collect();
        Ok(Primary { path: path.to_owned(), network, object, capabilities })
    }

    fn is_multus(&self) -> bool {
        self.network.plugins.iter().any(|plugin| matches!(plugin.kind.as_str(), "multus" | "multus-shim"))
    }
}

fn capabilities(plugin: &cni::PluginConf) -> Vec<String> {
    let declared: Object = plugin.config.decode("capabilities").ok().flatten().unwrap_or_default();
    declared.iter().filter(|(_, value)| *value == "true").map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"cbr0","plugins":[
        {"type":"flannel","capabilities":{"ips":true,"off":false}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;

    #[test]
    fn the_first_that_is_not_ours() {
        let directory = directory(&[
            ("00-multus.conf", r#"{"name":"multus-cni-network","type":"multus-shim"}"#),
            ("00-multus.conflist", "{"),
            ("01-broken.conf", "{"),
            ("05-copy.conf", r#"{"name":"multus-cni-network","type":"multus","delegates":[]}"#),
            ("06-nameless.conf", r#"{"type":"bridge"}"#),
            ("10-flannel.conflist", LIST),
            ("20-other.conf", r#"{"name":"other","type":"bridge"}"#),
            ("99-loopback.json", r#"{"name":"lo","type":"loopback"}"#),
        ]);
        let primary = Primary::find(directory.path(), None).unwrap();
        assert_eq!(primary.network.name, "cbr0");
        assert_eq!(primary.capabilities.iter().collect::<Vec<_>>(), ["ips", "portMappings"]);
        let other = Primary::find(directory.path(), Some("20-other.conf")).unwrap();
        assert_eq!(other.network.name, "other");
    }

    #[test]
    fn without_one_it_is_said_what_is_there() {
        let directory =
            directory(&[("10-a.conf", "{"), ("20-b.conf", r#"{"name":"n","type":"multus-shim"}"#)]);
        let error = Primary::find(directory.path(), None).unwrap_err().to_string();
        for part in ["no primary network in", "10-a.conf", "20-b.conf is multus itself", "multusMasterCNI"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        let error = Primary::find(directory.path(), Some("x.conf")).unwrap_err().to_string();
        assert!(error.contains("x.conf does not exist"), "{error}");
        assert!(matches!(Primary::find(directory.path(), Some("10-a.conf")), Err(Error::Primary { .. })));
    }
}
