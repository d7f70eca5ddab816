//! The `name#numbers` syntax of `pfNames` and `rootDevices`.

use std::fmt;
use std::ops::RangeInclusive;

/// A PF, or some of its functions: `ens1f0`, `ens1f0#0-3,7`, `0000:3b:00.0#2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ranged {
    /// What stands before the `#`.
    pub(crate) name: String,
    /// Numbers of VFs or SFs, counted from 0; `None` for all and for the PF itself.
    pub(crate) numbers: Option<Vec<RangeInclusive<u32>>>,
}

/// Why an entry is not in that syntax.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0:?} has no name before the #")]
    NoName(String),
    #[error("{part:?} in {entry:?} is neither a number nor a range such as 0-3")]
    Numbers { entry: String, part: String },
    #[error("{part:?} in {entry:?} ends before it begins")]
    Reversed { entry: String, part: String },
}

impl Ranged {
    pub(crate) fn parse(entry: &str) -> Result<Self, Error> {
        let (name, numbers) = match entry.split_once('#') {
            Some((name, numbers)) => (name.trim(), Some(numbers)),
            None => (entry.trim(), None),
        };
        if name.is_empty() {
            return Err(Error::NoName(entry.to_owned()));
        }
        let range = |part: &str| {
            let invalid = || Error::Numbers { entry: entry.to_owned(), part: part.to_owned() };
            let number = |text: &str| text.trim().parse::<u32>().map_err(|_| invalid());
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(Error::Reversed { entry: entry.to_owned(), part: part.to_owned() });
            }
            Ok(first..=last)
        };
        let numbers = numbers.map(|numbers| numbers.split(',').map(range).collect()).transpose()?;
        Ok(Self { name: name.to_owned(), numbers })
    }

    /// Whether the function with this number, if it has one, is among the meant ones.
    pub(crate) fn has(&self, number: Option<u32>) -> bool {
        match (&self.numbers, number) {
            (None, _) => true,
            (Some(ranges), Some(number)) => ranges.iter().any(|range| range.contains(&number)),
            (Some(_), None) => false,
        }
    }
}

impl fmt::Display for Ranged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (index, range) in self.numbers.iter().flatten().enumerate() {
            f.write_str(if index == 0 { "#" } else { "," })?;
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{first}")?,
                (first, last) => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries() {
        let cases: [(&str, &[u32], &[u32]); 6] = [
            ("ens1f0", &[0, 1, 900], &[]),
            ("ens1f0#0-3", &[0, 3], &[4]),
            ("ens1f0#0,2-4,9", &[0, 2, 3, 4, 9], &[1, 5, 8, 10]),
            ("0000:3b:00.0#5", &[5], &[4, 6]),
            ("ens1f0# 1 - 2 , 4", &[1, 2, 4], &[0, 3]),
            ("ens1f0#3-3", &[3], &[2, 4]),
        ];
        for (entry, inside, outside) in cases {
            let ranged = Ranged::parse(entry).unwrap();
            assert!(inside.iter().all(|&n| ranged.has(Some(n))), "{entry}");
            assert!(!outside.iter().any(|&n| ranged.has(Some(n))), "{entry}");
            assert_eq!(ranged.has(None), !entry.contains('#'), "{entry}");
        }
    }

    #[test]
    fn malformed_entries() {
        for entry in
            ["", "#0", "a#", "a#1-", "a#-1", "a#x", "a#1,,2", "a#1-2-3", "a#4-1", "a#1#2", "a#4294967296"]
        {
            assert!(Ranged::parse(entry).is_err(), "{entry}");
        }
    }

    proptest! {
        #[test]
        fn text_survives_a_round_trip(name in "[a-z0-9:.]{1,15}", pairs: Option<Vec<(u32, u32)>>) {
            let numbers = pairs.filter(|pairs| !pairs.is_empty());
            let numbers = numbers.map(|pairs| pairs.into_iter().map(|(a, b)| a.min(b)..=a.max(b)).collect());
            let ranged = Ranged { name, numbers };
            prop_assert_eq!(Ranged::parse(&ranged.to_string()), Ok(ranged));
        }

        #[test]
        fn no_entry_panics(entry in "\\PC*") {
            let _ = Ranged::parse(&entry);
        }
    }
}
