//! VERSION: what starting a plugin costs, against a program that does nothing and against a reference plugin.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::Options;
use super::call::Call;
use super::row::{Aim, Row};
use super::trial::{Subject, interleave, median};

/// The plugin asks for nothing, and what it would find must not matter.
const ROUNDS_PER_ROUND: usize = 10;

/// What is measured, and what it is to stay below.
#[derive(Clone, Copy, Debug)]
pub(super) struct Started {
    /// Name of the program, among the programs under test.
    pub(super) program: &'static str,
    /// Milliseconds from start to end.
    pub(super) wall: f64,
    /// Megabytes of the file.
    pub(super) size: f64,
}

pub(super) fn measure(options: &Options, started: Started) -> Result<Vec<Row>> {
    let Started { program: name, .. } = started;
    let version = |program| Call {
        environment: vec![("CNI_COMMAND", "VERSION".into())],
        stdin: br#"{"cniVersion":"1.0.0"}"#.to_vec(),
        ..Call::new(program)
    };
    let (program, reference) = (options.programs.join(name), options.reference.join("host-device"));
    let subjects =
        [(name, &program), ("no-op", &options.programs.join("podrail-noop")), ("host-device", &reference)]
            .map(|(name, program)| Subject { name, calls: vec![version(program)] });
    let costs = interleave(&subjects, options.rounds * ROUNDS_PER_ROUND, || Ok(()))?;
    let [ours, noop, peer] = costs.as_slice() else { return Ok(Vec::new()) };
    let costs = |of: &[Vec<_>]| of.first().cloned().unwrap_or_default();
    let (ours, noop, peer) = (costs(ours), costs(noop), costs(peer));
    let mut rows = Vec::new();
    for (against, baseline) in [("no-op", &noop), ("host-device", &peer)] {
        let (wall, cpu) = (|cost: &super::call::Cost| cost.wall, |cost: &super::call::Cost| cost.cpu);
        let case = format!("VERSION wall, {name} / {against}");
        rows.push(Row::new(
            case,
            median(&ours, wall),
            "ms",
            Some(median(baseline, wall)),
            Some(Aim::Value(started.wall)),
        ));
        let case = format!("VERSION CPU, {name} / {against}");
        rows.push(Row::new(case, median(&ours, cpu), "ms", Some(median(baseline, cpu)), None));
    }
    let [ours, noop, peer] = &subjects;
    let calls = |subject: &Subject| -> Result<f64> {
        let call = subject.calls.first().context("no call")?;
        Ok(u32::try_from(call.system_calls()?)?.into())
    };
    let count = calls(ours)?;
    for subject in [noop, peer] {
        let case = format!("VERSION system calls, {name} / {}", subject.name);
        rows.push(Row::new(case, count, "calls", Some(calls(subject)?), None));
    }
    let case = format!("program size, {name} / host-device");
    rows.push(Row::new(case, size(&program)?, "MB", Some(size(&reference)?), Some(Aim::Value(started.size))));
    Ok(rows)
}

/// Size of a file in megabytes.
fn size(program: &Path) -> Result<f64> {
    let bytes = program.metadata().with_context(|| program.display().to_string())?.len();
    Ok(f64::from(u32::try_from(bytes)?) / 1e6)
}
