//! `podrail-e2e`: the conformance suite and the demo, run on the node itself.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use e2e::bench::{self, Bench};
use e2e::node::Grade;
use e2e::prepare::Sources;
use e2e::session::Setup;
use e2e::terminal::Terminal;
use e2e::{demo, keep, run, scenarios, sim};
use tracing_subscriber::EnvFilter;

/// Shows that pods get SR-IOV virtual functions as they should. Runs as root on the node, whose files it changes.
#[derive(Debug, Parser)]
#[command(name = "podrail-e2e", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Runs the scenarios; the last line is "N passed, N failed".
    Scenarios {
        #[command(flatten)]
        node: NodeArgs,
        /// Runs only the scenarios with this text in their name, or another one that is given.
        #[arg(long)]
        filter: Vec<String>,
        /// Writes what came of each scenario as JSON.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
    /// Names the scenarios.
    List,
    /// Tells the story of a pod that gets a VF.
    Demo {
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Prepares this node of a cluster, which may have others, and keeps it so until SIGTERM.
    ///
    /// May be called again, after a reboot for one. Pods and networks are left as they are.
    Node {
        #[command(flatten)]
        sources: SourceArgs,
        /// The cluster; this node has its host name there.
        #[arg(long, value_name = "FILE")]
        kubeconfig: PathBuf,
    },
    /// Measures what the programs cost, and compares it; see docs/benchmarks.md.
    Bench {
        /// What is measured.
        bench: Bench,
        #[command(flatten)]
        options: bench::Options,
        /// Writes the figures as JSON.
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Starts a container of the simulated runtime.
    #[command(hide = true)]
    SimContainer {
        /// What to start.
        bundle: PathBuf,
    },
    /// Is the first process of a container of the simulated runtime.
    #[command(hide = true)]
    SimInit {
        /// What to become.
        bundle: PathBuf,
    },
}

#[derive(Debug, Args)]
struct NodeArgs {
    /// What surrounds the programs under test.
    #[arg(long, value_enum, default_value = "sim")]
    node: NodeKind,
    #[command(flatten)]
    sources: SourceArgs,
    /// The cluster, for --node kubernetes.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct SourceArgs {
    /// Folder with multus, sriov and the device plugin.
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,
    /// Folder with the reference CNI plugins.
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/cni")]
    reference: PathBuf,
    /// How many VFs are bound to vfio-pci.
    #[arg(long, value_name = "N", default_value_t = 2)]
    vfio: usize,
    /// Multus in thick mode: multus-shim and multus-daemon in place of multus.
    #[arg(long)]
    thick: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum NodeKind {
    /// Stand-ins for API server, kubelet and containerd, in this process.
    Sim,
    /// The Kubernetes that `hack/kubernetes up` started.
    Kubernetes,
}

impl NodeArgs {
    fn setup(self) -> Setup {
        Setup {
            grade: match self.node {
                NodeKind::Sim => Grade::Simulated,
                NodeKind::Kubernetes => Grade::Kubernetes,
            },
            kubeconfig: self.kubeconfig,
            sources: self.sources.into(),
        }
    }
}

impl From<SourceArgs> for Sources {
    fn from(args: SourceArgs) -> Sources {
        Sources { programs: args.programs, reference: args.reference, vfio: args.vfio, thick: args.thick }
    }
}

fn main() -> ExitCode {
    match act(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("podrail-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(verb: Verb) -> Result<ExitCode> {
    match verb {
        // Namespaces are entered before any other thread exists.
        Verb::SimContainer { bundle } => Ok(sim::runtime::supervise(&bundle)?.into()),
        Verb::SimInit { bundle } => sim::runtime::init(&bundle).map(|()| ExitCode::SUCCESS),
        Verb::List => {
            for scenario in scenarios::ALL {
                println!("{}", scenario.name);
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Scenarios { node, filter, report } => {
            on_node(async { run::run(&node.setup(), scenarios::ALL, &filter, report.as_deref()).await })
        }
        Verb::Bench { bench, options, output } => {
            bench::run(bench, &options, &output).map(|()| ExitCode::SUCCESS)
        }
        Verb::Node { sources, kubeconfig } => {
            on_node(async { keep::keep(&sources.into(), &kubeconfig).await.map(|()| true) })
        }
        Verb::Demo { node } => on_node(async { demo::tell(&node.setup()).await.map(|()| true) }),
    }
}

/// Runs `task`; the exit code is that of its success.
fn on_node(task: impl Future<Output = Result<bool>>) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "run this as root, on a node whose files it may change: see hack/lab"
    );
    let mut terminal = Terminal::keep()?;
    let filter = EnvFilter::try_from_env("PODRAIL_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    let writer = std::sync::Mutex::new(terminal.writer()?);
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(writer).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok(match runtime.block_on(task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            terminal.complain(&error);
            ExitCode::FAILURE
        }
    })
}
