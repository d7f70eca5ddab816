//! PCI addresses, as sysfs, kubelet and every configuration file of the field write them.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The address of a PCI function: `domain:bus:device.function`, e.g. `0000:3b:02.1`.
///
/// Always the full form, lower-case hexadecimal. The domain has at least four digits; virtual PCI
/// domains (VMD, Hyper-V) use more, see `pci_setup_device()` in the kernel (`%04x:%02x:%02x.%d`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is not a full PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a PCI address; write it in full, domain:bus:device.function, such as 0000:3b:02.1")]
pub struct ParsePciAddressError(String);

impl PciAddress {
    /// The PCI domain (segment), 0 on most machines.
    #[must_use]
    pub fn domain(&self) -> u32 {
        self.domain
    }

    /// The function that the device at a sysfs path is, or stands below: the last address in the path. `None` for
    /// devices that are on no PCI bus.
    #[must_use]
    pub fn in_path(path: &Path) -> Option<Self> {
        path.iter().rev().find_map(|part| part.to_str().and_then(parse))
    }

    /// Bus, device and function as one number, by which functions of a domain are counted (PCI Express
    /// Base Specification 2.2.6.2).
    pub(crate) fn routing_id(self) -> u32 {
        u32::from(self.bus) << 8 | u32::from(self.device) << 3 | u32::from(self.function)
    }
}

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParsePciAddressError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let hex = |digits: &str, lengths: std::ops::RangeInclusive<usize>| {
        (lengths.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u32::from_str_radix(digits, 16).ok())
            .flatten()
    };
    let address = PciAddress {
        domain: hex(domain, 4..=8)?,
        bus: u8::try_from(hex(bus, 2..=2)?).ok()?,
        device: u8::try_from(hex(device, 2..=2)?).ok()?,
        function: u8::try_from(hex(function, 1..=1)?).ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PciAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PciAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepts_only_the_full_form() {
        for (text, accepted) in [
            ("0000:3b:02.1", true),
            ("0000:3B:02.1", true),
            ("10000:01:00.0", true),
            ("3b:02.1", false),
            ("0000:3b:02", false),
            ("0000:3b:20.0", false),
            ("0000:3b:02.8", false),
            ("000:3b:02.1", false),
            ("0000:3b:02.1 ", false),
            ("0000:+b:02.1", false),
            ("0000:3b:2.1", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<PciAddress>().is_ok(), accepted, "{text}");
        }
    }

    #[test]
    fn is_written_in_lower_case() {
        let address: PciAddress = "0000:AF:06.1".parse().unwrap();
        assert_eq!(address.to_string(), "0000:af:06.1");
    }

    #[test]
    fn a_path_leads_to_the_last_function_in_it() {
        for (path, function) in [
            ("/devices/pci0000:00/0000:00:01.0/0000:01:10.0", Some("0000:01:10.0")),
            ("/devices/pci0000:00/0000:00:01.0/0000:01:00.0/net/eth3", Some("0000:01:00.0")),
            ("../../devices/pci0000:00/0000:00:03.0/virtio1/net/eth0", Some("0000:00:03.0")),
            (
                "/devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0",
                Some("10000:e1:00.0"),
            ),
            ("/devices/virtual/net/veth0", None),
            ("", None),
        ] {
            let found = PciAddress::in_path(Path::new(path)).map(|address| address.to_string());
            assert_eq!(found.as_deref(), function, "{path}");
        }
    }

    proptest! {
        #[test]
        fn text_survives_a_round_trip(domain: u32, bus: u8, device in 0u8..32, function in 0u8..8) {
            let address = PciAddress { domain, bus, device, function };
            prop_assert_eq!(address.to_string().parse::<PciAddress>().unwrap(), address);
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<PciAddress>();
        }
    }
}
