//! A kubeconfig for the thin plugin, which runs on the host and so cannot use the pod's service account as it is.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use crate::Error;

/// Where kubelet puts the service account of a pod.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How the API server is reached.
#[derive(Debug, Clone)]
pub struct Access {
    /// Directory with `token` and `ca.crt`.
    pub service_account: PathBuf,
    /// URL of the server.
    pub server: String,
    /// Whether the server's certificate is not looked at.
    pub skip_tls_verify: bool,
}

impl Access {
    /// As kubelet tells a pod by environment variables; `None` outside a cluster.
    #[must_use]
    pub fn of_pod(env: impl Fn(&str) -> Option<String>, skip_tls_verify: bool) -> Option<Self> {
        let get = |name| env(name).filter(|value| !value.is_empty());
        let (host, port) = (get("KUBERNETES_SERVICE_HOST")?, get("KUBERNETES_SERVICE_PORT")?);
        let protocol = get("KUBERNETES_SERVICE_PROTOCOL").unwrap_or_else(|| "https".to_owned());
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let server = format!("{protocol}://{host}:{port}");
        Some(Access { service_account: SERVICE_ACCOUNT.into(), server, skip_tls_verify })
    }

    /// The kubeconfig with the token as it is now.
    ///
    /// # Errors
    /// When there is no token.
    pub fn kubeconfig(&self) -> Result<Vec<u8>, Error> {
        let read = |name: &str| {
            let path = self.service_account.join(name);
            std::fs::read(&path).map_err(|e| Error::file("reading", path, e))
        };
        let token = String::from_utf8_lossy(&read("token")?).trim().to_owned();
        let cluster = if self.skip_tls_verify {
            json!({ "server": self.server, "insecure-skip-tls-verify": true })
        } else {
            json!({ "server": self.server, "certificate-authority-data": BASE64.encode(read("ca.crt")?) })
        };
        // JSON is YAML.
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": cluster}],
            "users": [{"name": "multus", "user": {"token": token}}],
            "contexts": [{"name": "multus-context", "context": {"cluster": "local", "user": "multus"}}],
            "current-context": "multus-context",
        });
        Ok(format!("{kubeconfig:#}\n").into_bytes())
    }

    /// Writes the kubeconfig to `path` where it is not there as it should be; whether it was written.
    ///
    /// # Errors
    /// When there is no token, or the file cannot be written.
    pub fn refresh(&self, path: &Path) -> Result<bool, Error> {
        let content = self.kubeconfig()?;
        if std::fs::read(path).is_ok_and(|there| there == content) {
            return Ok(false);
        }
        if let Some(directory) = path.parent() {
            host::durable::make_directory(directory)?;
        }
        host::durable::write(path, &content)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_token_is_written_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let env = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        };
        let access =
            Access { service_account: directory.path().into(), ..Access::of_pod(env, false).unwrap() };
        let path = directory.path().join("multus.d/multus.kubeconfig");
        assert!(access.refresh(&path).is_err(), "no token");
        std::fs::write(directory.path().join("ca.crt"), "ca").unwrap();
        std::fs::write(directory.path().join("token"), "first\n").unwrap();
        assert!(access.refresh(&path).unwrap());
        assert!(!access.refresh(&path).unwrap());
        std::fs::write(directory.path().join("token"), "second").unwrap();
        assert!(access.refresh(&path).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        for part in ["\"https://[fd00::1]:443\"", "\"second\"", "\"Y2E=\""] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(Access::of_pod(|_| None, false).is_none());
    }
}
