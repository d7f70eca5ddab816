//! Networks of a sandbox that runs: one more, or one less.
//!
//! What is attached goes on the sandbox's record as if ADD had attached it, so DEL takes it away with the rest.

use cni::{CniResult, Request};

use crate::Error;
use crate::attach::{self, Attach};
use crate::config::Conf;
use crate::delegate::{Delegate, Sandbox};
use crate::devices::DevicePool;
use crate::kubernetes::{Kubernetes, Pod};
use crate::networks::Wanted;
use crate::node::Node;
use crate::record::{Record, Records};
use crate::routes::DefaultRoutes;

/// The delegates on record of the sandbox of `request`.
///
/// # Errors
/// When the record cannot be read or understood: what is attached is not known then.
pub fn attached(conf: &Conf, request: &Request) -> Result<Vec<Delegate>, Error> {
    match Records::new(&conf.cni_dir).read(request)? {
        Record::Delegates(delegates) => Ok(delegates),
        Record::Absent => Ok(Vec::new()),
        Record::Corrupt(reason) => Err(Error::Conf(cni::Error::decoding(format!(
            "the record of container {} cannot be understood ({reason}); recreate the pod",
            request.container_id
        )))),
    }
}

/// Attaches one more network, as the interface of `request`, tells an event of it, and returns its result. A network that
/// is attached there already is left as it is, with the result that it had. Telling the pod's network-status is the
/// caller's: only who knows all networks of the pod can.
///
/// # Errors
/// Whatever is in the way; nothing of the network stays attached then.
pub async fn attach(
    node: &Node,
    conf: &Conf,
    request: &Request,
    (kubernetes, pod): (&Kubernetes, &Pod),
    wanted: Wanted,
    devices: &mut DevicePool,
) -> Result<CniResult, Error> {
    let mut on_record = attached(conf, request)?;
    let runtime = conf.runtime();
    let same =
        |d: &&Delegate| d.attachment.ifname == request.ifname && d.list.name == wanted.network.list.name;
    if let Some(delegate) = on_record.iter().find(same)
        && let Some(result) = runtime.cache().result(&delegate.list, &request.container_id, &request.ifname)
    {
        return Ok(result);
    }
    let takes =
        |d: &&Delegate| d.attachment.ifname == request.ifname && d.list.name != wanted.network.list.name;
    if let Some(other) = on_record.iter().find(takes) {
        return Err(Error::InterfaceTaken {
            network: wanted.network.label,
            ifname: request.ifname.clone(),
            holder: format!("network {} of the same pod has it; name another one", other.label),
        });
    }
    attach::check_capabilities(conf, Some((kubernetes, pod)), std::slice::from_ref(&wanted)).await?;
    let sandbox = Sandbox { request, pod: Some(pod), runtime_config: &conf.runtime_config, node };
    let delegate = sandbox.further(wanted, devices)?;
    runtime
        .check_installed(&delegate.list)
        .map_err(|source| Error::Network { network: delegate.label.clone(), source })?;
    let routes = DefaultRoutes::wanted(std::slice::from_ref(&delegate))?;
    let attach = Attach { node, conf, request, delegates: vec![delegate.clone()], routes };
    let netns = attach.open_netns()?;
    attach.check_names(&netns, || ())?.0?;
    let records = Records::new(&conf.cni_dir);
    on_record.push(delegate.clone());
    records.write(&request.container_id, &on_record)?;
    match attach.attach(&netns, None, &mut 0).await {
        Ok(results) => {
            let result = results.into_iter().next().unwrap_or_default();
            if !result.interfaces.is_empty() || !result.ips.is_empty() {
                kubernetes.tell(pod, &attach::added(&delegate.label, &request.ifname, &result)).await;
            }
            Ok(result)
        }
        Err(cause) => match take_away(node, conf, request, on_record, &delegate) {
            Ok(()) => Err(cause),
            Err(undo) => Err(Error::Undo { cause: Box::new(cause), undo: Box::new(undo) }),
        },
    }
}

/// Takes the interface of `request` away; whether it was on record.
///
/// # Errors
/// When its plugins fail; it stays on record then.
pub fn detach(node: &Node, conf: &Conf, request: &Request) -> Result<bool, Error> {
    let on_record = attached(conf, request)?;
    let Some(delegate) = on_record.iter().find(|d| d.attachment.ifname == request.ifname).cloned() else {
        return Ok(false);
    };
    take_away(node, conf, request, on_record, &delegate).map(|()| true)
}

fn take_away(
    node: &Node,
    conf: &Conf,
    request: &Request,
    mut on_record: Vec<Delegate>,
    delegate: &Delegate,
) -> Result<(), Error> {
    let mut attachment = delegate.attachment.clone();
    attachment.netns.clone_from(&request.netns);
    conf.runtime().del(&delegate.list, &attachment).map_err(|source| Error::Delegate {
        verb: "deleting container from",
        network: delegate.list.name.clone(),
        label: delegate.label.clone(),
        source,
    })?;
    if let Some(file) = delegate.device_info_file(node)
        && let Err(error) = host::durable::remove(&file)
    {
        tracing::warn!("{}: {error}", delegate.label);
    }
    on_record.retain(|d| d.attachment.ifname != delegate.attachment.ifname);
    Records::new(&conf.cni_dir).write(&request.container_id, &on_record)
}
