//! Thick mode with delegates that do nothing: what remains is the shim, the daemon and the API.
//!
//! The baseline is the two delegates alone, started in turn by nobody but the bench.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use host::Netns;
use hyper::Request;
use serde_json::{Value, json};

use super::Options;
use super::call::{Call, Cost};
use super::row::{Aim, Row};
use super::trial::{Subject, interleave, median};
use crate::sim::apiserver::{ApiServer, Verb};

/// Pods of the node: as many as are attached at the same time at most.
const PODS: usize = 500;
/// Networks of the cluster, of which the pods use one.
const NADS: usize = 1000;
/// How many calls come at the same time.
const PARALLEL: [usize; 2] = [100, 500];
/// How long the daemon may take to start.
const STARTS: Duration = Duration::from_secs(30);

pub(super) fn measure(options: &Options) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (server, uids) = runtime.block_on(cluster(PODS)).context("fill the simulated cluster")?;
    let node = Node::start(&options.programs, &server, uids)?;
    let mut rows = node.alone(options.rounds)?;
    let (memory, files) = (node.memory()?, node.files()?);
    rows.push(Row::new(
        format!("daemon memory, idle, {PODS} pods, {NADS} NADs"),
        memory,
        "MB",
        None,
        Some(Aim::Value(10.0)),
    ));
    rows.push(Row::new(
        "memory of the process that starts delegates, idle",
        node.starter()?,
        "MB",
        None,
        None,
    ));
    for count in PARALLEL {
        server.clear_requests();
        rows.extend(node.together(count)?);
        let asked = |verb| u32::try_from(server.requests().iter().filter(|r| r.verb == verb).count());
        for (name, verb) in [("PATCH", Verb::Patch), ("GET", Verb::Get), ("POST (events)", Verb::Create)] {
            let case = format!("{count} ADD and DEL at a time, API calls, {name}");
            rows.push(Row::new(case, asked(verb)?.into(), "calls", None, None));
        }
    }
    rows.push(Row::new("daemon memory, after all calls / before", node.memory()?, "MB", Some(memory), None));
    rows.push(Row::new(
        "daemon open files, after all calls / before",
        node.files()?,
        "files",
        Some(files),
        None,
    ));
    Ok(rows)
}

/// An API server with the objects of a full node, and the UIDs of its `pods`.
pub(super) async fn cluster(pods: usize) -> Result<(ApiServer, Vec<String>)> {
    let server = ApiServer::start().await?;
    let client = server.client().await.map_err(|e| anyhow!("{e}"))?;
    let post = async |path: &str, object: Value| -> Result<Value> {
        let request = Request::post(path).header("content-type", "application/json");
        Ok(client.request(request.body(object.to_string().into_bytes())?).await?)
    };
    let config = json!({"cniVersion": "1.0.0", "type": "podrail-delegate"}).to_string();
    for index in 0..NADS {
        let nad = json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": format!("net-{index}")}, "spec": {"config": config},
        });
        post("/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions", nad).await?;
    }
    let mut uids = Vec::new();
    for index in 0..pods {
        let pod = json!({
            "metadata": {
                "name": format!("pod-{index}"),
                "annotations": {"k8s.v1.cni.cncf.io/networks": "net-7"},
            },
            "spec": {"nodeName": "bench", "containers": [{"name": "c", "image": "i"}]},
        });
        let pod = post("/api/v1/namespaces/default/pods", pod).await?;
        let uid = pod.pointer("/metadata/uid").and_then(Value::as_str).context("a pod without UID")?;
        uids.push(uid.to_owned());
    }
    Ok((server, uids))
}

/// A daemon with what it needs.
pub(super) struct Node {
    programs: PathBuf,
    daemon: Child,
    conf: Vec<u8>,
    /// All containers have this one: the delegates put nothing into it.
    container: Netns,
    uids: Vec<String>,
    folder: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Node {
    pub(super) fn start(programs: &Path, server: &ApiServer, uids: Vec<String>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("podrail-thick").tempdir()?;
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("net.d"))?;
        std::fs::write(path("kubeconfig"), server.kubeconfig(None))?;
        let conf = json!({
            "cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus-shim",
            "daemonSocketDir": path("run"), "cniDir": path("state"),
        });
        std::fs::write(path("shim.conf"), conf.to_string())?;
        let daemon_conf = json!({
            "socketDir": path("run"), "cniDir": path("state"), "binDir": programs, "kubeconfig": path("kubeconfig"),
            "multusConfigFile": path("shim.conf"), "cniConfigDir": path("net.d"),
            "delegates": [{"cniVersion": "1.0.0", "name": "main", "type": "podrail-delegate"}],
        });
        std::fs::write(path("daemon.json"), daemon_conf.to_string())?;
        let daemon = Command::new(programs.join("multus-daemon"))
            .arg("-config")
            .arg(path("daemon.json"))
            .env("MULTUS_NODE_NAME", "bench")
            .stdin(Stdio::null())
            .spawn()
            .context("start multus-daemon")?;
        let node = Node {
            programs: programs.to_owned(),
            daemon,
            conf: conf.to_string().into_bytes(),
            container: new_netns()?,
            uids,
            folder,
        };
        let socket = node.folder.path().join("run/multus.sock");
        let watches = |server: &ApiServer| server.requests().iter().filter(|r| r.verb == Verb::Watch).count();
        let deadline = Instant::now() + STARTS;
        while UnixStream::connect(&socket).is_err() || watches(server) < 2 {
            ensure!(Instant::now() < deadline, "multus-daemon does not serve and watch in {STARTS:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(node)
    }

    /// One call at a time.
    fn alone(&self, rounds: usize) -> Result<Vec<Row>> {
        let delegate = |verb: &str| {
            let mut call = self.call(verb, 0);
            call.program = self.programs.join("podrail-delegate");
            call
        };
        let subjects = [
            Subject { name: "thick", calls: vec![self.call("ADD", 0), self.call("DEL", 0)] },
            Subject {
                name: "delegates alone",
                calls: vec![delegate("ADD"), delegate("ADD"), delegate("DEL"), delegate("DEL")],
            },
        ];
        let costs = interleave(&subjects, rounds, || Ok(()))?;
        let of = |subject: usize, call: usize, kind: fn(&Cost) -> Duration| {
            costs.get(subject).and_then(|costs| costs.get(call)).map_or(0.0, |costs| median(costs, kind))
        };
        let wall = |cost: &Cost| cost.wall;
        let mut rows = Vec::new();
        for (verb, call, bound) in [("ADD", 0, 2.0), ("DEL", 1, 1.5)] {
            let (thick, alone) = (of(0, call, wall), of(1, 2 * call, wall) + of(1, 2 * call + 1, wall));
            rows.push(Row::new(
                format!("{verb} wall, p50 / its two delegates alone"),
                thick,
                "ms",
                Some(alone),
                None,
            ));
            let case = format!("{verb} wall, p50, above its delegates");
            rows.push(Row::new(case, thick - alone, "ms", None, Some(Aim::Value(bound))));
        }
        let peak = self.call("ADD", 0).peak_memory()?;
        rows.push(Row::new(
            "multus-shim memory, peak",
            f64::from(u32::try_from(peak)?) / 1e6,
            "MB",
            None,
            None,
        ));
        self.call("DEL", 0).measure()?;
        Ok(rows)
    }

    /// `count` calls at the same time.
    fn together(&self, count: usize) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (verb, aim) in [("ADD", (count == 100).then_some(Aim::Value(500.0))), ("DEL", None)] {
            let calls: Vec<Call> = (0..count).map(|index| self.call(verb, index)).collect();
            let delegates: Vec<Call> = calls
                .iter()
                .flat_map(|call| {
                    let delegate = Call { program: self.programs.join("podrail-delegate"), ..call.clone() };
                    [delegate.clone(), delegate]
                })
                .collect();
            let (alone, _) = at_once(&delegates)?;
            let cpu = self.cpu()?;
            let (wall, mut each) = at_once(&calls)?;
            each.sort_unstable();
            let cpu = self.cpu()? - cpu;
            let at =
                |percent: usize| milliseconds(each.get(count * percent / 100).copied().unwrap_or_default());
            let case = |what: &str| format!("{count} {verb} at a time, {what}");
            rows.push(Row::new(
                case("all / their delegates alone"),
                milliseconds(wall),
                "ms",
                Some(milliseconds(alone)),
                aim,
            ));
            rows.push(Row::new(case("p50"), at(50), "ms", None, None));
            rows.push(Row::new(case("p99"), at(99), "ms", None, None));
            rows.push(Row::new(case("daemon CPU"), cpu, "ms", None, None));
        }
        Ok(rows)
    }

    /// A call of the shim for pod `index`.
    pub(super) fn call(&self, verb: &str, index: usize) -> Call {
        let netns = format!("/proc/{}/fd/{}", std::process::id(), self.container.as_fd().as_raw_fd());
        let uid = self.uids.get(index).map_or("", String::as_str);
        let args =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{index};K8S_POD_UID={uid}");
        let environment: Vec<(&'static str, OsString)> = vec![
            ("CNI_COMMAND", verb.into()),
            ("CNI_CONTAINERID", format!("container-{index}").into()),
            ("CNI_NETNS", netns.into()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_PATH", self.programs.clone().into()),
            ("CNI_ARGS", args.into()),
        ];
        Call { environment, stdin: self.conf.clone(), ..Call::new(self.programs.join("multus-shim")) }
    }

    /// Resident memory of the daemon in megabytes.
    pub(super) fn memory(&self) -> Result<f64> {
        resident(self.daemon.id())
    }

    /// That of the process that starts its delegates.
    pub(super) fn starter(&self) -> Result<f64> {
        self.starters()?.into_iter().map(resident).sum()
    }

    /// How many files the daemon has open.
    pub(super) fn files(&self) -> Result<f64> {
        files(self.daemon.id())
    }

    /// And the process that starts its delegates.
    pub(super) fn starter_files(&self) -> Result<f64> {
        self.starters()?.into_iter().map(files).sum()
    }

    fn starters(&self) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", self.daemon.id()))? {
            let children = std::fs::read_to_string(task?.path().join("children"))?;
            for child in children.split_whitespace() {
                found.push(child.parse()?);
            }
        }
        Ok(found)
    }

    /// User and system time of the daemon itself in milliseconds.
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.daemon.id()))?;
        let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
        let ticks: u32 =
            rest.split_whitespace().skip(11).take(2).map(str::parse::<u32>).sum::<Result<u32, _>>()?;
        // The kernel counts in hundredths of a second for everybody outside.
        Ok(f64::from(ticks) * 10.0)
    }
}

/// Runs all calls at the same time; how long that took, and each of them.
pub(super) fn at_once(calls: &[Call]) -> Result<(Duration, Vec<Duration>)> {
    let start = Instant::now();
    let each = std::thread::scope(|scope| {
        let threads: Vec<_> = calls.iter().map(|call| scope.spawn(|| call.measure())).collect();
        threads
            .into_iter()
            .map(|thread| Ok(thread.join().map_err(|_| anyhow!("a thread panicked"))??.wall))
            .collect::<Result<Vec<_>>>()
    })?;
    Ok((start.elapsed(), each))
}

/// Open files of a process.
fn files(pid: u32) -> Result<f64> {
    Ok(u32::try_from(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())?.into())
}

/// Resident memory of a process in megabytes.
fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024.0 / 1e6)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A network namespace that lives as long as the value.
pub(super) fn new_netns() -> Result<Netns> {
    let make = || -> Result<Netns> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        Ok(Netns::current()?)
    };
    std::thread::spawn(make).join().map_err(|_| anyhow!("a thread panicked"))?
}
