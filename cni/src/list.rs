//! Network configuration: a list of plugins, or one plugin that stands for a list of one.

use crate::{Error, Object, Version, names};
use std::path::{Path, PathBuf};

/// A network: its name, its version, its plugins in order.
#[derive(Clone, Debug)]
pub struct NetworkList {
    /// The network's name. Checked when the network is used, not when it is read.
    pub name: String,
    /// The version all plugins are called with.
    pub version: Version,
    /// CHECK is to do nothing.
    pub disable_check: bool,
    /// GC is to do nothing.
    pub disable_gc: bool,
    /// Plugins in a sub-directory beside the file are not to be added.
    pub load_only_inlined_plugins: bool,
    /// The plugins in order of ADD.
    pub plugins: Vec<PluginConf>,
    /// Everything but the plugins; `None` when the network came as a single plugin.
    head: Option<Object>,
}

/// The configuration of one plugin.
#[derive(Clone, Debug)]
pub struct PluginConf {
    /// `type`: the name of the plugin's executable.
    pub kind: String,
    /// The configuration as it came.
    pub config: Object,
}

impl PluginConf {
    /// Takes a plugin's configuration.
    ///
    /// # Errors
    /// Code 7 when `type` is missing, code 6 when it is no text.
    pub fn new(config: Object) -> Result<Self, Error> {
        match config.decode::<String>("type")? {
            Some(kind) if !kind.is_empty() => Ok(PluginConf { kind, config }),
            _ => Err(Error::invalid_config("error parsing configuration: missing 'type'")),
        }
    }

    /// Whether the plugin declares `capability`.
    pub fn has_capability(&self, capability: &str) -> bool {
        let declared: Option<Object> = self.config.decode("capabilities").ok().flatten();
        declared.is_some_and(|c| c.get(capability) == Some("true"))
    }
}

impl NetworkList {
    /// Reads a network: a single plugin when there is a `type`, else a list. Where both are there `type` counts, as
    /// with the reference implementation.
    ///
    /// # Errors
    /// Code 6 for JSON of the wrong form, code 7 for a list without plugins or a plugin without `type`, code 1
    /// for a version not known here.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        Self::from_object(Object::parse(bytes).map_err(|e| e.context("error parsing configuration"))?)
    }

    /// As [`parse`](Self::parse), from an object.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse).
    pub fn from_object(object: Object) -> Result<Self, Error> {
        let kind = object.decode::<String>("type")?.unwrap_or_default();
        // A list in a file may leave its plugins to a sub-directory; here is no directory.
        let plugins = object.get_fold("plugins").filter(|plugins| *plugins != "null");
        match (kind.as_str(), plugins, object.get_fold("type")) {
            ("", None, None) => {
                return Err(Error::invalid_config(
                    "error parsing configuration: it has neither 'type' (one plugin) nor 'plugins' (a list)",
                ));
            }
            ("", Some(_), _) => return Self::read_list(object),
            _ => {}
        }
        Ok(NetworkList {
            name: object.decode("name")?.unwrap_or_default(),
            version: object.decode::<String>("cniVersion")?.unwrap_or_default().parse()?,
            disable_check: false,
            disable_gc: false,
            load_only_inlined_plugins: false,
            plugins: vec![PluginConf::new(object)?],
            head: None,
        })
    }

    /// Reads a list, which may leave all its plugins to a sub-directory.
    fn read_list(mut object: Object) -> Result<Self, Error> {
        let plugins: Option<Vec<Object>> = object.decode("plugins")?;
        let load_only_inlined_plugins = flag(&object, "loadOnlyInlinedPlugins")?;
        match &plugins {
            Some(plugins) if plugins.is_empty() => {
                return Err(Error::invalid_config("error parsing configuration list: no plugins in list"));
            }
            None if load_only_inlined_plugins => {
                return Err(Error::invalid_config(
                    "error parsing configuration list: `loadOnlyInlinedPlugins` is true, and there is no 'plugins' key",
                ));
            }
            _ => {}
        }
        let plugins = plugins
            .unwrap_or_default()
            .into_iter()
            .enumerate()
            .map(|(index, o)| {
                PluginConf::new(o).map_err(|e| e.context(format!("failed to parse plugin config {index}")))
            })
            .collect::<Result<_, _>>()?;
        object.remove_fold("plugins");
        Ok(NetworkList {
            name: object
                .decode("name")?
                .ok_or_else(|| Error::invalid_config("error parsing configuration list: no name"))?,
            version: negotiate(&object)?,
            disable_check: flag(&object, "disableCheck")?,
            disable_gc: flag(&object, "disableGC")?,
            load_only_inlined_plugins,
            plugins,
            head: Some(object),
        })
    }

    /// Reads a file: `.conflist` as a list, with the plugins in the sub-directory of the network's name beside
    /// it unless the list forbids that; anything else as [`parse`](Self::parse) does.
    ///
    /// # Errors
    /// Code 5 when a file cannot be read, and those of [`parse`](Self::parse); the file is named.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let in_file = |e: Error| e.context(path.display());
        let object = Object::parse(&read(path)?).map_err(in_file)?;
        if path.extension().is_none_or(|e| e != "conflist") {
            return Self::from_object(object).map_err(in_file);
        }
        let mut list = Self::read_list(object).map_err(in_file)?;
        if !list.load_only_inlined_plugins {
            names::check_network_name(&list.name).map_err(in_file)?;
            let directory = path.parent().unwrap_or(Path::new("")).join(&list.name);
            list.plugins.extend(load_plugins(&directory)?);
        }
        if list.plugins.is_empty() {
            return Err(in_file(Error::invalid_config("no plugin configs found")));
        }
        Ok(list)
    }

    /// The network a runtime uses when it is given a directory: the first usable `.conf`, `.conflist` or
    /// `.json` file in lexical order.
    ///
    /// # Errors
    /// Code 5 when the directory cannot be read; code 7 when it has no usable network, telling what is wrong
    /// with the first file.
    pub fn load_first(directory: &Path) -> Result<Self, Error> {
        let mut first_error = None;
        for file in conf_files(directory, &["conf", "conflist", "json"])? {
            match Self::load(&file) {
                Ok(list) => return Ok(list),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        let none = || Error::invalid_config(format!("no networks found in {}", directory.display()));
        Err(first_error.unwrap_or_else(none))
    }

    /// Whether the network came as a single plugin and not as a list.
    pub fn is_single(&self) -> bool {
        self.head.is_none()
    }

    /// The network as JSON, with the plugins as they are now (those of a sub-directory included).
    pub fn to_vec(&self) -> Vec<u8> {
        match (&self.head, self.plugins.first()) {
            (None, Some(plugin)) => plugin.config.to_vec(),
            (None, None) => Vec::new(),
            (Some(head), _) => {
                let mut object = head.clone();
                let plugins: Vec<&Object> = self.plugins.iter().map(|p| &p.config).collect();
                // Objects always have a JSON form.
                let _ = object.set("plugins", &plugins);
                object.to_vec()
            }
        }
    }
}

/// The files of a directory that end in one of `extensions` (without the dot), in lexical order of their names.
/// A directory that does not exist has none.
///
/// # Errors
/// Code 5 when the directory cannot be read.
pub fn conf_files(directory: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let failed = |e: std::io::Error| Error::io(format!("cannot read directory {}: {e}", directory.display()));
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let wanted = path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e));
        if wanted && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The plugins of a directory: one in each of its `.conf` files, in lexical order of their names.
///
/// # Errors
/// Code 5 when something cannot be read, and those of [`PluginConf::new`]; the file is named.
pub fn load_plugins(directory: &Path) -> Result<Vec<PluginConf>, Error> {
    let load = |file: PathBuf| {
        Object::parse(&read(&file)?).and_then(PluginConf::new).map_err(|e| e.context(file.display()))
    };
    conf_files(directory, &["conf"])?.into_iter().map(load).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|e| Error::io(format!("error reading {}: {e}", path.display())))
}

/// The highest version of `cniVersions` and `cniVersion` that is spoken here; `cniVersion` alone must be.
fn negotiate(object: &Object) -> Result<Version, Error> {
    let single = object.decode::<String>("cniVersion")?;
    let Some(several) = object.decode::<Vec<String>>("cniVersions")? else {
        return single.unwrap_or_default().parse();
    };
    let candidates = several.iter().chain(single.as_ref().filter(|s| !s.is_empty()));
    match candidates.filter_map(|text| text.parse().ok()).max() {
        Some(version) => Ok(version),
        None if several.is_empty() => single.unwrap_or_default().parse(),
        None => Err(Error::incompatible_version(format!("none of the cniVersions {several:?} is supported"))
            .with_details(format!("supported versions are {}", Version::join(Version::ALL)))),
    }
}

/// A flag that may be a boolean or the text of one.
fn flag(object: &Object, key: &str) -> Result<bool, Error> {
    match object.get_fold(key) {
        None | Some("null" | "false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => match object.decode::<String>(key)?.unwrap_or_default().to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(Error::decoding(format!("{key:?} must be true or false, not {other:?}"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> NetworkList {
        NetworkList::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let text =
            r#"{"cniVersion":"0.3.1","name":"n","type":"bridge","big":12345678901234567890,"ipam":{}}"#;
        let list = list(text);
        assert!(list.is_single());
        assert_eq!((list.name.as_str(), list.version), ("n", Version::V0_3_1));
        assert_eq!(list.plugins.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(), ["bridge"]);
        assert_eq!(list.to_vec(), text.as_bytes());
    }

    #[test]
    fn a_plugin_with_null_for_plugins_is_one_plugin() {
        assert!(list(r#"{"name":"n","plugins":null,"type":"a"}"#).is_single());
    }

    #[test]
    fn where_there_are_both_the_type_counts() {
        for plugins in ["[]", "7", r#"[{"type":"b"}]"#] {
            let list = list(&format!(r#"{{"name":"n","plugins":{plugins},"type":"a"}}"#));
            assert_eq!((list.is_single(), list.plugins[0].kind.as_str()), (true, "a"), "{plugins}");
        }
        assert!(!list(r#"{"name":"n","plugins":[{"type":"b"}],"type":""}"#).is_single());
    }

    #[test]
    fn a_list_keeps_what_it_does_not_know() {
        let text = r#"{"name":"n","cniVersion":"1.0.0","x":1e2,"disableCheck":"TRUE","disableGC":true,"plugins":[{"type":"a","y":0.10},{"type":"b"}]}"#;
        let list = list(text);
        assert!(
            !list.is_single() && list.disable_check && list.disable_gc && !list.load_only_inlined_plugins
        );
        assert_eq!(list.plugins.len(), 2);
        assert_eq!(String::from_utf8(list.to_vec()).unwrap(), text);
    }

    #[test]
    fn versions_are_negotiated() {
        let table = [
            (r#""cniVersion":"0.4.0""#, Version::V0_4_0),
            (r#""x":1"#, Version::V0_1_0),
            (r#""cniVersions":["0.3.1","1.1.0","1.0.0"]"#, Version::V1_1_0),
            (r#""cniVersions":["0.3.1","2.0.0"],"cniVersion":"0.4.0""#, Version::V0_4_0),
            (r#""cniVersions":[],"cniVersion":"0.4.0""#, Version::V0_4_0),
            (r#""cniVersions":["1.0.0"],"cniVersion":"0.4.0""#, Version::V1_0_0),
        ];
        for (versions, want) in table {
            let list = list(&format!(r#"{{"name":"n",{versions},"plugins":[{{"type":"a"}}]}}"#));
            assert_eq!(list.version, want, "{versions}");
        }
        let none = NetworkList::parse(br#"{"name":"n","cniVersions":["2.0.0"],"plugins":[{"type":"a"}]}"#);
        assert_eq!(none.unwrap_err().code, Error::INCOMPATIBLE_VERSION);
    }

    #[test]
    fn what_is_no_network_is_named() {
        let table = [
            ("", "JSON"),
            ("[]", "JSON"),
            (r#"{"name":"n"}"#, "'type'"),
            (r#"{"name":"n","type":""}"#, "'type'"),
            (r#"{"name":"n","type":7}"#, "type"),
            (r#"{"name":7,"type":"a"}"#, "name"),
            (r#"{"plugins":[{"type":"a"}]}"#, "no name"),
            (r#"{"name":"n","plugins":[]}"#, "no plugins"),
            (r#"{"name":"n","plugins":{}}"#, "plugins"),
            (r#"{"name":"n","plugins":[{"type":"a"},{}]}"#, "plugin config 1"),
            (r#"{"name":"n","plugins":[null]}"#, "plugins"),
            (r#"{"name":"n","plugins":[{"type":"a"}],"disableGC":"maybe"}"#, "disableGC"),
            (r#"{"name":"n","plugins":[{"type":"a"}],"disableGC":3}"#, "disableGC"),
            (r#"{}"#, "neither 'type'"),
            (r#"{"name":"n","plugins":null}"#, "neither 'type'"),
        ];
        for (text, part) in table {
            let error = NetworkList::parse(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn capabilities_are_those_set_to_true() {
        let list = list(r#"{"name":"n","type":"a","capabilities":{"ips":true,"mac":false,"x":1}}"#);
        let plugin = &list.plugins[0];
        assert!(plugin.has_capability("ips"));
        assert!(!plugin.has_capability("mac") && !plugin.has_capability("x") && !plugin.has_capability("y"));
    }

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let file = directory.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        directory
    }

    #[test]
    fn plugins_in_the_sub_directory_follow_the_inlined_ones() {
        let directory = directory(&[
            ("a.conflist", r#"{"name":"n","plugins":[{"type":"a"}]}"#),
            ("b.conflist", r#"{"name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"a"}]}"#),
            ("c.conflist", r#"{"name":"n"}"#),
            ("d.conflist", r#"{"name":"empty"}"#),
            ("e.conflist", r#"{"name":"../n","plugins":[{"type":"a"}]}"#),
            ("f.conflist", r#"{"name":"n","loadOnlyInlinedPlugins":true}"#),
            ("n/20.conf", r#"{"type":"z"}"#),
            ("n/10.conf", r#"{"type":"y"}"#),
            ("n/30.json", r#"{"type":"no"}"#),
        ]);
        let load = |name: &str| NetworkList::load(&directory.path().join(name));
        let kinds =
            |list: NetworkList| list.plugins.into_iter().map(|p| p.kind).collect::<Vec<_>>().join(" ");
        assert_eq!(kinds(load("a.conflist").unwrap()), "a y z");
        assert_eq!(kinds(load("b.conflist").unwrap()), "a");
        assert_eq!(kinds(load("c.conflist").unwrap()), "y z");
        assert!(load("d.conflist").unwrap_err().msg.contains("no plugin configs found"));
        assert!(load("e.conflist").unwrap_err().to_string().contains("network name"));
        assert!(load("f.conflist").unwrap_err().to_string().contains("loadOnlyInlinedPlugins"));
        assert_eq!(load("none.conf").unwrap_err().code, Error::IO);
        let whole = String::from_utf8(load("a.conflist").unwrap().to_vec()).unwrap();
        assert_eq!(whole, r#"{"name":"n","plugins":[{"type":"a"},{"type":"y"},{"type":"z"}]}"#);
    }

    #[test]
    fn the_first_usable_file_is_the_runtimes_network() {
        let directory = directory(&[
            ("00.txt", "x"),
            ("10.conf", "broken"),
            ("20.conflist", r#"{"name":"two","plugins":[{"type":"a"}]}"#),
            ("30.conf", r#"{"name":"three","type":"a"}"#),
            ("15.conf/x", "a directory"),
        ]);
        assert_eq!(NetworkList::load_first(directory.path()).unwrap().name, "two");
        std::fs::remove_file(directory.path().join("20.conflist")).unwrap();
        std::fs::remove_file(directory.path().join("30.conf")).unwrap();
        assert!(NetworkList::load_first(directory.path()).unwrap_err().to_string().contains("10.conf"));
        let none = NetworkList::load_first(&directory.path().join("nowhere")).unwrap_err();
        assert!(none.msg.contains("no networks found"), "{none}");
    }
}
