//! What happens to an object between the request and the store: kube-apiserver's "strategies".
//!
//! Functions over values: they read neither the store nor a clock.

use serde_json::{Map, Value, json};

use super::failure::{Cause, Failure};
use super::kinds::{Kind, Nature};
use super::{definitions, events, meta, names, pods, schema};

/// Values that a new object gets from outside.
#[derive(Debug, Clone)]
pub(super) struct Birth {
    /// Time of creation, RFC 3339 with seconds.
    pub(super) now: String,
    /// Unique ID.
    pub(super) uid: String,
    /// Five letters that complete a `generateName`.
    pub(super) suffix: String,
}

/// How an update arrived; kube-apiserver treats a wrong uid differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// PUT.
    Put,
    /// PATCH.
    Patch,
}

/// Which part of the object an update may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything but status, if the kind has a status of its own.
    Main,
    /// Status, and metadata for built-in kinds.
    Status,
}

/// Checks that a body is what the URL says, and completes `kind` and `apiVersion` as built-in kinds allow.
pub(super) fn check_type(kind: &Kind, version: &str, object: &mut Value) -> Result<(), Failure> {
    let Some(map) = object.as_object_mut() else {
        return Err(Failure::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): not a JSON object",
            kind.kind
        )));
    };
    for (key, expected) in [("kind", kind.kind.clone()), ("apiVersion", kind.api_version(version))] {
        match map.get(key).and_then(Value::as_str) {
            Some(found) if found == expected => {}
            None | Some("") if !kind.is_custom() => {
                map.insert(key.to_owned(), expected.into());
            }
            found => {
                let found = found.unwrap_or_default();
                return Err(Failure::bad_request(format!(
                    "{} in version \"{version}\" cannot be handled as a {}: {key} is \"{found}\", expected \"{expected}\"",
                    kind.kind, kind.kind
                )));
            }
        }
    }
    Ok(())
}

/// Makes the object that a POST to `namespace` stores.
pub(super) fn create(
    kind: &Kind,
    version: &str,
    namespace: &str,
    mut object: Value,
    birth: &Birth,
) -> Result<Value, Failure> {
    place(kind, namespace, &mut object)?;
    if !meta::text(&object, "resourceVersion").is_empty() {
        return Err(Failure::internal("resourceVersion should not be set on objects to be created"));
    }
    if meta::text(&object, "name").is_empty() {
        let prefix = meta::text(&object, "generateName").to_owned();
        if prefix.is_empty() {
            let cause = Cause::required("metadata.name", "name or generateName is required");
            return Err(Failure::invalid(kind, "", &[cause]));
        }
        meta::set(&mut object, "name", format!("{prefix}{}", birth.suffix));
    }
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields", "generation"]
    {
        meta::unset(&mut object, key);
    }
    meta::set(&mut object, "uid", birth.uid.as_str());
    meta::set(&mut object, "creationTimestamp", birth.now.as_str());
    let served = kind.version(version);
    match kind.nature {
        Nature::Pod => {
            pods::default(&mut object);
            let status = pods::initial_status(&object);
            set_field(&mut object, "status", Some(status));
        }
        Nature::Node => default_node(&mut object),
        Nature::Namespace => {
            set_field(&mut object, "spec", Some(json!({"finalizers": ["kubernetes"]})));
            set_field(&mut object, "status", Some(json!({"phase": "Active"})));
        }
        Nature::Event => events::default(&mut object),
        Nature::Secret => fold_secret(&mut object),
        Nature::Definition => {
            definitions::default(&mut object);
            meta::set(&mut object, "generation", 1);
        }
        Nature::Custom => {
            if served.is_some_and(|version| version.status) {
                set_field(&mut object, "status", None);
            }
            meta::set(&mut object, "generation", 1);
        }
        Nature::Plain | Nature::ServiceAccount => {}
    }
    let mut causes = names::faults(kind, &object);
    match kind.nature {
        Nature::Pod => causes.extend(pods::faults(&object)),
        Nature::Event => causes.extend(events::faults(&object, !kind.group.is_empty())),
        Nature::Definition => causes.extend(definitions::faults(&object)),
        _ => {}
    }
    if let Some(schema) = served.and_then(|version| version.schema.as_ref()) {
        causes.extend(schema::admit(schema, &mut object));
    }
    let name = meta::text(&object, "name").to_owned();
    if causes.is_empty() { Ok(object) } else { Err(Failure::invalid(kind, &name, &causes)) }
}

/// Makes the object that replaces `old`; equal to `old` if nothing changes.
pub(super) fn update(
    kind: &Kind,
    version: &str,
    old: &Value,
    mut new: Value,
    part: Part,
    via: Via,
) -> Result<Value, Failure> {
    let name = meta::text(old, "name");
    let named = meta::text(&new, "name");
    if named.is_empty() {
        return Err(Failure::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    if named != name {
        return Err(Failure::bad_request(format!(
            "the name of the object ({named}) does not match the name on the URL ({name})"
        )));
    }
    place(kind, meta::text(old, "namespace"), &mut new)?;
    check_uid(kind, old, &new, via)?;
    check_version(kind, old, &new, via)?;

    for key in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ] {
        meta::copy(&mut new, old, key);
    }
    for key in ["selfLink", "managedFields"] {
        meta::unset(&mut new, key);
    }
    let served = kind.version(version);
    match part {
        Part::Main if served.is_some_and(|version| version.status) => {
            set_field(&mut new, "status", old.get("status").cloned());
        }
        Part::Main => {}
        Part::Status => {
            let mut kept = old.clone();
            set_field(&mut kept, "status", new.get("status").cloned());
            if !kind.is_custom() {
                set_field(&mut kept, "metadata", new.get("metadata").cloned());
                meta::copy(&mut kept, old, "ownerReferences");
            }
            new = kept;
        }
    }
    match kind.nature {
        Nature::Pod => {
            pods::default(&mut new);
            pods::complete_status(&mut new);
        }
        Nature::Namespace if part == Part::Main => set_field(&mut new, "spec", old.get("spec").cloned()),
        Nature::Event => events::default(&mut new),
        Nature::Secret => fold_secret(&mut new),
        _ => {}
    }
    let mut causes = names::faults(kind, &new);
    if meta::is_deleting(old) {
        let before = meta::finalizers(old);
        let added: Vec<String> = meta::finalizers(&new)
            .into_iter()
            .filter(|finalizer| !before.contains(finalizer))
            .map(|finalizer| format!("{finalizer:?}"))
            .collect();
        if !added.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            causes.push(Cause::forbidden("metadata.finalizers", &why));
        }
    }
    if let Some(schema) = served.and_then(|version| version.schema.as_ref()) {
        causes.extend(schema::admit(schema, &mut new));
    }
    if !causes.is_empty() {
        return Err(Failure::invalid(kind, name, &causes));
    }
    if kind.nature == Nature::Pod && part == Part::Main {
        pods::check_spec_change(kind, old, &new)?;
    }
    if matches!(kind.nature, Nature::Custom | Nature::Definition)
        && part == Part::Main
        && desired(old) != desired(&new)
    {
        let generation = meta::get(old, "generation").and_then(Value::as_i64).unwrap_or(0);
        meta::set(&mut new, "generation", generation + 1);
    }
    Ok(new)
}

/// Everything that somebody asks for: the object without metadata and status.
fn desired(object: &Value) -> Map<String, Value> {
    let mut desired = object.as_object().cloned().unwrap_or_default();
    for key in ["metadata", "status"] {
        desired.remove(key);
    }
    desired
}

fn place(kind: &Kind, namespace: &str, object: &mut Value) -> Result<(), Failure> {
    match meta::text(object, "namespace") {
        "" if kind.namespaced => meta::set(object, "namespace", namespace),
        "" => meta::unset(object, "namespace"),
        found if found == namespace => {}
        _ => {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    Ok(())
}

fn check_uid(kind: &Kind, old: &Value, new: &Value, via: Via) -> Result<(), Failure> {
    let (name, was, asked) = (meta::text(old, "name"), meta::text(old, "uid"), meta::text(new, "uid"));
    if asked.is_empty() || asked == was {
        return Ok(());
    }
    match via {
        Via::Put => Err(Failure::conflict(
            kind,
            name,
            &format!(
                "StorageError: invalid object, Code: 4, Key: {name}, ResourceVersion: 0, AdditionalErrorMsg: \
                 Precondition failed: UID in precondition: {asked}, UID in object meta: {was}"
            ),
        )),
        Via::Patch => {
            let why = format!("Invalid value: \"{asked}\": field is immutable");
            Err(Failure::invalid(kind, name, &[Cause::invalid("metadata.uid", why)]))
        }
    }
}

fn check_version(kind: &Kind, old: &Value, new: &Value, via: Via) -> Result<(), Failure> {
    let name = meta::text(old, "name");
    let asked = meta::text(new, "resourceVersion");
    if asked.is_empty() || asked == "0" {
        return if kind.unconditional_update || via == Via::Patch {
            Ok(())
        } else {
            Err(Failure::version_required(kind, name))
        };
    }
    if asked.parse::<u64>().is_err() {
        return Err(Failure::internal(format!("strconv.ParseUint: parsing \"{asked}\": invalid syntax")));
    }
    if asked == meta::text(old, "resourceVersion") {
        return Ok(());
    }
    Err(Failure::conflict(
        kind,
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    ))
}

fn set_field(object: &mut Value, key: &str, value: Option<Value>) {
    let Some(map) = object.as_object_mut() else { return };
    match value {
        Some(value) => map.insert(key.to_owned(), value),
        None => map.remove(key),
    };
}

fn default_node(node: &mut Value) {
    let Some(map) = node.as_object_mut() else { return };
    map.entry("spec").or_insert_with(|| json!({}));
    if let Value::Object(status) = map.entry("status").or_insert_with(|| json!({}))
        && let Some(capacity) = status.get("capacity").cloned()
    {
        status.entry("allocatable").or_insert(capacity);
    }
}

fn fold_secret(secret: &mut Value) {
    use base64::Engine as _;
    let Some(map) = secret.as_object_mut() else { return };
    map.entry("type").or_insert_with(|| "Opaque".into());
    let Some(Value::Object(texts)) = map.remove("stringData") else { return };
    if let Value::Object(data) = map.entry("data").or_insert_with(|| json!({})) {
        for (key, text) in texts {
            let bytes = text.as_str().unwrap_or_default();
            data.insert(key, base64::engine::general_purpose::STANDARD.encode(bytes).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds::Kinds;
    use super::*;

    fn birth() -> Birth {
        Birth { now: "2026-01-01T00:00:00Z".to_owned(), uid: "u1".to_owned(), suffix: "abcde".to_owned() }
    }

    fn configmap(metadata: &Value) -> Result<Value, u16> {
        let kind = Kinds::builtin().find("", "v1", "configmaps").unwrap();
        create(&kind, "v1", "ns", json!({"metadata": metadata}), &birth()).map_err(|failure| failure.code)
    }

    #[test]
    fn creation_names_places_and_dates_an_object() {
        let made =
            configmap(&json!({"generateName": "x-", "uid": "mine", "deletionTimestamp": "then"})).unwrap();
        assert_eq!(
            made["metadata"],
            json!({
                "generateName": "x-", "name": "x-abcde", "namespace": "ns", "uid": "u1",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            })
        );
        let refused = [
            (json!({}), 422),
            (json!({"name": "A_b"}), 422),
            (json!({"name": "a..b"}), 422),
            (json!({"name": "a", "namespace": "other"}), 400),
            (json!({"name": "a", "resourceVersion": "5"}), 500),
            (json!({"name": "a", "labels": {"x": "_"}}), 422),
            (json!({"name": "a", "labels": {"x": 5}}), 422),
            (json!({"name": "a", "finalizers": ["plain"]}), 422),
        ];
        for (metadata, code) in refused {
            assert_eq!(configmap(&metadata), Err(code), "{metadata}");
        }
    }

    fn pod() -> Value {
        let kind = Kinds::builtin().find("", "v1", "pods").unwrap();
        let body = json!({
            "metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running"},
        });
        let mut pod = create(&kind, "v1", "ns", body, &birth()).unwrap();
        meta::set(&mut pod, "resourceVersion", "7");
        pod
    }

    fn updated(change: impl Fn(&mut Value), part: Part, via: Via) -> Result<Value, u16> {
        let kind = Kinds::builtin().find("", "v1", "pods").unwrap();
        let old = pod();
        let mut new = old.clone();
        change(&mut new);
        update(&kind, "v1", &old, new, part, via).map_err(|failure| failure.code)
    }

    #[test]
    fn a_new_pod_is_pending_whatever_its_creator_says() {
        assert_eq!(pod()["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    }

    #[test]
    fn an_update_of_the_pod_leaves_its_status_and_the_other_way_round() {
        let change = |new: &mut Value| {
            new["status"]["phase"] = "Running".into();
            new["spec"]["containers"][0]["image"] = "j".into();
            new["metadata"]["annotations"] = json!({"x": "y"});
        };
        let main = updated(change, Part::Main, Via::Put).unwrap();
        assert_eq!(main["status"]["phase"], "Pending");
        assert_eq!(main["spec"]["containers"][0]["image"], "j");
        let status = updated(change, Part::Status, Via::Put).unwrap();
        assert_eq!(status["status"]["phase"], "Running");
        assert_eq!(status["spec"]["containers"][0]["image"], "i");
        assert_eq!(status["metadata"]["annotations"]["x"], "y");
    }

    #[test]
    fn what_an_update_may_not_do() {
        type Row = (fn(&mut Value), Via, Result<(), u16>);
        let table: [Row; 9] = [
            (|_| {}, Via::Put, Ok(())),
            (|new| new["metadata"]["uid"] = "other".into(), Via::Put, Err(409)),
            (|new| new["metadata"]["uid"] = "other".into(), Via::Patch, Err(422)),
            (|new| new["metadata"]["resourceVersion"] = "6".into(), Via::Put, Err(409)),
            (|new| new["metadata"]["resourceVersion"] = "x".into(), Via::Put, Err(500)),
            (|new| meta::unset(new, "resourceVersion"), Via::Put, Ok(())),
            (|new| new["metadata"]["name"] = "q".into(), Via::Patch, Err(400)),
            (|new| new["spec"]["hostname"] = "h".into(), Via::Put, Err(422)),
            (|new| new["metadata"]["creationTimestamp"] = "1999-01-01T00:00:00Z".into(), Via::Put, Ok(())),
        ];
        for (index, (change, via, expected)) in table.into_iter().enumerate() {
            assert_eq!(updated(change, Part::Main, via).map(|_| ()), expected, "row {index}");
        }
    }

    #[test]
    fn an_update_that_changes_nothing_yields_the_old_object() {
        assert_eq!(updated(|new| meta::unset(new, "resourceVersion"), Part::Main, Via::Patch), Ok(pod()));
    }
}
