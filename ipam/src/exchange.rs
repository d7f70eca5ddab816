//! What a node and a pool have to tell each other.
//!
//! [`plan`] reads the pool and says how it has to change; once that change is made, and only then, [`settle`] writes
//! into the ledger what the pool now says. Between the two the process may die, or never learn whether the change was
//! made: the next exchange starts from the pool again and comes to the same end. What keeps an address from being given
//! twice is written down in docs/ipam.md; each rule below says which part of it it is.

use std::collections::BTreeSet;

use crate::ledger::{Demand, Ledger, Moment, Slot, Stranger, Use};
use crate::pool::{Change, Entry, Mark, NodeLife, Owner, Pool, tenant_id};
use crate::range::Range;
use crate::stock::{self, Room, SHARE, block_of};
use crate::tenant::Tenant;

/// Over how many blocks the nodes spread that met at the first.
const SPREAD: u128 = 256;
/// Most addresses that are asked back at once.
const MOST_WANTED: usize = 64;

/// Why a node talks to a pool.
#[derive(Debug, Clone, Copy)]
pub enum Need<'a> {
    /// To say what it has to say.
    Nothing,
    /// To have idle addresses before they are asked for.
    Stock(&'a Range),
    /// To give out an address.
    Address(&'a Demand<'a>),
}

impl<'a> Need<'a> {
    /// The address that is to be given out.
    #[must_use]
    pub fn demand(&self) -> Option<&'a Demand<'a>> {
        match self {
            Self::Address(demand) => Some(demand),
            Self::Nothing | Self::Stock(_) => None,
        }
    }
}

/// What a node wants of a pool.
#[derive(Debug)]
pub struct Want<'a> {
    /// What is needed now.
    pub need: Need<'a>,
    /// Addresses not to ask for: they are reserved by others in overlapping ranges.
    pub avoid: &'a BTreeSet<u128>,
    /// How many addresses to ask for at once; by the room there is when not given.
    pub block: Option<u128>,
    /// A random number when others were quicker: the next block is not the first free one, which they want too.
    pub spread: Option<u64>,
}

/// How the pool has to change so that it says what the node needs and knows. Marks addresses in the ledger that are to
/// go back: the ledger must be on disk before the change is made.
pub fn plan(ledger: &mut Ledger, pool: &Pool, me: &NodeLife, want: &Want<'_>, now: Moment) -> Change {
    let mut change = Change::new();
    for (offset, entry) in &pool.entries {
        let replacement = match entry.owner() {
            Owner::Node(node, mark) if node.is_same_life(me) => {
                own(ledger, *offset, me, &node, &mark, entry.tenant().as_ref(), now)
            }
            // No container outlives the boot it was started in. A tenant waits, perhaps for another node.
            Owner::Node(node, _) if node.is_earlier_boot_of(me) => Some(Some(match entry.tenant() {
                Some(tenant) => Entry::of_tenant(&tenant),
                None => Entry::of_node(me, &Mark::None, None),
            })),
            Owner::Pod(of)
                if ledger.strangers.iter().any(|s| s.container == of.id && s.ifname == of.ifname) =>
            {
                Some(None)
            }
            // The node was given up and is back, with the tenant's container, before the tenant came elsewhere.
            Owner::Tenant(tenant) if houses(ledger, *offset, &tenant) => {
                Some(Some(Entry::of_node(me, &Mark::None, Some(&tenant))))
            }
            // Another node's, or of a lost ledger of this boot: its containers may still run.
            Owner::Node(..) | Owner::Tenant(_) | Owner::Pod(_) => None,
        };
        change.extend(replacement.map(|replacement| (*offset, replacement)));
    }
    for (offset, slot) in &ledger.slots {
        // Somebody removed the entry of an address in use. It is ours again unless it is another's by now.
        if matches!(slot.state, Use::Held(_) | Use::Lost(_)) && !pool.entries.contains_key(offset) {
            change.insert(*offset, Some(Entry::of_node(me, &Mark::None, slot.tenant.as_ref())));
        }
    }
    match want.need {
        Need::Nothing => {}
        Need::Stock(range) => lay_in(ledger, &pool.changed(&change), me, range, want, &mut change, now),
        Need::Address(demand) => {
            if let Some(tenant) = &demand.tenant {
                ledger.absolve(&tenant_id(tenant));
            }
            let after = pool.changed(&change);
            if !has_candidate(ledger, &after, me, demand, want, now) {
                match &demand.tenant {
                    Some(tenant) => house(ledger, &after, me, demand, tenant, want, &mut change, now),
                    None => claim(ledger, &after, me, demand, want, &mut change),
                }
            }
        }
    }
    change
}

/// Whether a container here is the tenant, and has that address.
fn houses(ledger: &Ledger, offset: u128, tenant: &Tenant) -> bool {
    let slot = ledger.slots.get(&offset);
    slot.is_some_and(|slot| {
        matches!(slot.state, Use::Held(_) | Use::Lost(_)) && slot.tenant.as_ref() == Some(tenant)
    })
}

/// What becomes of an entry of this very life of the node.
fn own(
    ledger: &mut Ledger,
    offset: u128,
    me: &NodeLife,
    node: &NodeLife,
    mark: &Mark,
    tenant: Option<&Tenant>,
    now: Moment,
) -> Option<Option<Entry>> {
    let wanted = *mark == Mark::Wanted;
    let given_back = tenant.map(Entry::of_tenant);
    match ledger.slots.get_mut(&offset) {
        // It waits for the tenant only if both say so: one that was refused, or evicted meanwhile, goes to nobody.
        Some(Slot { state: Use::Returning, tenant: of, .. }) => {
            return Some(given_back.filter(|_| of.as_ref() == tenant));
        }
        // It goes when it has rested; until then the mark stands.
        Some(slot) if wanted && slot.state == Use::Idle && slot.rests(now) => return None,
        Some(slot) if wanted && slot.state == Use::Idle => {
            slot.state = Use::Returning;
            return Some(given_back);
        }
        // Claimed by a call that did not live to write it down: nobody has it.
        None if wanted => return Some(given_back),
        _ => {}
    }
    // A mark is answered by taking it away; and the name is verified as soon as it can be.
    (*mark != Mark::None || node != me).then(|| Some(Entry::of_node(me, &Mark::None, tenant)))
}

/// Whether the node will have an address that suits, once the change so far is made.
fn has_candidate(
    ledger: &Ledger,
    after: &Pool,
    me: &NodeLife,
    demand: &Demand<'_>,
    want: &Want<'_>,
    now: Moment,
) -> bool {
    let mut settled = ledger.clone();
    settle(&mut settled, after, me, now);
    for offset in want.avoid {
        settled.slots.remove(offset);
    }
    // One that has no reservation yet will get it.
    let demand = Demand { reserved: false, ..demand.clone() };
    settled.candidate(&demand, now).is_some()
}

/// Adds to the change what the node asks for: the former address of the pod, those it must have, a block, or that
/// others give back what they do not use.
fn claim(
    ledger: &mut Ledger,
    after: &Pool,
    me: &NodeLife,
    demand: &Demand<'_>,
    want: &Want<'_>,
    change: &mut Change,
) {
    let mine = || Some(Entry::of_node(me, &Mark::None, None));
    if let Some(offset) = former(after, demand, want) {
        change.insert(offset, mine());
        return;
    }
    // What goes back is asked for again only when it is seen to be gone: a removal of which we do not know whether it
    // was made may still be on its way.
    let is_asked_for = |offset: &u128| !want.avoid.contains(offset) && !ledger.slots.contains_key(offset);
    if !demand.only.is_empty() {
        let is_free = |offset: &&u128| {
            demand.admits(**offset) && is_asked_for(offset) && !after.entries.contains_key(offset)
        };
        match demand.only.iter().find(is_free) {
            Some(offset) => drop(change.insert(*offset, mine())),
            None => ask_back(after, me, demand, change),
        }
        return;
    }
    let size = block_of(after, me, demand.range, want.block);
    let free_there = free_block(ledger, after, demand.range, want, size);
    ledger.block = size;
    if free_there.is_empty() {
        ask_back(after, me, demand, change);
    }
    change.extend(free_there.into_iter().map(|offset| (offset, mine())));
}

/// Adds to the change the block that the node will need soon, if it will, and if there is room for it: nobody is asked
/// for what nobody waits for.
fn lay_in(
    ledger: &mut Ledger,
    after: &Pool,
    me: &NodeLife,
    range: &Range,
    want: &Want<'_>,
    change: &mut Change,
    now: Moment,
) {
    let mut settled = ledger.clone();
    settle(&mut settled, after, me, now);
    let size = block_of(after, me, range, want.block);
    ledger.block = size;
    let room = Room {
        usable: range.capacity(),
        taken: after.used(range),
        is_wanted: after.entries.values().any(|entry| matches!(entry.owner(), Owner::Node(_, Mark::Wanted))),
    };
    if stock::lacks(stock::idle(&settled, range, now), size, &room) {
        let free_there = free_block(ledger, after, range, want, size);
        change.extend(
            free_there.into_iter().map(|offset| (offset, Some(Entry::of_node(me, &Mark::None, None)))),
        );
    }
}

/// Free addresses for a block of that size: the first ones, or others where `want` says so.
fn free_block(ledger: &Ledger, after: &Pool, range: &Range, want: &Want<'_>, size: u128) -> Vec<u128> {
    let room = range.capacity().saturating_sub(after.used(range));
    let count = usize::try_from(size).unwrap_or(usize::MAX);
    // Where there is little room, there is none to spread in.
    let blocks = if size == 1 { 1 } else { (room / size).clamp(1, SPREAD) };
    let skipped = want.spread.map_or(0, |random| u128::from(random) % blocks * size);
    let is_asked_for = |offset: &u128| !want.avoid.contains(offset) && !ledger.slots.contains_key(offset);
    let free = |skipped| -> Vec<u128> {
        let free = after.free(range).filter(is_asked_for);
        free.skip(usize::try_from(skipped).unwrap_or(usize::MAX)).take(count).collect()
    };
    let free_there = free(skipped);
    if free_there.is_empty() { free(0) } else { free_there }
}

/// Adds to the change the address of a tenant: the one that waits for it, else one that is free. While another container
/// has that of the tenant, here or elsewhere, there is none.
#[expect(clippy::too_many_arguments, reason = "what plan has, and whom it is for")]
fn house(
    ledger: &mut Ledger,
    after: &Pool,
    me: &NodeLife,
    demand: &Demand<'_>,
    tenant: &Tenant,
    want: &Want<'_>,
    change: &mut Change,
    now: Moment,
) {
    let mine = || Some(Entry::of_node(me, &Mark::None, Some(tenant)));
    let admits = |offset: &u128| demand.admits(*offset) && !want.avoid.contains(offset);
    let (container, ifname) = (&demand.holder.container, &demand.holder.ifname);
    // The attachment may have one of another set of ranges already.
    let is_anothers = |offset: &u128| {
        let slot = ledger.slots.get(offset);
        !slot.is_some_and(|slot| matches!(&slot.state, Use::Held(holder) if holder.is(container, ifname)))
    };
    let of_tenant = after.entries.iter().filter(|(offset, entry)| {
        admits(offset) && is_anothers(offset) && entry.tenant().as_ref() == Some(tenant)
    });
    let (waiting, housed): (Vec<_>, Vec<_>) =
        of_tenant.partition(|(_, entry)| matches!(entry.owner(), Owner::Tenant(_)));
    // One that is on its way back is seen to have arrived first: the request may be repeated, and come late.
    if let Some((offset, _)) = waiting.iter().find(|(offset, _)| !ledger.slots.contains_key(offset)) {
        change.insert(**offset, mine());
        return;
    }
    if !waiting.is_empty() || !housed.is_empty() {
        ask_back(after, me, demand, change);
        return;
    }
    if let Some(offset) = former(after, demand, want) {
        change.insert(offset, mine());
        return;
    }
    let room = demand.range.capacity().saturating_sub(after.used(demand.range));
    let skipped = want.spread.map_or(0, |random| u128::from(random) % (room / SHARE).clamp(1, SPREAD));
    let free = |skipped| {
        let suits = |offset: &u128| admits(offset) && !ledger.slots.contains_key(offset);
        after.free(demand.range).filter(suits).nth(usize::try_from(skipped).unwrap_or(usize::MAX))
    };
    if let Some(offset) = free(skipped).or_else(|| free(0)) {
        change.insert(offset, mine());
        return;
    }
    // One that the node keeps for whoever comes is free once the pool says so.
    let spare = |(offset, slot): &(&u128, &Slot)| {
        slot.state == Use::Idle && slot.tenant.is_none() && !slot.rests(now) && admits(offset)
    };
    match ledger.slots.iter().find(spare).map(|(offset, _)| *offset) {
        Some(offset) => {
            ledger.mark_returning(offset);
            change.insert(offset, None);
        }
        None => ask_back(after, me, demand, change),
    }
}

/// The peer gives a pod that is made anew the address that it finds under the pod's name, and so do we.
fn former(after: &Pool, demand: &Demand<'_>, want: &Want<'_>) -> Option<u128> {
    let holder = &demand.holder;
    let is_its = |(offset, entry): &(&u128, &Entry)| {
        demand.admits(**offset)
            && !want.avoid.contains(*offset)
            && entry.podref == holder.podref
            && entry.ifname == holder.ifname
            && !entry.podref.is_empty()
    };
    after.entries.iter().find(is_its).map(|(offset, _)| *offset)
}

/// Asks others for what they do not use: that of the tenant if there is one, else any.
fn ask_back(after: &Pool, me: &NodeLife, demand: &Demand<'_>, change: &mut Change) {
    let others = |tenant: Option<&Tenant>| -> Change {
        let wanted = after.entries.iter().filter_map(|(offset, entry)| match entry.owner() {
            Owner::Node(node, Mark::None)
                if !node.is_same_node(me) && demand.admits(*offset) && entry.tenant().as_ref() == tenant =>
            {
                Some((*offset, Some(Entry::of_node(&node, &Mark::Wanted, tenant))))
            }
            Owner::Node(..) | Owner::Tenant(_) | Owner::Pod(_) => None,
        });
        wanted.take(MOST_WANTED).collect()
    };
    let is_somewhere = |tenant: &Tenant| {
        let mut admitted = after.entries.iter().filter(|(offset, _)| demand.admits(**offset));
        admitted.any(|(_, entry)| entry.tenant().as_ref() == Some(tenant))
    };
    let tenant = demand.tenant.as_ref().filter(|tenant| is_somewhere(tenant));
    change.extend(others(tenant));
}

/// Writes into the ledger what the pool says, as read after `started` and with every planned change made.
pub fn settle(ledger: &mut Ledger, pool: &Pool, me: &NodeLife, started: Moment) {
    let is_mine = |offset: &u128| {
        pool.entries
            .get(offset)
            .is_some_and(|entry| matches!(entry.owner(), Owner::Node(node, _) if node.is_same_life(me)))
    };
    let tenant = |offset: &u128| pool.entries.get(offset).and_then(Entry::tenant);
    ledger.slots.retain(|offset, slot| {
        if is_mine(offset) {
            if slot.state != Use::Returning {
                slot.tenant = tenant(offset);
            }
            if let Use::Lost(holder) = &slot.state {
                slot.state = Use::Held(holder.clone());
            }
            return true;
        }
        // The container goes on using it, but nobody else will get it from here.
        if let Use::Held(holder) = &slot.state {
            slot.state = Use::Lost(holder.clone());
        }
        matches!(slot.state, Use::Lost(_))
    });
    for offset in pool.entries.keys().filter(|offset| is_mine(offset)) {
        // What is ours and unknown to us was claimed just now, or by a call that did not live to write it down.
        ledger.slots.entry(*offset).or_insert_with(|| Slot {
            state: Use::Idle,
            reserved: false,
            past: None,
            tenant: tenant(offset),
        });
    }
    ledger.confirmed = Some(started);
}

/// Stops looking for those of the strangers `sought` that are not in the pool either. One that was added since waits for the
/// next call: nobody looked for it everywhere yet.
pub fn dismiss(ledger: &mut Ledger, pool: &Pool, sought: &[Stranger]) {
    ledger.strangers.retain(|stranger| {
        let is_there = |entry: &Entry| entry.id == stranger.container && entry.ifname == stranger.ifname;
        !sought.contains(stranger) || pool.entries.values().any(is_there)
    });
}
