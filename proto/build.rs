//! Generates the gRPC code without `protoc`, so that a fresh clone builds with nothing but Rust.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=kubelet");
    let files = protox::compile(
        ["deviceplugin/v1beta1/api.proto", "pluginregistration/v1/api.proto", "podresources/v1/api.proto"],
        ["kubelet"],
    )?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
