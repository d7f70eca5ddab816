//! DEL: everything a sandbox was given, in reverse, from what is on disk.

use cni::{Attachment, NetworkList, Request};

use crate::Error;
use crate::config::Conf;
use crate::delegate::Delegate;
use crate::node::Node;
use crate::record::{Record, Records};

/// Takes the sandbox of `request` down. One of which nothing is known is down.
///
/// # Errors
/// Everything that could not be released, after all was attempted; it stays on record for the next DEL.
pub fn release_sandbox(node: &Node, conf: &Conf, request: &Request) -> Result<(), Error> {
    let records = Records::new(&conf.cni_dir);
    let container = &request.container_id;
    match records.read(request)? {
        Record::Delegates(mut delegates) => {
            for delegate in &mut delegates {
                // The runtime knows whether the namespace is still there; the record only where it was.
                delegate.attachment.netns.clone_from(&request.netns);
            }
            release(node, conf, container, &delegates)
        }
        Record::Absent => release_cached(conf, request),
        Record::Corrupt(reason) => {
            tracing::warn!(
                "failed to get the cached delegates file of {container}: {reason}; releasing what the result cache tells instead"
            );
            release_cached(conf, request)?;
            records.write(container, &[])
        }
    }
}

/// Runs DEL of the delegates in reverse. What fails is left on record, unless `retryDeleteOnError` says that it is
/// not; where nothing fails the record goes.
///
/// A delegate whose ADD did not succeed (it has no cached result) has nothing of which we know; its DEL is
/// attempted, and failing it keeps nobody's sandbox alive.
///
/// # Errors
/// Everything that could not be released.
pub fn release(node: &Node, conf: &Conf, container: &str, delegates: &[Delegate]) -> Result<(), Error> {
    let runtime = conf.runtime();
    let mut kept: Vec<Delegate> = Vec::new();
    let mut errors = Vec::new();
    for delegate in delegates.iter().rev() {
        let Delegate { list, attachment, label, .. } = delegate;
        let attached = runtime.cache().load(&list.name, container, &attachment.ifname).is_some();
        match runtime.del(list, attachment) {
            Ok(()) => tracing::info!("{label}: deleted {}", attachment.ifname),
            Err(source) if attached => {
                kept.insert(0, delegate.clone());
                errors.push(Error::Delegate {
                    verb: "deleting container from",
                    network: list.name.clone(),
                    label: label.clone(),
                    source,
                });
            }
            Err(error) => tracing::warn!("{label}: was not attached, and deleting it failed: {error}"),
        }
        if let Some(file) = delegate.device_info_file(node) {
            match host::durable::remove(&file) {
                Ok(_) => {}
                Err(error) => tracing::warn!("{label}: {error}"),
            }
        }
    }
    if !conf.retry_delete {
        for delegate in kept.drain(..) {
            let Delegate { list, attachment, label, .. } = delegate;
            tracing::warn!("{label}: retryDeleteOnError is false, so what DEL left of it is forgotten");
            if let Err(error) = runtime.cache().remove(&list.name, container, &attachment.ifname) {
                tracing::warn!("{label}: {error}");
            }
        }
    }
    if let Err(error) = Records::new(&conf.cni_dir).write(container, &kept) {
        errors.push(error);
    }
    Error::join(errors)
}

/// Without a record the result cache still tells what was attached, with which configuration.
fn release_cached(conf: &Conf, request: &Request) -> Result<(), Error> {
    let runtime = conf.runtime();
    let cached = runtime.cache().attachments(Some(&request.container_id)).map_err(Error::Conf)?;
    if cached.is_empty() {
        tracing::debug!("nothing is known of container {}: nothing to delete", request.container_id);
    }
    let mut errors = Vec::new();
    for cached in cached {
        let (network, config) = (cached.network.clone(), cached.config.clone());
        let mut attachment = Attachment::from(cached);
        attachment.netns.clone_from(&request.netns);
        let deleted = NetworkList::parse(&config).and_then(|list| runtime.del(&list, &attachment));
        if let Err(source) = deleted {
            errors.push(Error::Delegate {
                verb: "deleting container from",
                label: network.clone(),
                network,
                source,
            });
        }
    }
    Error::join(errors)
}
