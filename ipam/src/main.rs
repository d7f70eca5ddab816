//! The `whereabouts` IPAM plugin, and the daemon that works beside it.

use std::process::ExitCode;

use ipam::metrics;
use ipam::plugin::Whereabouts;
use ipam::tend;

fn main() -> ExitCode {
    let plugin = Whereabouts::default();
    let mut arguments = std::env::args_os().skip(1);
    // A runtime gives no arguments.
    match arguments.next() {
        Some(command) if command == "metrics" => metrics::main(arguments, &plugin.places),
        Some(command) if command == "tend" => tend::main(arguments, &plugin.places),
        _ => cni::skel::main(&plugin),
    }
}
