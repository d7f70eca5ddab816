//! DEL and GC: addresses go back to the node at once, and to the pool when the API server is there.

use std::collections::BTreeSet;
use std::time::Duration;

use cni::Request;

use crate::config::{Conf, NodeConf, Places, Source};
use crate::conversation::Conversation;
use crate::error::Error;
use crate::exchange::Need;
use crate::kubernetes::Kubernetes;
use crate::ledger::{Slot, Stranger, Use};
use crate::plugin::online;
use crate::store::Store;

/// How long DEL waits for the API server: what it has to tell is on disk, and told by the next call that gets through. For
/// the address of a tenant there may be none, so the runtime calls again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Takes back what the attachment has. Needs nothing but the node.
pub(crate) fn del(request: &Request, places: &Places) -> Result<(), Error> {
    let node = NodeConf::load(&request.config, places)?;
    let store = Store::open(&node.data_dir, &node.name)?;
    // A configuration that ADD would refuse still says which call this is.
    let conf = Conf::load(request, places);
    let rest = conf.as_ref().map_or(Duration::ZERO, |conf| conf.cool_down);
    let (container, ifname) = (request.container_id.as_str(), request.ifname.as_str());
    let mut pools: BTreeSet<String> = store.pools()?.into_iter().collect();
    let mut known = false;
    for pool in &pools {
        known |= store.with(pool, |ledger, now| {
            let known = ledger.release_attachment(container, ifname, rest, now);
            ledger.mark_surplus(now);
            known
        })?;
    }
    let Ok(conf) = conf else { return Ok(()) };
    pools = conf.sets.iter().flatten().map(|source| source.pool.clone()).collect();
    if !known {
        // Attached by the peer, perhaps, before this program took its place.
        let stranger = Stranger { container: container.to_owned(), ifname: ifname.to_owned() };
        for pool in &pools {
            store.with(pool, |ledger, _| {
                if !ledger.strangers.contains(&stranger) {
                    ledger.strangers.push(stranger.clone());
                }
            })?;
        }
    }
    if let Err(error) = tell(&conf, &store, PATIENCE) {
        if error.code() == cni::Error::TRY_AGAIN_LATER && owes_tenant(&store, &pools, container, ifname)? {
            return Err(error);
        }
        tracing::warn!("{error}; what goes back to the pool is kept and told by a later call");
    }
    Ok(())
}

/// Whether an address that the attachment had is still on its way back to a tenant: until it is there, the tenant can be
/// started nowhere else.
fn owes_tenant(
    store: &Store,
    pools: &BTreeSet<String>,
    container: &str,
    ifname: &str,
) -> Result<bool, Error> {
    let is_owed = |slot: &Slot| {
        let was_its = slot.past.as_ref().is_some_and(|past| past.holder.is(container, ifname));
        was_its && slot.tenant.is_some() && slot.state == Use::Returning
    };
    for pool in pools {
        if store.read(pool)?.is_some_and(|ledger| ledger.slots.values().any(is_owed)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Releases what belongs to no attachment that the runtime knows.
pub(crate) fn gc(request: &Request, places: &Places) -> Result<(), Error> {
    let Some(valid) = request.valid_attachments().map_err(Error::Conf)? else { return Ok(()) };
    let conf = Conf::load(request, places)?;
    let store = Store::open(&conf.node.data_dir, &conf.node.name)?;
    for pool in store.pools()? {
        store.with(&pool, |ledger, now| {
            let is_stale = |state: &Use| match state {
                Use::Held(holder) | Use::Lost(holder) => {
                    holder.network == request.name
                        && !valid.iter().any(|of| holder.is(&of.container_id, &of.ifname))
                }
                Use::Idle | Use::Returning => false,
            };
            let slots = ledger.slots.iter().filter(|(_, slot)| is_stale(&slot.state));
            let stale: Vec<u128> = slots.map(|(offset, _)| *offset).collect();
            for offset in stale {
                ledger.release(offset, conf.cool_down, now);
            }
            ledger.mark_surplus(now);
        })?;
    }
    tell(&conf, &store, PATIENCE)
}

/// Tells the pools of the network what the ledgers have to tell.
pub(crate) fn tell(conf: &Conf, store: &Store, patience: Duration) -> Result<(), Error> {
    let mut open = Vec::new();
    for source in conf.sets.iter().flatten() {
        if store.with(&source.pool, |ledger, _| ledger.has_news())? {
            open.push(source);
        }
    }
    if open.is_empty() { Ok(()) } else { online(tell_pools(conf, store, &open, patience)) }
}

async fn tell_pools(
    conf: &Conf,
    store: &Store,
    sources: &[&Source],
    patience: Duration,
) -> Result<(), Error> {
    let kubernetes = Kubernetes::connect(conf.node.kubeconfig.as_deref(), patience).await?;
    for source in sources {
        let _lock = store.claim_lock(&source.pool)?;
        let (kubernetes, network_name) = (&kubernetes, conf.network_name.as_str());
        let (block, slices) = (conf.block(&source.range), conf.slices.as_deref());
        let (exclusive, limit) = (conf.exclusive, patience);
        let conversation =
            Conversation { kubernetes, store, source, network_name, exclusive, block, slices, limit };
        conversation.hold(Need::Nothing).await?;
    }
    Ok(())
}
