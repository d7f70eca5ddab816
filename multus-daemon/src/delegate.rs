//! `/delegate`: one network of a pod that runs, attached or taken away.
//!
//! A controller outside calls this with the configuration of a NAD when a pod's annotation changes. The daemon's own
//! keys do not replace those of that configuration: it is a delegate's, not multus'.

use std::sync::Arc;

use cni::{CniResult, Command, NetworkList, Object, Request};
use multus::attach::pod_name;
use multus::config::Conf;
use multus::delegate::Delegate;
use multus::devices::DevicePool;
use multus::hotplug;
use multus::kubernetes::{Kubernetes, Pod};
use multus::nad::Network;
use multus::networks::Wanted;
use multus::plugin::complaint;
use tokio::runtime::Handle;

use crate::calls::Calls;
use crate::cancel::Cancel;
use crate::wire::Call;

/// Does what the client asks; a result for ADD alone.
///
/// # Errors
/// What the client is to be told.
pub async fn answer(calls: &Arc<Calls>, call: &Call) -> Result<Option<CniResult>, cni::Error> {
    let config = Object::parse(&call.config).map_err(|e| e.context("network configuration"))?;
    let delegate = call.request(&config)?;
    let list = NetworkList::from_object(config)?;
    let request = calls.own_request(call)?;
    let cancel = Cancel::default();
    let given_up = cancel.on_drop();
    let failed = |error: multus::Error| complaint(&request, &error);
    let conf = calls.conf_of(call, &request, &cancel).map_err(failed)?;
    let turn = calls.sandboxes.turn(&request.container_id).await;
    let permit = calls.permit(delegate.command).await;
    let pod = match delegate.command {
        Command::Add => Some(the_pod(calls, &conf, &request).await?),
        _ => None,
    };
    let job = Job { request, conf, list, call: call.clone(), delegate, pod };
    let (calls, handle) = (Arc::clone(calls), Handle::current());
    let worked = tokio::task::spawn_blocking(move || {
        let done = job.perform(&calls, &handle);
        drop((turn, permit));
        done
    });
    let done = worked
        .await
        .map_err(|e| cni::Error::internal(format!("the call broke off: {e}; please report this")))?;
    given_up.disarm();
    done
}

async fn the_pod(calls: &Calls, conf: &Conf, request: &Request) -> Result<(Kubernetes, Pod), cni::Error> {
    let Some((namespace, name)) = pod_name(request) else {
        let message = "CNI_ARGS must name the pod by K8S_POD_NAMESPACE and K8S_POD_NAME";
        return Err(cni::Error::invalid_environment(message));
    };
    let failed = |error: multus::Error| complaint(request, &error);
    let client = calls.clients.client(conf.kubeconfig.as_deref()).await.map_err(failed)?;
    let Some(kubernetes): Option<Kubernetes> = client else {
        return Err(cni::Error::invalid_config(
            "there is no cluster to look the pod up in: give the daemon a kubeconfig",
        ));
    };
    let uid = request.args.get("K8S_POD_UID");
    let pod = kubernetes.pod_with_uid(namespace, name, uid).await.map_err(failed)?;
    let pod = pod.ok_or_else(|| {
        cni::Error::unknown_container(format!("pod {namespace}/{name} does not exist (any more)"))
    })?;
    Ok((kubernetes, pod))
}

struct Job {
    /// The call for the sandbox, with the daemon's configuration.
    request: Request,
    conf: Conf,
    /// The network that the client sent.
    list: NetworkList,
    call: Call,
    /// The call with the client's configuration.
    delegate: Request,
    pod: Option<(Kubernetes, Pod)>,
}

impl Job {
    fn perform(&self, calls: &Calls, handle: &Handle) -> Result<Option<CniResult>, cni::Error> {
        let Job { request, conf, list, .. } = self;
        let failed = |error: multus::Error| complaint(request, &error);
        let runtime = conf.runtime();
        match self.delegate.command {
            Command::Add => self.add(calls, handle).map(Some),
            Command::Del => {
                let on_record = self.on_record()?;
                if on_record.is_some_and(|delegate| delegate.is_primary) {
                    return Err(cni::Error::invalid_environment(format!(
                        "{} is the interface of the pod's primary network, which goes with the pod; CNI_IFNAME must \
                         name another one",
                        request.ifname
                    )));
                }
                if !hotplug::detach(&calls.node, conf, request).map_err(failed)? {
                    // Attached by a daemon that kept no record of it.
                    runtime.del(list, &self.attachment())?;
                }
                Ok(None)
            }
            Command::Check => match self.on_record()? {
                // With all that it was attached with, of which the client knows only a part.
                Some(delegate) => runtime.check(&delegate.list, &delegate.attachment),
                None => runtime.check(list, &self.attachment()),
            }
            .map(|()| None),
            Command::Status => {
                runtime.check_installed(list).and_then(|()| runtime.status(list)).map(|()| None)
            }
            Command::Gc => match self.delegate.valid_attachments()? {
                Some(valid) => runtime.gc(list, &valid).map(|()| None),
                None => Ok(None),
            },
            Command::Version => Ok(None),
        }
    }

    fn add(&self, calls: &Calls, handle: &Handle) -> Result<CniResult, cni::Error> {
        let Job { request, conf, list, .. } = self;
        let Some((kubernetes, pod)) = &self.pod else {
            return Err(cni::Error::internal("no pod was looked for; please report this"));
        };
        let wanted = Wanted {
            network: Network::local(list.clone()),
            selection: Some(self.call.attributes.selection(&list.name)?),
        };
        let mut devices = DevicePool::default();
        let attach = hotplug::attach(&calls.node, conf, request, (kubernetes, pod), wanted, &mut devices);
        handle.block_on(attach).map_err(|error| complaint(request, &error))
    }

    /// The interface of the call as it is on record.
    fn on_record(&self) -> Result<Option<Delegate>, cni::Error> {
        let Job { request, conf, .. } = self;
        let attached = hotplug::attached(conf, request).map_err(|error| complaint(request, &error))?;
        Ok(attached.into_iter().find(|delegate| delegate.attachment.ifname == request.ifname))
    }

    /// The attachment as a runtime would describe it.
    fn attachment(&self) -> cni::Attachment {
        let Request { container_id, netns, ifname, args, .. } = self.request.clone();
        let cached = self.conf.runtime().cache().load(&self.list.name, &container_id, &ifname);
        let args = args.pairs().to_vec();
        let capabilities = cached.map(|cached| cached.capabilities).unwrap_or_default();
        cni::Attachment { container_id, netns, ifname, args, capabilities }
    }
}
