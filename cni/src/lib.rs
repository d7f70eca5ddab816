//! The Container Network Interface protocol, versions 0.1.0 to 1.1.0, from both sides.
//!
//! * A **plugin** implements [`Plugin`] and hands it to [`skel::main`]; it receives a validated [`Request`]
//!   and answers with a [`CniResult`] or an [`Error`]. [`ipam`] calls an IPAM plugin on its behalf.
//! * A **runtime** (or a plugin that delegates to whole networks) loads a [`NetworkList`] and drives it with
//!   a [`Runtime`], whose result cache is the one libcni keeps.
//!
//! There is one result model, that of 1.1.0; older versions are read into it and printed from it. Foreign
//! configuration is held as an [`Object`] of raw values, so what this crate does not know passes through
//! unchanged. The crate knows neither the kernel nor Kubernetes.
//!
//! Source of the rules: the CNI specification, <https://www.cni.dev/docs/spec/>, and the behaviour of its
//! reference library.

pub mod cache;
pub mod exec;
pub mod ipam;
pub mod names;
pub mod skel;

mod args;
mod error;
mod list;
mod object;
mod request;
mod result;
mod runtime;
mod version;
mod wire;

pub use args::Args;
pub use error::Error;
pub use list::{NetworkList, PluginConf, conf_files, load_plugins};
pub use object::Object;
pub use request::{AttachmentId, Command, Request};
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use runtime::{Attachment, Runtime};
pub use skel::Plugin;
pub use version::Version;
pub use wire::parse_cidr;
