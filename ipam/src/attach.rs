//! ADD.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use cni::{CniResult, IpConfig, Request};
use ipnet::IpNet;

use crate::config::{Conf, Source};
use crate::conversation::Conversation;
use crate::error::Error;
use crate::exchange::Need;
use crate::kubernetes::Kubernetes;
use crate::ledger::{Demand, Holder, Ledger, Use};
use crate::plugin::online;
use crate::pool::{Entry, Owner, Pool};
use crate::range::Range;
use crate::store::Store;
use crate::sweep;
use crate::tenancy::{self, Tenancy};

/// How long ADD goes on while the API server does not answer: less than a runtime's own patience.
const PATIENCE: Duration = Duration::from_secs(45);
/// How long ADD goes on while other nodes are quicker: less than a runtime's own patience.
const CONTENTION: Duration = Duration::from_secs(110);
/// How many holders an exhausted range names.
const NAMED: usize = 5;

/// An ADD at work.
struct Attach<'a> {
    conf: &'a Conf,
    store: &'a Store,
    holder: Holder,
    tenancy: Tenancy,
    /// Made when it is needed: inside the node's block it is not.
    kubernetes: Option<Kubernetes>,
}

/// An address that was given.
struct Given<'a> {
    source: &'a Source,
    offset: u128,
    fresh: bool,
}

/// Gives the attachment an address of each set of ranges, and those it asks for. Gives back what it got when it does
/// not get all.
pub(crate) fn add(conf: &Conf, store: &Store, request: &Request) -> Result<CniResult, Error> {
    if conf.pod.podref.is_empty() {
        return Err(Error::NoPod);
    }
    let holder = Holder {
        container: request.container_id.clone(),
        ifname: request.ifname.clone(),
        podref: conf.pod.podref.clone(),
        uid: conf.pod.uid.clone(),
        netns: request.netns.as_deref().map(|path| path.display().to_string()).unwrap_or_default(),
        network: request.name.clone(),
    };
    let mut attach = Attach { conf, store, holder, tenancy: Tenancy::default(), kubernetes: None };
    let mut given = Vec::new();
    let result = match attach.local(&mut given) {
        Ok(true) => Ok(()),
        Ok(false) => online(attach.all(&mut given, &request.name)),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        for Given { source, offset, .. } in given.iter().filter(|given| given.fresh) {
            store.with(&source.pool, |ledger, now| ledger.release(*offset, Duration::ZERO, now))?;
        }
        return Err(error);
    }
    let mut ips: Vec<IpConfig> = given.iter().filter_map(|given| ip(conf, given)).collect();
    ips.extend(conf.addresses.iter().cloned());
    Ok(CniResult { ips, routes: conf.routes.clone(), dns: conf.dns.clone(), ..CniResult::default() })
}

fn ip(conf: &Conf, given: &Given<'_>) -> Option<IpConfig> {
    let range = &given.source.range;
    let address = IpNet::new(range.address(given.offset)?, range.subnet().prefix_len()).ok()?;
    Some(IpConfig { interface: None, address, gateway: conf.gateway(range) })
}

impl<'a> Attach<'a> {
    /// Gives what the node keeps, without a word to the cluster; says whether that is all.
    fn local(&self, given: &mut Vec<Given<'a>>) -> Result<bool, Error> {
        if tenancy::is_possible(self.conf) || !self.conf.requested.is_empty() {
            return Ok(false);
        }
        for set in &self.conf.sets {
            match self.idle(set, given)? {
                Some(found) => given.push(found),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Gives what is missing in `given`.
    async fn all(&mut self, given: &mut Vec<Given<'a>>, network: &str) -> Result<(), Error> {
        let conf = self.conf;
        if tenancy::is_possible(conf) {
            let ifname = self.holder.ifname.clone();
            self.tenancy = tenancy::ask(conf, self.kubernetes().await?, network, &ifname).await?;
        }
        let mut requested = shared_out(&conf.sets, &conf.requested).map_err(|of| outside(conf, of))?;
        for (at, set) in conf.sets.iter().enumerate().skip(given.len()) {
            // A claim that says which address it has asks for it.
            if !requested.contains_key(&at) {
                let spoken_for =
                    requested.values().flatten().copied().chain(given.iter().filter_map(address));
                let address = self.of_claim(set, &spoken_for.collect());
                requested.extend(address.map(|address| (at, vec![address])));
            }
            let Some(addresses) = requested.get(&at) else {
                let found = self.any(set, given).await?;
                given.push(found);
                continue;
            };
            for address in addresses {
                let found = self.this(set, *address).await?;
                given.push(found);
            }
        }
        self.record(given).await
    }

    /// The address of the claim that is for the set, when sets share a subnet: one that the set may give out, else one that
    /// none may.
    fn of_claim(&self, set: &[Source], spoken_for: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let (_, _, claim) = self.tenancy.claim.as_ref()?;
        let open =
            || claim.addresses().filter(|address| is_in(set, *address) && !spoken_for.contains(address));
        let is_anothers = |address: &IpAddr| self.conf.sets.iter().any(|other| allows(other, *address));
        open().find(|address| allows(set, *address)).or_else(|| open().find(|address| !is_anothers(address)))
    }

    /// Writes into the claim what it has, where that is new.
    async fn record(&mut self, given: &[Given<'a>]) -> Result<(), Error> {
        let Some((namespace, name, claim)) = self.tenancy.claim.take() else { return Ok(()) };
        let pod = self.conf.pod.podref.split_once('/').map(|(_, pod)| pod).unwrap_or_default();
        let ips = given.iter().filter_map(|given| ip(self.conf, given));
        let ips: Vec<String> = ips.map(|ip| ip.address.to_string()).collect();
        if ips == claim.ips && pod == claim.owner {
            return Ok(());
        }
        self.kubernetes().await?.record_claim(&namespace, &name, &ips, pod).await
    }

    async fn kubernetes(&mut self) -> Result<&Kubernetes, Error> {
        let kubernetes = match self.kubernetes.take() {
            Some(kubernetes) => kubernetes,
            None => Kubernetes::connect(self.conf.node.kubeconfig.as_deref(), PATIENCE).await?,
        };
        Ok(self.kubernetes.insert(kubernetes))
    }

    /// An address that the node keeps: what the attachment has already, when the runtime asks again because it did not get
    /// the answer, else an idle one.
    fn idle(&self, set: &'a [Source], given: &[Given<'a>]) -> Result<Option<Given<'a>>, Error> {
        let is_given = |source: &Source, offset| {
            given.iter().any(|g| g.source.pool == source.pool && g.offset == offset)
        };
        let held = |ledger: &Ledger, source: &Source| {
            let held = ledger.held_by(&self.holder.container, &self.holder.ifname);
            held.filter(|offset| source.range.allows(*offset) && !is_given(source, *offset)).min()
        };
        let (is_alone, demand) =
            (set.len() == 1, |source: &'a Source| self.demand(&source.range, BTreeSet::new()));
        for source in set {
            let found = self.store.with(&source.pool, |ledger, now| match held(ledger, source) {
                Some(offset) => Some((offset, false)),
                None if is_alone => Some((ledger.take(&demand(source), now)?, true)),
                None => None,
            })?;
            if let Some((offset, fresh)) = found {
                return Ok(Some(Given { source, offset, fresh }));
            }
        }
        for source in set.iter().filter(|_| !is_alone) {
            if let Some(offset) =
                self.store.with(&source.pool, |ledger, now| ledger.take(&demand(source), now))?
            {
                return Ok(Some(Given { source, offset, fresh: true }));
            }
        }
        Ok(None)
    }

    /// An address of the first range of the set that has room.
    async fn any(&mut self, set: &'a [Source], given: &[Given<'a>]) -> Result<Given<'a>, Error> {
        if let Some(found) = self.idle(set, given)? {
            return Ok(found);
        }
        let mut full = Vec::new();
        for source in self.familiar_first(set).await? {
            let demand = self.demand(&source.range, BTreeSet::new());
            match self.claimed(source, &demand).await? {
                Ok(offset) => return Ok(Given { source, offset, fresh: true }),
                Err(pool) => {
                    self.refuse_occupied(source, &pool, &demand)?;
                    full.push(describe(&source.range, &pool));
                }
            }
        }
        Err(Error::Exhausted { ranges: full })
    }

    /// The ranges of the set, with those first in which the tenant has an address already.
    async fn familiar_first(&mut self, set: &'a [Source]) -> Result<Vec<&'a Source>, Error> {
        let Some(tenant) = self.tenancy.tenant.clone().filter(|_| set.len() > 1) else {
            return Ok(set.iter().collect());
        };
        let (mut familiar, mut others) = (Vec::new(), Vec::new());
        for source in set {
            let pool = self.kubernetes().await?.existing_pool(&source.pool).await?.unwrap_or_default();
            let is_its = |(offset, entry): (&u128, &Entry)| {
                source.range.allows(*offset) && entry.tenant().as_ref() == Some(&tenant)
            };
            if pool.entries.iter().any(is_its) { familiar.push(source) } else { others.push(source) }
        }
        familiar.extend(others);
        Ok(familiar)
    }

    /// Fails when the tenant has an address there that another container uses.
    fn refuse_occupied(&self, source: &Source, pool: &Pool, demand: &Demand<'_>) -> Result<(), Error> {
        let Some(tenant) = &demand.tenant else { return Ok(()) };
        let mut admitted = pool.entries.iter().filter(|(offset, _)| demand.admits(**offset));
        let Some((offset, entry)) = admitted.find(|(_, entry)| entry.tenant().as_ref() == Some(tenant))
        else {
            return Ok(());
        };
        let Some(address) = source.whole.address(*offset) else { return Ok(()) };
        let own = self.store.with(&source.pool, |ledger, _| holder_here(ledger, *offset))?;
        let holder = own.unwrap_or_else(|| holder_text(&entry.owner()));
        Err(Error::Occupied { address, tenant: tenant.to_string(), holder })
    }

    /// This very address.
    async fn this(&mut self, set: &'a [Source], address: IpAddr) -> Result<Given<'a>, Error> {
        let place = set.iter().find_map(|source| Some((source, source.whole.offset(address)?)));
        let (source, offset) = place.ok_or_else(|| outside(self.conf, address))?;
        if !source.whole.allows(offset) {
            return Err(outside(self.conf, address));
        }
        let demand = self.demand(&source.whole, BTreeSet::from([offset]));
        let (fresh, held) = self.store.with(&source.pool, |ledger, now| {
            let held = ledger.held_by(&self.holder.container, &self.holder.ifname).any(|held| held == offset);
            (ledger.take(&demand, now).is_some(), held)
        })?;
        if fresh || held {
            return Ok(Given { source, offset, fresh });
        }
        match self.claimed(source, &demand).await? {
            Ok(offset) => Ok(Given { source, offset, fresh: true }),
            Err(pool) => {
                self.refuse_occupied(source, &pool, &demand)?;
                let own = self.store.with(&source.pool, |ledger, _| holder_here(ledger, offset))?;
                let other = pool.entries.get(&offset).map(|entry| holder_text(&entry.owner()));
                let holder = own.or(other).unwrap_or_else(|| "an overlapping range".to_owned());
                Err(Error::Taken { address, holder })
            }
        }
    }

    /// An address that the node does not keep yet; the pool when there is none.
    async fn claimed(&mut self, source: &Source, demand: &Demand<'_>) -> Result<Result<u128, Pool>, Error> {
        let lock = self.store.claim_lock(&source.pool)?;
        let (store, conf) = (self.store, self.conf);
        // Who held the lock before may have brought enough for all.
        if let Some(offset) = store.with(&source.pool, |ledger, now| ledger.take(demand, now))? {
            return Ok(Ok(offset));
        }
        let conversation = Conversation {
            kubernetes: self.kubernetes().await?,
            store,
            source,
            network_name: &conf.network_name,
            exclusive: conf.exclusive,
            block: conf.block(&source.range),
            slices: conf.slices.as_deref(),
            limit: CONTENTION,
        };
        let take = |me| store.within(&source.pool, me, |ledger, now| ledger.take(demand, now));
        let (pool, me) = conversation.hold(Need::Address(demand)).await?;
        if let Some(offset) = take(&me)? {
            return Ok(Ok(offset));
        }
        if !sweep::sweep(&conversation, &pool).await? {
            return Ok(Err(pool));
        }
        let (pool, me) = conversation.hold(Need::Address(demand)).await?;
        let taken = take(&me)?;
        // Until then nobody may send back what was brought for this call.
        lock.release();
        Ok(taken.ok_or(pool))
    }

    fn demand<'r>(&self, range: &'r Range, only: BTreeSet<u128>) -> Demand<'r> {
        let (holder, tenant) = (self.holder.clone(), self.tenancy.tenant.clone());
        Demand { range, only, holder, tenant, reserved: self.conf.exclusive }
    }
}

/// Which set of ranges gives which of the addresses that were asked for. Sets that share a subnet give one each, as far as
/// there are enough of them, and rather those that they may give out. Fails with an address that is in none.
fn shared_out(sets: &[Vec<Source>], asked: &[IpAddr]) -> Result<BTreeMap<usize, Vec<IpAddr>>, IpAddr> {
    let mut shares: BTreeMap<usize, Vec<IpAddr>> = BTreeMap::new();
    for address in asked {
        let holding = |(_, set): &(usize, &Vec<Source>)| is_in(set, *address);
        let open = || sets.iter().enumerate().filter(holding).filter(|(at, _)| !shares.contains_key(at));
        let place = open().find(|(_, set)| allows(set, *address)).or_else(|| open().next());
        let place = place.or_else(|| sets.iter().enumerate().find(holding));
        let (at, _) = place.ok_or(*address)?;
        shares.entry(at).or_default().push(*address);
    }
    Ok(shares)
}

fn is_in(set: &[Source], address: IpAddr) -> bool {
    set.iter().any(|source| source.whole.offset(address).is_some())
}

fn allows(set: &[Source], address: IpAddr) -> bool {
    let may =
        |source: &Source| source.range.offset(address).is_some_and(|offset| source.range.allows(offset));
    set.iter().any(may)
}

fn address(given: &Given<'_>) -> Option<IpAddr> {
    given.source.range.address(given.offset)
}

/// Who on this node has the address.
fn holder_here(ledger: &Ledger, offset: u128) -> Option<String> {
    match &ledger.slots.get(&offset)?.state {
        Use::Held(holder) | Use::Lost(holder) => Some(format!("pod {} on this node", holder.podref)),
        Use::Idle | Use::Returning => None,
    }
}

fn outside(conf: &Conf, address: IpAddr) -> Error {
    let ranges: Vec<String> =
        conf.sets.iter().flatten().map(|source| source.range.subnet().to_string()).collect();
    Error::Outside { address, ranges: ranges.join(", ") }
}

/// A full range: its size, its use, and who has most of it.
fn describe(range: &Range, pool: &Pool) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (_, entry) in pool.entries.iter().filter(|(offset, _)| range.allows(**offset)) {
        *counts.entry(holder_text(&entry.owner())).or_default() += 1;
    }
    let mut holders: Vec<(String, usize)> = counts.into_iter().collect();
    holders.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let more = holders.len().saturating_sub(NAMED);
    let mut text: Vec<String> =
        holders.into_iter().take(NAMED).map(|(holder, count)| format!("{holder} {count}")).collect();
    if more > 0 {
        text.push(format!("and {more} more"));
    }
    format!(
        "{} ({} usable, {} taken or kept: {}); delete pods, or give the network a larger range",
        range.subnet(),
        range.capacity(),
        pool.used(range),
        text.join(", ")
    )
}

fn holder_text(owner: &Owner) -> String {
    match owner {
        Owner::Node(life, _) => format!("node {}", life.node),
        Owner::Tenant(tenant) => format!("waiting for {tenant}"),
        Owner::Pod(entry) => format!("pod {} {}", entry.podref, entry.ifname),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_that_share_a_subnet_share_what_was_asked_for() {
        let set = |subnet: &str, first: &str, last: &str| {
            let (subnet, bound) = (subnet.parse().unwrap(), |text: &str| text.parse().ok());
            let range = Range::new(subnet, bound(first), bound(last), &[], None);
            vec![Source { pool: "p".into(), range, whole: Range::new(subnet, None, None, &[], None) }]
        };
        let whole = || set("10.0.0.0/24", "", "");
        let low = || set("10.0.0.0/24", "10.0.0.10", "10.0.0.19");
        let high = || set("10.0.0.0/24", "10.0.0.30", "10.0.0.39");
        let other = || set("fd00::/64", "", "");
        for (sets, asked, wanted) in [
            (vec![whole()], "10.0.0.5 10.0.0.7", Ok("0: 10.0.0.5 10.0.0.7")),
            (vec![whole(), whole()], "10.0.0.5 10.0.0.7", Ok("0: 10.0.0.5, 1: 10.0.0.7")),
            (vec![whole(), whole()], "10.0.0.5 10.0.0.6 10.0.0.7", Ok("0: 10.0.0.5 10.0.0.7, 1: 10.0.0.6")),
            (vec![low(), high()], "10.0.0.33 10.0.0.12", Ok("0: 10.0.0.12, 1: 10.0.0.33")),
            (vec![low(), high()], "10.0.0.33", Ok("1: 10.0.0.33")),
            (vec![low(), high()], "10.0.0.77 10.0.0.12", Ok("0: 10.0.0.77, 1: 10.0.0.12")),
            (
                vec![whole(), other(), whole()],
                "fd00::5 10.0.0.5 10.0.0.7",
                Ok("0: 10.0.0.5, 1: fd00::5, 2: 10.0.0.7"),
            ),
            (vec![whole()], "10.0.0.5 10.0.1.7", Err("10.0.1.7")),
        ] {
            let addresses: Vec<IpAddr> = asked.split(' ').map(|text| text.parse().unwrap()).collect();
            let text =
                |list: &Vec<IpAddr>| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let found = shared_out(&sets, &addresses).map(|shares| {
                let share = |(at, list): (&usize, &Vec<IpAddr>)| format!("{at}: {}", text(list));
                shares.iter().map(share).collect::<Vec<_>>().join(", ")
            });
            let wanted = wanted.map(str::to_owned).map_err(|address| address.parse().unwrap());
            assert_eq!(found, wanted, "{asked}");
        }
    }
}
