//! CHECK, STATUS and GC.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::SystemTime;

use cni::cache::CachedAttachment;
use cni::{Attachment, AttachmentId, NetworkList, Request};

use crate::Error;
use crate::config::Conf;
use crate::detach;
use crate::kubernetes::Kubernetes;
use crate::nad::Network;
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

/// Whether pods can be attached: the networks that every pod gets are ready, their plugins are installed, and they say
/// so. Networks that pods name are their owners' affair: a broken one must not take the node out of service.
///
/// # Errors
/// What is in the way.
pub async fn status(conf: &Conf) -> Result<(), Error> {
    let kubernetes = Kubernetes::connect_for_call(conf.kubeconfig.as_deref()).await?;
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
    let runtime = conf.runtime();
    networks::of_node(conf, kubernetes).await?.into_iter().try_for_each(|Network { list, label, .. }| {
        runtime.check_installed(&list).and_then(|()| runtime.status(&list)).map_err(|source| {
            Error::Delegate { verb: "getting the status of", network: list.name, label, source }
        })
    })
}

/// Takes down every sandbox of which something is known here and that the runtime does not know any more, then lets the
/// networks of those it knows, and those that every pod gets, collect their own garbage. `turn` takes the turn of a
/// sandbox, if no other call of it runs.
///
/// The runtime made its list before it `asked`: what came later is not on it, and stays.
///
/// # Errors
/// Everything that failed, after all was attempted.
pub async fn gc<T>(
    node: &Node,
    conf: &Conf,
    kubernetes: Option<&Kubernetes>,
    request: &Request,
    asked: SystemTime,
    turn: impl Fn(&str) -> Option<T>,
) -> Result<(), Error> {
    // Without a list nothing can be concluded.
    let Some(valid) = request.valid_attachments().map_err(Error::Conf)? else { return Ok(()) };
    let records = Records::new(&conf.cni_dir);
    let mut errors = Vec::new();
    let mut networks = Networks::new();
    let mut stale = BTreeSet::new();
    for container in known_containers(conf, &records)? {
        let ifname = valid.iter().find(|a| a.container_id == container).map(|a| a.ifname.clone());
        let turn = turn(&container);
        let is_late = turn.is_none() || records.written(&container).is_some_and(|when| when > asked);
        let is_valid = ifname.is_some() || is_late;
        let mut sandbox =
            Request { container_id: container, ifname: ifname.unwrap_or_default(), ..request.clone() };
        let attached = Attached::read(conf, &records, &sandbox);
        if is_valid {
            attached.keep(&mut networks);
            continue;
        }
        sandbox.netns = attached.surviving_netns();
        if let Err(error) = detach::release_sandbox(node, conf, &sandbox) {
            errors.push(error);
            stale.insert(sandbox.container_id);
        }
    }
    match networks::of_node(conf, kubernetes).await {
        Ok(of_node) => {
            for (index, Network { list, .. }) in of_node.into_iter().enumerate() {
                let entry = networks.entry(list.name.clone()).or_insert((list, Vec::new()));
                // What the runtime lists are attachments to the primary.
                entry.1.extend(valid.iter().filter(|_| index == 0).cloned());
            }
        }
        Err(error) => errors.push(error),
    }
    let runtime = conf.runtime();
    for (network, (list, mut valid)) in networks {
        // Read before what is valid is: an attachment comes to be known after its sandbox is on record.
        let known = match runtime.cache().attachments(None) {
            Ok(known) => known,
            Err(error) => {
                errors.push(Error::Conf(error));
                continue;
            }
        };
        // The turns are held until the network is done, so that nobody attaches what is being collected.
        let (turns, now) = match attached_now(conf, &records, request, &stale, &turn) {
            Ok(now) => now,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        valid.extend(now.into_iter().filter(|(name, _)| *name == network).flat_map(|(_, (_, now))| now));
        let collected = runtime.gc_of(&list, &valid, known);
        drop(turns);
        if let Err(source) = collected {
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

/// What is attached now and stays: all but the `stale` sandboxes, which could not be taken down, as far as their turns can
/// be taken. Those turns.
fn attached_now<T>(
    conf: &Conf,
    records: &Records,
    request: &Request,
    stale: &BTreeSet<String>,
    turn: &impl Fn(&str) -> Option<T>,
) -> Result<(Vec<T>, Networks), Error> {
    let (mut turns, mut networks) = (Vec::new(), Networks::new());
    for container in known_containers(conf, records)? {
        match stale.contains(&container).then(|| turn(&container)).flatten() {
            Some(turn) => turns.push(turn),
            None => {
                let sandbox = Request { container_id: container, ..request.clone() };
                Attached::read(conf, records, &sandbox).keep(&mut networks);
            }
        }
    }
    Ok((turns, networks))
}

/// Those with a record, and those of which only results are cached.
fn known_containers(conf: &Conf, records: &Records) -> Result<BTreeSet<String>, Error> {
    let cached = conf.runtime().cache().attachments(None).map_err(Error::Conf)?;
    let cached = cached.into_iter().map(|cached| cached.container_id);
    Ok(records.containers()?.into_iter().chain(cached).collect())
}

/// Networks by name, each with the attachments that are to stay.
type Networks = BTreeMap<String, (NetworkList, Vec<AttachmentId>)>;

/// What a sandbox is attached to: by its record, or where that is of no use by the cached results.
struct Attached(Vec<(NetworkList, Attachment)>);

impl Attached {
    fn read(conf: &Conf, records: &Records, sandbox: &Request) -> Self {
        if let Ok(Record::Delegates(delegates)) = records.read(sandbox) {
            return Attached(delegates.into_iter().map(|d| (d.list, d.attachment)).collect());
        }
        let cached = conf.runtime().cache().attachments(Some(&sandbox.container_id)).unwrap_or_default();
        let each = |cached: CachedAttachment| Some((NetworkList::parse(&cached.config).ok()?, cached.into()));
        Attached(cached.into_iter().filter_map(each).collect())
    }

    fn keep(self, networks: &mut Networks) {
        for (list, Attachment { container_id, ifname, .. }) in self.0 {
            let entry = networks.entry(list.name.clone()).or_insert((list, Vec::new()));
            entry.1.push(AttachmentId { container_id, ifname });
        }
    }

    /// The namespace of a forgotten sandbox, if it can still be told by its path. Below `/proc` the path may have
    /// become another process's.
    fn surviving_netns(&self) -> Option<PathBuf> {
        let path = self.0.first()?.1.netns.clone()?;
        (!path.starts_with("/proc") && path.exists()).then_some(path)
    }
}
