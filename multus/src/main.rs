//! The thin `multus` binary: a CNI plugin that runs once per call.

use std::process::ExitCode;

use dlmalloc::GlobalDlmalloc;
use multus::node::Node;
use multus::plugin::Multus;

/// musl's allocator gives memory back to the kernel and fetches it anew all along a call that takes milliseconds; this
/// one keeps it (docs/dependencies.md).
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    if std::env::args().skip(1).any(|arg| matches!(arg.as_str(), "-version" | "--version" | "-v")) {
        println!("multus: version:v{}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    cni::skel::main(&Multus { node: Node::default() })
}
