//! The configuration that the runtime reads: multus in front of the primary network.

use cni::{Object, Version};

use crate::primary::Primary;

/// The network's name, unless it is to have the primary's.
const NAME: &str = "multus-cni-network";

/// Keys that the runtime's configuration takes over from the daemon's.
const TAKEN_OVER: [&str; 9] = [
    "binDir",
    "cniDir",
    "logFile",
    "logLevel",
    "logToStderr",
    "logOptions",
    "namespaceIsolation",
    "globalNamespaces",
    "auxiliaryCNIChainName",
];

/// A file of the runtime's configuration directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Its name.
    pub name: &'static str,
    /// Its content.
    pub content: Vec<u8>,
    /// The name under which an earlier version may have left a file: it would be read in place of this one, or as well.
    pub sibling: &'static str,
}

/// A file around `plugin`, the plugin's own configuration: a list from version 1.0.0 on, as runtimes want it, a flat
/// object before.
///
/// # Errors
/// Code 6 when a value has no JSON form.
pub fn around(name: &str, version: Version, plugin: &Object) -> Result<Generated, cni::Error> {
    let mut file = Object::new();
    file.set("cniVersion", version.as_str())?;
    file.set("name", name)?;
    if version >= Version::V1_0_0 {
        file.set("plugins", &[plugin])?;
        return Ok(Generated {
            name: "00-multus.conflist",
            content: pretty(&file)?,
            sibling: "00-multus.conf",
        });
    }
    for (key, value) in plugin.iter() {
        file.set_raw(key, value)?;
    }
    Ok(Generated { name: "00-multus.conf", content: pretty(&file)?, sibling: "00-multus.conflist" })
}

/// What the runtime reads in thick mode: `daemon` is the daemon's configuration.
///
/// # Errors
/// Code 6 for a value of the wrong type, code 1 for a version that is not known.
pub fn shim(daemon: &Object, primary: &Primary) -> Result<Generated, cni::Error> {
    let version = match daemon.decode::<String>("cniVersion")?.filter(|text| !text.is_empty()) {
        Some(text) => text.parse()?,
        None => primary.network.version,
    };
    let mut plugin = Object::new();
    plugin.set("type", "multus-shim")?;
    set_capabilities(&mut plugin, primary)?;
    for key in TAKEN_OVER.into_iter().chain(["daemonSocketDir"]) {
        if let Some(value) = daemon.get_fold(key).filter(|value| *value != "null") {
            plugin.set_raw(key, value)?;
        }
    }
    // The daemon reads it: the path is the daemon's.
    plugin.set("clusterNetwork", &primary.path)?;
    let is_overridden = daemon.decode::<bool>("overrideNetworkName")?.unwrap_or_default();
    around(network_name(primary, is_overridden), version, &plugin)
}

/// The network's name in thin mode and in thick mode.
#[must_use]
pub fn network_name(primary: &Primary, is_overridden: bool) -> &str {
    if is_overridden { &primary.network.name } else { NAME }
}

/// The runtime sends what is declared; what the primary gets of it is for the primary to say.
///
/// # Errors
/// Never in practice: names of capabilities have a JSON form.
pub fn set_capabilities(plugin: &mut Object, primary: &Primary) -> Result<(), cni::Error> {
    if primary.capabilities.is_empty() {
        return Ok(());
    }
    let mut capabilities = Object::new();
    for capability in &primary.capabilities {
        capabilities.set(capability, &true)?;
    }
    plugin.set("capabilities", &capabilities)
}

fn pretty(object: &Object) -> Result<Vec<u8>, cni::Error> {
    let failed =
        |e: serde_json::Error| cni::Error::internal(format!("a configuration has no JSON form: {e}"));
    // In the order in which the keys were set; what came from elsewhere stays as it was written.
    let mut text = b"{\n".to_vec();
    for (index, (key, value)) in object.iter().enumerate() {
        if index > 0 {
            text.extend_from_slice(b",\n");
        }
        text.extend_from_slice(b"    ");
        serde_json::to_writer(&mut text, key).map_err(failed)?;
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
    }
    text.extend_from_slice(b"\n}\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn primary(json: &str) -> (tempfile::TempDir, Primary) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("10-x.conflist"), json).unwrap();
        let mut primary = Primary::find(directory.path(), None).unwrap();
        primary.path = "/host/etc/cni/net.d/10-x.conflist".into();
        (directory, primary)
    }

    fn generated(daemon: &str, primary_json: &str) -> Generated {
        let (_directory, primary) = primary(primary_json);
        shim(&Object::parse(daemon.as_bytes()).unwrap(), &primary).unwrap()
    }

    const NEW: &str = r#"{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"a","capabilities":{"portMappings":true}}]}"#;
    const OLD: &str = r#"{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"type":"a"}]}"#;

    #[test]
    fn a_list_for_new_versions_and_a_flat_file_for_old_ones() {
        let new = generated(
            r#"{"chrootDir":"/hostroot","LogLevel":"verbose","cniDir":null,"readinessindicatorfile":"/r"}"#,
            NEW,
        );
        assert_eq!((new.name, new.sibling), ("00-multus.conflist", "00-multus.conf"));
        assert_eq!(
            String::from_utf8(new.content.clone()).unwrap(),
            "{\n    \"cniVersion\": \"1.0.0\",\n    \"name\": \"multus-cni-network\",\n    \"plugins\": [{\"type\":\"multus-shim\",\"capabilities\":{\"portMappings\":true},\"logLevel\":\"verbose\",\"clusterNetwork\":\"/host/etc/cni/net.d/10-x.conflist\"}]\n}\n"
        );
        let list = cni::NetworkList::parse(&new.content).unwrap();
        assert_eq!(list.plugins.first().map(|p| p.kind.as_str()), Some("multus-shim"));

        let old = generated(r#"{"overrideNetworkName":true,"daemonSocketDir":"/s"}"#, OLD);
        assert_eq!(old.name, "00-multus.conf");
        let object = Object::parse(&old.content).unwrap();
        assert_eq!(object.decode::<String>("name").unwrap().as_deref(), Some("cbr0"));
        assert_eq!(object.decode::<String>("daemonSocketDir").unwrap().as_deref(), Some("/s"));
        assert_eq!(object.decode::<String>("cniVersion").unwrap().as_deref(), Some("0.3.1"));
        let path: String = object.decode("clusterNetwork").unwrap().unwrap();
        assert_eq!(Path::new(&path).file_name().unwrap(), "10-x.conflist");
    }

    #[test]
    fn the_daemon_s_version_counts() {
        assert_eq!(generated(r#"{"cniVersion":"0.4.0"}"#, NEW).name, "00-multus.conf");
        let (_directory, primary) = primary(NEW);
        assert!(shim(&Object::parse(br#"{"cniVersion":"9"}"#).unwrap(), &primary).is_err());
    }
}
