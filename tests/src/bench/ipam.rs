//! ADDs of `whereabouts` by many nodes at once, against a lease for each ADD, and against host-local on one node; with the
//! daemon, and without it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use super::call::Call;
use super::lease::Peer;
use super::row::{Aim, Row};
use super::trial::{Subject, interleave, median};

/// How many addresses the ranges have: a /22 without network and broadcast address.
const USABLE: usize = 1022;
/// How many ADDs a node makes, where the range has room for them.
const EACH: usize = 20;
const NODES: [usize; 3] = [1, 10, 50];
const FILLS: [usize; 3] = [10, 50, 95];
/// How many ADDs of the lease scheme are enough: they take a second each where nodes meet.
const LEASED: usize = 3;
/// How many nodes work inside what they have, and how many pods come and go on each.
const CHURNING: usize = 10;
const CHURNS: usize = 50;
/// How many pods come to a node that its daemon tends, and after what pauses: in less time no pod starts.
const COMING: usize = 60;
const PAUSE: Duration = Duration::from_millis(100);
/// The lease scheme is to take at least this many times as long.
const FASTER: f64 = 50.0;

/// What a load took.
struct Load {
    /// Of all ADDs together.
    wall: Duration,
    /// Of each ADD.
    each: Vec<Duration>,
    /// Requests that the API server got meanwhile.
    requests: f64,
}

impl Load {
    fn count(&self) -> f64 {
        u32::try_from(self.each.len()).map_or(f64::MAX, f64::from)
    }

    /// Milliseconds of the whole for each ADD.
    fn pace(&self) -> f64 {
        self.wall.as_secs_f64() * 1000.0 / self.count()
    }

    fn quantile(&self, percent: usize) -> f64 {
        let mut sorted = self.each.clone();
        sorted.sort_unstable();
        let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(at).copied().unwrap_or_default().as_secs_f64() * 1000.0
    }
}

pub(super) fn measure(options: &Options, folder: &Path) -> Result<Vec<Row>> {
    let kubeconfig = options.kubeconfig.as_deref().context("--kubeconfig is missing: pools are objects")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let peer = runtime.block_on(Peer::connect(kubeconfig))?;
    let bench = Bench { options, folder, kubeconfig, runtime, peer };
    let mut rows = bench.one_node()?;
    let mut leased = Vec::new();
    for nodes in NODES.into_iter().filter(|nodes| *nodes <= 10) {
        let network = format!("lease-{nodes}");
        let load = bench.lease(&network, nodes)?;
        let case = format!("a lease for each ADD, {nodes} nodes, half full: wall per ADD");
        rows.push(Row::new(case, load.pace(), "ms", None, None));
        let case = format!("a lease for each ADD, {nodes} nodes, half full: requests per ADD");
        rows.push(Row::new(case, load.requests / load.count(), "requests", None, None));
        leased.push((nodes, load.pace()));
    }
    rows.extend(bench.churned(leased.iter().find(|(of, _)| *of == CHURNING).map(|(_, pace)| *pace))?);
    rows.extend(bench.paced(false)?);
    rows.extend(bench.paced(true)?);
    for nodes in NODES {
        for fill in FILLS {
            let load = bench.ours(&format!("ours-{nodes}-{fill}"), nodes, fill)?;
            let case = |what: &str| format!("{nodes} nodes, {fill} % full: {what}");
            let baseline = leased.iter().find(|(of, _)| *of == nodes && fill == 50).map(|(_, pace)| *pace);
            let aim = (nodes == 10 && fill == 50).then_some(Aim::Ratio(1.0 / FASTER));
            rows.push(Row::new(case("wall per ADD"), load.pace(), "ms", baseline, aim));
            rows.push(Row::new(case("ADD, median"), load.quantile(50), "ms", None, None));
            rows.push(Row::new(case("ADD, 99th percentile"), load.quantile(99), "ms", None, None));
            let requests = load.requests / load.count();
            rows.push(Row::new(case("requests per ADD"), requests, "requests", None, Some(Aim::Value(1.0))));
        }
    }
    Ok(rows)
}

/// `whereabouts tend`, until it is dropped.
struct Daemon(Child);

impl Daemon {
    fn start(program: &Path, kubeconfig: &Path, ledgers: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["tend", "--log-level", "error", "--kubeconfig"]).arg(kubeconfig);
        command.arg("--data-dir").arg(ledgers).stdin(Stdio::null());
        Ok(Self(command.spawn().context("start whereabouts tend")?))
    }

    /// What it has in memory, in MiB.
    fn memory(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
        Ok(kib.parse::<f64>()? / 1024.0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may end at any moment.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Bench<'a> {
    options: &'a Options,
    folder: &'a Path,
    kubeconfig: &'a Path,
    runtime: tokio::runtime::Runtime,
    peer: Peer,
}

impl Bench<'_> {
    fn ipam(&self, network: &str, node: usize) -> Value {
        json!({
            "type": "whereabouts", "range": "10.128.0.0/22", "network_name": network,
            "enable_overlapping_ranges": false, "dataDir": self.ledgers(network, node),
            "kubernetes": {"kubeconfig": self.kubeconfig},
        })
    }

    fn call(&self, program: &Path, verb: &str, ipam: &Value, node: usize, container: &str) -> Call {
        let conf = json!({"cniVersion": "1.0.0", "name": "bench", "type": "macvlan", "ipam": ipam});
        Call {
            environment: vec![
                ("CNI_COMMAND", verb.into()),
                ("CNI_CONTAINERID", container.into()),
                ("CNI_NETNS", "/run/netns/podrail-bench".into()),
                ("CNI_IFNAME", "net1".into()),
                (
                    "CNI_ARGS",
                    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={container}").into(),
                ),
                ("CNI_PATH", self.options.programs.clone().into()),
                ("NODENAME", format!("node-{node}").into()),
            ],
            stdin: conf.to_string().into_bytes(),
            ..Call::new(program)
        }
    }

    /// ADD and DEL inside the block, in turn with host-local.
    fn one_node(&self) -> Result<Vec<Row>> {
        let ours = self.options.programs.join("whereabouts");
        let reference = self.options.reference.join("host-local");
        let ipam = self.ipam("inside", 0);
        self.call(&ours, "ADD", &ipam, 0, "first").measure()?;
        let before = self.runtime.block_on(self.peer.requests())?;
        let local =
            json!({"type": "host-local", "subnet": "10.128.0.0/22", "dataDir": self.folder.join("local")});
        let subject = |name, program, ipam| Subject {
            name,
            calls: ["ADD", "DEL"].map(|verb| self.call(program, verb, ipam, 0, "pod")).into(),
        };
        let subjects = [subject("whereabouts", &ours, &ipam), subject("host-local", &reference, &local)];
        let costs = interleave(&subjects, self.options.rounds, || Ok(()))?;
        let requests = self.runtime.block_on(self.peer.requests())? - before;
        let [ours, local] = costs.as_slice() else { return Ok(Vec::new()) };
        let mut rows = Vec::new();
        for (verb, (ours, local)) in ["ADD", "DEL"].into_iter().zip(ours.iter().zip(local)) {
            let wall = |costs: &[super::call::Cost]| median(costs, |cost| cost.wall);
            let case = format!("{verb} inside the block, whereabouts / host-local");
            rows.push(Row::new(case, wall(ours), "ms", Some(wall(local)), Some(Aim::Ratio(1.0))));
            let cpu = median(ours, |cost| cost.cpu);
            let aim = (verb == "ADD").then_some(Aim::Value(1.0));
            rows.push(Row::new(format!("{verb} inside the block, CPU"), cpu, "ms", None, aim));
        }
        rows.push(Row::new("requests inside the block", requests, "requests", None, Some(Aim::Value(1.0))));
        Ok(rows)
    }

    fn ours(&self, network: &str, nodes: usize, fill: usize) -> Result<Load> {
        let taken = USABLE * fill / 100;
        self.runtime.block_on(self.peer.fill(&format!("{network}-10.128.0.0-22"), taken))?;
        let each = EACH.min((USABLE - taken) / 2 / nodes).max(1);
        let program = self.options.programs.join("whereabouts");
        self.load(nodes, |node| {
            let ipam = self.ipam(network, node);
            let add =
                |pod| Ok(self.call(&program, "ADD", &ipam, node, &format!("pod-{pod}")).measure()?.wall);
            (0..each).map(add).collect()
        })
    }

    /// Pods come and go on nodes that have what they need, in a pool that others have filled to the half.
    fn churned(&self, leased: Option<f64>) -> Result<Vec<Row>> {
        let network = "churn";
        self.runtime.block_on(self.peer.fill(&format!("{network}-10.128.0.0-22"), USABLE / 2))?;
        let program = self.options.programs.join("whereabouts");
        let calls = |node: usize| {
            let ipam = self.ipam(network, node);
            ["ADD", "DEL"].map(|verb| self.call(&program, verb, &ipam, node, "pod"))
        };
        for node in 0..CHURNING {
            let [add, del] = calls(node);
            add.measure()?;
            del.measure()?;
        }
        let load = self.load(CHURNING, |node| {
            let [add, del] = calls(node);
            let turn = |_| {
                let wall = add.measure()?.wall;
                del.measure()?;
                Ok(wall)
            };
            (0..CHURNS).map(turn).collect()
        })?;
        let case = |what: &str| format!("{CHURNING} nodes inside their blocks, half full: {what}");
        let aim = Some(Aim::Ratio(1.0 / FASTER));
        let adding = load.each.iter().sum::<Duration>().as_secs_f64();
        Ok(vec![
            Row::new(case("wall per ADD, with its DEL"), load.pace(), "ms", leased, aim),
            Row::new(case("ADD, median"), load.quantile(50), "ms", None, None),
            Row::new(case("ADD, 99th percentile"), load.quantile(99), "ms", None, None),
            Row::new(case("ADDs a second on each node"), load.count() / adding, "1/s", None, None),
            Row::new(case("requests per ADD"), load.requests / load.count(), "requests", None, None),
        ])
    }

    /// Pods come one after the other to nodes that had one, with daemons or without.
    fn paced(&self, is_tended: bool) -> Result<Vec<Row>> {
        let (network, manner) = if is_tended { ("tended", "daemon") } else { ("alone", "no daemon") };
        self.runtime.block_on(self.peer.fill(&format!("{network}-10.128.0.0-22"), USABLE / 10))?;
        let program = self.options.programs.join("whereabouts");
        let add = |node: usize, pod: &str| {
            self.call(&program, "ADD", &self.ipam(network, node), node, pod).measure()
        };
        let mut daemons = Vec::new();
        for node in 0..CHURNING {
            add(node, "first")?;
            if is_tended {
                daemons.push(Daemon::start(&program, self.kubeconfig, &self.ledgers(network, node))?);
            }
        }
        let load = self.load(CHURNING, |node| {
            let one = |pod| {
                std::thread::sleep(PAUSE);
                Ok(add(node, &format!("pod-{pod}"))?.wall)
            };
            (0..COMING).map(one).collect()
        })?;
        let case = |what: &str| format!("{CHURNING} nodes, a pod each 100 ms, {manner}: {what}");
        let mut rows = vec![
            Row::new(case("ADD, median"), load.quantile(50), "ms", None, None),
            Row::new(case("ADD, 99th percentile"), load.quantile(99), "ms", None, None),
            Row::new(
                case("requests per ADD"),
                load.requests / load.count(),
                "requests",
                None,
                Some(Aim::Value(1.0)),
            ),
        ];
        if let Some(daemon) = daemons.first() {
            rows.push(Row::new("a daemon: resident memory".to_owned(), daemon.memory()?, "MiB", None, None));
        }
        Ok(rows)
    }

    fn ledgers(&self, network: &str, node: usize) -> PathBuf {
        self.folder.join(format!("{network}-{node}"))
    }

    fn lease(&self, network: &str, nodes: usize) -> Result<Load> {
        let pool = format!("{network}-10.128.0.0-22");
        self.runtime.block_on(self.peer.fill(&pool, USABLE / 2))?;
        self.load(nodes, |node| {
            let add = |pod| {
                let start = Instant::now();
                self.runtime.block_on(self.peer.add(&pool, &format!("bench/{node}-{pod}")))?;
                Ok(start.elapsed())
            };
            (0..LEASED).map(add).collect()
        })
    }

    /// Runs `work` as each of the nodes at once.
    fn load(&self, nodes: usize, work: impl Fn(usize) -> Result<Vec<Duration>> + Sync) -> Result<Load> {
        let before = self.runtime.block_on(self.peer.requests())?;
        let (start, work) = (Instant::now(), &work);
        let results: Vec<Result<Vec<Duration>>> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..nodes).map(|node| scope.spawn(move || work(node))).collect();
            let join =
                |node: std::thread::ScopedJoinHandle<'_, _>| node.join().ok().context("a node panicked");
            running.into_iter().map(|node| join(node).and_then(|result| result)).collect()
        });
        let wall = start.elapsed();
        let requests = self.runtime.block_on(self.peer.requests())? - before;
        let (mut each, mut failures) = (Vec::new(), String::new());
        for result in results {
            match result {
                Ok(times) => each.extend(times),
                Err(error) => writeln!(failures, "{error:#}")?,
            }
        }
        ensure!(failures.is_empty(), "{failures}");
        Ok(Load { wall, each, requests })
    }
}
