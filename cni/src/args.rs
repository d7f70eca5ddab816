//! `CNI_ARGS`.

use crate::Error;
use std::fmt;

/// The pairs of `CNI_ARGS` (`K=V;K2=V2`), in order, duplicates included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    pairs: Vec<(String, String)>,
}

impl Args {
    /// Reads the variable's text. A value may contain `=`; empty elements are skipped.
    ///
    /// # Errors
    /// Code 4 when an element has no `=`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let pair = |element: &str| {
            element.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).ok_or_else(|| {
                Error::invalid_environment(format!("CNI_ARGS: invalid pair {element:?}: it has no '='"))
            })
        };
        text.split(';')
            .filter(|e| !e.is_empty())
            .map(pair)
            .collect::<Result<_, _>>()
            .map(|pairs| Args { pairs })
    }

    /// Reads the variable's text, leaving out elements that are not pairs: what DEL must live with.
    pub fn parse_lossy(text: &str) -> Self {
        let pairs = text.split(';').filter_map(|e| e.split_once('='));
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    /// The last value of `key`, as Go's reference decoder keeps it.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rfind(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The pairs in order.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

impl FromIterator<(String, String)> for Args {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Args { pairs: pairs.into_iter().collect() }
    }
}

impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.pairs.iter().enumerate() {
            let separator = if index == 0 { "" } else { ";" };
            write!(f, "{separator}{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs() {
        let table: &[(&str, &[(&str, &str)])] = &[
            ("", &[]),
            ("A=1", &[("A", "1")]),
            ("A=1;B=2;A=3", &[("A", "1"), ("B", "2"), ("A", "3")]),
            ("A=;=x;B=c=d;", &[("A", ""), ("", "x"), ("B", "c=d")]),
        ];
        for (text, want) in table {
            let got = Args::parse(text).unwrap();
            let want: Vec<_> = want.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(got.pairs(), want, "{text}");
            assert_eq!(Args::parse(&got.to_string()).unwrap(), got);
        }
        let args = Args::parse("A=1;A=3").unwrap();
        assert_eq!((args.get("A"), args.get("a")), (Some("3"), None));
    }

    #[test]
    fn what_is_no_pair_is_named_or_skipped() {
        let error = Args::parse("A=1;oops").unwrap_err();
        assert_eq!(error.code, Error::INVALID_ENVIRONMENT);
        assert!(error.msg.contains("oops"));
        assert_eq!(Args::parse_lossy("A=1;oops;B=2").to_string(), "A=1;B=2");
    }
}
