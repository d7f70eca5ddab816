//! The cache file of an attachment as the Go implementation writes it, so that either implementation can
//! delete what the other one attached while a cluster is being moved over.

use std::path::PathBuf;

use cni::Object;
use host::netlink::{VfLinkState, VfOption, VfSettings, VfVlan, VlanProtocol};
use host::{Netns, PciAddress};
use serde::{Deserialize, Serialize};

use crate::config::Conf;
use crate::error::Error;
use crate::record::{Baseline, NetdevBaseline, Owner, Record};

const ETH_P_8021Q: u32 = 0x8100;
const ETH_P_8021AD: u32 = 0x88a8;

/// `OrigVfState`: the VF before ADD.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Original {
    #[serde(rename = "HostIFName")]
    host_ifname: String,
    spoof_chk: bool,
    trust: bool,
    #[serde(rename = "AdminMAC")]
    admin_mac: String,
    #[serde(rename = "EffectiveMAC")]
    effective_mac: String,
    vlan: u32,
    #[serde(rename = "VlanQoS")]
    vlan_qos: u32,
    vlan_proto: u32,
    min_tx_rate: u32,
    max_tx_rate: u32,
    link_state: u32,
    #[serde(rename = "MTU")]
    mtu: u32,
}

/// The cache file that a peer would have written for this attachment.
pub(crate) fn cache(
    config: &Object,
    conf: &Conf,
    record: &Record,
    pf: Option<(&str, u32)>,
) -> Result<Vec<u8>, Error> {
    let mut cache = Object::new();
    for key in ["cniVersion", "name", "type", "logLevel", "logFile", "runtimeConfig"] {
        if let Some(value) = config.get_fold(key) {
            cache.set_raw(key, value)?;
        }
    }
    let mut ipam = Object::new();
    if let Some(kind) = &conf.ipam {
        ipam.set("type", kind)?;
    }
    cache.set("ipam", &ipam)?;
    cache.set("OrigVfState", &original(&record.baseline))?;
    let (master, index) = pf.unwrap_or_default();
    cache.set("Master", master)?;
    cache.set("MAC", &conf.mac.map(|mac| mac.to_string()).unwrap_or_default())?;
    cache.set("MTU", &conf.mtu)?;
    cache.set("VFID", &index)?;
    cache.set("deviceID", &conf.device)?;
    cache.set("vlan", &conf.vlan.map(|vlan| vlan.id))?;
    cache.set("vlanQoS", &conf.vlan.map(|vlan| vlan.qos))?;
    cache.set("vlanProto", &conf.vlan.map(|vlan| vlan.protocol))?;
    cache.set("min_tx_rate", &conf.rate.map(|(min, _)| min))?;
    cache.set("max_tx_rate", &conf.rate.map(|(_, max)| max))?;
    for (key, on) in [("spoofchk", conf.spoofchk), ("trust", conf.trust)] {
        if let Some(on) = on {
            cache.set(key, if on { "on" } else { "off" })?;
        }
    }
    if let Some(state) = conf.link_state {
        cache.set("link_state", &state)?;
    }
    Ok(cache.to_vec())
}

fn original(baseline: &Baseline) -> Original {
    let vf = baseline.vf.clone().unwrap_or_default();
    let vlan = vf.vlan.unwrap_or_default();
    let (min_tx_rate, max_tx_rate) = vf.rate.unwrap_or_default();
    let netdev = baseline.netdev.as_ref();
    Original {
        host_ifname: netdev.map(|netdev| netdev.name.clone()).unwrap_or_default(),
        spoof_chk: vf.spoofchk.unwrap_or_default(),
        trust: vf.trust.unwrap_or_default(),
        admin_mac: vf.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        effective_mac: netdev.and_then(|netdev| netdev.mac).map(|mac| mac.to_string()).unwrap_or_default(),
        vlan: vlan.id.into(),
        vlan_qos: vlan.qos.into(),
        vlan_proto: match vlan.protocol {
            VlanProtocol::Dot1q => ETH_P_8021Q,
            VlanProtocol::Dot1ad => ETH_P_8021AD,
        },
        min_tx_rate,
        max_tx_rate,
        link_state: match vf.link_state {
            None | Some(VfLinkState::Auto) => 0,
            Some(VfLinkState::Enable) => 1,
            Some(VfLinkState::Disable) => 2,
        },
        mtu: netdev.and_then(|netdev| netdev.mtu).unwrap_or_default(),
    }
}

/// What a peer's cache file says, as a record: enough to give the VF back. `None` for a file that is
/// not such a cache.
pub(crate) fn record(
    cache: &Object,
    container_id: &str,
    ifname: &str,
    netns: PathBuf,
    boot_id: &str,
) -> Option<Record> {
    let device: PciAddress = crate::config::device_of(cache)?;
    let original: Original = cache.decode("OrigVfState").ok()??;
    let given = |key: &str| cache.get_fold(key).is_some_and(|value| !matches!(value, "null" | "\"\""));
    let changes = [
        (VfOption::Mac, !original.admin_mac.is_empty()),
        (VfOption::Vlan, given("vlan")),
        (VfOption::Rate, given("min_tx_rate") || given("max_tx_rate")),
        (VfOption::Spoofchk, given("spoofchk")),
        (VfOption::Trust, given("trust")),
        (VfOption::LinkState, given("link_state")),
    ];
    let owner = Owner {
        container_id: container_id.to_owned(),
        ifname: ifname.to_owned(),
        network: cache.decode("name").ok().flatten().unwrap_or_default(),
        netns_id: Netns::open(&netns).ok().map(|netns| netns.id()),
        netns,
    };
    let changes = changes.into_iter().filter_map(|(option, changed)| changed.then_some(option)).collect();
    Some(Record::new(device, owner, boot_id.to_owned(), None, baseline(&original), changes))
}

fn baseline(original: &Original) -> Baseline {
    let protocol = match original.vlan_proto {
        ETH_P_8021AD => VlanProtocol::Dot1ad,
        // Older files hold 0.
        _ => VlanProtocol::Dot1q,
    };
    let vlan = u16::try_from(original.vlan).ok().zip(u8::try_from(original.vlan_qos).ok());
    let vf = VfSettings {
        mac: original.admin_mac.parse().ok(),
        vlan: vlan.map(|(id, qos)| VfVlan { id, qos, protocol }),
        rate: Some((original.min_tx_rate, original.max_tx_rate)),
        spoofchk: Some(original.spoof_chk),
        trust: Some(original.trust),
        link_state: match original.link_state {
            0 => Some(VfLinkState::Auto),
            1 => Some(VfLinkState::Enable),
            2 => Some(VfLinkState::Disable),
            _ => None,
        },
    };
    let netdev = (!original.host_ifname.is_empty()).then(|| NetdevBaseline {
        name: original.host_ifname.clone(),
        altnames: Vec::new(),
        mac: original.effective_mac.parse().ok(),
        mtu: Some(original.mtu).filter(|mtu| *mtu != 0),
        up: false,
        promiscuous: false,
        allmulti: false,
    });
    Baseline { vf: Some(vf), netdev }
}

#[cfg(test)]
mod tests {
    use cni::Args;

    use super::*;

    /// As the Go implementation wrote it for a VF with VLAN and MAC.
    const FILE: &str = r#"{"cniVersion":"0.3.1","name":"sriov-net","type":"sriov","ipam":{"type":"host-local"},"dns":{},
        "OrigVfState":{"HostIFName":"enp175s6","SpoofChk":true,"Trust":false,"AdminMAC":"00:00:00:00:00:00",
        "EffectiveMAC":"6e:16:06:0e:b7:e9","Vlan":0,"VlanQoS":0,"VlanProto":33024,"MinTxRate":0,"MaxTxRate":0,
        "LinkState":0,"MTU":1500},"Master":"enp175s0f1","MAC":"02:00:00:00:00:01","MTU":null,"vlan":100,"vlanQoS":0,
        "vlanProto":"802.1q","deviceID":"0000:af:06.0","VFID":0,"min_tx_rate":null,"max_tx_rate":null,"trust":"on",
        "runtimeConfig":{}}"#;

    #[test]
    fn reads_a_peers_file() {
        let cache = Object::parse(FILE.as_bytes()).unwrap();
        let record = record(&cache, "c1", "net1", "/no/such".into(), "boot").unwrap();
        assert_eq!(record.device.to_string(), "0000:af:06.0");
        assert_eq!(record.changes, [VfOption::Mac, VfOption::Vlan, VfOption::Trust]);
        assert_eq!((record.owner.network.as_str(), record.owner.netns_id), ("sriov-net", None));
        let vf = record.baseline.vf.unwrap();
        assert_eq!((vf.mac, vf.spoofchk, vf.trust), (Some(host::MacAddress::ZERO), Some(true), Some(false)));
        assert_eq!(vf.vlan, Some(VfVlan::default()));
        let netdev = record.baseline.netdev.unwrap();
        assert_eq!((netdev.name.as_str(), netdev.mtu), ("enp175s6", Some(1500)));
        assert_eq!(netdev.mac, "6e:16:06:0e:b7:e9".parse().ok());
    }

    #[test]
    fn writes_what_a_peer_reads() {
        let read = Object::parse(FILE.as_bytes()).unwrap();
        let conf = Conf::parse(&read, &Args::default()).unwrap();
        let first = record(&read, "c1", "net1", "/no/such".into(), "boot").unwrap();
        let written = cache(&read, &conf, &first, Some(("enp175s0f1", 0))).unwrap();
        let written = Object::parse(&written).unwrap();
        for (key, value) in read.iter().filter(|(key, _)| *key != "dns") {
            let plain = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(plain(written.get(key).unwrap_or("absent")), plain(value), "{key}");
        }
        assert_eq!(record(&written, "c1", "net1", "/no/such".into(), "boot").unwrap(), first);
    }

    #[test]
    fn other_files_are_none() {
        for text in ["{}", r#"{"deviceID":"0000:af:06.0"}"#, r#"{"deviceID":"x","OrigVfState":{}}"#] {
            let cache = Object::parse(text.as_bytes()).unwrap();
            assert_eq!(record(&cache, "c", "i", "/x".into(), "boot"), None, "{text}");
        }
    }
}
