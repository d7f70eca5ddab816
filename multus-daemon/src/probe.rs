//! Asks a daemon how it is, for the probes of a manifest.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::{Error, socket};

const PATIENCE: Duration = Duration::from_secs(5);

/// Whether the daemon with its socket in `directory` answers `path` with success.
///
/// # Errors
/// It does not.
pub fn probe(directory: &Path, path: &str) -> Result<(), Error> {
    let socket = directory.join(socket::NAME);
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(
            format!("GET {path} HTTP/1.1\r\nHost: dummy\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|e| Error::file("asking the daemon at", &socket, e))?;
    let status = answer.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => Err(Error::file("asking the daemon at", &socket, format!("{path}: {status:?}"))),
    }
}
