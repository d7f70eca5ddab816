//! Thin mode: puts the plugin on the node and keeps its configuration and kubeconfig (the peer's `thin_entrypoint`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use cni::{Object, Version};
use tokio::signal::unix::{SignalKind, signal};

use crate::flags::{Flag, Values};
use crate::generate::{self, Generated};
use crate::kubeconfig::Access;
use crate::manager::{Manager, Places};
use crate::primary::Primary;
use crate::{Error, install, uninstall};

/// How often is looked for a renewed token.
const TOKEN_EVERY: Duration = Duration::from_secs(5);

/// The flags, with the peer's names and defaults.
pub const FLAGS: [Flag; 23] = [
    Flag::new(&["cni-bin-dir"], "/host/opt/cni/bin", "where the plugin goes"),
    Flag::new(&["cni-conf-dir"], "/host/etc/cni/net.d", "where the configuration goes"),
    Flag::new(&["cni-version"], "", "cniVersion of the configuration; that of the primary when empty"),
    Flag::new(&["multus-conf-file"], "auto", "a configuration to copy in place of a generated one"),
    Flag::new(&["multus-bin-file"], "/usr/src/multus-cni/bin/multus", "the plugin"),
    Flag::new(
        &["multus-cni-conf-dir"],
        "/host/etc/cni/multus/net.d",
        "where NADs without a spec find theirs",
    ),
    Flag::new(&["skip-multus-binary-copy"], "false", "leave the plugin alone"),
    Flag::new(
        &["multus-kubeconfig-file-host"],
        "/etc/cni/net.d/multus.d/multus.kubeconfig",
        "path of the kubeconfig on the host",
    ),
    Flag::new(&["multus-master-cni-file-name"], "", "file name of the primary; the first one when empty"),
    Flag::new(&["namespace-isolation"], "false", "confine pods to networks of their own namespace"),
    Flag::new(&["global-namespaces"], "", "namespaces whose networks all may use nevertheless"),
    Flag::new(&["multus-autoconfig-dir"], "/host/etc/cni/net.d", "where the primary is"),
    Flag::new(&["multus-log-to-stderr"], "true", "log to standard error"),
    Flag::new(&["multus-log-level"], "", "debug, verbose, error or panic"),
    Flag::new(&["multus-log-file"], "", "log to this file"),
    Flag::new(&["override-network-name"], "false", "give the network the primary's name"),
    Flag::new(&["cleanup-config-on-exit"], "false", "remove the configuration at the end"),
    Flag::new(&["skip-config-watch"], "false", "do not follow the primary"),
    Flag::new(&["rename-conf-file"], "false", "rename the primary's file to .old"),
    Flag::new(&["readiness-indicator-file"], "", "a file that tells that the default network is ready"),
    Flag::new(&["additional-bin-dir"], "", "where plugins are looked for first"),
    Flag::new(&["force-cni-version"], "false", "accepted; the configuration has cni-version anyway"),
    Flag::new(&["skip-tls-verify"], "false", "do not look at the API server's certificate"),
];

/// Installs and keeps thin multus until told to end.
///
/// # Errors
/// What is missing or refused.
pub async fn run(values: &Values) -> Result<(), Error> {
    let level = values.text("multus-log-level");
    if !matches!(level.to_ascii_lowercase().as_str(), "" | "debug" | "verbose" | "error" | "panic") {
        return Err(Error::Usage(format!(
            "multus-log-level {level:?} is none; it must be one of debug, verbose, error, panic"
        )));
    }
    let listen = |kind| signal(kind).map_err(|e| Error::Usage(format!("cannot listen to signals: {e}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    if !values.is_on("skip-multus-binary-copy") {
        let file = values.path("multus-bin-file");
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("multus");
        install::install_as(&file, &values.path("cni-bin-dir"), name)?;
    }
    let conf_dir = values.path("cni-conf-dir");
    host::durable::make_directory(&values.path("multus-cni-conf-dir"))?;
    let access = Access::of_pod(|name| std::env::var(name).ok(), values.is_on("skip-tls-verify"));
    let kubeconfig = conf_dir.join("multus.d/multus.kubeconfig");
    if let Some(access) = &access {
        access.refresh(&kubeconfig)?;
    }
    let work = async {
        let mut manager = manager(values);
        let renames = values.is_on("rename-conf-file");
        if renames || values.is_on("skip-config-watch") {
            wait_for(|| manager.keep()).await;
            if renames && let Err(error) = rename_primary(values) {
                tracing::error!("{error}");
            }
            std::future::pending::<()>().await;
        }
        manager.run().await;
    };
    tokio::select! {
        () = work => {}
        () = refresh(access, &kubeconfig) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if values.is_on("cleanup-config-on-exit") {
        uninstall::remove_configuration(&conf_dir, copied(values).as_deref())?;
    }
    Ok(())
}

/// After that nobody but multus uses it, and it cannot be followed any more.
fn rename_primary(values: &Values) -> Result<(), Error> {
    let master = values.optional("multus-master-cni-file-name");
    let path = Primary::find(&values.path("multus-autoconfig-dir"), master.as_deref())?.path;
    let mut renamed = path.clone().into_os_string();
    renamed.push(".old");
    std::fs::rename(&path, renamed).map_err(|e| Error::file("renaming", path, e))
}

async fn wait_for(mut done: impl FnMut() -> Result<(), Error>) {
    while let Err(error) = done() {
        tracing::error!("{error}");
        tokio::time::sleep(TOKEN_EVERY).await;
    }
}

/// Writes the kubeconfig anew whenever the token is renewed, for ever.
async fn refresh(access: Option<Access>, kubeconfig: &Path) {
    let Some(access) = access else { return std::future::pending().await };
    loop {
        match access.refresh(kubeconfig) {
            Ok(true) => tracing::info!("wrote {}", kubeconfig.display()),
            Ok(false) => {}
            Err(error) => tracing::error!("{error}"),
        }
        tokio::time::sleep(TOKEN_EVERY).await;
    }
}

fn manager(values: &Values) -> Manager {
    let source = values.path("multus-autoconfig-dir");
    let places = Places {
        target: values.path("cni-conf-dir"),
        source: source.clone(),
        master: values.optional("multus-master-cni-file-name"),
        copied: copied(values),
        // The plugin waits for it by itself.
        readiness_indicator: None,
    };
    let values = values.clone();
    Manager::new(places, Box::new(move |primary| thin(&values, primary)))
}

/// What the runtime reads in thin mode.
///
/// # Errors
/// Code 1 for a version that is not known.
pub fn thin(values: &Values, primary: &Primary) -> Result<Generated, cni::Error> {
    let version: Version = match values.optional("cni-version") {
        Some(text) => text.parse()?,
        None => primary.network.version,
    };
    let mut plugin = Object::new();
    plugin.set("type", "multus")?;
    generate::set_capabilities(&mut plugin, primary)?;
    // In the order in which the peer writes them.
    if values.is_on("namespace-isolation") {
        plugin.set("namespaceIsolation", &true)?;
    }
    let set_text = |plugin: &mut Object, key: &str, value: Option<String>| match value {
        Some(value) => plugin.set(key, &value),
        None => Ok(()),
    };
    set_text(&mut plugin, "globalNamespaces", values.optional("global-namespaces"))?;
    if !values.is_on("multus-log-to-stderr") {
        plugin.set("logToStderr", &false)?;
    }
    set_text(&mut plugin, "logLevel", values.optional("multus-log-level").map(|l| l.to_ascii_lowercase()))?;
    set_text(&mut plugin, "logFile", values.optional("multus-log-file"))?;
    set_text(&mut plugin, "binDir", values.optional("additional-bin-dir"))?;
    // The flag has the container's path; the plugin runs on the host.
    let conf_dir = values.text("multus-cni-conf-dir");
    plugin.set("confDir", conf_dir.strip_prefix("/host").unwrap_or(conf_dir))?;
    set_text(&mut plugin, "readinessindicatorfile", values.optional("readiness-indicator-file"))?;
    plugin.set("kubeconfig", values.text("multus-kubeconfig-file-host"))?;
    plugin.set("delegates", &[&primary.object])?;
    generate::around(generate::network_name(primary, values.is_on("override-network-name")), version, &plugin)
}

/// The administrator's own configuration, where there is one.
fn copied(values: &Values) -> Option<PathBuf> {
    values.optional("multus-conf-file").filter(|file| file != "auto").map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags;

    #[test]
    fn the_primary_is_a_delegate_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let conf = r#"{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"type":"a","z":18446744073709551615,"b":"<&>"}]}"#;
        std::fs::write(directory.path().join("10-a.conflist"), conf).unwrap();
        let primary = Primary::find(directory.path(), None).unwrap();
        let values =
            |arguments: &str| flags::parse(&FLAGS, arguments.split_whitespace().map(str::to_owned)).unwrap();
        let made =
            thin(&values("--multus-log-to-stderr=false --multus-log-level verbose"), &primary).unwrap();
        assert_eq!(made.name, "00-multus.conf");
        let text = String::from_utf8(made.content).unwrap();
        for part in [
            &format!("\"delegates\": [{conf}]"),
            "\"logToStderr\": false",
            "\"logLevel\": \"verbose\"",
            "\"confDir\": \"/etc/cni/multus/net.d\"",
            "\"kubeconfig\": \"/etc/cni/net.d/multus.d/multus.kubeconfig\"",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("namespaceIsolation"), "{text}");
        let all = "--namespace-isolation --global-namespaces=a,b --multus-log-to-stderr=0 --multus-log-level=DEBUG \
                   --multus-log-file=/l --additional-bin-dir=/b --readiness-indicator-file=/r";
        let text = String::from_utf8(thin(&values(all), &primary).unwrap().content).unwrap();
        let keys: Vec<&str> = text.lines().filter_map(|line| line.split('"').nth(1)).collect();
        assert_eq!(
            keys,
            [
                "cniVersion",
                "name",
                "type",
                "namespaceIsolation",
                "globalNamespaces",
                "logToStderr",
                "logLevel",
                "logFile",
                "binDir",
                "confDir",
                "readinessindicatorfile",
                "kubeconfig",
                "delegates"
            ]
        );
        assert!(text.contains("\"logLevel\": \"debug\""), "{text}");
        let made = thin(&values("--cni-version=1.0.0 --override-network-name"), &primary).unwrap();
        assert_eq!(made.name, "00-multus.conflist");
        assert!(String::from_utf8(made.content).unwrap().contains("\"name\": \"cbr0\""));
    }
}
