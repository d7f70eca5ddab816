//! Network interfaces.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::DefaultNla;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage, Prop};
use rtnetlink::{LinkDummy, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::frame::{Frame, attribute, attributes, text, u16_at, u32_at};
use super::{Error, Netlink, Verb};
use crate::netns::Netns;
use crate::{MacAddress, PciAddress};

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_SETLINK: u16 = 19;
const RTM_NEWLINKPROP: u16 = 108;
const RTM_DELLINKPROP: u16 = 109;

pub(super) const HEADER_LENGTH: usize = 16;
const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_INFO_KIND: u16 = 1;
const IFLA_CARRIER: u16 = 33;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_PERM_ADDRESS: u16 = 54;
const IFLA_PARENT_DEV_NAME: u16 = 56;
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 1 << 6;
const IFF_PROMISC: u32 = 1 << 8;
const IFF_ALLMULTI: u32 = 1 << 9;

/// Size of an interface name with its NUL.
const IFNAMSIZ: usize = 16;

/// A network interface as RTM_NEWLINK describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Index, unique in its namespace; the kernel keeps it on a move to another namespace if it is
    /// free there.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Alternative names, in the kernel's order.
    pub altnames: Vec<String>,
    /// Hardware address in use; `None` when it is not 6 bytes long.
    pub mac: Option<MacAddress>,
    /// Permanent hardware address, where the driver has one.
    pub perm_mac: Option<MacAddress>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// Up and operational (IFF_RUNNING).
    pub running: bool,
    /// Promiscuous by request of an administrator or program (IFF_PROMISC).
    pub promiscuous: bool,
    /// Receives all multicast by such a request (IFF_ALLMULTI).
    pub allmulti: bool,
    /// Whether there is a carrier; false while the interface is down.
    pub carrier: bool,
    /// Kind of a virtual interface (`veth`, `bridge`, ...); `None` for hardware.
    pub kind: Option<String>,
    /// Index of the bridge, bond or VRF it belongs to.
    pub master: Option<u32>,
    /// Name of the device behind it, for PCI the address as sysfs writes it. Kernels before 5.14 do
    /// not say.
    pub parent_dev: Option<String>,
    /// ARPHRD_ type: 1 is Ethernet, 32 InfiniBand.
    pub link_type: u16,
}

impl Link {
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let flags = u32_at(body, 8)?;
        let mut link = Self {
            index: u32_at(body, 4)?,
            link_type: u16_at(body, 2)?,
            up: flags & IFF_UP != 0,
            running: flags & IFF_RUNNING != 0,
            promiscuous: flags & IFF_PROMISC != 0,
            allmulti: flags & IFF_ALLMULTI != 0,
            ..Self::default()
        };
        for (kind, value) in attributes(body.get(HEADER_LENGTH..)?) {
            match kind {
                IFLA_ADDRESS => link.mac = MacAddress::try_from(value).ok(),
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_MASTER => link.master = u32_at(value, 0),
                IFLA_LINKINFO => link.kind = attribute(value, IFLA_INFO_KIND).map(text),
                IFLA_CARRIER => link.carrier = value.first().is_some_and(|carrier| *carrier != 0),
                IFLA_PROP_LIST => link.altnames = altnames(value),
                IFLA_PERM_ADDRESS => link.perm_mac = MacAddress::try_from(value).ok(),
                IFLA_PARENT_DEV_NAME => link.parent_dev = Some(text(value)),
                _ => {}
            }
        }
        Some(link)
    }

    /// Whether the interface answers to `name`, as its name or an alternative one.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.altnames.iter().any(|alt| alt == name)
    }
}

fn altnames(properties: &[u8]) -> Vec<String> {
    attributes(properties).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME).map(|(_, name)| text(name)).collect()
}

impl Netlink {
    /// The interface with this index; `None` when there is none.
    ///
    /// # Errors
    /// Any refusal other than absence.
    pub async fn link(&self, index: u32) -> Result<Option<Link>, Error> {
        let message = LinkUnspec::new_with_index(index);
        self.get_link(message, || format!("reading interface {index}")).await
    }

    /// The interface that has `name` as its name or as an alternative name; `None` when there is none.
    ///
    /// # Errors
    /// Any refusal other than absence.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>, Error> {
        self.get_link(called(name), || format!("reading interface {name}")).await
    }

    async fn get_link(
        &self,
        message: LinkMessageBuilder<LinkUnspec>,
        operation: impl FnOnce() -> String,
    ) -> Result<Option<Link>, Error> {
        let message = message.append_extra_attribute(skip_stats()).build();
        match self.request(Verb::Get, Frame::new(RTM_GETLINK, &message), operation).await {
            Ok(replies) => Ok(replies.iter().find_map(|reply| Link::parse(&reply.body))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All interfaces of the namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let replies = self.dump_links("listing interfaces").await?;
        Ok(replies.iter().filter_map(|reply| Link::parse(&reply.body)).collect())
    }

    /// The kernel's description of every interface of the namespace; `operation` is for errors.
    pub(super) async fn dump_links(&self, operation: &'static str) -> Result<Vec<Frame>, Error> {
        let message =
            LinkMessageBuilder::<LinkUnspec>::default().append_extra_attribute(skip_stats()).build();
        self.request(Verb::Dump, Frame::new(RTM_GETLINK, &message), || operation.to_owned()).await
    }

    /// The interfaces in this namespace that belong to the PCI function `address`, as far as the kernel
    /// names the parent device (Linux 5.14 and newer). A function usually has none or one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn links_of_pci(&self, address: PciAddress) -> Result<Vec<Link>, Error> {
        let parent = address.to_string();
        let links = self.links().await?;
        Ok(links.into_iter().filter(|link| link.parent_dev.as_ref() == Some(&parent)).collect())
    }

    /// Renames an interface. Drivers of older kernels (before 6.2) require it to be down.
    ///
    /// # Errors
    /// EEXIST when the name is taken, also as an alternative name and also of the interface itself.
    pub async fn set_name(&self, index: u32, name: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).name(name);
        self.set_link(message, || format!("renaming interface {index} to {name}")).await
    }

    /// Sets the interface up or down.
    ///
    /// # Errors
    /// When kernel or driver refuse.
    pub async fn set_up(&self, index: u32, up: bool) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index);
        let (message, state) = if up { (message.up(), "up") } else { (message.down(), "down") };
        self.set_link(message, || format!("setting interface {index} {state}")).await
    }

    /// Switches promiscuous mode and reception of all multicast.
    ///
    /// # Errors
    /// When kernel or driver refuse.
    pub async fn set_reception(&self, index: u32, promiscuous: bool, allmulti: bool) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).promiscuous(promiscuous).allmulticast(allmulti);
        let operation = || format!("setting promisc {promiscuous}, allmulti {allmulti} on interface {index}");
        self.set_link(message, operation).await
    }

    /// Sets the hardware address of the interface itself (not the administrative one of a VF).
    ///
    /// # Errors
    /// When kernel or driver refuse.
    pub async fn set_mac(&self, index: u32, mac: MacAddress) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).address(mac.bytes().to_vec());
        self.set_link(message, || format!("setting MAC {mac} on interface {index}")).await
    }

    /// Sets the MTU, in bytes.
    ///
    /// # Errors
    /// When kernel or driver refuse.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu);
        self.set_link(message, || format!("setting MTU {mtu} on interface {index}")).await
    }

    /// Gives the interface one more alternative name.
    ///
    /// # Errors
    /// EEXIST when any interface of the namespace has it, as name or alternative name.
    pub async fn add_altname(&self, index: u32, name: &str) -> Result<(), Error> {
        let frame = altname_frame(RTM_NEWLINKPROP, index, name);
        let operation = || format!("adding alternative name {name} to interface {index}");
        self.request(Verb::Create, frame, operation).await.map(drop)
    }

    /// Takes an alternative name away.
    ///
    /// # Errors
    /// ENOENT when the interface does not have it.
    pub async fn remove_altname(&self, index: u32, name: &str) -> Result<(), Error> {
        let frame = altname_frame(RTM_DELLINKPROP, index, name);
        let operation = || format!("removing alternative name {name} of interface {index}");
        self.request(Verb::Change, frame, operation).await.map(drop)
    }

    /// Moves the interface to `target`, where `inside` is connected to, under the name `name`, in one request.
    ///
    /// The kernel moves first and renames second: when `name` is taken in `target` the request fails
    /// with EEXIST but the interface *is* there, under its old name. So the name is looked up in
    /// `target` before, and EEXIST is reported without anything having been moved.
    ///
    /// # Errors
    /// EEXIST when `name` is taken in `target`; otherwise when kernel or driver refuse.
    pub async fn move_link(
        &self,
        index: u32,
        target: &Netns,
        inside: &Self,
        name: &str,
    ) -> Result<(), Error> {
        let operation = || format!("moving interface {index} to {} as {name}", target.path().display());
        if let Some(holder) = inside.link_by_name(name).await? {
            let taken = format!("interface {} there has that name already", holder.index);
            return Err(Error::kernel(operation(), nix::errno::Errno::EEXIST as i32, Some(taken)));
        }
        let message = LinkUnspec::new_with_index(index).setns_by_fd(target.as_fd().as_raw_fd()).name(name);
        self.set_link(message, operation).await
    }

    async fn set_link(
        &self,
        message: LinkMessageBuilder<LinkUnspec>,
        operation: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        let frame = Frame::new(RTM_SETLINK, &message.build());
        self.request(Verb::Change, frame, operation).await.map(drop)
    }

    /// Makes a dummy interface.
    ///
    /// # Errors
    /// EEXIST when the name is taken.
    pub async fn add_dummy(&self, name: &str) -> Result<(), Error> {
        self.add_link(&LinkDummy::new(name).build(), || format!("making dummy interface {name}")).await
    }

    /// Makes a pair of connected virtual Ethernet interfaces.
    ///
    /// # Errors
    /// EEXIST when one of the names is taken.
    pub async fn add_veth(&self, name: &str, peer: &str) -> Result<(), Error> {
        self.add_link(&LinkVeth::new(name, peer).build(), || format!("making veth pair {name}, {peer}")).await
    }

    async fn add_link(&self, message: &LinkMessage, operation: impl FnOnce() -> String) -> Result<(), Error> {
        self.request(Verb::Create, Frame::new(RTM_NEWLINK, message), operation).await.map(drop)
    }

    /// Removes a virtual interface.
    ///
    /// # Errors
    /// EOPNOTSUPP for hardware.
    pub async fn delete_link(&self, index: u32) -> Result<(), Error> {
        let frame = Frame::new(RTM_DELLINK, &LinkUnspec::new_with_index(index).build());
        self.request(Verb::Change, frame, || format!("removing interface {index}")).await.map(drop)
    }
}

/// A request about the interface that has `name` as its name or as an alternative name.
pub(super) fn called(name: &str) -> LinkMessageBuilder<LinkUnspec> {
    let message = LinkMessageBuilder::<LinkUnspec>::default();
    // By the ordinary attribute the kernel finds names and alternative names, but takes none that is
    // too long for a name.
    if name.len() < IFNAMSIZ {
        return message.name(name);
    }
    let attribute = DefaultNla::new(IFLA_ALT_IFNAME, [name.as_bytes(), &[0]].concat());
    message.append_extra_attribute(LinkAttribute::Other(attribute))
}

fn skip_stats() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn altname_frame(kind: u16, index: u32, name: &str) -> Frame {
    let property = LinkAttribute::PropList(vec![Prop::AltIfName(name.to_owned())]);
    Frame::new(kind, &LinkUnspec::new_with_index(index).append_extra_attribute(property).build())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::netlink::{Events, Group};
    use crate::testing::{in_new_netns, new_netns};

    async fn named(netlink: &Netlink, name: &str) -> Link {
        netlink.link_by_name(name).await.unwrap().unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn changes_are_read_back() {
        in_new_netns(async || {
            let netlink = Netlink::connect().unwrap();
            netlink.add_veth("d0", "peer").await.unwrap();
            let index = named(&netlink, "d0").await.index;
            let mac = "02:00:00:00:00:01".parse().unwrap();
            netlink.set_mac(index, mac).await.unwrap();
            netlink.set_mtu(index, 1400).await.unwrap();
            netlink.add_altname(index, "other").await.unwrap();
            netlink.set_name(index, "d1").await.unwrap();
            netlink.set_up(index, true).await.unwrap();
            let link = named(&netlink, "other").await;
            let seen = (link.index, &*link.name, link.mac, link.mtu, link.up, link.kind.as_deref());
            assert_eq!(seen, (index, "d1", Some(mac), 1400, true, Some("veth")));
            assert_eq!(link.altnames, ["other"]);
            assert!(link.is_called("d1") && link.is_called("other") && !link.is_called("d0"));
            netlink.remove_altname(index, "other").await.unwrap();
            assert_eq!(netlink.link_by_name("other").await.unwrap(), None);
            let long = "a-name-that-is-longer-than-fifteen-bytes";
            assert_eq!(netlink.link_by_name(long).await.unwrap(), None);
            netlink.add_altname(index, long).await.unwrap();
            assert_eq!(named(&netlink, long).await.index, index);
            assert_eq!(netlink.links().await.unwrap().len(), 3);
            netlink.delete_link(index).await.unwrap();
            assert_eq!(netlink.link(index).await.unwrap(), None);
        });
    }

    #[test]
    fn refusals_carry_the_kernels_words() {
        in_new_netns(async || {
            let netlink = Netlink::connect().unwrap();
            netlink.add_veth("d0", "peer").await.unwrap();
            let index = named(&netlink, "d0").await.index;
            let error = netlink.set_mtu(index, 70_000).await.unwrap_err().to_string();
            assert!(
                error.contains("MTU 70000") && error.contains("mtu greater than device maximum"),
                "{error}"
            );
            let error = netlink.set_up(index + 100, true).await.unwrap_err();
            assert!(error.is_not_found(), "{error}");
            assert!(netlink.add_veth("d0", "peer").await.unwrap_err().is_exists());
        });
    }

    #[test]
    fn moves_under_a_new_name_even_when_the_old_one_is_taken_there() {
        in_new_netns(async || {
            let netlink = Netlink::connect().unwrap();
            let pod = new_netns();
            let inside = Netlink::connect_in(&pod).unwrap();
            netlink.add_veth("eth0", "peer").await.unwrap();
            inside.add_veth("eth0", "x").await.unwrap();
            let index = named(&netlink, "eth0").await.index;

            let refused = netlink.move_link(index, &pod, &inside, "eth0").await.unwrap_err();
            assert!(refused.is_exists(), "{refused}");
            assert!(netlink.link(index).await.unwrap().is_some(), "a refused move leaves the interface here");

            let mut events = Events::subscribe(&[Group::Link]).unwrap();
            netlink.move_link(index, &pod, &inside, "net1").await.unwrap();
            assert_eq!(named(&inside, "net1").await.kind.as_deref(), Some("veth"));
            let gone = events.wait_until(Duration::from_secs(5), async || {
                Ok(netlink.link_by_name("eth0").await?.is_none().then_some(()))
            });
            assert_eq!(gone.await.unwrap(), Some(()));

            let home = Netns::current().unwrap();
            let index = named(&inside, "net1").await.index;
            inside.move_link(index, &home, &netlink, "eth0").await.unwrap();
            assert!(netlink.link_by_name("eth0").await.unwrap().is_some());
        });
    }

    #[test]
    fn waits_end_with_the_event_or_with_the_limit() {
        in_new_netns(async || {
            let netlink = Netlink::connect().unwrap();
            let mut events = Events::subscribe(&[Group::Link]).unwrap();
            let look = async || netlink.link_by_name("d0").await;
            let limit = Duration::from_millis(50);
            assert_eq!(events.wait_until(limit, look).await.unwrap(), None);
            let (made, found) = tokio::join!(
                netlink.add_veth("d0", "peer"),
                events.wait_until(Duration::from_secs(20), look)
            );
            made.unwrap();
            assert!(found.unwrap().is_some());
        });
    }
}
