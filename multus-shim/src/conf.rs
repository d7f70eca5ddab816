//! What the shim itself reads of the configuration; the rest is the daemon's.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::json::Value;

/// The shim's part of the configuration.
#[derive(Debug)]
pub(crate) struct Conf {
    /// `cniVersion`; empty when the configuration says none.
    pub(crate) version: String,
    /// The daemon's socket.
    pub(crate) socket: PathBuf,
    /// Where a DEL is kept that the daemon cannot take.
    pub(crate) pending: PathBuf,
    /// Where errors are logged.
    pub(crate) log: Log,
}

/// Where errors are logged.
#[derive(Debug)]
pub(crate) struct Log {
    file: Option<PathBuf>,
    to_stderr: bool,
}

impl Conf {
    /// Reads the configuration of a call. A value of the wrong type is the daemon's to complain about.
    ///
    /// # Errors
    /// When it is no JSON.
    pub(crate) fn read(stdin: &[u8]) -> Result<Self, String> {
        let conf = Value::parse(stdin)?;
        let path = |key, default: &str| PathBuf::from(conf.text(key).unwrap_or(default));
        let level = conf.text("logLevel").unwrap_or("panic").to_ascii_lowercase();
        let is_logged = matches!(level.as_str(), "error" | "verbose" | "debug");
        Ok(Conf {
            version: conf.text("cniVersion").unwrap_or_default().to_owned(),
            socket: path("daemonSocketDir", "/run/multus/").join("multus.sock"),
            pending: path("cniDir", "/var/lib/cni/multus").join("pending"),
            log: Log {
                file: conf.text("logFile").map(PathBuf::from).filter(|_| is_logged),
                to_stderr: conf.get("logToStderr") == Some(&Value::Bool(true)),
            },
        })
    }
}

impl Log {
    /// Writes one line. No call fails for want of a log.
    pub(crate) fn error(&self, message: &str) {
        let line = format!("{} [error] {message}\n", now());
        if self.to_stderr {
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
        if let Some(file) = &self.file {
            let opened = OpenOptions::new().create(true).append(true).open(file);
            let _ = opened.and_then(|mut file| file.write_all(line.as_bytes()));
        }
    }
}

/// The time by RFC 3339, in UTC.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    rfc3339(since)
}

fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The date of a day since 1970. Years are counted from March, so that the leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn defaults_and_any_case() {
        let conf = Conf::read(br#"{"name":"x","logFile":"/l","daemonSocketDir":null}"#).unwrap();
        assert_eq!(conf.socket, Path::new("/run/multus/multus.sock"));
        assert_eq!(conf.pending, Path::new("/var/lib/cni/multus/pending"));
        assert_eq!((conf.version.as_str(), conf.log.file, conf.log.to_stderr), ("", None, false));
        let conf = Conf::read(
            br#"{"CniVersion":"1.0.0","DaemonSocketDir":"/s","CNIDir":"/c","LogFile":"/l","logLevel":"Verbose","logToStderr":true}"#,
        )
        .unwrap();
        assert_eq!(
            (conf.socket.as_path(), conf.pending.as_path()),
            (Path::new("/s/multus.sock"), Path::new("/c/pending"))
        );
        assert_eq!(conf.version, "1.0.0");
        assert_eq!((conf.log.file.as_deref(), conf.log.to_stderr), (Some(Path::new("/l")), true));
        assert!(Conf::read(b"{").is_err());
    }

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_790_000_000, "2026-09-21T14:13:20Z"),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }
}
