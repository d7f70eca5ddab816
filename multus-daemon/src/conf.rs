//! The daemon's configuration file (`-config`).
//!
//! The file is three things at once, as with the peer: the daemon's own settings, what the generated `00-multus.conf`
//! is made of ([`manager`](crate::manager)), and keys that replace those of every call's configuration
//! ([`DaemonConf::overlay`]).

use std::path::{Path, PathBuf};
use std::time::Duration;

use cni::Object;
use multus::config::LogConf;

use crate::Error;
use crate::layout::{Layout, under};

/// Where the file is when no flag says otherwise.
pub const DEFAULT_FILE: &str = "/etc/cni/net.d/multus.d/daemon-config.json";

const DEFAULT_SOCKET_DIR: &str = "/run/multus/";
const DEFAULT_CNI_DIR: &str = "/var/lib/cni/multus";

/// How many calls of a kind are worked on at a time where the configuration does not say. Each may start a plugin,
/// and some of those take 50 MB.
const DEFAULT_LIMIT: usize = 16;

/// Kubelet gives a sandbox four minutes; what takes longer hangs, and keeps others from their turn.
const DEFAULT_DELEGATE_LIMIT: Duration = Duration::from_secs(240);

/// The validated configuration.
#[derive(Debug, Clone)]
pub struct DaemonConf {
    /// The file as it is.
    pub raw: Object,
    /// The host's root as the daemon sees it; delegates run below it.
    pub chroot: Option<PathBuf>,
    /// Where the socket is.
    pub socket_dir: PathBuf,
    /// Where logs go.
    pub log: LogConf,
    /// How many ADDs are worked on at a time.
    pub add_limit: usize,
    /// How many DELs are worked on at a time.
    pub del_limit: usize,
    /// How long a delegate may take before it is killed.
    pub delegate_limit: Duration,
    /// Where the generated configuration is written.
    pub cni_config_dir: PathBuf,
    /// Where the primary's configuration is looked for; `None` when it is `cni_config_dir`.
    pub autoconfig_dir: Option<PathBuf>,
    /// The primary's file name; `None` takes the first.
    pub master: Option<String>,
    /// A configuration to copy in place of a generated one.
    pub config_file: Option<PathBuf>,
    /// A file whose presence says that the default network is ready.
    pub readiness_indicator: Option<PathBuf>,
    /// How the API server is reached, where it is not as any pod of the cluster does.
    pub kubeconfig: Option<PathBuf>,
    /// Directory of the state of sandboxes.
    pub cni_dir: PathBuf,
    /// Port of the metrics listener.
    pub metrics_port: Option<u16>,
    /// Whether the runtime's configuration goes when the daemon ends; then pods get the primary network alone.
    pub cleanup_on_exit: bool,
    /// Whether networks are attached and detached when the annotation of a running pod changes.
    pub follow_annotations: bool,
}

impl DaemonConf {
    /// Reads the file; one that does not exist is empty.
    ///
    /// # Errors
    /// [`Error::Conf`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        let failed = |message: String| Error::Conf { path: path.to_owned(), message };
        let bytes = host::durable::read(path).map_err(|e| failed(e.to_string()))?;
        let raw = match bytes {
            Some(bytes) => Object::parse(&bytes).map_err(|e| failed(e.to_string()))?,
            None => Object::new(),
        };
        Self::read(raw, Layout::of_host).map_err(|e| failed(e.to_string()))
    }

    /// Validates a configuration; `layout` tells the directories of the runtime on the host with the given root.
    ///
    /// # Errors
    /// Code 6 or 7, naming the key.
    pub fn read(raw: Object, layout: impl FnOnce(&Path) -> Layout) -> Result<Self, cni::Error> {
        let text = |key| raw.decode::<String>(key).map(|t| t.filter(|t| !t.is_empty()));
        let path = |key| text(key).map(|t| t.map(PathBuf::from));
        let flag = |key| raw.decode::<bool>(key).map(Option::unwrap_or_default);
        let limit = |key: &str| match raw.decode::<i64>(key)? {
            None => Ok(None),
            Some(number) => usize::try_from(number).ok().filter(|n| *n > 0).map(Some).ok_or_else(|| {
                cni::Error::invalid_config(format!("{key:?} must be at least 1, and is {number}"))
            }),
        };
        let chroot = path("chrootDir")?;
        let runtimes = || {
            let root = chroot.as_deref().unwrap_or(Path::new("/"));
            under(root, &layout(root).conf_dir)
        };
        Ok(DaemonConf {
            cni_config_dir: path("cniConfigDir")?.unwrap_or_else(runtimes),
            chroot,
            socket_dir: path("socketDir")?.unwrap_or_else(|| DEFAULT_SOCKET_DIR.into()),
            log: log(&raw)?,
            add_limit: limit("connectionLimit")?.unwrap_or(DEFAULT_LIMIT),
            del_limit: limit("delLimit")?.unwrap_or(DEFAULT_LIMIT),
            delegate_limit: duration(&raw, "delegateTimeout")?.unwrap_or(DEFAULT_DELEGATE_LIMIT),
            autoconfig_dir: path("multusAutoconfigDir")?,
            master: text("multusMasterCNI")?,
            config_file: path("multusConfigFile")?.filter(|file| file != Path::new("auto")),
            readiness_indicator: path("readinessindicatorfile")?,
            kubeconfig: path("kubeconfig")?,
            cni_dir: path("cniDir")?.unwrap_or_else(|| DEFAULT_CNI_DIR.into()),
            metrics_port: raw.decode("metricsPort")?,
            cleanup_on_exit: flag("cleanupConfigOnExit")?,
            follow_annotations: flag("followAnnotations")?,
            raw,
        })
    }

    /// Whether `00-multus.conf` is generated from the primary's configuration.
    #[must_use]
    pub fn is_auto(&self) -> bool {
        self.config_file.is_none()
    }

    /// The configuration that the runtime's calls have in the end, as far as it is known without one: the primary of the
    /// generated file is only known to be there.
    ///
    /// # Errors
    /// Code 5 or 6 when the file of `multusConfigFile` cannot be read or understood.
    pub fn of_runtime(&self) -> Result<Object, cni::Error> {
        let Some(file) = &self.config_file else { return self.overlay(br#"{"clusterNetwork":"auto"}"#) };
        let bytes = std::fs::read(file).map_err(|e| cni::Error::io(format!("{}: {e}", file.display())))?;
        let failed = |e: cni::Error| e.context(file.display());
        let plugins = Object::parse(&bytes).and_then(|file| file.decode::<Vec<Object>>("plugins"));
        match plugins.map_err(failed)?.and_then(|plugins| plugins.into_iter().next()) {
            Some(plugin) => self.overlay(&plugin.to_vec()),
            None => self.overlay(&bytes),
        }
    }

    /// A call's configuration with the daemon's keys in place of its own. Where the daemon writes the configuration
    /// itself, the file that tells of the default network is the one it knows of.
    ///
    /// # Errors
    /// Code 6 when `config` is no object.
    pub fn overlay(&self, config: &[u8]) -> Result<Object, cni::Error> {
        let mut merged = Object::parse(config).map_err(|e| e.context("network configuration"))?;
        if self.is_auto() {
            merged.remove_fold("readinessindicatorfile");
        }
        for (key, value) in self.raw.iter() {
            merged.remove_fold(key);
            merged.set_raw(key, value)?;
        }
        Ok(merged)
    }
}

/// A length of time as Go writes it: `1h30m`, `10m`, `500ms`.
pub(crate) fn duration(raw: &Object, key: &str) -> Result<Option<Duration>, cni::Error> {
    let Some(text) = raw.decode::<String>(key)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    parse_duration(&text).map(Some).ok_or_else(|| {
        cni::Error::invalid_config(format!(
            "{key:?} must be a length of time as 1h30m or 45s, and is {text:?}"
        ))
    })
}

/// As [`duration`]; `None` for what is none, or no time at all.
pub(crate) fn parse_duration(mut text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    while !text.is_empty() {
        let number = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, rest) = text.split_at(number);
        let unit = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        text = rest;
    }
    Some(total).filter(|total| !total.is_zero())
}

/// What is logged; nothing on standard error unless it is asked for.
fn log(raw: &Object) -> Result<LogConf, cni::Error> {
    let to_stderr = raw.decode("logToStderr")?.unwrap_or_default();
    Ok(LogConf { to_stderr, ..LogConf::read(raw)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<DaemonConf, cni::Error> {
        DaemonConf::read(Object::parse(json.as_bytes()).unwrap(), |_| Layout::default())
    }

    #[test]
    fn defaults() {
        let conf = read(r#"{"chrootDir":null,"multusConfigFile":"auto","socketDir":""}"#).unwrap();
        assert_eq!(conf.socket_dir, Path::new("/run/multus/"));
        assert_eq!(conf.cni_config_dir, Path::new("/etc/cni/net.d"));
        let below = read(r#"{"chrootDir":"/hostroot"}"#).unwrap();
        assert_eq!(below.cni_config_dir, Path::new("/hostroot/etc/cni/net.d"));
        assert!(conf.is_auto() && conf.chroot.is_none() && !conf.log.to_stderr);
        assert_eq!((conf.add_limit, conf.del_limit), (DEFAULT_LIMIT, DEFAULT_LIMIT));
    }

    #[test]
    fn lengths_of_time_as_go_writes_them() {
        for (text, seconds) in [("10m", 600.0), ("1h30m", 5400.0), ("1.5s", 1.5), ("250ms", 0.25)] {
            let conf = read(&format!(r#"{{"delegateTimeout":"{text}"}}"#)).unwrap();
            assert_eq!(conf.delegate_limit, Duration::from_secs_f64(seconds), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (json, part) in [
            (r#"{"connectionLimit":0}"#, "connectionLimit"),
            (r#"{"connectionLimit":-1}"#, "connectionLimit"),
            (r#"{"socketDir":1}"#, "socketDir"),
            (r#"{"delegateTimeout":"4"}"#, "delegateTimeout"),
            (r#"{"delegateTimeout":"0s"}"#, "delegateTimeout"),
            (r#"{"delegateTimeout":"4 m"}"#, "delegateTimeout"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn what_the_runtimes_calls_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("own.conf");
        let own = format!(r#"{{"multusConfigFile":{file:?},"cniDir":"/d"}}"#);
        for (conf, content, expected) in [
            (r#"{"defaultNetworks":["x"]}"#, "", (Some("auto"), 0, 1)),
            (own.as_str(), r#"{"type":"multus-shim","delegates":[{},{}]}"#, (None, 2, 0)),
            (&own, r#"{"plugins":[{"clusterNetwork":"c","defaultNetworks":["x"]}]}"#, (Some("c"), 0, 1)),
        ] {
            std::fs::write(&file, content).unwrap();
            let names = read(conf).unwrap().of_runtime().unwrap();
            let cluster = names.decode::<String>("clusterNetwork").unwrap();
            let count = |key| names.decode::<Vec<Object>>(key).unwrap_or_default().map_or(0, |l| l.len());
            let defaults = names.decode::<Vec<String>>("defaultNetworks").unwrap().map_or(0, |l| l.len());
            assert_eq!((cluster.as_deref(), count("delegates"), defaults), expected, "{content}");
        }
        std::fs::write(&file, "{").unwrap();
        assert!(read(&own).unwrap().of_runtime().unwrap_err().to_string().contains("own.conf"));
    }

    #[test]
    fn the_daemon_s_keys_replace_those_of_the_call() {
        let conf = read(r#"{"cniVersion":"1.0.0","cniDir":"/d"}"#).unwrap();
        let merged = conf.overlay(
            br#"{"name":"n","CniDir":"/s","cniVersion":"0.3.1","ReadinessIndicatorFile":"/x","z":1}"#,
        );
        let text = String::from_utf8(merged.unwrap().to_vec()).unwrap();
        assert_eq!(text, r#"{"name":"n","z":1,"cniVersion":"1.0.0","cniDir":"/d"}"#);
        let own = read(r#"{"multusConfigFile":"/own.conf","readinessindicatorfile":"/r"}"#).unwrap();
        let text = String::from_utf8(own.overlay(br#"{"name":"n"}"#).unwrap().to_vec()).unwrap();
        assert!(text.contains(r#""readinessindicatorfile":"/r""#), "{text}");
    }
}
