//! Administrative settings of virtual functions, made and read through their physical function.

use std::fmt;
use std::str::FromStr;

use netlink_packet_route::link as wire;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkVfInfo, VfInfo};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use serde::{Deserialize, Serialize};

use super::frame::{Frame, attribute, attributes, u16_at, u32_at};
use super::link::{RTM_GETLINK, RTM_SETLINK, called};
use super::{Error, Link, Netlink, Verb};
use crate::MacAddress;

pub(super) const HEADER_LENGTH: usize = 16;
pub(super) const IFLA_VFINFO_LIST: u16 = 22;
pub(super) const IFLA_VF_INFO: u16 = 1;
pub(super) const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_VLAN: u16 = 2;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_LINK_STATE: u16 = 5;
const IFLA_VF_RATE: u16 = 6;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_VLAN_LIST: u16 = 12;
const IFLA_VF_VLAN_INFO: u16 = 1;
const ETH_P_8021AD: u16 = 0x88a8;

/// Tag protocol of a port VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum VlanProtocol {
    /// 802.1Q customer tag, EtherType 0x8100.
    #[default]
    #[serde(rename = "802.1q")]
    Dot1q,
    /// 802.1ad service tag, EtherType 0x88A8.
    #[serde(rename = "802.1ad")]
    Dot1ad,
}

impl fmt::Display for VlanProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dot1q => "802.1q",
            Self::Dot1ad => "802.1ad",
        })
    }
}

/// Port VLAN of a VF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VfVlan {
    /// VLAN ID, 0 to 4094; 0 is no port VLAN.
    pub id: u16,
    /// Priority, 0 to 7.
    pub qos: u8,
    /// Tag protocol.
    pub protocol: VlanProtocol,
}

/// Link state that a VF sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VfLinkState {
    /// That of the PF.
    Auto,
    /// Always up; VFs can talk to each other without a cable.
    Enable,
    /// Always down.
    Disable,
}

impl fmt::Display for VfLinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Enable => "enable",
            Self::Disable => "disable",
        })
    }
}

/// One setting of a VF, as one netlink request makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VfSetting {
    /// Administrative MAC. The VF's own driver may take it over at once, later or at its next start.
    Mac(MacAddress),
    /// Port VLAN.
    Vlan(VfVlan),
    /// Transmit rates in Mbit/s; 0 is unlimited.
    Rate {
        /// Guaranteed rate.
        min: u32,
        /// Limit.
        max: u32,
    },
    /// Whether frames from a foreign source MAC are dropped.
    Spoofchk(bool),
    /// Whether the VF may change its own MAC, go promiscuous and so on.
    Trust(bool),
    /// Link state.
    LinkState(VfLinkState),
}

/// The options of a VF, by the names that configuration files use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VfOption {
    /// [`VfSetting::Mac`]
    Mac,
    /// [`VfSetting::Vlan`]
    Vlan,
    /// [`VfSetting::Rate`]
    Rate,
    /// [`VfSetting::Spoofchk`]
    Spoofchk,
    /// [`VfSetting::Trust`]
    Trust,
    /// [`VfSetting::LinkState`]
    LinkState,
}

impl VfSetting {
    /// Which option this sets.
    #[must_use]
    pub fn option(&self) -> VfOption {
        match self {
            Self::Mac(_) => VfOption::Mac,
            Self::Vlan(_) => VfOption::Vlan,
            Self::Rate { .. } => VfOption::Rate,
            Self::Spoofchk(_) => VfOption::Spoofchk,
            Self::Trust(_) => VfOption::Trust,
            Self::LinkState(_) => VfOption::LinkState,
        }
    }

    fn wire(self, vf: u32) -> VfInfo {
        match self {
            Self::Mac(mac) => VfInfo::Mac(wire::VfInfoMac::new(vf, &mac.bytes())),
            Self::Vlan(VfVlan { id, qos, protocol }) => {
                let protocol = match protocol {
                    VlanProtocol::Dot1q => wire::VlanProtocol::Ieee8021Q,
                    VlanProtocol::Dot1ad => wire::VlanProtocol::Ieee8021Ad,
                };
                let info = wire::VfVlanInfo::new(vf, id.into(), qos.into(), protocol);
                VfInfo::VlanList(vec![wire::VfVlan::Info(info)])
            }
            Self::Rate { min, max } => VfInfo::Rate(wire::VfInfoRate::new(vf, min, max)),
            Self::Spoofchk(on) => VfInfo::SpoofCheck(wire::VfInfoSpoofCheck::new(vf, on)),
            Self::Trust(on) => VfInfo::Trust(wire::VfInfoTrust::new(vf, on)),
            Self::LinkState(state) => {
                let state = match state {
                    VfLinkState::Auto => wire::VfLinkState::Auto,
                    VfLinkState::Enable => wire::VfLinkState::Enable,
                    VfLinkState::Disable => wire::VfLinkState::Disable,
                };
                VfInfo::LinkState(wire::VfInfoLinkState::new(vf, state))
            }
        }
    }
}

impl fmt::Display for VfSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on_off = |on| if on { "on" } else { "off" };
        match self {
            Self::Mac(mac) => write!(f, "mac {mac}"),
            Self::Vlan(VfVlan { id, qos, protocol }) => {
                write!(f, "vlan {id} (vlanQoS {qos}, vlanProto {protocol})")
            }
            Self::Rate { min, max } => write!(f, "min_tx_rate {min}, max_tx_rate {max}"),
            Self::Spoofchk(on) => write!(f, "spoofchk {}", on_off(*on)),
            Self::Trust(on) => write!(f, "trust {}", on_off(*on)),
            Self::LinkState(state) => write!(f, "link_state {state}"),
        }
    }
}

/// The settings of a VF as its PF reports them. `None` is what the driver does not report.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VfSettings {
    /// Administrative MAC; all zero when none was set. Some drivers report the MAC in use.
    pub mac: Option<MacAddress>,
    /// Port VLAN.
    pub vlan: Option<VfVlan>,
    /// Guaranteed and limiting transmit rate, Mbit/s, 0 is unlimited.
    pub rate: Option<(u32, u32)>,
    /// MAC spoof checking.
    pub spoofchk: Option<bool>,
    /// Trust.
    pub trust: Option<bool>,
    /// Link state.
    pub link_state: Option<VfLinkState>,
}

impl VfSettings {
    /// The setting of `option`, ready to be made again; `None` when the driver does not report it.
    #[must_use]
    pub fn get(&self, option: VfOption) -> Option<VfSetting> {
        match option {
            VfOption::Mac => self.mac.map(VfSetting::Mac),
            VfOption::Vlan => self.vlan.map(VfSetting::Vlan),
            VfOption::Rate => self.rate.map(|(min, max)| VfSetting::Rate { min, max }),
            VfOption::Spoofchk => self.spoofchk.map(VfSetting::Spoofchk),
            VfOption::Trust => self.trust.map(VfSetting::Trust),
            VfOption::LinkState => self.link_state.map(VfSetting::LinkState),
        }
    }

    /// Reads one IFLA_VF_INFO; the VF's index, where any attribute tells it, and the settings.
    fn parse(info: &[u8]) -> (Option<u32>, Self) {
        let mut settings = Self::default();
        let mut index = None;
        for (kind, value) in attributes(info) {
            match kind {
                IFLA_VF_MAC => settings.mac = value.get(4..10).and_then(|mac| MacAddress::try_from(mac).ok()),
                IFLA_VF_VLAN => {
                    let protocol = settings.vlan.unwrap_or_default().protocol;
                    settings.vlan = vlan(value).map(|vlan| VfVlan { protocol, ..vlan });
                }
                IFLA_VF_VLAN_LIST => {
                    let info = attribute(value, IFLA_VF_VLAN_INFO);
                    settings.vlan = info.and_then(vlan).or(settings.vlan);
                }
                IFLA_VF_RATE => settings.rate = u32_at(value, 4).zip(u32_at(value, 8)),
                IFLA_VF_SPOOFCHK => settings.spoofchk = switch(value),
                IFLA_VF_TRUST => settings.trust = switch(value),
                IFLA_VF_LINK_STATE => {
                    settings.link_state = match u32_at(value, 4) {
                        Some(0) => Some(VfLinkState::Auto),
                        Some(1) => Some(VfLinkState::Enable),
                        Some(2) => Some(VfLinkState::Disable),
                        _ => None,
                    };
                }
                // Nested: has no index of its own in front.
                _ => continue,
            }
            if kind != IFLA_VF_VLAN_LIST {
                index = index.or(u32_at(value, 0));
            }
        }
        (index, settings)
    }
}

// The kernel writes -1 (0xFFFFFFFF) when the driver does not know the switch at all; taking that for
// "off" would later "restore" something that never was.
fn switch(value: &[u8]) -> Option<bool> {
    match u32_at(value, 4)? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

// struct ifla_vf_vlan {vf, vlan, qos}, or struct ifla_vf_vlan_info with the protocol in network order
// behind it.
fn vlan(value: &[u8]) -> Option<VfVlan> {
    let protocol = match u16_at(value, 12).map(u16::from_be) {
        Some(ETH_P_8021AD) => VlanProtocol::Dot1ad,
        _ => VlanProtocol::Dot1q,
    };
    let id = u16::try_from(u32_at(value, 4)?).ok()?;
    let qos = u8::try_from(u32_at(value, 8)?).ok()?;
    Some(VfVlan { id, qos, protocol })
}

impl Netlink {
    /// The settings of VF number `vf` of the PF with interface index `pf`.
    ///
    /// # Errors
    /// When the kernel refuses, or reports no such VF.
    pub async fn vf(&self, pf: u32, vf: u32) -> Result<VfSettings, Error> {
        let operation = || format!("reading VF {vf} of interface {pf}");
        let mut all = self.vfs(pf).await?;
        match all.iter().position(|(index, _)| *index == vf) {
            Some(position) => Ok(all.swap_remove(position).1),
            None => Err(Error::Incomplete { operation: operation(), missing: format!("VF {vf}") }),
        }
    }

    /// The settings of all VFs of the PF with interface index `pf`, with their numbers. Empty for
    /// drivers that report no VF information.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn vfs(&self, pf: u32) -> Result<Vec<(u32, VfSettings)>, Error> {
        let message = LinkUnspec::new_with_index(pf);
        let replies = self.get_with_vfs(message, || format!("reading VFs of interface {pf}")).await?;
        Ok(replies.iter().find_map(vf_list).unwrap_or_default())
    }

    /// The PF whose interface is called `name`, and what [`Netlink::vfs`] tells of it, in one request; `None` when there
    /// is no such interface.
    ///
    /// # Errors
    /// Any refusal other than absence.
    pub async fn pf(&self, name: &str) -> Result<Option<(Link, Vec<(u32, VfSettings)>)>, Error> {
        match self.get_with_vfs(called(name), || format!("reading interface {name} and its VFs")).await {
            Ok(replies) => Ok(replies
                .iter()
                .find_map(|reply| Some((Link::parse(&reply.body)?, vf_list(reply).unwrap_or_default())))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get_with_vfs(
        &self,
        message: LinkMessageBuilder<LinkUnspec>,
        operation: impl FnOnce() -> String,
    ) -> Result<Vec<Frame>, Error> {
        // With statistics, the VF list of a large PF outgrows the 64 KiB of a netlink attribute.
        let mask = LinkAttribute::ExtMask(vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats]);
        let message = message.append_extra_attribute(mask).build();
        self.request(Verb::Get, Frame::new(RTM_GETLINK, &message), operation).await
    }

    /// Makes one setting of VF number `vf` of the PF with interface index `pf`. One request carries
    /// one setting, so a refusal says which.
    ///
    /// # Errors
    /// When kernel or driver refuse.
    pub async fn set_vf(&self, pf: u32, vf: u32, setting: VfSetting) -> Result<(), Error> {
        let list = LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![setting.wire(vf)])]);
        let message = LinkUnspec::new_with_index(pf).append_extra_attribute(list).build();
        let frame = Frame::new(RTM_SETLINK, &message);
        let operation = || format!("setting {setting} on VF {vf} of interface {pf}");
        self.request(Verb::Change, frame, operation).await.map(drop)
    }
}

fn vf_list(reply: &Frame) -> Option<Vec<(u32, VfSettings)>> {
    attribute(reply.body.get(HEADER_LENGTH..)?, IFLA_VFINFO_LIST).map(parse_list)
}

fn parse_list(list: &[u8]) -> Vec<(u32, VfSettings)> {
    attributes(list)
        .filter(|(kind, _)| *kind == IFLA_VF_INFO)
        .zip(0_u32..)
        .map(|((_, info), position)| {
            let (index, settings) = VfSettings::parse(info);
            (index.unwrap_or(position), settings)
        })
        .collect()
}

/// A text that names no option or value of a VF.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of {1}")]
pub struct UnknownVfOption(String, &'static str);

impl FromStr for VlanProtocol {
    type Err = UnknownVfOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "802.1q" => Ok(Self::Dot1q),
            "802.1ad" => Ok(Self::Dot1ad),
            _ => Err(UnknownVfOption(text.to_owned(), "802.1q, 802.1ad")),
        }
    }
}

impl FromStr for VfLinkState {
    type Err = UnknownVfOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "enable" => Ok(Self::Enable),
            "disable" => Ok(Self::Disable),
            _ => Err(UnknownVfOption(text.to_owned(), "auto, enable, disable")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_new_netns;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    #[test]
    fn reads_a_vf_by_its_own_number_not_its_position() {
        let mut mac = words(&[7]);
        mac.extend([2, 0, 0, 0, 0, 7]);
        mac.resize(36, 0);
        let mut vlan_info = words(&[7, 100, 3]);
        vlan_info.extend([0x88, 0xa8, 0, 0]);
        let info = [
            attr(IFLA_VF_MAC, &mac),
            attr(IFLA_VF_VLAN, &words(&[7, 100, 3])),
            attr(IFLA_VF_VLAN_LIST, &attr(IFLA_VF_VLAN_INFO, &vlan_info)),
            attr(IFLA_VF_RATE, &words(&[7, 10, 200])),
            attr(IFLA_VF_SPOOFCHK, &words(&[7, 1])),
            attr(IFLA_VF_TRUST, &words(&[7, 0xffff_ffff])),
            attr(IFLA_VF_LINK_STATE, &words(&[7, 2])),
        ]
        .concat();
        let expected = VfSettings {
            mac: Some("02:00:00:00:00:07".parse().unwrap()),
            vlan: Some(VfVlan { id: 100, qos: 3, protocol: VlanProtocol::Dot1ad }),
            rate: Some((10, 200)),
            spoofchk: Some(true),
            trust: None,
            link_state: Some(VfLinkState::Disable),
        };
        assert_eq!(parse_list(&attr(IFLA_VF_INFO, &info)), [(7, expected)]);
        assert_eq!(parse_list(&attr(IFLA_VF_INFO, &[])), [(0, VfSettings::default())]);
    }

    #[test]
    fn a_pf_is_read_by_either_of_its_names_and_may_have_no_vfs() {
        in_new_netns(async || {
            let netlink = Netlink::connect().unwrap();
            assert_eq!(netlink.pf("pf0").await.unwrap(), None);
            netlink.add_veth("pf0", "peer").await.unwrap();
            let link = netlink.link_by_name("pf0").await.unwrap().unwrap();
            let long = "a-name-that-is-longer-than-fifteen-bytes";
            netlink.add_altname(link.index, long).await.unwrap();
            let (found, vfs) = netlink.pf(long).await.unwrap().unwrap();
            assert_eq!((found.index, found.name, vfs), (link.index, link.name, vec![]));
        });
    }

    #[test]
    fn option_names_are_read_in_any_case() {
        assert_eq!("802.1AD".parse(), Ok(VlanProtocol::Dot1ad));
        assert_eq!("Auto".parse(), Ok(VfLinkState::Auto));
        assert!("802.1".parse::<VlanProtocol>().is_err());
        assert!("on".parse::<VfLinkState>().is_err());
    }
}
