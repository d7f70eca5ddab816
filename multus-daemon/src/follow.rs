//! Follows the annotations of pods that run: a network that is added to the list is attached, one that is taken off it
//! is taken away (`followAnnotations`).
//!
//! What counts is the difference between two versions of an annotation. What a pod has for other reasons stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cni::Command;
use multus::known::Known;
use multus::kubernetes::{Kubernetes, NETWORKS, Pod};
use multus::nad::Network;
use multus::networks::Wanted;
use multus::selection::{self, Selection};
use multus::{Error, hotplug, kubelet};
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::calls::Calls;
use crate::on_record;

/// How many pods are remembered before those that are gone are forgotten: more than a node has.
const LONG: usize = 1000;

/// Follows the pods that come out of `changed`, for ever.
pub async fn follow(calls: Arc<Calls>, known: Arc<Known>, mut changed: UnboundedReceiver<Pod>) {
    // The annotation that was last seen of each pod, by UID.
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    while let Some(pod) = changed.recv().await {
        let now = pod.annotations.get(NETWORKS).cloned().unwrap_or_default();
        let before = seen.insert(pod.uid.clone(), now.clone());
        if let Some(before) = before.filter(|before| *before != now)
            && let Err(error) = change(&calls, &pod, &before, &now).await
        {
            tracing::error!("pod {pod}: its annotation changed, and could not be followed: {error}");
        }
        if seen.len() > LONG {
            let alive: BTreeSet<String> = known.pods().into_iter().map(|pod| pod.uid).collect();
            seen.retain(|uid, _| alive.contains(uid));
        }
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
    /// From `before` to `now`. An interface that changes its network is taken away and attached anew.
    ///
    /// # Errors
    /// What is wrong with the annotation as it is now.
    pub fn between(before: &str, now: &str) -> Result<Self, selection::SelectionError> {
        // What could not be understood was not attached either.
        let before = by_interface(selection::parse(before).unwrap_or_default());
        let now = by_interface(selection::parse(now)?);
        let detach =
            before.iter().filter(|(ifname, was)| now.get(*ifname) != Some(was)).map(|(name, _)| name.clone());
        let detach = detach.collect();
        let attach = now.into_iter().filter(|(ifname, is)| before.get(ifname) != Some(is)).collect();
        Ok(Difference { attach, detach })
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

async fn change(calls: &Arc<Calls>, pod: &Pod, before: &str, now: &str) -> Result<(), Error> {
    let difference =
        Difference::between(before, now).map_err(|source| Error::Annotation { key: NETWORKS, source })?;
    let Some(container) = on_record::container_of(calls, pod) else { return Ok(()) };
    let turn = calls.sandboxes.turn(&container).await;
    let permit = calls.permit(Command::Add).await;
    let kubernetes = calls.clients.client(calls.conf.kubeconfig.as_deref()).await?;
    let (calls, pod, handle) = (Arc::clone(calls), pod.clone(), Handle::current());
    let worked = tokio::task::spawn_blocking(move || {
        let done = match kubernetes {
            Some(kubernetes) => {
                Sandbox { calls: &calls, pod: &pod, container, kubernetes, handle }.follow(difference)
            }
            None => Ok(()),
        };
        drop((turn, permit));
        done
    });
    worked.await.unwrap_or_else(|e| Err(Error::Conf(cni::Error::internal(e.to_string()))))
}

struct Sandbox<'a> {
    calls: &'a Calls,
    pod: &'a Pod,
    container: String,
    kubernetes: Kubernetes,
    handle: Handle,
}

impl Sandbox<'_> {
    /// Does all of it, whatever fails, and tells what the pod has then.
    fn follow(&self, difference: Difference) -> Result<(), Error> {
        let mut errors = Vec::new();
        for ifname in difference.detach {
            tracing::info!("pod {}: {ifname} is taken away", self.pod);
            errors.extend(self.detach(&ifname).err());
        }
        for (ifname, selection) in difference.attach {
            tracing::info!("pod {}: {ifname} is attached to {}", self.pod, selection.name);
            errors.extend(self.attach(&ifname, selection).err());
        }
        let report = on_record::report(self.calls, &self.container, self.pod, &self.kubernetes);
        errors.extend(self.handle.block_on(report).err());
        Error::join(errors)
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
            hotplug::attach(&self.calls.node, &conf, &request, self.pod, wanted, &mut devices).await.map(drop)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_by_interface() {
        let table: [(&str, &str, &[&str], &[&str]); 6] = [
            ("a", "a", &[], &[]),
            ("a", "a,b", &["net2:b"], &[]),
            ("a,b", "a", &[], &["net2"]),
            ("", "a@x", &["x:a"], &[]),
            ("a@x", "b@x", &["x:b"], &["x"]),
            ("{", "a", &["net1:a"], &[]),
        ];
        for (before, now, attach, detach) in table {
            let difference = Difference::between(before, now).unwrap();
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
        assert!(Difference::between("a", "[{]").is_err());
    }
}
