//! What a node's ledgers say, as Prometheus text.
//!
//! The plugin lives for one call and serves nothing. Whoever wants figures runs `whereabouts metrics` now and then, and
//! lets node-exporter read what it prints. It asks nobody, and changes nothing.

pub(crate) mod serve;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::Places;
use crate::error::Error;
use crate::ledger::{Ledger, Use};
use crate::store::Store;

const USAGE: &str = "usage: whereabouts metrics [--data-dir DIRECTORY]";

/// Runs `whereabouts metrics`; `arguments` are what follows.
#[must_use]
pub fn main(mut arguments: impl Iterator<Item = OsString>, places: &Places) -> ExitCode {
    let mut directory = places.data_dir.clone();
    while let Some(argument) = arguments.next() {
        match (argument.to_str(), arguments.next()) {
            (Some("--data-dir"), Some(value)) => directory = PathBuf::from(value),
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    match read(&directory) {
        Ok(ledgers) => {
            print!("{}", text(&ledgers));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("whereabouts: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The ledgers in a directory by the names of their pools; none where no ADD was yet.
///
/// # Errors
/// [`Error::Disk`] and [`Error::Start`].
pub fn read(directory: &Path) -> Result<BTreeMap<String, Ledger>, Error> {
    if !directory.exists() {
        return Ok(BTreeMap::new());
    }
    let store = Store::open(directory, "")?;
    let read = |pool: String| Ok(store.read(&pool)?.map(|ledger| (pool, ledger)));
    store.pools()?.into_iter().filter_map(|pool| read(pool).transpose()).collect()
}

/// The text exposition format of Prometheus.
#[must_use]
pub fn text(ledgers: &BTreeMap<String, Ledger>) -> String {
    let mut out = String::new();
    family(
        &mut out,
        "whereabouts_node_addresses",
        "Addresses of the pool that this node keeps, by what they do.",
    );
    for (pool, ledger) in ledgers {
        for state in ["held", "idle", "returning", "lost"] {
            let count = ledger.slots.values().filter(|slot| name_of(&slot.state) == state).count();
            sample(&mut out, "whereabouts_node_addresses", pool, Some(state), &count.to_string());
        }
    }
    let fills = || ledgers.iter().filter_map(|(pool, ledger)| Some((pool, ledger.fill.as_ref()?)));
    let name = "whereabouts_pool_usable_addresses";
    family(&mut out, name, "Addresses that the pool has for the network that read it last on this node.");
    for (pool, fill) in fills() {
        sample(&mut out, name, pool, None, &fill.usable.to_string());
    }
    let name = "whereabouts_pool_taken_addresses";
    family(
        &mut out,
        name,
        "Those of them that somebody in the cluster had, or kept, when this node last read the pool.",
    );
    for (pool, fill) in fills() {
        sample(&mut out, name, pool, None, &fill.taken.to_string());
    }
    let name = "whereabouts_pool_read_timestamp_seconds";
    family(&mut out, name, "When this node last read the pool. Inside its block it has no reason to.");
    for (pool, ledger) in ledgers {
        if let Some(confirmed) = ledger.confirmed {
            sample(&mut out, name, pool, None, &(confirmed.wall / 1000).to_string());
        }
    }
    out
}

fn name_of(state: &Use) -> &'static str {
    match state {
        Use::Held(_) => "held",
        Use::Idle => "idle",
        Use::Returning => "returning",
        Use::Lost(_) => "lost",
    }
}

fn family(out: &mut String, name: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
}

fn sample(out: &mut String, name: &str, pool: &str, state: Option<&str>, value: &str) {
    let state = state.map(|state| format!(",state=\"{state}\"")).unwrap_or_default();
    let _ = writeln!(out, "{name}{{pool=\"{pool}\"{state}}} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Fill, Holder, Moment, Slot};

    #[test]
    fn what_a_ledger_says() {
        let mut ledger = Ledger::new("b", "l");
        let slot = |state| Slot { state, reserved: false, past: None, tenant: None };
        ledger.slots = BTreeMap::from([
            (1, slot(Use::Idle)),
            (2, slot(Use::Held(Holder::default()))),
            (3, slot(Use::Held(Holder::default()))),
        ]);
        ledger.fill = Some(Fill { usable: u128::MAX, taken: 17 });
        ledger.confirmed = Some(Moment { uptime: 1, wall: 1_700_000_000_123 });
        let text = text(&BTreeMap::from([("red-10.0.0.0-24".to_owned(), ledger)]));
        for line in [
            "whereabouts_node_addresses{pool=\"red-10.0.0.0-24\",state=\"held\"} 2",
            "whereabouts_node_addresses{pool=\"red-10.0.0.0-24\",state=\"lost\"} 0",
            "whereabouts_pool_usable_addresses{pool=\"red-10.0.0.0-24\"} 340282366920938463463374607431768211455",
            "whereabouts_pool_taken_addresses{pool=\"red-10.0.0.0-24\"} 17",
            "whereabouts_pool_read_timestamp_seconds{pool=\"red-10.0.0.0-24\"} 1700000000",
            "# TYPE whereabouts_pool_taken_addresses gauge",
        ] {
            assert!(text.lines().any(|of| of == line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_node_without_ledgers() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("none");
        assert!(read(&nowhere).unwrap().is_empty() && !nowhere.exists());
        assert!(read(dir.path()).unwrap().is_empty());
    }
}
