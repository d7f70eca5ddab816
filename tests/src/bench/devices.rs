//! The device plugin on fake trees of up to 16 PFs with 128 VFs each.
//!
//! The baseline of a look at the devices is the bare reading of the same files, by system calls one after the other,
//! by a program that does nothing with them.

mod plugin;
mod tree;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kubelet_api::deviceplugin::device_plugin_client::DevicePluginClient;
use kubelet_api::deviceplugin::{AllocateRequest, ContainerAllocateRequest};
use tonic::transport::Channel;

use self::plugin::{Extent, Plugin};
use self::tree::{Driver, Tree, VFS};
use super::Options;
use super::row::{Aim, Row};

/// PFs of the trees; the last has what the aims are about.
const PFS: [usize; 4] = [1, 4, 8, 16];
/// Calls of Allocate that are measured.
const CALLS: usize = 2000;
/// How long an idle plugin is watched, in parts: longer than it takes to the next regular look.
const IDLE_PARTS: usize = 18;
const IDLE_PART: Duration = Duration::from_secs(2);

pub(super) fn measure(options: &Options) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut rows = Vec::new();
    let mut smallest = None;
    for pfs in PFS {
        let tree = Tree::new(pfs)?;
        let plugin = runtime.block_on(Plugin::start(&options.programs, &tree))?;
        let bench = Bench { tree, plugin, vfs: u32::try_from(pfs * VFS)?, rounds: options.rounds };
        let aimed = Some(pfs) == PFS.last().copied();
        rows.extend(runtime.block_on(bench.looks(aimed, &mut smallest))?);
        if aimed {
            rows.extend(runtime.block_on(bench.allocate())?);
            rows.extend(bench.idle()?);
        }
        let case = bench.case("memory, resident");
        rows.push(Row::new(case, bench.plugin.memory()?, "MB", None, aimed.then_some(Aim::Value(12.0))));
    }
    Ok(rows)
}

struct Bench {
    tree: Tree,
    plugin: Plugin,
    vfs: u32,
    rounds: usize,
}

impl Bench {
    fn case(&self, what: &str) -> String {
        format!("{} VFs: {what}", self.vfs)
    }

    /// Looks at everything and at one VF, in turn with the bare reading. `smallest` is what a look at everything took
    /// for each device of the first tree.
    async fn looks(&self, aimed: bool, smallest: &mut Option<f64>) -> Result<Vec<Row>> {
        const WARM_UP: usize = 2;
        let mut times: [Vec<Duration>; 5] = Default::default();
        let mut list = self.plugin.list().await?;
        for round in 0..WARM_UP + self.rounds {
            let start = Instant::now();
            let files = self.tree.read_all()?;
            let bare_all = start.elapsed();
            ensure!(files > u64::from(self.vfs), "only {files} files read");
            let all = self.plugin.look(Extent::Everything, || self.plugin.ask_for_a_look())?;
            // Even numbers are network devices; each is taken away once before the first comes back.
            let vf = 2 * round % VFS;
            let start = Instant::now();
            self.tree.read_one(vf)?;
            let bare_one = start.elapsed();
            self.tree.bind(vf, if 2 * round % (2 * VFS) < VFS { Driver::Other } else { Driver::Netdev });
            let start = Instant::now();
            let one = self.plugin.look(Extent::Some, || self.plugin.announce(&Tree::devpath(vf)))?;
            let message = tokio::time::timeout(Duration::from_secs(10), list.message()).await;
            message.context("the list did not change")??.context("the list ended")?;
            if round >= WARM_UP {
                let told = start.elapsed();
                for (times, time) in times.iter_mut().zip([all, bare_all, one, bare_one, told]) {
                    times.push(time);
                }
            }
        }
        let [all, bare_all, one, bare_one, told] = times.map(|times| quantile(times, 50));
        let each = all * 1000.0 / f64::from(self.vfs);
        let first = *smallest.get_or_insert(each);
        let aim = |bound| aimed.then_some(Aim::Value(bound));
        Ok(vec![
            Row::new(
                self.case("look at everything, p50 / bare reading"),
                all,
                "ms",
                Some(bare_all),
                aim(60.0),
            ),
            Row::new(
                self.case("the same for each VF / in the smallest tree"),
                each,
                "us",
                Some(first),
                aimed.then_some(Aim::Ratio(1.5)),
            ),
            Row::new(self.case("one-device update, p50 / bare reading"), one, "ms", Some(bare_one), aim(5.0)),
            Row::new(
                self.case("from its event to kubelet's list, p50 (150 ms of it gathering)"),
                told,
                "ms",
                None,
                aim(1000.0),
            ),
        ])
    }

    async fn allocate(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (resource, offset) in [("netdevice", 0), ("vfio", 1)] {
            let mut client = DevicePluginClient::new(self.plugin.connect(resource).await?);
            let mut times = Vec::new();
            for call in 0..CALLS {
                // The VFs of the first PF have changed drivers; those of the second have not.
                let id = Tree::vf(VFS + 2 * (call % (VFS / 2)) + offset);
                times.push(allocate(&mut client, id).await?);
            }
            let p50 = quantile(times.clone(), 50);
            rows.push(Row::new(self.case(&format!("Allocate, {resource}, p50")), p50, "ms", None, None));
            let p99 = quantile(times, 99);
            let case = self.case(&format!("Allocate, {resource}, p99"));
            rows.push(Row::new(case, p99, "ms", None, Some(Aim::Value(1.0))));
        }
        Ok(rows)
    }

    fn idle(&self) -> Result<Vec<Row>> {
        let mut parts = Vec::new();
        for _ in 0..IDLE_PARTS {
            let before = self.plugin.cpu()?;
            std::thread::sleep(IDLE_PART);
            parts.push(self.plugin.cpu()?.saturating_sub(before));
        }
        let watched = IDLE_PART.as_secs_f64() * f64::from(u32::try_from(IDLE_PARTS)?);
        let all = milliseconds(parts.iter().sum()) / watched;
        let quiet = quantile(parts, 50) / IDLE_PART.as_secs_f64();
        Ok(vec![
            Row::new(
                self.case("CPU while idle, between regular looks"),
                quiet,
                "ms per s",
                None,
                Some(Aim::Value(0.1)),
            ),
            Row::new(self.case("CPU while idle, with regular looks"), all, "ms per s", None, None),
        ])
    }
}

async fn allocate(client: &mut DevicePluginClient<Channel>, id: String) -> Result<Duration> {
    let container = ContainerAllocateRequest { devices_ids: vec![id] };
    let request = AllocateRequest { container_requests: vec![container] };
    let start = Instant::now();
    client.allocate(request).await?;
    Ok(start.elapsed())
}

/// In milliseconds.
fn quantile(mut times: Vec<Duration>, percent: usize) -> f64 {
    times.sort_unstable();
    milliseconds(times.get(times.len() * percent / 100).copied().unwrap_or_default())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
