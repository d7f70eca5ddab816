//! WATCH: a position in the history, and what a client sees from there on.

use std::sync::Arc;

use serde_json::{Value, json};

use super::api::{Api, Scope, present};
use super::failure::Failure;
use super::list;
use super::meta;
use super::selector::{Fields, Labels};
use super::store::Change;
use super::url::Query;

/// One client's view of the changes of one kind.
#[derive(Debug)]
pub(super) struct Watch {
    scope: Scope,
    labels: Labels,
    fields: Fields,
    position: u64,
    first: Vec<Value>,
    over: bool,
}

impl Watch {
    /// Begins where the query says: at a resourceVersion, or with all objects there are.
    pub(super) fn start(api: &Api, scope: Scope, query: &Query) -> Result<Self, Failure> {
        let labels = Labels::parse(query.get("labelSelector"))?;
        let fields = Fields::parse(query.get("fieldSelector"), &scope.kind, &scope.version)?;
        let asked = list::version(query)?;
        let listing = query.is_true("sendInitialEvents");
        let mut watch = Self { scope, labels, fields, position: 0, first: Vec::new(), over: false };
        match asked {
            Some(version) if !listing => watch.position = version,
            _ => {
                watch.position = api.store.revision();
                let namespace = (!watch.scope.namespace.is_empty()).then_some(watch.scope.namespace.as_str());
                watch.first = api
                    .store
                    .range(&watch.scope.kind.stored_as, namespace)
                    .filter(|(_, object)| watch.selects(object))
                    .map(|(_, object)| frame("ADDED", &present(&watch.scope, object)))
                    .collect();
                if listing {
                    let mut end = watch.bookmark();
                    if let Some(object) = end.get_mut("object") {
                        meta::set(object, "annotations", json!({"k8s.io/initial-events-end": "true"}));
                    }
                    watch.first.push(end);
                }
            }
        }
        Ok(watch)
    }

    fn selects(&self, object: &Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }

    /// Whether the watch has told the client to list again.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// What happened since the last call.
    pub(super) fn advance(&mut self, api: &Api) -> Vec<Value> {
        let mut frames = std::mem::take(&mut self.first);
        match api.store.since(self.position) {
            Ok(changes) => {
                frames.extend(changes.filter_map(|change| self.see(change)));
                self.position = self.position.max(api.store.revision());
            }
            Err(compacted) => {
                self.over = true;
                let why = format!("too old resource version: {} ({})", self.position, compacted.oldest);
                frames.push(frame("ERROR", &Failure::expired(why).to_status()));
            }
        }
        frames
    }

    fn see(&self, change: &Change) -> Option<Value> {
        let here = change.key.resource == self.scope.kind.stored_as
            && (self.scope.namespace.is_empty() || change.key.namespace == self.scope.namespace);
        if !here {
            return None;
        }
        let selected = |object: &Option<Arc<Value>>| object.clone().filter(|object| self.selects(object));
        let (kind, object) = match (selected(&change.before), selected(&change.after)) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", Value::clone(&after)),
            (Some(_), Some(after)) => ("MODIFIED", Value::clone(&after)),
            (Some(before), None) => {
                let mut last = Value::clone(&before);
                meta::set(&mut last, "resourceVersion", change.revision.to_string());
                ("DELETED", last)
            }
        };
        Some(frame(kind, &present(&self.scope, &object)))
    }

    /// Tells the client how far it is, so that it can come back there.
    pub(super) fn bookmark(&self) -> Value {
        frame(
            "BOOKMARK",
            &json!({
                "kind": self.scope.kind.kind,
                "apiVersion": self.scope.kind.api_version(&self.scope.version),
                "metadata": {"resourceVersion": self.position.to_string(), "creationTimestamp": null},
            }),
        )
    }
}

fn frame(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}
