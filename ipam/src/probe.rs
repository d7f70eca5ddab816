//! CHECK and STATUS.

use std::time::Duration;

use cni::Request;

use crate::config::Conf;
use crate::error::Error;
use crate::kubernetes::Kubernetes;
use crate::ledger::Use;
use crate::plugin::online;
use crate::store::Store;

const PATIENCE: Duration = Duration::from_secs(3);

/// Verifies that the attachment has what ADD gave it.
pub(crate) fn check(conf: &Conf, store: &Store, request: &Request) -> Result<(), Error> {
    let (container, ifname) = (request.container_id.as_str(), request.ifname.as_str());
    let failed =
        |what: String| Error::Check { container: container.to_owned(), ifname: ifname.to_owned(), what };
    let given = request.prev_result().map_err(Error::Conf)?.map(|result| result.ips).unwrap_or_default();
    for set in &conf.sets {
        let mut held = Vec::new();
        for source in set {
            held.extend(store.with(&source.pool, |ledger, _| {
                let is_lost =
                    |state: &Use| matches!(state, Use::Lost(holder) if holder.is(container, ifname));
                let lost =
                    ledger.slots.iter().find(|(_, slot)| is_lost(&slot.state)).map(|(offset, _)| *offset);
                match lost.and_then(|offset| source.whole.address(offset)) {
                    Some(address) => Err(failed(format!("the pool says that {address} is another's"))),
                    None => Ok(ledger.addresses(&source.whole, container, ifname)),
                }
            })??);
        }
        if held.is_empty() {
            let names: Vec<String> = set.iter().map(|source| source.range.subnet().to_string()).collect();
            return Err(failed(format!("it has no address of {}", names.join(" or "))));
        }
        for ip in &given {
            let address = ip.address.addr();
            let is_ours = set.iter().any(|source| source.whole.offset(address).is_some());
            let is_static = conf.addresses.iter().any(|of| of.address.addr() == address);
            if is_ours && !is_static && !held.contains(&address) {
                return Err(failed(format!("it was given {address}, which it does not have")));
            }
        }
    }
    Ok(())
}

/// Says whether ADD could be served: from addresses that the node keeps, else through the API server.
pub(crate) fn status(conf: &Conf, store: &Store) -> Result<(), Error> {
    let told = crate::detach::tell(conf, store, PATIENCE);
    let mut is_idle = true;
    for set in &conf.sets {
        let mut any = false;
        for source in set {
            any |= store.with(&source.pool, |ledger, now| {
                let is_idle = |slot: &crate::ledger::Slot| {
                    slot.state == Use::Idle && slot.tenant.is_none() && (slot.reserved || !conf.exclusive)
                };
                ledger.is_trusted(now) && ledger.slots.values().any(is_idle)
            })?;
        }
        is_idle &= any;
    }
    if is_idle {
        return Ok(());
    }
    told?;
    online(async {
        let kubernetes = Kubernetes::connect(conf.node.kubeconfig.as_deref(), PATIENCE).await?;
        for source in conf.sets.iter().flatten() {
            // One that is not there yet is made by the first ADD.
            kubernetes.existing_pool(&source.pool).await?;
        }
        Ok(())
    })
}
