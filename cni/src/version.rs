//! Protocol versions.

use crate::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A released version of the CNI specification. Later versions compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0: results have `ip4` and `ip6`. Also what a configuration without a version means.
    V0_1_0,
    /// 0.2.0: adds the VERSION command.
    V0_2_0,
    /// 0.3.0: results have `interfaces` and `ips`; plugin lists.
    V0_3_0,
    /// 0.3.1: corrections to 0.3.0.
    V0_3_1,
    /// 0.4.0: adds CHECK, and `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0: drops the address family from `ips`.
    V1_0_0,
    /// 1.1.0: adds GC, STATUS, `mtu`, `socketPath`, `pciID` and more route attributes.
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: &'static [Version] = &[
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    /// The newest version this crate speaks.
    pub const LATEST: Version = Version::V1_1_0;

    /// The version as it stands in JSON, for example `1.0.0`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// Whether CHECK exists, and `prevResult` is part of CHECK and DEL.
    pub fn has_check(self) -> bool {
        self >= Version::V0_4_0
    }

    /// Whether GC and STATUS exist.
    pub fn has_gc_and_status(self) -> bool {
        self >= Version::V1_1_0
    }

    /// The versions in `versions` as one comma-separated text, for messages.
    pub fn join(versions: &[Version]) -> String {
        versions.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = Error;

    /// Reads a version. The empty text is 0.1.0, as the specification says of an absent `cniVersion`.
    ///
    /// # Errors
    /// Code 1 when it is not a version of the specification known here.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Version::V0_1_0);
        }
        Version::ALL.iter().copied().find(|v| v.as_str() == text).ok_or_else(|| {
            Error::incompatible_version(format!("CNI version {text:?} is not supported"))
                .with_details(format!("supported versions are {}", Version::join(Version::ALL)))
        })
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_and_round_trip() {
        assert!(Version::ALL.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(Version::ALL.last(), Some(&Version::LATEST));
        for version in Version::ALL {
            assert_eq!(version.to_string().parse::<Version>().unwrap(), *version);
        }
    }

    #[test]
    fn no_version_means_the_first() {
        assert_eq!("".parse::<Version>().unwrap(), Version::V0_1_0);
    }

    #[test]
    fn unknown_versions_are_refused_with_the_known_ones() {
        for text in ["1.2.0", "1.0", "v1.0.0", " 1.0.0", "latest"] {
            let error = text.parse::<Version>().unwrap_err();
            assert_eq!(error.code, Error::INCOMPATIBLE_VERSION, "{text}");
            assert!(error.to_string().contains("0.1.0, 0.2.0"), "{error}");
        }
    }
}
