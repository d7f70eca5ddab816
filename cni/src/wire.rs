//! Results as each version of the protocol spells them.
//!
//! Three shapes: 0.1.0 and 0.2.0 (`ip4`, `ip6`), 0.3.0 to 0.4.0 (`interfaces`, `ips` with the family), 1.0.0
//! and 1.1.0. Within a shape everything is printed, as the reference library does, also what a later version
//! introduced. Reading is tolerant as Go is: any case of keys, `null` for anything.

use crate::{CniResult, Dns, Error, Interface, IpConfig, Object, Route, Version};
use ipnet::IpNet;
use serde::Serialize;
use std::net::IpAddr;

/// `value` as compact JSON.
pub(crate) fn compact<T: Serialize>(value: &T) -> Vec<u8> {
    // Only a map with keys that are not texts can fail, and none of our types has one.
    serde_json::to_vec(value).unwrap_or_default()
}

/// `value` as JSON indented by four spaces.
pub(crate) fn pretty<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    // As above; and writing to a Vec does not fail.
    let _ = value.serialize(&mut serializer);
    bytes
}

/// See [`CniResult::parse`].
pub(crate) fn parse_result(bytes: &[u8], default_version: Version) -> Result<CniResult, Error> {
    let object = if bytes.trim_ascii() == b"null" {
        Object::new()
    } else {
        Object::parse(bytes).map_err(|e| e.context("CNI result"))?
    };
    read_result(&object, default_version).map_err(|e| e.context("CNI result"))
}

fn read_result(object: &Object, default_version: Version) -> Result<CniResult, Error> {
    let version = match object.decode::<String>("cniVersion")? {
        Some(text) if !text.is_empty() => text.parse()?,
        _ => default_version,
    };
    let mut result = CniResult {
        dns: object.decode("dns")?.map(|o: Object| read_dns(&o)).transpose()?.unwrap_or_default(),
        ..CniResult::default()
    };
    if version < Version::V0_3_0 {
        for key in ["ip4", "ip6"] {
            if let Some(family) = object.decode::<Object>(key)? {
                read_family(&family, &mut result).map_err(|e| e.context(key))?;
            }
        }
        return Ok(result);
    }
    result.interfaces = read_each(object, "interfaces", read_interface)?;
    result.ips = read_each(object, "ips", read_ip)?;
    result.routes = read_each(object, "routes", read_route)?;
    Ok(result)
}

fn read_each<T>(
    object: &Object,
    key: &str,
    read: impl Fn(&Object) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let elements: Vec<Option<Object>> = object.decode(key)?.unwrap_or_default();
    let each = |(index, element): (usize, Option<Object>)| {
        read(&element.unwrap_or_default()).map_err(|e| e.context(format!("{key}[{index}]")))
    };
    elements.into_iter().enumerate().map(each).collect()
}

fn read_family(object: &Object, result: &mut CniResult) -> Result<(), Error> {
    result.ips.push(IpConfig {
        interface: None,
        address: required(object, "ip")?,
        gateway: read_gateway(object, "gateway")?,
    });
    result.routes.extend(read_each(object, "routes", read_route)?);
    Ok(())
}

fn read_interface(object: &Object) -> Result<Interface, Error> {
    let text = |key| object.decode::<String>(key).map(Option::unwrap_or_default);
    Ok(Interface {
        name: text("name")?,
        mac: text("mac")?,
        mtu: object.decode("mtu")?.unwrap_or_default(),
        sandbox: text("sandbox")?,
        socket_path: text("socketPath")?,
        pci_id: text("pciID")?,
    })
}

fn read_ip(object: &Object) -> Result<IpConfig, Error> {
    // A negative index points nowhere, as no index does.
    let interface = object.decode::<i64>("interface")?.and_then(|i| usize::try_from(i).ok());
    Ok(IpConfig {
        interface,
        address: required(object, "address")?,
        gateway: read_gateway(object, "gateway")?,
    })
}

fn read_route(object: &Object) -> Result<Route, Error> {
    let number = |key| object.decode::<u32>(key);
    Ok(Route {
        dst: required(object, "dst")?,
        gw: read_gateway(object, "gw")?,
        mtu: number("mtu")?.unwrap_or_default(),
        advmss: number("advmss")?.unwrap_or_default(),
        priority: number("priority")?.unwrap_or_default(),
        table: number("table")?,
        scope: number("scope")?,
    })
}

fn read_dns(object: &Object) -> Result<Dns, Error> {
    let list = |key| object.decode::<Vec<String>>(key).map(Option::unwrap_or_default);
    Ok(Dns {
        nameservers: list("nameservers")?,
        domain: object.decode("domain")?.unwrap_or_default(),
        search: list("search")?,
        options: list("options")?,
    })
}

fn required(object: &Object, key: &str) -> Result<IpNet, Error> {
    let text: String = object.decode(key)?.ok_or_else(|| Error::decoding(format!("{key:?} is missing")))?;
    parse_cidr(&text)
        .ok_or_else(|| Error::decoding(format!("{key:?} is not an address with prefix length: {text:?}")))
}

/// Reads an address with its prefix length (`10.1.0.5/16`), as strictly as Go does: no leading zeros, whose
/// meaning would depend on the reader.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    if !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    IpNet::new(address.parse().ok()?, prefix.parse().ok()?).ok()
}

/// A gateway that may be spelt as the empty text, which Go reads as no address.
fn read_gateway(object: &Object, key: &str) -> Result<Option<IpAddr>, Error> {
    match object.decode::<String>(key)? {
        Some(text) if !text.is_empty() => text
            .parse()
            .map(Some)
            .map_err(|e| Error::decoding(format!("{key:?} is not an IP address: {text:?}: {e}"))),
        _ => Ok(None),
    }
}

/// How JSON is laid out.
#[derive(Clone, Copy)]
pub(crate) enum Layout {
    Compact,
    Pretty,
}

impl Layout {
    fn print<T: Serialize>(self, value: &T) -> Vec<u8> {
        match self {
            Layout::Compact => compact(value),
            Layout::Pretty => pretty(value),
        }
    }
}

/// See [`CniResult::to_json`].
pub(crate) fn print_result(result: &CniResult, version: Version, layout: Layout) -> Result<Vec<u8>, Error> {
    if version < Version::V0_3_0 {
        return print_families(result, version, layout);
    }
    let with_family = version < Version::V1_0_0;
    let wire = WireResult {
        version,
        interfaces: result.interfaces.iter().map(|i| WireInterface::new(i, !with_family)).collect(),
        ips: result.ips.iter().map(|ip| WireIp::new(ip, with_family)).collect(),
        routes: result.routes.iter().map(|r| WireRoute::new(r, true)).collect(),
        // Up to 0.4.0 the reference prints an empty object, from 1.0.0 on nothing.
        dns: (with_family || !result.dns.is_empty()).then(|| WireDns::new(&result.dns)),
    };
    Ok(layout.print(&wire))
}

fn print_families(result: &CniResult, version: Version, layout: Layout) -> Result<Vec<u8>, Error> {
    let family = |v4: bool| {
        result.ips.iter().find(|ip| is_v4(&ip.address) == v4).map(|ip| WireFamily {
            ip: ip.address,
            gateway: ip.gateway,
            routes: result
                .routes
                .iter()
                .filter(|r| is_v4(&r.dst) == v4)
                .map(|r| WireRoute::new(r, false))
                .collect(),
        })
    };
    let wire =
        WireOldResult { version, ip4: family(true), ip6: family(false), dns: WireDns::new(&result.dns) };
    if wire.ip4.is_none() && wire.ip6.is_none() && !result.interfaces.is_empty() {
        return Err(Error::incompatible_version(format!(
            "cannot convert: no valid IP addresses: a result of version {version} is made of addresses, and this one \
             has none; raise the cniVersion of the configuration to 0.3.1 or later"
        )));
    }
    Ok(layout.print(&wire))
}

fn is_v4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct WireResult<'a> {
    #[serde(rename = "cniVersion")]
    version: Version,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<WireInterface<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<WireIp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<WireRoute>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<WireDns<'a>>,
}

#[derive(Serialize)]
struct WireOldResult<'a> {
    #[serde(rename = "cniVersion")]
    version: Version,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<WireFamily>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<WireFamily>,
    dns: WireDns<'a>,
}

#[derive(Serialize)]
struct WireFamily {
    ip: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<WireRoute>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireInterface<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    sandbox: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    socket_path: &'a str,
    #[serde(rename = "pciID", skip_serializing_if = "str::is_empty")]
    pci_id: &'a str,
}

impl<'a> WireInterface<'a> {
    fn new(interface: &'a Interface, whole: bool) -> Self {
        WireInterface {
            name: &interface.name,
            mac: &interface.mac,
            mtu: if whole { interface.mtu } else { 0 },
            sandbox: &interface.sandbox,
            socket_path: if whole { &interface.socket_path } else { "" },
            pci_id: if whole { &interface.pci_id } else { "" },
        }
    }
}

#[derive(Serialize)]
struct WireIp {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<usize>,
    address: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

impl WireIp {
    fn new(ip: &IpConfig, with_family: bool) -> Self {
        let family = if is_v4(&ip.address) { "4" } else { "6" };
        WireIp {
            version: with_family.then_some(family),
            interface: ip.interface,
            address: ip.address,
            gateway: ip.gateway,
        }
    }
}

#[derive(Serialize)]
struct WireRoute {
    dst: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(skip_serializing_if = "is_zero")]
    advmss: u32,
    #[serde(skip_serializing_if = "is_zero")]
    priority: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<u32>,
}

impl WireRoute {
    fn new(route: &Route, whole: bool) -> Self {
        let plain = Route::new(route.dst, route.gw);
        let route = if whole { route } else { &plain };
        WireRoute {
            dst: route.dst,
            gw: route.gw,
            mtu: route.mtu,
            advmss: route.advmss,
            priority: route.priority,
            table: route.table,
            scope: route.scope,
        }
    }
}

#[derive(Serialize)]
struct WireDns<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    nameservers: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    domain: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    search: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    options: &'a [String],
}

impl<'a> WireDns<'a> {
    fn new(dns: &'a Dns) -> Self {
        WireDns {
            nameservers: &dns.nameservers,
            domain: &dns.domain,
            search: &dns.search,
            options: &dns.options,
        }
    }
}
