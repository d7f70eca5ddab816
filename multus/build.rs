//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The shipped program is started for every call. Code and constants in one segment instead of three is less for the
    // kernel to map and to fault in, and addresses to be filled in at the start take an eighth of the room when they are
    // packed (docs/benchmarks.md).
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|libc| libc == "musl") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,noseparate-code");
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
