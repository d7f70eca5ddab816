//! What a process that stays knows of pods and NADs already, so that it need not ask.
//!
//! Somebody else fills it, by a watch. Of a pod that has been made anew, or that is not here yet, nothing is known:
//! the API server is asked then, so that being late is no error.

use std::collections::HashMap;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::kubernetes::Pod;
use crate::nad::Nad;

/// Namespace and name.
type Key = (String, String);

/// Pods and NADs that are known.
#[derive(Debug, Default)]
pub struct Known {
    pods: RwLock<HashMap<Key, Pod>>,
    nads: RwLock<HashMap<Key, Nad>>,
}

impl Known {
    /// The pod of this name, if it is known with this UID.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str, uid: &str) -> Option<Pod> {
        read(&self.pods).get(&key(namespace, name)).filter(|pod| pod.uid == uid).cloned()
    }

    /// The NAD, if it is known.
    #[must_use]
    pub fn nad(&self, namespace: &str, name: &str) -> Option<Nad> {
        read(&self.nads).get(&key(namespace, name)).cloned()
    }

    /// Every pod that is known.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        read(&self.pods).values().cloned().collect()
    }

    /// Learns of a pod, or of its change.
    pub fn learn_pod(&self, pod: Pod) {
        write(&self.pods).insert(key(&pod.namespace, &pod.name), pod);
    }

    /// Forgets a pod.
    pub fn forget_pod(&self, namespace: &str, name: &str) {
        write(&self.pods).remove(&key(namespace, name));
    }

    /// Learns of all pods at once; others are forgotten.
    pub fn learn_all_pods(&self, pods: Vec<Pod>) {
        let all = pods.into_iter().map(|pod| (key(&pod.namespace, &pod.name), pod)).collect();
        *write(&self.pods) = all;
    }

    /// Learns of a NAD, or of its change.
    pub fn learn_nad(&self, nad: Nad) {
        write(&self.nads).insert(key(&nad.namespace, &nad.name), nad);
    }

    /// Forgets a NAD.
    pub fn forget_nad(&self, namespace: &str, name: &str) {
        write(&self.nads).remove(&key(namespace, name));
    }

    /// Learns of all NADs at once; others are forgotten.
    pub fn learn_all_nads(&self, nads: Vec<Nad>) {
        let all = nads.into_iter().map(|nad| (key(&nad.namespace, &nad.name), nad)).collect();
        *write(&self.nads) = all;
    }
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

// Nothing panics while it holds one of these locks; were it so, the maps would still be whole.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_its_uid() {
        let known = Known::default();
        let pod = |name: &str, uid: &str| Pod {
            namespace: "ns".into(),
            name: name.into(),
            uid: uid.into(),
            ..Pod::default()
        };
        known.learn_pod(pod("a", "1"));
        assert!(known.pod("ns", "a", "1").is_some());
        assert!(known.pod("ns", "a", "2").is_none() && known.pod("other", "a", "1").is_none());
        known.learn_all_pods(vec![pod("b", "3")]);
        assert!(known.pod("ns", "a", "1").is_none());
        assert_eq!(known.pods().len(), 1);
        known.forget_pod("ns", "b");
        assert!(known.pods().is_empty());
    }
}
