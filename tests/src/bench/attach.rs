//! ADD and DEL of `sriov` on real VFs, against the floor (`podrail-floor`) and a reference plugin.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use host::{MacAddress, Netlink, Sysfs};
use serde_json::{Value, json};

use super::Options;
use super::call::{Call, Cost};
use super::row::{Aim, Row};
use super::trial::{Subject, interleave, median};
use crate::sim::runtime::netns;
use crate::vfs::{self, Vf};

/// Where the container's namespace is.
const NETNS: &str = "/run/netns/podrail-bench";
const IFNAME: &str = "net1";
const MAC: &str = "02:00:00:00:0b:01";
const VLAN: u16 = 100;
const USERSPACE_DRIVER: &str = "vfio-pci";

/// What the calls of a subject do.
const VERBS: [&str; 2] = ["ADD", "DEL"];

/// ADD and DEL are to cost less than this times the floor.
const FLOOR_BOUND: f64 = 1.3;
/// Megabytes of memory that a call may take.
const MEMORY_BOUND: f64 = 3.0;

pub(super) fn measure(options: &Options) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sysfs = Sysfs::default();
    let look = || runtime.block_on(async { vfs::look(&sysfs, &Netlink::connect()?).await });
    let before = look()?;
    let mut free = before.values().filter(|vf| vf.netdev.as_ref().is_some_and(|netdev| !netdev.up));
    let vf = free
        .next()
        .context("no VF with an interface that is down: write a number to sriov_numvfs of a PF")?;
    let other = free.rfind(|other| other.pf == vf.pf);
    let other = other.with_context(|| format!("PF {} has only one VF that nobody uses", vf.pf))?;
    netns::remove(Path::new(NETNS))?;
    netns::create(Path::new(NETNS))?;
    let rows = netdevice(options, vf).and_then(|mut rows| {
        rows.extend(userspace(options, &sysfs, other)?);
        Ok(rows)
    });
    netns::remove(Path::new(NETNS))?;
    let differences = vfs::differences(&before, &look()?);
    let rows = rows?;
    ensure!(differences.is_empty(), "the VFs did not come back as they were: {}", differences.join("; "));
    Ok(rows)
}

/// A VF with an interface gets a VLAN, a MAC and an address.
fn netdevice(options: &Options, vf: &Vf) -> Result<Vec<Row>> {
    let netdev = vf.netdev.as_ref().context("no interface")?;
    let ipam = json!({"type": "host-local", "subnet": "192.0.2.0/24", "dataDir": "/run/podrail-bench"});
    let ours = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "sriov", "deviceID": vf.address, "vlan": VLAN, "mac": MAC,
        "trust": "on", "logLevel": "error", "ipam": ipam,
    });
    let peer = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "host-device", "device": netdev.name, "ipam": ipam,
    });
    let mac = |mac: Option<MacAddress>| mac.map(|mac| mac.to_string()).context("the VF has no MAC");
    let place = [vf.pf.clone(), vf.index.to_string(), netdev.name.clone(), NETNS.into(), IFNAME.into()];
    let floor = |action: &str, verb: &'static str, last: [String; 2]| {
        let arguments = std::iter::once(action.to_owned()).chain(place.clone()).chain(last).collect();
        Call { arguments, ..call(options, "podrail-floor", verb, &peer) }
    };
    let [add, del] = VERBS;
    let floor = vec![
        floor("netdevice-add", add, [VLAN.to_string(), MAC.to_owned()]),
        floor("netdevice-del", del, [mac(vf.admin.mac)?, mac(netdev.mac)?]),
    ];
    let plugin =
        |name, conf| Subject { name, calls: VERBS.map(|verb| call(options, name, verb, conf)).into() };
    let subjects = [
        plugin("sriov", &ours),
        Subject { name: "floor", calls: floor },
        plugin("host-device", &peer),
        plugin("host-local", &peer),
    ];
    rows("netdevice", &subjects, options.rounds)
}

/// A VF that belongs to a program in user space gets a MAC.
fn userspace(options: &Options, sysfs: &Sysfs, vf: &Vf) -> Result<Vec<Row>> {
    let device = sysfs.pci_device(vf.address)?;
    device.bind(USERSPACE_DRIVER)?;
    let ours = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "sriov", "deviceID": vf.address, "mac": MAC,
        "logLevel": "error",
    });
    let old = vf.admin.mac.context("the PF reports no MAC")?.to_string();
    let floor = |mac: &str| {
        let arguments = vec!["userspace".to_owned(), vf.address.to_string(), mac.to_owned()];
        Call { arguments, ..Call::new(options.programs.join("podrail-floor")) }
    };
    let subjects = [
        Subject { name: "sriov", calls: VERBS.map(|verb| call(options, "sriov", verb, &ours)).into() },
        Subject { name: "floor", calls: vec![floor(MAC), floor(&old)] },
    ];
    let rows = rows("vfio", &subjects, options.rounds);
    device.bind_default()?;
    settle()?;
    rows
}

/// A CNI call.
fn call(options: &Options, program: &str, verb: &'static str, conf: &Value) -> Call {
    let environment = vec![
        ("CNI_COMMAND", verb.into()),
        ("CNI_CONTAINERID", "podrail-bench".into()),
        ("CNI_NETNS", NETNS.into()),
        ("CNI_IFNAME", IFNAME.into()),
        ("CNI_PATH", options.reference.clone().into()),
    ];
    Call { environment, stdin: conf.to_string().into_bytes(), ..Call::new(options.programs.join(program)) }
}

/// Compares the first of the subjects with the others; the second one is the floor.
fn rows(device: &str, subjects: &[Subject], rounds: usize) -> Result<Vec<Row>> {
    let costs = interleave(subjects, rounds, settle)?;
    let mut figures = Vec::new();
    for (subject, costs) in subjects.iter().zip(costs) {
        figures.push(Figures::of(subject, &costs)?);
    }
    let Some((ours, others)) = figures.split_first() else { return Ok(Vec::new()) };
    let mut rows = Vec::new();
    for (at, verb) in VERBS.into_iter().enumerate() {
        for (against, baseline) in others.iter().enumerate() {
            let aim = (against == 0).then_some(Aim::Ratio(FLOOR_BOUND));
            let mut row = |what, unit, figures: fn(&Figures) -> &[f64], aim| {
                let (Some(value), Some(baseline_value)) = (figures(ours).get(at), figures(baseline).get(at))
                else {
                    return;
                };
                let case = format!("{verb} {device} {what}, {} / {}", ours.name, baseline.name);
                rows.push(Row::new(case, *value, unit, Some(*baseline_value), aim));
            };
            row("wall", "ms", |figures| &figures.wall, aim);
            row("CPU", "ms", |figures| &figures.cpu, aim);
            row("system calls", "calls", |figures| &figures.system_calls, None);
        }
        if let Some(memory) = ours.memory.get(at) {
            let floor = others.first().and_then(|floor| floor.memory.get(at)).copied();
            let case = format!("{verb} {device} peak memory, {}", ours.name);
            rows.push(Row::new(case, *memory, "MB", floor, Some(Aim::Value(MEMORY_BOUND))));
        }
    }
    Ok(rows)
}

/// The figures of a subject, call by call.
struct Figures {
    name: &'static str,
    wall: Vec<f64>,
    cpu: Vec<f64>,
    system_calls: Vec<f64>,
    memory: Vec<f64>,
}

impl Figures {
    fn of(subject: &Subject, costs: &[Vec<Cost>]) -> Result<Self> {
        let mut figures = Self {
            name: subject.name,
            wall: costs.iter().map(|costs| median(costs, |cost| cost.wall)).collect(),
            cpu: costs.iter().map(|costs| median(costs, |cost| cost.cpu)).collect(),
            system_calls: Vec::new(),
            memory: Vec::new(),
        };
        for call in &subject.calls {
            figures.system_calls.push(u32::try_from(call.system_calls()?)?.into());
            settle()?;
        }
        for call in subject.calls.iter().filter(|call| !call.stdin.is_empty()) {
            figures.memory.push(f64::from(u32::try_from(call.peak_memory()?)?) / 1e6);
            settle()?;
        }
        Ok(figures)
    }
}

/// Lets udev finish with what a call caused, so that it does not burden the next one.
fn settle() -> Result<()> {
    let done = Command::new("udevadm").arg("settle").status().context("run udevadm")?;
    ensure!(done.success(), "udevadm settle: {done}");
    Ok(())
}
