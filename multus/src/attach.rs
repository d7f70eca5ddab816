//! ADD: all networks of a sandbox, or none.

use std::path::Path;
use std::time::Duration;

use cni::{CniResult, Interface, IpConfig, Request};
use futures_util::{StreamExt as _, future::join, stream};
use host::Netns;
use host::netlink;
use ipnet::{IpNet, Ipv4Net};
use tokio::time::Instant;

use crate::Error;
use crate::config::Conf;
use crate::delegate::{Delegate, Sandbox};
use crate::detach;
use crate::device_info::{self, DeviceInfo};
use crate::devices::DevicePool;
use crate::kubelet;
use crate::kubernetes::{Event, EventKind, Kubernetes, Pod};
use crate::networks::{self, Wanted};
use crate::node::Node;
use crate::record::Records;
use crate::routes::DefaultRoutes;
use crate::status;
use crate::undeclared::{self, Policy, Undeclared};
use crate::vlan;

/// How long the default network may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(45);
const READY_PAUSE: Duration = Duration::from_millis(250);

/// Attaches every network of the sandbox and returns the primary's result.
///
/// # Errors
/// Whatever is in the way; nothing stays attached then.
pub async fn add(node: &Node, conf: &Conf, request: &Request) -> Result<CniResult, Error> {
    let kubernetes = Kubernetes::connect_for_call(conf.kubeconfig.as_deref()).await?;
    add_with(node, conf, kubernetes.as_ref(), request).await
}

/// As [`add`], with a client that is there already.
///
/// # Errors
/// As for [`add`].
pub async fn add_with(
    node: &Node,
    conf: &Conf,
    kubernetes: Option<&Kubernetes>,
    request: &Request,
) -> Result<CniResult, Error> {
    await_default_network(conf).await?;
    let pod = match (kubernetes, pod_name(request)) {
        (Some(kubernetes), Some((namespace, name))) => {
            match kubernetes.pod_with_uid(namespace, name, request.args.get("K8S_POD_UID")).await? {
                Some(pod) => Some(checked_uid(request, pod)?),
                None => return Ok(nothing(request)),
            }
        }
        _ => None,
    };
    let wanted = networks::resolve(conf, kubernetes, pod.as_ref()).await;
    if let (Some(kubernetes), Some(pod), Err(error @ Error::NoSuchNad { .. })) = (kubernetes, &pod, &wanted) {
        let message = error.to_string();
        kubernetes.tell(pod, &Event { kind: EventKind::Warning, reason: "NoNetworkFound", message }).await;
    }
    let wanted = wanted?;
    check_capabilities(conf, kubernetes.zip(pod.as_ref()), &wanted).await?;
    let mut devices = devices(node, pod.as_ref(), &wanted).await?;
    let sandbox = Sandbox { request, pod: pod.as_ref(), runtime_config: &conf.runtime_config, node };
    let delegates = sandbox.delegates(wanted, &mut devices)?;
    let attach = Attach { node, conf, request, delegates, routes: DefaultRoutes::default() };
    attach.run(kubernetes.zip(pod.as_ref())).await
}

/// Holds against the pod, by the node's policy, what it asks for without a plugin to see to it.
pub(crate) async fn check_capabilities(
    conf: &Conf,
    pod: Option<(&Kubernetes, &Pod)>,
    wanted: &[Wanted],
) -> Result<(), Error> {
    for Undeclared { network, capabilities } in undeclared::undeclared(wanted) {
        let error = Error::Undeclared { network, capabilities: capabilities.join(", ") };
        if conf.undeclared_capabilities == Policy::Refuse {
            return Err(error);
        }
        tracing::warn!("{error}");
        if let Some((kubernetes, pod)) = pod {
            let message = error.to_string();
            let event = Event { kind: EventKind::Warning, reason: "UndeclaredCapability", message };
            kubernetes.tell(pod, &event).await;
        }
    }
    Ok(())
}

/// The pod that the runtime names.
#[must_use]
pub fn pod_name(request: &Request) -> Option<(&str, &str)> {
    let get = |key| request.args.get(key).filter(|value| !value.is_empty());
    Some((get("K8S_POD_NAMESPACE")?, get("K8S_POD_NAME")?))
}

fn checked_uid(request: &Request, pod: Pod) -> Result<Pod, Error> {
    match request.args.get("K8S_POD_UID") {
        Some(expected) if !expected.is_empty() && expected != pod.uid && !pod.is_static() => {
            Err(Error::PodUid { expected: expected.to_owned(), found: pod.uid })
        }
        _ => Ok(pod),
    }
}

/// What upstream answers for a pod that was deleted before its sandbox was made: DEL is on its way.
fn nothing(request: &Request) -> CniResult {
    let sandbox = request.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    let any = Ipv4Net::default().addr();
    CniResult {
        interfaces: vec![Interface { name: request.ifname.clone(), sandbox, ..Interface::default() }],
        ips: vec![IpConfig {
            interface: Some(0),
            address: IpNet::V4(Ipv4Net::from(any)),
            gateway: Some(any.into()),
        }],
        ..CniResult::default()
    }
}

async fn await_default_network(conf: &Conf) -> Result<(), Error> {
    let Some(path) = &conf.readiness_indicator else { return Ok(()) };
    let deadline = Instant::now() + READY_LIMIT;
    while !path.exists() {
        if Instant::now() >= deadline {
            return Err(Error::NotReady { path: path.clone() });
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
    Ok(())
}

/// The pod's devices, asked for only when a network needs one.
async fn devices(node: &Node, pod: Option<&Pod>, wanted: &[Wanted]) -> Result<DevicePool, Error> {
    match pod {
        Some(pod) if wanted.iter().any(|w| w.network.resource.is_some()) => kubelet::devices(node, pod).await,
        _ => Ok(DevicePool::default()),
    }
}

/// Delegates that are to be attached.
pub(crate) struct Attach<'a> {
    pub(crate) node: &'a Node,
    pub(crate) conf: &'a Conf,
    pub(crate) request: &'a Request,
    pub(crate) delegates: Vec<Delegate>,
    pub(crate) routes: DefaultRoutes,
}

impl Attach<'_> {
    async fn run(mut self, pod: Option<(&Kubernetes, &Pod)>) -> Result<CniResult, Error> {
        let runtime = self.conf.runtime();
        for delegate in &self.delegates {
            runtime
                .check_installed(&delegate.list)
                .map_err(|source| Error::Network { network: delegate.label.clone(), source })?;
        }
        self.routes = DefaultRoutes::wanted(&self.delegates)?;
        // What an attempt that was killed left behind would be in the way of this one.
        detach::release_sandbox(self.node, self.conf, self.request)?;
        let netns = self.open_netns()?;
        let records = Records::new(&self.conf.cni_dir);
        let container = &self.request.container_id;
        // The disk is waited for while the names are looked at. What is found there must not be taken for ours by a later DEL,
        // so the record counts only afterwards.
        let (names, draft) = self.check_names(&netns, || records.draft(container, &self.delegates))?;
        names?;
        let placed = draft?.place();
        placed.map_err(|source| Error::Record { container: container.clone(), source })?;
        let mut started = 0;
        match self.attach(&netns, pod, &mut started).await {
            Ok(results) => Ok(results.into_iter().next().unwrap_or_default()),
            Err(cause) => {
                let started = self.delegates.get(..started).unwrap_or_default();
                match detach::release(self.node, self.conf, container, started) {
                    Ok(()) => Err(cause),
                    Err(undo) => Err(Error::Undo { cause: Box::new(cause), undo: Box::new(undo) }),
                }
            }
        }
    }

    pub(crate) fn open_netns(&self) -> Result<Netns, Error> {
        let path = self.request.netns.clone().unwrap_or_default();
        Netns::open(&path).map_err(|source| {
            let network = self.delegates.first().map_or("", |delegate| &delegate.label);
            let first = format!("{network:?} interface name to {:?}", self.request.ifname);
            Error::Netns { first, path, source }
        })
    }

    /// An interface that is there already would be found by a plugin only after others have run. Looks for such while the
    /// caller does what is `beside` it.
    ///
    /// # Errors
    /// [`Error::Netlink`] when the namespace cannot be looked into; what is taken is told beside what `beside` returned.
    pub(crate) fn check_names<T>(
        &self,
        netns: &Netns,
        beside: impl FnOnce() -> T,
    ) -> Result<(Result<(), Error>, T), Error> {
        let failed = |source| Error::Netlink {
            context: format!("looking for interfaces of {}", netns.path().display()),
            source,
        };
        let names = || netlink::taken(self.delegates.iter().map(|d| d.attachment.ifname.as_str()));
        let (taken, done) = netns.run_beside(names, beside).map_err(|e| failed(e.into()))?;
        let checked = taken.map_err(failed).and_then(|taken| {
            let holds = |d: &&Delegate| Some(d.attachment.ifname.as_str()) == taken;
            match self.delegates.iter().find(holds) {
                None => Ok(()),
                Some(delegate) => Err(Error::InterfaceTaken {
                    network: delegate.label.clone(),
                    ifname: delegate.attachment.ifname.clone(),
                    holder: format!("the container {} has it already", self.request.container_id),
                }),
            }
        });
        Ok((checked, done))
    }

    pub(crate) async fn attach(
        &self,
        netns: &Netns,
        pod: Option<(&Kubernetes, &Pod)>,
        started: &mut usize,
    ) -> Result<Vec<CniResult>, Error> {
        let runtime = self.conf.runtime();
        let mut results = Vec::with_capacity(self.delegates.len());
        for delegate in &self.delegates {
            *started += 1;
            self.offer_device_info(delegate);
            let result = match runtime.add(&delegate.list, &delegate.attachment) {
                Ok(result) => result,
                Err(mut source) => {
                    let why = vlan::explain(delegate, &source).await.or_else(|| delegate.missing_device());
                    if let Some(why) = why {
                        source.msg = format!("{}: {why}", source.msg);
                    }
                    return Err(Error::Delegate {
                        verb: "adding container to",
                        network: delegate.list.name.clone(),
                        label: delegate.label.clone(),
                        source,
                    });
                }
            };
            tracing::info!("{}: added {}", delegate.label, delegate.attachment.ifname);
            results.push(result);
        }
        if !self.routes.is_empty() {
            self.routes.apply(netns, &self.delegates).await?;
            self.routes.amend(&mut results);
            self.store_amended(&results);
        }
        if let Some((kubernetes, pod)) = pod {
            self.report(kubernetes, pod, &results).await?;
        }
        Ok(results)
    }

    /// CHECK compares the kernel with the cached result, so that has to follow the routes.
    fn store_amended(&self, results: &[CniResult]) {
        let cache = self.conf.runtime().cache();
        for (Delegate { list, attachment, label, .. }, result) in self.delegates.iter().zip(results) {
            let Some(mut cached) = cache.load(&list.name, &attachment.container_id, &attachment.ifname)
            else {
                continue;
            };
            let stored = result.to_object(list.version).and_then(|object| {
                cached.result = Some(object);
                cache.store(&cached)
            });
            if let Err(error) = stored {
                tracing::warn!("{label}: its cached result does not tell the default routes: {error}");
            }
        }
    }

    async fn report(&self, kubernetes: &Kubernetes, pod: &Pod, results: &[CniResult]) -> Result<(), Error> {
        let mut states = Vec::new();
        let mut events = Vec::new();
        for (delegate, result) in self.delegates.iter().zip(results) {
            let Delegate { label, is_primary, attachment, .. } = delegate;
            let info = self.told_device_info(delegate);
            states.extend(status::of_result(label, &attachment.ifname, *is_primary, result, info.as_ref()));
            if !result.interfaces.is_empty() || !result.ips.is_empty() {
                events.push(added(label, &attachment.ifname, result));
            }
        }
        let text = status::annotation(&states).map_err(|e| {
            Error::Conf(cni::Error::internal(format!("network-status has no JSON form: {e}")))
        })?;
        let tell = stream::iter(&events)
            .for_each_concurrent(kubernetes.parallel(), |event| kubernetes.tell(pod, event));
        join(kubernetes.set_network_status(pod, &text), tell).await.0
    }

    /// Copies what the device plugin says of the device to where the delegate may amend it. The attachment does
    /// not depend on it.
    fn offer_device_info(&self, delegate: &Delegate) {
        let (Some(resource), Some(id)) = (&delegate.resource, &delegate.device_id) else { return };
        let Some(file) = delegate.device_info_file(self.node) else { return };
        let source = self.node.device_info.join("dp").join(device_info::plugin_file_name(resource, id));
        if let Err(error) = copy(&source, &file) {
            tracing::debug!("{}: no device-info from {}: {error}", delegate.label, source.display());
        }
    }

    fn told_device_info(&self, delegate: &Delegate) -> Option<DeviceInfo> {
        let bytes = std::fs::read(delegate.device_info_file(self.node)?).ok()?;
        serde_json::from_slice(&bytes)
            .map_err(|error| tracing::warn!("{}: its device-info file is not one: {error}", delegate.label))
            .ok()
    }
}

pub(crate) fn added(label: &str, ifname: &str, result: &CniResult) -> Event {
    let addresses: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
    let from = if label.is_empty() { String::new() } else { format!(" from {label}") };
    Event {
        kind: EventKind::Normal,
        reason: "AddedInterface",
        message: format!("Add {ifname} [{}]{from}", addresses.join(" ")),
    }
}

/// Replaces `target`: one left by an earlier attempt must not stay.
fn copy(source: &Path, target: &Path) -> std::io::Result<()> {
    let bytes = std::fs::read(source)?;
    if let Some(directory) = target.parent() {
        std::fs::create_dir_all(directory)?;
    }
    host::durable::replace(target, &bytes).map_err(|e| e.cause)
}

#[cfg(test)]
mod tests {
    use cni::Version;

    use super::*;
    use crate::delegate::tests::request;

    #[test]
    fn the_pod_must_be_the_one_the_runtime_means() {
        let pod = |uid: &str, source: &str| Pod {
            uid: uid.into(),
            annotations: [("kubernetes.io/config.source".to_owned(), source.to_owned())].into(),
            ..Pod::default()
        };
        let request = request("{}");
        assert!(checked_uid(&request, pod("u", "api")).is_ok());
        assert!(checked_uid(&request, pod("other", "file")).is_ok());
        let text = checked_uid(&request, pod("other", "api")).unwrap_err().to_string();
        assert!(text.starts_with("expected pod UID \"u\" but got \"other\" from Kube API"), "{text}");
    }

    #[test]
    fn a_pod_that_is_gone_gets_nothing() {
        let result = nothing(&request("{}"));
        let text = String::from_utf8(result.to_json(Version::V0_4_0).unwrap()).unwrap();
        assert!(text.contains("\"0.0.0.0/32\"") && text.contains("\"gateway\": \"0.0.0.0\""), "{text}");
        assert_eq!(result.interfaces.first().map(|i| i.name.as_str()), Some("eth0"));
    }

    #[test]
    fn events_read_as_upstreams() {
        let result = |json: &str| CniResult::parse(json.as_bytes(), Version::LATEST).unwrap();
        let two = result(r#"{"ips":[{"address":"1.1.1.2/24"},{"address":"fd00::2/64"}]}"#);
        assert_eq!(added("weave1", "eth0", &two).message, "Add eth0 [1.1.1.2/24 fd00::2/64] from weave1");
        assert_eq!(added("", "eth0", &result("{}")).message, "Add eth0 []");
    }
}
