//! sriov-device-plugin: offers SR-IOV virtual functions to kubelet.

mod allocate;
mod allocations;
mod aside;
mod away;
mod cdi;
mod changes;
mod check;
mod cli;
mod config;
mod daemon;
mod ddptool;
mod device;
mod device_info;
mod discovery;
mod explain;
mod firmware;
mod inventory;
mod iommu;
mod kubelet;
mod placement;
mod places;
mod pool;
mod public_file;
mod selector;
mod status;

use std::process::ExitCode;
use std::sync::Arc;

use dlmalloc::GlobalDlmalloc;
use host::{Netlink, Sysfs};
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;

use allocations::Allocations;
use cli::{LogFormat, Options, Output, Task};
use config::Fault;
use firmware::Firmware;
use inventory::Inventory;
use status::View;

/// musl's allocator is slow, and a look at the devices makes thousands of texts (docs/dependencies.md).
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

/// As Go's `flag` package ends a program whose command line it cannot understand.
const USAGE_ERROR: u8 = 2;

/// Why the program ends without having done its task.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Configuration(#[from] config::Error),
    #[error(transparent)]
    Daemon(#[from] daemon::Error),
    #[error("cannot scan the devices: {0}")]
    Scan(#[from] host::sysfs::SysfsError),
    #[error("cannot ask for default routes: {0}")]
    Routes(#[from] host::netlink::Error),
    #[error("cannot start: {0}")]
    Runtime(#[from] std::io::Error),
    #[error("cannot write the report as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

fn main() -> ExitCode {
    let options = match cli::parse(std::env::args().skip(1), std::env::var(cli::STATUS_ADDRESS).ok()) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("sriov-device-plugin: {error}");
            return ExitCode::from(USAGE_ERROR);
        }
    };
    start_log(&options);
    run(&options).unwrap_or_else(|error| {
        eprintln!("sriov-device-plugin: {error}");
        ExitCode::FAILURE
    })
}

/// Logs to standard error. `RUST_LOG` overrules the command line.
fn start_log(options: &Options) {
    let level = match options.verbosity {
        0..5 => "info",
        5..10 => "info,sriov_device_plugin=debug",
        10.. => "info,sriov_device_plugin=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match options.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

fn run(options: &Options) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match options.task {
        Task::Serve => runtime.block_on(daemon::run(options))?,
        Task::Explain => {
            let look = runtime.block_on(Look::take(options))?;
            let report = runtime.block_on(look.view.report());
            match options.output {
                Output::Text => print!("{report}"),
                Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
            }
        }
        Task::CheckConfig => {
            let look = runtime.block_on(Look::take(options))?;
            let View { conf, devices, allocations, .. } = &look.view;
            let (pools, verdicts) = pool::judge(conf, devices, allocations);
            let findings = check::findings(conf, &look.suspicions, &pools, &verdicts);
            for finding in &findings {
                println!("{}:{finding}", options.config_file.display());
            }
            if !findings.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Help => print!("{}", cli::USAGE),
        Task::Version => println!("sriov-device-plugin {}", env!("CARGO_PKG_VERSION")),
    }
    Ok(ExitCode::SUCCESS)
}

/// One look at configuration, machine and kubelet.
struct Look {
    view: View,
    suspicions: Vec<Fault>,
}

impl Look {
    async fn take(options: &Options) -> Result<Self, Error> {
        let (conf, suspicions) = config::load(&options.config_file, &options.resource_prefix)?;
        let routes = discovery::default_routes(&Netlink::connect()?).await?;
        let devices = Inventory::read(&Sysfs::new(&options.places.sysfs), &routes)?.devices();
        let devices = Firmware::default().complete(&conf, devices).await;
        // Without a kubelet nothing is held.
        let allocations = Allocations::read(&options.places.pod_resources_socket()).await.unwrap_or_default();
        let pools = pool::sort(&conf, &devices, &allocations).into_iter().map(Arc::new).collect();
        let (conf, allocations) = (Arc::new(conf), Arc::new(allocations));
        let holdings = allocations.clone();
        let view = View { conf, devices, allocations, holdings, pools, scanned: Instant::now() };
        Ok(Self { view, suspicions })
    }
}
