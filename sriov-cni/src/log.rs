//! Logging, as the configuration asks for it: standard error, or a file of bounded size.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cni::Request;
use tracing::{Level, Span};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config;

/// A log file beyond this size is set aside.
const SIZE_LIMIT: u64 = 100 << 20;
/// How many old log files are kept.
const KEPT: u32 = 5;

/// Starts logging for one call. What cannot be opened is replaced by standard error: logging is no reason
/// to refuse a container its network.
pub(crate) fn start(request: &Request) -> Span {
    let (level, file) = config::logging_of(&request.config);
    let writer = match file.map(|path| open(&path).map_err(|error| (path, error))) {
        Some(Ok(file)) => BoxMakeWriter::new(Mutex::new(file)),
        Some(Err((path, error))) => {
            eprintln!("sriov: logFile {}: {error}; logging to standard error", path.display());
            BoxMakeWriter::new(io::stderr)
        }
        None => BoxMakeWriter::new(io::stderr),
    };
    let subscriber = tracing_subscriber::fmt().with_max_level(level_of(level.as_deref())).with_writer(writer);
    // Only a second call in one process finds a subscriber in place; it keeps that one.
    let _ = subscriber.with_target(false).with_ansi(false).try_init();
    let netns = request.netns.clone().unwrap_or_default();
    tracing::info_span!(
        "sriov",
        command = request.command.as_str(),
        network = %request.name,
        container = %request.container_id,
        ifname = %request.ifname,
        netns = %netns.display(),
    )
}

fn level_of(text: Option<&str>) -> Level {
    match text.unwrap_or_default().to_ascii_lowercase().as_str() {
        "panic" | "error" => Level::ERROR,
        "warning" => Level::WARN,
        "debug" => Level::DEBUG,
        _ => Level::INFO,
    }
}

fn open(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > SIZE_LIMIT) {
        rotate(path)?;
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn rotate(path: &Path) -> io::Result<()> {
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    for number in (1..KEPT).rev() {
        // There are fewer old files at first.
        let _ = fs::rename(numbered(number), numbered(number + 1));
    }
    fs::rename(path, numbered(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_in_any_case_and_default_to_info() {
        for (text, level) in [
            (None, Level::INFO),
            (Some("DEBUG"), Level::DEBUG),
            (Some("warning"), Level::WARN),
            (Some("panic"), Level::ERROR),
            (Some("verbose"), Level::INFO),
        ] {
            assert_eq!(level_of(text), level, "{text:?}");
        }
    }

    #[test]
    fn a_full_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder/log");
        open(&path).unwrap();
        for _ in 0..KEPT + 2 {
            File::create(&path).unwrap().set_len(SIZE_LIMIT + 1).unwrap();
            open(&path).unwrap();
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1 + KEPT as usize);
    }
}
