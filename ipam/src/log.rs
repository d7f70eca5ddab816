//! The log: to a file, or errors to standard error.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use tracing::Level;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Starts logging. What cannot be opened is replaced by standard error: logging is no reason to refuse an address.
pub(crate) fn start(file: Option<&Path>, level: Option<&str>) {
    let opened = file.map(|path| (path, OpenOptions::new().create(true).append(true).open(path)));
    let writer = match opened {
        Some((_, Ok(file))) => BoxMakeWriter::new(Mutex::new(file)),
        Some((path, Err(error))) => {
            eprintln!("whereabouts: log_file {}: {error}; logging to standard error", path.display());
            BoxMakeWriter::new(io::stderr)
        }
        None => BoxMakeWriter::new(io::stderr),
    };
    let level = match level.unwrap_or_default().to_ascii_lowercase().as_str() {
        "debug" => Level::DEBUG,
        "verbose" => Level::INFO,
        "panic" | "error" => Level::ERROR,
        "" => Level::WARN,
        unknown => {
            eprintln!("whereabouts: log_level {unknown:?} is none of debug, verbose, error and panic");
            Level::WARN
        }
    };
    let subscriber = tracing_subscriber::fmt().with_max_level(level).with_writer(writer);
    // Only a second call in one process finds a subscriber in place; it keeps that one.
    let _ = subscriber.with_target(false).with_ansi(false).try_init();
}
