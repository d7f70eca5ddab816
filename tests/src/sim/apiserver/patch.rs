//! The patch formats: JSON merge patch, JSON patch, strategic merge patch.
//!
//! Strategic merge is merge patch plus the list merge keys that pods and nodes need; kube-apiserver reads those keys
//! from its Go types. As in kube-apiserver, custom resources do not take strategic merge.

use serde_json::{Map, Value};

use super::failure::Failure;

/// A patch, read but not yet applied.
#[derive(Debug, Clone)]
pub(super) enum Patch {
    /// RFC 7386.
    Merge(Value),
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7386 with lists of named items merged by their name.
    Strategic(Value),
}

const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

impl Patch {
    /// Reads the body of a PATCH request by its media type.
    pub(super) fn parse(media_type: &str, body: &[u8], custom: bool) -> Result<Self, Failure> {
        let broken =
            |error: serde_json::Error| Failure::bad_request(format!("error decoding patch: {error}"));
        match media_type {
            MERGE => Ok(Self::Merge(serde_json::from_slice(body).map_err(broken)?)),
            STRATEGIC if !custom => Ok(Self::Strategic(serde_json::from_slice(body).map_err(broken)?)),
            JSON => {
                let operations: Value = serde_json::from_slice(body).map_err(broken)?;
                if !operations.is_array() {
                    return Err(Failure::bad_request(
                        "json: cannot unmarshal object into Go value of type jsonpatch.Patch",
                    ));
                }
                serde_json::from_value(operations)
                    .map(Self::Json)
                    .map_err(|_| Failure::patch_does_not_apply())
            }
            _ if custom => Err(Failure::unsupported_media_type(&[JSON, MERGE])),
            _ => Err(Failure::unsupported_media_type(&[JSON, MERGE, STRATEGIC])),
        }
    }

    /// The object that the patch makes of `object`.
    pub(super) fn apply(&self, object: &Value) -> Result<Value, Failure> {
        let mut patched = object.clone();
        match self {
            Self::Merge(patch) => {
                if !patch.is_object() {
                    return Err(Failure::bad_request("a merge patch must be a JSON object"));
                }
                json_patch::merge(&mut patched, patch);
            }
            Self::Json(patch) => {
                for operation in &patch.0 {
                    if !holds_for_nothing(operation, &patched) {
                        json_patch::patch(&mut patched, std::slice::from_ref(operation))
                            .map_err(|_| Failure::patch_does_not_apply())?;
                    }
                }
            }
            Self::Strategic(patch) => {
                let Value::Object(patch) = patch else {
                    return Err(Failure::bad_request("a strategic merge patch must be a JSON object"));
                };
                merge_strategically(&mut patched, patch);
            }
        }
        Ok(patched)
    }
}

/// kube-apiserver takes what is not there for `null` when it tests, which RFC 6902 does not.
fn holds_for_nothing(operation: &json_patch::PatchOperation, object: &Value) -> bool {
    let json_patch::PatchOperation::Test(test) = operation else { return false };
    let path = test.path.as_str();
    let parent = path.rsplit_once('/').and_then(|(parent, _)| object.pointer(parent));
    test.value.is_null() && parent.is_some() && object.pointer(path).is_none()
}

/// Lists whose items are merged, and the field that identifies an item (`patchMergeKey` of the Go types).
const MERGE_KEYS: [(&str, &str); 10] = [
    ("conditions", "type"),
    ("containers", "name"),
    ("initContainers", "name"),
    ("volumes", "name"),
    ("env", "name"),
    ("volumeMounts", "mountPath"),
    ("addresses", "type"),
    ("imagePullSecrets", "name"),
    ("ownerReferences", "uid"),
    ("podIPs", "ip"),
];

fn merge_strategically(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() || patch.get("$patch").and_then(Value::as_str) == Some("replace") {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        match value {
            _ if key.starts_with('$') => {}
            Value::Null => {
                target.remove(key);
            }
            Value::Object(value) => {
                merge_strategically(target.entry(key.as_str()).or_insert(Value::Null), value);
            }
            Value::Array(items) => {
                let merge_key = MERGE_KEYS.iter().find(|(list, _)| list == key).map(|(_, by)| *by);
                let list = target.entry(key.as_str()).or_insert_with(|| Value::Array(Vec::new()));
                match (merge_key, list) {
                    (Some(by), Value::Array(list)) => merge_list(list, items, by),
                    (None, Value::Array(list)) if key == "finalizers" => {
                        let added: Vec<_> =
                            items.iter().filter(|item| !list.contains(item)).cloned().collect();
                        list.extend(added);
                    }
                    (_, list) => *list = Value::Array(items.clone()),
                }
            }
            _ => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

fn merge_list(list: &mut Vec<Value>, items: &[Value], by: &str) {
    for item in items {
        let Value::Object(patch) = item else { continue };
        let position = list.iter().position(|old| old.get(by).is_some() && old.get(by) == item.get(by));
        let delete = patch.get("$patch").and_then(Value::as_str) == Some("delete");
        match position {
            Some(position) if delete => {
                list.remove(position);
            }
            Some(position) => {
                if let Some(old) = list.get_mut(position) {
                    merge_strategically(old, patch);
                }
            }
            None if delete => {}
            None => {
                let mut new = Value::Null;
                merge_strategically(&mut new, patch);
                list.push(new);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply(media_type: &str, object: &Value, patch: &Value) -> Result<Value, u16> {
        Patch::parse(media_type, patch.to_string().as_bytes(), false)
            .and_then(|patch| patch.apply(object))
            .map_err(|failure| failure.code)
    }

    #[test]
    fn the_formats_differ_in_what_they_do_to_lists() {
        let object = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "x"}], "phase": "a"}});
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Mem"}], "phase": null}});
        assert_eq!(
            apply(MERGE, &object, &patch),
            Ok(json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Mem"}]}}))
        );
        assert_eq!(
            apply(STRATEGIC, &object, &patch),
            Ok(json!({"status": {"conditions": [
                {"type": "Ready", "status": "True", "reason": "x"}, {"type": "Mem"}]}}))
        );
    }

    #[test]
    fn strategic_merge_deletes_and_replaces_by_directive() {
        let object =
            json!({"conditions": [{"type": "a"}, {"type": "b"}], "data": {"x": 1}, "finalizers": ["f"]});
        let patch = json!({
            "conditions": [{"type": "a", "$patch": "delete"}, {"type": "z", "$patch": "delete"}],
            "$setElementOrder/conditions": [{"type": "b"}],
            "data": {"$patch": "replace", "y": 2},
            "finalizers": ["f", "g"],
        });
        assert_eq!(
            apply(STRATEGIC, &object, &patch),
            Ok(json!({"conditions": [{"type": "b"}], "data": {"y": 2}, "finalizers": ["f", "g"]}))
        );
    }

    #[test]
    fn a_json_patch_applies_as_a_whole_or_not_at_all() {
        let object = json!({"spec": {"a": 1}});
        let table = [
            (
                json!([{"op": "test", "path": "/spec/a", "value": 1}, {"op": "add", "path": "/spec/b", "value": 2}]),
                Ok(json!({"spec": {"a": 1, "b": 2}})),
            ),
            (
                json!([{"op": "add", "path": "/spec/b", "value": 2}, {"op": "test", "path": "/spec/a", "value": 9}]),
                Err(422),
            ),
            (json!([{"op": "test", "path": "/spec/none", "value": 9}]), Err(422)),
            (json!([{"op": "remove", "path": "/spec/none"}]), Err(422)),
            (json!([{"op": "add", "path": "/none/x", "value": 1}]), Err(422)),
            (json!([{"op": "bad", "path": "/spec"}]), Err(422)),
            (json!({"op": "add"}), Err(400)),
        ];
        for (patch, expected) in table {
            assert_eq!(apply(JSON, &object, &patch), expected, "{patch}");
        }
    }

    #[test]
    fn unknown_formats_are_refused() {
        assert_eq!(apply("text/plain", &json!({}), &json!({})), Err(415));
        assert!(Patch::parse(STRATEGIC, b"{}", true).is_err_and(|failure| failure.code == 415));
        assert!(Patch::parse(MERGE, b"garbage", false).is_err_and(|failure| failure.code == 400));
        assert_eq!(apply(MERGE, &json!({}), &json!([1])), Err(400));
    }
}
