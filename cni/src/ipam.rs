//! Delegation to an IPAM plugin.
//!
//! The IPAM plugin is called as the calling plugin was: with its configuration on standard input and its
//! environment, so that it reads its own `ipam` section and knows container and interface.

use crate::exec::{self, Environment};
use crate::{CniResult, Command, Error, Request};

/// Asks the IPAM plugin `kind` for addresses.
///
/// # Errors
/// The plugin's error; code 999 when it answers without an address.
pub fn add(kind: &str, request: &Request) -> Result<CniResult, Error> {
    let output = call(kind, Command::Add, request)?;
    let result = CniResult::parse(&output, request.version).map_err(|e| failed(kind, e))?;
    if result.ips.is_empty() {
        return Err(Error::internal(format!(
            "IPAM plugin {kind:?} returned missing IP config: it gave no address"
        )));
    }
    Ok(result)
}

/// Gives the addresses back.
///
/// # Errors
/// The plugin's error.
pub fn del(kind: &str, request: &Request) -> Result<(), Error> {
    call(kind, Command::Del, request).map(drop)
}

/// Has the plugin verify that the addresses are still held.
///
/// # Errors
/// The plugin's error.
pub fn check(kind: &str, request: &Request) -> Result<(), Error> {
    call(kind, Command::Check, request).map(drop)
}

/// Passes GC on, with the valid attachments of the request.
///
/// # Errors
/// The plugin's error.
pub fn gc(kind: &str, request: &Request) -> Result<(), Error> {
    call(kind, Command::Gc, request).map(drop)
}

/// Asks whether addresses can be given.
///
/// # Errors
/// The plugin's error, unchanged.
pub fn status(kind: &str, request: &Request) -> Result<(), Error> {
    call(kind, Command::Status, request).map(drop)
}

fn call(kind: &str, command: Command, request: &Request) -> Result<Vec<u8>, Error> {
    let args = request.args.to_string();
    let environment = Environment {
        container_id: &request.container_id,
        netns: request.netns.as_deref(),
        ifname: &request.ifname,
        args: &args,
        path: &request.path,
    };
    exec::find(kind, &request.path)
        .and_then(|program| exec::run(&program, command, &environment, &request.config.to_vec()))
        .map_err(|e| failed(kind, e))
}

fn failed(kind: &str, error: Error) -> Error {
    error.context(format!("IPAM plugin {kind:?}"))
}
