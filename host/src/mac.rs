//! 48-bit link addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An Ethernet address (EUI-48), written `aa:bb:cc:dd:ee:ff` in lower case.
///
/// Reading accepts the three notations of the field: pairs joined by `:` or `-`, and groups of four
/// digits joined by `.` (`aabb.ccdd.eeff`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

/// A text that is not an Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address; write six bytes in hexadecimal, such as 02:00:00:00:00:01")]
pub struct ParseMacAddressError(String);

impl MacAddress {
    /// The address of no interface; an administrative MAC of a VF reads so when none was set.
    pub const ZERO: Self = Self([0; 6]);

    /// The address made of these bytes, most significant first.
    #[must_use]
    pub fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The bytes, most significant first.
    #[must_use]
    pub fn bytes(&self) -> [u8; 6] {
        self.0
    }

    /// Whether all bytes are zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// Whether this is a group address: the lowest bit of the first byte is set (IEEE 802).
    #[must_use]
    pub fn is_multicast(&self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 1
    }
}

impl TryFrom<&[u8]> for MacAddress {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self)
    }
}

impl FromStr for MacAddress {
    type Err = ParseMacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseMacAddressError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<MacAddress> {
    let (separator, digits) = match text {
        _ if text.contains(':') => (':', 2),
        _ if text.contains('-') => ('-', 2),
        _ => ('.', 4),
    };
    let mut value = 0_u64;
    let mut groups = 0;
    for group in text.split(separator) {
        if group.len() != digits || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        groups += 1;
        if groups * digits > 12 {
            return None;
        }
        value = (value << (4 * digits)) | u64::from_str_radix(group, 16).ok()?;
    }
    let [_, _, bytes @ ..] = value.to_be_bytes();
    (groups * digits == 12).then_some(MacAddress(bytes))
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
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
    fn reads_the_three_notations_and_nothing_else() {
        for (text, canonical) in [
            ("02:00:00:00:00:0A", Some("02:00:00:00:00:0a")),
            ("02-00-00-00-00-0a", Some("02:00:00:00:00:0a")),
            ("0200.0000.000A", Some("02:00:00:00:00:0a")),
            ("02:00:00:00:00", None),
            ("02:00:00:00:00:0a:0b", None),
            ("02:00:00:00:00-0a", None),
            ("2:0:0:0:0:a", None),
            ("0200.0000", None),
            ("02000000000a", None),
            ("02:00:00:00:00:0g", None),
            ("00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01", None),
            ("", None),
        ] {
            assert_eq!(
                text.parse::<MacAddress>().ok().map(|m| m.to_string()).as_deref(),
                canonical,
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn text_survives_a_round_trip(bytes: [u8; 6]) {
            let mac = MacAddress::new(bytes);
            prop_assert_eq!(mac.to_string().parse::<MacAddress>().unwrap(), mac);
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<MacAddress>();
        }
    }
}
