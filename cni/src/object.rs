//! JSON objects of which only some keys are understood.

use crate::Error;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use std::fmt;

/// A JSON object that keeps what it does not understand: the order of keys and the bytes of every value.
///
/// A delegate's configuration passes through us into a program we know nothing about. Decoding it to a tree
/// and printing it again would reorder keys and bend large integers; here only the keys that are set change.
#[derive(Clone, Default)]
pub struct Object {
    members: Vec<(String, Box<RawValue>)>,
}

impl Object {
    /// An object without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads an object.
    ///
    /// # Errors
    /// Code 6 when `bytes` is not exactly one JSON object.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(bytes).map_err(|e| Error::decoding(format!("not a JSON object: {e}")))
    }

    /// The JSON text of `key`, matched exactly. Of duplicate keys the last counts.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.members.iter().rfind(|(k, _)| k == key).map(|(_, v)| v.get())
    }

    /// The JSON text of `key`, matched without regard to ASCII case as Go's decoder does. Of several spellings the
    /// last counts, whichever it is.
    pub fn get_fold(&self, key: &str) -> Option<&str> {
        self.members.iter().rfind(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v.get())
    }

    /// The value of `key` (matched as [`get_fold`](Self::get_fold) does); absent and `null` are `None`.
    ///
    /// # Errors
    /// Code 6, naming the key, when the value has another type.
    pub fn decode<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        match self.get_fold(key) {
            None | Some("null") => Ok(None),
            Some(text) => serde_json::from_str(text)
                .map(Some)
                .map_err(|e| Error::decoding(format!("{key:?} cannot be decoded: {e}"))),
        }
    }

    /// Sets `key` in place, or appends it.
    ///
    /// # Errors
    /// Code 6 when `value` has no JSON form (a map whose keys are not texts).
    pub fn set<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<(), Error> {
        let raw = serde_json::value::to_raw_value(value)
            .map_err(|e| Error::decoding(format!("{key:?} cannot be encoded: {e}")))?;
        self.put(key, raw);
        Ok(())
    }

    /// Sets `key` to a JSON text.
    ///
    /// # Errors
    /// Code 6 when `json` is not one JSON value.
    pub fn set_raw(&mut self, key: &str, json: &str) -> Result<(), Error> {
        let raw: &RawValue = serde_json::from_str(json)
            .map_err(|e| Error::decoding(format!("{key:?} cannot be set to something not JSON: {e}")))?;
        self.put(key, raw.to_owned());
        Ok(())
    }

    fn put(&mut self, key: &str, raw: Box<RawValue>) {
        match self.members.iter().position(|(k, _)| k == key) {
            Some(at) => {
                let mut index = 0;
                self.members.retain(|(k, _)| {
                    index += 1;
                    index == at + 1 || k != key
                });
                if let Some(member) = self.members.get_mut(at) {
                    member.1 = raw;
                }
            }
            None => self.members.push((key.to_owned(), raw)),
        }
    }

    /// Removes `key`, matched exactly; says whether it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        let before = self.members.len();
        self.members.retain(|(k, _)| k != key);
        self.members.len() < before
    }

    /// Removes `key` in every spelling [`get_fold`](Self::get_fold) would find.
    pub fn remove_fold(&mut self, key: &str) {
        self.members.retain(|(k, _)| !k.eq_ignore_ascii_case(key));
    }

    /// Keys and JSON texts in order, duplicates included.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.members.iter().map(|(k, v)| (k.as_str(), v.get()))
    }

    /// The number of members, duplicates included.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The object as compact JSON; the values keep their own bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        crate::wire::compact(self)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.members.iter().map(|(k, v)| (k, v.get()))).finish()
    }
}

impl PartialEq for Object {
    /// Same keys in the same order with the same bytes.
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Object {}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.members.len()))?;
        for (key, value) in &self.members {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = Vec::with_capacity(map.size_hint().unwrap_or(0));
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Object { members })
            }
        }

        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(object: &Object) -> String {
        String::from_utf8(object.to_vec()).unwrap()
    }

    #[test]
    fn values_keep_order_and_bytes() {
        let source = r#"{"z":123456789012345678901234567890,"a":1.0,"n":{"b": [1,  2],"a":"<&>"},"e":1e3,"s":"\u003c"}"#;
        assert_eq!(text(&Object::parse(source.as_bytes()).unwrap()), source);
    }

    #[test]
    fn keys_match_as_go_matches_them() {
        let object =
            Object::parse(br#"{"LogLevel":"debug","name":"a","NAME":"b","x":null,"d":1,"d":2}"#).unwrap();
        assert_eq!(object.get("logLevel"), None);
        assert_eq!(object.decode::<String>("logLevel").unwrap().as_deref(), Some("debug"));
        assert_eq!(object.decode::<String>("name").unwrap().as_deref(), Some("b"));
        assert_eq!(object.decode::<String>("x").unwrap(), None);
        assert_eq!(object.decode::<u8>("d").unwrap(), Some(2));
        assert_eq!(object.decode::<String>("absent").unwrap(), None);
        let error = object.decode::<u8>("name").unwrap_err();
        assert_eq!(error.code, Error::DECODING);
        assert!(error.msg.contains("\"name\""), "{error}");
    }

    #[test]
    fn set_replaces_in_place_and_removes_duplicates() {
        let mut object = Object::parse(br#"{"a":1,"b":2,"a":3,"c":4}"#).unwrap();
        object.set("a", &9).unwrap();
        object.set("d", "x").unwrap();
        object.set_raw("b", "[ 1 ]").unwrap();
        assert_eq!(text(&object), r#"{"a":9,"b":[ 1 ],"c":4,"d":"x"}"#);
        assert!(object.remove("c"));
        assert!(!object.remove("c"));
        assert!(object.set_raw("e", "{").is_err());
        assert_eq!(text(&object), r#"{"a":9,"b":[ 1 ],"d":"x"}"#);
    }

    #[test]
    fn only_one_object_is_an_object() {
        for source in ["", "null", "[]", "1", "{", "{}{}", "{\"a\":}", "\u{feff}{}"] {
            assert_eq!(Object::parse(source.as_bytes()).unwrap_err().code, Error::DECODING, "{source}");
        }
        assert!(Object::parse(b"\xff{}").is_err());
        assert!(Object::parse(b" {} \n").unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn whatever_goes_in_comes_out(keys in proptest::collection::vec((".*", any::<u64>()), 0..8)) {
            let mut object = Object::new();
            for (key, value) in &keys {
                object.set(key, value).unwrap();
            }
            let again = Object::parse(&object.to_vec()).unwrap();
            prop_assert_eq!(&again, &object);
            for (key, _) in &keys {
                let last = keys.iter().rfind(|(k, _)| k == key).map(|(_, v)| *v);
                prop_assert_eq!(again.get(key).map(|t| t.parse::<u64>().unwrap()), last);
            }
        }

        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Object::parse(&bytes);
        }
    }
}
