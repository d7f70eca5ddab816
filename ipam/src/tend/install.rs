//! What the plugin needs on its node: itself, how to reach the API server, and the node's name.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::Kubeconfig;
use serde_json::{Value, json};

use crate::error::Error;
use crate::kubernetes::{SERVICE_ACCOUNT, namespace_of};

/// How often the token is looked at: kubelet renews it long before the old one expires.
const LOOKS: Duration = Duration::from_secs(10);
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
    /// Installs what is wanted, and keeps the kubeconfig's token as new as the pod's, for ever. What fails is tried again; it
    /// keeps nobody from tending ledgers.
    pub(super) async fn keep(&self, node_name: Option<&str>) -> Infallible {
        let mut is_there = false;
        loop {
            // The program does not change while it runs.
            let program = if is_there { Ok(()) } else { self.install_program() };
            is_there = program.is_ok();
            for error in [program, self.install_access(node_name)].into_iter().filter_map(Result::err) {
                tracing::error!("{error}");
            }
            tokio::time::sleep(LOOKS).await;
        }
    }

    fn install_program(&self) -> Result<(), Error> {
        let Some(directory) = &self.bin_dir else { return Ok(()) };
        let done = host::program::install(Path::new(THIS_PROGRAM), directory, "whereabouts");
        let what = if done.map_err(Error::Install)? { "installed" } else { "up to date:" };
        tracing::info!("{what} {}", directory.join("whereabouts").display());
        Ok(())
    }

    fn install_access(&self, node_name: Option<&str>) -> Result<(), Error> {
        let Some(directory) = &self.conf_dir else { return Ok(()) };
        let access = Access::of_pod(|name| std::env::var(name).ok()).ok_or(Error::NoServiceAccount)?;
        access.install(&directory.join("whereabouts.d"), node_name)
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
        let (content, ours) = (self.kubeconfig()?, self.read("namespace")?);
        // Pools are in its namespace: in another one addresses that pods have would seem free.
        // One that leads nowhere has no pools either.
        let there = Kubeconfig::read_from(&kubeconfig).ok().filter(|file| file.current_context.is_some());
        match there.map(|file| namespace_of(&file)) {
            Some(theirs) if theirs != ours => {
                return Err(Error::OtherNamespace { path: kubeconfig, theirs, ours });
            }
            _ => update(&kubeconfig, &text(&content))?,
        }
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

    fn read(&self, name: &str) -> Result<String, Error> {
        let path = self.service_account.join(name);
        std::fs::read_to_string(&path)
            .map(|text| text.trim().to_owned())
            .map_err(|cause| Error::Install(host::durable::Error { operation: "reading", path, cause }))
    }

    /// The kubeconfig with the token as it is now.
    fn kubeconfig(&self) -> Result<Value, Error> {
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": {
                "server": self.server, "certificate-authority-data": k8s_openapi::ByteString(self.read("ca.crt")?.into_bytes()),
            }}],
            "users": [{"name": "whereabouts", "user": {"token": self.read("token")?}}],
            "contexts": [{"name": "whereabouts", "context": {
                "cluster": "local", "user": "whereabouts", "namespace": self.read("namespace")?,
            }}],
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
        fs::write(path("account/namespace"), "kube-system").unwrap();
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
        fs::write(path("account/namespace"), "elsewhere").unwrap();
        let refused = access.install(&directory, None).unwrap_err().to_string();
        assert!(refused.contains("\"kube-system\"") && refused.contains("\"elsewhere\""), "{refused}");
        fs::write(path("account/namespace"), "kube-system").unwrap();
        fs::write(directory.join("whereabouts.conf"), "{}").unwrap();
        access.install(&directory, None).unwrap();
        assert_eq!(fs::read_to_string(directory.join("whereabouts.conf")).unwrap(), "{}");
        let seen = seen_by_host(Path::new("/host/etc/cni/net.d/whereabouts.d/whereabouts.kubeconfig"));
        assert_eq!(seen, Path::new("/etc/cni/net.d/whereabouts.d/whereabouts.kubeconfig"));
        assert_eq!(seen_by_host(Path::new("/hostile/x")), Path::new("/hostile/x"));
    }
}
