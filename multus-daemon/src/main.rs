//! `multus-daemon`: the daemon of thick mode.

use std::process::ExitCode;

use multus::node::Node;
use multus_daemon::Error;
use multus_daemon::calls::Calls;
use multus_daemon::cli::{Cli, Verb};
use multus_daemon::conf::DaemonConf;
use multus_daemon::daemon;

fn main() -> ExitCode {
    let cli = match Cli::of_process() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match act(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", cli.name);
            error.exit_code()
        }
    }
}

fn act(cli: &Cli) -> Result<(), Error> {
    match &cli.verb {
        Verb::Daemon { config } => {
            let conf = DaemonConf::load(config)?;
            multus::log::start(&conf.log);
            serve(conf)
        }
    }
}

fn serve(conf: DaemonConf) -> Result<(), Error> {
    let node_name = std::env::var("MULTUS_NODE_NAME").ok().filter(|name| !name.is_empty());
    // Calls have threads of their own; what is left is waiting.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(Calls::limit(&conf))
        .enable_all()
        .build()
        .map_err(|e| Error::Usage(format!("cannot start: {e}")))?;
    runtime.block_on(daemon::run(conf, Node::default(), node_name))
}
