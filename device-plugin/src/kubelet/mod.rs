//! The plugin as kubelet sees it: a socket per resource, the service behind it, and the way it is announced.

mod backoff;
mod endpoint;
mod register;
mod service;
mod socket;

pub(crate) use endpoint::{Endpoint, Patience};
pub(crate) use service::Granter;
pub(crate) use socket::sweep as sweep_sockets;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
