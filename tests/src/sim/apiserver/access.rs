//! Who may do what: bearer tokens, tokens of service accounts, and roles bound to users (RBAC).

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::ADMIN;
use super::api::{Api, Scope, seconds};
use super::failure::{Cause, Failure};
use super::meta;
use super::store::{Key, ResourceId};
use super::url::Verb;

/// User of requests without credentials.
pub(super) const ANONYMOUS: &str = "system:anonymous";

/// Group of the roles, and of the bindings.
pub(super) const GROUP: &str = "rbac.authorization.k8s.io";

#[derive(Debug, Clone)]
struct Token {
    user: String,
    /// Service account and its uid; the token dies with it.
    account: Option<(Key, String)>,
    expires: Option<Timestamp>,
}

/// The tokens that the server knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Tokens(BTreeMap<String, Token>);

impl Tokens {
    /// Lets a token stand for a user, for good.
    pub(super) fn insert(&mut self, token: &str, user: &str) {
        self.0.insert(token.to_owned(), Token { user: user.to_owned(), account: None, expires: None });
    }

    /// Knows a token no more.
    pub(super) fn remove(&mut self, token: &str) {
        self.0.remove(token);
    }
}

/// What a request wants to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    /// What is done.
    pub(super) verb: Verb,
    /// API group; empty for the core group.
    pub(super) group: &'a str,
    /// Plural name of the kind.
    pub(super) resource: &'a str,
    /// Subresource; empty for the object itself.
    pub(super) subresource: &'a str,
    /// Namespace; empty for objects of the cluster, and across namespaces.
    pub(super) namespace: &'a str,
    /// Name; empty for collections.
    pub(super) name: &'a str,
}

impl Api {
    /// The user that a token stands for now.
    pub(super) fn user_of(&self, token: &str, now: Timestamp) -> Option<&str> {
        let token = self.tokens.0.get(token)?;
        let lives = token.account.as_ref().is_none_or(|(key, uid)| {
            self.store.get(key).is_some_and(|account| meta::text(account, "uid") == uid)
        });
        let valid = token.expires.is_none_or(|expires| now < expires);
        (lives && valid).then_some(token.user.as_str())
    }

    /// POST to `serviceaccounts/<name>/token`.
    pub(super) fn request_token(
        &mut self,
        scope: &Scope,
        name: &str,
        request: &Value,
        now: Timestamp,
    ) -> Result<Value, Failure> {
        let account = self.stored(scope, name)?;
        let lifetime = request.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(3600);
        if lifetime < 600 {
            let why = format!("Invalid value: {lifetime}: may not specify a duration less than 10 minutes");
            return Err(Failure::invalid(
                &scope.kind,
                name,
                &[Cause::invalid("spec.expirationSeconds", why)],
            ));
        }
        let expires = now.checked_add(SignedDuration::from_secs(lifetime)).unwrap_or(Timestamp::MAX);
        let random = RandomState::new();
        let text = format!("sa.{:016x}{:016x}", random.hash_one(name), random.hash_one(lifetime));
        let token = Token {
            user: format!("system:serviceaccount:{}:{name}", scope.namespace),
            account: Some((scope.key(name), meta::text(&account, "uid").to_owned())),
            expires: Some(expires),
        };
        self.tokens.0.insert(text.clone(), token);
        Ok(json!({
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"creationTimestamp": null},
            "spec": {"audiences": ["https://kubernetes.default"], "expirationSeconds": lifetime, "boundObjectRef": null},
            "status": {"token": text, "expirationTimestamp": seconds(expires)},
        }))
    }

    /// Whether roles grant a user a wish. The server's own user may do anything, nobody else may without a role.
    pub(super) fn may(&self, user: &str, wish: Wish<'_>) -> bool {
        if user == ADMIN {
            return true;
        }
        let everywhere = self.granted(user, "clusterrolebindings", None, wish);
        let here =
            !wish.namespace.is_empty() && self.granted(user, "rolebindings", Some(wish.namespace), wish);
        everywhere || here
    }

    fn granted(&self, user: &str, bindings: &str, namespace: Option<&str>, wish: Wish<'_>) -> bool {
        self.store
            .range(&ResourceId::new(GROUP, bindings), namespace)
            .filter(|(key, binding)| concerns(binding, user, &key.namespace))
            .filter_map(|(key, binding)| {
                let text = |path: &str| binding.pointer(path).and_then(Value::as_str);
                let (plural, namespace) = match text("/roleRef/kind")? {
                    "ClusterRole" => ("clusterroles", ""),
                    "Role" => ("roles", key.namespace.as_str()),
                    _ => return None,
                };
                self.store.get(&Key {
                    resource: ResourceId::new(GROUP, plural),
                    namespace: namespace.to_owned(),
                    name: text("/roleRef/name")?.to_owned(),
                })
            })
            .any(|role| list(role, "rules").any(|rule| allows(rule, wish)))
    }
}

fn list<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    object.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// Whether a binding names a user, or a group that the user is in.
fn concerns(binding: &Value, user: &str, binding_namespace: &str) -> bool {
    let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    list(binding, "subjects").any(|subject| {
        let text = |key: &str| subject.get(key).and_then(Value::as_str).unwrap_or_default();
        match (text("kind"), account) {
            ("User", _) => text("name") == user,
            ("ServiceAccount", Some((namespace, name))) => {
                let meant = if text("namespace").is_empty() { binding_namespace } else { text("namespace") };
                (meant, text("name")) == (namespace, name)
            }
            ("Group", account) => match text("name") {
                "system:authenticated" => user != ANONYMOUS,
                "system:unauthenticated" => user == ANONYMOUS,
                "system:serviceaccounts" => account.is_some(),
                group => account.is_some_and(|(namespace, _)| {
                    group.strip_prefix("system:serviceaccounts:") == Some(namespace)
                }),
            },
            _ => false,
        }
    })
}

fn allows(rule: &Value, wish: Wish<'_>) -> bool {
    let names = |key: &str, wanted: &str| {
        list(rule, key).filter_map(Value::as_str).any(|name| name == "*" || name == wanted)
    };
    let resource = if wish.subresource.is_empty() {
        names("resources", wish.resource)
    } else {
        names("resources", &format!("{}/{}", wish.resource, wish.subresource))
            || list(rule, "resources").any(|name| *name == format!("*/{}", wish.subresource))
    };
    let named = list(rule, "resourceNames").next().is_none()
        || list(rule, "resourceNames").any(|name| name == wish.name);
    names("verbs", &wish.verb.to_string()) && names("apiGroups", wish.group) && resource && named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish<'a>(
        verb: Verb,
        group: &'a str,
        resource: &'a str,
        subresource: &'a str,
        name: &'a str,
    ) -> Wish<'a> {
        Wish { verb, group, resource, subresource, namespace: "ns", name }
    }

    #[test]
    fn a_rule_allows_what_it_lists() {
        let rule = json!({"apiGroups": [""], "resources": ["pods", "*/status"], "verbs": ["get", "patch"]});
        let table = [
            (wish(Verb::Get, "", "pods", "", "p"), true),
            (wish(Verb::Patch, "", "pods", "status", "p"), true),
            (wish(Verb::Patch, "", "nodes", "status", "n"), true),
            (wish(Verb::Get, "", "nodes", "", "n"), false),
            (wish(Verb::Create, "", "pods", "binding", "p"), false),
            (wish(Verb::Delete, "", "pods", "", "p"), false),
            (wish(Verb::Get, "x.io", "pods", "", "p"), false),
        ];
        for (wish, expected) in table {
            assert_eq!(allows(&rule, wish), expected, "{wish:?}");
        }
        let all = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
        assert!(allows(&all, wish(Verb::Delete, "x.io", "foos", "status", "")));
        let one = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "resourceNames": ["p"]});
        assert!(allows(&one, wish(Verb::Get, "", "pods", "", "p")));
        assert!(!allows(&one, wish(Verb::Get, "", "pods", "", "q")));
    }

    #[test]
    fn a_binding_concerns_its_subjects() {
        let account = "system:serviceaccount:kube-system:multus";
        let table = [
            (json!({"kind": "User", "name": account}), account, true),
            (json!({"kind": "User", "name": "other"}), account, false),
            (json!({"kind": "ServiceAccount", "name": "multus", "namespace": "kube-system"}), account, true),
            (json!({"kind": "ServiceAccount", "name": "multus", "namespace": "default"}), account, false),
            (json!({"kind": "ServiceAccount", "name": "multus"}), account, true),
            (json!({"kind": "Group", "name": "system:serviceaccounts"}), account, true),
            (json!({"kind": "Group", "name": "system:serviceaccounts:kube-system"}), account, true),
            (json!({"kind": "Group", "name": "system:serviceaccounts:default"}), account, false),
            (json!({"kind": "Group", "name": "system:authenticated"}), account, true),
            (json!({"kind": "Group", "name": "system:authenticated"}), ANONYMOUS, false),
            (json!({"kind": "Group", "name": "system:unauthenticated"}), ANONYMOUS, true),
        ];
        for (subject, user, expected) in table {
            let binding = json!({"subjects": [subject]});
            assert_eq!(concerns(&binding, user, "kube-system"), expected, "{subject} {user}");
        }
    }
}
