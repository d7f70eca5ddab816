//! Log files put aside when they have grown, as `logOptions` says: `multus.log` becomes
//! `multus-2026-01-31T12-00-00.000.log`, then `...log.gz`, and the oldest of those are removed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use host::lock::FileLock;
use k8s_openapi::jiff::Timestamp;

use crate::config::Rotation;

/// Somebody else is about to do it when the file is locked for longer.
const LIMIT: Duration = Duration::from_millis(100);
const STAMP: &str = "%Y-%m-%dT%H-%M-%S";

/// Puts `log` aside when it is due.
///
/// # Errors
/// When files cannot be renamed or removed.
pub(crate) fn rotate(log: &Path, rotation: &Rotation) -> io::Result<()> {
    let is_due = || {
        std::fs::metadata(log)
            .is_ok_and(|meta| meta.is_file() && rotation.max_size > 0 && meta.len() >= rotation.max_size)
    };
    if !is_due() {
        return Ok(());
    }
    // Of many calls at a time one puts the file aside; those that waited find a new one.
    let Ok(_lock) = FileLock::acquire(log, LIMIT) else { return Ok(()) };
    let now = SystemTime::now();
    if is_due() {
        let aside = aside(log, now);
        std::fs::rename(log, &aside)?;
        if rotation.compress {
            compress(&aside);
        }
    }
    for file in expired(put_aside(log)?, rotation, now) {
        std::fs::remove_file(file)?;
    }
    Ok(())
}

/// Has `gzip` of the node compress a file. It takes seconds, which no pod is to wait for, so it goes on after a call has
/// ended. Where there is no `gzip` the file stays as it is.
fn compress(file: &Path) {
    let null = Stdio::null;
    let started =
        Command::new("gzip").arg("--").arg(file).stdin(null()).stdout(null()).stderr(null()).spawn();
    match started {
        // A process that stays has to take note of its end.
        Ok(mut gzip) => drop(std::thread::Builder::new().spawn(move || gzip.wait())),
        Err(error) => eprintln!("multus logging: {} is not compressed: gzip: {error}", file.display()),
    }
}

/// The parts of the log's name around the time.
fn name_parts(log: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let extension = text(log.extension()).map(|extension| format!(".{extension}"));
    (format!("{}-", text(log.file_stem()).unwrap_or_default()), extension.unwrap_or_default())
}

fn aside(log: &Path, now: SystemTime) -> PathBuf {
    let (start, end) = name_parts(log);
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let second = i64::try_from(since.as_secs()).ok().and_then(|s| Timestamp::from_second(s).ok());
    let second = second.unwrap_or_default().strftime(STAMP);
    log.with_file_name(format!("{start}{second}.{:03}{end}", since.subsec_millis()))
}

/// What was put aside, the newest first, and when it was last written.
fn put_aside(log: &Path) -> io::Result<Vec<(PathBuf, SystemTime)>> {
    let (start, end) = name_parts(log);
    // Digits first, as in a year: other logs may begin with the name of this one.
    let is_ours = |name: &str| {
        let name = name.strip_suffix(".gz").unwrap_or(name);
        let stamp = name.strip_prefix(&start).and_then(|rest| rest.strip_suffix(&end));
        stamp.is_some_and(|stamp| {
            stamp.len() == "2026-01-31T12-00-00.000".len()
                && stamp.chars().all(|c| c.is_ascii_digit() || "-T.".contains(c))
        })
    };
    let directory = log.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if is_ours(&entry.file_name().to_string_lossy()) {
            files.push((entry.path(), entry.metadata()?.modified()?));
        }
    }
    // The names sort by time.
    files.sort();
    // What is being compressed stands beside what comes of it: that is one file, not two.
    let whole: BTreeSet<PathBuf> = files.iter().map(|(file, _)| file.clone()).collect();
    files.retain(|(file, _)| {
        file.extension() != Some(OsStr::new("gz")) || !whole.contains(&file.with_extension(""))
    });
    files.reverse();
    Ok(files)
}

fn expired(
    files: Vec<(PathBuf, SystemTime)>,
    rotation: &Rotation,
    now: SystemTime,
) -> impl Iterator<Item = PathBuf> {
    let Rotation { max_backups, max_age, .. } = *rotation;
    files.into_iter().enumerate().filter_map(move |(position, (file, written))| {
        let too_many = max_backups > 0 && position >= max_backups;
        let too_old = !max_age.is_zero() && now.duration_since(written).is_ok_and(|age| age > max_age);
        (too_many || too_old).then_some(file)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROTATION: Rotation =
        Rotation { max_size: 10, max_backups: 2, max_age: Duration::ZERO, compress: false };

    #[test]
    fn a_log_that_has_grown_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("multus.log");
        let names = || {
            let mut names: Vec<String> = std::fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        std::fs::write(directory.path().join("multus-daemon.log"), "another program's").unwrap();
        rotate(&log, &ROTATION).unwrap();
        std::fs::write(&log, "123456789").unwrap();
        rotate(&log, &ROTATION).unwrap();
        assert_eq!(names(), ["multus-daemon.log", "multus.log"], "not due");
        for round in 0..4 {
            std::fs::write(&log, format!("1234567890 {round}")).unwrap();
            rotate(&log, &ROTATION).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        let left = names();
        assert_eq!(left.len(), 3, "{left:?}");
        let newest = std::fs::read_to_string(directory.path().join(&left[1])).unwrap();
        assert!(newest.ends_with('3') && left[1].starts_with("multus-2"), "{left:?}: {newest}");
        assert!(left.contains(&"multus-daemon.log".to_owned()));
    }

    #[test]
    fn what_is_put_aside_is_compressed() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("multus.log");
        let wait_for = |count: usize| {
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            loop {
                let files = put_aside(&log).unwrap();
                let done = files.iter().filter(|(file, _)| file.extension().is_some_and(|e| e == "gz"));
                if done.count() == count && files.len() == count {
                    return files;
                }
                assert!(std::time::Instant::now() < deadline, "{files:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        // As much of a file as gzip has written.
        let partial = |file: &Path| std::fs::write(format!("{}.gz", file.display()), "").unwrap();
        std::fs::write(&log, "1234567890").unwrap();
        rotate(&log, &ROTATION).unwrap();
        let aside = put_aside(&log).unwrap();
        partial(&aside[0].0);
        assert_eq!(put_aside(&log).unwrap(), aside);
        std::fs::remove_file(aside[0].0.with_extension("log.gz")).unwrap();
        std::fs::remove_file(&aside[0].0).unwrap();

        for round in 1..=3 {
            std::fs::write(&log, format!("1234567890 {round}")).unwrap();
            rotate(&log, &Rotation { compress: true, ..ROTATION }).unwrap();
            wait_for(round.min(2));
        }
        let newest = wait_for(2).remove(0).0;
        let content = std::process::Command::new("gzip").arg("-dc").arg(newest).output().unwrap();
        assert_eq!(content.stdout, b"1234567890 3");
    }

    #[test]
    fn old_files_expire() {
        let now = SystemTime::now();
        let hours = |hours: u64| now - Duration::from_secs(3600 * hours);
        let files = vec![("new".into(), hours(1)), ("middle".into(), hours(3)), ("old".into(), hours(9))];
        let expired = |max_backups, max_age| -> Vec<PathBuf> {
            let rotation =
                Rotation { max_size: 1, max_backups, max_age: Duration::from_secs(max_age), ..ROTATION };
            super::expired(files.clone(), &rotation, now).collect()
        };
        assert_eq!(expired(0, 0), [""; 0].map(PathBuf::from));
        assert_eq!(expired(0, 3600 * 5), [PathBuf::from("old")]);
        assert_eq!(expired(1, 0), ["middle", "old"].map(PathBuf::from));
    }
}
