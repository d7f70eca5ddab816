//! Events have two faces over one stored object: core `v1` (stored) and `events.k8s.io/v1`.

use serde_json::{Map, Value, json};

/// Field of core `v1`, field of `events.k8s.io/v1`.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// The `events.k8s.io/v1` form of a stored event.
pub(super) fn to_new(event: &Value) -> Value {
    rename(event, "events.k8s.io/v1", RENAMED.iter().copied())
}

/// The stored form of an `events.k8s.io/v1` event.
pub(super) fn from_new(event: &Value) -> Value {
    rename(event, "v1", RENAMED.iter().map(|&(core, new)| (new, core)))
}

fn rename<'a>(event: &Value, api_version: &str, names: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Value {
    let mut renamed = Map::new();
    for (key, value) in event.as_object().into_iter().flatten() {
        let key = names.clone().find(|(from, _)| from == key).map_or(key.as_str(), |(_, to)| to);
        renamed.insert(key.to_owned(), value.clone());
    }
    renamed.insert("apiVersion".to_owned(), api_version.into());
    Value::Object(renamed)
}

/// Fills in the fields that core `v1` always shows.
pub(super) fn default(event: &mut Value) {
    let Some(event) = event.as_object_mut() else { return };
    for (key, value) in [
        ("eventTime", Value::Null),
        ("firstTimestamp", Value::Null),
        ("lastTimestamp", Value::Null),
        ("source", json!({})),
        ("reportingComponent", "".into()),
        ("reportingInstance", "".into()),
    ] {
        event.entry(key).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_faces_show_the_same_event() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"name": "p"}, "message": "m", "source": {"component": "kubelet"},
            "count": 2, "reason": "R", "reportingComponent": "c",
        });
        let new = to_new(&core);
        assert_eq!(new["apiVersion"], "events.k8s.io/v1");
        assert_eq!(new["regarding"]["name"], "p");
        assert_eq!(new["note"], "m");
        assert_eq!(new["deprecatedCount"], 2);
        assert_eq!(new["reportingController"], "c");
        assert_eq!(from_new(&new), core);
    }
}
