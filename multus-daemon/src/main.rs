//! `multus-daemon`: the daemon of thick mode, and what puts multus on a node and takes it away.

use std::process::ExitCode;

use multus::config::{LogConf, LogLevel, Rotation};
use multus::node::Node;
use multus_daemon::calls::Calls;
use multus_daemon::cli::{Verb, print};
use multus_daemon::conf::DaemonConf;
use multus_daemon::enrolment::Enrolment;
use multus_daemon::install::{THICK, THIN, install};
use multus_daemon::uninstall::{Places, uninstall};
use multus_daemon::{Error, approver, daemon, enrolment, entrypoint, probe, starter};

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
            runtime(Calls::limit(&conf))?.block_on(daemon::run(conf, Node::default(), node_name()))
        }
        Verb::Thin(values) => {
            multus::log::start(&told());
            runtime(1)?.block_on(entrypoint::run(&values))
        }
        Verb::Install { thick, source, target } => {
            multus::log::start(&told());
            install(&source, &target, if thick { &THICK } else { &THIN })
        }
        Verb::Uninstall { config, bin_dir, conf_dir, source, wait } => {
            multus::log::start(&told());
            let conf = DaemonConf::load(&config)?;
            let places = Places { bin_dir, conf_dir, source };
            runtime(Calls::limit(&conf))?.block_on(uninstall(conf, &places, wait)).map(drop)
        }
        Verb::Enrol(values) => {
            multus::log::start(&told());
            let enrolment = Enrolment::of_flags(&values, node_name())?;
            runtime(1)?.block_on(enrolment::run(enrolment))
        }
        Verb::Approve { kubeconfig } => {
            multus::log::start(&told());
            runtime(1)?.block_on(approver::run(kubeconfig))
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

/// Calls have threads of their own, at most `threads`; what is left is waiting.
fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(threads)
        .enable_all()
        .build()
        .map_err(|e| Error::Usage(format!("cannot start: {e}")))
}
