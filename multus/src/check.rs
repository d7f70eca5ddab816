//! CHECK, STATUS and GC.

use std::collections::BTreeMap;

use cni::{AttachmentId, NetworkList, Request};

use crate::Error;
use crate::config::Conf;
use crate::delegate::Delegate;
use crate::detach;
use crate::kubernetes::Kubernetes;
use crate::networks;
use crate::node::Node;
use crate::record::{Record, Records};

/// Checks every network of the sandbox, as far as its version has CHECK.
///
/// # Errors
/// The first network that is not as ADD left it; [`Error::NoRecord`] when nothing is known of the sandbox.
pub fn check(conf: &Conf, request: &Request) -> Result<(), Error> {
    let records = Records::new(&conf.cni_dir);
    let Record::Delegates(delegates) = records.read(request)? else {
        return Err(Error::NoRecord {
            container: request.container_id.clone(),
            directory: records.directory().to_owned(),
        });
    };
    let runtime = conf.runtime();
    for delegate in delegates.iter().filter(|d| d.list.version.has_check()) {
        runtime.check(&delegate.list, &delegate.attachment).map_err(|source| Error::Delegate {
            verb: "checking container in",
            network: delegate.list.name.clone(),
            label: delegate.label.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Whether pods can be attached: the default network is ready, its plugins are installed, and they say so.
///
/// # Errors
/// What is in the way.
pub async fn status(conf: &Conf) -> Result<(), Error> {
    let kubernetes = Kubernetes::connect(conf.kubeconfig.as_deref()).await?;
    status_with(conf, kubernetes.as_ref()).await
}

/// As [`status`], with a client that is there already.
///
/// # Errors
/// As for [`status`].
pub async fn status_with(conf: &Conf, kubernetes: Option<&Kubernetes>) -> Result<(), Error> {
    if let Some(path) = conf.readiness_indicator.as_ref().filter(|path| !path.exists()) {
        return Err(Error::NotReady { path: path.clone() });
    }
    let primary = networks::primary(conf, kubernetes).await?;
    let runtime = conf.runtime();
    runtime.check_installed(&primary.list).and_then(|()| runtime.status(&primary.list)).map_err(|source| {
        Error::Delegate {
            verb: "getting the status of",
            network: primary.list.name.clone(),
            label: primary.label.clone(),
            source,
        }
    })
}

/// Takes down every sandbox on record that the runtime does not know any more, then lets the networks of those
/// it knows, and the primary, collect their own garbage.
///
/// # Errors
/// Everything that failed, after all was attempted.
pub async fn gc(node: &Node, conf: &Conf, request: &Request) -> Result<(), Error> {
    // Without a list nothing can be concluded.
    let Some(valid) = request.valid_attachments().map_err(Error::Conf)? else { return Ok(()) };
    let records = Records::new(&conf.cni_dir);
    let mut errors = Vec::new();
    let mut networks: BTreeMap<String, (NetworkList, Vec<AttachmentId>)> = BTreeMap::new();
    for container in records.containers()? {
        let ifname = valid.iter().find(|a| a.container_id == container).map(|a| a.ifname.clone());
        let is_valid = ifname.is_some();
        let mut sandbox =
            Request { container_id: container, ifname: ifname.unwrap_or_default(), ..request.clone() };
        match records.read(&sandbox) {
            Ok(Record::Delegates(delegates)) if is_valid => {
                for delegate in delegates {
                    keep(&mut networks, delegate);
                }
            }
            Ok(record) if !is_valid => {
                sandbox.netns = surviving_netns(&record);
                if let Err(error) = detach::release_sandbox(node, conf, &sandbox) {
                    errors.push(error);
                }
            }
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
    }
    match Kubernetes::connect(conf.kubeconfig.as_deref()).await {
        Ok(kubernetes) => match networks::primary(conf, kubernetes.as_ref()).await {
            Ok(primary) => {
                let entry = networks.entry(primary.list.name.clone()).or_insert((primary.list, Vec::new()));
                entry.1.extend(valid);
            }
            Err(error) => errors.push(error),
        },
        Err(error) => errors.push(error),
    }
    let runtime = conf.runtime();
    for (network, (list, valid)) in networks {
        if let Err(source) = runtime.gc(&list, &valid) {
            errors.push(Error::Delegate {
                verb: "collecting garbage of",
                label: network.clone(),
                network,
                source,
            });
        }
    }
    Error::join(errors)
}

fn keep(networks: &mut BTreeMap<String, (NetworkList, Vec<AttachmentId>)>, delegate: Delegate) {
    let Delegate { list, attachment, .. } = delegate;
    let entry = networks.entry(list.name.clone()).or_insert((list, Vec::new()));
    entry.1.push(AttachmentId { container_id: attachment.container_id, ifname: attachment.ifname });
}

/// The namespace of a forgotten sandbox, if it can still be told by its path. Below `/proc` the path may have
/// become another process's.
fn surviving_netns(record: &Record) -> Option<std::path::PathBuf> {
    let Record::Delegates(delegates) = record else { return None };
    let path = delegates.first()?.attachment.netns.clone()?;
    (!path.starts_with("/proc") && path.exists()).then_some(path)
}
