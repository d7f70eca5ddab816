//! Figures: what the programs cost, each measured against something else in the same run.
//!
//! What is compared runs in turn, round after round, so that whatever else the machine does falls on all of it alike;
//! the medians are compared. There is no threshold that fails anything: a row says what was aimed at and whether it
//! was held.

mod attach;
mod call;
mod devices;
mod ipam;
mod lease;
mod networks;
mod row;
mod soak;
mod start;
mod thick;
mod trial;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use self::start::Started;

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Bench {
    /// `sriov` VERSION, and the size of the program; needs nothing but the programs.
    CniStart,
    /// `sriov` ADD and DEL of real VFs; needs root, and a PF with two VFs that nobody uses.
    CniAttach,
    /// `multus-shim` and `multus-daemon` with delegates that do nothing, alone and 100 and 500 at a time; needs root.
    MultusThick,
    /// Memory and open files of `multus-daemon` in the course of many ADDs and DELs (`--requests`); needs root.
    MultusSoak,
    /// `whereabouts` ADD by many nodes, against a lease for each ADD; needs an API server (`--kubeconfig`).
    Ipam,
    /// `sriov-device-plugin` on fake trees of up to 2048 VFs, against the bare reading of their files; needs root.
    DevicePlugin,
    /// `multus` with delegates that do nothing, against a stand-in for the API server; needs root. With `--kubeconfig` only
    /// what differs: ADD and DEL against that one.
    Multus,
}

/// How it is measured.
#[derive(Args, Debug)]
pub struct Options {
    /// Folder with the programs under test, and with podrail-floor and podrail-noop.
    #[arg(long, value_name = "DIR")]
    pub programs: PathBuf,
    /// Folder with the reference CNI plugins.
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/cni")]
    pub reference: PathBuf,
    /// How many measured rounds.
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub rounds: usize,
    /// How many requests a soak makes.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub requests: usize,
    /// An administrator's kubeconfig of a real cluster; for ipam one in which deploy/whereabouts.yaml was applied.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

impl Options {
    /// The same with the named programs copied to `folder`: where programs lie must not decide how fast they start.
    fn copied_to(&self, folder: &Path, ours: &[&str], reference: &[&str]) -> Result<Self> {
        for (source, names) in [(&self.programs, ours), (&self.reference, reference)] {
            for name in names {
                let program = source.join(name);
                std::fs::copy(&program, folder.join(name))
                    .with_context(|| format!("copy {}", program.display()))?;
            }
        }
        Ok(Self {
            programs: folder.to_owned(),
            reference: folder.to_owned(),
            rounds: self.rounds,
            requests: self.requests,
            kubeconfig: self.kubeconfig.clone(),
        })
    }
}

/// Measures, prints a table and writes the rows to `output` as JSON.
///
/// # Errors
/// A program is missing or fails, there is no VF to measure with, or `output` cannot be written.
pub fn run(bench: Bench, options: &Options, output: &Path) -> Result<()> {
    let folder =
        tempfile::Builder::new().prefix("podrail-bench").tempdir().context("make a temporary folder")?;
    let rows = match bench {
        Bench::CniStart => {
            let sriov = Started { program: "sriov", wall: 0.3, size: 2.0 };
            let options =
                options.copied_to(folder.path(), &[sriov.program, "podrail-noop"], &["host-device"])?;
            start::measure(&options, sriov)
        }
        Bench::CniAttach => {
            let reference = ["host-device", "host-local"];
            attach::measure(&options.copied_to(folder.path(), &["sriov", "podrail-floor"], &reference)?)
        }
        Bench::MultusThick => {
            let ours = ["multus-shim", "multus-daemon", "podrail-delegate"];
            thick::measure(&options.copied_to(folder.path(), &ours, &[])?)
        }
        Bench::MultusSoak => {
            let ours = ["multus-shim", "multus-daemon", "podrail-delegate"];
            soak::measure(&options.copied_to(folder.path(), &ours, &[])?)
        }
        Bench::Ipam => {
            let copied = options.copied_to(folder.path(), &["whereabouts"], &["host-local"])?;
            ipam::measure(&copied, &folder.path().join("ledgers"))
        }
        Bench::DevicePlugin => {
            devices::measure(&options.copied_to(folder.path(), &["sriov-device-plugin"], &[])?)
        }
        Bench::Multus => {
            let multus = Started { program: "multus", wall: 0.5, size: 6.0 };
            let ours = [multus.program, "podrail-noop", "podrail-delegate", "podrail-chain"];
            let options = options.copied_to(folder.path(), &ours, &["host-device"])?;
            let start = match options.kubeconfig {
                None => start::measure(&options, multus),
                Some(_) => Ok(Vec::new()),
            };
            start.and_then(|mut rows| {
                rows.extend(networks::measure(&options, folder.path())?);
                Ok(rows)
            })
        }
    }?;
    for line in row::table(&rows) {
        println!("{line}");
    }
    let json = serde_json::to_vec_pretty(&rows)?;
    std::fs::write(output, json).with_context(|| format!("write {}", output.display()))
}
