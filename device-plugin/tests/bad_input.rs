//! Configuration files that were a problem somewhere, given to the program: it never panics, and says on one line which
//! place of the file it means. Mutations of them are tested inside the program (`src/config/corpus.rs`).
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![allow(dead_code, unreachable_pub, reason = "of what the mutations need")]

#[path = "../../multus/tests/mutate/mod.rs"]
mod mutate;

use std::fs;
use std::process::{Command, Output};

use host::sysfs::fake::FakeSysfs;

/// Checks a file on a machine with one VF.
fn check(file: &[u8]) -> Output {
    let fake = FakeSysfs::new();
    fake.pci("0000:3b:00.0").driver("igb").netdev("ens1f0").sriov(7);
    fake.pci("0000:3b:10.0").vf_of("0000:3b:00.0", 0).driver("igbvf");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    fs::write(&path, file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sriov-device-plugin"));
    command.arg("-check-config").current_dir(directory.path()).arg("-config-file=config.json");
    command.arg("-kubelet-root").arg(directory.path()).arg("-sysfs-root").arg(fake.root());
    command.output().unwrap()
}

/// The line and column at the start of what follows the file's name.
fn place(text: &str) -> Option<(usize, usize)> {
    let (_, place) = text.split_once("config.json:")?;
    let mut numbers = place.splitn(3, ':');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[test]
fn a_refused_file_is_one_line_with_a_place() {
    for file in mutate::corpus("refused") {
        let text = String::from_utf8_lossy(&file);
        let output = check(&file);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{text}\n{said}");
        assert_eq!(place(&said).map(|(line, _)| line), Some(1), "{text}\n{said}");
        assert!(output.stdout.is_empty(), "{text}");
    }
}

#[test]
fn a_suspicious_file_is_told_place_by_place() {
    for file in mutate::corpus("suspicious") {
        let text = String::from_utf8_lossy(&file);
        let output = check(&file);
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}\n{said}");
        assert!(said.lines().next().and_then(place).is_some(), "{text}\n{said}");
    }
}

/// Files as programs write them are no reason for a word, but for what this machine has not.
#[test]
fn an_accepted_file_is_fine() {
    for file in mutate::corpus("accepted") {
        let text = String::from_utf8_lossy(&file);
        let output = check(&file);
        assert!(output.stderr.is_empty(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let of_machine = [
                "has no device on this machine",
                "matches no device on this machine",
                "go to an earlier entry",
            ];
            assert!(of_machine.iter().any(|words| line.contains(words)), "{text}\n{line}");
        }
    }
}
