//! The command line: that of the peer's programs, whose names this one answers to as well.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::conf::DEFAULT_FILE;

/// What is to be done.
#[derive(Debug)]
pub struct Cli {
    /// The name by which the program was called.
    pub name: String,
    /// What to do.
    pub verb: Verb,
}

/// What can be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Verb {
    /// Serve multus-shim.
    Daemon {
        /// The configuration file.
        config: PathBuf,
    },
}

impl Cli {
    /// The command line of this process; where there is nothing to do, how it is to end.
    ///
    /// # Errors
    /// After the version or help was printed, or a wrong flag named.
    pub fn of_process() -> Result<Self, ExitCode> {
        let mut arguments = std::env::args().skip(1);
        let mut config = PathBuf::from(DEFAULT_FILE);
        while let Some(argument) = arguments.next() {
            match argument.trim_start_matches('-') {
                "config" => config = arguments.next().unwrap_or_default().into(),
                "version" => {
                    println!("multus-daemon: version:v{}", env!("CARGO_PKG_VERSION"));
                    return Err(ExitCode::from(4));
                }
                _ => return Err(ExitCode::from(2)),
            }
        }
        Ok(Cli { name: "multus-daemon".to_owned(), verb: Verb::Daemon { config } })
    }
}
