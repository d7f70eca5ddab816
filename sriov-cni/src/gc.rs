//! GC: release what belongs to no attachment that the runtime knows.

use cni::{AttachmentId, Request};
use tracing::warn;

use crate::claim;
use crate::config;
use crate::error::Error;
use crate::machine::Machine;
use crate::record::{Phase, Record};
use crate::release::release;
use crate::state::State;

/// Releases the VFs of this network whose attachment is not in the runtime's list, whoever attached them, and
/// finishes releases of any network that failed earlier.
pub(crate) async fn gc(machine: &Machine, state: &State, request: &Request) -> Result<(), Error> {
    state.prepare()?;
    let valid = request.valid_attachments()?;
    let mut errors = Vec::new();
    for device in state.taken()? {
        let collected = async {
            let _lock = state.lock(device)?;
            match claim::known_owner(machine, state, device)? {
                Some(record) if is_garbage(&record, &request.name, valid.as_deref()) => {
                    collect(machine, state, request, record).await
                }
                _ => Ok(()),
            }
        };
        errors.extend(collected.await.err());
    }
    if let Some(kind) = config::ipam_of(&request.config)
        && let Err(error) = cni::ipam::gc(&kind, request)
    {
        errors.push(error.into());
    }
    if errors.is_empty() { Ok(()) } else { Err(Error::NotReleased(errors)) }
}

async fn collect(machine: &Machine, state: &State, request: &Request, record: Record) -> Result<(), Error> {
    if record.owner.network == request.name
        && let Some(kind) = config::ipam_of(&request.config)
    {
        let owner = &record.owner;
        let of_owner = Request {
            container_id: owner.container_id.clone(),
            ifname: owner.ifname.clone(),
            netns: Some(owner.netns.clone()),
            ..request.clone()
        };
        if let Err(error) = cni::ipam::del(&kind, &of_owner) {
            warn!(%error, owner = %owner, "addresses are not given back");
        }
    }
    release(machine, state, record, request).await
}

/// Without a list nothing is known about attachments that nobody gave up.
fn is_garbage(record: &Record, network: &str, valid: Option<&[AttachmentId]>) -> bool {
    let owner = &record.owner;
    let is_valid = |valid: &[AttachmentId]| valid.iter().any(|id| owner.is(&id.container_id, &id.ifname));
    record.phase == Phase::Releasing
        || (owner.network == network && valid.is_some_and(|valid| !is_valid(valid)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Baseline, Owner};

    #[test]
    fn only_this_networks_unknown_attachments_and_failed_releases_are_garbage() {
        let id =
            |container_id: &str| AttachmentId { container_id: container_id.into(), ifname: "net1".into() };
        let valid = [id("alive")];
        for (container_id, network, phase, list, garbage) in [
            ("alive", "n", Phase::Attached, Some(&valid[..]), false),
            ("dead", "n", Phase::Attached, Some(&valid[..]), true),
            ("dead", "n", Phase::Attaching, Some(&valid[..]), true),
            ("dead", "n", Phase::Attached, Some(&[]), true),
            ("dead", "n", Phase::Attached, None, false),
            ("dead", "other", Phase::Attached, Some(&valid[..]), false),
            ("dead", "other", Phase::Releasing, None, true),
        ] {
            let owner = Owner {
                container_id: container_id.into(),
                ifname: "net1".into(),
                network: network.into(),
                netns: "/x".into(),
                netns_id: None,
            };
            let device = "0000:3b:02.1".parse().unwrap();
            let mut record = Record::new(device, owner, "boot".into(), None, Baseline::default(), Vec::new());
            record.phase = phase;
            assert_eq!(is_garbage(&record, "n", list), garbage, "{container_id} {network} {phase:?}");
        }
    }
}
