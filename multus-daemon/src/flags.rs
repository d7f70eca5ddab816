//! Flags in the syntax of the peers' programs: one dash or two, a value after `=` or a space; a switch takes its value
//! after `=` alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// A flag that is known.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name, and its one-letter name where it has one.
    pub names: &'static [&'static str],
    /// What it is when it is not given; `true` or `false` makes it a switch.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

impl Flag {
    /// A flag with one name.
    #[must_use]
    pub const fn new(names: &'static [&'static str], default: &'static str, help: &'static str) -> Self {
        Flag { names, default, help }
    }

    fn name(&self) -> &'static str {
        self.names.first().copied().unwrap_or_default()
    }

    fn is_switch(&self) -> bool {
        matches!(self.default, "true" | "false")
    }
}

/// The values of flags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<&'static str, String>);

impl Values {
    /// The value of a flag, by its first name.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// The value as a path.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.text(name).into()
    }

    /// The value when it is not empty.
    #[must_use]
    pub fn optional(&self, name: &str) -> Option<String> {
        Some(self.text(name).to_owned()).filter(|text| !text.is_empty())
    }

    /// Whether a switch is on.
    #[must_use]
    pub fn is_on(&self, name: &str) -> bool {
        self.text(name) == "true"
    }
}

/// Understands `arguments`, all of which must be flags and their values.
///
/// # Errors
/// What cannot be understood of them.
pub fn parse(flags: &[Flag], arguments: impl IntoIterator<Item = String>) -> Result<Values, String> {
    match parse_some(flags, arguments)? {
        (values, rest) if rest.is_empty() => Ok(values),
        (_, rest) => Err(format!("unexpected argument {:?}", rest.first().map_or("", String::as_str))),
    }
}

/// As [`parse`], with what is no flag besides. The peers' programs pass over it, as over the `false` of a switch that is
/// given as `--skip false`, and nobody's manifest may fail for it.
///
/// # Errors
/// As for [`parse`].
pub fn parse_some(
    flags: &[Flag],
    arguments: impl IntoIterator<Item = String>,
) -> Result<(Values, Vec<String>), String> {
    let mut rest = Vec::new();
    let mut values: BTreeMap<_, _> =
        flags.iter().map(|flag| (flag.name(), flag.default.to_owned())).collect();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            rest.extend(arguments);
            break;
        }
        let Some(given) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            rest.push(argument);
            continue;
        };
        let (name, value) = match given.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (given, None),
        };
        let Some(flag) = flags.iter().find(|flag| flag.names.contains(&name)) else {
            return Err(format!("flag -{name} is not defined; -help lists the flags"));
        };
        let value = match (flag.is_switch(), value) {
            (true, None) => "true".to_owned(),
            (true, Some(text)) => match text.to_ascii_lowercase().as_str() {
                "1" | "t" | "true" => "true".to_owned(),
                "0" | "f" | "false" => "false".to_owned(),
                _ => return Err(format!("flag -{name}: {text:?} is not true or false")),
            },
            (false, Some(text)) => text,
            (false, None) => arguments.next().ok_or_else(|| format!("flag -{name} needs a value"))?,
        };
        values.insert(flag.name(), value);
    }
    Ok((Values(values), rest))
}

/// The flags, one on each line.
#[must_use]
pub fn help(flags: &[Flag]) -> String {
    let line = |flag: &Flag| {
        let names: Vec<String> = flag.names.iter().map(|name| format!("--{name}")).collect();
        let default = match flag.default {
            "" | "false" => String::new(),
            default => format!(" (default {default})"),
        };
        format!("  {:<34} {}{default}\n", names.join(", "), flag.help)
    };
    flags.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [Flag; 3] = [
        Flag::new(&["type", "t"], "", "thick or thin"),
        Flag::new(&["dest-dir", "d"], "/host", "where to"),
        Flag::new(&["skip"], "false", "do not"),
    ];

    fn values(arguments: &str) -> Result<Values, String> {
        parse(&FLAGS, arguments.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn in_every_spelling() {
        for arguments in ["-t thick --skip", "--type=thick -skip=1", "-type thick --skip=True"] {
            let values = values(arguments).unwrap();
            assert_eq!(
                (values.text("type"), values.text("dest-dir"), values.is_on("skip")),
                ("thick", "/host", true)
            );
        }
        assert!(!values("--skip=false").unwrap().is_on("skip"));
        assert_eq!(values("").unwrap().optional("type"), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (arguments, part) in
            [("--x", "-x"), ("thick", "\"thick\""), ("--type", "needs a value"), ("--skip=maybe", "maybe")]
        {
            let error = values(arguments).unwrap_err();
            assert!(error.contains(part), "{arguments}: {error}");
        }
        let some = |line: &str| parse_some(&FLAGS, line.split_whitespace().map(str::to_owned)).unwrap();
        let (values, rest) = some("--skip false -t thick -- --x");
        assert_eq!((values.is_on("skip"), values.text("type")), (true, "thick"));
        assert_eq!(rest, ["false", "--x"]);
        assert!(help(&FLAGS).contains("--dest-dir, --d"));
    }
}
