//! What the API server says when it refuses: the `Status` object of `meta/v1`.
//!
//! The wording is that of kube-apiserver, because programs match on `reason` and people read `message`.

use serde_json::{Map, Value, json};

use super::access::Wish;
use super::kinds::Kind;
use super::url::Verb;

/// One reason among several why an object is invalid (`StatusCause`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, `FieldValueForbidden`, `FieldValueNotSupported`.
    pub(super) reason: &'static str,
    /// What is wrong with the field.
    pub(super) message: String,
    /// Dotted path of the field.
    pub(super) field: String,
}

impl Cause {
    /// The field holds a value that it may not hold.
    pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: "FieldValueInvalid", message: message.into(), field: field.into() }
    }

    /// The field is missing.
    pub(super) fn required(field: impl Into<String>, hint: &str) -> Self {
        let message =
            if hint.is_empty() { "Required value".to_owned() } else { format!("Required value: {hint}") };
        Self { reason: "FieldValueRequired", message, field: field.into() }
    }

    /// The field may not change now.
    pub(super) fn forbidden(field: impl Into<String>, message: &str) -> Self {
        Self { reason: "FieldValueForbidden", message: format!("Forbidden: {message}"), field: field.into() }
    }
}

/// A refused request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Failure {
    /// HTTP status.
    pub(super) code: u16,
    /// Machine-readable reason; empty for what kube-apiserver calls an unknown error.
    pub(super) reason: &'static str,
    /// Human-readable message.
    pub(super) message: String,
    /// `details` of the Status; kube-apiserver leaves it out for some reasons and sends `{}` for others.
    pub(super) details: Option<Value>,
    /// Seconds for the `Retry-After` header.
    pub(super) retry_after: Option<u64>,
}

impl Failure {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, retry_after: None }
    }

    fn about(mut self, name: &str, group: &str, kind: &str) -> Self {
        let mut details = Map::new();
        for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
            if !value.is_empty() {
                details.insert(key.to_owned(), value.into());
            }
        }
        self.details = Some(Value::Object(details));
        self
    }

    fn with_empty_details(mut self) -> Self {
        self.details = Some(json!({}));
        self
    }

    /// 404: no such object.
    pub(super) fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", kind.qualified())).about(
            name,
            &kind.group,
            &kind.plural,
        )
    }

    /// 404: no such namespace to create an object in.
    pub(super) fn no_namespace(name: &str) -> Self {
        Self::new(404, "NotFound", format!("namespaces \"{name}\" not found")).about(name, "", "namespaces")
    }

    /// 404: no such resource in a group that is served.
    pub(super) fn no_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with_empty_details()
    }

    /// 409: an object of that name is there already.
    pub(super) fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", kind.qualified())).about(
            name,
            &kind.group,
            &kind.plural,
        )
    }

    /// 409: the object is not what the writer believes it to be.
    pub(super) fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.qualified()),
        )
        .about(name, &kind.group, &kind.plural)
    }

    /// 409: the object to delete is not the one that the caller means. Unlike other conflicts it names the kind.
    pub(super) fn precondition(kind: &Kind, name: &str, why: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.qualified_kind()),
        )
        .about(name, &kind.group, &kind.kind)
    }

    /// 409: the pod is on a node already.
    pub(super) fn already_bound(name: &str, node: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!(
                "Operation cannot be fulfilled on pods/binding \"{name}\": pod {name} is already assigned to node \"{node}\""
            ),
        )
        .about(name, "", "pods/binding")
    }

    /// 422: the object breaks rules of its kind.
    pub(super) fn invalid(kind: &Kind, name: &str, causes: &[Cause]) -> Self {
        Self::invalid_as(&kind.qualified_kind(), &kind.kind, kind, name, causes)
    }

    /// 422: a kind that may only be replaced knowingly was sent without a resourceVersion.
    pub(super) fn version_required(kind: &Kind, name: &str) -> Self {
        let causes = [Cause::invalid(
            "metadata.resourceVersion",
            "Invalid value: 0x0: must be specified for an update",
        )];
        Self::invalid_as(&kind.qualified(), &kind.plural, kind, name, &causes)
    }

    fn invalid_as(qualified: &str, details_kind: &str, kind: &Kind, name: &str, causes: &[Cause]) -> Self {
        let mut said: Vec<String> = Vec::new();
        for cause in causes {
            let line = format!("{}: {}", cause.field, cause.message);
            if !said.contains(&line) {
                said.push(line);
            }
        }
        let said = match said.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut failure = Self::new(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {said}"))
            .about(name, &kind.group, details_kind);
        let causes: Vec<Value> = causes
            .iter()
            .map(|cause| json!({"reason": cause.reason, "message": cause.message, "field": cause.field}))
            .collect();
        if let Some(Value::Object(details)) = &mut failure.details {
            details.insert("causes".to_owned(), causes.into());
        }
        failure
    }

    /// 422: a JSON patch does not apply, a failed `test` included. kube-apiserver does not say why.
    pub(super) fn patch_does_not_apply() -> Self {
        Self::new(422, "Invalid", "the server rejected our request due to an error in our request")
            .with_empty_details()
    }

    /// 400: the request makes no sense.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: the credentials are wrong.
    pub(super) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: no role grants the user that.
    pub(super) fn forbidden(user: &str, wish: Wish<'_>) -> Self {
        let Wish { verb, group, resource, subresource, namespace, name } = wish;
        let scope = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let mut what = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
        if !name.is_empty() {
            what = format!("{what} \"{name}\"");
        }
        let resource_path =
            if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
        Self::new(
            403,
            "Forbidden",
            format!(
                "{what} is forbidden: User \"{user}\" cannot {verb} resource \"{resource_path}\" in API group \"{group}\" {scope}"
            ),
        )
        .about(name, group, resource)
    }

    /// 403: the user may not read that path, which names no resource.
    pub(super) fn forbidden_path(user: &str, verb: Verb, path: &str) -> Self {
        Self::new(403, "Forbidden", format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\""))
            .with_empty_details()
    }

    /// 403: nothing is created in a namespace that is going away.
    pub(super) fn namespace_terminating(kind: &Kind, name: &str, namespace: &str) -> Self {
        let mut failure = Self::new(
            403,
            "Forbidden",
            format!(
                "{} \"{name}\" is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
                kind.qualified()
            ),
        )
        .about(name, &kind.group, &kind.plural);
        if let Some(Value::Object(details)) = &mut failure.details {
            details.insert(
                "causes".to_owned(),
                json!([{
                    "reason": "NamespaceTerminating",
                    "message": format!("namespace {namespace} is being terminated"),
                    "field": "metadata.namespace",
                }]),
            );
        }
        failure
    }

    /// 405: the resource has no such verb.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with_empty_details()
    }

    /// 415: the body is in a format that the resource does not take.
    pub(super) fn unsupported_media_type(accepted: &[&str]) -> Self {
        let accepted = accepted.join(", ");
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {accepted}"
            ),
        )
    }

    /// 410: the history does not reach back to that resourceVersion.
    pub(super) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 500: kube-apiserver lets some errors of the caller through as its own.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    /// 504: the resourceVersion lies in the future.
    pub(super) fn too_large_version(asked: u64, current: u64) -> Self {
        let mut failure = Self::new(
            504,
            "Timeout",
            format!("Timeout: Too large resource version: {asked}, current: {current}"),
        );
        failure.details = Some(json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }));
        failure.retry_after = Some(1);
        failure
    }

    /// What a test asked the server to answer.
    pub(super) fn injected(code: u16, retry_after: Option<u64>) -> Self {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden: injected by the test"),
            404 => ("NotFound", "the server could not find the requested resource"),
            409 => ("Conflict", "Operation cannot be fulfilled: injected by the test"),
            429 => (
                "TooManyRequests",
                "the server has received too many requests and has asked us to try again later",
            ),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "Timeout: request did not complete within requested timeout"),
            _ => ("InternalError", "Internal error occurred: injected by the test"),
        };
        let mut failure = Self::new(code, reason, message);
        if let Some(seconds) = retry_after {
            failure.details = Some(json!({ "retryAfterSeconds": seconds }));
            failure.retry_after = Some(seconds);
        }
        failure
    }

    /// The `Status` object.
    pub(super) fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        });
        if let Value::Object(map) = &mut status {
            if !self.reason.is_empty() {
                map.insert("reason".to_owned(), self.reason.into());
            }
            if let Some(details) = &self.details {
                map.insert("details".to_owned(), details.clone());
            }
        }
        status
    }
}
