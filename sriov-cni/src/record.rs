//! What is written down about a VF before it is touched.
//!
//! There is a record exactly as long as a VF is not (known to be) as it was: from before the first
//! change of ADD until everything is given back. The baseline in it is therefore always that of a clean
//! VF. It speaks about one life of the VF, within one boot; after that it is void.

use std::fmt;
use std::path::PathBuf;

use host::netlink::{Link, VfLinkState, VfOption, VfSetting, VfSettings, VfVlan};
use host::{MacAddress, NetnsId, PciAddress};
use serde::{Deserialize, Serialize};

/// The layout this program writes. Fields may be added without changing it.
const VERSION: u32 = 1;

/// Whose a VF is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The container (sandbox).
    pub container_id: String,
    /// The interface's name in it.
    pub ifname: String,
    /// The network it was attached to.
    pub network: String,
    /// Path of the container's network namespace at ADD.
    pub netns: PathBuf,
    /// Which namespace that path named; `None` when that is not known.
    pub netns_id: Option<NetnsId>,
}

impl Owner {
    /// Whether this is the attachment of `container_id` and `ifname`.
    #[must_use]
    pub fn is(&self, container_id: &str, ifname: &str) -> bool {
        self.container_id == container_id && self.ifname == ifname
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { container_id, ifname, network, netns, .. } = self;
        write!(
            f,
            "container {container_id} as {ifname} of network {network:?}, namespace {}",
            netns.display()
        )
    }
}

/// How far an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// ADD is at work, or was killed.
    Attaching,
    /// ADD succeeded.
    Attached,
    /// DEL or GC is at work, failed or was killed: the owner gave the VF up.
    Releasing,
}

/// A VF's interface when it was clean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetdevBaseline {
    /// Name on the host.
    pub name: String,
    /// Alternative names on the host.
    pub altnames: Vec<String>,
    /// Hardware address; `None` when not known.
    pub mac: Option<MacAddress>,
    /// MTU in bytes; `None` when not known.
    pub mtu: Option<u32>,
    /// Whether it was up.
    pub up: bool,
    /// Whether it was promiscuous.
    pub promiscuous: bool,
    /// Whether it received all multicast.
    pub allmulti: bool,
}

impl From<&Link> for NetdevBaseline {
    fn from(link: &Link) -> Self {
        Self {
            name: link.name.clone(),
            altnames: link.altnames.clone(),
            mac: link.mac,
            mtu: Some(link.mtu),
            up: link.up,
            promiscuous: link.promiscuous,
            allmulti: link.allmulti,
        }
    }
}

/// A VF when it was clean.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Baseline {
    /// Its settings on the PF; `None` when no PF is visible or the PF reports none.
    pub vf: Option<VfSettings>,
    /// Its interface; `None` when it had none, being bound to a userspace driver.
    pub netdev: Option<NetdevBaseline>,
}

impl Baseline {
    /// What an option is to be put back to. For one that the PF's driver does not report that is the value a VF starts
    /// with, lest the next container keep what this one was granted.
    #[must_use]
    pub fn setting(&self, option: VfOption) -> Option<VfSetting> {
        let reported = self.vf.as_ref()?.get(option);
        reported.or(match option {
            VfOption::Mac => None,
            VfOption::Vlan => Some(VfSetting::Vlan(VfVlan::default())),
            VfOption::Rate => Some(VfSetting::Rate { min: 0, max: 0 }),
            VfOption::Spoofchk => Some(VfSetting::Spoofchk(true)),
            VfOption::Trust => Some(VfSetting::Trust(false)),
            VfOption::LinkState => Some(VfSetting::LinkState(VfLinkState::Auto)),
        })
    }
}

/// The record of a VF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The VF.
    pub device: PciAddress,
    /// Whose it is.
    pub owner: Owner,
    /// How far.
    pub phase: Phase,
    /// The boot it speaks about.
    pub boot_id: String,
    /// The life of the VF it speaks about, see [`host::incarnation`]; `None` when not known.
    pub incarnation: Option<u64>,
    /// The state to go back to.
    pub baseline: Baseline,
    /// The options that ADD sets through the PF.
    pub changes: Vec<VfOption>,
}

impl Record {
    /// A record of the present layout.
    #[must_use]
    pub fn new(
        device: PciAddress,
        owner: Owner,
        boot_id: String,
        incarnation: Option<u64>,
        baseline: Baseline,
        changes: Vec<VfOption>,
    ) -> Self {
        Self {
            version: VERSION,
            device,
            owner,
            phase: Phase::Attaching,
            boot_id,
            incarnation,
            baseline,
            changes,
        }
    }

    /// The JSON text that stands on disk.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the JSON text. `Ok(None)` for a text that is not JSON: a file is replaced as a whole, so
    /// within one boot it is never torn, and one that is torn was left by a machine that lost power;
    /// what it described is gone with that boot.
    ///
    /// # Errors
    /// Why a record that *is* JSON cannot be understood.
    pub fn parse(json: &[u8]) -> Result<Option<Self>, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        match serde_json::from_slice::<Versioned>(json) {
            Ok(Versioned { version: VERSION }) => {
                serde_json::from_slice(json).map(Some).map_err(|e| e.to_string())
            }
            Ok(Versioned { version }) => Err(format!("its layout has version {version}, known is {VERSION}")),
            Err(error) if error.is_data() => Err(error.to_string()),
            Err(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let owner = Owner {
            container_id: "c1".into(),
            ifname: "net1".into(),
            network: "n".into(),
            netns: "/run/netns/x".into(),
            netns_id: Some(NetnsId { dev: 4, ino: 4_026_532_000 }),
        };
        let netdev = NetdevBaseline {
            name: "enp1s0v0".into(),
            altnames: vec!["alt".into()],
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            mtu: Some(1500),
            up: true,
            promiscuous: false,
            allmulti: false,
        };
        let vf = VfSettings {
            vlan: Some(VfVlan::default()),
            trust: None,
            spoofchk: Some(true),
            ..VfSettings::default()
        };
        let baseline = Baseline { vf: Some(vf), netdev: Some(netdev) };
        let device = "0000:3b:02.1".parse().unwrap();
        Record::new(
            device,
            owner,
            "boot".into(),
            Some(7),
            baseline,
            vec![VfOption::Vlan, VfOption::LinkState],
        )
    }

    #[test]
    fn survives_the_disk() {
        assert_eq!(Record::parse(&record().to_json()), Ok(Some(record())));
    }

    #[test]
    fn what_no_driver_reported_goes_back_to_how_a_vf_starts() {
        let baseline = record().baseline;
        for (option, setting) in [
            (VfOption::Spoofchk, Some(VfSetting::Spoofchk(true))),
            (VfOption::Trust, Some(VfSetting::Trust(false))),
            (VfOption::LinkState, Some(VfSetting::LinkState(VfLinkState::Auto))),
            (VfOption::Mac, None),
        ] {
            assert_eq!(baseline.setting(option), setting);
        }
        assert_eq!(Baseline::default().setting(VfOption::Trust), None, "nothing was set without a PF");
    }

    #[test]
    fn a_torn_file_is_void_and_an_unknown_one_an_error() {
        let json = record().to_json();
        assert_eq!(Record::parse(b""), Ok(None));
        assert_eq!(Record::parse(&json[..json.len() / 2]), Ok(None));
        assert_eq!(Record::parse(&vec![0; 300]), Ok(None));
        assert!(Record::parse(br#"{"version":2,"device":7}"#).unwrap_err().contains("version 2"));
        assert!(Record::parse(br#"{"version":1}"#).is_err());
        assert!(Record::parse(b"{}").is_err());
    }
}
