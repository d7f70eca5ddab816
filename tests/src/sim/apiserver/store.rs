//! Objects, their revisions, and a bounded history: what etcd is to kube-apiserver.
//!
//! Nothing here knows about kinds, clocks or connections. Watches are positions in the history.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use super::meta;

/// Where objects of one kind are stored: API group and plural name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ResourceId {
    group: String,
    plural: String,
}

impl ResourceId {
    /// A place for objects of `plural` in `group`.
    pub(super) fn new(group: &str, plural: &str) -> Self {
        Self { group: group.to_owned(), plural: plural.to_owned() }
    }
}

/// Full name of one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Kind of object.
    pub(super) resource: ResourceId,
    /// Namespace; empty for objects of the cluster.
    pub(super) namespace: String,
    /// Name.
    pub(super) name: String,
}

/// One write.
#[derive(Debug, Clone)]
pub(super) struct Change {
    /// Revision that the write made.
    pub(super) revision: u64,
    /// Object that was written.
    pub(super) key: Key,
    /// State before, `None` if the write created the object.
    pub(super) before: Option<Arc<Value>>,
    /// State after, `None` if the write removed the object.
    pub(super) after: Option<Arc<Value>>,
}

/// The history does not reach back that far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Compacted {
    /// Oldest revision that a reader may still start from.
    pub(super) oldest: u64,
}

/// The objects.
#[derive(Debug, Clone)]
pub(super) struct Store {
    revision: u64,
    compacted: u64,
    capacity: usize,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Change>,
}

impl Store {
    /// An empty store that remembers the last `capacity` writes.
    pub(super) fn new(capacity: usize) -> Self {
        Self { revision: 1, compacted: 1, capacity, objects: BTreeMap::new(), history: VecDeque::new() }
    }

    /// Revision of the last write.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The object of that name.
    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// Writes an object, with its new revision as `metadata.resourceVersion`.
    pub(super) fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        meta::set(&mut object, "resourceVersion", self.revision.to_string());
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), Arc::clone(&object));
        self.remember(Change { revision: self.revision, key, before, after: Some(Arc::clone(&object)) });
        object
    }

    /// Removes an object and returns its last state.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let before = self.objects.remove(key)?;
        self.revision += 1;
        let change = Change {
            revision: self.revision,
            key: key.clone(),
            before: Some(Arc::clone(&before)),
            after: None,
        };
        self.remember(change);
        Some(before)
    }

    fn remember(&mut self, change: Change) {
        self.history.push_back(change);
        while self.history.len() > self.capacity {
            if let Some(forgotten) = self.history.pop_front() {
                self.compacted = forgotten.revision;
            }
        }
    }

    /// Objects of one kind, in one namespace or (`None`) in all, in order of namespace and name.
    pub(super) fn range(
        &self,
        resource: &ResourceId,
        namespace: Option<&str>,
    ) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        let first = Key {
            resource: resource.clone(),
            namespace: namespace.unwrap_or_default().to_owned(),
            name: String::new(),
        };
        let bounds = (resource.clone(), namespace.map(str::to_owned));
        self.objects.range(first..).take_while(move |(key, _)| {
            key.resource == bounds.0 && bounds.1.as_ref().is_none_or(|namespace| key.namespace == *namespace)
        })
    }

    /// Objects of one kind as they were at a revision.
    pub(super) fn range_at(
        &self,
        resource: &ResourceId,
        namespace: Option<&str>,
        revision: u64,
    ) -> Result<BTreeMap<Key, Arc<Value>>, Compacted> {
        let mut objects: BTreeMap<Key, Arc<Value>> =
            self.range(resource, namespace).map(|(key, object)| (key.clone(), Arc::clone(object))).collect();
        let undone: Vec<&Change> = self.since(revision)?.collect();
        for change in undone.into_iter().rev() {
            let concerned = change.key.resource == *resource
                && namespace.is_none_or(|namespace| change.key.namespace == namespace);
            match &change.before {
                Some(before) if concerned => {
                    objects.insert(change.key.clone(), Arc::clone(before));
                }
                None if concerned => {
                    objects.remove(&change.key);
                }
                _ => {}
            }
        }
        Ok(objects)
    }

    /// Writes after a revision, oldest first.
    pub(super) fn since(&self, revision: u64) -> Result<impl Iterator<Item = &Change>, Compacted> {
        if revision < self.compacted {
            return Err(Compacted { oldest: self.compacted });
        }
        let start = self.history.partition_point(|change| change.revision <= revision);
        Ok(self.history.range(start..))
    }

    /// Forgets the history, as etcd does every five minutes under kube-apiserver.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.revision;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        let (namespace, name) = name.split_once('/').unwrap();
        Key { resource: ResourceId::new("", "pods"), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn names(objects: impl IntoIterator<Item = Key>) -> Vec<String> {
        objects.into_iter().map(|key| format!("{}/{}", key.namespace, key.name)).collect()
    }

    #[test]
    fn a_write_stamps_the_object_with_its_revision() {
        let mut store = Store::new(10);
        let object = store.put(key("a/x"), json!({"metadata": {"name": "x"}}));
        assert_eq!(object["metadata"]["resourceVersion"], store.revision().to_string());
        let again = store.put(key("a/x"), json!({"metadata": {"name": "x"}}));
        assert_ne!(object["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"]);
    }

    #[test]
    fn a_range_stays_inside_its_namespace_and_kind() {
        let mut store = Store::new(10);
        for name in ["a/x", "b/x", "b/y", "ba/z"] {
            store.put(key(name), json!({"metadata": {}}));
        }
        let other = Key { resource: ResourceId::new("", "podz"), ..key("b/q") };
        store.put(other, json!({"metadata": {}}));
        let pods = ResourceId::new("", "pods");
        assert_eq!(names(store.range(&pods, Some("b")).map(|(key, _)| key.clone())), ["b/x", "b/y"]);
        assert_eq!(store.range(&pods, None).count(), 4);
    }

    #[test]
    fn the_past_can_be_read_until_it_is_compacted() {
        let mut store = Store::new(4);
        store.put(key("a/x"), json!({"metadata": {}, "n": 1}));
        store.put(key("a/y"), json!({"metadata": {}}));
        let then = store.revision();
        store.put(key("a/x"), json!({"metadata": {}, "n": 2}));
        store.remove(&key("a/y"));
        store.put(key("a/z"), json!({"metadata": {}}));
        let pods = ResourceId::new("", "pods");
        let past = store.range_at(&pods, Some("a"), then).unwrap();
        assert_eq!(past[&key("a/x")]["n"], 1);
        assert_eq!(names(past.into_keys()), ["a/x", "a/y"]);
        assert_eq!(store.since(then).unwrap().count(), 3);

        store.put(key("a/z"), json!({"metadata": {}}));
        store.put(key("a/z"), json!({"metadata": {}}));
        assert!(store.since(then).is_err());
        assert!(store.range_at(&pods, Some("a"), then).is_err());
    }

    #[test]
    fn compaction_leaves_only_the_present() {
        let mut store = Store::new(10);
        store.put(key("a/x"), json!({"metadata": {}}));
        let before = store.revision();
        store.put(key("a/x"), json!({"metadata": {}}));
        store.compact();
        assert_eq!(store.since(before).err(), Some(Compacted { oldest: before + 1 }));
        assert_eq!(store.since(before + 1).unwrap().count(), 0);
    }
}
