//! The `sriov` CNI plugin.

use std::process::ExitCode;

use dlmalloc::GlobalDlmalloc;
use host::Sysfs;
use sriov_cni::plugin::Sriov;
use sriov_cni::state::State;

/// musl's allocator gives memory back to the kernel and fetches it anew all along a call that takes milliseconds; this
/// one keeps it (docs/dependencies.md).
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    cni::skel::main(&Sriov::new(Sysfs::default(), State::new("/var/lib/cni/sriov")))
}
