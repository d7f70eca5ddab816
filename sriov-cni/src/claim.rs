//! Who has a VF, and whether it can be had.

use std::path::PathBuf;

use cni::Request;
use host::netlink::Link;
use host::{Netns, PciAddress};
use tracing::{info, warn};

use crate::config;
use crate::error::Error;
use crate::machine::Machine;
use crate::netdev;
use crate::peer;
use crate::record::{Baseline, Owner, Phase, Record};
use crate::restore::restore;
use crate::state::{PeerFile, State};
use crate::vf::Vf;

/// Sees that nobody has the VF, finishing or undoing what an earlier owner left: a killed ADD of the same
/// attachment, a DEL that failed, a container whose namespace is gone. The lock of the VF must be held.
///
/// Returns a baseline when the VF is fit for use but not wholly as it was (its name on the host is
/// taken): that of the earlier record, since a dirty VF must never become the new measure.
pub(crate) async fn claim(
    machine: &Machine,
    state: &State,
    request: &Request,
    device: PciAddress,
) -> Result<Option<Baseline>, Error> {
    let Some(record) = last_owner(machine, state, &request.name, device)? else { return Ok(None) };
    let is_ours = record.owner.is(&request.container_id, &request.ifname);
    if !is_ours && record.phase != Phase::Releasing && is_alive(&record.owner) {
        return Err(Error::Allocated { device, owner: Box::new(record.owner) });
    }
    if is_ours && let Some(kind) = config::ipam_of(&request.config) {
        // The killed ADD may hold addresses, and IPAM plugins refuse to give one attachment twice.
        if let Err(error) = cni::ipam::del(&kind, request) {
            warn!(%error, "addresses of the earlier attempt are not given back");
        }
    }
    info!(%device, owner = %record.owner, phase = ?record.phase, "restoring what an earlier owner left");
    match restore(machine, &record, None).await {
        Ok(()) => {
            state.forget(&record)?;
            Ok(None)
        }
        Err(Error::NotReleased(errors)) if errors.iter().all(Error::concerns_name_only) => {
            for error in errors {
                warn!(%error, "going on with the VF");
            }
            // The record itself stays until the next owner's takes its place.
            state.forget_for_peers(&record)?;
            Ok(Some(record.baseline))
        }
        Err(error) => Err(error),
    }
}

/// Who has, or had, the VF, as far as any file says.
fn last_owner(
    machine: &Machine,
    state: &State,
    network: &str,
    device: PciAddress,
) -> Result<Option<Record>, Error> {
    if let Some(record) = known_owner(machine, state, device)? {
        return Ok(Some(record));
    }
    let netns = state.allocation(device)?;
    Ok(netns.map(|netns| unknown_owner(machine, network, device, netns)))
}

/// The record of the VF, or what a peer left in its place.
pub(crate) fn known_owner(
    machine: &Machine,
    state: &State,
    device: PciAddress,
) -> Result<Option<Record>, Error> {
    if let Some(record) = state.record(device)? {
        return Ok(Some(record));
    }
    let Some(netns) = state.allocation(device)? else { return Ok(None) };
    // A cache file that outlived a reboot speaks about a VF that is no more.
    let is_of_this_boot = |cache: &PeerFile| cache.written.is_none_or(|time| machine.is_of_this_boot(time));
    let cache = state.cache_of_device(device)?.filter(is_of_this_boot);
    Ok(cache.and_then(|cache| record_of_peer(machine, &cache, netns)))
}

/// A peer's cache file as a record. Its name is `<containerID>-<ifname>`; an interface name may hold
/// dashes itself, but container IDs of runtimes do not.
fn record_of_peer(machine: &Machine, cache: &PeerFile, netns: PathBuf) -> Option<Record> {
    let (container_id, ifname) = cache.name.split_once('-')?;
    peer::record(&cache.content, container_id, ifname, netns, &machine.boot_id)
}

/// An allocation mark without a cache file: somebody has, or had, the VF, and there is nothing to restore.
fn unknown_owner(machine: &Machine, network: &str, device: PciAddress, netns: PathBuf) -> Record {
    let owner = Owner {
        container_id: "(unknown)".to_owned(),
        ifname: "(unknown)".to_owned(),
        network: network.to_owned(),
        netns_id: Netns::open(&netns).ok().map(|netns| netns.id()),
        netns,
    };
    Record::new(device, owner, machine.boot_id.clone(), None, Baseline::default(), Vec::new())
}

fn is_alive(owner: &Owner) -> bool {
    match Netns::open(&owner.netns) {
        Ok(netns) => owner.netns_id == Some(netns.id()),
        Err(_) => false,
    }
}

/// The interface of a VF that has no record and yet is not here: it is waited for, in case it is just
/// coming back; in another namespace it is somebody's.
pub(crate) async fn stray(machine: &Machine, vf: &Vf) -> Result<Link, Error> {
    let lost = || Error::Lost { device: vf.address(), driver: vf.driver_name().to_owned() };
    let place = netdev::locate(machine, vf, Vec::new()).await?.ok_or_else(lost)?;
    if place.netns.id() == machine.netns.id() {
        return Ok(place.link);
    }
    let reason = format!(
        "is already allocated: its interface {} is in namespace {}, though no record says whose it is; move it back \
         to the host's namespace",
        place.link.name,
        place.netns.path().display()
    );
    Err(Error::Device { device: vf.address(), reason })
}
