//! The runtime's side: whole networks, attached and detached.

use crate::cache::{Cache, CachedAttachment};
use crate::exec::{self, Environment, Executor};
use crate::{Args, AttachmentId, CniResult, Command, Error, NetworkList, Object, PluginConf, Version, names};
use std::path::PathBuf;
use std::sync::Arc;

/// A container's attachment to a network.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The container ID.
    pub container_id: String,
    /// The path of the container's network namespace; `None` when it is gone (DEL).
    pub netns: Option<PathBuf>,
    /// The interface's name in the container.
    pub ifname: String,
    /// The pairs of `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// Values for capabilities; each plugin gets those it declares, as `runtimeConfig`.
    pub capabilities: Object,
}

/// Runs the plugins of networks, with libcni's semantics and libcni's result cache.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Where plugins are looked for, in order; also their `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// The cache's directory; files are in its `results`.
    pub cache_dir: PathBuf,
    /// What starts the plugins; [`exec::Direct`] where there is nothing special about it.
    pub executor: Arc<dyn Executor>,
}

impl Runtime {
    /// Whether every plugin of the network is there to be run.
    ///
    /// # Errors
    /// Code 50, naming the plugin and where it was looked for.
    pub fn check_installed(&self, list: &NetworkList) -> Result<(), Error> {
        list.plugins.iter().try_for_each(|plugin| self.executor.find(&plugin.kind, &self.path).map(drop))
    }

    /// Runs ADD of every plugin in order, each with the result of the one before, and caches the last result.
    /// A failing ADD leaves the plugins before it as they are; [`del`](Self::del) undoes them. When a plugin is
    /// not installed none is run.
    ///
    /// # Errors
    /// The error of the plugin that failed, preceded by its type; code 5 when the result cannot be cached; codes
    /// 3, 4 and 7 for names that are not allowed.
    pub fn add(&self, list: &NetworkList, attachment: &Attachment) -> Result<CniResult, Error> {
        names::check_container_id(&attachment.container_id)?;
        names::check_network_name(&list.name)?;
        names::check_interface_name(&attachment.ifname)?;
        self.check_installed(list)?;
        let mut result: Option<CniResult> = None;
        for plugin in &list.plugins {
            let add = || {
                let config = configure(list, plugin, result.as_ref(), Some(&attachment.capabilities))?;
                let output = self.call(plugin, Command::Add, Some(attachment), &config)?;
                CniResult::parse(&output, list.version)
            };
            result = Some(add().map_err(|e| failed(plugin, "add", e))?);
        }
        let result = result.unwrap_or_default();
        self.cache().store(&cached(list, attachment, &result)?)?;
        Ok(result)
    }

    /// Runs DEL of every plugin in reverse, with the cached result where the version has it, and forgets the
    /// result.
    ///
    /// # Errors
    /// The error of the first plugin that fails; those before it in the list are not called and the cached
    /// result stays, for the next DEL.
    pub fn del(&self, list: &NetworkList, attachment: &Attachment) -> Result<(), Error> {
        let result = self.cached_result(list, attachment);
        for plugin in list.plugins.iter().rev() {
            configure(list, plugin, result.as_ref(), Some(&attachment.capabilities))
                .and_then(|config| self.call(plugin, Command::Del, Some(attachment), &config))
                .map_err(|e| failed(plugin, "delete", e))?;
        }
        self.cache().remove(&list.name, &attachment.container_id, &attachment.ifname)
    }

    /// Runs CHECK of every plugin in order with the cached result. Does nothing when the list disables it.
    ///
    /// # Errors
    /// The error of the first plugin that fails; code 1 below version 0.4.0, which has no CHECK.
    pub fn check(&self, list: &NetworkList, attachment: &Attachment) -> Result<(), Error> {
        if !list.version.has_check() {
            let version = list.version;
            return Err(Error::incompatible_version(format!(
                "configuration version {:?} does not support the CHECK command",
                version.as_str()
            )));
        }
        if list.disable_check {
            return Ok(());
        }
        let result = self.cached_result(list, attachment);
        for plugin in &list.plugins {
            configure(list, plugin, result.as_ref(), Some(&attachment.capabilities))
                .and_then(|config| self.call(plugin, Command::Check, Some(attachment), &config))
                .map_err(|e| failed(plugin, "check", e))?;
        }
        Ok(())
    }

    /// Detaches every cached attachment of the network that is not among `valid`, then, from version 1.1.0 on,
    /// runs GC of every plugin. Does nothing when the list disables it. All is attempted.
    ///
    /// # Errors
    /// Everything that failed, in one message, with the code of the first.
    pub fn gc(&self, list: &NetworkList, valid: &[AttachmentId]) -> Result<(), Error> {
        self.gc_of(list, valid, self.cache().attachments(None)?)
    }

    /// As [`gc`](Self::gc), with the attachments that were `known` before `valid` was made: what is attached meanwhile is
    /// in neither, and stays.
    ///
    /// # Errors
    /// As for [`gc`](Self::gc).
    pub fn gc_of(
        &self,
        list: &NetworkList,
        valid: &[AttachmentId],
        known: Vec<CachedAttachment>,
    ) -> Result<(), Error> {
        if list.disable_gc {
            return Ok(());
        }
        let mut errors = Vec::new();
        for cached in known {
            let id =
                AttachmentId { container_id: cached.container_id.clone(), ifname: cached.ifname.clone() };
            if cached.network != list.name || valid.contains(&id) {
                continue;
            }
            if let Err(error) = self.del(list, &Attachment::from(cached)) {
                let context = format!("failed to delete stale attachment {} {}", id.container_id, id.ifname);
                errors.push(error.context(context));
            }
        }
        if list.version.has_gc_and_status() {
            for plugin in &list.plugins {
                let collect = || {
                    let mut config = configure(list, plugin, None, None)?;
                    config.set("cni.dev/valid-attachments", valid)?;
                    config.set("cni.dev/attachments", valid)?;
                    self.call(plugin, Command::Gc, None, &config)
                };
                if let Err(error) = collect() {
                    errors.push(failed(plugin, "gc", error));
                }
            }
        }
        join(&errors)
    }

    /// Runs STATUS of every plugin, from version 1.1.0 on.
    ///
    /// # Errors
    /// The error of the first plugin that is not ready, unchanged.
    pub fn status(&self, list: &NetworkList) -> Result<(), Error> {
        if !list.version.has_gc_and_status() {
            return Ok(());
        }
        for plugin in &list.plugins {
            self.call(plugin, Command::Status, None, &configure(list, plugin, None, None)?)?;
        }
        Ok(())
    }

    /// Whether every plugin of the network is installed and speaks its version.
    ///
    /// # Errors
    /// Code 50 for a plugin that is not installed, code 1 for one that does not speak the version.
    pub fn validate(&self, list: &NetworkList) -> Result<(), Error> {
        for plugin in &list.plugins {
            let versions = exec::versions(&exec::find(&plugin.kind, &self.path)?)?;
            if !versions.contains(&list.version) {
                return Err(Error::incompatible_version(format!(
                    "plugin {} does not support config version {:?}",
                    plugin.kind,
                    list.version.as_str()
                ))
                .with_details(format!("it supports {}", Version::join(&versions))));
            }
        }
        Ok(())
    }

    /// The result cache.
    pub fn cache(&self) -> Cache {
        Cache::new(&self.cache_dir)
    }

    fn cached_result(&self, list: &NetworkList, attachment: &Attachment) -> Option<CniResult> {
        if !list.version.has_check() {
            return None;
        }
        self.cache().result(list, &attachment.container_id, &attachment.ifname)
    }

    fn call(
        &self,
        plugin: &PluginConf,
        command: Command,
        attachment: Option<&Attachment>,
        config: &Object,
    ) -> Result<Vec<u8>, Error> {
        let program = self.executor.find(&plugin.kind, &self.path)?;
        let args =
            attachment.map(|a| a.args.iter().cloned().collect::<Args>().to_string()).unwrap_or_default();
        let environment = Environment {
            container_id: attachment.map_or("", |a| &a.container_id),
            netns: attachment.and_then(|a| a.netns.as_deref()),
            ifname: attachment.map_or("", |a| &a.ifname),
            args: &args,
            path: &self.path,
        };
        exec::run_by(self.executor.as_ref(), &program, command, &environment, &config.to_vec())
    }
}

impl From<CachedAttachment> for Attachment {
    fn from(cached: CachedAttachment) -> Self {
        Attachment {
            container_id: cached.container_id,
            netns: Some(PathBuf::from(cached.netns)).filter(|p| !p.as_os_str().is_empty()),
            ifname: cached.ifname,
            args: cached.args,
            capabilities: cached.capabilities,
        }
    }
}

/// What one plugin reads from its standard input.
fn configure(
    list: &NetworkList,
    plugin: &PluginConf,
    result: Option<&CniResult>,
    capabilities: Option<&Object>,
) -> Result<Object, Error> {
    let mut config = plugin.config.clone();
    config.set("name", &list.name)?;
    config.set("cniVersion", &list.version)?;
    if let Some(result) = result {
        config.set("prevResult", &result.to_object(list.version)?)?;
    }
    if let Some(capabilities) = capabilities {
        let declared: Object = plugin.config.decode("capabilities")?.unwrap_or_default();
        let mut runtime_config = Object::new();
        for (capability, value) in capabilities.iter() {
            if declared.get(capability) == Some("true") {
                runtime_config.set_raw(capability, value)?;
            }
        }
        if !runtime_config.is_empty() {
            config.set("runtimeConfig", &runtime_config)?;
        }
    }
    Ok(config)
}

fn cached(
    list: &NetworkList,
    attachment: &Attachment,
    result: &CniResult,
) -> Result<CachedAttachment, Error> {
    Ok(CachedAttachment {
        network: list.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        netns: attachment.netns.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default(),
        config: list.to_vec(),
        args: attachment.args.clone(),
        capabilities: attachment.capabilities.clone(),
        result: Some(result.to_object(list.version)?),
    })
}

fn failed(plugin: &PluginConf, verb: &str, error: Error) -> Error {
    let kind = &plugin.kind;
    error.context(format!("plugin type={kind:?} failed ({verb})"))
}

/// All of `errors` as one, with the code of the first.
fn join(errors: &[Error]) -> Result<(), Error> {
    let Some(code) = errors.first().map(|e| e.code) else { return Ok(()) };
    let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Err(Error::new(code, text))
}
