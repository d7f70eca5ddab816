//! Unicast routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
};
use rtnetlink::RouteMessageBuilder;

use super::addr::ip;
use super::frame::{Frame, attribute, attributes, u16_at, u32_at};
use super::{Error, Netlink, Verb};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const HEADER_LENGTH: usize = 12;
const NEXT_HOP_LENGTH: usize = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RTN_UNICAST: u8 = 1;
const RTM_F_CLONED: u32 = 0x200;
const RTNH_F_ONLINK: u32 = 4;

/// The main routing table.
const RT_TABLE_MAIN: u32 = 254;

/// A unicast route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination; `0.0.0.0/0` or `::/0` is the default route.
    pub destination: IpNet,
    /// Next hop; `None` for a directly connected network.
    pub gateway: Option<IpAddr>,
    /// Index of the outgoing interface.
    pub interface: Option<u32>,
    /// Metric; `None` leaves the kernel's default (0 for IPv4, 1024 for IPv6).
    pub priority: Option<u32>,
    /// Routing table; 254 is main.
    pub table: u32,
    /// `RT_SCOPE_*`: 0 universe, 253 link, 254 host.
    pub scope: u8,
    /// The address that packets of the host itself get as their source; `None` lets the kernel choose.
    pub source: Option<IpAddr>,
    /// Whether the next hop is taken to be on the link, though no address of the interface says so.
    pub is_onlink: bool,
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    /// Advertised TCP maximum segment size in bytes.
    pub advmss: Option<u32>,
    /// Next hops of a multipath route: gateway and interface. Read only, empty for others.
    pub next_hops: Vec<(Option<IpAddr>, u32)>,
}

impl Route {
    /// A route to `destination` in the main table.
    #[must_use]
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination,
            gateway: None,
            interface: None,
            priority: None,
            table: RT_TABLE_MAIN,
            scope: 0,
            source: None,
            is_onlink: false,
            mtu: None,
            advmss: None,
            next_hops: Vec::new(),
        }
    }

    /// Whether this is a default route, IPv4 or IPv6.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }

    /// Whether packets may leave by interface `index`, over the only next hop or over one of several.
    #[must_use]
    pub fn uses(&self, index: u32) -> bool {
        self.interface == Some(index) || self.next_hops.iter().any(|(_, interface)| *interface == index)
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let [family, prefix, _src, _tos, table, _protocol, scope, kind, ..] = *body else { return None };
        let flags = u32_at(body, 8)?;
        if kind != RTN_UNICAST || flags & RTM_F_CLONED != 0 {
            return None;
        }
        let any = match family {
            AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let is_onlink = flags & RTNH_F_ONLINK != 0;
        let mut route = Self { table: table.into(), scope, is_onlink, ..Self::to(IpNet::new(any, 0).ok()?) };
        let mut address = any;
        for (kind, value) in attributes(body.get(HEADER_LENGTH..)?) {
            match kind {
                RTA_DST => address = ip(value)?,
                RTA_OIF => route.interface = u32_at(value, 0),
                RTA_GATEWAY => route.gateway = ip(value),
                RTA_PREFSRC => route.source = ip(value),
                RTA_PRIORITY => route.priority = u32_at(value, 0),
                RTA_TABLE => route.table = u32_at(value, 0)?,
                RTA_METRICS => {
                    route.mtu = attribute(value, RTAX_MTU).and_then(|mtu| u32_at(mtu, 0));
                    route.advmss = attribute(value, RTAX_ADVMSS).and_then(|mss| u32_at(mss, 0));
                }
                RTA_MULTIPATH => route.next_hops = next_hops(value),
                _ => {}
            }
        }
        route.destination = IpNet::new(address, prefix).ok()?;
        Some(route)
    }

    fn message(&self) -> RouteMessage {
        let (address, prefix) = (self.destination.addr(), self.destination.prefix_len());
        let mut builder =
            RouteMessageBuilder::<IpAddr>::new().table_id(self.table).scope(RouteScope::from(self.scope));
        if let Some(index) = self.interface {
            builder = builder.output_interface(index);
        }
        if let Some(priority) = self.priority {
            builder = builder.priority(priority);
        }
        let mut message = builder.build();
        message.header.address_family =
            if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.destination_prefix_length = prefix;
        if prefix > 0 {
            message.attributes.push(RouteAttribute::Destination(address.into()));
        }
        if let Some(gateway) = self.gateway {
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        if let Some(source) = self.source {
            message.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        if self.is_onlink {
            message.header.flags |= RouteFlags::Onlink;
        }
        let metrics = [self.mtu.map(RouteMetric::Mtu), self.advmss.map(RouteMetric::Advmss)];
        let metrics: Vec<_> = metrics.into_iter().flatten().collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
    }
}

// struct rtnexthop {len: u16, flags: u8, hops: u8, ifindex: i32}, each followed by attributes.
fn next_hops(mut bytes: &[u8]) -> Vec<(Option<IpAddr>, u32)> {
    let mut hops = Vec::new();
    while let (Some(length), Some(index)) = (u16_at(bytes, 0), u32_at(bytes, 4)) {
        let length = usize::from(length);
        let Some(inner) = bytes.get(NEXT_HOP_LENGTH..length) else { break };
        hops.push((attribute(inner, RTA_GATEWAY).and_then(ip), index));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

impl Netlink {
    /// The unicast routes of the namespace, all tables, IPv4 and IPv6; without cached ones.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn routes(&self) -> Result<Vec<Route>, Error> {
        let frame = Frame::new(RTM_GETROUTE, &RouteMessageBuilder::<IpAddr>::new().build());
        let replies = self.request(Verb::Dump, frame, || "listing routes".to_owned()).await?;
        Ok(replies.iter().filter_map(|reply| Route::parse(&reply.body)).collect())
    }

    /// The default routes of the main table, IPv4 and IPv6.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn default_routes(&self) -> Result<Vec<Route>, Error> {
        let routes = self.routes().await?;
        Ok(routes.into_iter().filter(|route| route.is_default() && route.table == RT_TABLE_MAIN).collect())
    }

    /// Adds a route.
    ///
    /// # Errors
    /// EEXIST when there is one to the same destination with the same metric.
    pub async fn add_route(&self, route: &Route) -> Result<(), Error> {
        let frame = Frame::new(RTM_NEWROUTE, &route.message());
        self.request(Verb::Create, frame, || format!("adding {}", describe(route))).await.map(drop)
    }

    /// Adds a route beside others to the same destination, as a further next hop where the kernel can
    /// do that. This is how the reference plugins add the routes that an IPAM plugin returns.
    ///
    /// # Errors
    /// EEXIST when there is the very same route.
    pub async fn append_route(&self, route: &Route) -> Result<(), Error> {
        let frame = Frame::new(RTM_NEWROUTE, &route.message());
        self.request(Verb::CreateBeside, frame, || format!("adding {}", describe(route))).await.map(drop)
    }

    /// Adds a route, or replaces the one to the same destination with the same metric.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn replace_route(&self, route: &Route) -> Result<(), Error> {
        let frame = Frame::new(RTM_NEWROUTE, &route.message());
        self.request(Verb::CreateOrReplace, frame, || format!("replacing {}", describe(route)))
            .await
            .map(drop)
    }

    /// Removes a route, a multipath route as a whole.
    ///
    /// # Errors
    /// ESRCH when there is no such route.
    pub async fn remove_route(&self, route: &Route) -> Result<(), Error> {
        let mut message = route.message();
        // Otherwise the kernel removes only what was added by a like program.
        message.header.protocol = RouteProtocol::Unspec;
        let frame = Frame::new(RTM_DELROUTE, &message);
        self.request(Verb::Change, frame, || format!("removing {}", describe(route))).await.map(drop)
    }
}

fn describe(route: &Route) -> String {
    let mut text = format!("route to {}", route.destination);
    if let Some(gateway) = route.gateway {
        text.push_str(&format!(" via {gateway}"));
    }
    if let Some(index) = route.interface {
        text.push_str(&format!(" on interface {index}"));
    }
    if route.table != RT_TABLE_MAIN {
        text.push_str(&format!(" in table {}", route.table));
    }
    text
}
