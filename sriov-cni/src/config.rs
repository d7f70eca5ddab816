//! The network configuration: every key that is understood, checked before anything is touched.
//!
//! Keys match case-insensitively, `null` is absence and unknown keys are ignored, as Go's decoder does it.

use std::path::PathBuf;

use cni::{Args, Object};
use host::netlink::{VfLinkState, VfSetting, VfVlan, VlanProtocol};
use host::{MacAddress, PciAddress};

use crate::error::Error;

/// Highest VLAN ID that can be given to a VF; 4095 is reserved (IEEE 802.1Q).
const VLAN_MAX: i64 = 4094;
/// Highest priority of a VLAN tag.
const QOS_MAX: i64 = 7;
/// The least MTU an IPv4 link may have (RFC 791), and the greatest an Ethernet netdev can have.
const MTU_RANGE: std::ops::RangeInclusive<i64> = 68..=65535;

/// A network configuration, valid in itself. `None` means: leave as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf {
    /// `deviceID`: the VF.
    pub device: PciAddress,
    /// `vlan`, `vlanQoS`, `vlanProto`.
    pub vlan: Option<VfVlan>,
    /// `runtimeConfig.mac`, else MAC of CNI_ARGS, else `mac`.
    pub mac: Option<MacAddress>,
    /// `mtu`, bytes.
    pub mtu: Option<u32>,
    /// `min_tx_rate` and `max_tx_rate`, Mbit/s; when one of them is given the other is 0, unlimited.
    pub rate: Option<(u32, u32)>,
    /// `spoofchk`.
    pub spoofchk: Option<bool>,
    /// `trust`.
    pub trust: Option<bool>,
    /// `link_state`.
    pub link_state: Option<VfLinkState>,
    /// `ipam.type`.
    pub ipam: Option<String>,
}

impl Conf {
    /// Reads and checks a configuration with the CNI_ARGS of the call.
    ///
    /// # Errors
    /// [`Error::Config`], naming the key, its value and what is accepted.
    pub fn parse(config: &Object, args: &Args) -> Result<Self, Error> {
        let conf = Self {
            device: device(config)?,
            vlan: vlan(config)?,
            mac: mac(config, args)?,
            mtu: mtu(config)?,
            rate: rate(config)?,
            spoofchk: switch(config, "spoofchk")?,
            trust: switch(config, "trust")?,
            link_state: link_state(config)?,
            ipam: ipam(config)?,
        };
        Ok(conf)
    }

    /// The settings that go through the PF, in the order in which they are made.
    #[must_use]
    pub fn vf_settings(&self) -> Vec<VfSetting> {
        [
            self.vlan.map(VfSetting::Vlan),
            self.mac.map(VfSetting::Mac),
            self.rate.map(|(min, max)| VfSetting::Rate { min, max }),
            self.spoofchk.map(VfSetting::Spoofchk),
            self.trust.map(VfSetting::Trust),
            self.link_state.map(VfSetting::LinkState),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The VF that a configuration names, valid or not in its other keys: what DEL goes by.
#[must_use]
pub fn device_of(config: &Object) -> Option<PciAddress> {
    device(config).ok()
}

/// The IPAM plugin that a configuration names, valid or not in its other keys: what DEL goes by.
#[must_use]
pub fn ipam_of(config: &Object) -> Option<String> {
    ipam(config).ok().flatten()
}

/// `logLevel` and `logFile`; what cannot be read is taken as absent, since logging is no reason to fail.
#[must_use]
pub fn logging_of(config: &Object) -> (Option<String>, Option<PathBuf>) {
    let text = |key| string(config, key).ok().flatten();
    (text("logLevel"), text("logFile").map(PathBuf::from))
}

fn invalid(key: &'static str, value: impl std::fmt::Display, expected: &str) -> Error {
    Error::Config { key, value: value.to_string(), expected: expected.to_owned() }
}

/// A text; the empty one counts as absent, as everywhere in the field.
fn string(config: &Object, key: &'static str) -> Result<Option<String>, Error> {
    let raw = config.get_fold(key).unwrap_or_default();
    let text = config.decode::<String>(key).map_err(|_| invalid(key, raw, "a text"))?;
    Ok(text.filter(|text| !text.is_empty()))
}

fn integer(
    config: &Object,
    key: &'static str,
    range: std::ops::RangeInclusive<i64>,
) -> Result<Option<i64>, Error> {
    let expected = || format!("a whole number from {} to {}", range.start(), range.end());
    let raw = config.get_fold(key).unwrap_or_default();
    match config.decode::<i64>(key) {
        Ok(Some(value)) if !range.contains(&value) => Err(invalid(key, value, &expected())),
        Ok(value) => Ok(value),
        Err(_) => Err(invalid(key, raw, &expected())),
    }
}

fn device(config: &Object) -> Result<PciAddress, Error> {
    let Some(text) = string(config, "deviceID")? else { return Err(Error::NoDevice) };
    text.parse().map_err(|_| invalid("deviceID", text, "the full PCI address of a VF, such as 0000:3b:02.1"))
}

fn vlan(config: &Object) -> Result<Option<VfVlan>, Error> {
    let id = integer(config, "vlan", 0..=VLAN_MAX)?;
    let qos = integer(config, "vlanQoS", 0..=QOS_MAX)?;
    let protocol = string(config, "vlanProto")?;
    let Some(id) = id else {
        return match (qos, protocol) {
            (Some(qos), _) => Err(invalid("vlanQoS", qos, "given together with vlan")),
            (_, Some(protocol)) => Err(invalid("vlanProto", protocol, "given together with vlan")),
            _ => Ok(None),
        };
    };
    let qos = qos.unwrap_or(0);
    let protocol = match protocol {
        Some(text) => text.parse().map_err(|_| invalid("vlanProto", text, "802.1q or 802.1ad"))?,
        None => VlanProtocol::Dot1q,
    };
    match (id, qos, protocol) {
        (0, 1.., _) => Err(invalid("vlanQoS", qos, "0 when vlan is 0, which clears the VLAN")),
        (0, _, VlanProtocol::Dot1ad) => {
            Err(invalid("vlanProto", protocol, "802.1q when vlan is 0, which clears the VLAN"))
        }
        _ => Ok(Some(VfVlan { id: narrow("vlan", id)?, qos: narrow("vlanQoS", qos)?, protocol })),
    }
}

fn narrow<T: TryFrom<i64>>(key: &'static str, value: i64) -> Result<T, Error> {
    T::try_from(value).map_err(|_| invalid(key, value, "a smaller number"))
}

fn mac(config: &Object, args: &Args) -> Result<Option<MacAddress>, Error> {
    let runtime: Option<Object> = config.decode("runtimeConfig").map_err(|_| {
        invalid("runtimeConfig", config.get_fold("runtimeConfig").unwrap_or_default(), "an object")
    })?;
    let runtime = runtime.map(|runtime| string(&runtime, "mac")).transpose()?.flatten();
    let argument = args.get("MAC").filter(|mac| !mac.is_empty()).map(str::to_owned);
    let configured = string(config, "mac")?;
    let mut chosen = None;
    // All of them are checked, so that a mistake shows whether or not another source wins.
    for (key, text) in [("runtimeConfig.mac", runtime), ("MAC of CNI_ARGS", argument), ("mac", configured)] {
        if let Some(text) = text {
            let mac = unicast(key, &text)?;
            chosen = chosen.or(Some(mac));
        }
    }
    Ok(chosen)
}

fn unicast(key: &'static str, text: &str) -> Result<MacAddress, Error> {
    match text.parse::<MacAddress>() {
        Ok(mac) if !mac.is_multicast() && !mac.is_zero() => Ok(mac),
        _ => Err(invalid(key, text, "a unicast Ethernet address of six bytes, such as 02:00:00:00:00:01")),
    }
}

fn mtu(config: &Object) -> Result<Option<u32>, Error> {
    // 0 is "not set" in every reference plugin.
    match integer(config, "mtu", 0..=*MTU_RANGE.end())? {
        None | Some(0) => Ok(None),
        Some(mtu) if MTU_RANGE.contains(&mtu) => narrow("mtu", mtu).map(Some),
        Some(mtu) => Err(invalid("mtu", mtu, "68 to 65535 bytes, or 0 to leave the MTU alone")),
    }
}

fn rate(config: &Object) -> Result<Option<(u32, u32)>, Error> {
    let range = 0..=i64::from(u32::MAX);
    let min = integer(config, "min_tx_rate", range.clone())?;
    let max = integer(config, "max_tx_rate", range)?;
    if min.is_none() && max.is_none() {
        return Ok(None);
    }
    let min: u32 = narrow("min_tx_rate", min.unwrap_or(0))?;
    let max: u32 = narrow("max_tx_rate", max.unwrap_or(0))?;
    if max != 0 && min > max {
        return Err(invalid("min_tx_rate", min, &format!("at most max_tx_rate, {max}")));
    }
    Ok(Some((min, max)))
}

/// A security setting must never be read as its opposite: anything but the two words is an error.
fn switch(config: &Object, key: &'static str) -> Result<Option<bool>, Error> {
    match string(config, key)? {
        None => Ok(None),
        Some(text) if text.eq_ignore_ascii_case("on") => Ok(Some(true)),
        Some(text) if text.eq_ignore_ascii_case("off") => Ok(Some(false)),
        Some(text) => Err(invalid(key, text, "\"on\" or \"off\"")),
    }
}

fn link_state(config: &Object) -> Result<Option<VfLinkState>, Error> {
    let text = string(config, "link_state")?;
    text.map(|text| text.parse().map_err(|_| invalid("link_state", text, "auto, enable or disable")))
        .transpose()
}

fn ipam(config: &Object) -> Result<Option<String>, Error> {
    let raw = config.get_fold("ipam").unwrap_or_default();
    let ipam: Option<Object> =
        config.decode("ipam").map_err(|_| invalid("ipam", raw, "an object with a type"))?;
    ipam.map(|ipam| string(&ipam, "type")).transpose().map(Option::flatten)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEVICE: &str = r#""deviceID":"0000:3b:02.1""#;

    fn parse_with(keys: &str, args: &str) -> Result<Conf, Error> {
        let comma = if keys.is_empty() { "" } else { "," };
        let json = format!("{{{DEVICE}{comma}{keys}}}");
        Conf::parse(&Object::parse(json.as_bytes()).unwrap(), &Args::parse(args).unwrap())
    }

    fn parse(keys: &str) -> Result<Conf, Error> {
        parse_with(keys, "")
    }

    #[test]
    fn nothing_given_is_nothing_changed() {
        let conf = parse("").unwrap();
        assert_eq!(conf.device.to_string(), "0000:3b:02.1");
        assert!(conf.vf_settings().is_empty());
        assert_eq!((conf.mac, conf.mtu, conf.ipam), (None, None, None));
    }

    #[test]
    fn values_and_their_meaning() {
        let vlan = |id, qos, protocol| vec![VfSetting::Vlan(VfVlan { id, qos, protocol })];
        let mac = |text: &str| vec![VfSetting::Mac(text.parse().unwrap())];
        for (keys, settings) in [
            (r#""vlan":100"#, vlan(100, 0, VlanProtocol::Dot1q)),
            (r#""VLAN":4094,"VlanQos":7,"vlanproto":"802.1AD""#, vlan(4094, 7, VlanProtocol::Dot1ad)),
            (r#""vlan":0,"vlanQoS":0,"vlanProto":"802.1q""#, vlan(0, 0, VlanProtocol::Dot1q)),
            (r#""vlan":null,"vlanQoS":null,"spoofchk":null"#, vec![]),
            (r#""mac":"02:00:00:00:00:0A""#, mac("02:00:00:00:00:0a")),
            (r#""mac":"","runtimeConfig":{}"#, vec![]),
            (r#""min_tx_rate":5,"max_tx_rate":10"#, vec![VfSetting::Rate { min: 5, max: 10 }]),
            (r#""max_tx_rate":10"#, vec![VfSetting::Rate { min: 0, max: 10 }]),
            (r#""min_tx_rate":5"#, vec![VfSetting::Rate { min: 5, max: 0 }]),
            (r#""spoofchk":"ON","Trust":"Off""#, vec![VfSetting::Spoofchk(true), VfSetting::Trust(false)]),
            (r#""link_state":"enable""#, vec![VfSetting::LinkState(VfLinkState::Enable)]),
        ] {
            assert_eq!(parse(keys).unwrap().vf_settings(), settings, "{keys}");
        }
        assert_eq!(parse(r#""mtu":9000"#).unwrap().mtu, Some(9000));
        assert_eq!(parse(r#""mtu":0"#).unwrap().mtu, None);
        assert_eq!(parse(r#""ipam":{"type":"host-local"}"#).unwrap().ipam.as_deref(), Some("host-local"));
        assert_eq!(parse(r#""ipam":{}"#).unwrap().ipam, None);
    }

    #[test]
    fn refusals_name_the_key() {
        for (keys, key) in [
            (r#""vlan":4095"#, "vlan"),
            (r#""vlan":-1"#, "vlan"),
            (r#""vlan":"100""#, "vlan"),
            (r#""vlan":1.5"#, "vlan"),
            (r#""vlanQoS":0"#, "vlanQoS"),
            (r#""vlan":5,"vlanQoS":8"#, "vlanQoS"),
            (r#""vlan":0,"vlanQoS":1"#, "vlanQoS"),
            (r#""vlanProto":"802.1q""#, "vlanProto"),
            (r#""vlan":5,"vlanProto":"802.1x""#, "vlanProto"),
            (r#""vlan":0,"vlanProto":"802.1ad""#, "vlanProto"),
            (r#""mac":"02:00""#, "mac"),
            (r#""mac":"01:00:5e:00:00:01""#, "mac"),
            (r#""mac":"00:00:00:00:00:00""#, "mac"),
            (r#""mac":7"#, "mac"),
            (r#""runtimeConfig":{"mac":"junk"},"mac":"02:00:00:00:00:01""#, "runtimeConfig.mac"),
            (r#""runtimeConfig":7"#, "runtimeConfig"),
            (r#""spoofchk":"true""#, "spoofchk"),
            (r#""spoofchk":true"#, "spoofchk"),
            (r#""trust":"yes""#, "trust"),
            (r#""link_state":"up""#, "link_state"),
            (r#""min_tx_rate":-5"#, "min_tx_rate"),
            (r#""max_tx_rate":4294967296"#, "max_tx_rate"),
            (r#""min_tx_rate":11,"max_tx_rate":10"#, "min_tx_rate"),
            (r#""mtu":67"#, "mtu"),
            (r#""mtu":65536"#, "mtu"),
            (r#""ipam":"host-local""#, "ipam"),
        ] {
            match parse(keys) {
                Err(Error::Config { key: named, .. }) => assert_eq!(named, key, "{keys}"),
                other => panic!("{keys}: {other:?}"),
            }
        }
        let missing = Conf::parse(&Object::parse(b"{}").unwrap(), &Args::default());
        assert!(matches!(missing, Err(Error::NoDevice)), "{missing:?}");
    }

    #[test]
    fn the_runtimes_mac_wins_over_the_arguments_over_the_configuration() {
        let [a, b, c] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c"];
        let configured = format!(r#""mac":"{c}""#);
        let both = format!(r#"{configured},"runtimeConfig":{{"Mac":"{a}"}}"#);
        let argument = format!("IgnoreUnknown=1;MAC={b};K8S_POD_NAME=x");
        for (keys, args, expected) in
            [(&both, &*argument, a), (&configured, &*argument, b), (&configured, "", c), (&both, "", a)]
        {
            let mac = parse_with(keys, args).unwrap().mac.unwrap();
            assert_eq!(mac.to_string(), expected, "{keys} {args}");
        }
        assert!(parse_with("", "MAC=junk").is_err());
    }

    fn json_value() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("null".to_owned()),
            any::<i64>().prop_map(|n| n.to_string()),
            (-10_i64..70_000).prop_map(|n| n.to_string()),
            any::<f64>().prop_filter("JSON", |f| f.is_finite()).prop_map(|n| n.to_string()),
            "[a-zA-Z0-9:. -]{0,20}".prop_map(|text| format!("{text:?}")),
            prop_oneof![Just("on"), Just("OFF"), Just("auto"), Just("802.1ad"), Just("02:00:00:00:00:01")]
                .prop_map(|text| format!("{text:?}")),
            Just("{}".to_owned()),
            Just("[1]".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_in_range(
            values in proptest::collection::vec(json_value(), 12),
            args in "[A-Z=;a-z:0-9]{0,30}",
        ) {
            let keys = [
                "vlan", "vlanQoS", "vlanProto", "mac", "spoofchk", "trust", "link_state", "min_tx_rate",
                "max_tx_rate", "mtu", "ipam", "runtimeConfig",
            ];
            let members: Vec<_> = keys.iter().zip(&values).map(|(key, value)| format!("{key:?}:{value}")).collect();
            let json = format!("{{{DEVICE},{}}}", members.join(","));
            let Ok(config) = Object::parse(json.as_bytes()) else { return Ok(()) };
            let Ok(conf) = Conf::parse(&config, &Args::parse_lossy(&args)) else { return Ok(()) };
            if let Some(vlan) = conf.vlan {
                prop_assert!(vlan.id <= 4094 && vlan.qos <= 7);
                prop_assert!(vlan.id != 0 || (vlan.qos == 0 && vlan.protocol == VlanProtocol::Dot1q));
            }
            if let Some(mac) = conf.mac {
                prop_assert!(!mac.is_multicast() && !mac.is_zero());
            }
            if let Some((min, max)) = conf.rate {
                prop_assert!(max == 0 || min <= max);
            }
            prop_assert!(conf.mtu.is_none_or(|mtu| MTU_RANGE.contains(&i64::from(mtu))));
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,80}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                if let Ok(config) = Object::parse(bytes) {
                    let _ = Conf::parse(&config, &Args::default());
                }
            }
        }
    }
}
