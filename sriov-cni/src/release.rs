//! DEL: give back what the attachment has, and nothing else.

use cni::Request;
use host::PciAddress;
use tracing::info;

use crate::config;
use crate::error::Error;
use crate::machine::Machine;
use crate::peer;
use crate::record::{Phase, Record};
use crate::restore::restore;
use crate::state::State;

/// Releases the attachment of the request. Succeeds when there is nothing to release.
///
/// The addresses go first, since a DHCP client says goodbye through the interface; failing there
/// does not keep the VF from coming back.
pub(crate) async fn del(machine: &Machine, state: &State, request: &Request) -> Result<(), Error> {
    let addresses = match config::ipam_of(&request.config) {
        Some(kind) => cni::ipam::del(&kind, request).map_err(Error::from),
        None => Ok(()),
    };
    let vf = release_vf(machine, state, request).await;
    match (addresses, vf) {
        (Ok(()), result) | (result, Ok(())) => result,
        (Err(addresses), Err(vf)) => Err(Error::NotReleased(vec![addresses, vf])),
    }
}

async fn release_vf(machine: &Machine, state: &State, request: &Request) -> Result<(), Error> {
    state.prepare()?;
    for device in candidates(state, request)? {
        let _lock = state.lock(device)?;
        // Read under the lock: while we waited, the VF may have become another container's.
        if let Some(record) = own_record(machine, state, request, device)? {
            return release(machine, state, record, request).await;
        }
    }
    info!("nothing to release: the attachment has no VF (any more)");
    // A cache file that is left then speaks about a VF that went to somebody else.
    state.forget_cache(&request.container_id, &request.ifname)
}

/// Restores the VF of a record and removes the record; when that fails the record stays, marked as given
/// up by its owner.
pub(crate) async fn release(
    machine: &Machine,
    state: &State,
    mut record: Record,
    request: &Request,
) -> Result<(), Error> {
    record.phase = Phase::Releasing;
    state.save(&record)?;
    restore(machine, &record, request.netns.as_deref()).await?;
    state.forget(&record)?;
    info!(device = %record.device, owner = %record.owner, "released");
    Ok(())
}

/// The VFs that the attachment may have: the one its cache file names, the one its configuration names.
/// When neither has a record of the attachment, all that have a record.
fn candidates(state: &State, request: &Request) -> Result<Vec<PciAddress>, Error> {
    let cached = state.cache(&request.container_id, &request.ifname)?;
    let cached = cached.and_then(|cache| config::device_of(&cache.content));
    let named: Vec<_> = cached.into_iter().chain(config::device_of(&request.config)).collect();
    let is_own = |device: &PciAddress| {
        let record = state.record(*device).ok().flatten();
        record.is_some_and(|record| record.owner.is(&request.container_id, &request.ifname))
    };
    if cached.is_some() || named.iter().any(is_own) {
        return Ok(named);
    }
    Ok(state.devices()?.into_iter().filter(is_own).collect())
}

/// The record of `device` if it is of this attachment: our own, or what a peer's cache file says.
fn own_record(
    machine: &Machine,
    state: &State,
    request: &Request,
    device: PciAddress,
) -> Result<Option<Record>, Error> {
    let Request { container_id, ifname, .. } = request;
    if let Some(record) = state.record(device)? {
        return Ok(Some(record).filter(|record| record.owner.is(container_id, ifname)));
    }
    let Some(cache) = state.cache(container_id, ifname)? else { return Ok(None) };
    if config::device_of(&cache.content) != Some(device) {
        return Ok(None);
    }
    let allocation = state.allocation(device)?;
    let netns = allocation.or_else(|| request.netns.clone()).unwrap_or_default();
    let is_of_this_boot = cache.written.is_none_or(|written| machine.is_of_this_boot(written));
    let boot_id = if is_of_this_boot { machine.boot_id.as_str() } else { "unknown, an earlier one" };
    Ok(peer::record(&cache.content, container_id, ifname, netns, boot_id))
}
