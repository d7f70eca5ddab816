//! What a plugin is asked to do.

use crate::{Args, CniResult, Error, Object, Version};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The verbs of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container to a network.
    Add,
    /// Detach it.
    Del,
    /// Verify an attachment. Since 0.4.0.
    Check,
    /// Release everything that belongs to no valid attachment. Since 1.1.0.
    Gc,
    /// Say whether ADD can be served. Since 1.1.0.
    Status,
    /// List the supported versions.
    Version,
}

impl Command {
    /// The verb as `CNI_COMMAND` holds it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        }
    }

    /// Reads `CNI_COMMAND`.
    pub fn parse(text: &str) -> Option<Self> {
        use Command::{Add, Check, Del, Gc, Status, Version};
        [Add, Del, Check, Gc, Status, Version].into_iter().find(|c| c.as_str() == text)
    }

    /// Whether the verb is about one attachment (and so needs a container ID and an interface name).
    pub fn concerns_attachment(self) -> bool {
        matches!(self, Command::Add | Command::Del | Command::Check)
    }
}

/// Container ID and interface name: what identifies an attachment within a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentId {
    /// The container ID.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name inside the container.
    pub ifname: String,
}

/// One call of a plugin: the environment and standard input, validated.
#[derive(Clone, Debug)]
pub struct Request {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty for GC and STATUS.
    pub container_id: String,
    /// `CNI_NETNS`; `None` when it is empty, and on DEL also when it names the plugin's own namespace: the
    /// container's is gone then, and its path was taken over.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`; empty for GC and STATUS.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: Args,
    /// `CNI_PATH`, in search order.
    pub path: Vec<PathBuf>,
    /// `cniVersion` of the configuration; also the version the answer is printed in.
    pub version: Version,
    /// `name` of the configuration.
    pub name: String,
    /// The configuration.
    pub config: Object,
    /// The configuration's bytes as they came.
    pub stdin: Vec<u8>,
}

impl Request {
    /// The namespace, which ADD and CHECK always have.
    ///
    /// # Errors
    /// Code 4 when there is none.
    pub fn require_netns(&self) -> Result<&Path, Error> {
        self.netns
            .as_deref()
            .ok_or_else(|| Error::invalid_environment("required env variables [CNI_NETNS] missing"))
    }

    /// What the plugin before this one in the list set up.
    ///
    /// # Errors
    /// Code 6 when `prevResult` is not a result.
    pub fn prev_result(&self) -> Result<Option<CniResult>, Error> {
        match self.config.get_fold("prevResult") {
            None | Some("null") => Ok(None),
            Some(json) => CniResult::parse(json.as_bytes(), self.version)
                .map(Some)
                .map_err(|e| e.context("could not parse prevResult")),
        }
    }

    /// `runtimeConfig`: what the runtime passes for the capabilities the plugin declares. Empty when absent.
    ///
    /// # Errors
    /// Code 6 when it is not an object.
    pub fn runtime_config(&self) -> Result<Object, Error> {
        self.config.decode("runtimeConfig").map(Option::unwrap_or_default)
    }

    /// GC: the attachments that are to stay. `None` when the runtime sent no list, which allows no conclusion.
    ///
    /// # Errors
    /// Code 6 when the list is malformed.
    pub fn valid_attachments(&self) -> Result<Option<Vec<AttachmentId>>, Error> {
        // The second key is an early misprint of the specification that runtimes still send.
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            if let Some(list) = self.config.decode(key)? {
                return Ok(Some(list));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(config: &str) -> Request {
        Request {
            command: Command::Gc,
            container_id: String::new(),
            netns: None,
            ifname: String::new(),
            args: Args::default(),
            path: Vec::new(),
            version: Version::V1_1_0,
            name: "n".into(),
            config: Object::parse(config.as_bytes()).unwrap(),
            stdin: config.into(),
        }
    }

    #[test]
    fn commands_round_trip() {
        for text in ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"] {
            assert_eq!(Command::parse(text).map(Command::as_str), Some(text));
        }
        assert_eq!(Command::parse("add"), None);
    }

    #[test]
    fn valid_attachments_under_both_keys() {
        let list = r#"[{"containerID":"c","ifname":"eth0"}]"#;
        let want = vec![AttachmentId { container_id: "c".into(), ifname: "eth0".into() }];
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let request = request(&format!(r#"{{"{key}":{list}}}"#));
            assert_eq!(request.valid_attachments().unwrap().as_ref(), Some(&want), "{key}");
        }
        assert_eq!(request("{}").valid_attachments().unwrap(), None);
        assert_eq!(request(r#"{"cni.dev/valid-attachments":[]}"#).valid_attachments().unwrap(), Some(vec![]));
        assert!(request(r#"{"cni.dev/valid-attachments":{}}"#).valid_attachments().is_err());
    }

    #[test]
    fn prev_result_is_optional_but_must_be_one() {
        assert_eq!(request("{}").prev_result().unwrap(), None);
        assert_eq!(request(r#"{"prevResult":null}"#).prev_result().unwrap(), None);
        assert!(request(r#"{"prevResult":{"interfaces":[{"name":"a"}]}}"#).prev_result().unwrap().is_some());
        assert!(request(r#"{"prevResult":[]}"#).prev_result().is_err());
    }
}
