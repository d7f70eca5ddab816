//! DEL: everything a sandbox was given, in reverse, from what is on disk.

use std::path::PathBuf;

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
        Record::Absent => {
            release_cached(node, conf, request)?;
            // Nor the draft of an ADD that was killed before its record counted.
            records.write(container, &[])
        }
        Record::Corrupt(reason) => {
            tracing::warn!(
                "failed to get the cached delegates file of {container}: {reason}; releasing what the result cache tells instead"
            );
            release_cached(node, conf, request)?;
            records.write(container, &[])
        }
    }
}

/// Runs DEL of the delegates in reverse. What fails is left on record, unless `retryDeleteOnError` says that it is
/// not; where nothing fails the record goes.
///
/// A delegate whose ADD did not succeed (it has no cached result) has nothing of which we know; its DEL is
/// attempted, and failing it keeps nobody's sandbox alive, unless it says itself that it is to be tried again.
///
/// # Errors
/// Everything that could not be released.
pub fn release(node: &Node, conf: &Conf, container: &str, delegates: &[Delegate]) -> Result<(), Error> {
    let runtime = conf.runtime();
    let mut kept: Vec<Delegate> = Vec::new();
    let mut errors = Vec::new();
    for delegate in delegates.iter().rev() {
        let Delegate { list, attachment, label, .. } = delegate;
        let attached = runtime.cache().has(&list.name, container, &attachment.ifname);
        match runtime.del(list, attachment) {
            Ok(()) => tracing::info!("{label}: deleted {}", attachment.ifname),
            Err(source) if attached || source.code == cni::Error::TRY_AGAIN_LATER => {
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
fn release_cached(node: &Node, conf: &Conf, request: &Request) -> Result<(), Error> {
    let runtime = conf.runtime();
    let mut cached = runtime.cache().attachments(Some(&request.container_id)).map_err(Error::Conf)?;
    // The order is not told, but that the primary came first.
    cached.sort_by_key(|cached| cached.ifname == request.ifname);
    if cached.is_empty() {
        tracing::debug!("nothing is known of container {}: nothing to delete", request.container_id);
    }
    let mut errors = Vec::new();
    for cached in cached {
        let network = cached.network.clone();
        let list = match NetworkList::parse(&cached.config) {
            Ok(list) => list,
            // No later DEL would know more.
            Err(error) => {
                tracing::warn!("{network}: its configuration is lost, so it is not deleted: {error}");
                if let Err(error) = runtime.cache().remove(&network, &cached.container_id, &cached.ifname) {
                    tracing::warn!("{network}: {error}");
                }
                forget_device_info(node, &network, &Attachment::from(cached));
                continue;
            }
        };
        let mut attachment = Attachment::from(cached);
        attachment.netns.clone_from(&request.netns);
        let deleted = runtime.del(&list, &attachment);
        forget_device_info(node, &network, &attachment);
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

fn forget_device_info(node: &Node, network: &str, attachment: &Attachment) {
    if let Some(file) = told_device_info_file(node, attachment)
        && let Err(error) = host::durable::remove(&file)
    {
        tracing::warn!("{network}: {error}");
    }
}

/// The device-info file that the attachment was given.
fn told_device_info_file(node: &Node, attachment: &Attachment) -> Option<PathBuf> {
    let file: PathBuf = attachment.capabilities.decode("CNIDeviceInfoFile").ok()??;
    (file.parent() == Some(node.device_info.join("cni").as_path())).then_some(file)
}

#[cfg(test)]
mod tests {
    use cni::Object;
    use cni::cache::CachedAttachment;

    use super::*;

    #[test]
    fn what_no_del_can_use_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let node = Node { device_info: directory.path().join("devinfo"), ..Node::default() };
        let info = node.device_info.join("cni/ns-a-c0ffee_net1");
        std::fs::create_dir_all(info.parent().unwrap()).unwrap();
        std::fs::write(&info, "{}").unwrap();
        let request =
            crate::delegate::tests::request(&format!(r#"{{"name":"m","cniDir":{:?}}}"#, directory.path()));
        let conf = Conf::load(&request).unwrap();
        let cache = conf.runtime().cache();
        let mut capabilities = Object::new();
        capabilities.set("CNIDeviceInfoFile", &info).unwrap();
        let cached = CachedAttachment {
            network: "a".into(),
            container_id: request.container_id.clone(),
            ifname: "net1".into(),
            netns: String::new(),
            config: b"{".to_vec(),
            args: Vec::new(),
            capabilities,
            result: None,
        };
        cache.store(&cached).unwrap();
        assert_eq!(cache.attachments(None).unwrap().len(), 1);
        release_sandbox(&node, &conf, &request).unwrap();
        assert!(cache.attachments(None).unwrap().is_empty() && !info.exists());
    }
}
