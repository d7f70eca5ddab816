//! Reading and writing `metadata` of an object that may lack any of it.

use serde_json::{Map, Value};

/// `metadata.<key>`.
pub(super) fn get<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get("metadata")?.get(key).filter(|value| !value.is_null())
}

/// `metadata.<key>` as text; empty if it is missing or something else.
pub(super) fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    get(object, key).and_then(Value::as_str).unwrap_or_default()
}

/// Sets `metadata.<key>`.
pub(super) fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(metadata) = map(object) {
        metadata.insert(key.to_owned(), value.into());
    }
}

/// Removes `metadata.<key>`.
pub(super) fn unset(object: &mut Value, key: &str) {
    if let Some(metadata) = map(object) {
        metadata.remove(key);
    }
}

/// Copies `metadata.<key>` from another object, its absence included.
pub(super) fn copy(object: &mut Value, from: &Value, key: &str) {
    match get(from, key) {
        Some(value) => set(object, key, value.clone()),
        None => unset(object, key),
    }
}

/// `metadata` as a map, made if need be; `None` if the object is not a JSON object.
pub(super) fn map(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let object = object.as_object_mut()?;
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut()
}

/// Finalizers, in order.
pub(super) fn finalizers(object: &Value) -> Vec<&str> {
    get(object, "finalizers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Whether deletion has begun.
pub(super) fn is_deleting(object: &Value) -> bool {
    get(object, "deletionTimestamp").is_some()
}
