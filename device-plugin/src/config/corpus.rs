//! The files of `tests/corpus`, and mutations of them, reach all that reads a configuration. None may panic; what is
//! refused says where; what is accepted can be worked with.
//!
//! `PODRAIL_MUTATIONS` is the number of mutations of each file (default 300). They are the same in each run.

use std::sync::Arc;

use host::sysfs::fake::FakeSysfs;

use super::*;
use crate::allocations::Allocations;
use crate::away::AwayDevices;
use crate::check;
use crate::device::Device;
use crate::discovery::DefaultRoutes;
use crate::explain::Report;
use crate::inventory::Inventory;
use crate::pool::judge;

#[allow(unreachable_pub, reason = "it serves the integration tests of another crate, too")]
#[path = "../../../multus/tests/mutate/mod.rs"]
mod mutate;

/// A refusal names a line of the file, and the key unless the file as a whole is not what it should be.
pub(super) fn assert_says_where(fault: &Fault, file: &[u8]) {
    let text = String::from_utf8_lossy(file);
    let lines = file.iter().filter(|octet| **octet == b'\n').count() + 1;
    assert!((1..=lines).contains(&fault.line), "{fault} in {text}");
    let of_whole = ["not JSON: ", "not UTF-8", "must be an object, not "];
    let is_of_whole = fault.key.is_empty() && of_whole.iter().any(|start| fault.problem.starts_with(start));
    assert!(is_of_whole || fault.key.to_lowercase().starts_with("resourcelist"), "{fault} in {text}");
}

/// The devices of a machine that has one of each kind.
fn machine() -> Vec<Arc<Device>> {
    let fake = FakeSysfs::new();
    fake.pci("0000:3b:00.0")
        .driver("igb")
        .netdev("ens1f0")
        .sriov(7)
        .auxiliary("mlx5_core.sf.4", "mlx5_core.sf");
    fake.pci("0000:3b:10.0").vf_of("0000:3b:00.0", 0).driver("igbvf");
    fake.pci("0000:5e:00.0").attribute("class", "0x120000").driver("d");
    Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices()
}

/// Uses an accepted file for all that files are used for.
fn assert_works(conf: &Conf, suspicions: &[Fault], devices: &[Arc<Device>]) {
    let mut names = BTreeSet::new();
    for pool in &conf.pools {
        let socket = pool.resource.socket_name();
        assert!(!socket.contains('/') && !socket.starts_with('.') && names.insert(socket), "{pool:?}");
        assert!(!pool.selectors.is_empty(), "{pool:?}");
    }
    let (pools, verdicts) = judge(conf, devices, &Allocations::default());
    let _ = check::findings(conf, suspicions, &pools, &verdicts);
    assert!(
        !Report::new(conf, &pools, verdicts, &Allocations::default(), &AwayDevices::new())
            .to_string()
            .is_empty()
    );
}

fn refused(file: &[u8]) -> bool {
    match understand(file, "intel.com") {
        Ok(_) => false,
        Err(fault) => {
            assert_says_where(&fault, file);
            true
        }
    }
}

#[test]
fn files_are_judged_as_the_corpus_says() {
    let devices = machine();
    for file in mutate::corpus("accepted") {
        let (conf, suspicions) = understand(&file, "intel.com").unwrap();
        assert_eq!(suspicions, [], "{}", String::from_utf8_lossy(&file));
        assert_works(&conf, &suspicions, &devices);
    }
    for file in mutate::corpus("suspicious") {
        let (conf, suspicions) = understand(&file, "intel.com").unwrap();
        assert!(!suspicions.is_empty(), "{}", String::from_utf8_lossy(&file));
        for suspicion in &suspicions {
            assert!(!suspicion.key.is_empty(), "{suspicion}");
        }
        assert_works(&conf, &suspicions, &devices);
    }
    for file in mutate::corpus("refused") {
        assert!(refused(&file), "{}", String::from_utf8_lossy(&file));
    }
}

#[test]
fn no_mutation_of_a_file_hurts() {
    let kinds = ["accepted", "suspicious", "refused"];
    let files: Vec<Vec<u8>> = kinds.into_iter().flat_map(mutate::corpus).collect();
    let mut outcomes = [0, 0];
    mutate::with_mutations(&files, |file| outcomes[usize::from(refused(file))] += 1);
    assert!(outcomes.iter().all(|count| *count > files.len()), "hardly a mutation: {outcomes:?}");
}
