//! Follows the annotations of pods that run: a network that is added to the list is attached, one that is taken off it
//! is taken away (`followAnnotations`).
//!
//! What counts is the difference between two versions of an annotation, that of before and that of now. What a pod has
//! for other reasons stays. What was followed is [on disk](crate::followed), so that a change is not missed while the
//! daemon is away; what could not be followed is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cni::Command;
use multus::known::Known;
use multus::kubernetes::{Kubernetes, NETWORKS, Pod};
use multus::nad::Network;
use multus::networks::Wanted;
use multus::selection::{self, Selection};
use multus::{Error, hotplug, kubelet};
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use crate::calls::Calls;
use crate::followed::{Files, Followed};
use crate::on_record;

/// How many pods are remembered before those that are gone are forgotten: more than a node has.
const LONG: usize = 1000;

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Follows the pods that come out of `changed`, for ever.
pub async fn follow(calls: Arc<Calls>, known: Arc<Known>, mut changed: UnboundedReceiver<Pod>) {
    let mut pods = Pods { files: Files::below(&calls.conf.cni_dir), seen: BTreeMap::new(), calls };
    let mut next_retry = Instant::now() + RETRY;
    loop {
        match tokio::time::timeout_at(next_retry, changed.recv()).await {
            Ok(Some(pod)) => {
                if pods.seen.is_empty() || pods.seen.len() > LONG {
                    pods.retain(&known.pods());
                }
                pods.look(&pod).await;
            }
            Ok(None) => return,
            Err(_) => {
                next_retry = Instant::now() + RETRY;
                for pod in known.pods() {
                    if pods.has_failed(&pod) {
                        pods.look(&pod).await;
                    }
                }
            }
        }
    }
}

/// The pods of the node, as far as their annotations were followed.
struct Pods {
    calls: Arc<Calls>,
    files: Files,
    /// By UID.
    seen: BTreeMap<String, Seen>,
}

struct Seen {
    followed: Followed,
    /// An annotation that cannot be understood, and was complained of.
    refused: Option<String>,
}

impl Pods {
    /// Follows the annotation of `pod` as it is now.
    async fn look(&mut self, pod: &Pod) {
        let now = pod.annotations.get(NETWORKS).map_or("", String::as_str);
        let seen = self.seen.entry(pod.uid.clone()).or_insert_with(|| Seen {
            followed: self.files.read(&pod.uid).unwrap_or_default(),
            refused: None,
        });
        let is_new = seen.followed == Followed::default();
        if seen.followed.is_up_to(now) && !is_new || seen.refused.as_deref() == Some(now) {
            return;
        }
        // A pod that is seen for the first time gets what it wants by ADD.
        let done = match is_new {
            true => Ok(BTreeSet::new()),
            false => change(&self.calls, pod, &seen.followed, now).await,
        };
        match done {
            Ok(failed) => {
                *seen = Seen { followed: Followed::new(now, failed), refused: None };
                if let Err(error) = self.files.write(&pod.uid, &seen.followed) {
                    tracing::warn!(
                        "pod {pod}: a change of its annotation may be missed after a restart: {error}"
                    );
                }
            }
            Err(error) => {
                tracing::error!("pod {pod}: its annotation changed, and cannot be followed: {error}");
                seen.refused = Some(now.to_owned());
            }
        }
    }

    fn has_failed(&self, pod: &Pod) -> bool {
        self.seen.get(&pod.uid).is_some_and(|seen| !seen.followed.failed.is_empty())
    }

    /// Forgets all pods but these.
    fn retain(&mut self, pods: &[Pod]) {
        let alive: BTreeSet<String> = pods.iter().map(|pod| pod.uid.clone()).collect();
        self.seen.retain(|uid, _| alive.contains(uid));
        self.files.retain(&alive);
    }
}

/// What is to be done when an annotation changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Networks to attach, with their interfaces.
    pub attach: Vec<(String, Selection)>,
    /// Interfaces to take away.
    pub detach: Vec<String>,
}

impl Difference {
    /// From `before` to `now`. An interface that changes its network is taken away and attached anew; so is one of which
    /// `before` was not followed.
    ///
    /// # Errors
    /// What is wrong with the annotation as it is now.
    pub fn between(before: &Followed, now: &str) -> Result<Self, selection::SelectionError> {
        // What could not be understood was not attached either.
        let mut was = by_interface(selection::parse(&before.networks).unwrap_or_default());
        // No network is called nothing: they differ from whatever is wanted.
        was.extend(before.failed.iter().map(|ifname| (ifname.clone(), Selection::default())));
        let before = was;
        let now = by_interface(selection::parse(now)?);
        let detach =
            before.iter().filter(|(ifname, was)| now.get(*ifname) != Some(was)).map(|(name, _)| name.clone());
        let detach = detach.collect();
        let attach = now.into_iter().filter(|(ifname, is)| before.get(ifname) != Some(is)).collect();
        Ok(Difference { attach, detach })
    }

    fn interfaces(&self) -> BTreeSet<String> {
        self.attach.iter().map(|(ifname, _)| ifname).chain(&self.detach).cloned().collect()
    }
}

/// Networks without an interface name get `net<i>` by their place, as ADD does it.
fn by_interface(selections: Vec<Selection>) -> BTreeMap<String, Selection> {
    let named = |(index, selection): (usize, Selection)| {
        let name = selection.interface.clone().unwrap_or_else(|| format!("net{}", index + 1));
        (name, selection)
    };
    selections.into_iter().enumerate().map(named).collect()
}

/// Follows the annotation of a pod from `before` to `now`; the interfaces of which that failed.
async fn change(
    calls: &Arc<Calls>,
    pod: &Pod,
    before: &Followed,
    now: &str,
) -> Result<BTreeSet<String>, Error> {
    let difference =
        Difference::between(before, now).map_err(|source| Error::Annotation { key: NETWORKS, source })?;
    let interfaces = difference.interfaces();
    let Some(container) = on_record::container_of(calls, pod) else { return Ok(BTreeSet::new()) };
    let turn = calls.sandboxes.turn(&container).await;
    let permit = calls.permit(Command::Add).await;
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!("pod {pod}: its annotation changed, and is followed later: {error}");
        Ok(interfaces.clone())
    };
    let kubernetes = match calls.clients.client(calls.conf.kubeconfig.as_deref()).await {
        Ok(Some(kubernetes)) => kubernetes,
        Ok(None) => return failed(&"there is no cluster any more"),
        Err(error) => return failed(&error),
    };
    let (calls, own_pod, handle) = (Arc::clone(calls), pod.clone(), Handle::current());
    let worked = tokio::task::spawn_blocking(move || {
        let sandbox = Sandbox { calls: &calls, pod: &own_pod, container, kubernetes, handle };
        let failed = sandbox.follow(difference);
        drop((turn, permit));
        failed
    });
    worked.await.or_else(|error| failed(&error))
}

struct Sandbox<'a> {
    calls: &'a Calls,
    pod: &'a Pod,
    container: String,
    kubernetes: Kubernetes,
    handle: Handle,
}

impl Sandbox<'_> {
    /// Does all of it, whatever fails, and tells what the pod has then. The interfaces of which something failed.
    fn follow(&self, difference: Difference) -> BTreeSet<String> {
        let pod = self.pod;
        let mut failed = BTreeSet::new();
        for ifname in difference.detach {
            tracing::info!("pod {pod}: {ifname} is taken away");
            if let Err(error) = self.detach(&ifname) {
                tracing::error!("pod {pod}: {ifname} cannot be taken away and will be later: {error}");
                failed.insert(ifname);
            }
        }
        for (ifname, selection) in difference.attach {
            if failed.contains(&ifname) {
                continue;
            }
            tracing::info!("pod {pod}: {ifname} is attached to {}", selection.name);
            if let Err(error) = self.attach(&ifname, selection) {
                tracing::error!("pod {pod}: {ifname} cannot be attached and will be later: {error}");
                failed.insert(ifname);
            }
        }
        let report = on_record::report(self.calls, &self.container, pod, &self.kubernetes);
        if let Err(error) = self.handle.block_on(report) {
            tracing::warn!("pod {pod}: its network-status is as it was: {error}");
        }
        failed
    }

    fn detach(&self, ifname: &str) -> Result<(), Error> {
        let on_record = on_record::delegates(self.calls, &self.container)?;
        let is_primary = on_record.iter().any(|d| d.is_primary && d.attachment.ifname == ifname);
        if is_primary {
            return Ok(());
        }
        let (request, conf) = on_record::call(self.calls, &self.container, "DEL", on_record.first(), ifname)?;
        hotplug::detach(&self.calls.node, &conf, &request).map(drop)
    }

    fn attach(&self, ifname: &str, selection: Selection) -> Result<(), Error> {
        let on_record = on_record::delegates(self.calls, &self.container)?;
        let (request, conf) = on_record::call(self.calls, &self.container, "ADD", on_record.first(), ifname)?;
        let namespace = selection.namespace.clone().unwrap_or_else(|| self.pod.namespace.clone());
        if !conf.may_use(&self.pod.namespace, &namespace) {
            return Err(Error::Isolation { pod: self.pod.namespace.clone(), target: namespace });
        }
        self.handle.block_on(async {
            let nad = self.kubernetes.nad(&namespace, &selection.name).await?;
            let nad = nad.ok_or_else(|| Error::NoSuchNad { namespace, name: selection.name.clone() })?;
            let wanted = Wanted { network: Network::of(&nad, &conf.conf_dir)?, selection: Some(selection) };
            let mut devices = match &wanted.network.resource {
                Some(_) => kubelet::devices(&self.calls.node, self.pod).await?,
                None => multus::devices::DevicePool::default(),
            };
            devices.forget(on_record.iter().filter_map(|delegate| delegate.device_id.as_deref()));
            let pod = (&self.kubernetes, self.pod);
            hotplug::attach(&self.calls.node, &conf, &request, pod, wanted, &mut devices).await.map(drop)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_by_interface() {
        // Annotation and failed interfaces of before, annotation of now; what is attached and detached.
        type Case = (&'static str, &'static [&'static str], &'static str, [&'static [&'static str]; 2]);
        let table: [Case; 9] = [
            ("a", &[], "a", [&[], &[]]),
            ("a", &[], "a,b", [&["net2:b"], &[]]),
            ("a,b", &[], "a", [&[], &["net2"]]),
            ("", &[], "a@x", [&["x:a"], &[]]),
            ("a@x", &[], "b@x", [&["x:b"], &["x"]]),
            ("{", &[], "a", [&["net1:a"], &[]]),
            // What failed is done again, and only that.
            ("a,b", &["net2"], "a,b", [&["net2:b"], &["net2"]]),
            ("a", &["net2"], "a", [&[], &["net2"]]),
            ("a", &["net2"], "a,c@net2", [&["net2:c"], &["net2"]]),
        ];
        for (before, failed, now, [attach, detach]) in table {
            let failed = failed.iter().map(|ifname| (*ifname).to_owned()).collect();
            let difference = Difference::between(&Followed::new(before, failed), now).unwrap();
            let attached: Vec<_> = difference.attach.iter().map(|(i, s)| format!("{i}:{}", s.name)).collect();
            assert_eq!(
                (attached, difference.detach),
                (
                    attach.iter().map(|s| (*s).to_owned()).collect(),
                    detach.iter().map(|s| (*s).to_owned()).collect()
                ),
                "{before} -> {now}"
            );
        }
        assert!(Difference::between(&Followed::new("a", BTreeSet::new()), "[{]").is_err());
    }
}
