//! `multus-daemon`: the daemon of thick mode, and what puts multus on a node and takes it away.

use std::process::ExitCode;
use std::time::Duration;

use multus::config::{LogConf, LogLevel, Rotation};
use multus::node::Node;
use multus_daemon::calls::Calls;
use multus_daemon::cli::{Verb, print};
use multus_daemon::conf::DaemonConf;
use multus_daemon::enrolment::Enrolment;
use multus_daemon::install::{THICK, THIN, install};
use multus_daemon::uninstall::{Places, uninstall};
use multus_daemon::{Error, approver, daemon, enrolment, entrypoint, probe, starter};

/// How long a thread of calls is kept that has none.
const KEPT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let done = match Verb::of_process() {
        Verb::Print(text, code) => return print(&text, code),
        verb => act(verb),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("multus-daemon: {error}");
            error.exit_code()
        }
    }
}

fn act(verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::Daemon { config } => {
            let conf = DaemonConf::load(&config)?;
            multus::log::start(&conf.log);
            run(Calls::limit(&conf), daemon::run(conf, Node::default(), node_name()))
        }
        Verb::Thin(values) => {
            multus::log::start(&told());
            run(1, async move { entrypoint::run(&values).await })
        }
        Verb::Install { thick, source, target } => {
            multus::log::start(&told());
            install(&source, &target, if thick { &THICK } else { &THIN })
        }
        Verb::Uninstall { config, bin_dir, conf_dir, source, wait } => {
            multus::log::start(&told());
            let conf = DaemonConf::load(&config)?;
            let places = Places { bin_dir, conf_dir, source };
            run(Calls::limit(&conf), async move { uninstall(conf, &places, wait).await.map(drop) })
        }
        Verb::Enrol(values) => {
            multus::log::start(&told());
            let enrolment = Enrolment::of_flags(&values, node_name())?;
            run(1, enrolment::run(enrolment))
        }
        Verb::Approve { kubeconfig } => {
            multus::log::start(&told());
            run(1, approver::run(kubeconfig))
        }
        Verb::StartDelegates { root } => starter::serve(root.as_deref())
            .map_err(|e| Error::Usage(format!("starting delegates for the daemon: {e}"))),
        Verb::Probe { socket_dir, path } => probe::probe(&socket_dir, &path),
        Verb::Print(..) => Ok(()),
    }
}

fn node_name() -> Option<String> {
    std::env::var("MULTUS_NODE_NAME").ok().filter(|name| !name.is_empty())
}

/// The log of what is done once: what was done, on standard error.
fn told() -> LogConf {
    LogConf {
        file: None,
        to_stderr: true,
        level: LogLevel::Verbose,
        unknown_level: None,
        rotation: Rotation::default(),
    }
}

/// Runs `work`. Calls have threads of their own, at most `threads`; what is left is waiting.
fn run(threads: usize, work: impl Future<Output = Result<(), Error>> + Send + 'static) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(threads)
        .thread_keep_alive(KEPT)
        .enable_all()
        .build()
        .map_err(|e| Error::Usage(format!("cannot start: {e}")))?;
    // Among those that work, or what it is told would have to be handed to another thread, call by call.
    let done = runtime.block_on(runtime.spawn(work));
    done.map_err(|e| Error::Usage(format!("it broke off: {e}; please report this")))?
}
