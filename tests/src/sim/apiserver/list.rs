//! LIST: selectors, pages, and the past that a page token holds on to.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::{Api, Scope, present};
use super::failure::Failure;
use super::meta;
use super::selector::{Fields, Labels};
use super::store::{Compacted, Key};
use super::url::Query;

/// What a `continue` token says: go on after this object, in the state of that revision.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    v: String,
    rv: u64,
    start: (String, String),
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

/// A page of objects.
#[derive(Debug)]
pub(super) struct Page {
    /// The objects, as the client's version shows them.
    pub(super) items: Vec<Value>,
    revision: u64,
    token: Option<String>,
    remaining: Option<usize>,
}

impl Api {
    /// The page of objects that a LIST asks for.
    pub(super) fn list(&self, scope: &Scope, query: &Query) -> Result<Page, Failure> {
        let labels = Labels::parse(query.get("labelSelector"))?;
        let fields = Fields::parse(query.get("fieldSelector"), &scope.kind, &scope.version)?;
        let limit = query.get("limit").parse::<usize>().ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
        let asked = version(query)?;
        let current = self.store.revision();
        let token = match query.get("continue") {
            "" => None,
            _ if asked.is_some() => {
                return Err(Failure::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            text => Some(parse_token(text)?),
        };
        if let Some(asked) = asked.filter(|&asked| asked > current) {
            return Err(Failure::too_large_version(asked, current));
        }
        let exact = asked.filter(|_| query.get("resourceVersionMatch") == "Exact");
        let revision = token.as_ref().map(|token| token.rv).or(exact).unwrap_or(current);
        let objects = self.objects_at(scope, revision).map_err(|_| {
            if token.is_some() {
                Failure::expired(
                    "The provided continue parameter is too old to display a consistent list result. \
                     You must start a new list without the continue parameter.",
                )
            } else {
                Failure::expired(format!("The resourceVersion for the provided list is too old: {revision}"))
            }
        })?;

        let after = token.map(|token| token.start);
        let mut left = objects
            .iter()
            .filter(|(key, _)| {
                after.as_ref().is_none_or(|after| (&key.namespace, &key.name) > (&after.0, &after.1))
            })
            .filter(|(_, object)| labels.matches(object) && fields.matches(object))
            .peekable();
        let mut items = Vec::new();
        let mut last = None;
        while items.len() < limit
            && let Some((key, object)) = left.next()
        {
            items.push(present(scope, object));
            last = Some((key.namespace.clone(), key.name.clone()));
        }
        let token = left.peek().is_some().then(|| last.map(|start| write_token(revision, start))).flatten();
        let unselected = labels == Labels::default() && fields == Fields::default();
        let remaining = (token.is_some() && unselected).then(|| left.count());
        Ok(Page { items, revision, token, remaining })
    }

    fn objects_at(&self, scope: &Scope, revision: u64) -> Result<BTreeMap<Key, Arc<Value>>, Compacted> {
        let namespace = (!scope.namespace.is_empty()).then_some(scope.namespace.as_str());
        if revision == self.store.revision() {
            let now = self.store.range(&scope.kind.stored_as, namespace);
            return Ok(now.map(|(key, object)| (key.clone(), Arc::clone(object))).collect());
        }
        self.store.range_at(&scope.kind.stored_as, namespace, revision)
    }
}

impl Page {
    /// Namespace and name of the objects.
    pub(super) fn names(&self) -> Vec<(String, String)> {
        let name =
            |item: &Value| (meta::text(item, "namespace").to_owned(), meta::text(item, "name").to_owned());
        self.items.iter().map(name).collect()
    }

    /// The list object. Items of built-in kinds bear no type, those of custom kinds do.
    pub(super) fn into_list(mut self, scope: &Scope) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Value::Object(metadata) = &mut metadata {
            if self.token.is_some() || scope.kind.is_custom() {
                metadata.insert("continue".to_owned(), self.token.unwrap_or_default().into());
            }
            if let Some(remaining) = self.remaining {
                metadata.insert("remainingItemCount".to_owned(), remaining.into());
            }
        }
        if !scope.kind.is_custom() {
            for item in self.items.iter_mut().filter_map(Value::as_object_mut) {
                item.remove("kind");
                item.remove("apiVersion");
            }
        }
        json!({
            "kind": scope.kind.list_kind,
            "apiVersion": scope.kind.api_version(&scope.version),
            "metadata": metadata,
            "items": self.items,
        })
    }
}

/// The `resourceVersion` of a LIST or WATCH; `None` if there is none or it is `0`.
pub(super) fn version(query: &Query) -> Result<Option<u64>, Failure> {
    match query.get("resourceVersion") {
        "" => Ok(None),
        text => text.parse().map(|version| Some(version).filter(|&version| version > 0)).map_err(|_| {
            Failure::internal(format!(
                "resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
            ))
        }),
    }
}

fn parse_token(text: &str) -> Result<Token, Failure> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    bytes
        .and_then(|bytes| serde_json::from_slice::<Token>(&bytes).ok())
        .filter(|token| token.v == TOKEN_VERSION)
        .ok_or_else(|| Failure::bad_request("invalid continue token: continue key is not valid"))
}

fn write_token(rv: u64, start: (String, String)) -> String {
    let token = Token { v: TOKEN_VERSION.to_owned(), rv, start };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}
