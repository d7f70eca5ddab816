//! The error object of the specification.

use crate::{Object, Version};
use serde::Serialize;
use std::fmt;

/// An error as the protocol carries it: on a plugin's standard output, and back to the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// One of the codes below; 100 and up belong to plugins.
    pub code: u32,
    /// What went wrong, on what, and what to do next.
    pub msg: String,
    /// More, when there is more to say; often empty.
    pub details: String,
}

impl Error {
    /// The configuration's CNI version is not supported.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration is not supported.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or gone; there is nothing to clean up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or holds a bad value.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// JSON could not be decoded.
    pub const DECODING: u32 = 6;
    /// The network configuration fails validation.
    pub const INVALID_CONFIG: u32 = 7;
    /// The network namespace cannot be used. (Reserved by the reference library rather than by the text of
    /// the specification.)
    pub const INVALID_NETNS: u32 = 8;
    /// A transient condition: try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin cannot serve ADD now.
    pub const PLUGIN_NOT_AVAILABLE: u32 = 50;
    /// STATUS: as 50, and running containers may lack connectivity too.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Anything else (the reference library's code for plain errors).
    pub const INTERNAL: u32 = 999;

    /// An error of any code, without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Error { code, msg: msg.into(), details: String::new() }
    }

    /// Code 1.
    pub fn incompatible_version(msg: impl Into<String>) -> Self {
        Self::new(Self::INCOMPATIBLE_VERSION, msg)
    }

    /// Code 2.
    pub fn unsupported_field(msg: impl Into<String>) -> Self {
        Self::new(Self::UNSUPPORTED_FIELD, msg)
    }

    /// Code 3.
    pub fn unknown_container(msg: impl Into<String>) -> Self {
        Self::new(Self::UNKNOWN_CONTAINER, msg)
    }

    /// Code 4.
    pub fn invalid_environment(msg: impl Into<String>) -> Self {
        Self::new(Self::INVALID_ENVIRONMENT, msg)
    }

    /// Code 5.
    pub fn io(msg: impl Into<String>) -> Self {
        Self::new(Self::IO, msg)
    }

    /// Code 6.
    pub fn decoding(msg: impl Into<String>) -> Self {
        Self::new(Self::DECODING, msg)
    }

    /// Code 7.
    pub fn invalid_config(msg: impl Into<String>) -> Self {
        Self::new(Self::INVALID_CONFIG, msg)
    }

    /// Code 8.
    pub fn invalid_netns(msg: impl Into<String>) -> Self {
        Self::new(Self::INVALID_NETNS, msg)
    }

    /// Code 11.
    pub fn try_again_later(msg: impl Into<String>) -> Self {
        Self::new(Self::TRY_AGAIN_LATER, msg)
    }

    /// Code 50.
    pub fn plugin_not_available(msg: impl Into<String>) -> Self {
        Self::new(Self::PLUGIN_NOT_AVAILABLE, msg)
    }

    /// Code 999.
    pub fn internal(msg: impl Into<String>) -> Self {
        Self::new(Self::INTERNAL, msg)
    }

    /// The same error with `details`.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The same error, its message preceded by `context` and a colon. The code is kept.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.msg = format!("{context}: {}", self.msg);
        self
    }

    /// The error object a plugin prints, indented as the reference library indents it.
    pub fn to_json(&self, version: Version) -> Vec<u8> {
        #[derive(Serialize)]
        struct Wire<'a> {
            #[serde(rename = "cniVersion")]
            version: Version,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        crate::wire::pretty(&Wire { version, code: self.code, msg: &self.msg, details: &self.details })
    }

    /// Reads the error object a plugin printed. Missing members are zero or empty, as Go reads them.
    ///
    /// # Errors
    /// Code 6 when `bytes` is not a JSON object with members of the right type.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let object = Object::parse(bytes)?;
        Ok(Error {
            code: object.decode("code")?.unwrap_or_default(),
            msg: object.decode("msg")?.unwrap_or_default(),
            details: object.decode("details")?.unwrap_or_default(),
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_the_specification_shows() {
        let error = Error::new(7, "Invalid Configuration").with_details("Network 192.168.0.0/31 too small.");
        let text = String::from_utf8(error.to_json(Version::V1_0_0)).unwrap();
        assert_eq!(
            text,
            "{\n    \"cniVersion\": \"1.0.0\",\n    \"code\": 7,\n    \"msg\": \"Invalid Configuration\",\n    \
             \"details\": \"Network 192.168.0.0/31 too small.\"\n}"
        );
        assert_eq!(Error::parse(text.as_bytes()).unwrap(), error);
    }

    #[test]
    fn reads_what_plugins_really_print() {
        let table: &[(&str, Error)] = &[
            ("{}", Error::new(0, "")),
            (r#"{"code":11,"msg":"later"}"#, Error::new(11, "later")),
            (r#"{"Code":5,"Msg":"io","Details":null}"#, Error::new(5, "io")),
        ];
        for (text, want) in table {
            assert_eq!(&Error::parse(text.as_bytes()).unwrap(), want, "{text}");
        }
        for text in ["", "oops", "[]", r#"{"code":"x"}"#, r#"{"code":-1}"#] {
            assert_eq!(Error::parse(text.as_bytes()).unwrap_err().code, Error::DECODING, "{text}");
        }
    }

    #[test]
    fn context_keeps_the_code() {
        let error = Error::try_again_later("busy").context("plugin x").with_details("d");
        assert_eq!((error.code, error.to_string()), (11, "plugin x: busy; d".to_owned()));
    }
}
