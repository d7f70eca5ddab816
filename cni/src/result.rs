//! The result of ADD, in the shape of version 1.1.0.

use crate::wire::{self, Layout};
use crate::{Error, Object, Version};
use ipnet::IpNet;
use std::net::IpAddr;

/// What a plugin set up: interfaces, their addresses, routes, name resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniResult {
    /// The interfaces, those on the host among them.
    pub interfaces: Vec<Interface>,
    /// The addresses.
    pub ips: Vec<IpConfig>,
    /// The routes.
    pub routes: Vec<Route>,
    /// Name resolution.
    pub dns: Dns,
}

/// One interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address; empty when it has none.
    pub mac: String,
    /// Its MTU in bytes; 0 when not told. Since 1.1.0.
    pub mtu: u32,
    /// The network namespace's path; empty for an interface on the host.
    pub sandbox: String,
    /// Absolute path of a socket file that stands for the interface, or empty. Since 1.1.0.
    pub socket_path: String,
    /// The PCI address of the device behind the interface, or empty. Since 1.1.0.
    pub pci_id: String,
}

/// One address of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfig {
    /// Index into [`CniResult::interfaces`].
    pub interface: Option<usize>,
    /// Address and prefix length; the host bits count.
    pub address: IpNet,
    /// The gateway of its subnet.
    pub gateway: Option<IpAddr>,
}

/// One route of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; without one the runtime may use the gateway of the family.
    pub gw: Option<IpAddr>,
    /// MTU along the path in bytes; 0 when not told. Since 1.1.0.
    pub mtu: u32,
    /// Maximal segment size to advertise; 0 when not told. Since 1.1.0.
    pub advmss: u32,
    /// Metric; 0 when not told. Since 1.1.0.
    pub priority: u32,
    /// Routing table number. Since 1.1.0.
    pub table: Option<u32>,
    /// Scope number (0 global, 253 link, 254 host). Since 1.1.0.
    pub scope: Option<u32>,
}

impl Route {
    /// A route with nothing but destination and next hop.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Route { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }

    /// Whether the route matches every address of its family.
    pub fn is_default(&self) -> bool {
        self.dst.prefix_len() == 0
    }
}

/// Name resolution of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers, most preferred first.
    pub nameservers: Vec<String>,
    /// Local domain for short names.
    pub domain: String,
    /// Search list for short names.
    pub search: Vec<String>,
    /// Options for the resolver.
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

impl CniResult {
    /// Reads the result a plugin printed, of any version. Where it names no version it is taken to have
    /// `default_version` (that of the configuration), and `null` is an empty result, as in the reference library.
    ///
    /// # Errors
    /// Code 6 when it is not a result; code 1 when it is of a version not known here.
    pub fn parse(bytes: &[u8], default_version: Version) -> Result<Self, Error> {
        wire::parse_result(bytes, default_version)
    }

    /// The result as JSON of `version`, indented as the reference library indents it.
    ///
    /// Down-conversion drops what the shape has no room for, as the reference library does: below 1.0.0 `mtu`,
    /// `socketPath` and `pciID`; below 0.3.0 also the interfaces, all but the first address of a family, and of
    /// routes all but destination and next hop.
    ///
    /// # Errors
    /// Code 1 when `version` is below 0.3.0 and there is an interface but no address: nothing would be left.
    pub fn to_json(&self, version: Version) -> Result<Vec<u8>, Error> {
        wire::print_result(self, version, Layout::Pretty)
    }

    /// The result as an object of `version`, as it stands in `prevResult` and in the cache.
    ///
    /// # Errors
    /// As for [`to_json`](Self::to_json).
    pub fn to_object(&self, version: Version) -> Result<Object, Error> {
        Object::parse(&wire::print_result(self, version, Layout::Compact)?)
    }
}
