//! Label and field selectors of LIST, WATCH and deletecollection.

use serde_json::Value;

use super::failure::Failure;
use super::kinds::{Kind, Nature};
use super::meta;

/// One condition on labels.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

/// A parsed `labelSelector`: all conditions hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Labels(Vec<Requirement>);

impl Labels {
    /// Reads the grammar of `labelSelector`: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a`, `!a`.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        split_outside_parentheses(text)
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(requirement)
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(|why| Failure::bad_request(format!("unable to parse requirement: {why}")))
    }

    /// Whether an object has such labels.
    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| meta::get(object, "labels").and_then(|labels| labels.get(key)?.as_str());
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|value| values.iter().any(|v| v == value)),
            Requirement::NotIn(key, values) => {
                label(key).is_none_or(|value| values.iter().all(|v| v != value))
            }
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Missing(key) => label(key).is_none(),
        })
    }
}

/// Commas inside `in (a,b)` do not end a requirement.
fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let key = |text: &str| -> Result<String, String> {
        let text = text.trim();
        let ok = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if text.is_empty() || !text.chars().all(ok) {
            return Err(format!("found '{text}', expected: identifier"));
        }
        Ok(text.to_owned())
    };
    let value = |text: &str| -> Result<String, String> {
        let text = text.trim();
        let ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !text.chars().all(ok) {
            return Err(format!("found '{text}', expected: ',' or 'end of string'"));
        }
        Ok(text.to_owned())
    };
    let set = |text: &str| -> Result<Vec<String>, String> {
        let inside = text.trim().strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
        inside
            .ok_or_else(|| format!("found '{}' expected: '('", text.trim()))?
            .split(',')
            .map(value)
            .collect()
    };
    let words = |text: &str, word: &str| -> Option<(String, String)> {
        let (left, right) = text.split_once(char::is_whitespace)?;
        let right = right.trim_start().strip_prefix(word)?;
        right
            .starts_with(|c: char| c.is_whitespace() || c == '(')
            .then(|| (left.to_owned(), right.to_owned()))
    };
    if let Some(rest) = text.strip_prefix('!') {
        return Ok(Requirement::Missing(key(rest)?));
    }
    if let Some((left, right)) = words(text, "notin") {
        return Ok(Requirement::NotIn(key(&left)?, set(&right)?));
    }
    if let Some((left, right)) = words(text, "in") {
        return Ok(Requirement::In(key(&left)?, set(&right)?));
    }
    if let Some((left, right)) = text.split_once("!=") {
        return Ok(Requirement::NotIn(key(left)?, vec![value(right)?]));
    }
    if let Some((left, right)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Requirement::In(key(left)?, vec![value(right)?]));
    }
    Ok(Requirement::Exists(key(text)?))
}

/// One condition on a field.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldIs {
    path: String,
    value: String,
    equal: bool,
}

/// A parsed `fieldSelector`: all conditions hold. A field that is missing equals the empty string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<FieldIs>);

impl Fields {
    /// Reads `path=value`, `path==value` and `path!=value`, separated by commas. As in kube-apiserver, only the
    /// fields that the kind has declared may be selected; others are refused with 400, which a program that
    /// selects by them has to see in a test and not in production.
    pub(super) fn parse(text: &str, kind: &Kind, version: &str) -> Result<Self, Failure> {
        let mut fields = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (path, value, equal) = match (part.split_once("!="), part.split_once("==")) {
                (Some((path, value)), _) => (path, value, false),
                (None, Some((path, value))) => (path, value, true),
                (None, None) => match part.split_once('=') {
                    Some((path, value)) => (path, value, true),
                    None => {
                        return Err(Failure::bad_request(format!(
                            "invalid selector: '{part}'; can't understand '{part}'"
                        )));
                    }
                },
            };
            if !is_selectable(kind, version, path) {
                return Err(Failure::bad_request(format!("field label not supported: {path}")));
            }
            fields.push(FieldIs { path: path.to_owned(), value: value.to_owned(), equal });
        }
        Ok(Self(fields))
    }

    /// Whether an object has such fields.
    pub(super) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|field| (text_at(object, &field.path) == field.value) == field.equal)
    }
}

fn is_selectable(kind: &Kind, version: &str, path: &str) -> bool {
    let own: &[&str] = match kind.nature {
        Nature::Pod => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        Nature::Node => &["spec.unschedulable"],
        Nature::Namespace => &["status.phase"],
        Nature::Secret => &["type"],
        Nature::Event => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        Nature::Plain | Nature::ServiceAccount | Nature::Definition | Nature::Custom => &[],
    };
    path == "metadata.name"
        || (path == "metadata.namespace" && kind.namespaced)
        || own.contains(&path)
        || kind
            .version(version)
            .is_some_and(|version| version.selectable.iter().any(|declared| declared == path))
}

fn text_at(object: &Value, path: &str) -> String {
    let path = if path == "source" { "source.component" } else { path };
    let value = path.split('.').try_fold(object, |value, key| value.get(key));
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(flag)) => flag.to_string(),
        // Go formats the zero value of a boolean field.
        None if matches!(path, "spec.unschedulable" | "spec.hostNetwork") => "false".to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::kinds::Kinds;
    use super::*;

    #[test]
    fn label_selectors() {
        let object = json!({"metadata": {"labels": {"app": "upf", "tier.io/x": "1", "empty": ""}}});
        let table = [
            ("", true),
            ("app=upf", true),
            ("app==upf", true),
            ("app = upf , tier.io/x=1", true),
            ("app!=upf", false),
            ("other!=upf", true),
            ("app in (amf, upf)", true),
            ("app in (amf)", false),
            ("app notin (amf,smf),app", true),
            ("app notin (upf)", false),
            ("other notin (upf)", true),
            ("app", true),
            ("other", false),
            ("!other", true),
            ("!app", false),
            ("empty=", true),
            ("in=x", false),
            ("notin", false),
        ];
        for (selector, expected) in table {
            assert_eq!(Labels::parse(selector).unwrap().matches(&object), expected, "{selector}");
        }
        for broken in ["a=b=c", "a in b", "a in (b", "=b", "a b", "!", "a notin", "a=(b)"] {
            assert_eq!(Labels::parse(broken).map_err(|failure| failure.code), Err(400), "{broken}");
        }
    }

    #[test]
    fn field_selectors() {
        let kinds = Kinds::builtin();
        let pods = kinds.find("", "v1", "pods").unwrap();
        let pod = json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running"},
        });
        let table = [
            ("", true),
            ("metadata.name=p", true),
            ("metadata.name==p,spec.nodeName=n1,status.phase!=Failed", true),
            ("metadata.namespace=other", false),
            ("spec.nodeName!=n1", false),
            ("status.podIP=", true),
            ("status.podIP!=", false),
            ("spec.hostNetwork=false", true),
        ];
        for (selector, expected) in table {
            assert_eq!(Fields::parse(selector, &pods, "v1").unwrap().matches(&pod), expected, "{selector}");
        }
        for refused in ["spec.foo=x", "metadata.labels=x", "metadata.name"] {
            assert_eq!(
                Fields::parse(refused, &pods, "v1").map_err(|failure| failure.code),
                Err(400),
                "{refused}"
            );
        }
    }
}
