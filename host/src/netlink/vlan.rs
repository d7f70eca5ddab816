//! VLAN interfaces: which of them holds an ID on a master, wherever it has been moved.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::frame::{Frame, attribute, attributes, text, u16_at, u32_at};
use super::link::{HEADER_LENGTH, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO};
use super::{Error, Netlink, Verb};
use crate::netns::{self, Netns};

const IFLA_LINK: u16 = 5;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;
/// IEEE 802.1Q, as it stands in a frame.
const ETH_P_8021Q: [u8; 2] = [0x81, 0];

const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
/// Length of struct rtgenmsg, aligned.
const NSID_HEADER_LENGTH: usize = 4;

/// An 802.1Q interface.
#[derive(Debug)]
struct VlanLink {
    name: String,
    id: u16,
    /// Index of the master, in the namespace `master_netns`.
    master: u32,
    /// What the interface's namespace calls that of its master; `None` when it is the same one.
    master_netns: Option<u32>,
}

impl VlanLink {
    fn parse(body: &[u8]) -> Option<Self> {
        let body = body.get(HEADER_LENGTH..)?;
        let info = attribute(body, IFLA_LINKINFO)?;
        if attribute(info, IFLA_INFO_KIND).map(text)? != "vlan" {
            return None;
        }
        let data = attribute(info, IFLA_INFO_DATA)?;
        let is_8021q = attribute(data, IFLA_VLAN_PROTOCOL).is_none_or(|protocol| protocol == ETH_P_8021Q);
        is_8021q.then_some(())?;
        Some(Self {
            name: attribute(body, IFLA_IFNAME).map(text)?,
            id: attribute(data, IFLA_VLAN_ID).and_then(|id| u16_at(id, 0))?,
            master: attribute(body, IFLA_LINK).and_then(|link| u32_at(link, 0))?,
            master_netns: attribute(body, IFLA_LINK_NETNSID).and_then(|id| u32_at(id, 0)),
        })
    }
}

/// The interface that has VLAN `id` (802.1Q) on the interface `master` of the namespace `home`: its namespace and
/// its name. The kernel allows one, in whatever namespace. `None` when there is none, or no such master, or
/// it is in a namespace that neither a process is in nor `/run/netns` names.
///
/// # Errors
/// When the kernel refuses to list something.
pub async fn vlan_holder(home: Netns, master: &str, id: u16) -> Result<Option<(Netns, String)>, Error> {
    let here = Netlink::connect_in(&home)?;
    let Some(master) = here.link_by_name(master).await? else { return Ok(None) };
    if let Some(name) = here.vlan_on(master.index, id, &home, &home).await? {
        return Ok(Some((home, name)));
    }
    for netns in netns::discover()?.into_iter().filter(|netns| netns.id() != home.id()) {
        // Namespaces end while they are looked at.
        let Ok(netlink) = Netlink::connect_in(&netns) else { continue };
        if let Some(name) = netlink.vlan_on(master.index, id, &home, &netns).await? {
            return Ok(Some((netns, name)));
        }
    }
    Ok(None)
}

impl Netlink {
    /// The interface of this connection's namespace, `netns`, with VLAN `id` on interface `master` of `home`.
    async fn vlan_on(
        &self,
        master: u32,
        id: u16,
        home: &Netns,
        netns: &Netns,
    ) -> Result<Option<String>, Error> {
        let replies = self.dump_links("listing VLAN interfaces").await?;
        let vlans = replies.iter().filter_map(|reply| VlanLink::parse(&reply.body));
        for vlan in vlans.filter(|vlan| vlan.id == id && vlan.master == master) {
            let is_of_home = match vlan.master_netns {
                None => netns.id() == home.id(),
                Some(called) => self.nsid(home).await? == Some(called),
            };
            if is_of_home {
                return Ok(Some(vlan.name));
            }
        }
        Ok(None)
    }

    /// What this connection's namespace calls another one; `None` when it has no name for it.
    async fn nsid(&self, netns: &Netns) -> Result<Option<u32>, Error> {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(netns.as_fd().as_raw_fd().cast_unsigned()));
        let operation = || format!("reading the ID of namespace {}", netns.path().display());
        let replies = self.request(Verb::Get, Frame::new(RTM_GETNSID, &message), operation).await?;
        let told = replies.iter().find_map(|reply| {
            let (_, value) =
                attributes(reply.body.get(NSID_HEADER_LENGTH..)?).find(|(kind, _)| *kind == NETNSA_NSID)?;
            u32_at(value, 0)
        });
        // -1: none was assigned.
        Ok(told.filter(|id| *id != u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::testing::{in_new_netns, new_netns};

    fn ip(arguments: &str) -> bool {
        Command::new("ip").args(arguments.split_whitespace()).status().unwrap().success()
    }

    #[test]
    #[ignore = "needs a kernel with VLAN interfaces, as the lab's"]
    fn a_vlan_is_found_wherever_it_went() {
        in_new_netns(async || {
            let netlink = Netlink::connect().unwrap();
            netlink.add_veth("up", "peer").await.unwrap();
            assert!(ip("link add link up name up.7 type vlan id 7"));
            let home = || Netns::current().unwrap();
            let holder = async |master, id| vlan_holder(home(), master, id).await.unwrap();
            let (netns, name) = holder("up", 7).await.unwrap();
            assert_eq!((netns.id(), &*name), (home().id(), "up.7"));
            for (master, id) in [("up", 8), ("peer", 7), ("nobody", 7)] {
                assert!(holder(master, id).await.is_none(), "{master} {id}");
            }

            let pod = new_netns();
            let inside = Netlink::connect_in(&pod).unwrap();
            let index = netlink.link_by_name("up.7").await.unwrap().unwrap().index;
            netlink.move_link(index, &pod, &inside, "net1").await.unwrap();
            assert!(
                holder("up", 7).await.is_none(),
                "nothing names a namespace that only an open file keeps"
            );
            let id = pod.id();
            let mut process = pod.run(|| Command::new("sleep").arg("60").spawn().unwrap()).unwrap();
            let found = holder("up", 7).await.map(|(netns, name)| (netns.id(), name));
            process.kill().unwrap();
            process.wait().unwrap();
            assert_eq!(found, Some((id, "net1".to_owned())));
        });
    }
}
