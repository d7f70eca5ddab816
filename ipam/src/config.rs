//! The configuration: the `ipam` section of a network, the flat file of the node, and the arguments of the call.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni::{Args, CniResult, Dns, IpConfig, Object, Request, Route, Version};
use ipnet::IpNet;

use crate::error::Error;
use crate::names;
use crate::range::Range;

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
    /// `enable_overlapping_ranges`: whether an address is exclusive among all ranges of the same network name.
    pub exclusive: bool,
    /// `cool_down`: how long an address rests before another pod gets it.
    pub cool_down: Duration,
    /// Addresses that are asked for by name.
    pub requested: Vec<IpAddr>,
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
    flat_dir: Option<PathBuf>,
}

impl Layers {
    fn read(config: &Object, places: &Places) -> Result<Self, Error> {
        let ipam: Object = config.decode("ipam").map_err(Error::Conf)?.unwrap_or_default();
        let named = ipam.decode::<PathBuf>("configuration_path").map_err(Error::Conf)?;
        let (mut flat, mut flat_dir) = (Object::new(), None);
        for path in named.iter().filter(|path| !path.as_os_str().is_empty()).chain(&places.flat_files) {
            if let Ok(bytes) = fs::read(path) {
                flat = Object::parse(&bytes).map_err(|e| Error::Conf(e.context(path.display())))?;
                flat_dir = path.parent().map(Path::to_owned);
                break;
            }
        }
        Ok(Self { ipam, flat, flat_dir })
    }

    fn get<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        match self.ipam.decode(key).map_err(Error::Conf)? {
            Some(value) => Ok(Some(value)),
            None => self.flat.decode(key).map_err(Error::Conf),
        }
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
        let kubeconfig = |object: &Object| -> Result<Option<PathBuf>, Error> {
            let section: Option<Object> = object.decode("kubernetes").map_err(Error::Conf)?;
            let text = section.map(|section| section.decode::<String>("kubeconfig")).transpose();
            Ok(text.map_err(Error::Conf)?.flatten().filter(|text| !text.is_empty()).map(PathBuf::from))
        };
        let first_line = |path: PathBuf| {
            let text = fs::read_to_string(path).ok()?;
            text.lines().next().map(|line| line.trim().to_owned()).filter(|name| !name.is_empty())
        };
        let beside = || layers.flat_dir.as_ref().and_then(|dir| first_line(dir.join("nodename")));
        let name = places.node_name.clone().or_else(beside).or_else(|| first_line(places.host_name.clone()));
        Ok(Self {
            kubeconfig: match kubeconfig(&layers.ipam)? {
                Some(path) => Some(path),
                None => kubeconfig(&layers.flat)?,
            },
            name: name.ok_or_else(|| Error::NoNodeName { host_name: places.host_name.clone() })?,
            data_dir: layers.text("dataDir")?.map_or_else(|| places.data_dir.clone(), PathBuf::from),
        })
    }
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
        let mut addresses = static_part.ips;
        let sets = sets(&layers, &network_name, &addresses)?;
        let whole =
            |address: &IpAddr| sets.iter().flatten().any(|source| source.whole.offset(*address).is_some());
        let (mut requested, extra) = arguments(&request.args)?;
        for ip in extra {
            if whole(&ip.address.addr()) { requested.push(ip.address.addr()) } else { addresses.push(ip) }
        }
        requested.extend(asked_for(request)?);
        requested.dedup();
        Ok(Self {
            network_name,
            slice: slice(&layers)?,
            exclusive: layers.get("enable_overlapping_ranges")?.unwrap_or(true),
            cool_down: Duration::from_secs(layers.get("cool_down")?.unwrap_or_default()),
            sets,
            requested,
            addresses,
            routes: static_part.routes,
            dns: static_part.dns,
            pod: Pod::of(&request.args),
            node: NodeConf::read(&layers, places)?,
        })
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

/// `addresses`, `routes` and `dns`, which have the form that they have in a result.
fn static_part(layers: &Layers) -> Result<CniResult, Error> {
    let mut object = Object::new();
    for (key, name) in [("addresses", "ips"), ("routes", "routes"), ("dns", "dns")] {
        let found = layers.ipam.get_fold(key).or_else(|| layers.flat.get_fold(key));
        if let Some(json) = found {
            object.set_raw(name, json).map_err(Error::Conf)?;
        }
    }
    CniResult::parse(&object.to_vec(), Version::V1_0_0).map_err(|e| Error::Conf(e.context("ipam")))
}

/// `range` and `ipRanges`.
fn sets(layers: &Layers, network_name: &str, fixed: &[IpConfig]) -> Result<Vec<Vec<Source>>, Error> {
    // A gateway at the top belongs to the ranges of its family.
    let default_gateway = address(layers.text("gateway")?, "gateway")?;
    let fixed: Vec<IpNet> = fixed.iter().map(|ip| IpNet::from(ip.address.addr())).collect();
    let read = |object: &Object| source(object, network_name, default_gateway, &fixed);
    let mut sets = Vec::new();
    if layers.text("range")?.is_some() {
        let legacy = if layers.ipam.get_fold("range").is_some() { &layers.ipam } else { &layers.flat };
        sets.push(vec![read(&without_gateway(legacy))?]);
    }
    for set in layers.get::<Vec<serde_json::Value>>("ipRanges")?.unwrap_or_default() {
        let members = match set {
            serde_json::Value::Array(members) => members,
            member => vec![member],
        };
        let parse = |member: serde_json::Value| {
            let object = Object::parse(member.to_string().as_bytes());
            read(&object.map_err(|e| Error::Conf(e.context("ipRanges")))?)
        };
        let set: Vec<Source> = members.into_iter().map(parse).collect::<Result<_, _>>()?;
        if set.is_empty() {
            return Err(value("ipRanges", "[]", "a range, or a list of ranges with at least one"));
        }
        sets.push(set);
    }
    if sets.is_empty() {
        return Err(value("range", "", "given, or ipRanges: without a range there are no addresses"));
    }
    Ok(sets)
}

/// The top level's `gateway` is not that of its `range` alone, and may be of another family.
fn without_gateway(object: &Object) -> Object {
    let mut object = object.clone();
    object.remove_fold("gateway");
    object
}

fn source(
    object: &Object,
    network_name: &str,
    default_gateway: Option<IpAddr>,
    fixed: &[IpNet],
) -> Result<Source, Error> {
    let text = |key| object.decode::<String>(key).map_err(Error::Conf).map(|t| t.filter(|t| !t.is_empty()));
    let range = text("range")?.unwrap_or_default();
    let (subnet, first, last) = parse_range(&range)
        .ok_or_else(|| value("range", &range, "a CIDR, or FIRST-LAST/PREFIX with both inside it"))?;
    let bound = |key: &'static str, written| Ok::<_, Error>(address(text(key)?, key)?.or(written));
    let (first, last) = (bound("range_start", first)?, bound("range_end", last)?);
    let gateway = address(text("gateway")?, "gateway")?;
    let gateway = gateway.or(default_gateway.filter(|gateway| gateway.is_ipv4() == subnet.addr().is_ipv4()));
    let mut exclude = fixed.to_vec();
    for hole in object.decode::<Vec<String>>("exclude").map_err(Error::Conf)?.unwrap_or_default() {
        let net = hole.parse::<IpAddr>().map(IpNet::from).ok().or_else(|| cni::parse_cidr(&hole));
        exclude.push(net.ok_or_else(|| value("exclude", &hole, "a CIDR or an address"))?);
    }
    let source = Source {
        pool: names::pool(network_name, subnet),
        range: Range::new(subnet, first, last, &exclude, gateway),
        whole: Range::new(subnet, None, None, &[], gateway),
    };
    if !names::is_object_name(&source.pool) {
        return Err(value("network_name", network_name, "lower-case letters, digits, '-' and '.'"));
    }
    if source.range.capacity() == 0 {
        return Err(value(
            "range",
            &range,
            "one in which range_start, range_end and exclude leave an address",
        ));
    }
    Ok(source)
}

/// The subnet, and the bounds of the spelling `FIRST-LAST/PREFIX`.
fn parse_range(text: &str) -> Option<(IpNet, Option<IpAddr>, Option<IpAddr>)> {
    let Some((first, rest)) = text.split_once('-') else {
        return cni::parse_cidr(text).map(|net| (net.trunc(), None, None));
    };
    let (last, prefix) = rest.split_once('/')?;
    let first: IpAddr = first.trim().parse().ok()?;
    let last: IpAddr = last.trim().parse().ok()?;
    let subnet = cni::parse_cidr(&format!("{last}/{prefix}"))?.trunc();
    subnet.contains(&first).then_some((subnet, Some(first), Some(last)))
}

fn address(text: Option<String>, key: &'static str) -> Result<Option<IpAddr>, Error> {
    text.map(|text| text.parse().map_err(|_| value(key, text, "an IP address"))).transpose()
}

fn slice(layers: &Layers) -> Result<Option<u8>, Error> {
    let Some(text) = layers.text("node_slice_size")? else { return Ok(None) };
    let length = text.trim_start_matches('/').parse().ok().filter(|length| *length <= 128);
    length.map(Some).ok_or_else(|| value("node_slice_size", text, "a prefix length such as /26"))
}

/// `IP` and `GATEWAY` of CNI_ARGS: addresses without a prefix length are requests, the others may be additions.
fn arguments(args: &Args) -> Result<(Vec<IpAddr>, Vec<IpConfig>), Error> {
    let gateway = address(args.get("GATEWAY").filter(|text| !text.is_empty()).map(str::to_owned), "GATEWAY")?;
    let (mut requested, mut extra) = (Vec::new(), Vec::new());
    for text in args.get("IP").unwrap_or_default().split(',').map(str::trim).filter(|text| !text.is_empty()) {
        match (cni::parse_cidr(text), text.parse()) {
            (Some(address), _) => {
                let gateway = gateway.filter(|gateway| gateway.is_ipv4() == address.addr().is_ipv4());
                extra.push(IpConfig { interface: None, address, gateway });
            }
            (None, Ok(address)) => requested.push(address),
            (None, Err(_)) => return Err(value("IP", text, "an address, with or without a prefix length")),
        }
    }
    Ok((requested, extra))
}

/// `runtimeConfig.ips` and `args.cni.ips`.
fn asked_for(request: &Request) -> Result<Vec<IpAddr>, Error> {
    let of = |section: Option<Object>| {
        let ips = section.map(|section| section.decode::<Vec<String>>("ips")).transpose();
        ips.map(|ips| ips.flatten().unwrap_or_default()).map_err(Error::Conf)
    };
    let args: Option<Object> = request.config.decode("args").map_err(Error::Conf)?;
    let args = args.map(|args| args.decode::<Object>("cni")).transpose().map_err(Error::Conf)?.flatten();
    let mut texts = of(Some(request.runtime_config().map_err(Error::Conf)?))?;
    texts.extend(of(args)?);
    let parse = |text: String| {
        let address = text.parse().ok().or_else(|| cni::parse_cidr(&text).map(|net| net.addr()));
        address.ok_or_else(|| value("ips", text, "addresses, with or without a prefix length"))
    };
    texts.into_iter().map(parse).collect()
}
