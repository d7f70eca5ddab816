//! CustomResourceDefinitions: what kube-apiserver adds to them, and what it asks of them.

use serde_json::{Value, json};

use super::failure::Cause;
use super::kinds::Kind;
use super::meta;

/// Completes a new definition.
pub(super) fn default(definition: &mut Value) {
    let names = definition.pointer_mut("/spec/names").and_then(Value::as_object_mut);
    if let Some(names) = names {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        names.entry("listKind").or_insert_with(|| format!("{kind}List").into());
        names.entry("singular").or_insert_with(|| kind.to_lowercase().into());
    }
    if let Some(Value::Object(spec)) = definition.get_mut("spec") {
        spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
    }
    if let Some(definition) = definition.as_object_mut() {
        let status =
            json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []});
        definition.insert("status".to_owned(), status);
    }
}

/// The status that the definition gets as soon as its kind is served.
pub(super) fn established(definition: &Value, now: &str) -> Value {
    let mut served = definition.clone();
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message});
    let storage: Vec<Value> = definition
        .pointer("/spec/versions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|version| version.get("storage") == Some(&Value::Bool(true)))
        .filter_map(|version| version.get("name").cloned())
        .collect();
    let status = json!({
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
        "acceptedNames": definition.pointer("/spec/names"),
        "storedVersions": storage,
    });
    if let Some(served) = served.as_object_mut() {
        served.insert("status".to_owned(), status);
    }
    served
}

/// What is wrong with a new definition.
pub(super) fn faults(definition: &Value) -> Vec<Cause> {
    let text = |path: &str| definition.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let mut faults = Vec::new();
    for field in ["group", "scope", "names/plural", "names/kind"] {
        if text(&format!("/spec/{field}")).is_empty() {
            faults.push(Cause::required(format!("spec.{}", field.replace('/', ".")), ""));
        }
    }
    let expected = format!("{}.{}", text("/spec/names/plural"), text("/spec/group"));
    let name = meta::text(definition, "name");
    if name != expected {
        let why = format!("Invalid value: \"{name}\": must be spec.names.plural+\".\"+spec.group");
        faults.push(Cause::invalid("metadata.name", why));
    }
    if Kind::from_definition(definition).is_none() {
        let why = "Invalid value: must have at least one served version and exactly one storage version";
        faults.push(Cause::invalid("spec.versions", why));
    }
    faults
}

/// The definition of the Network Plumbing Working Group's NetworkAttachmentDefinition.
pub(super) fn network_attachment_definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
        "spec": {
            "group": "k8s.cni.cncf.io",
            "scope": "Namespaced",
            "names": {
                "plural": "network-attachment-definitions",
                "singular": "network-attachment-definition",
                "kind": "NetworkAttachmentDefinition",
                "shortNames": ["net-attach-def"],
            },
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {
                        "spec": {"type": "object", "properties": {"config": {"type": "string"}}},
                    },
                }},
            }],
        },
    })
}
