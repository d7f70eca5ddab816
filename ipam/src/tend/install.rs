//! What the plugin needs on its node: itself, how to reach the API server, and the node's name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::Error;

/// How often the token is looked at: kubelet renews it long before the old one expires.
const LOOKS: Duration = Duration::from_secs(10);
/// Where kubelet puts the service account of a pod.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Below this a pod has directories of the host.
const HOST: &str = "/host";
/// What this process runs, also when another program has its name by now.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Where the plugin is installed.
#[derive(Debug, Clone, Default)]
pub(super) struct Targets {
    /// Directory of plugins.
    pub(super) bin_dir: Option<PathBuf>,
    /// Directory of network configurations, which has that of the flat file.
    pub(super) conf_dir: Option<PathBuf>,
}

impl Targets {
    /// Installs what is wanted, and keeps the kubeconfig's token as new as the pod's. Ends only where there is nothing to do
    /// at all.
    ///
    /// # Errors
    /// When the first installation fails.
    pub(super) async fn keep(&self, node_name: Option<&str>) -> Result<(), Error> {
        if let Some(directory) = &self.bin_dir {
            let done = host::program::install(Path::new(THIS_PROGRAM), directory, "whereabouts")
                .map_err(Error::Install)?;
            let what = if done { "installed" } else { "up to date:" };
            tracing::info!("{what} {}", directory.join("whereabouts").display());
        }
        let Some(directory) = self.conf_dir.as_ref().map(|directory| directory.join("whereabouts.d")) else {
            return Ok(());
        };
        let access = Access::of_pod(|name| std::env::var(name).ok()).ok_or(Error::NoServiceAccount)?;
        access.install(&directory, node_name)?;
        loop {
            tokio::time::sleep(LOOKS).await;
            // What could not be read or written now is tried again; the token that is there is good for a while.
            if let Err(error) = access.install(&directory, node_name) {
                tracing::warn!("{error}");
            }
        }
    }
}

/// How a pod reaches the API server.
#[derive(Debug)]
struct Access {
    service_account: PathBuf,
    server: String,
}

impl Access {
    /// By the variables that kubelet sets; `None` outside a cluster.
    fn of_pod(env: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let get = |name| env(name).filter(|value| !value.is_empty());
        let (host, port) = (get("KUBERNETES_SERVICE_HOST")?, get("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Some(Access { service_account: SERVICE_ACCOUNT.into(), server: format!("https://{host}:{port}") })
    }

    /// Writes what is not there as it should be. A flat file that is there is the administrator's, whatever it says.
    fn install(&self, directory: &Path, node_name: Option<&str>) -> Result<(), Error> {
        host::durable::make_directory(directory).map_err(Error::Install)?;
        let kubeconfig = directory.join("whereabouts.kubeconfig");
        update(&kubeconfig, &text(&self.kubeconfig()?))?;
        if let Some(name) = node_name {
            update(&directory.join("nodename"), name)?;
        }
        let flat = directory.join("whereabouts.conf");
        if flat.exists() {
            return Ok(());
        }
        let seen = json!({"kubernetes": {"kubeconfig": seen_by_host(&kubeconfig)}});
        update(&flat, &text(&seen))
    }

    /// The kubeconfig with the token as it is now.
    fn kubeconfig(&self) -> Result<Value, Error> {
        let read = |name: &str| {
            let path = self.service_account.join(name);
            std::fs::read_to_string(&path)
                .map_err(|cause| Error::Install(host::durable::Error { operation: "reading", path, cause }))
        };
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": {
                "server": self.server, "certificate-authority-data": k8s_openapi::ByteString(read("ca.crt")?.into_bytes()),
            }}],
            "users": [{"name": "whereabouts", "user": {"token": read("token")?.trim()}}],
            "contexts": [{"name": "whereabouts", "context": {"cluster": "local", "user": "whereabouts"}}],
            "current-context": "whereabouts",
        }))
    }
}

/// JSON is YAML.
fn text(object: &Value) -> String {
    format!("{object:#}\n")
}

/// Where the host has a file that a pod sees below [`HOST`].
fn seen_by_host(path: &Path) -> PathBuf {
    path.strip_prefix(HOST).map_or_else(|_| path.to_owned(), |rest| Path::new("/").join(rest))
}

fn update(path: &Path, content: &str) -> Result<(), Error> {
    if std::fs::read(path).is_ok_and(|there| there == content.as_bytes()) {
        return Ok(());
    }
    host::durable::write(path, content.as_bytes()).map_err(Error::Install)?;
    tracing::info!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{Places, kubeconfig};

    #[test]
    fn the_plugin_finds_what_was_installed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let env = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        };
        assert!(Access::of_pod(|_| None).is_none());
        let access = Access { service_account: path("account"), ..Access::of_pod(env).unwrap() };
        let directory = path("whereabouts.d");
        fs::create_dir(path("account")).unwrap();
        assert!(access.install(&directory, None).is_err(), "no token");
        fs::write(path("account/ca.crt"), "ca").unwrap();
        for token in ["first", "second"] {
            fs::write(path("account/token"), format!("{token}\n")).unwrap();
            access.install(&directory, Some("n1")).unwrap();
            let places = Places { flat_files: vec![directory.join("whereabouts.conf")], ..Places::default() };
            let file = kubeconfig(&places).unwrap().unwrap();
            let text = fs::read_to_string(&file).unwrap();
            for part in ["\"https://[fd00::1]:443\"", &format!("\"{token}\""), "\"Y2E=\""] {
                assert!(text.contains(part), "{part} in {text}");
            }
            kube::config::Kubeconfig::from_yaml(&text).unwrap();
        }
        assert_eq!(fs::read_to_string(directory.join("nodename")).unwrap(), "n1");
        fs::write(directory.join("whereabouts.conf"), "{}").unwrap();
        access.install(&directory, None).unwrap();
        assert_eq!(fs::read_to_string(directory.join("whereabouts.conf")).unwrap(), "{}");
        let seen = seen_by_host(Path::new("/host/etc/cni/net.d/whereabouts.d/whereabouts.kubeconfig"));
        assert_eq!(seen, Path::new("/etc/cni/net.d/whereabouts.d/whereabouts.kubeconfig"));
        assert_eq!(seen_by_host(Path::new("/hostile/x")), Path::new("/hostile/x"));
    }
}
