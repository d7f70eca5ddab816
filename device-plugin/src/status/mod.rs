//! What the running plugin tells about itself: health, metrics, and where every device is.

mod exposition;
mod metrics;
mod server;
mod traffic;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use host::Sysfs;
use hyper::StatusCode;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::allocations::Allocations;
use crate::away;
use crate::config::Conf;
use crate::device::Device;
use crate::explain::Report;
use crate::pool::{self, Pool};
use exposition::Exposition;
use server::Page;

pub(crate) use metrics::{Extent, Metrics};
pub(crate) use server::{Address, serve};

/// How old the newest look at the devices may be in a healthy process, which looks every 30 s.
const STALE: Duration = Duration::from_secs(120);
/// How long kubelet may take to say who holds what.
const KUBELET_LIMIT: Duration = Duration::from_secs(1);

/// What the plugin knows, all of one moment.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) conf: Arc<Conf>,
    pub(crate) devices: Vec<Arc<Device>>,
    /// What containers hold, as kubelet last said.
    pub(crate) allocations: Arc<Allocations>,
    /// What they may hold besides, while kubelet does not say: what the devices were sorted by.
    pub(crate) holdings: Arc<Allocations>,
    pub(crate) pools: Vec<Arc<Pool>>,
    /// When the devices were looked at.
    pub(crate) scanned: Instant,
}

impl View {
    /// Where every device is, and why.
    pub(crate) async fn report(&self) -> Report {
        let away = away::find(&self.devices).await;
        let (pools, verdicts) = pool::judge(&self.conf, &self.devices, &self.holdings);
        Report::new(&self.conf, &pools, verdicts, &self.allocations, &away)
    }

    fn resources(&self) -> Vec<String> {
        self.conf.pools.iter().map(|pool| pool.resource.to_string()).collect()
    }
}

/// Answers what is asked.
#[derive(Debug)]
pub(crate) struct Status {
    /// `None` until the devices have been looked at.
    pub(crate) view: watch::Receiver<Option<Arc<View>>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) sysfs: Sysfs,
    pub(crate) pod_resources: PathBuf,
}

const PATHS: &str = "\
/metrics        for Prometheus
/healthz        whether the plugin works
/readyz         whether kubelet listens to all resources
/debug/devices  where every device is, and why; with ?output=json for programs
";

impl Status {
    async fn page(&self, path: &str, query: &str) -> Page {
        let view = self.view.borrow().clone();
        match (path, view) {
            ("/healthz" | "/livez", view) => verdict(ailment(view.as_deref())),
            ("/readyz", view) => verdict(self.unready(view.as_deref())),
            ("/metrics", view) => {
                let text = self.metrics(view.as_deref()).await;
                Page { status: StatusCode::OK, content_type: exposition::CONTENT_TYPE, text }
            }
            ("/debug/devices", Some(view)) => devices(&view, query).await,
            ("/debug/devices", None) => verdict(Some("the devices have not been looked at yet\n".to_owned())),
            ("/", _) => Page::text(StatusCode::OK, PATHS),
            _ => Page::text(StatusCode::NOT_FOUND, PATHS),
        }
    }

    /// What keeps pods from getting devices.
    fn unready(&self, view: Option<&View>) -> Option<String> {
        let Some(view) = view else { return Some("the devices have not been looked at yet\n".to_owned()) };
        let resources = view.conf.pools.iter().map(|pool| &pool.resource);
        let unheard = resources.filter(|resource| !self.metrics.is_heard(resource));
        let lines: Vec<String> =
            unheard.map(|resource| format!("kubelet does not listen to {resource}\n")).collect();
        (!lines.is_empty()).then(|| lines.concat())
    }

    async fn metrics(&self, view: Option<&View>) -> String {
        let mut text = Exposition::default();
        text.gauge("sriov_device_plugin_build_info", "The program that runs.")
            .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        self.metrics.write(&mut text);
        if let Some(view) = view {
            let asked = tokio::time::timeout(KUBELET_LIMIT, Allocations::read(&self.pod_resources)).await;
            // What was known at the last look is better than nothing.
            let asked = asked.ok().and_then(Result::ok);
            let allocations = asked.as_ref().unwrap_or(&view.allocations);
            write_pools(view, allocations, &mut text);
            traffic::write_holders(allocations, &view.resources(), &mut text);
            traffic::write_traffic(&self.sysfs, view.devices.iter().map(AsRef::as_ref), &mut text).await;
        }
        text.into_text()
    }
}

fn write_pools(view: &View, allocations: &Allocations, text: &mut Exposition) {
    text.gauge("sriov_device_plugin_pools", "Resources that are configured.").sample(&[], view.pools.len());
    let mut family = text.gauge("sriov_device_plugin_devices", "Devices that are offered.");
    for pool in &view.pools {
        let resource = pool.conf.resource.to_string();
        let healthy = pool.healthy();
        for (health, count) in [("healthy", healthy), ("unhealthy", pool.offers.len() - healthy)] {
            family.sample(&[("resource", &resource), ("health", health)], count);
        }
    }
    let mut family = text.gauge("sriov_device_plugin_devices_held", "Devices that containers hold.");
    for resource in view.resources() {
        family.sample(&[("resource", &resource)], allocations.of(&resource).count());
    }
}

/// What is wrong with the process, which a restart could mend.
fn ailment(view: Option<&View>) -> Option<String> {
    let age = view?.scanned.elapsed();
    (age > STALE).then(|| format!("the devices were last looked at {age:?} ago\n"))
}

fn verdict(problem: Option<String>) -> Page {
    match problem {
        None => Page::text(StatusCode::OK, "ok\n"),
        Some(problem) => Page::text(StatusCode::SERVICE_UNAVAILABLE, problem),
    }
}

async fn devices(view: &View, query: &str) -> Page {
    let report = view.report().await;
    if query.split('&').all(|pair| pair != "output=json") {
        return Page::text(StatusCode::OK, report.to_string());
    }
    match serde_json::to_string_pretty(&report) {
        Ok(text) => Page { status: StatusCode::OK, content_type: "application/json", text },
        Err(error) => Page::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
