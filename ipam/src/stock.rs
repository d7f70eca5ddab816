//! How many addresses a node takes at a time, and how many it keeps idle.
//!
//! Without the daemon a node takes a block when it needs an address and has none. With it, the block is there before: the
//! daemon takes it when few are idle, as long as the pool has room for that and nobody is in need, and gives back what was
//! idle all the time.

use std::time::Duration;

use crate::ledger::{Fill, Ledger, Moment, Use};
use crate::pool::{NodeLife, Pool};
use crate::range::Range;

/// Most addresses a node asks for at once, unless the configuration says otherwise.
const LARGEST_BLOCK: u128 = 64;
/// A node asks for its part of the room, divided by this: the others must find some after it.
pub const SHARE: u128 = 2;
/// How many nodes are expected at least: those that come first must leave room for those that come.
const FEWEST_NODES: u128 = 8;
/// The part of a block that a node likes to have idle.
const LOW: u128 = 4;
/// A pool of which no more than this part is left has none that a node could take before it needs it.
const SCARCE: u128 = 4;
/// How long addresses are idle before they go back.
const DISUSE: Duration = Duration::from_secs(30 * 60);

/// The state of a pool, as far as those who need nothing are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Addresses of the range.
    pub usable: u128,
    /// Those that somebody has or keeps.
    pub taken: u128,
    /// Whether a node waits for one.
    pub is_wanted: bool,
}

impl From<Fill> for Room {
    fn from(fill: Fill) -> Self {
        Self { usable: fill.usable, taken: fill.taken, is_wanted: false }
    }
}

/// How many addresses a node likes to have idle, when it takes so many at a time. Where it takes single ones, none.
#[must_use]
pub fn low(block: u128) -> u128 {
    if block < 2 { 0 } else { block.div_ceil(LOW) }
}

/// Whether a node that has so many idle takes a block before it needs it.
#[must_use]
pub fn lacks(idle: u128, block: u128, room: &Room) -> bool {
    let left = room.usable.saturating_sub(room.taken);
    idle < low(block) && left > room.usable / SCARCE && !room.is_wanted
}

/// The addresses of the range that the node can give to whoever comes.
#[must_use]
pub fn idle(ledger: &Ledger, range: &Range, now: Moment) -> u128 {
    let is_idle = |(offset, slot): &(&u128, &crate::ledger::Slot)| {
        slot.state == Use::Idle && slot.tenant.is_none() && !slot.rests(now) && range.allows(**offset)
    };
    ledger.slots.iter().filter(is_idle).count() as u128
}

/// The fewest idle addresses over a while: those were never needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tide {
    least: u128,
    since: Moment,
}

impl Tide {
    /// Begins when so many are idle.
    #[must_use]
    pub fn new(idle: u128, now: Moment) -> Self {
        Self { least: idle, since: now }
    }

    /// Notes how many are idle now. Says at the end of each while how many of a node that takes so many at a time were
    /// too many all along, and begins the next.
    pub fn note(&mut self, idle: u128, block: u128, now: Moment) -> u128 {
        self.least = self.least.min(idle);
        if now.is_within(DISUSE, self.since) {
            return 0;
        }
        let unused = self.least.saturating_sub(low(block));
        *self = Self::new(idle.saturating_sub(unused), now);
        unused
    }
}

/// How many addresses of the range the node asks for at once, by the room that the pool has.
#[must_use]
pub fn block_of(pool: &Pool, me: &NodeLife, range: &Range, configured: Option<u128>) -> u128 {
    let room = range.capacity().saturating_sub(pool.used(range));
    let nodes = pool.nodes().iter().filter(|node| !node.is_same_node(me)).count() as u128 + 1;
    block(room, range.capacity(), nodes, configured)
}

/// How many addresses a node asks for: a part of its share of the `room` of so much `capacity`, and once more than half
/// is taken a smaller part, so that blocks shrink to single addresses before nodes run dry while others hoard.
fn block(room: u128, capacity: u128, nodes: u128, configured: Option<u128>) -> u128 {
    match configured {
        Some(size) => size.min(room / SHARE).max(1),
        None => {
            let share = (room / (SHARE * nodes.max(FEWEST_NODES))).min(u32::MAX.into());
            // In 64 bits each, so that the product has room.
            let scale = 64_u32.saturating_sub(capacity.leading_zeros());
            let half = (capacity >> scale).div_ceil(2).max(1);
            (share * (room >> scale).min(half) / half).clamp(1, LARGEST_BLOCK)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_taken_ahead_where_there_is_room() {
        for (idle, block, usable, taken, is_wanted, expected) in [
            (0, 57, 1022, 102, false, true),
            (14, 57, 1022, 102, false, true),
            (15, 57, 1022, 102, false, false),
            (14, 57, 1022, 102, true, false),
            (0, 2, 254, 100, false, true),
            (1, 2, 254, 100, false, false),
            // Single addresses are taken when they are needed.
            (0, 1, 254, 200, false, false),
            (0, 1, 2, 0, false, false),
            (0, 0, 0, 0, false, false),
            // A configured size does not shrink until half of the room is less.
            (0, 64, 1022, 766, false, true),
            (0, 64, 1022, 767, false, false),
            (0, 64, 1022, 1022, false, false),
            (0, 64, u128::MAX, 3, false, true),
        ] {
            let room = Room { usable, taken, is_wanted };
            assert_eq!(lacks(idle, block, &room), expected, "{idle} idle, {block} at a time, {room:?}");
        }
    }

    #[test]
    fn what_was_idle_all_the_time_goes_back() {
        let at = |minute: u64| Moment { uptime: minute * 60_000, wall: minute * 60_000 };
        let mut tide = Tide::new(40, at(0));
        for (minute, idle, block, expected) in [
            (10, 30, 31, 0),
            (20, 12, 31, 0),
            (29, 40, 31, 0),
            // At least 12 were idle, and the node likes to have 8.
            (30, 40, 31, 4),
            (31, 36, 31, 0),
            (60, 36, 31, 28),
            (61, 8, 31, 0),
            (90, 8, 31, 0),
            // Then it needs some, and does without the next block for as long as it has these.
            (91, 3, 31, 0),
            (120, 30, 31, 0),
            (150, 30, 1, 30),
            // A clock that jumps ends the while.
            (149, 5, 31, 0),
            (150, 30, 31, 0),
        ] {
            assert_eq!(tide.note(idle, block, at(minute)), expected, "minute {minute}");
        }
    }

    /// What the daemon took ahead does not come back by itself, and what it gave back is not taken ahead again.
    #[test]
    fn taking_and_giving_back_come_to_rest() {
        for block in 1..200 {
            assert!(low(block) <= block);
            let room = Room { usable: 10_000, taken: 0, is_wanted: false };
            for idle in 0..3 * block {
                let taken = if lacks(idle, block, &room) { block } else { 0 };
                assert!(taken == 0 || idle + taken < 2 * block, "{idle} and {taken}");
                let mut tide = Tide::new(idle + taken, Moment { uptime: 0, wall: 0 });
                let later = Moment { uptime: 1 << 40, wall: 1 << 40 };
                let left = idle + taken - tide.note(idle + taken, block, later);
                assert!(!lacks(left, block, &room), "{idle} of {block}");
            }
        }
    }

    #[test]
    fn blocks_shrink_with_the_room() {
        let wide = 1 << 64;
        for (room, capacity, nodes, configured, expected) in [
            (920, 1022, 1, None, 57),
            (511, 1022, 1, None, 31),
            (511, 1022, 10, None, 25),
            (255, 1022, 1, None, 7),
            (52, 1022, 1, None, 1),
            (2, 2, 1, None, 1),
            (0, 2, 1, None, 1),
            (wide - 5, wide, 3, None, 64),
            (u128::MAX, u128::MAX, 500, None, 64),
            (wide, u128::MAX, 1, None, 1),
            (100, 254, 1, Some(64), 50),
            (0, 254, 1, Some(64), 1),
        ] {
            let size = block(room, capacity, nodes, configured);
            assert_eq!(size, expected, "{room} of {capacity}, {nodes} nodes, {configured:?}");
        }
    }
}
