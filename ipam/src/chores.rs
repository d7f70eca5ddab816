//! What the daemon has to do about a pool, by what the ledger says and by what it heard.
//!
//! All of it is a conversation that a call of the plugin could have as well, so that nothing goes wrong when it is done
//! twice, late, or never.

use std::time::Duration;

use crate::ledger::{Ledger, Moment, TRUST, Use};
use crate::stock;
use crate::terms::Terms;

/// How old the news of a pool becomes before it is read again, so that ADD does not have to.
const RENEWAL: Duration = Duration::from_secs(TRUST.as_secs() * 4 / 5);

/// What is to be done about a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chore {
    /// To give back idle addresses that others want.
    Answer,
    /// To tell what a call could not tell, as the API server was away.
    Tell,
    /// To look for containers that are no more: something is wanted and nothing is idle.
    Search,
    /// To take the next block.
    Stock,
    /// To read the pool, so that the ledger is trusted for longer.
    Renew,
}

/// What the daemon knows beside the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Whether others want addresses of this node.
    pub is_wanted: bool,
    /// Whether containers came or went lately. For a node without any there is no stock.
    pub is_used: bool,
    /// Whether it was looked for containers that are no more, a short while ago.
    pub has_searched: bool,
}

/// What is to be done first, if anything is.
#[must_use]
pub fn chore(ledger: &Ledger, terms: &Terms, heard: Heard, now: Moment) -> Option<Chore> {
    let is_idle = ledger.slots.values().any(|slot| slot.state == Use::Idle && !slot.rests(now));
    if heard.is_wanted && is_idle {
        return Some(Chore::Answer);
    }
    if ledger.has_news() {
        return Some(Chore::Tell);
    }
    let is_held = ledger.slots.values().any(|slot| matches!(slot.state, Use::Held(_) | Use::Lost(_)));
    if heard.is_wanted && is_held && !heard.has_searched {
        return Some(Chore::Search);
    }
    let idle = stock::idle(ledger, &terms.range, now);
    let room = ledger.fill.map(stock::Room::from).filter(|_| heard.is_used && !heard.is_wanted);
    if room.is_some_and(|room| stock::lacks(idle, ledger.block, &room)) {
        return Some(Chore::Stock);
    }
    let is_old = ledger.confirmed.is_some_and(|confirmed| !now.is_within(RENEWAL, confirmed));
    (heard.is_used && is_idle && is_old).then_some(Chore::Renew)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Fill, Holder, Past, Slot};
    use crate::range::Range;

    #[test]
    fn what_is_first() {
        let at = |seconds: u64| Moment { uptime: seconds * 1000, wall: seconds * 1000 };
        let terms = Terms {
            place: String::new(),
            node: "n".into(),
            range: Range::new("10.0.0.0/24".parse().unwrap(), None, None, &[], None),
            network_name: String::new(),
            exclusive: false,
            block: None,
            slices: None,
        };
        let slot = |state| Slot { state, reserved: false, past: None, tenant: None };
        let (idle, held) = (slot(Use::Idle), slot(Use::Held(Holder::default())));
        let resting = Slot {
            past: Some(Past { holder: Holder::default(), released: at(0), rest: 1_000_000 }),
            ..idle.clone()
        };
        let returning = slot(Use::Returning);
        let used = Heard { is_wanted: false, is_used: true, has_searched: false };
        let wanted = Heard { is_wanted: true, ..used };
        let searched = Heard { has_searched: true, ..wanted };
        let unused = Heard { is_used: false, ..used };
        let many = |slot: &Slot, count: usize| vec![slot.clone(); count];
        let plenty = || many(&idle, 8);
        for (slots, block, taken, seconds, heard, expected) in [
            (plenty(), 15, 20, 479, used, None),
            (plenty(), 15, 20, 480, used, Some(Chore::Renew)),
            (plenty(), 15, 20, 480, unused, None),
            (plenty(), 15, 20, 0, wanted, Some(Chore::Answer)),
            (vec![returning.clone(), idle.clone()], 15, 20, 0, wanted, Some(Chore::Answer)),
            (vec![returning.clone()], 15, 20, 0, wanted, Some(Chore::Tell)),
            (vec![returning], 15, 20, 0, used, Some(Chore::Tell)),
            (many(&held, 8), 15, 20, 0, wanted, Some(Chore::Search)),
            // What rests goes when it has rested.
            (vec![resting], 15, 20, 0, wanted, None),
            (many(&held, 8), 15, 20, 0, searched, None),
            (many(&held, 8), 15, 20, 0, used, Some(Chore::Stock)),
            (many(&held, 8), 15, 20, 0, unused, None),
            // The pool is nearly taken, or gives single addresses.
            (many(&held, 8), 15, 200, 0, used, None),
            (many(&held, 8), 1, 20, 0, used, None),
            (vec![idle], 15, 200, 480, used, Some(Chore::Renew)),
        ] {
            let mut ledger = Ledger::new("b", "l");
            ledger.block = block;
            ledger.confirmed = Some(at(0));
            ledger.fill = Some(Fill { usable: 254, taken });
            ledger.slots = (1..).zip(slots).collect();
            let found = chore(&ledger, &terms, heard, at(seconds));
            assert_eq!(found, expected, "{heard:?}, {seconds} s, {:?}", ledger.slots);
        }
        assert_eq!(chore(&Ledger::new("b", "l"), &terms, wanted, at(0)), None);
    }
}
