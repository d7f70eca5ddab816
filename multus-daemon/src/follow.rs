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
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use multus::known::Known;
use multus::kubernetes::{Kubernetes, NETWORKS, Pod};
use multus::nad::Network;
use multus::networks::{self, Wanted};
use multus::selection::{self, Selection};
use multus::{Error, hotplug, kubelet};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use crate::calls::Calls;
use crate::followed::{Files, Followed};
use crate::on_record;

/// How long after a failure it is tried again, and how often pods that are gone are forgotten.
const RETRY: Duration = Duration::from_secs(30);

/// How many pods are worked on at a time. They take places of ADDs besides, of which new pods are to have most.
const AT_A_TIME: usize = 4;

/// Follows the pods that come out of `changed`, for ever. Each waits for itself alone: its sandbox may be busy, and its
/// plugins may hang.
pub async fn follow(calls: Arc<Calls>, known: Arc<Known>, mut changed: UnboundedReceiver<Pod>) {
    let mut pods = Pods {
        files: Files::below(&calls.conf.cni_dir),
        seen: BTreeMap::new(),
        at_work: FuturesUnordered::new(),
        places: Arc::new(Semaphore::new(AT_A_TIME)),
        calls,
    };
    let mut next_retry = Instant::now() + RETRY;
    loop {
        tokio::select! {
            pod = changed.recv() => {
                let Some(pod) = pod else { return };
                if pods.seen.is_empty() {
                    pods.retain(&known.pods());
                }
                pods.look(pod);
            }
            Some(work) = pods.at_work.next() => pods.conclude(work),
            () = tokio::time::sleep_until(next_retry) => {
                next_retry = Instant::now() + RETRY;
                let alive = known.pods();
                // Who has seen one has seen the list of all.
                if !pods.seen.is_empty() {
                    pods.retain(&alive);
                }
                for pod in alive {
                    if pods.is_behind(&pod) {
                        pods.look(pod);
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
    at_work: FuturesUnordered<BoxFuture<'static, Work>>,
    places: Arc<Semaphore>,
}

#[derive(Default)]
struct Seen {
    followed: Followed,
    /// An annotation that cannot be understood, and was complained of.
    refused: Option<String>,
    /// Whether it is worked on.
    is_at_work: bool,
    /// How the pod was seen since that began.
    since: Option<Pod>,
}

/// A pod that was worked on: the interfaces of which something failed, `None` when it could not be begun.
struct Work {
    pod: Pod,
    done: Result<Option<Failed>, Error>,
}

impl Pods {
    /// Follows the annotation of `pod` as it is now.
    fn look(&mut self, pod: Pod) {
        let now = wanted_by(&pod);
        let seen = self.seen.entry(pod.uid.clone()).or_insert_with(|| Seen {
            followed: self.files.read(&pod.uid).unwrap_or_default(),
            ..Seen::default()
        });
        if seen.is_at_work {
            seen.since = Some(pod);
            return;
        }
        let is_new = seen.followed == Followed::default();
        if seen.followed.is_up_to(now) && !is_new || seen.refused.as_deref() == Some(now) {
            return;
        }
        if is_new {
            // A pod that is seen for the first time gets what it wants by ADD.
            return self.conclude(Work { pod, done: Ok(Some(Failed::new())) });
        }
        seen.is_at_work = true;
        let (calls, places, before) =
            (Arc::clone(&self.calls), Arc::clone(&self.places), seen.followed.clone());
        self.at_work.push(Box::pin(async move {
            let done = change(&calls, &places, &pod, &before, wanted_by(&pod)).await;
            Work { pod, done }
        }));
    }

    /// Remembers what came of it, and looks at what the pod has become meanwhile.
    fn conclude(&mut self, Work { pod, done }: Work) {
        // One that has gone meanwhile is forgotten.
        let Some(seen) = self.seen.get_mut(&pod.uid) else { return };
        seen.is_at_work = false;
        match done {
            // The annotation of before is what is compared with then.
            Ok(None) => {}
            Ok(Some(failed)) => {
                (seen.followed, seen.refused) = (Followed::new(wanted_by(&pod), failed), None);
                if let Err(error) = self.files.write(&pod.uid, &seen.followed) {
                    tracing::warn!(
                        "pod {pod}: a change of its annotation may be missed after a restart: {error}"
                    );
                }
            }
            Err(error) => {
                tracing::error!("pod {pod}: its annotation changed, and cannot be followed: {error}");
                seen.refused = Some(wanted_by(&pod).to_owned());
            }
        }
        // What has just failed is tried again later.
        if let Some(since) = seen.since.take().filter(|since| wanted_by(since) != wanted_by(&pod)) {
            self.look(since);
        }
    }

    /// Whether there is something to try again.
    fn is_behind(&self, pod: &Pod) -> bool {
        let is_behind = |seen: &Seen| !seen.is_at_work && !seen.followed.is_up_to(wanted_by(pod));
        self.seen.get(&pod.uid).is_some_and(is_behind)
    }

    /// Forgets all pods but these.
    fn retain(&mut self, pods: &[Pod]) {
        let alive: BTreeSet<String> = pods.iter().map(|pod| pod.uid.clone()).collect();
        self.seen.retain(|uid, _| alive.contains(uid));
        self.files.retain(&alive);
    }
}

fn wanted_by(pod: &Pod) -> &str {
    pod.annotations.get(NETWORKS).map_or("", String::as_str)
}

/// Interfaces of which something failed, with the networks that were tried.
type Failed = BTreeMap<String, String>;

/// How ADD sees the networks of a pod.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// How many networks stand before the pod's own.
    pub before_own: usize,
}

impl Place<'_> {
    /// Networks without an interface name get `net<i>` by their place, as ADD does it.
    fn by_interface(&self, selections: Vec<Selection>) -> BTreeMap<String, Selection> {
        let named = |(index, selection): (usize, Selection)| {
            let name =
                selection.interface.clone().unwrap_or_else(|| format!("net{}", self.before_own + index));
            (name, selection)
        };
        selections.into_iter().enumerate().map(named).collect()
    }

    /// What a record calls the network.
    fn label(&self, selection: &Selection) -> String {
        format!("{}/{}", selection.namespace.as_deref().unwrap_or(self.namespace), selection.name)
    }

    /// Whether the interface is that of a network which every pod has.
    fn is_of_node(&self, ifname: &str) -> bool {
        (1..self.before_own).any(|index| format!("net{index}") == ifname)
    }
}

/// What is to be done when an annotation changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Networks to attach, with their interfaces.
    pub attach: Vec<(String, Selection)>,
    /// Interfaces to take away, each if it is one of these networks that has it.
    pub detach: Vec<(String, BTreeSet<String>)>,
}

impl Difference {
    /// From `before` to `now`. An interface that changes its network is taken away and attached anew; so is one of which
    /// `before` was not followed.
    ///
    /// # Errors
    /// What is wrong with the annotation as it is now.
    pub fn between(
        before: &Followed,
        now: &str,
        place: Place<'_>,
    ) -> Result<Self, selection::SelectionError> {
        // What could not be understood was not attached either.
        let was = place.by_interface(selection::parse(&before.networks).unwrap_or_default());
        let now = place.by_interface(selection::parse(now)?);
        let stays = |ifname: &str| was.get(ifname) == now.get(ifname) && !before.failed.contains_key(ifname);
        let names: BTreeSet<&String> = was.keys().chain(before.failed.keys()).collect();
        let to_detach = |ifname: &String| {
            let failed = before.failed.get(ifname);
            // What failed may be left of any attempt.
            let wanted = [was.get(ifname), now.get(ifname).filter(|_| failed.is_some())];
            let wanted = wanted.into_iter().flatten().map(|selection| place.label(selection));
            (ifname.clone(), wanted.chain(failed.cloned()).collect())
        };
        let detach = names.into_iter().filter(|ifname| !stays(ifname)).map(to_detach).collect();
        let attach = now.iter().filter(|(ifname, _)| !stays(ifname));
        let attach = attach.map(|(ifname, is)| (ifname.clone(), is.clone())).collect();
        Ok(Difference { attach, detach })
    }
}

/// Follows the annotation of a pod from `before` to `now`; the interfaces of which that failed. `None` when it could not
/// be begun.
async fn change(
    calls: &Arc<Calls>,
    places: &Semaphore,
    pod: &Pod,
    before: &Followed,
    now: &str,
) -> Result<Option<Failed>, Error> {
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!("pod {pod}: its annotation changed, and is followed later: {error}");
        Ok(None)
    };
    let before_own = match calls.conf_of_runtime() {
        Ok(conf) => networks::before_own(&conf, &pod.namespace),
        Err(error) => return failed(&error),
    };
    let place = Place { namespace: &pod.namespace, before_own };
    let difference = Difference::between(before, now, place)
        .map_err(|source| Error::Annotation { key: NETWORKS, source })?;
    let Some(container) = on_record::container_of(calls, pod) else {
        // An ADD may have read the annotation already and not be on record yet.
        tracing::debug!("pod {pod}: its annotation changed, and is followed when it has a sandbox");
        return Ok(None);
    };
    // Who waits for a turn takes nobody's place, and who waits for a place keeps no call from its turn.
    let (turn, _place, permit) = loop {
        drop(calls.sandboxes.turn(&container).await);
        // It is closed by nobody.
        let place = places.acquire().await;
        let permit = calls.permit(Command::Add).await;
        if let Some(turn) = calls.sandboxes.turn_at_once(&container) {
            break (turn, place, permit);
        }
    };
    if on_record::container_of(calls, pod).as_ref() != Some(&container) {
        tracing::debug!(
            "pod {pod}: its sandbox went meanwhile; its annotation is followed when it has another one"
        );
        return Ok(None);
    }
    let kubernetes = match calls.clients.client(calls.conf.kubeconfig.as_deref()).await {
        Ok(Some(kubernetes)) => kubernetes,
        Ok(None) => return failed(&"there is no cluster any more"),
        Err(error) => return failed(&error),
    };
    let (calls, own_pod, handle) = (Arc::clone(calls), pod.clone(), Handle::current());
    let worked = tokio::task::spawn_blocking(move || {
        let place = Place { namespace: &own_pod.namespace, before_own };
        let sandbox = Sandbox { calls: &calls, pod: &own_pod, place, container, kubernetes, handle };
        let failed = sandbox.follow(difference);
        drop((turn, permit));
        failed
    });
    worked.await.map(Some).or_else(|error| failed(&error))
}

struct Sandbox<'a> {
    calls: &'a Calls,
    pod: &'a Pod,
    place: Place<'a>,
    container: String,
    kubernetes: Kubernetes,
    handle: Handle,
}

impl Sandbox<'_> {
    /// Does all of it, whatever fails, and tells what the pod has then. The interfaces of which something failed.
    fn follow(&self, difference: Difference) -> Failed {
        let pod = self.pod;
        let mut failed = Failed::new();
        for (ifname, networks) in difference.detach {
            let (network, done) = match self.holder(&ifname, &networks) {
                Ok(None) => continue,
                Ok(Some(network)) => {
                    tracing::info!("pod {pod}: {ifname} of {network} is taken away");
                    let done = self.detach(&ifname);
                    (network, done)
                }
                Err(error) => (networks.into_iter().next().unwrap_or_default(), Err(error)),
            };
            if let Err(error) = done {
                tracing::error!("pod {pod}: {ifname} cannot be taken away and will be later: {error}");
                failed.insert(ifname, network);
            }
        }
        for (ifname, selection) in difference.attach {
            if failed.contains_key(&ifname) {
                continue;
            }
            tracing::info!("pod {pod}: {ifname} is attached to {}", selection.name);
            let network = self.place.label(&selection);
            if let Err(error) = self.attach(&ifname, selection) {
                tracing::error!("pod {pod}: {ifname} cannot be attached and will be later: {error}");
                failed.insert(ifname, network);
            }
        }
        let report = on_record::report(self.calls, &self.container, pod, &self.kubernetes);
        if let Err(error) = self.handle.block_on(report) {
            tracing::warn!("pod {pod}: its network-status is as it was: {error}");
        }
        failed
    }

    /// The network that has the interface, if it is one of `networks`; else the interface is not the annotation's.
    fn holder(&self, ifname: &str, networks: &BTreeSet<String>) -> Result<Option<String>, Error> {
        let on_record = on_record::delegates(self.calls, &self.container)?;
        let Some(holder) = on_record.iter().find(|d| d.attachment.ifname == ifname) else { return Ok(None) };
        let (pod, label) = (self.pod, &holder.label);
        if holder.is_primary || self.place.is_of_node(ifname) || !networks.contains(label) {
            tracing::info!("pod {pod}: {ifname} stays, because {label} has it for another reason");
            return Ok(None);
        }
        Ok(Some(label.clone()))
    }

    fn detach(&self, ifname: &str) -> Result<(), Error> {
        let on_record = on_record::delegates(self.calls, &self.container)?;
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

    const PLACE: Place<'static> = Place { namespace: "ns", before_own: 1 };

    fn failed(networks: &[(&str, &str)]) -> Failed {
        networks.iter().map(|(ifname, network)| ((*ifname).to_owned(), (*network).to_owned())).collect()
    }

    fn between(before: &Followed, now: &str, place: Place<'_>) -> [Vec<String>; 2] {
        let Difference { attach, detach } = Difference::between(before, now, place).unwrap();
        let networks = |networks: BTreeSet<String>| networks.into_iter().collect::<Vec<_>>().join(" ");
        [
            attach.iter().map(|(i, s)| format!("{i}:{}", s.name)).collect(),
            detach.into_iter().map(|(i, n)| format!("{i}:{}", networks(n))).collect(),
        ]
    }

    #[test]
    fn differences_by_interface() {
        // Annotation and failed interfaces of before, annotation of now; what is attached and detached.
        type Case = (
            &'static str,
            &'static [(&'static str, &'static str)],
            &'static str,
            [&'static [&'static str]; 2],
        );
        let table: [Case; 11] = [
            ("a", &[], "a", [&[], &[]]),
            ("a", &[], "a,b", [&["net2:b"], &[]]),
            ("a,b", &[], "a", [&[], &["net2:ns/b"]]),
            ("", &[], "a@x", [&["x:a"], &[]]),
            ("a@x", &[], "b@x", [&["x:b"], &["x:ns/a"]]),
            ("{", &[], "a", [&["net1:a"], &[]]),
            // What failed is done again, and only that.
            ("a,b", &[("net2", "ns/b")], "a,b", [&["net2:b"], &["net2:ns/b"]]),
            ("a", &[("net2", "ns/b")], "a", [&[], &["net2:ns/b"]]),
            ("a", &[("net2", "ns/b")], "a,c@net2", [&["net2:c"], &["net2:ns/b ns/c"]]),
            ("a,other/d", &[("net2", "ns/b")], "a,c", [&["net2:c"], &["net2:ns/b ns/c other/d"]]),
            ("a,b", &[("net2", "")], "a", [&[], &["net2: ns/b"]]),
        ];
        for (before, tried, now, expected) in table {
            let difference = between(&Followed::new(before, failed(tried)), now, PLACE);
            assert_eq!(difference, expected.map(|s| s.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()));
        }
        assert!(Difference::between(&Followed::new("a", Failed::new()), "[{]", PLACE).is_err());
    }

    #[test]
    fn networks_are_counted_as_add_counts_them() {
        let place = Place { before_own: 3, ..PLACE };
        let difference = between(&Followed::new("a,b", Failed::new()), "a,c,d@x,e", place);
        assert_eq!(
            difference,
            [vec!["net4:c", "net6:e", "x:d"], vec!["net4:ns/b"]]
                .map(|s| { s.into_iter().map(str::to_owned).collect::<Vec<_>>() })
        );
        assert_eq!(["eth0", "net1", "net2", "net3"].map(|i| place.is_of_node(i)), [false, true, true, false]);
    }
}
