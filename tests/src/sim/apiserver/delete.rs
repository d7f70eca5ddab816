//! DELETE: preconditions, grace, finalizers, and what goes along with namespaces and definitions.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Api, Scope, present, seconds};
use super::failure::Failure;
use super::kinds::{Kind, Nature};
use super::store::Key;
use super::{meta, pods};

/// Body of a DELETE request, as far as the server heeds it: no garbage collector runs, so that the propagation
/// policy makes no difference.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct DeleteOptions {
    /// Seconds that a pod may take to end.
    pub(super) grace_period_seconds: Option<i64>,
    preconditions: Option<Preconditions>,
    /// `["All"]` to change nothing.
    pub(super) dry_run: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

impl Api {
    /// DELETE of one object.
    pub(super) fn delete(
        &mut self,
        scope: &Scope,
        name: &str,
        options: &DeleteOptions,
        now: Timestamp,
    ) -> Result<Value, Failure> {
        let object = self.stored(scope, name)?;
        check_preconditions(scope, &object, options)?;
        let key = scope.key(name);
        match scope.kind.nature {
            Nature::Namespace => Ok(present(scope, &self.terminate(&key, &object, now))),
            Nature::Definition => Ok(present(scope, &self.undefine(&key, &object, now))),
            Nature::Pod => Ok(present(scope, &self.end(&key, &object, options.grace_period_seconds, now))),
            _ if !meta::finalizers(&object).is_empty() => {
                Ok(present(scope, &self.mark(&key, &object, 0, now)))
            }
            Nature::ServiceAccount => {
                self.remove(&key);
                Ok(present(scope, &object))
            }
            _ => {
                self.remove(&key);
                Ok(deleted(&scope.kind, &object))
            }
        }
    }

    /// DELETE of a collection; answers with what it deleted.
    pub(super) fn delete_all(
        &mut self,
        scope: &Scope,
        names: &[(String, String)],
        options: &DeleteOptions,
        now: Timestamp,
    ) {
        for (namespace, name) in names {
            let scope = Scope { namespace: namespace.clone(), ..scope.clone() };
            // An object that went away with another one is as deleted as it can be.
            let _gone = self.delete(&scope, name, options, now);
        }
    }

    /// Begins deletion, or leaves it as it is if it has begun.
    fn mark(&mut self, key: &Key, object: &Arc<Value>, grace: i64, now: Timestamp) -> Arc<Value> {
        if meta::is_deleting(object) {
            return Arc::clone(object);
        }
        let mut marked = Value::clone(object);
        let end = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        meta::set(&mut marked, "deletionTimestamp", seconds(end));
        meta::set(&mut marked, "deletionGracePeriodSeconds", grace);
        if let Some(generation) = meta::get(object, "generation").and_then(Value::as_i64) {
            meta::set(&mut marked, "generation", generation + 1);
        }
        self.store.put(key.clone(), marked)
    }

    /// Graceful deletion of a pod: kubelet ends it, then deletes it with a grace period of zero.
    fn end(&mut self, key: &Key, pod: &Arc<Value>, asked: Option<i64>, now: Timestamp) -> Arc<Value> {
        let marked = if meta::is_deleting(pod) {
            let granted = meta::get(pod, "deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
            let Some(shorter) = asked.filter(|&asked| asked < granted) else { return Arc::clone(pod) };
            let mut marked = Value::clone(pod);
            let end = meta::text(pod, "deletionTimestamp").parse::<Timestamp>().unwrap_or(now);
            let end =
                end.checked_sub(SignedDuration::from_secs(granted.saturating_sub(shorter))).unwrap_or(now);
            meta::set(&mut marked, "deletionTimestamp", seconds(end));
            meta::set(&mut marked, "deletionGracePeriodSeconds", shorter);
            self.store.put(key.clone(), marked)
        } else {
            self.mark(key, pod, pods::grace_period(pod, asked), now)
        };
        let left = meta::get(&marked, "deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
        if left <= 0 && meta::finalizers(&marked).is_empty() {
            self.remove(key);
        }
        marked
    }

    /// Deletes what is in a namespace, and the namespace as soon as it is empty: the work of a controller.
    fn terminate(&mut self, key: &Key, namespace: &Arc<Value>, now: Timestamp) -> Arc<Value> {
        if meta::is_deleting(namespace) {
            return Arc::clone(namespace);
        }
        let mut marked = Value::clone(namespace);
        meta::set(&mut marked, "deletionTimestamp", seconds(now));
        if let Some(phase) = marked.pointer_mut("/status/phase") {
            *phase = "Terminating".into();
        }
        let marked = self.store.put(key.clone(), marked);
        for kind in self.kinds.iter().cloned().collect::<Vec<_>>() {
            if kind.namespaced {
                let names: Vec<_> = self.names(&kind, &key.name).collect();
                let scope =
                    Scope { version: kind.storage_version.clone(), namespace: key.name.clone(), kind };
                self.delete_all(&scope, &names, &DeleteOptions::default(), now);
            }
        }
        self.sweep(&key.name);
        marked
    }

    fn names(&self, kind: &Kind, namespace: &str) -> impl Iterator<Item = (String, String)> {
        self.store
            .range(&kind.stored_as, (!namespace.is_empty()).then_some(namespace))
            .map(|(key, _)| (key.namespace.clone(), key.name.clone()))
    }

    /// Removes a namespace that is terminating and empty.
    fn sweep(&mut self, namespace: &str) {
        let Some(key) = self.namespace(namespace) else { return };
        let terminating = self.store.get(&key).is_some_and(|namespace| meta::is_deleting(namespace));
        let empty = self
            .kinds
            .iter()
            .filter(|kind| kind.namespaced)
            .all(|kind| self.store.range(&kind.stored_as, Some(namespace)).next().is_none());
        if terminating && empty {
            self.store.remove(&key);
        }
    }

    /// Removes a definition with all its objects, finalizers or not.
    fn undefine(&mut self, key: &Key, definition: &Arc<Value>, now: Timestamp) -> Arc<Value> {
        let marked = self.mark(key, definition, 0, now);
        if let Some(kind) = Kind::from_definition(definition) {
            for (namespace, name) in self.names(&kind, "").collect::<Vec<_>>() {
                self.remove(&Key { resource: kind.stored_as.clone(), namespace, name });
            }
            self.kinds.remove(&kind.group, &kind.plural);
        }
        self.store.remove(key);
        marked
    }

    /// Removes an object for good.
    pub(super) fn remove(&mut self, key: &Key) {
        self.store.remove(key);
        if !key.namespace.is_empty() {
            self.sweep(&key.namespace);
        }
    }
}

fn check_preconditions(scope: &Scope, object: &Value, options: &DeleteOptions) -> Result<(), Failure> {
    let Some(preconditions) = &options.preconditions else { return Ok(()) };
    let name = meta::text(object, "name");
    let (uid, version) = (meta::text(object, "uid"), meta::text(object, "resourceVersion"));
    if let Some(asked) = preconditions.uid.as_deref().filter(|asked| *asked != uid) {
        let why = format!(
            "the UID in the precondition ({asked}) does not match the UID in record ({uid}). \
             The object might have been deleted and then recreated"
        );
        return Err(Failure::precondition(&scope.kind, name, &why));
    }
    if let Some(asked) = preconditions.resource_version.as_deref().filter(|asked| *asked != version) {
        let why = format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record \
             ({version}). The object might have been modified"
        );
        return Err(Failure::precondition(&scope.kind, name, &why));
    }
    Ok(())
}

fn deleted(kind: &Kind, object: &Value) -> Value {
    let mut details = json!({
        "name": meta::text(object, "name"), "kind": kind.plural, "uid": meta::text(object, "uid"),
    });
    if let Value::Object(details) = &mut details
        && !kind.group.is_empty()
    {
        details.insert("group".to_owned(), kind.group.as_str().into());
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
