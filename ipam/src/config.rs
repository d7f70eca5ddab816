//! The configuration: the `ipam` section of a network, the flat file of the node, and the arguments of the call.

mod asked;
mod ranges;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use cni::{Args, CniResult, Dns, IpConfig, Object, Request, Route, Version};

use crate::error::Error;
use crate::range::Range;
use asked::Arguments;

/// Most addresses that a configuration may have a node ask for at once: each is an entry in the pool's object.
const LARGEST_BLOCK: u128 = 1024;

/// Where a node keeps what is the same for all networks.
#[derive(Debug, Clone)]
pub struct Places {
    /// Flat files, in the order in which they are looked for.
    pub flat_files: Vec<PathBuf>,
    /// `NODENAME` of the environment.
    pub node_name: Option<String>,
    /// The file with the host's name.
    pub host_name: PathBuf,
    /// Where ledgers are, unless the configuration says otherwise. It must not survive a reboot: no container does.
    pub data_dir: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        let flat = |root: &str| PathBuf::from(root).join("cni/net.d/whereabouts.d/whereabouts.conf");
        Self {
            flat_files: ["/etc/kubernetes", "/etc", "/host/etc"].map(flat).to_vec(),
            node_name: std::env::var("NODENAME").ok().filter(|name| !name.is_empty()),
            host_name: "/etc/hostname".into(),
            data_dir: "/run/cni/whereabouts".into(),
        }
    }
}

/// A range as one network uses it.
#[derive(Debug, Clone)]
pub struct Source {
    /// The name of its pool.
    pub pool: String,
    /// What is given out on its own account.
    pub range: Range,
    /// What is given out when it is asked for by name: also what is excluded or out of bounds.
    pub whole: Range,
}

/// A pod, by what the runtime tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// `namespace/name`; empty when the runtime did not tell.
    pub podref: String,
    /// UID, or empty.
    pub uid: String,
}

/// The validated configuration.
#[derive(Debug, Clone)]
pub struct Conf {
    /// One address is given from each set: from the first range of the set that has room.
    pub sets: Vec<Vec<Source>>,
    /// `network_name`.
    pub network_name: String,
    /// `node_slice_size` as a prefix length.
    pub slice: Option<u8>,
    /// The name of the peer's `NodeSlicePool`, where `node_slice_size` lets it have one.
    pub slices: Option<String>,
    /// `enable_overlapping_ranges`: whether an address is exclusive among all ranges of the same network name.
    pub exclusive: bool,
    /// `cool_down`: how long an address rests before another pod gets it.
    pub cool_down: Duration,
    /// Addresses that are asked for by name.
    pub requested: Vec<IpAddr>,
    /// Gateways that the pod names for the subnets that they are in.
    pub gateways: Vec<IpAddr>,
    /// The `IPAMClaim` that the pod refers to, by name.
    pub claim: Option<String>,
    /// `allowPersistentIPs`: whether to look for a claim in the pod's annotation when the runtime names none.
    pub look_for_claim: bool,
    /// `sticky`: whether pods of StatefulSets keep their addresses.
    pub sticky: bool,
    /// Addresses that are handed through.
    pub addresses: Vec<IpConfig>,
    /// Routes that are handed through.
    pub routes: Vec<Route>,
    /// Name resolution that is handed through.
    pub dns: Dns,
    /// The pod.
    pub pod: Pod,
    /// What is needed to reach the API server and keep the ledgers.
    pub node: NodeConf,
}

/// What the calls of all networks need.
#[derive(Debug, Clone)]
pub struct NodeConf {
    /// `kubernetes.kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// The node's name.
    pub name: String,
    /// Where ledgers are.
    pub data_dir: PathBuf,
}

/// The `ipam` section over the flat file.
struct Layers {
    ipam: Object,
    flat: Object,
    /// Both as one, key by key.
    values: Object,
    flat_dir: Option<PathBuf>,
}

impl Layers {
    fn read(config: &Object, places: &Places) -> Result<Self, Error> {
        let ipam: Object = config.decode("ipam").map_err(Error::Conf)?.unwrap_or_default();
        let named = ipam.decode::<PathBuf>("configuration_path").map_err(Error::Conf)?;
        let (mut flat, mut flat_dir) = (Object::new(), None);
        for path in named.iter().filter(|path| !path.as_os_str().is_empty()).chain(&places.flat_files) {
            match fs::read(path) {
                Ok(bytes) => {
                    flat = Object::parse(&bytes).map_err(|e| Error::Conf(e.context(path.display())))?;
                    flat_dir = path.parent().map(Path::to_owned);
                    break;
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(cause) => return Err(Error::FlatFile { path: path.clone(), cause }),
            }
        }
        let mut values = flat.clone();
        // What is empty says nothing.
        for (key, value) in ipam.iter().filter(|(_, value)| !matches!(*value, "null" | "\"\"" | "[]" | "{}"))
        {
            values.remove_fold(key);
            values.set_raw(key, value).map_err(Error::Conf)?;
        }
        Ok(Self { ipam, flat, values, flat_dir })
    }

    fn get<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        self.values.decode(key).map_err(Error::Conf)
    }

    fn text(&self, key: &str) -> Result<Option<String>, Error> {
        Ok(self.get::<String>(key)?.filter(|text| !text.is_empty()))
    }
}

impl NodeConf {
    /// Reads what does not depend on the network, also where the rest of the configuration is unusable.
    ///
    /// # Errors
    /// [`Error::Conf`] for a value of the wrong type.
    pub fn load(config: &Object, places: &Places) -> Result<Self, Error> {
        Self::read(&Layers::read(config, places)?, places)
    }

    fn read(layers: &Layers, places: &Places) -> Result<Self, Error> {
        let first_line = |path: PathBuf| {
            let text = fs::read_to_string(path).ok()?;
            text.lines().next().map(|line| line.trim().to_owned()).filter(|name| !name.is_empty())
        };
        let beside = || layers.flat_dir.as_ref().and_then(|dir| first_line(dir.join("nodename")));
        let name = places.node_name.clone().or_else(beside).or_else(|| first_line(places.host_name.clone()));
        Ok(Self {
            kubeconfig: match kubeconfig_in(&layers.ipam)? {
                Some(path) => Some(path),
                None => kubeconfig_in(&layers.flat)?,
            },
            name: name.ok_or_else(|| Error::NoNodeName { host_name: places.host_name.clone() })?,
            data_dir: layers.text("dataDir")?.map_or_else(|| places.data_dir.clone(), PathBuf::from),
        })
    }
}

fn kubeconfig_in(object: &Object) -> Result<Option<PathBuf>, Error> {
    let section: Option<Object> = object.decode("kubernetes").map_err(Error::Conf)?;
    let text = section.map(|section| section.decode::<String>("kubeconfig")).transpose();
    Ok(text.map_err(Error::Conf)?.flatten().filter(|text| !text.is_empty()).map(PathBuf::from))
}

/// The kubeconfig that the flat file of a node names.
///
/// # Errors
/// [`Error::Conf`] and [`Error::FlatFile`].
pub fn kubeconfig(places: &Places) -> Result<Option<PathBuf>, Error> {
    kubeconfig_in(&Layers::read(&Object::new(), places)?.flat)
}

impl Conf {
    /// Reads the configuration of a call. Keys match in any case, `null` is absent, unknown keys are ignored.
    ///
    /// # Errors
    /// [`Error::Conf`] and [`Error::Value`], naming the key.
    pub fn load(request: &Request, places: &Places) -> Result<Self, Error> {
        let layers = Layers::read(&request.config, places)?;
        let network_name = layers.text("network_name")?.unwrap_or_default();
        let static_part = static_part(&layers)?;
        let Arguments { mut requested, extra, gateways } = Arguments::read(&request.args)?;
        let mut addresses = static_part.ips;
        let sets = ranges::sets(&layers, &network_name, &addresses)?;
        let is_in_range =
            |address: &IpAddr| sets.iter().flatten().any(|source| source.whole.offset(*address).is_some());
        for ip in extra {
            let address = ip.address.addr();
            if is_in_range(&address) { requested.push(address) } else { addresses.push(ip) }
        }
        for ip in &mut addresses {
            ip.gateway = asked::gateway_in(&gateways, ip.address).or(ip.gateway);
        }
        requested.extend(asked::addresses(request)?);
        let mut seen = std::collections::BTreeSet::new();
        requested.retain(|address| seen.insert(*address));
        let at_top = request.config.decode("allowPersistentIPs").map_err(Error::Conf)?;
        let slice = slice(&layers)?;
        let slices = if network_name.is_empty() { request.name.clone() } else { network_name.clone() };
        Ok(Self {
            network_name,
            slice,
            slices: slice.map(|_| slices).filter(|name| crate::names::is_object_name(name)),
            exclusive: layers.get("enable_overlapping_ranges")?.unwrap_or(true),
            cool_down: Duration::from_secs(layers.get("cool_down")?.unwrap_or_default()),
            sets,
            requested,
            gateways,
            claim: asked::claim(request)?,
            look_for_claim: layers.get("allowPersistentIPs")?.or(at_top).unwrap_or(false),
            sticky: layers.get("sticky")?.unwrap_or(false),
            addresses,
            routes: static_part.routes,
            dns: static_part.dns,
            pod: Pod::of(&request.args),
            node: NodeConf::read(&layers, places)?,
        })
    }

    /// The gateway that goes with an address of this range: what the pod names for its subnet, else the range's.
    #[must_use]
    pub fn gateway(&self, range: &Range) -> Option<IpAddr> {
        asked::gateway_in(&self.gateways, range.subnet()).or(range.gateway())
    }

    /// `node_slice_size` as a number of addresses of the range.
    #[must_use]
    pub fn block(&self, range: &Range) -> Option<u128> {
        let bits = range.subnet().max_prefix_len().saturating_sub(self.slice?);
        Some(1_u128.checked_shl(bits.into()).unwrap_or(u128::MAX).min(LARGEST_BLOCK))
    }

    /// `log_file` and `log_level`; what cannot be read is absent, since logging is no reason to fail.
    #[must_use]
    pub fn logging(config: &Object, places: &Places) -> (Option<PathBuf>, Option<String>) {
        let Ok(layers) = Layers::read(config, places) else { return (None, None) };
        let text = |key| layers.text(key).ok().flatten();
        (text("log_file").map(PathBuf::from), text("log_level"))
    }
}

impl Pod {
    fn of(args: &Args) -> Self {
        let get = |key| args.get(key).filter(|text| !text.is_empty());
        let podref = match (get("K8S_POD_NAMESPACE"), get("K8S_POD_NAME")) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => String::new(),
        };
        Self { podref, uid: get("K8S_POD_UID").unwrap_or_default().to_owned() }
    }
}

fn value(key: &'static str, value: impl Into<String>, expected: &'static str) -> Error {
    Error::Value { key, value: value.into(), expected }
}

/// An address without the leading zeros that the peer allows in its decimal numbers.
fn plain(text: &str) -> String {
    let (address, prefix) =
        text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    if address.contains(':') {
        return text.to_owned();
    }
    let number = |part: &str| match part.trim_start_matches('0') {
        "" if !part.is_empty() => "0".to_owned(),
        digits => digits.to_owned(),
    };
    let address = address.split('.').map(number).collect::<Vec<_>>().join(".");
    prefix.map_or_else(|| address.clone(), |prefix| format!("{address}/{prefix}"))
}

/// `addresses`, `routes` and `dns`, which have the form that they have in a result.
fn static_part(layers: &Layers) -> Result<CniResult, Error> {
    let mut object = Object::new();
    let mut addresses = layers.get::<Vec<Object>>("addresses")?.unwrap_or_default();
    for entry in &mut addresses {
        if let Some(address) = entry.decode::<String>("address").map_err(Error::Conf)? {
            entry.remove_fold("address");
            entry.set("address", &plain(&address)).map_err(Error::Conf)?;
        }
    }
    object.set("ips", &addresses).map_err(Error::Conf)?;
    for key in ["routes", "dns"] {
        if let Some(json) = layers.values.get_fold(key) {
            object.set_raw(key, json).map_err(Error::Conf)?;
        }
    }
    CniResult::parse(&object.to_vec(), Version::V1_0_0).map_err(|e| Error::Conf(e.context("ipam")))
}

fn slice(layers: &Layers) -> Result<Option<u8>, Error> {
    let Some(text) = layers.text("node_slice_size")? else { return Ok(None) };
    let length = text.trim_start_matches('/').parse().ok().filter(|length| *length <= 128);
    length.map(Some).ok_or_else(|| value("node_slice_size", text, "a prefix length such as /26"))
}
