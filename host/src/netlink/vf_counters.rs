//! Traffic of virtual functions, as their physical function counts it.

use netlink_packet_route::link::{LinkAttribute, LinkExtentMask};
use rtnetlink::LinkUnspec;

use super::frame::{Frame, attribute, attributes, u16_at, u32_at};
use super::link::RTM_GETLINK;
use super::vf::{HEADER_LENGTH, IFLA_VF_INFO, IFLA_VF_MAC, IFLA_VFINFO_LIST};
use super::{Error, Netlink, large};

const IFLA_VF_STATS: u16 = 8;
/// Of an attribute's type (`include/uapi/linux/netlink.h`).
const NLA_F_NESTED: u16 = 1 << 15;
/// Length and type; attributes are aligned to as much.
const ATTRIBUTE_HEADER: usize = 4;
// `IFLA_VF_STATS_*` of `include/uapi/linux/if_link.h`.
const RX_PACKETS: u16 = 0;
const TX_PACKETS: u16 = 1;
const RX_BYTES: u16 = 2;
const TX_BYTES: u16 = 3;
const RX_BROADCAST: u16 = 4;
const RX_MULTICAST: u16 = 5;
const RX_DROPPED: u16 = 7;
const TX_DROPPED: u16 = 8;

/// What went through a VF since it was made. 0 is also what a driver says that does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VfCounters {
    /// Packets that the VF received.
    pub rx_packets: u64,
    /// Packets that it sent.
    pub tx_packets: u64,
    /// Octets received.
    pub rx_bytes: u64,
    /// Octets sent.
    pub tx_bytes: u64,
    /// Broadcast packets received.
    pub rx_broadcast: u64,
    /// Multicast packets received.
    pub rx_multicast: u64,
    /// Packets that did not reach the VF.
    pub rx_dropped: u64,
    /// Packets that did not leave.
    pub tx_dropped: u64,
}

impl VfCounters {
    fn parse(nested: &[u8]) -> Self {
        let mut counters = Self::default();
        for (kind, value) in attributes(nested) {
            let field = match kind {
                RX_PACKETS => &mut counters.rx_packets,
                TX_PACKETS => &mut counters.tx_packets,
                RX_BYTES => &mut counters.rx_bytes,
                TX_BYTES => &mut counters.tx_bytes,
                RX_BROADCAST => &mut counters.rx_broadcast,
                RX_MULTICAST => &mut counters.rx_multicast,
                RX_DROPPED => &mut counters.rx_dropped,
                TX_DROPPED => &mut counters.tx_dropped,
                _ => continue,
            };
            *field = value.first_chunk().map_or(0, |octets| u64::from_ne_bytes(*octets));
        }
        counters
    }
}

impl Netlink {
    /// The traffic of all VFs of the PF with interface index `pf` of the calling thread's namespace, by their numbers.
    /// Empty for drivers that report no VF information.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn vf_counters(pf: u32) -> Result<Vec<(u32, VfCounters)>, Error> {
        let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::Vf]);
        let message = LinkUnspec::new_with_index(pf).append_extra_attribute(mask).build();
        let frame = Frame::new(RTM_GETLINK, &message);
        let operation = || format!("reading the traffic of the VFs of interface {pf}");
        let reply = large::get(&frame, operation).await?;
        Ok(reply.body.get(HEADER_LENGTH..).map(parse).unwrap_or_default())
    }
}

/// The counters in the attributes of a link.
///
/// The length of `IFLA_VFINFO_LIST` has 16 bits. Past some two hundred VFs the list is longer, and the kernel writes what
/// is left of the length (`nla_nest_end()`). The elements have lengths of their own that are right, so they tell
/// where the list ends: where something else than the next VF follows.
fn parse(mut link: &[u8]) -> Vec<(u32, VfCounters)> {
    while let (Some(kind), Some(length)) = (u16_at(link, 2), u16_at(link, 0)) {
        if kind & !NLA_F_NESTED == IFLA_VFINFO_LIST {
            return link.get(ATTRIBUTE_HEADER..).map(parse_list).unwrap_or_default();
        }
        let next = usize::from(length).max(ATTRIBUTE_HEADER).next_multiple_of(ATTRIBUTE_HEADER);
        link = link.get(next..).unwrap_or_default();
    }
    Vec::new()
}

fn parse_list(list: &[u8]) -> Vec<(u32, VfCounters)> {
    let mut last = None;
    let vfs = attributes(list).map_while(|(kind, info)| {
        let number = u32_at(attribute(info, IFLA_VF_MAC)?, 0)?;
        let is_next = kind == IFLA_VF_INFO && last.is_none_or(|last| number > last);
        last = Some(number);
        is_next.then_some((number, attribute(info, IFLA_VF_STATS)))
    });
    vfs.filter_map(|(number, counters)| Some((number, VfCounters::parse(counters?)))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::in_new_netns;

    fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut octets = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        octets.extend_from_slice(value);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    /// Something else first, then the list with whatever length 16 bits hold, then something else.
    fn link_with(list: &[u8]) -> Vec<u8> {
        let mut octets = attribute_of(3, b"ens1f0\0");
        let length = (list.len() + 4) % (1 << 16);
        octets.extend(u16::try_from(length).unwrap().to_ne_bytes());
        octets.extend(IFLA_VFINFO_LIST.to_ne_bytes());
        octets.extend(list);
        octets.extend(attribute_of(1, &[2, 0, 0, 0, 0, 1]));
        octets
    }

    fn vf(number: u32, counters: &[u8]) -> Vec<u8> {
        let mut mac = number.to_ne_bytes().to_vec();
        mac.resize(36, 0);
        let info = [attribute_of(IFLA_VF_MAC, &mac), attribute_of(IFLA_VF_STATS, counters)].concat();
        attribute_of(IFLA_VF_INFO, &info)
    }

    #[test]
    fn counters_belong_to_the_vf_that_its_mac_names() {
        const PADDING: u16 = 6;
        let counters = [
            attribute_of(RX_PACKETS, &7_u64.to_ne_bytes()),
            attribute_of(PADDING, &[]),
            attribute_of(TX_BYTES, &(5_u64 << 32).to_ne_bytes()),
            attribute_of(TX_DROPPED, &[1, 2]),
        ];
        let mut mac = 4_u32.to_ne_bytes().to_vec();
        mac.resize(36, 0);
        let silent = attribute_of(IFLA_VF_INFO, &attribute_of(IFLA_VF_MAC, &mac));
        let list = [vf(3, &counters.concat()), silent].concat();
        let expected = VfCounters { rx_packets: 7, tx_bytes: 5 << 32, ..VfCounters::default() };
        assert_eq!(parse(&link_with(&list)), [(3, expected)]);
        assert_eq!(parse(&attribute_of(3, b"lo\0")), []);
    }

    #[test]
    fn a_list_may_outgrow_its_length() {
        // What the kernel sends of each VF is some 300 octets.
        let counters: Vec<u8> = (RX_PACKETS..=TX_DROPPED)
            .flat_map(|kind| attribute_of(kind, &9_u64.to_ne_bytes()))
            .chain(attribute_of(100, &[0; 150]))
            .collect();
        for count in [1, 127, 200, 254, 1000] {
            let list: Vec<u8> = (0..count).flat_map(|number| vf(number, &counters)).collect();
            let read = parse(&link_with(&list));
            let numbers: Vec<u32> = read.iter().map(|(number, _)| *number).collect();
            assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "{} octets", list.len());
            assert!(read.iter().all(|(_, counters)| counters.tx_dropped == 9));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&link_with(&bytes));
        }
    }

    #[test]
    fn an_interface_without_vfs_has_no_counters() {
        in_new_netns(|| async {
            const LOOPBACK: u32 = 1;
            assert_eq!(Netlink::vf_counters(LOOPBACK).await.unwrap(), []);
            let text = Netlink::vf_counters(4711).await.unwrap_err().to_string();
            assert!(text.contains("reading the traffic of the VFs of interface 4711"), "{text}");
        });
    }
}
