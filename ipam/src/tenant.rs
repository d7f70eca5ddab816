//! Who has an address beyond the life of one container.
//!
//! A pod of a StatefulSet comes back under its name, and a claim outlives the pods that use it: both on whatever node the
//! scheduler likes. While no container has it, the address of such a tenant is kept in the pool, and nobody else gets it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose an address is, across containers and nodes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Tenant {
    /// An interface of a pod that is made anew under the same name.
    Pod {
        /// `namespace/name`.
        podref: String,
        /// Interface in the pod.
        ifname: String,
    },
    /// An `IPAMClaim`.
    Claim {
        /// `namespace/name`.
        name: String,
    },
}

impl Tenant {
    /// Reads what [`Display`](fmt::Display) writes; `None` when it is something else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
        let tenant = match (kind, parts.next()) {
            ("pod", Some(ifname)) => {
                Self::Pod { podref: format!("{namespace}/{name}"), ifname: ifname.to_owned() }
            }
            ("claim", None) => Self::Claim { name: format!("{namespace}/{name}") },
            _ => return None,
        };
        parts.next().is_none().then_some(tenant)
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { podref, ifname } => write!(f, "pod/{podref}/{ifname}"),
            Self::Claim { name } => write!(f, "claim/{name}"),
        }
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.to_string()
    }
}

impl TryFrom<String> for Tenant {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} names neither a pod nor a claim"))
    }
}

/// The StatefulSet that a pod of this name would be of, and its number there.
#[must_use]
pub fn stateful_set(pod: &str) -> Option<(&str, u64)> {
    let (set, ordinal) = pod.rsplit_once('-')?;
    let is_number = !ordinal.is_empty() && ordinal.bytes().all(|b| b.is_ascii_digit());
    // The controller writes no leading zeros.
    let is_canonical = ordinal == "0" || !ordinal.starts_with('0');
    (is_number && is_canonical && !set.is_empty()).then(|| Some((set, ordinal.parse().ok()?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_read_as_it_was_written() {
        for tenant in [
            Tenant::Pod { podref: "ns/web-0".into(), ifname: "net1".into() },
            Tenant::Claim { name: "ns/vm".into() },
        ] {
            assert_eq!(Tenant::parse(&tenant.to_string()), Some(tenant.clone()));
            let json = serde_json::to_string(&tenant).unwrap();
            assert_eq!(serde_json::from_str::<Tenant>(&json).unwrap(), tenant);
        }
        for text in
            ["", "pod", "pod/ns/web-0", "pod/ns/web-0/net1/x", "claim/ns", "claim/ns/vm/x", "node/a/b"]
        {
            assert_eq!(Tenant::parse(text), None, "{text}");
        }
    }

    #[test]
    fn pods_of_stateful_sets_are_numbered() {
        for (pod, wanted) in [
            ("web-0", Some(("web", 0))),
            ("web-db-12", Some(("web-db", 12))),
            ("web", None),
            ("web-", None),
            ("-1", None),
            ("web-01", None),
            ("web-x1", None),
            ("web-99999999999999999999", None),
        ] {
            assert_eq!(stateful_set(pod), wanted, "{pod}");
        }
    }
}
