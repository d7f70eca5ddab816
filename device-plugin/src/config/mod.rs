//! The configuration file: which resources there are, and which devices belong to each.
//!
//! The format is that of sriov-network-device-plugin, as its users and the SR-IOV network operator write it. What
//! that program overlooks is an error here, with the place in the file.

mod json;
mod range;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use host::PciAddress;

use json::{Object, Value};

pub(crate) use json::Fault;
pub(crate) use range::Ranged;

/// The name of an extended resource: `prefix/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Resource {
    pub(crate) prefix: String,
    pub(crate) name: String,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.prefix, self.name)
    }
}

impl Resource {
    /// The name of the resource's socket, in whichever directory it is.
    pub(crate) fn socket_name(&self) -> String {
        format!("{}_{}.sock", self.prefix, self.name)
    }
}

/// The kind of device that a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum DeviceType {
    /// A PCI network function: a VF, or a PF without VFs.
    NetDevice,
    /// A PCI processing accelerator.
    Accelerator,
    /// A network device of the auxiliary bus: a scalable function.
    AuxNetDevice,
}

impl DeviceType {
    const ALL: [Self; 3] = [Self::NetDevice, Self::Accelerator, Self::AuxNetDevice];

    /// As the configuration file writes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NetDevice => "netDevice",
            Self::Accelerator => "accelerator",
            Self::AuxNetDevice => "auxNetDevice",
        }
    }
}

/// The driver that a vDPA device is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VdpaType {
    Vhost,
    Virtio,
}

impl VdpaType {
    /// As the configuration file and device information files write it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Vhost => "vhost",
            Self::Virtio => "virtio",
        }
    }

    /// The name of the driver.
    pub(crate) fn driver(self) -> &'static str {
        match self {
            Self::Vhost => "vhost_vdpa",
            Self::Virtio => "virtio_vdpa",
        }
    }
}

/// How the devices of one container are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Placement {
    /// From as few PFs as possible.
    #[default]
    Pack,
    /// From as many PFs as possible.
    Spread,
}

/// One set of conditions; a device has to meet all of them. An empty list is no condition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Selector {
    pub(crate) vendors: Vec<String>,
    pub(crate) devices: Vec<String>,
    pub(crate) drivers: Vec<String>,
    pub(crate) pci_addresses: Vec<String>,
    pub(crate) acpi_indexes: Vec<String>,
    pub(crate) pf_names: Vec<Ranged>,
    pub(crate) root_devices: Vec<Ranged>,
    pub(crate) link_types: Vec<String>,
    pub(crate) ddp_profiles: Vec<String>,
    pub(crate) p_keys: Vec<String>,
    pub(crate) aux_types: Vec<String>,
    pub(crate) vdpa_type: Option<VdpaType>,
    pub(crate) is_rdma: bool,
    /// No condition: what a container gets along with the device.
    pub(crate) need_vhost_net: bool,
}

/// Texts for the `extra` part of a device's information, by PCI address, or by `*` for all devices.
pub(crate) type AdditionalInfo = BTreeMap<String, BTreeMap<String, String>>;

/// One resource and the devices that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PoolConf {
    pub(crate) resource: Resource,
    pub(crate) device_type: DeviceType,
    /// Do not tell kubelet the NUMA node.
    pub(crate) exclude_topology: bool,
    /// A device that meets any of them belongs to the pool.
    pub(crate) selectors: Vec<Selector>,
    pub(crate) additional_info: AdditionalInfo,
    /// Offer also devices that the node itself uses.
    pub(crate) offer_in_use: bool,
    /// A device is healthy also while its PF is down or has no carrier.
    pub(crate) ignore_link: bool,
    pub(crate) placement: Placement,
    /// The PCI function, such as a GPU, to which the devices of a container are to be as near as can be.
    pub(crate) near: Option<PciAddress>,
}

/// The configuration file, understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Conf {
    /// In the order of the file: a device goes to the first pool that takes it.
    pub(crate) pools: Vec<Arc<PoolConf>>,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("configuration file {}: {source}; name another one with -config-file", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration file {}:{fault}", path.display())]
    Invalid { path: PathBuf, fault: Fault },
}

/// Reads the file at `path`. Also returns what is suspicious in it, though it can be used.
pub(crate) fn load(path: &Path, default_prefix: &str) -> Result<(Conf, Vec<Fault>), Error> {
    let text = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    understand(&text, default_prefix).map_err(|fault| Error::Invalid { path: path.to_owned(), fault })
}

fn understand(file: &[u8], default_prefix: &str) -> Result<(Conf, Vec<Fault>), Fault> {
    match std::str::from_utf8(file) {
        Ok(text) => parse(text, default_prefix),
        Err(error) => Err(not_text(file, error.valid_up_to())),
    }
}

fn not_text(bytes: &[u8], offset: usize) -> Fault {
    let mut lines: Vec<_> = bytes.get(..offset).unwrap_or_default().split(|&octet| octet == b'\n').collect();
    Fault {
        line: lines.len(),
        column: lines.pop().map_or(0, <[u8]>::len) + 1,
        key: String::new(),
        problem: "not UTF-8".to_owned(),
    }
}

/// Understands the text of a configuration file.
pub(crate) fn parse(text: &str, default_prefix: &str) -> Result<(Conf, Vec<Fault>), Fault> {
    let mut suspicions = Vec::new();
    let file = Value::parse(text)?.object()?;
    suspicions.extend(file.others(&["resourceList"]).map(|value| value.fault("unknown key, ignored")));
    let mut conf = Conf::default();
    let mut names = BTreeSet::new();
    for entry in file.get("resourceList").map_or_else(|| Ok(Vec::new()), Value::list)? {
        let pool = pool(&entry, default_prefix, &mut suspicions)?;
        if !names.insert(pool.resource.clone()) {
            return Err(
                entry.fault(format!("resource {} is there twice; give it one name each", pool.resource))
            );
        }
        conf.pools.push(Arc::new(pool));
    }
    Ok((conf, suspicions))
}

const POOL_KEYS: [&str; 10] = [
    "resourceName",
    "resourcePrefix",
    "deviceType",
    "excludeTopology",
    "selectors",
    "additionalInfo",
    "offerInUse",
    "ignoreLink",
    "placement",
    "near",
];

fn pool(entry: &Value<'_>, default_prefix: &str, suspicions: &mut Vec<Fault>) -> Result<PoolConf, Fault> {
    let object = entry.object()?;
    // The operator writes one of these keys, and nobody has ever read it.
    let known: Vec<&str> = POOL_KEYS.into_iter().chain(["selectorObj", "selectorObjs"]).collect();
    suspicions.extend(object.others(&known).map(|value| value.fault("unknown key, ignored")));
    let resource = resource(entry, &object, default_prefix, suspicions)?;
    let device_type = match object.get("deviceType") {
        None => DeviceType::NetDevice,
        Some(value) => {
            let text: String = value.decode("a text")?;
            let known = DeviceType::ALL.into_iter().find(|known| known.as_str() == text);
            known.ok_or_else(|| {
                let all = DeviceType::ALL.map(DeviceType::as_str).join(", ");
                value.fault(format!("{text:?} is no device type; there are {all}"))
            })?
        }
    };
    let selectors = match object.get("selectors") {
        None => vec![Selector::default()],
        Some(value) if value.is_list() => {
            let list = value.list()?;
            if list.is_empty() {
                return Err(
                    value.fault("an empty list selects nothing; leave the key out to select everything")
                );
            }
            list.iter().map(|value| selector(value, device_type, suspicions)).collect::<Result<_, _>>()?
        }
        Some(value) => vec![selector(value, device_type, suspicions)?],
    };
    if device_type == DeviceType::AuxNetDevice && selectors.iter().any(|s| s.aux_types.is_empty()) {
        let at = object.get("selectors").unwrap_or(entry);
        return Err(at.fault("device type auxNetDevice needs auxTypes, such as [\"sf\"], in every selector"));
    }
    Ok(PoolConf {
        resource,
        device_type,
        exclude_topology: object.decode("excludeTopology", "true or false")?,
        selectors,
        additional_info: additional_info(&object, suspicions)?,
        offer_in_use: object.decode("offerInUse", "true or false")?,
        ignore_link: object.decode("ignoreLink", "true or false")?,
        placement: placement(&object)?,
        near: near(&object)?,
    })
}

fn near(object: &Object<'_>) -> Result<Option<PciAddress>, Fault> {
    let Some(value) = object.get("near") else { return Ok(None) };
    let text: String = value.decode("a text")?;
    let address = (!text.is_empty()).then(|| text.parse()).transpose();
    address.map_err(|_| value.fault(format!("{text:?} is no PCI address in full, such as 0000:3b:02.1")))
}

fn placement(object: &Object<'_>) -> Result<Placement, Fault> {
    let Some(value) = object.get("placement") else { return Ok(Placement::default()) };
    match value.decode::<String>("a text")?.as_str() {
        "pack" => Ok(Placement::Pack),
        "spread" => Ok(Placement::Spread),
        other => Err(value.fault(format!("{other:?} is no placement; there are pack and spread"))),
    }
}

fn resource(
    entry: &Value<'_>,
    object: &Object<'_>,
    default_prefix: &str,
    suspicions: &mut Vec<Fault>,
) -> Result<Resource, Fault> {
    let named = object.get("resourceName");
    let name: String = object.decode("resourceName", "a text")?;
    let value = named.unwrap_or(entry);
    if name.is_empty() {
        return Err(value.fault("resourceName is missing"));
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(value.fault(format!("{name:?} may have only letters, digits, - and _")));
    }
    let edges = [name.bytes().next(), name.bytes().next_back()];
    if name.len() > 63 || edges.into_iter().flatten().any(|b| !b.is_ascii_alphanumeric()) {
        suspicions.push(value.fault(
            "kubelet will refuse this name: it must begin and end with a letter or digit and have at most 63",
        ));
    }
    let mut prefix: String = object.decode("resourcePrefix", "a text")?;
    if prefix.is_empty() {
        default_prefix.clone_into(&mut prefix);
    }
    let at = object.get("resourcePrefix").unwrap_or(entry);
    // It becomes part of file names.
    if prefix.contains('/') || prefix.starts_with('.') || prefix.is_empty() {
        return Err(at.fault(format!("resource prefix {prefix:?} is not a domain name such as example.com")));
    }
    if !is_domain(&prefix) || prefix.ends_with("kubernetes.io") {
        suspicions.push(at.fault(format!(
            "kubelet will refuse the prefix {prefix:?}: it must be a domain name in lower case, and none of kubernetes.io"
        )));
    }
    Ok(Resource { prefix, name })
}

/// A DNS subdomain (RFC 1123), as the prefix of an extended resource has to be.
fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_inner = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
        !label.is_empty() && label.bytes().all(is_inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

/// The only kind of auxiliary device that is a network device of its own: others, such as `eth`, are parts of one.
const SCALABLE_FUNCTION: &str = "sf";

/// A selector, what its texts look like, and how to say so.
type Form = (&'static str, fn(&str) -> bool, &'static str);

const FORMS: [Form; 5] = [
    ("vendors", is_pci_id, "write four hexadecimal digits, such as 8086"),
    ("devices", is_pci_id, "write four hexadecimal digits, such as 154c"),
    (
        "pciAddresses",
        |text| text.parse::<PciAddress>().is_ok(),
        "write the address in full, such as 0000:3b:02.1",
    ),
    ("rootDevices", is_root_device, "write the address in full, such as 0000:3b:00.0#0-3"),
    ("linkTypes", |text| ["ether", "infiniband"].contains(&text), "there are ether and infiniband"),
];

fn is_pci_id(text: &str) -> bool {
    text.len() == 4 && text.bytes().all(|octet| octet.is_ascii_hexdigit())
}

/// With or without numbers of functions behind it.
fn is_root_device(text: &str) -> bool {
    text.split('#').next().is_some_and(|address| address.trim().parse::<PciAddress>().is_ok())
}

/// The selectors that a type of device has.
fn selector_keys(device_type: DeviceType) -> &'static [&'static str] {
    match device_type {
        DeviceType::NetDevice => &[
            "vendors",
            "devices",
            "drivers",
            "pciAddresses",
            "acpiIndexes",
            "pfNames",
            "rootDevices",
            "linkTypes",
            "ddpProfiles",
            "pKeys",
            "isRdma",
            "needVhostNet",
            "vdpaType",
        ],
        DeviceType::Accelerator => &["vendors", "devices", "drivers", "pciAddresses", "acpiIndexes"],
        DeviceType::AuxNetDevice => &[
            "vendors",
            "devices",
            "drivers",
            "auxTypes",
            "pfNames",
            "rootDevices",
            "linkTypes",
            "isRdma",
            "needVhostNet",
        ],
    }
}

fn selector(value: &Value<'_>, kind: DeviceType, suspicions: &mut Vec<Fault>) -> Result<Selector, Fault> {
    if value.is_null() {
        return Ok(Selector::default());
    }
    let object = value.object()?;
    let known = selector_keys(kind);
    suspicions.extend(
        object
            .others(known)
            .map(|value| value.fault(format!("device type {} has no such selector, ignored", kind.as_str()))),
    );
    let texts = |key: &str| if known.contains(&key) { texts(&object, key) } else { Ok(Vec::new()) };
    let switch = |key: &str| known.contains(&key).then(|| object.decode(key, "true or false")).transpose();
    let ranged = |key: &str| {
        let entries = texts(key)?
            .into_iter()
            .map(|(entry, value)| Ranged::parse(&entry).map_err(|error| value.fault(error.to_string())));
        entries.collect::<Result<Vec<_>, _>>()
    };
    let plain = |key: &str| Ok(texts(key)?.into_iter().map(|(text, _)| text).collect::<Vec<_>>());
    for (key, is_possible, form) in FORMS {
        for (text, value) in texts(key)? {
            if !is_possible(&text) {
                suspicions.push(value.fault(format!("{text:?} matches nothing: {form}")));
            }
        }
    }
    for (kind, value) in texts("auxTypes")? {
        if kind != SCALABLE_FUNCTION {
            return Err(value.fault(format!("{kind:?} is no auxiliary device for containers; there is sf")));
        }
    }
    let vdpa_type = match object.get("vdpaType").filter(|_| known.contains(&"vdpaType")) {
        None => None,
        Some(value) => match value.decode::<String>("a text")?.as_str() {
            "" => None,
            "vhost" => Some(VdpaType::Vhost),
            "virtio" => Some(VdpaType::Virtio),
            other => {
                return Err(value.fault(format!("{other:?} is no vDPA type; there are vhost and virtio")));
            }
        },
    };
    let is_rdma = switch("isRdma")?.unwrap_or(false);
    if is_rdma && vdpa_type.is_some() {
        return Err(value.fault("isRdma and vdpaType exclude each other; use two entries"));
    }
    Ok(Selector {
        vendors: plain("vendors")?,
        devices: plain("devices")?,
        drivers: plain("drivers")?,
        pci_addresses: plain("pciAddresses")?,
        acpi_indexes: plain("acpiIndexes")?,
        pf_names: ranged("pfNames")?,
        root_devices: ranged("rootDevices")?,
        link_types: plain("linkTypes")?,
        ddp_profiles: plain("ddpProfiles")?,
        p_keys: plain("pKeys")?,
        aux_types: plain("auxTypes")?,
        vdpa_type,
        is_rdma,
        need_vhost_net: switch("needVhostNet")?.unwrap_or(false),
    })
}

/// A list of texts, each with its value for error messages.
fn texts<'a>(object: &Object<'a>, key: &str) -> Result<Vec<(String, Value<'a>)>, Fault> {
    let Some(list) = object.get(key) else { return Ok(Vec::new()) };
    // Null is an empty text, which nothing has: to leave it out could leave a list that is no condition.
    let text = |value: &Value<'a>| Ok(value.decode::<Option<String>>("a text")?.unwrap_or_default());
    list.list()?.into_iter().map(|value| Ok((text(&value)?, value))).collect()
}

fn additional_info(object: &Object<'_>, suspicions: &mut Vec<Fault>) -> Result<AdditionalInfo, Fault> {
    let mut info = AdditionalInfo::new();
    let Some(value) = object.get("additionalInfo") else { return Ok(info) };
    for (device, texts) in value.object()?.members() {
        if device != "*" && device.parse::<PciAddress>().is_err() {
            suspicions.push(texts.fault("matches nothing: the key must be * or a full PCI address"));
        }
        if !texts.is_null() {
            let texts: BTreeMap<String, Option<String>> = texts.decode("an object of texts")?;
            let texts = texts.into_iter().map(|(name, text)| (name, text.unwrap_or_default()));
            info.insert(device.to_owned(), texts.collect());
        }
    }
    Ok(info)
}

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod tests;
