//! The model: simulated nodes give out addresses over a pool while everything goes wrong that can, and no address ever
//! has two containers. Thousands of histories, each reproducible by its seed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipam::burial::{Burial, bury};
use ipam::exchange::{Need, Want, dismiss, plan, settle};
use ipam::ledger::{Demand, Holder, Ledger, Moment, Slot, Stranger, Use};
use ipam::pool::{Change, Entry, Mark, NodeLife, Owner, Pool};
use ipam::range::Range;
use ipam::stock::block_of;
use ipam::tenant::Tenant;

/// xorshift64*: a history must be the same wherever its seed is tried.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// The API server: an object, and what is on its way to it.
#[derive(Default)]
struct Api {
    pool: Pool,
    version: u64,
    /// Writes whose senders gave up waiting. They may still arrive.
    late: Vec<(Condition, Change)>,
}

/// What a write insists on.
#[derive(Clone)]
enum Condition {
    /// The pool is at this version.
    Version(u64),
    /// The addresses of the change are as they were: free, or waiting for a tenant.
    AsRead(BTreeMap<u128, Option<Entry>>),
}

impl Api {
    fn write(&mut self, condition: &Condition, change: &Change) -> bool {
        let holds = match condition {
            Condition::Version(version) => *version == self.version,
            Condition::AsRead(entries) => {
                entries.iter().all(|(offset, entry)| self.pool.entries.get(offset) == entry.as_ref())
            }
        };
        if !holds {
            return false;
        }
        self.pool = self.pool.changed(change);
        self.version += 1;
        true
    }
}

struct Node {
    me: NodeLife,
    /// On tmpfs: it survives the process, and no reboot.
    ledger: Ledger,
    /// The truth: containers that run, and the address that each was given.
    running: BTreeMap<String, u128>,
    /// Containers that are tenants, by name.
    housed: BTreeMap<String, Tenant>,
    /// Containers that ended while the node was away: their DEL is still to come.
    ended: Vec<String>,
    partitioned: bool,
    /// Whether there is a Node object. Without one it gets no new pods from the API server.
    registered: bool,
}

struct World {
    dice: Dice,
    api: Api,
    range: Range,
    nodes: Vec<Node>,
    /// Containers of the peer: by offset.
    peers: BTreeMap<u128, String>,
    /// The address that each tenant was given, and must get again, and on which node that was.
    homes: BTreeMap<Tenant, (u128, usize)>,
    clock: u64,
    /// From then on no ledger is lost: what one knew is free after the next boot only.
    is_ending: bool,
    serial: u64,
    cool_down: Duration,
    /// Nodes that take more than their share hoard idle addresses, which others then ask back.
    block: Option<u128>,
    got: u64,
    /// How often a tenant got its address again, and on another node.
    again: u64,
    moved: u64,
    /// How often a node was inherited from.
    buried: u64,
    /// How often the daemon took something ahead, and how often it answered those in need.
    ahead: u64,
    answered: u64,
}

fn holder(name: &str) -> Holder {
    Holder {
        container: name.to_owned(),
        ifname: "net1".into(),
        podref: format!("ns/{name}"),
        ..Holder::default()
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let subnet = ["10.0.0.0/30", "10.0.0.0/29", "10.0.0.0/27", "10.0.0.0/24", "2001:db8::/64"]
            [usize::try_from(dice.roll(5)).unwrap()];
        let count = 2 + dice.roll(4);
        let mut world = Self {
            range: Range::new(subnet.parse().unwrap(), None, None, &[], None),
            nodes: Vec::new(),
            api: Api { version: 1, pool: Pool { has_map: true, ..Pool::default() }, ..Api::default() },
            peers: BTreeMap::new(),
            homes: BTreeMap::new(),
            clock: 1_000_000,
            is_ending: false,
            serial: 0,
            cool_down: Duration::from_secs(if dice.one_in(3) { 30 } else { 0 }),
            block: dice.one_in(2).then_some(6),
            got: 0,
            again: 0,
            moved: 0,
            buried: 0,
            ahead: 0,
            answered: 0,
            dice,
        };
        for number in 0..count {
            let me =
                NodeLife { node: format!("n{number}"), verified: true, boot: "b0".into(), life: "l0".into() };
            let ledger = Ledger::new(&me.boot, &me.life);
            let (running, housed, ended) = Default::default();
            world.nodes.push(Node {
                me,
                ledger,
                running,
                housed,
                ended,
                partitioned: false,
                registered: true,
            });
        }
        world
    }

    fn now(&self) -> Moment {
        Moment { uptime: self.clock, wall: self.clock }
    }

    fn name(&mut self) -> String {
        self.serial += 1;
        format!("c{}", self.serial)
    }

    /// A conversation of a node with the API server, in which anything may fail. True when it came to its end.
    fn exchange(&mut self, at: usize, need: Need<'_>) -> bool {
        let demand = need.demand();
        let mut refused = BTreeSet::new();
        for turn in 0..3 {
            if self.nodes[at].partitioned || self.dice.one_in(12) {
                return false;
            }
            let started = self.now();
            let me = self.nodes[at].me.clone();
            let (read, version) = (self.api.pool.clone(), self.api.version);
            self.clock += self.dice.roll(2_000);
            let node = &mut self.nodes[at];
            // What is in a process that dies before the ledger is on disk is lost.
            let mut draft = node.ledger.clone();
            if demand.is_none() {
                draft.block = block_of(&read, &me, &self.range, self.block);
                draft.mark_vacant(started);
            }
            draft.mark_surplus(started);
            let sought = draft.strangers.clone();
            let spread = (turn > 0).then(|| self.dice.roll(1 << 20));
            let want = Want { need, avoid: &refused, block: self.block, spread };
            let change = plan(&mut draft, &read, &me, &want, started);
            if self.dice.one_in(15) {
                return false;
            }
            node.ledger = draft;
            // Others act between the read and the write, and so do calls of this node that need no pool.
            if self.dice.one_in(3) {
                self.peer_step();
            }
            if self.dice.one_in(5) {
                self.call(at);
            }
            let condition = if turn > 0 && read.is_claim(&change) {
                let as_read = |offset: &u128| (*offset, read.entries.get(offset).cloned());
                Condition::AsRead(change.keys().map(as_read).collect())
            } else {
                Condition::Version(version)
            };
            // It is on its way, and nobody waits for it any more.
            if self.dice.one_in(25) {
                self.api.late.push((condition, change));
                return false;
            }
            let written = if change.is_empty() { true } else { self.api.write(&condition, &change) };
            // The answer holds the pool as it is then, with what others did.
            let after = if change.is_empty() { read.clone() } else { self.api.pool.clone() };
            if self.dice.one_in(12) {
                // The answer is lost, or the request arrives when nobody waits for it any more.
                if !written {
                    self.api.late.push((condition, change));
                }
                return false;
            }
            if self.dice.one_in(20) && !written {
                self.api.late.push((condition, change));
                return false;
            }
            if !written {
                continue;
            }
            if self.dice.one_in(15) {
                return false;
            }
            if self.dice.one_in(5) {
                self.call(at);
            }
            // Another version of the program takes it for none, or somebody removes it: in the midst of a call.
            if !self.is_ending && self.dice.one_in(60) {
                self.lose_ledger(at);
            }
            let node = &mut self.nodes[at];
            if !node.ledger.is_of(&me) {
                return false;
            }
            settle(&mut node.ledger, &after, &me, started);
            dismiss(&mut node.ledger, &after, &sought);
            // Where ranges overlap, another network may have the first address of a tenant. Nobody waits for it.
            let is_new = |tenant: &Tenant| !self.homes.contains_key(tenant);
            let fresh = demand.filter(|demand| demand.tenant.as_ref().is_some_and(is_new));
            if let Some(demand) = fresh
                && let Some(offset) = node.ledger.candidate(demand, started)
                && self.dice.one_in(4)
            {
                node.ledger.refuse(offset);
                refused.insert(offset);
                continue;
            }
            // What went back just now may be what is needed.
            let is_met = demand.is_none_or(|demand| node.ledger.candidate(demand, started).is_some());
            let gives_back = |entry: &Option<Entry>| {
                entry.as_ref().is_none_or(|entry| matches!(entry.owner(), Owner::Tenant(_)))
            };
            if is_met || !change.values().any(gives_back) {
                return true;
            }
        }
        false
    }

    /// A call that is served from the ledger, while another process of the node talks to the pool.
    fn call(&mut self, at: usize) {
        let (now, cool_down, range) = (self.now(), self.cool_down, self.range.clone());
        let name = self.name();
        let pick = self.dice.roll(1 << 20);
        let is_add = self.dice.one_in(2) && !self.is_ending;
        let node = &mut self.nodes[at];
        if is_add && node.registered {
            let (only, holder) = (BTreeSet::new(), holder(&name));
            let demand = Demand { range: &range, only, holder, tenant: None, reserved: false };
            if let Some(offset) = node.ledger.take(&demand, now) {
                node.running.insert(name, offset);
                self.got += 1;
            }
        } else if let Some(name) =
            node.running.keys().nth(usize::try_from(pick).unwrap() % node.running.len().max(1))
        {
            let name = name.clone();
            node.running.remove(&name);
            node.housed.remove(&name);
            if !node.ledger.release_attachment(&name, "net1", cool_down, now) {
                node.ledger.strangers.push(Stranger { container: name, ifname: "net1".into() });
            }
            node.ledger.mark_surplus(now);
        }
    }

    /// The daemon. What it heard may be old, and it may end at any moment.
    fn tend(&mut self, at: usize) {
        let (now, range) = (self.now(), self.range.clone());
        let count = self.dice.roll(4);
        match self.dice.roll(3) {
            0 => {
                let before = self.nodes[at].ledger.slots.len();
                let is_done = self.exchange(at, Need::Stock(&range));
                let after = self.nodes[at].ledger.slots.len();
                self.ahead += u64::from(is_done && after > before);
            }
            1 => {
                self.nodes[at].ledger.mark_unused(count.into(), now);
                self.exchange(at, Need::Nothing);
            }
            _ if self.api.pool.wanted().contains(&self.nodes[at].me.boot) => {
                let is_done = self.exchange(at, Need::Nothing);
                self.answered += u64::from(is_done);
            }
            _ => {}
        }
    }

    fn add(&mut self, at: usize) {
        let name = self.name();
        let range = self.range.clone();
        // Three pods of a StatefulSet, which the scheduler puts anywhere, also where the former one still runs elsewhere:
        // it was deleted by force, or its node is cut off.
        let tenant = self
            .dice
            .one_in(3)
            .then(|| Tenant::Pod { podref: format!("ns/web-{}", self.dice.roll(3)), ifname: "net1".into() });
        let demand = Demand {
            range: &range,
            only: BTreeSet::new(),
            holder: holder(&name),
            tenant: tenant.clone(),
            reserved: false,
        };
        for attempt in 0..2 {
            let now = self.now();
            let node = &mut self.nodes[at];
            if let Some(offset) = node.ledger.take(&demand, now) {
                // The process may die after the ledger is on disk: kubelet then calls DEL for the container.
                if self.dice.one_in(20) {
                    return self.del(at, &name);
                }
                if let Some(tenant) = tenant {
                    self.nodes[at].housed.insert(name.clone(), tenant.clone());
                    if let Some((before, last)) = self.homes.insert(tenant, (offset, at)) {
                        assert_eq!(before, offset, "a tenant lost its address");
                        self.again += 1;
                        self.moved += u64::from(last != at);
                    }
                }
                self.nodes[at].running.insert(name, offset);
                self.got += 1;
                return;
            }
            if attempt == 1 || !self.exchange(at, Need::Address(&demand)) {
                return;
            }
        }
    }

    fn del(&mut self, at: usize, name: &str) {
        let (now, cool_down) = (self.now(), self.cool_down);
        let node = &mut self.nodes[at];
        // The runtime has ended the container before it calls, and calls again when the call dies.
        node.running.remove(name);
        node.housed.remove(name);
        if !node.ledger.release_attachment(name, "net1", cool_down, now) {
            node.ledger.strangers.push(Stranger { container: name.to_owned(), ifname: "net1".into() });
        }
        node.ledger.mark_surplus(now);
        if node.ledger.has_news() {
            self.exchange(at, Need::Nothing);
        }
    }

    /// The peer beside us: first free address, conditional write; release.
    fn peer_step(&mut self) {
        let version = self.api.version;
        if self.dice.one_in(2) {
            let Some(offset) = self.api.pool.free(&self.range).next() else { return };
            let name = format!("p{}", self.name());
            let entry = Entry { id: name.clone(), podref: format!("ns/{name}"), ifname: "net1".into() };
            assert!(self.api.write(&Condition::Version(version), &Change::from([(offset, Some(entry))])));
            assert_eq!(self.peers.insert(offset, name), None);
        } else if let Some((offset, name)) = self.peers.pop_first() {
            assert_eq!(self.api.pool.entries[&offset].id, name, "a peer's address was taken");
            assert!(self.api.write(&Condition::Version(version), &Change::from([(offset, None)])));
        }
    }

    fn reboot(&mut self, at: usize) {
        self.serial += 1;
        let (boot, life) = (format!("b{}", self.serial), format!("l{}", self.serial));
        let node = &mut self.nodes[at];
        node.running.clear();
        node.housed.clear();
        node.ledger = Ledger::new(&boot, &life);
        node.me = NodeLife { boot, life, ..node.me.clone() };
    }

    /// The ledger is lost while containers run.
    fn lose_ledger(&mut self, at: usize) {
        self.serial += 1;
        let life = format!("l{}", self.serial);
        let node = &mut self.nodes[at];
        node.ledger = Ledger::new(&node.me.boot, &life);
        node.me.life = life;
    }

    /// One node looks after another one that has no Node object.
    fn bury(&mut self, at: usize) {
        if self.nodes[at].partitioned {
            return;
        }
        let version = self.api.version;
        let gone: BTreeSet<String> =
            self.nodes.iter().filter(|node| !node.registered).map(|node| node.me.node.clone()).collect();
        for life in self.api.pool.nodes() {
            if !gone.contains(&life.node) {
                continue;
            }
            self.serial += 1;
            let (nonce, now) = (format!("x{}", self.serial), self.now());
            let burial = bury(&mut self.nodes[at].ledger, &self.api.pool, &life, &nonce, now);
            let (Burial::Condemned(change) | Burial::Inherited(change)) = burial else { continue };
            self.buried += u64::from(change.values().all(Option::is_none));
            self.api.write(&Condition::Version(version), &change);
            return;
        }
    }

    /// A StatefulSet is deleted, and a node looks after what waits for its pods.
    fn evict(&mut self, at: usize) {
        if self.nodes[at].partitioned || self.nodes.iter().any(|node| !node.housed.is_empty()) {
            return;
        }
        let me = self.nodes[at].me.clone();
        let waiting = |entry: &Entry| matches!(entry.owner(), Owner::Tenant(_));
        let entries = self.api.pool.entries.iter().filter(|(_, entry)| waiting(entry));
        let change: Change =
            entries.map(|(offset, _)| (*offset, Some(Entry::of_node(&me, &Mark::None, None)))).collect();
        for entry in change.keys().filter_map(|offset| self.api.pool.entries.get(offset)) {
            self.homes.remove(&entry.tenant().unwrap());
        }
        self.api.write(&Condition::Version(self.api.version), &change);
    }

    fn step(&mut self) {
        self.clock += self.dice.roll(5_000);
        let at = usize::try_from(self.dice.roll(self.nodes.len() as u64)).unwrap();
        match self.dice.roll(100) {
            // A node without a Node object gets no pods.
            0..40 if self.nodes[at].registered => self.add(at),
            40..61 => {
                if let Some(name) = self.nodes[at].ended.pop() {
                    return self.del(at, &name);
                }
                let names: Vec<String> = self.nodes[at].running.keys().cloned().collect();
                if !names.is_empty() {
                    let name = &names[usize::try_from(self.dice.roll(names.len() as u64)).unwrap()];
                    self.del(at, name);
                }
            }
            61..66 => self.tend(at),
            66..70 => self.peer_step(),
            70..72 => self.nodes[at].partitioned ^= true,
            72 => self.reboot(at),
            73 => self.lose_ledger(at),
            74..78 => self.clock += 60_000 * self.dice.roll(30),
            78..80 => {
                // Whoever deletes a Node says that its machine is gone, and its containers with it. Its state comes
                // back with it when it was not.
                self.nodes[at].registered = false;
                let ended = std::mem::take(&mut self.nodes[at].running);
                self.nodes[at].ended.extend(ended.into_keys());
                self.nodes[at].housed.clear();
            }
            80..82 => self.nodes[at].registered = true,
            82..97 => self.bury(at),
            97 => {
                if let Some((condition, change)) = self.api.late.pop() {
                    self.api.write(&condition, &change);
                }
            }
            98 => self.evict(at),
            _ => drop(self.exchange(at, Need::Nothing)),
        }
    }

    fn check(&self, seed: u64) {
        let mut places: BTreeMap<Tenant, u128> = BTreeMap::new();
        for (offset, entry) in &self.api.pool.entries {
            if let Some(other) = entry.tenant().and_then(|tenant| places.insert(tenant, *offset)) {
                panic!("seed {seed}: {entry:?} at {offset} has a second place at {other}");
            }
        }
        let mut owners: BTreeMap<u128, String> = self.peers.clone();
        for node in &self.nodes {
            for (name, offset) in &node.running {
                let other = owners.insert(*offset, name.clone());
                assert_eq!(other, None, "seed {seed}: offset {offset} has two owners, one of them {name}");
                let entry = self.api.pool.entries.get(offset);
                let is_its = entry.is_some_and(
                    |entry| matches!(entry.owner(), Owner::Node(life, _) if life.is_same_node(&node.me)),
                );
                assert!(is_its, "seed {seed}: {name} has offset {offset} and the pool says {entry:?}");
                let tenant = entry.and_then(Entry::tenant);
                assert_eq!(tenant.as_ref(), node.housed.get(name), "seed {seed}: {name} at offset {offset}");
            }
        }
    }

    /// Everything ends: after the last DEL and a quiet exchange of every node, all addresses can be had again.
    fn end(&mut self, seed: u64) {
        self.is_ending = true;
        for at in 0..self.nodes.len() {
            self.nodes[at].partitioned = false;
            self.nodes[at].registered = true;
            let names: Vec<String> = self.nodes[at].running.keys().cloned().collect();
            for name in names {
                self.del(at, &name);
            }
            // What a lost ledger knew is free after the next boot.
            self.reboot(at);
            self.clock += 120_000;
            for _ in 0..100 {
                if self.exchange(at, Need::Nothing) && self.exchange(at, Need::Nothing) {
                    break;
                }
            }
            let node = &self.nodes[at];
            assert!(
                node.ledger.slots.values().all(|slot| slot.state == Use::Idle),
                "seed {seed}: {:?}",
                node.ledger
            );
        }
        self.evict(0);
        assert!((0..100).any(|_| self.exchange(0, Need::Nothing)), "seed {seed}");
        for (offset, entry) in &self.api.pool.entries {
            match entry.owner() {
                Owner::Tenant(tenant) => panic!("seed {seed}: {offset} waits for {tenant} for ever"),
                Owner::Pod(_) => {
                    assert!(self.peers.contains_key(offset), "seed {seed}: {offset} leaked: {entry:?}");
                }
                Owner::Node(life, _) => {
                    let keeper = self.nodes.iter().find(|node| node.me.is_same_life(&life));
                    let keeps = keeper.is_some_and(|node| node.ledger.slots.contains_key(offset));
                    assert!(keeps, "seed {seed}: {offset} is stranded with {life}");
                }
            }
        }
    }
}

#[test]
fn no_history_gives_an_address_twice() {
    let (mut got, mut again, mut moved, mut buried, mut ahead, mut answered) = (0, 0, 0, 0, 0, 0);
    for seed in 1..=2_000 {
        let mut world = World::new(seed);
        for _ in 0..200 {
            world.step();
            world.check(seed);
        }
        world.end(seed);
        got += world.got;
        again += world.again;
        moved += world.moved;
        buried += world.buried;
        ahead += world.ahead;
        answered += world.answered;
    }
    // A model in which nothing happens would hold as well.
    assert!(got > 20_000, "{got} addresses were given");
    assert!(buried > 100, "nodes were inherited from {buried} times");
    assert!(
        ahead > 250 && answered > 250,
        "blocks were taken ahead {ahead} times, wishes answered {answered} times"
    );
    assert!(
        again > 2_000 && moved > 1_000,
        "tenants came again {again} times, {moved} times to another node"
    );
}

/// Several that miss the same node at once, each with a mark of its own, come to an end all the same.
#[test]
fn a_node_that_many_miss_is_buried() {
    let gone = NodeLife { node: "n0".into(), verified: true, boot: "b".into(), life: "l".into() };
    let mut pool = Pool::default();
    for offset in 1..4 {
        pool.entries.insert(offset, Entry::of_node(&gone, &Mark::None, None));
    }
    let mut askers = ["a", "b", "c"].map(|life| Ledger::new("b", life));
    let mut freed = None;
    for minute in 0..60 {
        for (at, asker) in askers.iter_mut().enumerate() {
            let millis = (minute * 60 + at as u64) * 1000;
            let now = Moment { uptime: millis, wall: millis };
            match bury(asker, &pool, &gone, &format!("{minute}-{at}"), now) {
                Burial::Waiting => {}
                Burial::Condemned(change) => {
                    assert_eq!((minute, at), (0, 0), "one mark will do");
                    pool = pool.changed(&change);
                }
                Burial::Inherited(change) => {
                    pool = pool.changed(&change);
                    freed.get_or_insert(minute);
                }
            }
            if pool.entries.is_empty() {
                break;
            }
        }
        if pool.entries.is_empty() {
            break;
        }
    }
    assert_eq!((freed, pool.entries.len()), (Some(20), 0));
}

/// A node that was given up, and is back with a tenant's container, has the address again if nobody came before it.
#[test]
fn a_node_that_is_back_keeps_its_tenant() {
    let life =
        |node: &str| NodeLife { node: node.into(), verified: true, boot: "b".into(), life: "l".into() };
    let (me, other) = (life("n0"), life("n1"));
    let tenant = Tenant::Claim { name: "ns/vm".into() };
    let another = Tenant::Claim { name: "ns/vm2".into() };
    let slot = |state| Slot { state, reserved: false, past: None, tenant: Some(tenant.clone()) };
    let (held, lost) = (slot(Use::Held(holder("c"))), slot(Use::Lost(holder("c"))));
    let now = Moment { uptime: 0, wall: 0 };
    let refused = BTreeSet::new();
    let want = Want { need: Need::Nothing, avoid: &refused, block: None, spread: None };
    for (before, entry, is_back) in [
        (held.clone(), Some(Entry::of_tenant(&tenant)), true),
        (lost.clone(), Some(Entry::of_tenant(&tenant)), true),
        (held.clone(), None, true),
        (held.clone(), Some(Entry::of_tenant(&another)), false),
        (held.clone(), Some(Entry::of_node(&other, &Mark::None, Some(&tenant))), false),
        (slot(Use::Returning), Some(Entry::of_tenant(&tenant)), false),
        (Slot { tenant: None, ..held.clone() }, Some(Entry::of_tenant(&tenant)), false),
    ] {
        let mut ledger = Ledger::new("b", "l");
        ledger.slots.insert(5, before.clone());
        let pool =
            Pool { entries: entry.clone().map(|entry| (5, entry)).into_iter().collect(), ..Pool::default() };
        let change = plan(&mut ledger, &pool, &me, &want, now);
        let taken = Change::from([(5, Some(Entry::of_node(&me, &Mark::None, Some(&tenant))))]);
        assert_eq!(change, if is_back { taken } else { Change::new() }, "{before:?}, {entry:?}");
        settle(&mut ledger, &pool.changed(&change), &me, now);
        assert_eq!(ledger.slots.get(&5) == Some(&held), is_back, "{before:?}, {entry:?}");
    }
}
