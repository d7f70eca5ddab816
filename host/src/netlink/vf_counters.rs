//! Traffic of virtual functions, as their physical function counts it.

use netlink_packet_route::link::{LinkAttribute, LinkExtentMask};
use rtnetlink::LinkUnspec;

use super::frame::{Frame, attribute, attributes, u32_at};
use super::link::RTM_GETLINK;
use super::vf::{HEADER_LENGTH, IFLA_VF_INFO, IFLA_VF_MAC, IFLA_VFINFO_LIST};
use super::{Error, Netlink, Verb};

const IFLA_VF_STATS: u16 = 8;
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
    /// The traffic of all VFs of the PF with interface index `pf`, by their numbers. Empty for drivers that report
    /// no VF information.
    ///
    /// # Errors
    /// When the kernel refuses: with some two hundred VFs the counters outgrow the 64 KiB of a netlink attribute.
    pub async fn vf_counters(&self, pf: u32) -> Result<Vec<(u32, VfCounters)>, Error> {
        let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::Vf]);
        let message = LinkUnspec::new_with_index(pf).append_extra_attribute(mask).build();
        let frame = Frame::new(RTM_GETLINK, &message);
        let operation = || format!("reading the traffic of the VFs of interface {pf}");
        let replies = self.request(Verb::Get, frame, operation).await?;
        let list = replies
            .iter()
            .filter_map(|reply| reply.body.get(HEADER_LENGTH..))
            .find_map(|body| attribute(body, IFLA_VFINFO_LIST));
        Ok(list.map(parse_list).unwrap_or_default())
    }
}

fn parse_list(list: &[u8]) -> Vec<(u32, VfCounters)> {
    attributes(list)
        .filter(|(kind, _)| *kind == IFLA_VF_INFO)
        .filter_map(|(_, info)| {
            let number = u32_at(attribute(info, IFLA_VF_MAC)?, 0)?;
            Some((number, VfCounters::parse(attribute(info, IFLA_VF_STATS)?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut octets = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        octets.extend_from_slice(value);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
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
        let mut mac = 3_u32.to_ne_bytes().to_vec();
        mac.resize(36, 0);
        let info =
            [attribute_of(IFLA_VF_MAC, &mac), attribute_of(IFLA_VF_STATS, &counters.concat())].concat();
        let silent = attribute_of(IFLA_VF_MAC, &mac);
        let list = [attribute_of(IFLA_VF_INFO, &info), attribute_of(IFLA_VF_INFO, &silent)].concat();
        let expected = VfCounters { rx_packets: 7, tx_bytes: 5 << 32, ..VfCounters::default() };
        assert_eq!(parse_list(&list), [(3, expected)]);
    }
}
