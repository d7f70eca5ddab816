//! Telling the neighbours about a new address: gratuitous ARP and unsolicited neighbour advertisement.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::Ipv6MulticastHops;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendmsg, setsockopt,
    socket,
};

use crate::MacAddress;
use crate::netns::{self, Netns};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Announces `address` as reachable at `mac`, out of the interface `index` of the namespace `netns` and
/// out of no other: one gratuitous ARP request for IPv4 (RFC 5227 section 3), one unsolicited
/// neighbour advertisement with the override flag for IPv6 (RFC 4861 section 7.2.6).
///
/// # Errors
/// When the namespace cannot be entered or the kernel refuses to send.
pub fn announce(netns: &Netns, index: u32, mac: MacAddress, address: IpAddr) -> Result<(), Error> {
    let failed = |cause| Error::Send { address, index, cause };
    netns
        .run(|| match address {
            IpAddr::V4(ip) => gratuitous_arp(index, mac, ip),
            IpAddr::V6(ip) => neighbour_advertisement(index, mac, ip),
        })?
        .map_err(failed)
}

/// Why an address was not announced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The packet was not sent.
    #[error("announcing {address} on interface {index}: {cause}")]
    Send {
        /// The address.
        address: IpAddr,
        /// The interface.
        index: u32,
        /// The cause.
        cause: io::Error,
    },
}

fn gratuitous_arp(index: u32, mac: MacAddress, ip: Ipv4Addr) -> io::Result<()> {
    // On a raw packet socket of protocol 0 nothing is received, and the frame carries its own type.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let target = link_address(index)?;
    let frame = arp_frame(mac, ip);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(&frame)], &[], MsgFlags::empty(), Some(&target))?;
    Ok(())
}

// A sockaddr_ll cannot be made without unsafe code, but the kernel hands one out for each interface.
fn link_address(index: u32) -> io::Result<LinkAddr> {
    let wanted = |address: &LinkAddr| u32::try_from(address.ifindex()) == Ok(index);
    getifaddrs()?
        .filter_map(|interface| interface.address?.as_link_addr().copied())
        .find(wanted)
        .ok_or_else(|| io::Error::from(nix::errno::Errno::ENODEV))
}

fn arp_frame(mac: MacAddress, ip: Ipv4Addr) -> Vec<u8> {
    const BROADCAST: [u8; 6] = [0xff; 6];
    const ETHERTYPE_ARP: u16 = 0x0806;
    const ETHERTYPE_IPV4: u16 = 0x0800;
    const ETHERNET: u16 = 1;
    const REQUEST: u16 = 1;
    [
        &BROADCAST[..],
        &mac.bytes(),
        &ETHERTYPE_ARP.to_be_bytes(),
        &ETHERNET.to_be_bytes(),
        &ETHERTYPE_IPV4.to_be_bytes(),
        &[6, 4],
        &REQUEST.to_be_bytes(),
        &mac.bytes(),
        &ip.octets(),
        &BROADCAST,
        &ip.octets(),
    ]
    .concat()
}

fn neighbour_advertisement(index: u32, mac: MacAddress, ip: Ipv6Addr) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6)?;
    // Receivers drop neighbour discovery packets that a router may have forwarded.
    setsockopt(&socket, Ipv6MulticastHops, &255)?;
    // The scope id chooses the interface; without it the routing table would.
    let target = SockaddrIn6::from(SocketAddrV6::new(ALL_NODES, 0, 0, index));
    let packet = advertisement(mac, ip);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(&packet)], &[], MsgFlags::empty(), Some(&target))?;
    Ok(())
}

// The kernel fills in the checksum of ICMPv6 raw sockets.
fn advertisement(mac: MacAddress, ip: Ipv6Addr) -> Vec<u8> {
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_ADDRESS: u8 = 2;
    [
        &[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0][..],
        &ip.octets(),
        &[TARGET_LINK_ADDRESS, 1],
        &mac.bytes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::socket::bind;

    use super::*;
    use crate::Netlink;
    use crate::netlink::{Events, Group};
    use crate::testing::{in_new_netns, new_netns};

    /// A pod with two interfaces `net1`, `net2`, whose peers are in the namespace of the caller: what
    /// arrives there shows which way a packet left.
    async fn pod_with_two_wires() -> (Netns, Vec<(u32, MacAddress, std::fs::File)>) {
        let pod = new_netns();
        let (outside, inside) = (Netlink::connect().unwrap(), Netlink::connect_in(&pod).unwrap());
        let mut wires = Vec::new();
        for n in 1..=2 {
            let (name, peer) = (format!("net{n}"), format!("peer{n}"));
            outside.add_veth(&name, &peer).await.unwrap();
            let index = outside.link_by_name(&name).await.unwrap().unwrap().index;
            outside.move_link(index, &pod, &inside, &name).await.unwrap();
            let link = inside.link_by_name(&name).await.unwrap().unwrap();
            // A tentative link-local address is no cause; the test has no time for duplicate detection.
            let accept_dad = (format!("ipv6/conf/{name}/accept_dad"), "0");
            crate::sysctl::write(&pod, &[accept_dad]).unwrap();
            inside.set_up(link.index, true).await.unwrap();
            let peer = outside.link_by_name(&peer).await.unwrap().unwrap().index;
            outside.set_up(peer, true).await.unwrap();
            let mut events = Events::subscribe_in(&pod, &[Group::Ipv6Address]).unwrap();
            let link_local = async || {
                let addresses = inside.addresses(link.index).await?;
                Ok(addresses.iter().find(|address| !address.tentative).copied())
            };
            assert!(events.wait_until(Duration::from_secs(20), link_local).await.unwrap().is_some());
            let tap = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll)
                .unwrap();
            bind(tap.as_raw_fd(), &link_address(peer).unwrap()).unwrap();
            wires.push((link.index, link.mac.unwrap(), std::fs::File::from(tap)));
        }
        (pod, wires)
    }

    fn receive(tap: &std::fs::File, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        loop {
            let mut set = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
            if poll(&mut set, PollTimeout::from(1000_u16)).unwrap() == 0 {
                return None;
            }
            let mut buffer = [0; 2048];
            let length = (&*tap).read(&mut buffer).unwrap();
            if wanted(&buffer[..length]) {
                return Some(buffer[..length].to_vec());
            }
        }
    }

    #[test]
    fn announcements_leave_by_the_right_interface_only() {
        in_new_netns(async || {
            let (pod, wires) = pod_with_two_wires().await;
            let (index, mac, tap) = &wires[1];

            let ip: Ipv4Addr = "192.0.2.9".parse().unwrap();
            announce(&pod, *index, *mac, ip.into()).unwrap();
            let is_arp = |frame: &[u8]| frame[12..14] == [8, 6];
            let frame = receive(tap, is_arp).expect("gratuitous ARP");
            assert_eq!(&frame[..6], [0xff; 6]);
            assert_eq!(&frame[6..12], mac.bytes());
            assert_eq!(&frame[14..22], [0, 1, 8, 0, 6, 4, 0, 1]);
            assert_eq!((&frame[28..32], &frame[38..42]), (&ip.octets()[..], &ip.octets()[..]));

            let ip: Ipv6Addr = "2001:db8::9".parse().unwrap();
            announce(&pod, *index, *mac, ip.into()).unwrap();
            let is_advertisement = |frame: &[u8]| frame[12..14] == [0x86, 0xdd] && frame[54] == 136;
            let frame = receive(tap, is_advertisement).expect("neighbour advertisement");
            assert_eq!(frame[21], 255, "hop limit");
            assert_eq!(&frame[62..78], ip.octets());
            assert_eq!(&frame[80..86], mac.bytes());

            let other = &wires[0].2;
            assert_eq!(receive(other, |frame| is_arp(frame) || is_advertisement(frame)), None);
        });
    }
}
