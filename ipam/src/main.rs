//! The `whereabouts` IPAM plugin.

use std::process::ExitCode;

use ipam::plugin::Whereabouts;

fn main() -> ExitCode {
    cni::skel::main(&Whereabouts::default())
}
