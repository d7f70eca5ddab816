//! The conformance suite: scenarios that use a node as Kubernetes does, and a simulated node to run them on.
//!
//! The programs under test are reached only through their public faces (CNI, gRPC, annotations, files, flags), so
//! the suite can be pointed at any implementation of them.

pub mod bench;
pub mod cluster;
pub mod demo;
pub mod inside;
pub mod keep;
pub mod neighbour;
pub mod node;
pub mod pod;
pub mod prepare;
pub mod run;
pub mod scenarios;
pub mod session;
pub mod sim;
pub mod table;
pub mod terminal;
pub mod testpmd;
pub mod vfs;
pub mod wait;
