//! IP addresses of interfaces.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::AddressMessageBuilder;

use super::frame::{Frame, attributes, u32_at};
use super::{Error, Netlink, Verb};

pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const HEADER_LENGTH: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_OPTIMISTIC: u32 = 0x04;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;

/// An IP address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Interface index.
    pub index: u32,
    /// Address with its prefix length.
    pub net: IpNet,
    /// IPv6 duplicate detection is still running and the address is not usable yet.
    pub tentative: bool,
    /// Duplicate detection found another holder; the address will never be usable.
    pub duplicate: bool,
    /// 0 global, 253 link-local, 254 host (`RT_SCOPE_*`).
    pub scope: u8,
}

impl Address {
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let [_family, prefix, short_flags, scope, ..] = *body else { return None };
        let mut flags = u32::from(short_flags);
        let (mut address, mut local) = (None, None);
        for (kind, value) in attributes(body.get(HEADER_LENGTH..)?) {
            match kind {
                IFA_ADDRESS => address = ip(value),
                // On point-to-point links IFA_ADDRESS is the peer and IFA_LOCAL our own.
                IFA_LOCAL => local = ip(value),
                IFA_FLAGS => flags = u32_at(value, 0)?,
                _ => {}
            }
        }
        Some(Self {
            index: u32_at(body, 4)?,
            net: IpNet::new(local.or(address)?, prefix).ok()?,
            tentative: flags & IFA_F_TENTATIVE != 0 && flags & IFA_F_OPTIMISTIC == 0,
            duplicate: flags & IFA_F_DADFAILED != 0,
            scope,
        })
    }
}

/// An IP address in network order, 4 or 16 bytes.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

impl Netlink {
    /// The addresses of the interface `index`, IPv4 and IPv6.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Address>, Error> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Unspec;
        let frame = Frame::new(RTM_GETADDR, &message);
        let operation = || format!("listing addresses of interface {index}");
        let replies = self.request(Verb::Dump, frame, operation).await?;
        let addresses = replies.iter().filter_map(|reply| Address::parse(&reply.body));
        Ok(addresses.filter(|address| address.index == index).collect())
    }

    /// Adds an address; IPv4 ones get the broadcast address of their prefix, IPv6 ones are usable while
    /// duplicate detection runs where `net.ipv6.conf.*.optimistic_dad` allows it (RFC 4429).
    ///
    /// # Errors
    /// EEXIST when the interface has it already.
    pub async fn add_address(&self, index: u32, net: IpNet) -> Result<(), Error> {
        let frame = Frame::new(RTM_NEWADDR, &message(index, net));
        self.request(Verb::Create, frame, || format!("adding {net} to interface {index}")).await.map(drop)
    }

    /// Takes an address away.
    ///
    /// # Errors
    /// EADDRNOTAVAIL when the interface does not have it.
    pub async fn remove_address(&self, index: u32, net: IpNet) -> Result<(), Error> {
        let frame = Frame::new(RTM_DELADDR, &message(index, net));
        self.request(Verb::Change, frame, || format!("removing {net} of interface {index}")).await.map(drop)
    }
}

fn message(index: u32, net: IpNet) -> AddressMessage {
    match net {
        IpNet::V4(net) => AddressMessageBuilder::<std::net::Ipv4Addr>::new()
            .index(index)
            .address(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => {
            let builder = AddressMessageBuilder::<std::net::Ipv6Addr>::new().index(index);
            let mut message = builder.address(net.addr(), net.prefix_len()).build();
            // The kernel drops the flag where it is not allowed.
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Optimistic));
            message
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Route;
    use crate::testing::in_new_netns;

    #[test]
    fn an_optimistic_address_is_usable_at_once() {
        in_new_netns(async || {
            let netlink = Netlink::connect().unwrap();
            netlink.add_veth("d0", "peer").await.unwrap();
            let netns = crate::Netns::current().unwrap();
            let allowed = ("ipv6/conf/d0/optimistic_dad".to_owned(), "1");
            // A kernel may be built without it.
            if !matches!(crate::sysctl::write(&netns, &[allowed]).unwrap()[..], [Ok(())]) {
                return;
            }
            for name in ["d0", "peer"] {
                let index = netlink.link_by_name(name).await.unwrap().unwrap().index;
                netlink.set_up(index, true).await.unwrap();
                let net: IpNet = "2001:db8::1/64".parse().unwrap();
                netlink.add_address(index, net).await.unwrap();
                let addresses = netlink.addresses(index).await.unwrap();
                let tentative = addresses.iter().find(|address| address.net == net).unwrap().tentative;
                assert_eq!(tentative, name == "peer", "{name}");
            }
        });
    }

    #[test]
    fn addresses_and_routes_are_read_back() {
        in_new_netns(async || {
            let netlink = Netlink::connect().unwrap();
            netlink.add_veth("d0", "peer").await.unwrap();
            let index = netlink.link_by_name("d0").await.unwrap().unwrap().index;
            netlink.set_up(index, true).await.unwrap();
            let nets: Vec<IpNet> = ["192.0.2.1/24", "2001:db8::1/64"].map(|net| net.parse().unwrap()).into();
            for net in &nets {
                netlink.add_address(index, *net).await.unwrap();
                assert!(netlink.add_address(index, *net).await.unwrap_err().is_exists());
            }
            let found = netlink.addresses(index).await.unwrap();
            for net in &nets {
                assert!(found.iter().any(|address| address.net == *net), "{net} not in {found:?}");
            }

            let default = Route {
                gateway: Some("192.0.2.254".parse().unwrap()),
                interface: Some(index),
                priority: Some(50),
                mtu: Some(1300),
                advmss: Some(1200),
                source: Some("192.0.2.1".parse().unwrap()),
                ..Route::to("0.0.0.0/0".parse().unwrap())
            };
            let on_link = Route {
                gateway: Some("198.51.100.1".parse().unwrap()),
                interface: Some(index),
                is_onlink: true,
                ..Route::to("203.0.113.0/24".parse().unwrap())
            };
            let in_table =
                Route { table: 1000, priority: Some(7), ..Route::to("2001:db8:1::/48".parse().unwrap()) };
            let in_table = Route { gateway: Some("2001:db8::2".parse().unwrap()), ..in_table };
            let in_table = Route { interface: Some(index), ..in_table };
            for route in [&default, &in_table, &on_link] {
                netlink.add_route(route).await.unwrap();
                assert!(netlink.add_route(route).await.unwrap_err().is_exists());
                netlink.replace_route(route).await.unwrap();
                assert!(netlink.routes().await.unwrap().contains(route), "{route:?}");
            }
            assert_eq!(netlink.default_routes().await.unwrap(), std::slice::from_ref(&default));
            assert!(default.uses(index) && !default.uses(index + 1));
            for route in [&default, &in_table, &on_link] {
                netlink.remove_route(route).await.unwrap();
                assert!(netlink.remove_route(route).await.unwrap_err().is_not_found());
            }

            for net in nets {
                netlink.remove_address(index, net).await.unwrap();
                assert!(netlink.remove_address(index, net).await.unwrap_err().is_not_found());
            }
        });
    }
}
