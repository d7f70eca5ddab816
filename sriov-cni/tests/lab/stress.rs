//! Many processes at once, in any order.

use std::sync::Mutex;

use serde_json::{Value, json};

use crate::machine::{Pod, Vf};

const WORKERS: u64 = 4;
const ROUNDS: usize = 50;
/// Sandboxes that a worker has at once: together more than there are VFs, so that they get in one another's way.
const SANDBOXES: usize = 6;

/// A small generator (Knuth's MMIX constants), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// One sandbox: its VF, its VLAN, what it was told.
struct Sandbox {
    pod: Pod,
    vf: usize,
    conf: Value,
    vlan: usize,
    added: bool,
    gone: bool,
}

impl Sandbox {
    fn new(vfs: &[Vf], random: &mut Random) -> Self {
        let vf = random.below(vfs.len());
        let vlan = 1 + random.below(4000);
        let conf = vfs[vf].conf(&json!({"vlan": vlan, "trust": "on"}));
        Self { pod: Pod::new(), vf, conf, vlan, added: false, gone: false }
    }

    /// One random move. A runtime may repeat DEL, call it before ADD was answered, or remove the
    /// namespace first.
    fn act(&mut self, random: &mut Random) {
        match random.below(7) {
            0..=2 if !self.gone && !self.added => {
                let outcome = self.pod.add(&self.conf);
                assert!(outcome.success || outcome.answer["msg"].is_string(), "{outcome:?}");
                self.added = outcome.success;
            }
            3 if !self.gone => {
                self.pod.vanish();
                self.gone = true;
                self.added = false;
            }
            4 => {
                // A runtime that lost patience calls again while the first call is still at work.
                std::thread::scope(|scope| {
                    let del = || self.pod.del(&self.conf);
                    for call in [scope.spawn(del), scope.spawn(del)] {
                        call.join().unwrap().ok();
                    }
                });
                self.added = false;
            }
            _ => {
                self.pod.del(&self.conf).ok();
                self.added = false;
            }
        }
    }
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn two_hundred_interleavings_leave_each_vf_one_pods_or_clean() {
    let vfs = Vf::take_all();
    let befores: Vec<_> = vfs.iter().map(Vf::snapshot).collect();
    let survivors = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for seed in 0..WORKERS {
            let (vfs, survivors) = (&vfs, &survivors);
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut sandboxes = Vec::new();
                for _ in 0..ROUNDS {
                    if sandboxes.len() < SANDBOXES {
                        sandboxes.push(Sandbox::new(vfs, &mut random));
                    }
                    let chosen = random.below(sandboxes.len());
                    let sandbox: &mut Sandbox = &mut sandboxes[chosen];
                    sandbox.act(&mut random);
                    if sandbox.gone {
                        sandbox.pod.del(&sandbox.conf).ok();
                        sandboxes.swap_remove(chosen);
                    }
                }
                survivors.lock().unwrap().extend(sandboxes);
            });
        }
    });

    let survivors = survivors.into_inner().unwrap();
    for (number, vf) in vfs.iter().enumerate() {
        let owners: Vec<_> =
            survivors.iter().filter(|sandbox| sandbox.added && sandbox.vf == number).collect();
        match owners[..] {
            [] => vf.assert_is(&befores[number], "nobody's VF"),
            [owner] => {
                let link = vf.link(Some(&owner.pod)).expect("the owner has the interface");
                assert_eq!(link["ifname"], json!(owner.pod.ifname));
                assert_eq!(vf.settings()["vlan_list"][0]["vlan"], owner.vlan);
            }
            _ => panic!("VF {} was given to {} pods", vf.address, owners.len()),
        }
    }
    for sandbox in &survivors {
        sandbox.pod.del(&sandbox.conf).ok();
    }
    for (vf, before) in vfs.iter().zip(&befores) {
        vf.assert_is(before, "after all");
    }
}
