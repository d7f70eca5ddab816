//! What clients ask before they ask for objects: groups, versions, resources.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::kinds::{Kind, Kinds, Nature};

/// The answer to a discovery path; `None` if it is none or names something unknown.
pub(super) fn answer(kinds: &Kinds, path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["api", "v1"] => resources(kinds, "", "v1"),
        ["apis"] => {
            let groups: Vec<Value> = groups(kinds).into_values().collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", group] => {
            let mut found = groups(kinds).remove(*group)?;
            if let Value::Object(found) = &mut found {
                found.insert("kind".to_owned(), "APIGroup".into());
                found.insert("apiVersion".to_owned(), "v1".into());
            }
            Some(found)
        }
        ["apis", group, version] => resources(kinds, group, version),
        _ => None,
    }
}

fn groups(kinds: &Kinds) -> BTreeMap<String, Value> {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kind in kinds.iter().filter(|kind| !kind.group.is_empty()) {
        let known = versions.entry(kind.group.clone()).or_default();
        for version in &kind.versions {
            if !known.contains(&version.name) {
                known.push(version.name.clone());
            }
        }
    }
    versions
        .into_iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
                .collect();
            let described =
                json!({"name": group, "versions": versions, "preferredVersion": versions.first()});
            (group, described)
        })
        .collect()
}

fn resources(kinds: &Kinds, group: &str, version: &str) -> Option<Value> {
    let mut found = Vec::new();
    let mut group_version = None;
    for kind in kinds.iter().filter(|kind| kind.group == group) {
        let Some(served) = kind.version(version) else { continue };
        group_version = Some(kind.api_version(version));
        found.push(resource(kind, ""));
        if served.status {
            found.push(resource(kind, "status"));
        }
        if kind.nature == Nature::Pod {
            found.push(json!({
                "name": "pods/binding", "singularName": "", "namespaced": true, "kind": "Binding", "verbs": ["create"],
            }));
        }
    }
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version?,
        "resources": found,
    }))
}

fn resource(kind: &Kind, subresource: &str) -> Value {
    if !subresource.is_empty() {
        return json!({
            "name": format!("{}/{subresource}", kind.plural),
            "singularName": "",
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": ["get", "patch", "update"],
        });
    }
    json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        "shortNames": kind.short_names,
    })
}
