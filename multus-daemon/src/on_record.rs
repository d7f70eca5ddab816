//! What the record on disk tells of a sandbox, for the daemon's own doings.

use std::collections::HashMap;

use cni::Request;
use multus::config::Conf;
use multus::delegate::Delegate;
use multus::kubernetes::{Kubernetes, Pod};
use multus::record::Records;
use multus::status::{self, NetworkStatus};
use multus::{Error, hotplug};

use crate::calls::Calls;
use crate::cancel::Cancel;
use crate::gc;
use crate::wire::Call;

/// A call of the daemon's own for a sandbox: with the namespace and arguments of `like`, a network that it has.
pub(crate) fn call(
    calls: &Calls,
    container: &str,
    command: &str,
    like: Option<&Delegate>,
    ifname: &str,
) -> Result<(Request, Conf), Error> {
    let mut environment = vec![
        ("CNI_COMMAND".to_owned(), command.to_owned()),
        ("CNI_CONTAINERID".to_owned(), container.to_owned()),
        ("CNI_IFNAME".to_owned(), ifname.to_owned()),
    ];
    environment.extend(std::env::var("PATH").ok().map(|path| ("PATH".to_owned(), path)));
    if let Some(attachment) = like.map(|delegate| &delegate.attachment) {
        let netns = attachment.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        // What the other network asked for is its own.
        let pairs = attachment.args.iter().filter(|(key, _)| key != "IP" && key != "MAC");
        let args: Vec<String> = pairs.map(|(key, value)| format!("{key}={value}")).collect();
        environment.extend([("CNI_NETNS".to_owned(), netns), ("CNI_ARGS".to_owned(), args.join(";"))]);
    }
    let call = Call { environment: environment.into_iter().collect(), ..Call::default() };
    let request = calls.own_request(&call).map_err(Error::Conf)?;
    let conf = calls.conf_of(&call, &request, &Cancel::default())?;
    Ok((request, conf))
}

/// The networks that a sandbox has.
pub(crate) fn delegates(calls: &Calls, container: &str) -> Result<Vec<Delegate>, Error> {
    let (request, conf) = call(calls, container, "DEL", None, "eth0")?;
    hotplug::attached(&conf, &request)
}

/// The sandboxes on record by the UIDs of their pods. Of those of one pod it is the one whose namespace is there, then the
/// one whose record is the newest: a pod whose sandbox is made anew has two for a while.
pub(crate) fn by_pod(calls: &Calls) -> HashMap<String, String> {
    let uid = |delegate: &Delegate| {
        let mut args = delegate.attachment.args.iter();
        args.find(|(key, _)| key == "K8S_POD_UID").map(|(_, uid)| uid.clone())
    };
    let records = Records::new(&calls.conf.cni_dir);
    let mut best = HashMap::new();
    for container in gc::containers(&calls.conf.cni_dir) {
        let delegates = delegates(calls, &container).unwrap_or_default();
        let Some(uid) = delegates.iter().find_map(uid) else { continue };
        let is_there = delegates.iter().filter_map(|d| d.attachment.netns.as_ref()).any(|path| path.exists());
        let rank = (is_there, records.written(&container));
        if best.get(&uid).is_none_or(|(other, _)| *other < rank) {
            best.insert(uid, (rank, container));
        }
    }
    best.into_iter().map(|(uid, (_, container))| (uid, container)).collect()
}

/// The sandbox whose record names the pod.
pub(crate) fn container_of(calls: &Calls, pod: &Pod) -> Option<String> {
    by_pod(calls).remove(&pod.uid)
}

/// What the pod of a sandbox has.
pub(crate) fn states(calls: &Calls, container: &str) -> Result<Vec<NetworkStatus>, Error> {
    let (_, conf) = call(calls, container, "DEL", None, "eth0")?;
    let cache = conf.runtime().cache();
    let mut states = Vec::new();
    for delegate in delegates(calls, container)? {
        let Delegate { label, list, attachment, is_primary, .. } = &delegate;
        let Some(result) = cache.result(list, container, &attachment.ifname) else { continue };
        let info = delegate.device_info_file(&calls.node).and_then(|file| std::fs::read(file).ok());
        let info = info.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        states.extend(status::of_result(label, &attachment.ifname, *is_primary, &result, info.as_ref()));
    }
    Ok(states)
}

/// Tells the API server what the pod of a sandbox has.
pub(crate) async fn report(
    calls: &Calls,
    container: &str,
    pod: &Pod,
    kubernetes: &Kubernetes,
) -> Result<(), Error> {
    let text = status::annotation(&states(calls, container)?)
        .map_err(|e| Error::Conf(cni::Error::internal(e.to_string())))?;
    kubernetes.set_network_status(pod, &text).await
}
