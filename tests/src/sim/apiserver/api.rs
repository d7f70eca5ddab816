//! The verbs, as transactions over kinds and store. The caller holds the lock and brings the time.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::failure::Failure;
use super::kinds::{Kind, Kinds, Nature};
use super::patch::Patch;
use super::rules::{self, Birth, Part, Via};
use super::store::{Key, Store};
use super::{events, meta, pods};

/// Kind, version and namespace of a request.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    /// Kind of object.
    pub(super) kind: Arc<Kind>,
    /// Version of the API that the caller speaks.
    pub(super) version: String,
    /// Namespace; empty for objects of the cluster, and for requests across namespaces.
    pub(super) namespace: String,
}

impl Scope {
    fn key(&self, name: &str) -> Key {
        Key {
            resource: self.kind.stored_as.clone(),
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }
}

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

/// What an update did.
#[derive(Debug)]
pub(super) enum Written {
    /// The object is new.
    Created(Value),
    /// The object was there.
    Updated(Value),
}

/// Everything that the server knows.
#[derive(Debug, Clone)]
pub(super) struct Api {
    /// Kinds that are served.
    pub(super) kinds: Kinds,
    /// Objects.
    pub(super) store: Store,
    random: RandomState,
    born: u64,
}

impl Api {
    /// A server that remembers `history` writes, with the namespaces that every cluster has.
    pub(super) fn new(history: usize, now: Timestamp) -> Self {
        let mut api =
            Self { kinds: Kinds::builtin(), store: Store::new(history), random: RandomState::new(), born: 0 };
        if let Some(kind) = api.kinds.of(Nature::Namespace) {
            let scope = Scope { kind, version: "v1".to_owned(), namespace: String::new() };
            for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
                let created = api.create(&scope, json!({"metadata": {"name": name}}), now);
                debug_assert!(created.is_ok(), "{created:?}");
            }
        }
        api
    }

    fn birth(&mut self, now: Timestamp) -> Birth {
        self.born += 1;
        let (high, low) = (self.random.hash_one((self.born, 0)), self.random.hash_one((self.born, 1)));
        // The alphabet of generated names: no vowels, no look-alikes.
        let alphabet = b"bcdfghjklmnpqrstvwxz2456789";
        let suffix = (0..5_u32)
            .filter_map(|at| {
                let index = self.random.hash_one((self.born, 2 + at)) % alphabet.len() as u64;
                alphabet.get(usize::try_from(index).unwrap_or_default()).map(|&letter| char::from(letter))
            })
            .collect();
        let uid = format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            0x8000 | (low >> 50),
            low & 0xffff_ffff_ffff
        );
        Birth { now: seconds(now), uid, suffix }
    }

    /// GET of one object.
    pub(super) fn get(&self, scope: &Scope, name: &str) -> Result<Value, Failure> {
        self.stored(scope, name).map(|object| present(scope, &object))
    }

    fn stored(&self, scope: &Scope, name: &str) -> Result<Arc<Value>, Failure> {
        self.store.get(&scope.key(name)).cloned().ok_or_else(|| Failure::not_found(&scope.kind, name))
    }

    /// POST to a collection.
    pub(super) fn create(
        &mut self,
        scope: &Scope,
        mut body: Value,
        now: Timestamp,
    ) -> Result<Value, Failure> {
        rules::check_type(&scope.kind, &scope.version, &mut body)?;
        let birth = self.birth(now);
        let body = to_storage(scope, body);
        let object = rules::create(&scope.kind, &scope.version, &scope.namespace, body, &birth)?;
        let name = meta::text(&object, "name").to_owned();
        self.check_namespace(scope, &name)?;
        let key = scope.key(&name);
        if self.store.get(&key).is_some() {
            return Err(Failure::already_exists(&scope.kind, &name));
        }
        let created = self.store.put(key.clone(), object);
        match scope.kind.nature {
            Nature::Namespace => self.furnish(&name, now),
            Nature::Definition => self.serve(&key, &created, now),
            _ => {}
        }
        Ok(present(scope, &created))
    }

    fn check_namespace(&self, scope: &Scope, name: &str) -> Result<(), Failure> {
        if !scope.kind.namespaced {
            return Ok(());
        }
        let namespace = self.namespace(&scope.namespace).and_then(|key| self.store.get(&key));
        match namespace {
            None => Err(Failure::no_namespace(&scope.namespace)),
            Some(namespace) if meta::is_deleting(namespace) => {
                Err(Failure::namespace_terminating(&scope.kind, name, &scope.namespace))
            }
            Some(_) => Ok(()),
        }
    }

    fn namespace(&self, name: &str) -> Option<Key> {
        let kind = self.kinds.of(Nature::Namespace)?;
        Some(Key { resource: kind.stored_as.clone(), namespace: String::new(), name: name.to_owned() })
    }

    /// The service account that a controller puts into every namespace.
    fn furnish(&mut self, namespace: &str, now: Timestamp) {
        if let Some(kind) = self.kinds.of(Nature::ServiceAccount) {
            let scope = Scope { kind, version: "v1".to_owned(), namespace: namespace.to_owned() };
            let created = self.create(&scope, json!({"metadata": {"name": "default"}}), now);
            debug_assert!(created.is_ok(), "{created:?}");
        }
    }

    fn serve(&mut self, key: &Key, definition: &Value, now: Timestamp) {
        if let Some(kind) = Kind::from_definition(definition) {
            self.kinds.insert(kind);
            self.store.put(key.clone(), rules::established(definition, &seconds(now)));
        }
    }

    /// PUT of an object or of its status.
    pub(super) fn update(
        &mut self,
        scope: &Scope,
        name: &str,
        part: Part,
        mut body: Value,
        now: Timestamp,
    ) -> Result<Written, Failure> {
        rules::check_type(&scope.kind, &scope.version, &mut body)?;
        if self.store.get(&scope.key(name)).is_none() && scope.kind.create_on_update && part == Part::Main {
            let uid = meta::text(&body, "uid");
            if !uid.is_empty() {
                let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: ");
                return Err(Failure::conflict(&scope.kind, name, &why));
            }
            meta::unset(&mut body, "resourceVersion");
            return self.create(scope, body, now).map(Written::Created);
        }
        self.replace(scope, name, part, Via::Put, |_| Ok(body), now).map(Written::Updated)
    }

    /// PATCH of an object or of its status.
    pub(super) fn patch(
        &mut self,
        scope: &Scope,
        name: &str,
        part: Part,
        patch: &Patch,
        now: Timestamp,
    ) -> Result<Value, Failure> {
        let apply = |old: &Value| {
            let mut new = patch.apply(old)?;
            rules::check_type(&scope.kind, &scope.version, &mut new)?;
            Ok(new)
        };
        self.replace(scope, name, part, Via::Patch, apply, now)
    }

    fn replace(
        &mut self,
        scope: &Scope,
        name: &str,
        part: Part,
        via: Via,
        change: impl FnOnce(&Value) -> Result<Value, Failure>,
        now: Timestamp,
    ) -> Result<Value, Failure> {
        let stored = self.stored(scope, name)?;
        let new = to_storage(scope, change(&present(scope, &stored))?);
        let old = in_version(scope, &stored);
        let new = rules::update(&scope.kind, &scope.version, &old, new, part, via)?;
        let new = in_storage_version(scope, new);
        if new == *stored {
            return Ok(present(scope, &stored));
        }
        let key = scope.key(name);
        let over = meta::is_deleting(&new)
            && meta::get(&new, "deletionGracePeriodSeconds").and_then(Value::as_i64) == Some(0)
            && meta::finalizers(&new).is_empty();
        if over {
            self.remove(&key);
            return Ok(present(scope, &new));
        }
        let written = self.store.put(key.clone(), new);
        if scope.kind.nature == Nature::Definition && part == Part::Main {
            self.serve(&key, &written, now);
        }
        Ok(present(scope, &written))
    }

    /// POST to `pods/<name>/binding`.
    pub(super) fn bind(
        &mut self,
        scope: &Scope,
        name: &str,
        binding: &Value,
        now: Timestamp,
    ) -> Result<Value, Failure> {
        if meta::text(binding, "name") != name {
            return Err(Failure::bad_request("name in URL does not match name in Binding object"));
        }
        let pod = self.stored(scope, name)?;
        let bound = pods::bind(&pod, binding, &seconds(now))?;
        self.store.put(scope.key(name), bound);
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
    }

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
            let end = end.checked_sub(SignedDuration::from_secs(granted.saturating_sub(shorter))).unwrap_or(now);
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

    fn remove(&mut self, key: &Key) {
        self.store.remove(key);
        if !key.namespace.is_empty() {
            self.sweep(&key.namespace);
        }
    }
}

/// A time as Kubernetes writes it.
pub(super) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
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

/// The object as a client of that version sees it.
pub(super) fn present(scope: &Scope, stored: &Value) -> Value {
    if scope.kind.nature == Nature::Event && !scope.kind.group.is_empty() {
        return events::to_new(stored);
    }
    in_version(scope, stored)
}

/// The object as the rules see it: in its stored shape, under the client's version.
fn in_version(scope: &Scope, stored: &Value) -> Value {
    let mut object = stored.clone();
    if scope.kind.is_custom()
        && let Some(map) = object.as_object_mut()
    {
        map.insert("apiVersion".to_owned(), scope.kind.api_version(&scope.version).into());
    }
    object
}

fn in_storage_version(scope: &Scope, mut object: Value) -> Value {
    if scope.kind.is_custom()
        && let Some(map) = object.as_object_mut()
    {
        map.insert("apiVersion".to_owned(), scope.kind.api_version(&scope.kind.storage_version).into());
    }
    object
}

/// The stored shape of an object that a client sent.
fn to_storage(scope: &Scope, object: Value) -> Value {
    if scope.kind.nature == Nature::Event && !scope.kind.group.is_empty() {
        return events::from_new(&object);
    }
    object
}
