//! Networks: from a NAD, or from a file of the node.
//!
//! Source: Kubernetes Network Custom Resource Definition De-facto Standard v1.3, section 3.

use std::path::Path;

use cni::{NetworkList, Object, conf_files};

use crate::Error;

/// The key of the NAD's annotation that names a device plugin's resource.
pub const RESOURCE_NAME: &str = "k8s.v1.cni.cncf.io/resourceName";

/// A network-attachment-definition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nad {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `spec.config`; `None` or empty leaves the configuration to the node.
    pub config: Option<String>,
    /// The resource of which each attachment takes a device.
    pub resource: Option<String>,
}

/// A network that can be attached.
#[derive(Debug, Clone)]
pub struct Network {
    /// `<namespace>/<name>` of its NAD, else the CNI network's name: what status, events and logs call it.
    pub label: String,
    /// Its plugins.
    pub list: NetworkList,
    /// The resource of which each attachment takes a device.
    pub resource: Option<String>,
}

impl Network {
    /// A network without a NAD.
    #[must_use]
    pub fn local(list: NetworkList) -> Self {
        Network { label: list.name.clone(), list, resource: None }
    }

    /// The network a NAD defines. Where `spec.config` is empty it is the one of the NAD's name in `conf_dir`;
    /// where it has no `name` it gets the NAD's.
    ///
    /// # Errors
    /// When the configuration is missing or cannot be understood.
    pub fn of(nad: &Nad, conf_dir: &Path) -> Result<Self, Error> {
        let label = format!("{}/{}", nad.namespace, nad.name);
        let list = match nad.config.as_deref().map(str::trim) {
            None | Some("") => find(conf_dir, &nad.name),
            Some(config) => inline(config, &nad.name),
        };
        let list = list.map_err(|source| Error::Network { network: label.clone(), source })?;
        Ok(Network { label, list, resource: nad.resource.clone() })
    }
}

fn inline(config: &str, name: &str) -> Result<NetworkList, cni::Error> {
    let mut object =
        Object::parse(config.as_bytes()).map_err(|e| e.context("spec.config cannot be understood"))?;
    if object.decode::<String>("name")?.unwrap_or_default().is_empty() {
        object.remove_fold("name");
        object.set("name", name)?;
    }
    NetworkList::from_object(object).map_err(|e| e.context("spec.config"))
}

/// The network called `name` among the files of `directory`, in order of file names. Files that cannot be
/// understood are passed over.
///
/// # Errors
/// When there is none; the files passed over are named.
pub fn find(directory: &Path, name: &str) -> Result<NetworkList, cni::Error> {
    let files = conf_files(directory, &["conf", "json", "conflist"])?;
    if files.is_empty() {
        return Err(cni::Error::invalid_config(format!(
            "No networks found in {}: its spec.config is empty, so the node must have a file with \"name\": {name:?} there",
            directory.display()
        )));
    }
    let mut broken = String::new();
    for file in files {
        match NetworkList::load(&file) {
            Ok(list) if list.name == name => return Ok(list),
            Ok(_) => {}
            Err(error) => broken.push_str(&format!("; passed over {error}")),
        }
    }
    Err(cni::Error::invalid_config(format!(
        "no network available in the name {name} in cni dir {}{broken}",
        directory.display()
    )))
}

/// The network at `path`: a file, or the first file of a directory.
///
/// # Errors
/// When there is none or it cannot be understood.
pub fn load(path: &Path) -> Result<NetworkList, cni::Error> {
    if !path.is_dir() {
        return NetworkList::load(path);
    }
    match conf_files(path, &["conf", "json", "conflist"])?.first() {
        Some(file) => NetworkList::load(file),
        None => Err(cni::Error::invalid_config(format!("No networks found in {}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nad(config: &str) -> Nad {
        Nad {
            namespace: "ns".into(),
            name: "net-a".into(),
            config: Some(config.into()),
            resource: Some("intel.com/x".into()),
        }
    }

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        directory
    }

    #[test]
    fn inline_configuration() {
        let none = directory(&[]);
        for (config, name, kinds) in [
            (r#"{"type":"a"}"#, "net-a", vec!["a"]),
            (r#"{"name":"","type":"a"}"#, "net-a", vec!["a"]),
            (r#"{"Name":null,"type":"a"}"#, "net-a", vec!["a"]),
            (r#" {"cniVersion":"0.3.1","name":"x","type":"a"} "#, "x", vec!["a"]),
            (r#"{"name":"x","plugins":[{"type":"a"},{"type":"b"}]}"#, "x", vec!["a", "b"]),
            (r#"{"plugins":[{"type":"a"}]}"#, "net-a", vec!["a"]),
        ] {
            let network = Network::of(&nad(config), none.path()).unwrap();
            assert_eq!(network.label, "ns/net-a");
            assert_eq!(network.resource.as_deref(), Some("intel.com/x"));
            assert_eq!(network.list.name, name, "{config}");
            let got: Vec<_> = network.list.plugins.iter().map(|p| p.kind.as_str()).collect();
            assert_eq!(got, kinds, "{config}");
        }
    }

    #[test]
    fn what_cannot_be_used_names_the_network() {
        let none = directory(&[]);
        for (config, part) in [
            ("[]", "JSON"),
            ("{", "JSON"),
            ("{}", "'type'"),
            (r#"{"plugins":[]}"#, "no plugins"),
            (r#"{"plugins":[{}]}"#, "plugin config 0"),
            (r#"{"type":"a","cniVersion":"9.9.9"}"#, "9.9.9"),
            ("", "No networks found in"),
        ] {
            let error = Network::of(&nad(config), none.path()).unwrap_err().to_string();
            assert!(error.starts_with("network ns/net-a: ") && error.contains(part), "{config}: {error}");
        }
    }

    #[test]
    fn an_empty_specification_is_found_on_the_node() {
        let directory = directory(&[
            ("00-broken.conf", "{"),
            ("10-other.conf", r#"{"name":"other","type":"o"}"#),
            ("20.conflist", r#"{"name":"net-a","plugins":[{"type":"first"}]}"#),
            ("30.json", r#"{"name":"net-a","type":"second"}"#),
        ]);
        let empty = Nad { config: None, ..nad("") };
        let network = Network::of(&empty, directory.path()).unwrap();
        assert_eq!(network.list.plugins.first().map(|p| p.kind.as_str()), Some("first"));
        let error = find(directory.path(), "absent").unwrap_err().to_string();
        assert!(error.contains("no network available in the name absent in cni dir"), "{error}");
        assert!(error.contains("00-broken.conf"), "{error}");
    }

    #[test]
    fn files_and_directories() {
        let directory = directory(&[
            ("b.conf", r#"{"name":"b","type":"b"}"#),
            ("a.conflist", r#"{"name":"a","plugins":[{"type":"a"}]}"#),
        ]);
        assert_eq!(load(directory.path()).unwrap().name, "a");
        assert_eq!(load(&directory.path().join("b.conf")).unwrap().name, "b");
        assert!(load(&directory.path().join("c.conf")).is_err());
    }
}
