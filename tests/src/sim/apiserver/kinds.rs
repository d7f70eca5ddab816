//! Which kinds the server knows: the built-in ones, and those that CustomResourceDefinitions add.

use std::sync::Arc;

use serde_json::Value;

use super::access;
use super::store::ResourceId;

/// What sets a kind apart from a plain object: rules that kube-apiserver has in code, not in data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    /// Metadata rules only.
    Plain,
    /// Graceful deletion, binding, a mostly immutable spec.
    Pod,
    /// Like `Plain`, with a status of its own.
    Node,
    /// Deletes what is inside it first.
    Namespace,
    /// Served in two shapes, `v1` and `events.k8s.io/v1`.
    Event,
    /// `stringData` is folded into `data`.
    Secret,
    /// Deletion answers with the object, not with a Status.
    ServiceAccount,
    /// Adds kinds.
    Definition,
    /// Added by a definition.
    Custom,
}

/// One served version of a kind.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Version {
    /// `v1`, `v1alpha1`.
    pub(super) name: String,
    /// Whether `/status` exists, so that the main resource ignores status.
    pub(super) status: bool,
    /// Structural schema (`openAPIV3Schema`) of a custom resource.
    pub(super) schema: Option<Value>,
    /// Further field selectors of a custom resource (`selectableFields`), dotted.
    pub(super) selectable: Vec<String>,
}

/// One kind of object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kind {
    /// API group; empty for the core group.
    pub(super) group: String,
    /// `Pod`.
    pub(super) kind: String,
    /// `PodList`.
    pub(super) list_kind: String,
    /// `pods`.
    pub(super) plural: String,
    /// `pod`; what kubectl takes, too.
    pub(super) singular: String,
    /// `po`.
    pub(super) short_names: Vec<String>,
    /// Whether objects live in namespaces.
    pub(super) namespaced: bool,
    /// Special rules.
    pub(super) nature: Nature,
    /// Served versions, the preferred one first.
    pub(super) versions: Vec<Version>,
    /// Version in which objects are stored.
    pub(super) storage_version: String,
    /// Where objects are stored; another kind's place if this is a second face of it.
    pub(super) stored_as: ResourceId,
    /// Whether PUT on a missing object creates it.
    pub(super) create_on_update: bool,
    /// Whether PUT without resourceVersion overwrites whatever is there.
    pub(super) unconditional_update: bool,
}

impl Kind {
    fn builtin(
        group: &str,
        version: &str,
        kind: &str,
        plural: &str,
        short: &[&str],
        namespaced: bool,
    ) -> Self {
        Self {
            group: group.to_owned(),
            kind: kind.to_owned(),
            list_kind: format!("{kind}List"),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            short_names: short.iter().map(|&name| name.to_owned()).collect(),
            namespaced,
            nature: Nature::Plain,
            versions: vec![Version {
                name: version.to_owned(),
                status: false,
                schema: None,
                selectable: Vec::new(),
            }],
            storage_version: version.to_owned(),
            stored_as: ResourceId::new(group, plural),
            create_on_update: false,
            unconditional_update: true,
        }
    }

    fn nature(mut self, nature: Nature) -> Self {
        self.nature = nature;
        self
    }

    fn with_status(mut self) -> Self {
        for version in &mut self.versions {
            version.status = true;
        }
        self
    }

    /// `pods`, or `leases.coordination.k8s.io`.
    pub(super) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Pod`, or `Lease.coordination.k8s.io`.
    pub(super) fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// The value of `apiVersion` for one of the versions.
    pub(super) fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// The served version of that name.
    pub(super) fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }

    /// Whether objects come from a definition.
    pub(super) fn is_custom(&self) -> bool {
        self.nature == Nature::Custom
    }

    /// The kind that a CustomResourceDefinition describes; `None` if it serves nothing.
    pub(super) fn from_definition(definition: &Value) -> Option<Self> {
        let spec = definition.get("spec")?;
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let names = spec.get("names")?;
        let group = text(spec, "group")?;
        let kind = text(names, "kind")?;
        let plural = text(names, "plural")?;
        let listed = spec.get("versions")?.as_array()?;
        let is = |version: &Value, key: &str| version.get(key).and_then(Value::as_bool).unwrap_or(false);
        let mut versions: Vec<Version> = listed
            .iter()
            .filter(|version| is(version, "served"))
            .filter_map(|version| {
                Some(Version {
                    name: text(version, "name")?,
                    status: version.pointer("/subresources/status").is_some(),
                    schema: version.pointer("/schema/openAPIV3Schema").cloned(),
                    selectable: version
                        .get("selectableFields")
                        .and_then(Value::as_array)
                        .into_iter()
                        .flatten()
                        .filter_map(|field| {
                            Some(field.get("jsonPath")?.as_str()?.trim_start_matches('.').to_owned())
                        })
                        .collect(),
                })
            })
            .collect();
        versions.sort_by_key(|version| std::cmp::Reverse(priority(&version.name)));
        let storage = listed.iter().find(|version| is(version, "storage"))?;
        if versions.is_empty() {
            return None;
        }
        Some(Self {
            stored_as: ResourceId::new(&group, &plural),
            list_kind: text(names, "listKind").unwrap_or_else(|| format!("{kind}List")),
            singular: text(names, "singular").unwrap_or_else(|| kind.to_lowercase()),
            short_names: names
                .get("shortNames")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|name| Some(name.as_str()?.to_owned()))
                .collect(),
            namespaced: text(spec, "scope").as_deref() == Some("Namespaced"),
            nature: Nature::Custom,
            versions,
            storage_version: text(storage, "name")?,
            create_on_update: false,
            unconditional_update: false,
            group,
            kind,
            plural,
        })
    }
}

/// Kubernetes' order of version names: `v2` over `v1` over `v1beta2` over `v1alpha1` over anything else.
fn priority(version: &str) -> (u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (major, rest) = rest.split_at(digits);
    let Ok(major) = major.parse() else { return (0, 0, 0) };
    let stage = |name: &str| rest.strip_prefix(name).and_then(|minor| minor.parse().ok());
    match (rest, stage("beta"), stage("alpha")) {
        ("", _, _) => (3, major, 0),
        (_, Some(minor), _) => (2, major, minor),
        (_, _, Some(minor)) => (1, major, minor),
        _ => (0, 0, 0),
    }
}

/// Every kind that the server serves.
#[derive(Debug, Clone)]
pub(super) struct Kinds(Vec<Arc<Kind>>);

impl Kinds {
    /// The kinds that no definition has to add.
    pub(super) fn builtin() -> Self {
        let core = |kind: &str, plural: &str, short: &[&str], namespaced: bool| {
            Kind::builtin("", "v1", kind, plural, short, namespaced)
        };
        let mut leases = Kind::builtin("coordination.k8s.io", "v1", "Lease", "leases", &[], true);
        leases.create_on_update = true;
        leases.unconditional_update = false;
        let mut events = core("Event", "events", &["ev"], true).nature(Nature::Event);
        events.create_on_update = true;
        let mut new_events =
            Kind::builtin("events.k8s.io", "v1", "Event", "events", &["ev"], true).nature(Nature::Event);
        new_events.create_on_update = true;
        new_events.stored_as = events.stored_as.clone();
        let mut definitions = Kind::builtin(
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            &["crd", "crds"],
            false,
        )
        .nature(Nature::Definition)
        .with_status();
        definitions.unconditional_update = false;
        let rights = |kind: &str, plural: &str, namespaced: bool| {
            let mut kind = Kind::builtin(access::GROUP, "v1", kind, plural, &[], namespaced);
            kind.create_on_update = true;
            kind
        };
        let kinds = [
            core("Namespace", "namespaces", &["ns"], false).nature(Nature::Namespace).with_status(),
            core("Node", "nodes", &["no"], false).nature(Nature::Node).with_status(),
            core("Pod", "pods", &["po"], true).nature(Nature::Pod).with_status(),
            core("ConfigMap", "configmaps", &["cm"], true),
            core("Secret", "secrets", &[], true).nature(Nature::Secret),
            core("ServiceAccount", "serviceaccounts", &["sa"], true).nature(Nature::ServiceAccount),
            events,
            new_events,
            leases,
            definitions,
            Kind::builtin("apps", "v1", "StatefulSet", "statefulsets", &["sts"], true).with_status(),
            rights("ClusterRole", "clusterroles", false),
            rights("ClusterRoleBinding", "clusterrolebindings", false),
            rights("Role", "roles", true),
            rights("RoleBinding", "rolebindings", true),
        ];
        Self(kinds.into_iter().map(Arc::new).collect())
    }

    /// The kind behind a URL.
    pub(super) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        self.0
            .iter()
            .find(|kind| kind.group == group && kind.plural == plural && kind.version(version).is_some())
            .cloned()
    }

    /// The only kind of that nature in the core group or in its own.
    pub(super) fn of(&self, nature: Nature) -> Option<Arc<Kind>> {
        self.0.iter().find(|kind| kind.nature == nature).cloned()
    }

    /// Every kind.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.0.iter()
    }

    /// Serves a kind, in place of an older description of it.
    pub(super) fn insert(&mut self, kind: Kind) {
        self.remove(&kind.group, &kind.plural);
        self.0.push(Arc::new(kind));
    }

    /// Serves a kind no more.
    pub(super) fn remove(&mut self, group: &str, plural: &str) {
        self.0.retain(|kind| !(kind.group == group && kind.plural == plural));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_orders_them() {
        let mut names = ["v1alpha1", "v2", "v1", "foo", "v1beta2", "v10", "v1beta1"];
        names.sort_by_key(|name| std::cmp::Reverse(priority(name)));
        assert_eq!(names, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }
}
