//! The `sriov` CNI plugin.

use std::process::ExitCode;

use host::Sysfs;
use sriov_cni::plugin::Sriov;
use sriov_cni::state::State;

fn main() -> ExitCode {
    cni::skel::main(&Sriov::new(Sysfs::default(), State::new("/var/lib/cni/sriov")))
}
