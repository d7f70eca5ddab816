//! A pool: which addresses of a range are whose, as the cluster's `IPPool` object says.
//!
//! An address that has an entry is somebody's, one that has none is free, and an entry is made only by a write that is
//! conditional on the pool being as it was read. So an address never has two owners, whoever else follows the rule: the
//! peer does. An entry names a container, as the peer's do, or a node that keeps the address for its containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::range::Range;
use crate::tenant::Tenant;

/// What begins the `id` of an entry that names a node. No container ID has a colon.
const PREFIX: &str = "podrail:";
/// What precedes the name of a node that the API server did not know when it took the address.
const UNVERIFIED: char = '~';
/// What precedes the tenant for which an address is.
const FOR: char = '=';
const WANTED: &str = "wanted";
/// What begins the label by which a node hears that a pool wants addresses of it; the boot of its machine follows.
const LABEL: &str = "whereabouts.podrail.io/wanted-";
const CONDEMNED: &str = "condemned-";

/// An entry as it stands in the object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Container ID, or the node.
    #[serde(default)]
    pub id: String,
    /// `namespace/name` of the pod; empty for a node, which keeps the peer's reconciler off.
    #[serde(default)]
    pub podref: String,
    /// Interface; for a node's entry, what others want of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ifname: String,
}

/// A node in one life: from the start of its state to the loss of it, at a reboot at the latest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeLife {
    /// The node's name.
    pub node: String,
    /// Whether there is a Node object of the name that tells the same boot.
    pub verified: bool,
    /// Which boot of the machine, 8 hexadecimal digits.
    pub boot: String,
    /// Which state in that boot, 8 hexadecimal digits.
    pub life: String,
}

impl NodeLife {
    /// Reads what [`Display`](fmt::Display) writes, with or without a tenant behind it; `None` when it is something else.
    #[must_use]
    pub fn parse(id: &str) -> Option<Self> {
        let id = id.split_once(FOR).map_or(id, |(id, _)| id);
        let (name, token) = id.strip_prefix(PREFIX)?.rsplit_once(':')?;
        let (boot, life) = token.split_once('-')?;
        let (node, verified) = name.strip_prefix(UNVERIFIED).map_or((name, true), |node| (node, false));
        Some(Self { node: node.to_owned(), verified, boot: boot.to_owned(), life: life.to_owned() })
    }

    /// Whether the other is the same node, in whatever life.
    #[must_use]
    pub fn is_same_node(&self, other: &Self) -> bool {
        self.node == other.node
    }

    /// Whether it is the other's node before its machine was started anew. Of names that were not verified nothing
    /// follows: two machines may have the same.
    #[must_use]
    pub fn is_earlier_boot_of(&self, other: &Self) -> bool {
        self.is_same_node(other) && self.boot != other.boot && self.verified && other.verified
    }

    /// Whether the other is this very life, whether or not the name was verified.
    #[must_use]
    pub fn is_same_life(&self, other: &Self) -> bool {
        self.node == other.node && self.boot == other.boot && self.life == other.life
    }
}

impl fmt::Display for NodeLife {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.verified { String::new() } else { UNVERIFIED.to_string() };
        write!(f, "{PREFIX}{mark}{}:{}-{}", self.node, self.boot, self.life)
    }
}

/// What others want of a node's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// Nothing.
    None,
    /// To have it, if the node does not use it.
    Wanted,
    /// To take it, as the node has no Node object; the nonce tells one mark from the next.
    Condemned(String),
}

impl Mark {
    fn parse(text: &str) -> Self {
        match text.strip_prefix(CONDEMNED) {
            Some(nonce) => Self::Condemned(nonce.to_owned()),
            None if text == WANTED => Self::Wanted,
            None => Self::None,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Wanted => WANTED.to_owned(),
            Self::Condemned(nonce) => format!("{CONDEMNED}{nonce}"),
        }
    }
}

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A node keeps it for its containers.
    Node(NodeLife, Mark),
    /// No container has it, and only this tenant gets it.
    Tenant(Tenant),
    /// A container has it by the peer's doing.
    Pod(Entry),
}

impl Entry {
    /// The entry of a node's address, which the node keeps for a tenant or for whoever comes.
    #[must_use]
    pub fn of_node(node: &NodeLife, mark: &Mark, tenant: Option<&Tenant>) -> Self {
        let tenant = tenant.map(|tenant| format!("{FOR}{tenant}")).unwrap_or_default();
        Self { id: format!("{node}{tenant}"), podref: String::new(), ifname: mark.text() }
    }

    /// The entry of an address that waits for its tenant. It has no `podref` either: the peer's reconciler would remove
    /// it as soon as the pod is away, which is when it is needed.
    #[must_use]
    pub fn of_tenant(tenant: &Tenant) -> Self {
        Self { id: tenant_id(tenant), ..Self::default() }
    }

    /// For whom it is alone, on a node or waiting.
    #[must_use]
    pub fn tenant(&self) -> Option<Tenant> {
        let (_, tenant) = self.id.strip_prefix(PREFIX)?.split_once(FOR)?;
        Tenant::parse(tenant)
    }

    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> Owner {
        match (NodeLife::parse(&self.id), self.tenant()) {
            (Some(node), _) => Owner::Node(node, Mark::parse(&self.ifname)),
            (None, Some(tenant)) => Owner::Tenant(tenant),
            (None, None) => Owner::Pod(self.clone()),
        }
    }
}

/// How a tenant is named in entries and reservations.
#[must_use]
pub fn tenant_id(tenant: &Tenant) -> String {
    format!("{PREFIX}{FOR}{tenant}")
}

/// Entries to put and, where there is none, to remove.
pub type Change = BTreeMap<u128, Option<Entry>>;

/// The entries of an `IPPool`, as they were at some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool {
    /// The object's resourceVersion at that moment.
    pub version: String,
    /// Whether the object has a map of allocations at all.
    pub has_map: bool,
    /// Whether the API server keeps in the object who wrote which field.
    pub has_managers: bool,
    /// Whether the object has labels at all.
    pub has_labels: bool,
    /// The boots of which the labels say that something is wanted of their nodes.
    pub bells: BTreeSet<String>,
    /// The entries by offset.
    pub entries: BTreeMap<u128, Entry>,
}

impl Pool {
    /// Reads the object. An entry that is none by the peer's schema cannot be there, and one whose key is no offset
    /// stands for no address: it is left alone.
    #[must_use]
    pub fn parse(object: &Value) -> Self {
        let allocations = object.pointer("/spec/allocations").and_then(Value::as_object);
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
        let bell = |(key, _): (&String, &Value)| key.strip_prefix(LABEL).map(str::to_owned);
        let entry = |(key, value): (&String, &Value)| {
            Some((key.parse().ok()?, serde_json::from_value(value.clone()).unwrap_or_default()))
        };
        Self {
            version: object
                .pointer("/metadata/resourceVersion")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            has_map: allocations.is_some(),
            has_managers: object.pointer("/metadata/managedFields").is_some_and(|list| list != &json!([])),
            has_labels: labels.is_some(),
            bells: labels.into_iter().flatten().filter_map(bell).collect(),
            entries: allocations.into_iter().flatten().filter_map(entry).collect(),
        }
    }

    /// The JSON Patch (RFC 6902) that makes the change, if the pool is still at this version.
    #[must_use]
    pub fn patch(&self, change: &Change) -> Value {
        let mut operations =
            vec![json!({"op": "test", "path": "/metadata/resourceVersion", "value": self.version})];
        if !self.has_map {
            operations.push(json!({"op": "add", "path": "/spec/allocations", "value": {}}));
        }
        operations.extend(self.ring(change));
        operations.extend(self.operations(change));
        Value::Array(operations)
    }

    /// What makes the labels say which nodes have a wanted address once the change is made. They say nothing that the
    /// entries do not: a node can wait for a label without being told of all that becomes of the pool.
    fn ring(&self, change: &Change) -> Vec<Value> {
        let wanted = self.changed(change).wanted();
        let path = |boot: &String| format!("/metadata/labels/{}", label(boot).replace('/', "~1"));
        let mut operations = Vec::new();
        if !self.has_labels && !wanted.is_empty() {
            operations.push(json!({"op": "add", "path": "/metadata/labels", "value": {}}));
        }
        let (come, gone) = (wanted.difference(&self.bells), self.bells.difference(&wanted));
        operations.extend(come.map(|boot| json!({"op": "add", "path": path(boot), "value": ""})));
        operations.extend(gone.map(|boot| json!({"op": "remove", "path": path(boot)})));
        operations
    }

    /// The boots of the nodes that have a wanted address.
    #[must_use]
    pub fn wanted(&self) -> BTreeSet<String> {
        let boot = |entry: &Entry| match entry.owner() {
            Owner::Node(node, Mark::Wanted) if is_label_text(&node.boot) => Some(node.boot),
            Owner::Node(..) | Owner::Tenant(_) | Owner::Pod(_) => None,
        };
        self.entries.values().filter_map(boot).collect()
    }

    /// The JSON Patch that makes the change, if the addresses are as they were read, whatever else became of the pool.
    /// `None` when [it is no claim](Self::is_claim).
    ///
    /// An API server holds the test of a member that is not there for `null` (as the library that it uses does, and RFC
    /// 6902 does not). One that did not would refuse every such patch.
    #[must_use]
    pub fn claim(&self, change: &Change) -> Option<Value> {
        self.is_claim(change).then(|| {
            let test =
                |offset| json!({"op": "test", "path": path(offset), "value": self.entries.get(offset)});
            Value::Array(change.keys().map(test).chain(self.operations(change)).collect())
        })
    }

    fn operations(&self, change: &Change) -> Vec<Value> {
        let operation = |(offset, entry): (&u128, &Option<Entry>)| match entry {
            Some(entry) => json!({"op": "add", "path": path(offset), "value": entry}),
            None => json!({"op": "remove", "path": path(offset)}),
        };
        let mut operations: Vec<Value> = change.iter().map(operation).collect();
        // Three records for each entry, which nobody asks for and which take the server longer than the change itself.
        if self.has_managers {
            operations.push(json!({"op": "add", "path": "/metadata/managedFields", "value": [{}]}));
        }
        operations
    }

    /// Whether the change does nothing but to take addresses that are free, for whoever comes, or that wait for their
    /// tenant. The first address of a tenant is none: that it is free does not say that the tenant has no other by now.
    #[must_use]
    pub fn is_claim(&self, change: &Change) -> bool {
        let is_open = |(offset, new): (&u128, &Option<Entry>)| match (self.entries.get(offset), new) {
            (Some(old), Some(_)) => matches!(old.owner(), Owner::Tenant(_)),
            (None, Some(new)) => new.tenant().is_none(),
            (_, None) => false,
        };
        self.has_map && change.iter().all(is_open)
    }

    /// The pool as it is once the change is made.
    #[must_use]
    pub fn changed(&self, change: &Change) -> Self {
        let mut after = self.clone();
        for (offset, entry) in change {
            match entry {
                Some(entry) => after.entries.insert(*offset, entry.clone()),
                None => after.entries.remove(offset),
            };
        }
        after
    }

    /// Offsets of the range that nobody has, ascending.
    pub fn free<'a>(&'a self, range: &'a Range) -> impl Iterator<Item = u128> + 'a {
        range.offsets().filter(|offset| !self.entries.contains_key(offset))
    }

    /// How many addresses of the range somebody has.
    #[must_use]
    pub fn used(&self, range: &Range) -> u128 {
        self.entries.keys().filter(|offset| range.allows(**offset)).map(|_| 1).sum()
    }

    /// The nodes that keep addresses.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<NodeLife> {
        let node = |entry: &Entry| match entry.owner() {
            Owner::Node(node, _) => Some(node),
            Owner::Tenant(_) | Owner::Pod(_) => None,
        };
        self.entries.values().filter_map(node).collect()
    }
}

/// The label of a pool that wants addresses of a node of this boot.
#[must_use]
pub fn label(boot: &str) -> String {
    format!("{LABEL}{boot}")
}

/// Whether a boot can be in the name of a label: a pool whose labels are none is refused as a whole.
fn is_label_text(boot: &str) -> bool {
    (1..=16).contains(&boot.len()) && boot.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn path(offset: &u128) -> String {
    format!("/spec/allocations/{offset}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Value {
        json!({
            "metadata": {"resourceVersion": "7"},
            "spec": {"range": "10.0.0.0/24", "allocations": {
                "1": {"id": "c1", "podref": "ns/p", "ifname": "net1"},
                "2": {"id": "podrail:n-1:0a-0b", "podref": ""},
                "3": {"id": "podrail:~n:0a-0b", "podref": "", "ifname": "wanted"},
                "18446744073709551616": {"id": "podrail:n-1:0a-0b", "podref": "", "ifname": "condemned-x"},
                "oops": {"id": "c", "podref": "p"},
            }},
        })
    }

    #[test]
    fn owners_are_read_and_written_alike() {
        let pool = Pool::parse(&object());
        assert_eq!((pool.version.as_str(), pool.entries.len()), ("7", 4));
        assert!(matches!(pool.entries[&1].owner(), Owner::Pod(_)));
        for (offset, name, verified, mark) in [
            (2, "n-1", true, Mark::None),
            (3, "n", false, Mark::Wanted),
            (1 << 64, "n-1", true, Mark::Condemned("x".to_owned())),
        ] {
            let Owner::Node(node, found) = pool.entries[&offset].owner() else { panic!("{offset}") };
            assert_eq!((node.node.as_str(), node.verified, &found), (name, verified, &mark));
            assert_eq!(Entry::of_node(&node, &mark, None), pool.entries[&offset]);
            let tenant = Tenant::Pod { podref: "ns/web-0".into(), ifname: "net1".into() };
            let housed = Entry::of_node(&node, &mark, Some(&tenant));
            assert_eq!((housed.owner(), housed.tenant()), (Owner::Node(node, mark), Some(tenant.clone())));
            let kept = Entry::of_tenant(&tenant);
            assert_eq!((kept.owner(), kept.tenant()), (Owner::Tenant(tenant.clone()), Some(tenant)));
        }
        assert_eq!(pool.nodes().len(), 2);
        assert_eq!(Pool::parse(&json!({"metadata": {}, "spec": {}})), Pool::default());
    }

    #[test]
    fn a_patch_is_conditional() {
        let pool = Pool::parse(&object());
        let change = Change::from([(1, None), (5, Some(Entry { id: "c".into(), ..Entry::default() }))]);
        assert_eq!(
            pool.patch(&change),
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "add", "path": "/metadata/labels", "value": {}},
                {"op": "add", "path": "/metadata/labels/whereabouts.podrail.io~1wanted-0a", "value": ""},
                {"op": "remove", "path": "/spec/allocations/1"},
                {"op": "add", "path": "/spec/allocations/5", "value": {"id": "c", "podref": ""}},
            ])
        );
        assert_eq!(pool.claim(&change), None);
        let claim = Change::from([(5, Some(Entry { id: "c".into(), ..Entry::default() }))]);
        assert_eq!(
            pool.claim(&claim),
            Some(json!([
                {"op": "test", "path": "/spec/allocations/5", "value": null},
                {"op": "add", "path": "/spec/allocations/5", "value": {"id": "c", "podref": ""}},
            ]))
        );
        let tenant = Tenant::Claim { name: "ns/vm".into() };
        let kept = Entry::of_tenant(&tenant);
        let waiting = Pool { entries: BTreeMap::from([(5, kept)]), ..pool.clone() };
        assert_eq!(
            waiting.claim(&claim).unwrap()[0],
            json!({"op": "test", "path": "/spec/allocations/5", "value": {"id": "podrail:=claim/ns/vm", "podref": ""}})
        );
        let housed = Entry { id: "podrail:n:0a-0b=claim/ns/vm".into(), ..Entry::default() };
        assert_eq!(pool.claim(&Change::from([(5, Some(housed))])), None, "the tenant may have got another");
        let known = Pool { has_managers: true, ..pool.clone() };
        let forget = json!({"op": "add", "path": "/metadata/managedFields", "value": [{}]});
        for patch in [known.patch(&change), known.claim(&claim).unwrap()] {
            assert_eq!(patch.as_array().unwrap().last(), Some(&forget));
        }
        assert_eq!(pool.claim(&Change::from([(2, Some(Entry::default()))])), None);
        assert_eq!(Pool::default().claim(&claim), None);
        let after = pool.changed(&change);
        assert!(!after.entries.contains_key(&1) && after.entries.contains_key(&5));
        let range = Range::new("10.0.0.0/29".parse().unwrap(), None, None, &[], None);
        assert_eq!(after.free(&range).collect::<Vec<_>>(), [1, 4, 6]);
        assert_eq!(after.used(&range), 3);
    }

    #[test]
    fn labels_say_of_whom_something_is_wanted() {
        let path = |boot: &str| format!("/metadata/labels/whereabouts.podrail.io~1wanted-{boot}");
        let come = |boot| json!({"op": "add", "path": path(boot), "value": ""});
        let gone = |boot| json!({"op": "remove", "path": path(boot)});
        let node =
            |boot: &str| NodeLife { node: "n".into(), verified: true, boot: boot.into(), life: "0b".into() };
        let entry = |boot: &str, mark: &Mark| Some(Entry::of_node(&node(boot), mark, None));
        for (labels, change, wanted) in [
            // One that an older program marked without a label.
            (json!({"x": "y"}), Change::new(), vec![come("0a")]),
            (json!({label("0a"): ""}), Change::new(), vec![]),
            (json!({label("0a"): ""}), Change::from([(3, entry("0a", &Mark::None))]), vec![gone("0a")]),
            (json!({label("0a"): ""}), Change::from([(3, None)]), vec![gone("0a")]),
            (json!({label("0a"): "", label("0c"): ""}), Change::new(), vec![gone("0c")]),
            (
                json!({label("0a"): ""}),
                Change::from([(9, entry("0d", &Mark::Wanted)), (8, entry("-", &Mark::Wanted))]),
                vec![come("0d")],
            ),
        ] {
            let mut object = object();
            object["metadata"]["labels"] = labels.clone();
            let pool = Pool::parse(&object);
            assert_eq!(pool.ring(&change), wanted, "{labels}, {change:?}");
        }
    }
}
