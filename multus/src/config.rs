//! The multus configuration: what the runtime sends on standard input.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cni::exec::{Direct, Executor};
use cni::{Object, Request};
use serde_json::value::RawValue;

use crate::Error;
use crate::undeclared::Policy;

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what ends the call, on standard error.
    Panic,
    /// Errors.
    Error,
    /// What was done.
    Verbose,
    /// Why it was done.
    Debug,
}

/// Where logs go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConf {
    /// A file to append to.
    pub file: Option<PathBuf>,
    /// Whether standard error gets the log as well.
    pub to_stderr: bool,
    /// How much.
    pub level: LogLevel,
    /// The level as written, when it is none.
    pub unknown_level: Option<String>,
    /// When the file is put aside.
    pub rotation: Rotation,
}

/// When a log file is put aside, and how long those put aside are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Size, in bytes, from which on a new file is begun; 0 never begins one.
    pub max_size: u64,
    /// How many files put aside are kept; 0 keeps all.
    pub max_backups: usize,
    /// How long they are kept; zero keeps them for ever.
    pub max_age: Duration,
    /// Whether they are compressed.
    pub compress: bool,
}

impl Default for Rotation {
    fn default() -> Self {
        Rotation { max_size: 100 * MEGABYTE, max_backups: 5, max_age: 5 * DAY, compress: true }
    }
}

const MEGABYTE: u64 = 1 << 20;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The validated configuration.
#[derive(Debug, Clone)]
pub struct Conf {
    /// `cniVersion` as written.
    pub version: String,
    /// Directory of on-disk configurations of networks without `spec.config`.
    pub conf_dir: PathBuf,
    /// Directory of our state.
    pub cni_dir: PathBuf,
    /// Where plugins are looked for: `binDir`, then `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// Inline networks as written, the first one being the primary. What is wrong with them stops no DEL.
    pub delegates: Vec<Box<RawValue>>,
    /// Reference to the primary network; rules out `delegates`.
    pub cluster_network: Option<String>,
    /// Directory, beside the file of `cluster_network`, of plugins that every sandbox gets as its last network.
    pub auxiliary_chain: Option<String>,
    /// References to networks that every pod outside the system namespaces gets.
    pub default_networks: Vec<String>,
    /// How to reach the API server; `None` leaves the in-cluster environment.
    pub kubeconfig: Option<PathBuf>,
    /// Where logs go.
    pub log: LogConf,
    /// A file whose presence says that the default network is ready.
    pub readiness_indicator: Option<PathBuf>,
    /// Whether pods are confined to networks of their own namespace.
    pub namespace_isolation: bool,
    /// Namespaces whose networks every pod may use nevertheless.
    pub global_namespaces: Vec<String>,
    /// Namespaces whose pods get no `default_networks`.
    pub system_namespaces: Vec<String>,
    /// Where the networks of the cluster's own references are looked for.
    pub multus_namespace: String,
    /// What the runtime passes for capabilities.
    pub runtime_config: Object,
    /// What comes of a capability that a pod asks for and no plugin declares.
    pub undeclared_capabilities: Policy,
    /// Whether what DEL could not release stays on record for the next DEL. `retryDeleteOnError: false` says that it
    /// does not: one attempt, and what remains is nobody's.
    pub retry_delete: bool,
    /// What starts the delegates.
    pub executor: Arc<dyn Executor>,
}

const DEFAULT_CONF_DIR: &str = "/etc/cni/multus/net.d";
const DEFAULT_CNI_DIR: &str = "/var/lib/cni/multus";
const DEFAULT_BIN_DIR: &str = "/opt/cni/bin";
const DEFAULT_NAMESPACE: &str = "kube-system";

impl Conf {
    /// Reads the configuration of a call. Keys match in any case, `null` is the default.
    ///
    /// # Errors
    /// [`Error::Conf`] for a value of the wrong type.
    pub fn load(request: &Request) -> Result<Self, Error> {
        Self::read(&request.config, &request.path).map_err(Error::Conf)
    }

    fn read(object: &Object, cni_path: &[PathBuf]) -> Result<Self, cni::Error> {
        let text = |key| object.decode::<String>(key).map(|t| t.filter(|t| !t.is_empty()));
        let flag = |key| object.decode::<bool>(key);
        let directory = |key, default: &str| Ok(text(key)?.map_or_else(|| default.into(), PathBuf::from));
        let global = text("globalNamespaces")?.unwrap_or_else(|| "default".to_owned());
        Ok(Conf {
            version: text("cniVersion")?.unwrap_or_default(),
            conf_dir: directory("confDir", DEFAULT_CONF_DIR)?,
            cni_dir: directory("cniDir", DEFAULT_CNI_DIR)?,
            path: search_path(directory("binDir", DEFAULT_BIN_DIR)?, cni_path),
            delegates: object.decode("delegates")?.unwrap_or_default(),
            cluster_network: text("clusterNetwork")?,
            auxiliary_chain: text("auxiliaryCNIChainName")?,
            default_networks: object.decode("defaultNetworks")?.unwrap_or_default(),
            kubeconfig: text("kubeconfig")?.map(PathBuf::from),
            log: LogConf::read(object)?,
            readiness_indicator: text("readinessindicatorfile")?.map(PathBuf::from),
            namespace_isolation: flag("namespaceIsolation")?.unwrap_or_default(),
            global_namespaces: global.split(',').map(|name| name.trim().to_owned()).collect(),
            system_namespaces: object
                .decode("systemNamespaces")?
                .unwrap_or_else(|| vec![DEFAULT_NAMESPACE.to_owned()]),
            multus_namespace: text("multusNamespace")?.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            runtime_config: object.decode("runtimeConfig")?.unwrap_or_default(),
            undeclared_capabilities: Policy::read(object)?,
            retry_delete: flag("retryDeleteOnError")?.unwrap_or(true),
            executor: Arc::new(Direct),
        })
    }

    /// The runtime that runs the delegates.
    #[must_use]
    pub fn runtime(&self) -> cni::Runtime {
        cni::Runtime {
            path: self.path.clone(),
            cache_dir: self.cni_dir.clone(),
            executor: Arc::clone(&self.executor),
        }
    }

    /// Whether a pod of `pod` may use a network of `target`.
    #[must_use]
    pub fn may_use(&self, pod: &str, target: &str) -> bool {
        !self.namespace_isolation || pod == target || self.global_namespaces.iter().any(|n| n == target)
    }
}

impl LogConf {
    /// Reads the keys about logs.
    ///
    /// # Errors
    /// Code 6 for a value of the wrong type.
    pub fn read(object: &Object) -> Result<Self, cni::Error> {
        let text = object.decode::<String>("logLevel")?.unwrap_or_default();
        let level = match text.to_ascii_lowercase().as_str() {
            "" | "panic" => Ok(LogLevel::Panic),
            "error" => Ok(LogLevel::Error),
            "verbose" => Ok(LogLevel::Verbose),
            "debug" => Ok(LogLevel::Debug),
            _ => Err(text),
        };
        Ok(LogConf {
            file: object.decode::<String>("logFile")?.filter(|f| !f.is_empty()).map(PathBuf::from),
            to_stderr: object.decode("logToStderr")?.unwrap_or(true),
            level: *level.as_ref().unwrap_or(&LogLevel::Panic),
            unknown_level: level.err(),
            rotation: Rotation::read(&object.decode("logOptions")?.unwrap_or_default())?,
        })
    }
}

impl Rotation {
    /// Reads `logOptions`. Numbers below zero are taken as zero.
    fn read(options: &Object) -> Result<Self, cni::Error> {
        let number = |key| {
            let number = options.decode::<i64>(key).map_err(|e| e.context("logOptions"))?;
            Ok::<_, cni::Error>(number.map(|number| u32::try_from(number.max(0)).unwrap_or(u32::MAX)))
        };
        let default = Rotation::default();
        Ok(Rotation {
            max_size: number("maxSize")?.map_or(default.max_size, |size| u64::from(size) * MEGABYTE),
            max_backups: number("maxBackups")?
                .map_or(default.max_backups, |count| usize::try_from(count).unwrap_or(usize::MAX)),
            max_age: number("maxAge")?.map_or(default.max_age, |days| DAY.saturating_mul(days)),
            compress: options
                .decode("compress")
                .map_err(|e| e.context("logOptions"))?
                .unwrap_or(default.compress),
        })
    }
}

/// `binDir` first, then `CNI_PATH`, each once.
fn search_path(bin_dir: PathBuf, cni_path: &[PathBuf]) -> Vec<PathBuf> {
    let others: Vec<PathBuf> = cni_path.iter().filter(|path| **path != bin_dir).cloned().collect();
    std::iter::once(bin_dir).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(json: &str) -> Result<Conf, cni::Error> {
        Conf::read(&Object::parse(json.as_bytes()).unwrap(), &["/usr/lib/cni".into(), "/opt/cni/bin".into()])
    }

    #[test]
    fn defaults() {
        for json in
            ["{}", r#"{"confDir":null,"logLevel":"","delegates":null,"binDir":"","globalNamespaces":""}"#]
        {
            let conf = read(json).unwrap();
            assert_eq!(conf.conf_dir, Path::new("/etc/cni/multus/net.d"));
            assert_eq!(conf.cni_dir, Path::new("/var/lib/cni/multus"));
            assert_eq!(conf.path, [Path::new("/opt/cni/bin"), Path::new("/usr/lib/cni")]);
            assert_eq!(conf.global_namespaces, ["default"]);
            assert_eq!(conf.system_namespaces, ["kube-system"]);
            assert_eq!(conf.multus_namespace, "kube-system");
            assert!(conf.delegates.is_empty() && conf.kubeconfig.is_none() && !conf.namespace_isolation);
            assert_eq!(conf.log.rotation, Rotation::default());
            assert_eq!((conf.log.level, conf.log.to_stderr, conf.log.file), (LogLevel::Panic, true, None));
        }
    }

    #[test]
    fn every_key_in_any_case() {
        let conf = read(
            r#"{"ConfDir":"/a","CNIDIR":"/b","BinDir":"/c","delegates":[{"type":"x"}],"ClusterNetwork":"n",
                "defaultNetworks":["d"],"kubeConfig":"/k","LogFile":"/l","LogLevel":"Verbose","logToStderr":false,
                "readinessindicatorfile":"/r","namespaceIsolation":true,"globalNamespaces":" a , b","multusNamespace":"m",
                "auxiliaryCNIChainName":"aux","logOptions":{"maxAge":1,"MaxSize":2,"maxBackups":-1,"compress":false},
                "systemNamespaces":["s"],"runtimeConfig":{"dns":{}},"unknown":1}"#,
        )
        .unwrap();
        assert_eq!((conf.conf_dir.as_path(), conf.cni_dir.as_path()), (Path::new("/a"), Path::new("/b")));
        assert_eq!(conf.path.first().map(PathBuf::as_path), Some(Path::new("/c")));
        assert_eq!(conf.delegates.len(), 1);
        assert_eq!(conf.cluster_network.as_deref(), Some("n"));
        assert_eq!(conf.global_namespaces, ["a", "b"]);
        assert_eq!((conf.system_namespaces.len(), conf.multus_namespace.as_str()), (1, "m"));
        assert_eq!(conf.auxiliary_chain.as_deref(), Some("aux"));
        assert_eq!(conf.log.level, LogLevel::Verbose);
        let rotation = Rotation { max_size: 2 << 20, max_backups: 0, max_age: DAY, compress: false };
        assert_eq!(conf.log.rotation, rotation);
        assert_eq!(conf.runtime_config.get("dns"), Some("{}"));
    }

    #[test]
    fn wrong_types_name_the_key() {
        for (json, key) in [
            (r#"{"delegates":{}}"#, "delegates"),
            (r#"{"confDir":1}"#, "confDir"),
            (r#"{"namespaceIsolation":"yes"}"#, "namespaceIsolation"),
            (r#"{"runtimeConfig":[]}"#, "runtimeConfig"),
            (r#"{"logOptions":{"maxAge":"5d"}}"#, "logOptions"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.to_string().contains(key), "{json}: {error}");
        }
        assert_eq!(read(r#"{"logLevel":"chatty"}"#).unwrap().log.unknown_level.as_deref(), Some("chatty"));
    }

    #[test]
    fn isolation() {
        let conf = read(r#"{"namespaceIsolation":true,"globalNamespaces":"default,shared"}"#).unwrap();
        assert!(conf.may_use("a", "a") && conf.may_use("a", "shared") && conf.may_use("a", "default"));
        assert!(!conf.may_use("a", "b") && !conf.may_use("default", "a"));
        assert!(read("{}").unwrap().may_use("a", "b"));
    }
}
