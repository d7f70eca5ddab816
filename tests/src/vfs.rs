//! What the node's VFs look like, and what became of them.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result};
use host::netlink::{VfOption, VfSettings};
use host::{MacAddress, Netlink, PciAddress, Sysfs};

/// One VF as it can be seen from the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vf {
    /// Where it is.
    pub address: PciAddress,
    /// Interface of its PF.
    pub pf: String,
    /// Its index on the PF.
    pub index: u32,
    /// What is bound to it.
    pub driver: Option<String>,
    /// Its interface, while that is in the node's namespace.
    pub netdev: Option<Netdev>,
    /// What its PF says of it.
    pub admin: VfSettings,
}

/// The interface of a VF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netdev {
    /// Name.
    pub name: String,
    /// Further names.
    pub altnames: Vec<String>,
    /// MAC address.
    pub mac: Option<MacAddress>,
    /// Largest packet in octets.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
}

/// All VFs of the node by address.
pub type Vfs = BTreeMap<PciAddress, Vf>;

/// Looks at every VF.
///
/// # Errors
/// sysfs or netlink cannot be read.
pub async fn look(sysfs: &Sysfs, netlink: &Netlink) -> Result<Vfs> {
    let mut vfs = Vfs::new();
    for pf in sysfs.pci_devices()? {
        let virtfns = pf.virtfns()?;
        if virtfns.is_empty() {
            continue;
        }
        let netdev = pf.main_netdev()?.with_context(|| format!("PF {} has no interface", pf.address()))?;
        let name = netdev.name().to_owned();
        let link = netlink.link_by_name(&name).await?.with_context(|| format!("no link {name}"))?;
        let settings: BTreeMap<u32, VfSettings> = netlink.vfs(link.index).await?.into_iter().collect();
        for (index, device) in virtfns {
            let netdev = match device.main_netdev()? {
                None => None,
                Some(netdev) => netlink.link_by_name(netdev.name()).await?.map(|link| Netdev {
                    name: link.name,
                    altnames: link.altnames,
                    mac: link.mac,
                    mtu: link.mtu,
                    up: link.up,
                }),
            };
            let vf = Vf {
                address: device.address(),
                pf: name.clone(),
                index,
                driver: device.driver()?,
                netdev,
                admin: settings.get(&index).cloned().unwrap_or_default(),
            };
            vfs.insert(vf.address, vf);
        }
    }
    Ok(vfs)
}

/// What is different now, one line per VF and property.
pub fn differences(before: &Vfs, after: &Vfs) -> Vec<String> {
    let mut lines = Vec::new();
    for (address, old) in before {
        let Some(new) = after.get(address) else {
            lines.push(format!("{address}: gone"));
            continue;
        };
        for ((what, old), (_, new)) in old.properties().into_iter().zip(new.properties()) {
            if old != new {
                lines.push(format!("{address}: {what} was {old}, is {new}"));
            }
        }
    }
    let added = after.keys().filter(|address| !before.contains_key(address));
    lines.extend(added.map(|address| format!("{address}: new")));
    lines
}

impl Vf {
    /// Everything that has to come back, as text.
    fn properties(&self) -> Vec<(&'static str, String)> {
        let netdev = self.netdev.as_ref();
        let mut properties = vec![
            ("driver", text(self.driver.as_ref())),
            ("interface", text(netdev.map(|netdev| &netdev.name))),
            ("MAC", text(netdev.and_then(|netdev| netdev.mac.as_ref()))),
            ("MTU", text(netdev.map(|netdev| netdev.mtu).as_ref())),
            ("altnames", netdev.map(|netdev| netdev.altnames.join(" ")).unwrap_or_default()),
            ("link up", text(netdev.map(|netdev| netdev.up).as_ref())),
        ];
        let options = [
            ("MAC on the PF", VfOption::Mac),
            ("VLAN", VfOption::Vlan),
            ("rates", VfOption::Rate),
            ("spoof check", VfOption::Spoofchk),
            ("trust", VfOption::Trust),
            ("link state", VfOption::LinkState),
        ];
        let settings = options.map(|(what, option)| (what, text(self.admin.get(option).as_ref())));
        properties.extend(settings);
        properties
    }

    /// Driver, interface, MAC (without an interface the one that the PF knows), MTU and VLAN, for tables.
    pub fn summary(&self) -> [String; 5] {
        let netdev = self.netdev.as_ref();
        [
            text(self.driver.as_ref()),
            text(netdev.map(|netdev| &netdev.name)),
            text(netdev.map_or(self.admin.mac.as_ref(), |netdev| netdev.mac.as_ref())),
            text(netdev.map(|netdev| netdev.mtu).as_ref()),
            text(self.admin.vlan.as_ref().map(|vlan| vlan.id).as_ref()),
        ]
    }
}

fn text(value: Option<&impl fmt::Display>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::netlink::VfVlan;

    #[test]
    fn differences_name_device_and_property() {
        let address: PciAddress = "0000:01:10.0".parse().unwrap();
        let netdev = Netdev { name: "v0".into(), altnames: vec![], mac: None, mtu: 1500, up: false };
        let vf = Vf {
            address,
            pf: "p0".into(),
            index: 0,
            driver: Some("igbvf".into()),
            netdev: Some(netdev),
            admin: VfSettings { vlan: Some(VfVlan::default()), ..VfSettings::default() },
        };
        let before = Vfs::from([(address, vf.clone())]);
        assert!(differences(&before, &before).is_empty());

        let vlan = VfVlan { id: 100, ..VfVlan::default() };
        let admin = VfSettings { vlan: Some(vlan), ..VfSettings::default() };
        let after = Vfs::from([(address, Vf { netdev: None, admin, ..vf })]);
        let lines = differences(&before, &after);
        assert_eq!(lines.first().unwrap(), "0000:01:10.0: interface was v0, is -");
        assert!(lines.last().unwrap().starts_with("0000:01:10.0: VLAN was vlan 0"), "{lines:?}");
        assert_eq!(differences(&before, &Vfs::new()), ["0000:01:10.0: gone"]);
        assert_eq!(differences(&Vfs::new(), &before), ["0000:01:10.0: new"]);
    }
}
