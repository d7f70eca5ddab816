//! The log: `<RFC 3339 time> [<level>] <text>`, to a file, to standard error, or both.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogConf, LogLevel};
use crate::rotation;

/// Starts logging as the configuration says. What is wrong with it is told on standard error and ignored: no pod
/// fails for want of a log.
pub fn start(conf: &LogConf) {
    if let Some(level) = &conf.unknown_level {
        eprintln!(
            "multus logging: unknown log level {level:?}; it must be one of debug, verbose, error, panic"
        );
    }
    let file = conf.file.as_ref().and_then(|path| {
        if let Err(e) = rotation::rotate(path, &conf.rotation) {
            eprintln!("multus logging: logFile {} is not rotated: {e}", path.display());
        }
        let opened = OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(|e| eprintln!("multus logging: cannot open logFile {}: {e}", path.display())).ok()
    });
    let sinks = Sinks { file, stderr: conf.to_stderr };
    let level = match conf.level {
        LogLevel::Panic | LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Verbose => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::sync::Mutex::new(sinks))
        .event_format(Line)
        .finish();
    // Fails only when a log was started before, which then stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Sinks {
    file: Option<File>,
    stderr: bool,
}

impl Write for Sinks {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // One sink that fails must not silence the other.
        if let Some(file) = &mut self.file {
            let _ = file.write_all(line);
        }
        if self.stderr {
            let _ = io::stderr().write_all(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN | Level::INFO => "verbose",
            Level::DEBUG | Level::TRACE => "debug",
        };
        SystemTime.format_time(&mut writer)?;
        write!(writer, " [{level}] ")?;
        let mut message = Message(&mut writer, Ok(()));
        event.record(&mut message);
        message.1?;
        writeln!(writer)
    }
}

/// Writes the text of an event and leaves out structured fields, which only libraries have.
struct Message<'a, 'b>(&'a mut Writer<'b>, fmt::Result);

impl Visit for Message<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" && self.1.is_ok() {
            self.1 = write!(self.0, "{value:?}");
        }
    }
}
