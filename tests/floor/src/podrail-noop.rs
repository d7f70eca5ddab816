//! Does nothing: what starting and ending a static program costs on this machine, for `podrail-e2e bench`.

fn main() {}
