//! What the shim and other clients send, and what they are answered.
//!
//! The protocol is that of the peers: `POST /cni` and `POST /delegate` with environment and configuration of a call;
//! the result always in version 1.1.0, an error as the specification's error object.

use std::collections::BTreeMap;
use std::ffi::OsString;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use cni::{CniResult, Object, Request, Version};
use multus::selection::Selection;
use serde::Serialize;

/// One call, as a client sends it.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// The client's environment.
    pub environment: BTreeMap<String, String>,
    /// What the client got on standard input.
    pub config: Vec<u8>,
    /// What `/delegate` asks of the attachment.
    pub attributes: Attributes,
}

/// What a client of `/delegate` may ask of an attachment. The peer knows the first three; the rest are further
/// elements of a pod's network selection.
#[derive(Debug, Clone, Default)]
pub struct Attributes(Object);

impl Call {
    /// Reads a request's body; keys match in any case, `null` is absent.
    ///
    /// # Errors
    /// Code 6 for what is no request.
    pub fn parse(body: &[u8]) -> Result<Self, cni::Error> {
        let object = Object::parse(body).map_err(|e| e.context("request of the shim"))?;
        let config: String = object.decode("config")?.unwrap_or_default();
        Ok(Call {
            environment: object.decode("env")?.unwrap_or_default(),
            config: BASE64
                .decode(config)
                .map_err(|e| cni::Error::decoding(format!("\"config\" of the request is not base64: {e}")))?,
            attributes: Attributes(object.decode("interfaceAttributes")?.unwrap_or_default()),
        })
    }

    /// A variable of the client's environment; absent when empty.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The container whose call it is; empty for GC and STATUS.
    #[must_use]
    pub fn container(&self) -> &str {
        self.variable("CNI_CONTAINERID").unwrap_or_default()
    }

    /// The call with `config` in place of what the client sent. `CNI_IFNAME` and `CNI_PATH` may be missing: clients of
    /// the field leave them out.
    ///
    /// # Errors
    /// As a plugin answers them: codes 1, 4, 6 and 7.
    pub fn request(&self, config: &Object) -> Result<Request, cni::Error> {
        let env = |name: &str| -> Option<OsString> {
            let default = match name {
                "CNI_IFNAME" => Some("eth0"),
                "CNI_PATH" => Some("/opt/cni/bin"),
                _ => None,
            };
            self.variable(name).or(default).map(OsString::from)
        };
        cni::skel::request(&env, &config.to_vec())
    }
}

impl Attributes {
    /// The attributes as an element of a pod's network selection, called `name`.
    ///
    /// # Errors
    /// Code 7 when there is something that no selection may have.
    pub fn selection(&self, name: &str) -> Result<Selection, cni::Error> {
        let invalid = |why: String| cni::Error::invalid_config(format!("interfaceAttributes: {why}"));
        let mut element = Object::new();
        element.set("name", name)?;
        for (key, value) in self.0.iter() {
            // What the peer's clients send empty is absent.
            if !matches!(value, "null" | "[]" | "\"\"" | "{}") {
                element.set_raw(key, value)?;
            }
        }
        let text = serde_json::to_string(&[element]).map_err(|e| invalid(e.to_string()))?;
        let mut selections = multus::selection::parse(&text).map_err(|e| invalid(e.to_string()))?;
        selections.pop().ok_or_else(|| invalid("there is nothing".to_owned()))
    }
}

/// The body of a successful ADD.
///
/// # Errors
/// Never in practice: version 1.1.0 has room for every result.
pub fn success(result: &CniResult) -> Result<Vec<u8>, cni::Error> {
    #[derive(Serialize)]
    struct Response {
        #[serde(rename = "Result")]
        result: Object,
    }
    let response = Response { result: result.to_object(Version::LATEST)? };
    serde_json::to_vec(&response).map_err(|e| cni::Error::internal(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_in_the_peers_spelling() {
        let call = Call::parse(
            br#"{"env":{"CNI_COMMAND":"ADD","CNI_CONTAINERID":"c","CNI_NETNS":"/n","CNI_ARGS":"K8S_POD_NAME=p"},
                "config":"eyJuYW1lIjoibiIsInR5cGUiOiJ4In0=","interfaceAttributes":{"ips":["10.0.0.1/8"],"mac":"","cni-args":null}}"#,
        )
        .unwrap();
        let config = Object::parse(&call.config).unwrap();
        let request = call.request(&config).unwrap();
        assert_eq!((request.ifname.as_str(), request.container_id.as_str()), ("eth0", "c"));
        assert_eq!(request.args.get("K8S_POD_NAME"), Some("p"));
        let selection = call.attributes.selection("n").unwrap();
        assert_eq!((selection.ips.as_slice(), selection.mac), (&["10.0.0.1/8".to_owned()][..], None));
        for body in ["", "[]", r#"{"config":"?"}"#, r#"{"env":[]}"#] {
            assert_eq!(Call::parse(body.as_bytes()).unwrap_err().code, cni::Error::DECODING, "{body}");
        }
    }

    #[test]
    fn a_call_without_its_variables_is_refused() {
        let call = Call::parse(br#"{"env":{"CNI_COMMAND":"ADD"}}"#).unwrap();
        let error = call.request(&Object::parse(br#"{"name":"n"}"#).unwrap()).unwrap_err();
        assert!(error.msg.contains("CNI_CONTAINERID,CNI_NETNS"), "{error}");
    }

    #[test]
    fn results_are_of_the_newest_version() {
        let body = success(&CniResult::default()).unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), r#"{"Result":{"cniVersion":"1.1.0"}}"#);
    }
}
