//! JSON as Go's `encoding/json` reads it into a struct, with the place of every value kept for error messages.
//!
//! Go matches keys without regard to case, takes `null` as "not given", and lets the last of several equal keys win.
//! Manifests rely on it: the SR-IOV network operator writes `IsRdma`.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A value in a JSON text.
#[derive(Debug, Clone)]
pub(crate) struct Value<'a> {
    /// The whole text, to count lines in.
    text: &'a str,
    raw: &'a RawValue,
    /// The way to the value, such as `resourceList[1].selectors`.
    path: String,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Counted from 1.
    pub(crate) line: usize,
    /// Counted from 1, in characters.
    pub(crate) column: usize,
    /// The way to the value; empty for the text as a whole.
    pub(crate) key: String,
    pub(crate) problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, key, problem } = self;
        let separator = if key.is_empty() { "" } else { ": " };
        write!(f, "{line}:{column}: {key}{separator}{problem}")
    }
}

impl<'a> Value<'a> {
    /// The value that is the whole of `text`.
    pub(crate) fn parse(text: &'a str) -> Result<Self, Fault> {
        let raw = serde_json::from_str(text).map_err(|error| Fault {
            line: error.line(),
            column: error.column(),
            key: String::new(),
            problem: format!("not JSON: {}", without_position(&error)),
        })?;
        Ok(Self { text, raw, path: String::new() })
    }

    pub(crate) fn is_null(&self) -> bool {
        self.raw.get() == "null"
    }

    pub(crate) fn is_list(&self) -> bool {
        self.raw.get().starts_with('[')
    }

    /// The members of an object.
    pub(crate) fn object(&self) -> Result<Object<'a>, Fault> {
        let Members(members) = self.decode("an object")?;
        let members = members.into_iter().map(|(key, raw)| {
            let dot = if self.path.is_empty() { "" } else { "." };
            let path = format!("{}{dot}{key}", self.path);
            (key, Value { text: self.text, raw, path })
        });
        Ok(Object { members: members.collect() })
    }

    /// The elements of a list.
    pub(crate) fn list(&self) -> Result<Vec<Value<'a>>, Fault> {
        let elements: Vec<&'a RawValue> = self.decode("a list")?;
        let elements = elements.into_iter().enumerate().map(|(index, raw)| Value {
            text: self.text,
            raw,
            path: format!("{}[{index}]", self.path),
        });
        Ok(elements.collect())
    }

    /// The value as a `T`; `expected` says in words what that is.
    pub(crate) fn decode<T: Deserialize<'a>>(&self, expected: &str) -> Result<T, Fault> {
        serde_json::from_str(self.raw.get()).map_err(|_| {
            let found: String = self.raw.get().chars().take(40).collect();
            self.fault(format!("must be {expected}, not {found}"))
        })
    }

    /// A fault of this value.
    pub(crate) fn fault(&self, problem: impl Into<String>) -> Fault {
        // The raw value is a part of the text.
        let offset = (self.raw.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let before = self.text.get(..offset).unwrap_or_default();
        let last_line = before.rsplit('\n').next().unwrap_or_default();
        Fault {
            line: before.matches('\n').count() + 1,
            column: last_line.chars().count() + 1,
            key: self.path.clone(),
            problem: problem.into(),
        }
    }
}

/// An object's members in their order.
#[derive(Debug, Clone)]
pub(crate) struct Object<'a> {
    members: Vec<(String, Value<'a>)>,
}

impl<'a> Object<'a> {
    /// The value that Go would put into the field `key`; `None` if there is none or it is `null`.
    pub(crate) fn get(&self, key: &str) -> Option<&Value<'a>> {
        let named = self.members.iter().filter(|(name, _)| name.eq_ignore_ascii_case(key));
        named.map(|(_, value)| value).rfind(|value| !value.is_null())
    }

    /// The value of `key` as a `T`, or the default of `T`.
    pub(crate) fn decode<T: DeserializeOwned + Default>(
        &self,
        key: &str,
        expected: &str,
    ) -> Result<T, Fault> {
        self.get(key).map_or_else(|| Ok(T::default()), |value| value.decode(expected))
    }

    /// The members whose keys are none of `known`.
    pub(crate) fn others(&self, known: &[&str]) -> impl Iterator<Item = &Value<'a>> {
        let is_known = move |name: &str| known.iter().any(|key| key.eq_ignore_ascii_case(name));
        self.members.iter().filter(move |(name, _)| !is_known(name)).map(|(_, value)| value)
    }

    /// All members, in their order.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.members.iter().map(|(name, value)| (name.as_str(), value))
    }
}

/// The members of an object as serde finds them.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// serde_json's message without the position at its end.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(at) => text.get(..at).unwrap_or_default().to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_as_go_finds_them() {
        let object = Value::parse(r#"{"IsRdma": true, "name": "a", "NAME": "b", "x": null}"#).unwrap();
        let object = object.object().unwrap();
        assert!(object.decode::<bool>("isRdma", "true or false").unwrap());
        assert_eq!(object.decode::<String>("name", "a text").unwrap(), "b");
        assert_eq!(object.decode::<String>("x", "a text").unwrap(), "");
        assert_eq!(object.decode::<String>("y", "a text").unwrap(), "");
        let others: Vec<_> = object.others(&["isrdma", "name"]).map(|value| &value.path).collect();
        assert_eq!(others, ["x"]);
    }

    #[test]
    fn faults_say_where() {
        let text = "{\n  \"list\": [\n    {\"a\": 1},\n    {\"ä\": 1, \"a\": \"x\"}\n  ]\n}";
        let list = Value::parse(text).unwrap().object().unwrap().get("list").unwrap().list().unwrap();
        let fault = list[1].object().unwrap().decode::<u32>("a", "a number").unwrap_err();
        assert_eq!(fault.to_string(), "4:19: list[1].a: must be a number, not \"x\"");
        let fault = Value::parse("{\n \"a\": }").unwrap_err();
        assert_eq!((fault.line, fault.column), (2, 7));
        assert!(fault.problem.starts_with("not JSON: "), "{fault}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            if let Ok(value) = Value::parse(&text) {
                let _ = value.object();
                let _ = value.list();
                let _ = value.fault("");
            }
        }
    }
}
