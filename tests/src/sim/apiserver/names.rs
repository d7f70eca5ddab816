//! What names, labels and finalizers may look like.

use serde_json::Value;

use super::failure::Cause;
use super::kinds::{Kind, Nature};
use super::meta;

/// What is wrong with the metadata that the caller wrote.
pub(super) fn faults(kind: &Kind, object: &Value) -> Vec<Cause> {
    let mut faults = Vec::new();
    let name = meta::text(object, "name");
    if !is_subdomain(name) || (kind.nature == Nature::Namespace && name.contains('.')) {
        let why = format!(
            "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
             characters, '-' or '.', and must start and end with an alphanumeric character"
        );
        faults.push(Cause::invalid("metadata.name", why));
    }
    for (field, check) in [("labels", is_label_value as fn(&str) -> bool), ("annotations", |_| true)] {
        match meta::get(object, field) {
            None => {}
            Some(Value::Object(pairs)) => {
                for (key, value) in pairs {
                    if !value.as_str().is_some_and(check) {
                        let why = format!("Invalid value: {value}: not a valid value of \"{key}\"");
                        faults.push(Cause::invalid(format!("metadata.{field}"), why));
                    }
                }
            }
            Some(_) => {
                faults.push(Cause::invalid(format!("metadata.{field}"), "Invalid value: must be a map"));
            }
        }
    }
    for finalizer in meta::finalizers(object) {
        if !finalizer.contains('/') && !matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes") {
            let why = format!(
                "Invalid value: \"{finalizer}\": name is neither a standard finalizer name nor is it fully qualified"
            );
            faults.push(Cause::invalid("metadata.finalizers[0]", why));
        }
    }
    faults
}

fn is_subdomain(name: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.split('.').all(|part| {
            part.starts_with(edge) && part.ends_with(edge) && part.chars().all(|c| edge(c) || c == '-')
        })
}

fn is_label_value(value: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    value.is_empty()
        || (value.len() <= 63
            && value.starts_with(edge)
            && value.ends_with(edge)
            && value.chars().all(|c| edge(c) || "-_.".contains(c)))
}
