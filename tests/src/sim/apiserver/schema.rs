//! Structural schemas of custom resources: unknown fields are dropped, defaults filled in, values checked.
//!
//! The keywords that definitions in this field use; `pattern`, `format` and CEL rules are not evaluated.

use serde_json::{Map, Value};

use super::failure::Cause;

/// Prunes and completes an object by its schema, and says what is wrong with it.
pub(super) fn admit(schema: &Value, object: &mut Value) -> Vec<Cause> {
    if let Some(map) = object.as_object_mut() {
        // apiVersion, kind and metadata belong to the server, whatever the schema says of them.
        let own: Vec<(String, Value)> =
            ["apiVersion", "kind", "metadata"].iter().filter_map(|key| map.remove_entry(*key)).collect();
        prune(schema, map);
        complete(schema, map);
        let mut causes = Vec::new();
        check_object(schema, map, "", &mut causes);
        causes.retain(|cause| !["apiVersion", "kind", "metadata"].contains(&cause.field.as_str()));
        map.extend(own);
        return causes;
    }
    Vec::new()
}

fn keeps_unknown(schema: &Value) -> bool {
    schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true))
}

fn property<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    schema
        .get("properties")
        .and_then(|properties| properties.get(key))
        .or_else(|| schema.get("additionalProperties").filter(|schema| schema.is_object()))
}

fn prune(schema: &Value, map: &mut Map<String, Value>) {
    let open = keeps_unknown(schema) || schema.get("additionalProperties") == Some(&Value::Bool(true));
    map.retain(|key, _| open || property(schema, key).is_some());
    for (key, value) in map {
        if let Some(schema) = property(schema, key) {
            prune_value(schema, value);
        }
    }
}

fn prune_value(schema: &Value, value: &mut Value) {
    match value {
        // An embedded object's own metadata is not pruned; no schema in this field embeds any.
        Value::Object(map) => prune(schema, map),
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| prune_value(schema, item));
            }
        }
        _ => {}
    }
}

fn complete(schema: &Value, map: &mut Map<String, Value>) {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (key, schema) in properties.into_iter().flatten() {
        if let Some(default) = schema.get("default") {
            map.entry(key.as_str()).or_insert_with(|| default.clone());
        }
    }
    for (key, value) in map {
        if let Some(schema) = property(schema, key) {
            complete_value(schema, value);
        }
    }
}

fn complete_value(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => complete(schema, map),
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| complete_value(schema, item));
            }
        }
        _ => {}
    }
}

fn check_object(schema: &Value, map: &Map<String, Value>, path: &str, causes: &mut Vec<Cause>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if let Some(key) = required.as_str()
            && !map.contains_key(key)
        {
            causes.push(Cause::required(below(key), ""));
        }
    }
    for (key, value) in map {
        if let Some(schema) = property(schema, key) {
            check(schema, value, &below(key), causes);
        }
    }
}

fn check(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if value.is_null() && schema.get("nullable") == Some(&Value::Bool(true)) {
        return;
    }
    let mut invalid = |value: &str, why: &str| {
        causes.push(Cause::invalid(path, format!("Invalid value: {value}: {path} in body {why}")));
    };
    let found = type_of(value);
    let either = schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    match schema.get("type").and_then(Value::as_str) {
        _ if either && matches!(found, "integer" | "string") => {}
        _ if either => {
            invalid(&format!("{found:?}"), &format!("must be of type integer,string: \"{found}\""));
            return;
        }
        Some(expected) if expected != found && !(expected == "number" && found == "integer") => {
            invalid(&format!("{found:?}"), &format!("must be of type {expected}: \"{found}\""));
            return;
        }
        _ => {}
    }
    if let (Some(minimum), Some(number)) = (schema.get("minimum").and_then(Value::as_f64), value.as_f64())
        && number < minimum
    {
        invalid(&value.to_string(), &format!("should be greater than or equal to {minimum}"));
    }
    if let (Some(maximum), Some(number)) = (schema.get("maximum").and_then(Value::as_f64), value.as_f64())
        && number > maximum
    {
        invalid(&value.to_string(), &format!("should be less than or equal to {maximum}"));
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
        causes.push(Cause {
            reason: "FieldValueNotSupported",
            message: format!("Unsupported value: {value}: supported values: {}", allowed.join(", ")),
            field: path.to_owned(),
        });
    }
    match value {
        Value::Object(map) => check_object(schema, map, path, causes),
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    check(schema, item, &format!("{path}[{index}]"), causes);
                }
            }
        }
        _ => {}
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pool() -> Value {
        json!({
            "type": "object",
            "required": ["spec"],
            "properties": {
                "spec": {
                    "type": "object",
                    "required": ["range"],
                    "properties": {
                        "range": {"type": "string"},
                        "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
                        "n": {"type": "integer", "minimum": 1},
                        "allocations": {
                            "type": "object",
                            "additionalProperties": {
                                "type": "object",
                                "properties": {"id": {"type": "string"}},
                                "required": ["id"],
                            },
                        },
                        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                        "port": {"x-kubernetes-int-or-string": true},
                    },
                },
            },
        })
    }

    #[test]
    fn unknown_fields_go_and_defaults_come() {
        let mut object = json!({
            "apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a"}, "extra": 1,
            "spec": {"range": "r", "zz": 1, "allocations": {"5": {"id": "x", "zz": 1}}, "open": {"any": [1]}, "port": "p"},
        });
        assert_eq!(admit(&pool(), &mut object), []);
        assert_eq!(
            object,
            json!({
                "apiVersion": "x/v1", "kind": "X", "metadata": {"name": "a"},
                "spec": {"range": "r", "mode": "a", "allocations": {"5": {"id": "x"}}, "open": {"any": [1]}, "port": "p"},
            })
        );
    }

    #[test]
    fn what_breaks_the_schema_is_named() {
        let table = [
            (json!({}), vec!["spec"]),
            (json!({"spec": {}}), vec!["spec.range"]),
            (json!({"spec": {"range": 5}}), vec!["spec.range"]),
            (json!({"spec": {"range": "r", "mode": "z", "n": 0}}), vec!["spec.mode", "spec.n"]),
            (json!({"spec": {"range": "r", "n": 1.5}}), vec!["spec.n"]),
            (json!({"spec": {"range": "r", "allocations": {"6": {}}}}), vec!["spec.allocations.6.id"]),
            (json!({"spec": {"range": null}}), vec!["spec.range"]),
            (json!({"spec": {"range": "r", "port": true}}), vec!["spec.port"]),
        ];
        for (mut object, expected) in table {
            let text = object.to_string();
            let fields: Vec<String> =
                admit(&pool(), &mut object).into_iter().map(|cause| cause.field).collect();
            assert_eq!(fields, expected, "{text}");
        }
    }
}
