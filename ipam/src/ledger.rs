//! The ledger: what a node knows of the addresses it keeps, and who has them.
//!
//! It belongs to one pool and one life of the node. The pool says which addresses are the node's, the ledger says which
//! container has them; an address is given out without a word to the API server while the node is sure that it is
//! still its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pool::NodeLife;
use crate::range::Range;
use crate::tenant::Tenant;
use crate::terms::Terms;

/// The version of a ledger with tenants.
const VERSION: u32 = 2;
/// The version that knew no tenants, and would give their addresses to others. It is still written while there are none:
/// older programs know that one only, and begin anew where they find another.
const WITHOUT_TENANTS: u32 = 1;
/// For how long after the pool was read the node gives out addresses without reading it again. Whoever takes the
/// addresses of a node that is no more waits for twice as long.
pub const TRUST: Duration = Duration::from_secs(600);

/// For how long a missing owner is remembered that nobody looked for again: it may have been there in between.
const MEMORY: Duration = Duration::from_secs(600);

/// A moment on both clocks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds since boot, suspension included.
    pub uptime: u64,
    /// Milliseconds since 1970.
    pub wall: u64,
}

impl Moment {
    /// Whether less than `limit` has passed since `earlier`. Uptime stands still while a virtual machine is paused and
    /// the wall clock may be set, so both must say so.
    #[must_use]
    pub fn is_within(self, limit: Duration, earlier: Moment) -> bool {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let within = |now: u64, then: u64| now.checked_sub(then).is_some_and(|passed| passed < limit);
        within(self.uptime, earlier.uptime) && within(self.wall, earlier.wall)
    }
}

/// Who has an address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Container ID.
    pub container: String,
    /// Interface in the container.
    pub ifname: String,
    /// `namespace/name` of the pod.
    pub podref: String,
    /// UID of the pod; empty when the runtime did not tell.
    pub uid: String,
    /// Path of the network namespace.
    pub netns: String,
    /// Name of the CNI network.
    pub network: String,
}

impl Holder {
    /// Whether it is this attachment.
    #[must_use]
    pub fn is(&self, container: &str, ifname: &str) -> bool {
        self.container == container && self.ifname == ifname
    }
}

/// What an address of the node is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// It can be given out.
    Idle,
    /// A container has it.
    Held(Holder),
    /// It goes back to the pool, and is given out no more.
    Returning,
    /// A container has it, and the pool says it is another's: somebody edited the pool.
    Lost(Holder),
}

/// The container that had an address last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// Who.
    pub holder: Holder,
    /// Until when.
    pub released: Moment,
    /// For how long from then on the address is given to no other pod, milliseconds.
    pub rest: u64,
}

impl Past {
    /// Whether the address still rests.
    #[must_use]
    pub fn rests(&self, now: Moment) -> bool {
        now.is_within(Duration::from_millis(self.rest), self.released)
    }
}

/// An address that the node keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// What it is doing.
    #[serde(rename = "use")]
    pub state: Use,
    /// Whether it has its reservation among overlapping ranges too.
    pub reserved: bool,
    /// Who had it last.
    pub past: Option<Past>,
    /// For whom alone it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
}

impl Slot {
    /// Whether it was released a short while ago.
    #[must_use]
    pub fn rests(&self, now: Moment) -> bool {
        self.past.as_ref().is_some_and(|past| past.rests(now))
    }
}

/// An attachment that is to be released and that the ledger does not know: perhaps the peer made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stranger {
    /// Container ID.
    pub container: String,
    /// Interface in the container.
    pub ifname: String,
}

/// An owner of addresses that was found missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspect {
    /// The `id` of its entries.
    pub id: String,
    /// The nonce of its mark; empty for a pod.
    pub nonce: String,
    /// Since when.
    pub since: Moment,
    /// When it was last found missing, if it was again.
    #[serde(default)]
    pub renewed: Option<Moment>,
}

/// How full a pool was when it was last read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// Addresses of the range of the network that read it.
    pub usable: u128,
    /// Those of them that somebody has or keeps.
    pub taken: u128,
}

/// Whom an address is for, and which will do.
#[derive(Debug, Clone)]
pub struct Demand<'a> {
    /// The addresses that may be given.
    pub range: &'a Range,
    /// Which of them; any of them when empty.
    pub only: BTreeSet<u128>,
    /// Who gets it.
    pub holder: Holder,
    /// For whom it is to be kept afterwards.
    pub tenant: Option<Tenant>,
    /// Whether it must be reserved among overlapping ranges.
    pub reserved: bool,
}

impl Demand<'_> {
    /// Whether the address at `offset` will do.
    #[must_use]
    pub fn admits(&self, offset: u128) -> bool {
        self.range.allows(offset) && (self.only.is_empty() || self.only.contains(&offset))
    }
}

/// The ledger of a node for a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    version: u32,
    /// Which boot of the machine it belongs to.
    pub boot: String,
    /// What tells it from one that was lost in the same boot.
    pub life: String,
    /// Whether the node's name was found to be that of its Node object.
    pub verified: bool,
    /// When the pool was last known to say what the ledger says.
    pub confirmed: Option<Moment>,
    /// How full the pool was then.
    #[serde(default)]
    pub fill: Option<Fill>,
    /// How many addresses were last asked for at once; 1 when the pool has little room.
    pub block: u128,
    /// The node's addresses by offset.
    pub slots: BTreeMap<u128, Slot>,
    /// Attachments to be looked for in the pool when it can be read.
    pub strangers: Vec<Stranger>,
    /// Owners of addresses that seem to be no more.
    pub suspects: Vec<Suspect>,
    /// What the daemon has to know. Without it, or to a program that has no daemon, the ledger says the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
}

impl Ledger {
    /// The ledger of a node that keeps nothing yet.
    #[must_use]
    pub fn new(boot: &str, life: &str) -> Self {
        Self {
            version: VERSION,
            boot: boot.to_owned(),
            life: life.to_owned(),
            verified: false,
            confirmed: None,
            fill: None,
            block: 1,
            slots: BTreeMap::new(),
            strangers: Vec::new(),
            suspects: Vec::new(),
            terms: None,
        }
    }

    /// Reads a ledger; `None` when it is not one of this version or the one before.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let ledger: Self = serde_json::from_slice(bytes).ok()?;
        (WITHOUT_TENANTS..=VERSION).contains(&ledger.version).then_some(Self { version: VERSION, ..ledger })
    }

    /// The ledger as [`parse`](Self::parse) reads it.
    ///
    /// # Errors
    /// None that a ledger could cause: its maps have numbers for keys.
    pub fn bytes(&self) -> serde_json::Result<Vec<u8>> {
        let has_tenants = self.slots.values().any(|slot| slot.tenant.is_some());
        let version = if has_tenants { VERSION } else { WITHOUT_TENANTS };
        serde_json::to_vec(&Self { version, ..self.clone() })
    }

    /// Whether it is the ledger of this life of a node. Only that one may hear what the pool says to it.
    #[must_use]
    pub fn is_of(&self, life: &NodeLife) -> bool {
        self.boot == life.boot && self.life == life.life
    }

    /// The offsets an attachment has.
    pub fn held_by<'a>(&'a self, container: &'a str, ifname: &'a str) -> impl Iterator<Item = u128> + 'a {
        let is_held =
            move |slot: &Slot| matches!(&slot.state, Use::Held(holder) if holder.is(container, ifname));
        self.slots.iter().filter(move |(_, slot)| is_held(slot)).map(|(offset, _)| *offset)
    }

    /// Whether addresses may be given out without reading the pool.
    #[must_use]
    pub fn is_trusted(&self, now: Moment) -> bool {
        self.confirmed.is_some_and(|confirmed| now.is_within(TRUST, confirmed))
    }

    /// The idle address that suits best: the one that the pod had on that interface, else one never used, else the
    /// one that rested longest.
    #[must_use]
    pub fn candidate(&self, demand: &Demand<'_>, now: Moment) -> Option<u128> {
        let suits = |(offset, slot): &(&u128, &Slot)| {
            slot.state == Use::Idle
                && slot.tenant == demand.tenant
                && demand.admits(**offset)
                && (slot.reserved || !demand.reserved)
                && slot.past.as_ref().is_none_or(|past| had(past, &demand.holder) || !past.rests(now))
        };
        let preference = |(offset, slot): &(&u128, &Slot)| {
            let past = slot.past.as_ref();
            let rank = past.map_or(1, |past| if had(past, &demand.holder) { 0 } else { 2 });
            (rank, past.map(|past| past.released.uptime), **offset)
        };
        self.slots.iter().filter(suits).min_by_key(preference).map(|(offset, _)| *offset)
    }

    /// Gives out the best idle address; `None` when none suits, or the node cannot be sure of what it keeps.
    pub fn take(&mut self, demand: &Demand<'_>, now: Moment) -> Option<u128> {
        let offset = self.is_trusted(now).then(|| self.candidate(demand, now))??;
        let slot = self.slots.get_mut(&offset)?;
        slot.state = Use::Held(demand.holder.clone());
        Some(offset)
    }

    /// Takes the address at `offset` back from whoever has it, and lets it rest. That of a tenant goes back to the pool:
    /// the next container of the tenant may be on another node.
    pub fn release(&mut self, offset: u128, rest: Duration, now: Moment) {
        let Some(slot) = self.slots.get_mut(&offset) else { return };
        match std::mem::replace(&mut slot.state, Use::Idle) {
            Use::Held(holder) => {
                let rest = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
                slot.past = Some(Past { holder, released: now, rest });
                if slot.tenant.is_some() {
                    slot.state = Use::Returning;
                }
            }
            Use::Lost(_) => drop(self.slots.remove(&offset)),
            state @ (Use::Idle | Use::Returning) => slot.state = state,
        }
    }

    /// Takes back what an attachment has; says whether the ledger knows, or remembers, the attachment.
    pub fn release_attachment(&mut self, container: &str, ifname: &str, rest: Duration, now: Moment) -> bool {
        let mut known = false;
        let mut held = Vec::new();
        for (offset, slot) in &self.slots {
            let is_its =
                matches!(&slot.state, Use::Held(holder) | Use::Lost(holder) if holder.is(container, ifname));
            known |= is_its || slot.past.as_ref().is_some_and(|past| past.holder.is(container, ifname));
            held.extend(is_its.then_some(*offset));
        }
        for offset in held {
            self.release(offset, rest, now);
        }
        known
    }

    /// Marks addresses that the node does not need for return: all idle ones when the pool has little room, else those
    /// beyond a second block. Those that rest are kept until they have rested.
    pub fn mark_surplus(&mut self, now: Moment) {
        let idle: Vec<u128> = self.idle(now, false).collect();
        let kept = match self.block {
            0 | 1 => 0,
            block if (idle.len() as u128) < block.saturating_mul(2) => idle.len(),
            block => usize::try_from(block).unwrap_or(usize::MAX),
        };
        for offset in idle.into_iter().skip(kept) {
            self.mark_returning(offset);
        }
    }

    /// Marks for return so many of those that were idle for long.
    pub fn mark_unused(&mut self, count: u128, now: Moment) {
        let idle: Vec<u128> = self.idle(now, false).collect();
        for offset in idle.into_iter().rev().take(usize::try_from(count).unwrap_or(usize::MAX)) {
            self.mark_returning(offset);
        }
    }

    /// Marks for return what is kept for tenants that are not here. The caller holds the pool's claim lock: whoever holds
    /// it may have brought such an address a moment ago, and not have taken it yet.
    pub fn mark_vacant(&mut self, now: Moment) {
        let vacant: Vec<u128> = self.idle(now, true).collect();
        for offset in vacant {
            self.mark_returning(offset);
        }
    }

    /// Idle addresses that do not rest, of tenants or of whoever comes.
    fn idle(&self, now: Moment, of_tenants: bool) -> impl Iterator<Item = u128> {
        let suits = move |slot: &Slot| {
            slot.state == Use::Idle && !slot.rests(now) && slot.tenant.is_some() == of_tenants
        };
        self.slots.iter().filter(move |(_, slot)| suits(slot)).map(|(offset, _)| *offset)
    }

    /// Marks an idle address for return.
    pub fn mark_returning(&mut self, offset: u128) {
        if let Some(slot) = self.slots.get_mut(&offset).filter(|slot| slot.state == Use::Idle) {
            slot.state = Use::Returning;
        }
    }

    /// Marks an idle address for return that others have in an overlapping range. Nobody waits for it.
    pub fn refuse(&mut self, offset: u128) {
        self.mark_returning(offset);
        if let Some(slot) = self.slots.get_mut(&offset).filter(|slot| slot.state == Use::Returning) {
            slot.tenant = None;
        }
    }

    /// Notes a suspicion in place of an earlier one.
    pub fn suspect(&mut self, suspect: Suspect) {
        self.absolve(&suspect.id);
        self.suspects.push(suspect);
    }

    /// Drops a suspicion: the owner is there.
    pub fn absolve(&mut self, id: &str) {
        self.suspects.retain(|suspect| suspect.id != id);
    }

    /// Notes that an owner other than a node is missing now; says whether it has been for as long as `limit`, as often as
    /// it was looked for.
    pub fn misses(&mut self, id: &str, limit: Duration, now: Moment) -> bool {
        let since = self.suspects.iter().find(|suspect| suspect.id == id).and_then(|suspect| {
            now.is_within(MEMORY, suspect.renewed.unwrap_or(suspect.since)).then_some(suspect.since)
        });
        let (nonce, renewed) = (String::new(), since.map(|_| now));
        self.suspect(Suspect { id: id.to_owned(), nonce, since: since.unwrap_or(now), renewed });
        since.is_some_and(|since| !now.is_within(limit, since))
    }

    /// Whether there is something to tell the pool, or may be once nobody else talks to it.
    #[must_use]
    pub fn has_news(&self) -> bool {
        let goes =
            |slot: &Slot| slot.state == Use::Returning || slot.state == Use::Idle && slot.tenant.is_some();
        !self.strangers.is_empty() || self.slots.values().any(goes)
    }

    /// The addresses that an attachment has, in the order of their offsets.
    #[must_use]
    pub fn addresses(&self, range: &Range, container: &str, ifname: &str) -> Vec<IpAddr> {
        self.held_by(container, ifname).filter_map(|offset| range.address(offset)).collect()
    }
}

fn had(past: &Past, holder: &Holder) -> bool {
    past.holder.podref == holder.podref && past.holder.ifname == holder.ifname && !holder.podref.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_brought_for_a_tenant_goes_back_under_the_claim_lock_only() {
        let tenant = Some(Tenant::Claim { name: "ns/vm".into() });
        let slot = |tenant| Slot { state: Use::Idle, reserved: false, past: None, tenant };
        let now = Moment { uptime: 0, wall: 0 };
        let mut ledger = Ledger::new("b", "l");
        ledger.slots.extend([(1, slot(tenant)), (2, slot(None))]);
        ledger.mark_surplus(now);
        let states =
            |ledger: &Ledger| ledger.slots.values().map(|slot| slot.state.clone()).collect::<Vec<_>>();
        assert_eq!(states(&ledger), [Use::Idle, Use::Returning]);
        ledger.slots.remove(&2);
        assert!(ledger.has_news(), "somebody has to look after it");
        ledger.mark_vacant(now);
        assert_eq!(states(&ledger), [Use::Returning]);
    }

    #[test]
    fn a_suspicion_is_renewed_or_forgotten() {
        let at = |seconds: u64| Moment { uptime: seconds * 1000, wall: seconds * 1000 };
        let minute = Duration::from_secs(60);
        let mut ledger = Ledger::new("b", "l");
        for (seconds, wanted) in [
            (0, false),
            (59, false),
            (60, true),
            (650, true),
            (1249, true),
            (1849, false),
            (1908, false),
            (1909, true),
        ] {
            assert_eq!(ledger.misses("x", minute, at(seconds)), wanted, "after {seconds} s");
        }
        ledger.absolve("x");
        assert!(!ledger.misses("x", minute, at(1910)));
        assert_eq!(ledger.suspects.len(), 1);
    }
}
