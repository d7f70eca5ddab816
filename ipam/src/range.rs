//! A range of addresses, as offsets into its subnet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The addresses of a subnet that may be given out.
///
/// An address is known by its offset from the subnet's first address, which is how pools name it. Offsets are full
/// width: an IPv6 subnet may be of any length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    subnet: IpNet,
    gateway: Option<IpAddr>,
    /// Disjoint, ascending, both ends included.
    allowed: Vec<(u128, u128)>,
}

impl Range {
    /// The addresses of `subnet` from `first` to `last` without those in `exclude` and the gateway.
    ///
    /// A bound outside the subnet counts for nothing, as in the peer. The network and broadcast addresses of IPv4 and
    /// the subnet-router anycast address of IPv6 are left out, but not in a subnet of one or two addresses (RFC 3021,
    /// RFC 6164).
    #[must_use]
    pub fn new(
        subnet: IpNet,
        first: Option<IpAddr>,
        last: Option<IpAddr>,
        exclude: &[IpNet],
        gateway: Option<IpAddr>,
    ) -> Self {
        let subnet = subnet.trunc();
        let end = number(subnet.broadcast()) - number(subnet.network());
        let (low, high) = match (end, subnet) {
            (0 | 1, _) => (0, end),
            (_, IpNet::V4(_)) => (1, end - 1),
            (_, IpNet::V6(_)) => (1, end),
        };
        let mut range = Self { subnet, gateway, allowed: Vec::new() };
        let bound = |address: Option<IpAddr>| address.and_then(|address| range.offset(address));
        let low = bound(first).map_or(low, |first| first.max(low));
        let high = bound(last).map_or(high, |last| last.min(high));
        if low <= high {
            range.allowed.push((low, high));
        }
        for hole in exclude {
            // Of two CIDRs that meet, one holds the other.
            if hole.contains(&subnet) {
                range.allowed.clear();
            } else if let (Some(from), Some(to)) =
                (range.offset(hole.network()), range.offset(hole.broadcast()))
            {
                range.cut(from, to);
            }
        }
        if let Some(offset) = gateway.and_then(|gateway| range.offset(gateway)) {
            range.cut(offset, offset);
        }
        range
    }

    fn cut(&mut self, from: u128, to: u128) {
        let pieces = std::mem::take(&mut self.allowed);
        for (low, high) in pieces {
            if low < from {
                self.allowed.push((low, high.min(from - 1)));
            }
            if high > to {
                self.allowed.push((low.max(to + 1), high));
            }
        }
    }

    /// The subnet, without host bits.
    #[must_use]
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// The gateway that goes with an address of this range.
    #[must_use]
    pub fn gateway(&self) -> Option<IpAddr> {
        self.gateway
    }

    /// The place of an address in the subnet; `None` outside it.
    #[must_use]
    pub fn offset(&self, address: IpAddr) -> Option<u128> {
        self.subnet.contains(&address).then(|| number(address) - number(self.subnet.network()))
    }

    /// The address at a place; `None` outside the subnet.
    #[must_use]
    pub fn address(&self, offset: u128) -> Option<IpAddr> {
        let value = number(self.subnet.network()).checked_add(offset)?;
        let address = match self.subnet {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(value).ok()?)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(value)),
        };
        self.subnet.contains(&address).then_some(address)
    }

    /// Whether the address at `offset` may be given out.
    #[must_use]
    pub fn allows(&self, offset: u128) -> bool {
        self.allowed.iter().any(|(low, high)| (*low..=*high).contains(&offset))
    }

    /// The offsets that may be given out, ascending.
    pub fn offsets(&self) -> impl Iterator<Item = u128> {
        self.allowed.iter().flat_map(|(low, high)| *low..=*high)
    }

    /// How many addresses may be given out; what is beyond counting is `u128::MAX`.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        let size = |(low, high): &(u128, u128)| high.saturating_sub(*low).saturating_add(1);
        self.allowed.iter().map(size).fold(0, u128::saturating_add)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(subnet: &str, first: &str, last: &str, exclude: &[&str], gateway: &str) -> Range {
        let address = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        let exclude: Vec<IpNet> = exclude.iter().map(|text| text.parse().unwrap()).collect();
        Range::new(subnet.parse().unwrap(), address(first), address(last), &exclude, address(gateway))
    }

    #[test]
    fn usable_addresses() {
        let table: &[(Range, &[&str])] = &[
            (range("10.0.0.0/30", "", "", &[], ""), &["10.0.0.1", "10.0.0.2"]),
            (range("10.0.0.3/30", "", "", &[], ""), &["10.0.0.1", "10.0.0.2"]),
            (range("10.0.0.0/30", "", "", &[], "10.0.0.1"), &["10.0.0.2"]),
            (range("10.0.0.2/31", "", "", &[], ""), &["10.0.0.2", "10.0.0.3"]),
            (range("10.0.0.7/32", "", "", &[], ""), &["10.0.0.7"]),
            (range("2001:db8::/126", "", "", &[], ""), &["2001:db8::1", "2001:db8::2", "2001:db8::3"]),
            (range("2001:db8::6/127", "", "", &[], ""), &["2001:db8::6", "2001:db8::7"]),
            (range("2001:db8::6/128", "", "", &[], ""), &["2001:db8::6"]),
            (range("10.0.0.0/24", "10.0.0.9", "10.0.0.10", &[], ""), &["10.0.0.9", "10.0.0.10"]),
            // Bounds outside the subnet are ignored, those on its edges are no addresses.
            (range("10.0.0.0/30", "10.9.0.1", "fe80::1", &[], ""), &["10.0.0.1", "10.0.0.2"]),
            (range("10.0.0.0/30", "10.0.0.0", "10.0.0.3", &[], ""), &["10.0.0.1", "10.0.0.2"]),
            (range("10.0.0.0/24", "10.0.0.9", "10.0.0.8", &[], ""), &[]),
            (range("10.0.0.0/30", "", "", &["10.0.0.1/32", "10.9.0.0/16", "fe80::/10"], ""), &["10.0.0.2"]),
            (
                range("10.0.0.0/29", "", "", &["10.0.0.2/31", "10.0.0.3/32"], "10.0.0.5"),
                &["10.0.0.1", "10.0.0.4", "10.0.0.6"],
            ),
            (range("10.0.0.0/29", "", "", &["10.0.0.0/8"], ""), &[]),
        ];
        for (range, wanted) in table {
            let got: Vec<String> =
                range.offsets().map(|offset| range.address(offset).unwrap().to_string()).collect();
            assert_eq!(&got, wanted, "{range:?}");
            assert_eq!(range.capacity(), wanted.len() as u128);
        }
    }

    #[test]
    fn the_widest_ranges() {
        for subnet in ["::/0", "2001:db8::/32", "0.0.0.0/0", "10.0.0.0/8"] {
            let range = range(subnet, "", "", &[], "");
            assert!(range.capacity() > 1_000_000, "{subnet}");
            assert_eq!(range.offsets().next(), Some(1));
            let (_, high) = range.allowed[0];
            assert_eq!(range.offset(range.address(high).unwrap()), Some(high));
        }
        assert_eq!(range("10.0.0.0/8", "", "", &[], "").address(u128::MAX), None);
    }

    proptest! {
        /// Every offset stands for one address of the subnet that no exclusion holds, and back.
        #[test]
        fn offsets_are_addresses(
            base: u32, length in 20u8..=32, first: u32, last: u32,
            holes in proptest::collection::vec((any::<u32>(), 22u8..=32), 0..6), gateway: u32,
        ) {
            let subnet = IpNet::new(Ipv4Addr::from(base).into(), length).unwrap();
            // Near the subnet, or next to nothing would ever meet.
            let near = |value: u32| base ^ (value & 0x1fff);
            let address = |value: u32| IpAddr::V4(Ipv4Addr::from(near(value)));
            let holes: Vec<IpNet> =
                holes.into_iter().map(|(at, length)| IpNet::new(address(at), length).unwrap()).collect();
            let range = Range::new(subnet, Some(address(first)), Some(address(last)), &holes, Some(address(gateway)));
            let mut count = 0;
            for offset in range.offsets() {
                let given = range.address(offset).unwrap();
                prop_assert!(subnet.contains(&given) && given != address(gateway));
                prop_assert!(holes.iter().all(|hole| !hole.contains(&given)));
                prop_assert_eq!(range.offset(given), Some(offset));
                prop_assert!(range.allows(offset));
                count += 1;
            }
            prop_assert_eq!(range.capacity(), count);
        }
    }
}
