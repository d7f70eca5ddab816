//! Events have two faces over one stored object: core `v1` (stored) and `events.k8s.io/v1`.

use serde_json::{Map, Value, json};

use super::failure::Cause;
use super::meta;

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
    rename(event, "events.k8s.io/v1", RENAMED)
}

/// The stored form of an `events.k8s.io/v1` event.
pub(super) fn from_new(event: &Value) -> Value {
    rename(event, "v1", RENAMED.map(|(core, new)| (new, core)))
}

fn rename(event: &Value, api_version: &str, names: [(&str, &str); 7]) -> Value {
    let mut renamed = Map::new();
    for (key, value) in event.as_object().into_iter().flatten() {
        let key = names.iter().find(|(from, _)| from == key).map_or(key.as_str(), |(_, to)| to);
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

/// What is wrong with a new event. The old face is lenient as long as there is no `eventTime`; the new one is strict.
pub(super) fn faults(event: &Value, new_face: bool) -> Vec<Cause> {
    let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let is_set = |key: &str| event.get(key).is_some_and(|value| !value.is_null() && *value != json!({}));
    let mut faults = Vec::new();
    let (namespace, about) = (meta::text(event, "namespace"), text("/involvedObject/namespace"));
    let timed = !text("/eventTime").is_empty();
    let fits = match (timed, about) {
        // Events about objects of the cluster have no namespace of their own to go to.
        (true, "") => matches!(namespace, "default" | "kube-system"),
        (false, "") => namespace == "default",
        (true, _) => true,
        (false, _) => about == namespace,
    };
    if !fits {
        let why = format!("Invalid value: \"{about}\": does not match event.namespace");
        faults.push(Cause::invalid("involvedObject.namespace", why));
    }
    if timed {
        let controller = text("/reportingComponent");
        if controller.is_empty() {
            faults.push(Cause::required("reportingController", ""));
        } else if !is_qualified_name(controller) {
            let why =
                format!("Invalid value: \"{controller}\": a qualified name must be NAME or DOMAIN/NAME");
            faults.push(Cause::invalid("reportingController", why));
        }
        for (field, limit) in
            [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)]
        {
            let value = text(&format!("/{field}"));
            if value.is_empty() && field != "message" {
                faults.push(Cause::required(field, ""));
            }
            if value.len() > limit {
                let why = format!("Invalid value: \"\": can have at most {limit} characters");
                faults.push(Cause::invalid(field, why));
            }
        }
    }
    if new_face {
        if !timed {
            faults.push(Cause::required("eventTime", ""));
        }
        let kind = text("/type");
        if !matches!(kind, "Normal" | "Warning") {
            faults.push(Cause::invalid("type", format!("Invalid value: \"\": has invalid value: {kind}")));
        }
        for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
            if is_set(field) {
                faults.push(Cause::invalid(field, "Invalid value: \"\": needs to be unset"));
            }
        }
    }
    faults
}

/// `multus` or `podrail.io/multus`.
fn is_qualified_name(name: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    let is_name = |name: &str| {
        name.len() <= 63
            && name.starts_with(edge)
            && name.ends_with(edge)
            && name.chars().all(|c| edge(c) || "-_.".contains(c))
    };
    match name.split_once('/') {
        Some((domain, name)) => !domain.is_empty() && domain == domain.to_lowercase() && is_name(name),
        None => is_name(name),
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

    #[test]
    fn the_new_face_is_strict() {
        let about = |namespace: &str| json!({"kind": "Pod", "name": "p", "namespace": namespace});
        let event = |about: Value| json!({"metadata": {"namespace": "ns"}, "involvedObject": about});
        let full = |change: fn(&mut Value)| {
            let mut event = event(about("ns"));
            event["eventTime"] = "2020-01-01T00:00:00.000000Z".into();
            event["type"] = "Normal".into();
            for (key, value) in [
                ("reportingComponent", "a.io/b"),
                ("reportingInstance", "h"),
                ("action", "A"),
                ("reason", "R"),
            ] {
                event[key] = value.into();
            }
            change(&mut event);
            event
        };
        let table = [
            (event(about("ns")), false, vec![]),
            (event(about("other")), false, vec!["involvedObject.namespace"]),
            (event(about("")), false, vec!["involvedObject.namespace"]),
            (event(about("ns")), true, vec!["eventTime", "type"]),
            (full(|_| {}), true, vec![]),
            (full(|event| event["involvedObject"]["namespace"] = "other".into()), true, vec![]),
            (
                full(|event| event["involvedObject"]["namespace"] = "".into()),
                true,
                vec!["involvedObject.namespace"],
            ),
            (full(|event| event["message"] = "x".repeat(1025).into()), true, vec!["message"]),
            (full(|event| event["reason"] = "".into()), false, vec!["reason"]),
            (full(|event| event["reportingComponent"] = "a/b/c".into()), true, vec!["reportingController"]),
            (full(|event| event["count"] = 1.into()), true, vec!["count"]),
            (full(|event| event["type"] = "Odd".into()), true, vec!["type"]),
        ];
        for (index, (event, new_face, expected)) in table.into_iter().enumerate() {
            let fields: Vec<String> = faults(&event, new_face).into_iter().map(|cause| cause.field).collect();
            assert_eq!(fields, expected, "row {index}");
        }
    }
}
