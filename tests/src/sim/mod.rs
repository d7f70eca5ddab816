//! Stand-ins for what surrounds the programs under test: API server, scheduler, kubelet and container runtime.

pub mod apiserver;
pub mod kubelet;
pub mod runtime;
pub mod scheduler;
