//! Container logs in the CRI format: `<RFC 3339 time> stdout|stderr F|P <line>`.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::jiff::Timestamp;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// Longest piece of a line in one entry; containerd's limit.
const LONGEST: usize = 16 * 1024;

/// The log of one container.
#[derive(Clone, Debug)]
pub(super) struct Log(Arc<Mutex<std::fs::File>>);

impl Log {
    /// Creates the log at `path`.
    ///
    /// # Errors
    /// The file or its folder cannot be made.
    pub(super) fn create(path: &Path) -> io::Result<Log> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Log(Arc::new(Mutex::new(file))))
    }

    /// Copies `output` to the log until it ends, as stream `name`.
    pub(super) async fn copy(self, name: &'static str, output: impl AsyncRead + Unpin) {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while let Ok(1..) = output.read_until(b'\n', &mut line).await {
            let whole = line.strip_suffix(b"\n").unwrap_or(&line);
            // A log that cannot be written any more must not stop the container.
            let _ = self.write(&entries(&Timestamp::now().to_string(), name, whole));
            line.clear();
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        use std::io::Write as _;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes)
    }
}

/// One line as log entries: all but the last are marked as partial.
fn entries(time: &str, stream: &str, line: &[u8]) -> Vec<u8> {
    let mut pieces = line.chunks(LONGEST).peekable();
    let mut bytes = Vec::new();
    loop {
        let piece = pieces.next().unwrap_or_default();
        let tag = if pieces.peek().is_some() { "P" } else { "F" };
        bytes.extend(format!("{time} {stream} {tag} ").bytes());
        bytes.extend(piece);
        bytes.push(b'\n');
        if tag == "F" {
            return bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_entries() {
        assert_eq!(entries("T", "stdout", b"hello"), b"T stdout F hello\n");
        assert_eq!(entries("T", "stderr", b""), b"T stderr F \n");
        let long = vec![b'x'; LONGEST + 1];
        let text = String::from_utf8(entries("T", "stdout", &long)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("T stdout P xxx"));
        assert_eq!(lines[1], "T stdout F x");
    }
}
