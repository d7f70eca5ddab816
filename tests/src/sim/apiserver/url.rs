//! Paths and queries of the Kubernetes API.

use std::fmt;

/// What a request wants, in the words of Kubernetes' access rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Reads one object, or something that is no object.
    Get,
    /// Reads a collection.
    List,
    /// Follows a collection.
    Watch,
    /// Creates an object.
    Create,
    /// Replaces an object.
    Update,
    /// Changes an object.
    Patch,
    /// Deletes an object.
    Delete,
    /// Deletes a collection.
    DeleteCollection,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        })
    }
}

/// A resource that a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// API group; empty for the core group.
    pub(super) group: String,
    /// Version.
    pub(super) version: String,
    /// Namespace; empty if the path names none.
    pub(super) namespace: String,
    /// Plural name of the kind.
    pub(super) resource: String,
    /// Name of the object; empty for a collection.
    pub(super) name: String,
    /// `status`, `binding`; empty for the object itself.
    pub(super) subresource: String,
}

impl Place {
    /// The resource behind a path; `None` for discovery, health and everything else.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, resource, name, subresource) = match rest {
            // The namespace itself, and its own subresources, are objects of the cluster.
            ["namespaces"] => ("", "namespaces", "", ""),
            ["namespaces", name] => ("", "namespaces", *name, ""),
            ["namespaces", name, sub @ ("status" | "finalize")] => ("", "namespaces", *name, *sub),
            ["namespaces", namespace, resource] => (*namespace, *resource, "", ""),
            ["namespaces", namespace, resource, name] => (*namespace, *resource, *name, ""),
            ["namespaces", namespace, resource, name, sub] => (*namespace, *resource, *name, *sub),
            [resource] => ("", *resource, "", ""),
            [resource, name] => ("", *resource, *name, ""),
            [resource, name, sub] => ("", *resource, *name, *sub),
            _ => return None,
        };
        if resource.is_empty() || version.is_empty() {
            return None;
        }
        let owned = str::to_owned;
        Some(Self {
            group: owned(group),
            version: owned(version),
            namespace: owned(namespace),
            resource: owned(resource),
            name: owned(name),
            subresource: owned(subresource),
        })
    }
}

/// A decoded query string.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=b&c=d`.
    pub(super) fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of a parameter; empty if there is none.
    pub(super) fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }

    /// Whether a boolean parameter is set, in the spellings that Go takes.
    pub(super) fn is_true(&self, key: &str) -> bool {
        matches!(self.get(key), "1" | "t" | "T" | "true" | "TRUE" | "True")
    }
}

/// The verb of a request; `None` for methods that the API does not have.
pub(super) fn verb(method: &str, place: Option<&Place>, query: &Query) -> Option<Verb> {
    let collection = place.is_some_and(|place| place.name.is_empty());
    Some(match method {
        "GET" if collection && query.is_true("watch") => Verb::Watch,
        "GET" if collection => Verb::List,
        "GET" | "HEAD" => Verb::Get,
        "POST" => Verb::Create,
        "PUT" => Verb::Update,
        "PATCH" => Verb::Patch,
        "DELETE" if collection => Verb::DeleteCollection,
        "DELETE" => Verb::Delete,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_resources() {
        let table = [
            ("/api/v1/pods", Some(["", "v1", "", "pods", "", ""])),
            ("/api/v1/namespaces", Some(["", "v1", "", "namespaces", "", ""])),
            ("/api/v1/namespaces/a", Some(["", "v1", "", "namespaces", "a", ""])),
            ("/api/v1/namespaces/a/status", Some(["", "v1", "", "namespaces", "a", "status"])),
            ("/api/v1/namespaces/a/pods", Some(["", "v1", "a", "pods", "", ""])),
            ("/api/v1/namespaces/a/pods/p/status", Some(["", "v1", "a", "pods", "p", "status"])),
            ("/api/v1/nodes/n/status", Some(["", "v1", "", "nodes", "n", "status"])),
            ("/apis/x.io/v1/namespaces/a/foos/f", Some(["x.io", "v1", "a", "foos", "f", ""])),
            ("/apis/x.io/v1", None),
            ("/api", None),
            ("/version", None),
            ("//", None),
            ("/api/v1//x", None),
            ("/api/v1/namespaces/a/pods/p/status/more", None),
        ];
        for (path, expected) in table {
            let place = Place::parse(path);
            let found = place.as_ref().map(|place| {
                [
                    &place.group,
                    &place.version,
                    &place.namespace,
                    &place.resource,
                    &place.name,
                    &place.subresource,
                ]
                .map(String::as_str)
            });
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn verbs_follow_method_and_path() {
        let pods = Place::parse("/api/v1/pods");
        let pod = Place::parse("/api/v1/namespaces/a/pods/p");
        let watch = Query::parse("watch=true&x=a%3Db");
        assert_eq!(watch.get("x"), "a=b");
        assert_eq!(verb("GET", pods.as_ref(), &watch), Some(Verb::Watch));
        assert_eq!(verb("GET", pods.as_ref(), &Query::default()), Some(Verb::List));
        assert_eq!(verb("GET", pod.as_ref(), &watch), Some(Verb::Get));
        assert_eq!(verb("DELETE", pods.as_ref(), &Query::default()), Some(Verb::DeleteCollection));
        assert_eq!(verb("OPTIONS", pod.as_ref(), &Query::default()), None);
    }
}
