//! The verbs, as transactions over kinds and store. The caller holds the lock and brings the time.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::access::Tokens;
use super::failure::Failure;
use super::kinds::{Kind, Kinds, Nature};
use super::patch::Patch;
use super::rules::{self, Birth, Part, Via};
use super::store::{Key, Store};
use super::{definitions, events, meta, pods};

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
    /// Where the object of that name is stored.
    pub(super) fn key(&self, name: &str) -> Key {
        Key {
            resource: self.kind.stored_as.clone(),
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }
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
    /// Tokens that stand for users.
    pub(super) tokens: Tokens,
    random: RandomState,
    born: u64,
}

impl Api {
    /// A server that remembers `history` writes, with the namespaces that every cluster has.
    pub(super) fn new(history: usize, now: Timestamp) -> Self {
        let mut api = Self {
            kinds: Kinds::builtin(),
            store: Store::new(history),
            tokens: Tokens::default(),
            random: RandomState::new(),
            born: 0,
        };
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

    /// The object as it is stored.
    pub(super) fn stored(&self, scope: &Scope, name: &str) -> Result<Arc<Value>, Failure> {
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

    /// Where the namespace object of that name is stored.
    pub(super) fn namespace(&self, name: &str) -> Option<Key> {
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
            self.store.put(key.clone(), definitions::established(definition, &seconds(now)));
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
}

/// A time as Kubernetes writes it.
pub(super) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
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
