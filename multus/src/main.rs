//! The thin `multus` binary: a CNI plugin that runs once per call.

use multus::node::Node;
use multus::plugin::Multus;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().skip(1).any(|arg| matches!(arg.as_str(), "-version" | "--version" | "-v")) {
        println!("multus: version:v{}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    cni::skel::main(&Multus { node: Node::default() })
}
