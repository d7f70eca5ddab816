//! The command line, in the syntax of Go's `flag` package: that is what manifests and entry points already use.

use std::path::PathBuf;

use crate::places::Places;
use crate::status::Address;

/// The environment variable that stands for `-status-address`.
pub(crate) const STATUS_ADDRESS: &str = "SRIOV_DEVICE_PLUGIN_STATUS_ADDRESS";

/// What the process is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    /// Serve kubelet until stopped.
    Serve,
    /// Print which device is in which pool, and why or why not.
    Explain,
    /// Print what is wrong with the configuration file.
    CheckConfig,
    /// Print the flags.
    Help,
    /// Print the version.
    Version,
}

/// How [`Task::Explain`] prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Text,
    Json,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// A line for people, with its values as `name=value`.
    Text,
    /// A JSON object a line.
    Json,
}

/// The command line, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) task: Task,
    pub(crate) config_file: PathBuf,
    pub(crate) resource_prefix: String,
    pub(crate) use_cdi: bool,
    /// Level of detail of the log, as glog counts it: 0 says what matters, 10 everything.
    pub(crate) verbosity: u32,
    pub(crate) log_format: LogFormat,
    pub(crate) output: Output,
    /// Where metrics and health can be asked for; nowhere if not given.
    pub(crate) status_address: Option<Address>,
    pub(crate) places: Places,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            task: Task::Serve,
            config_file: "/etc/pcidp/config.json".into(),
            resource_prefix: "intel.com".to_owned(),
            use_cdi: false,
            verbosity: 0,
            log_format: LogFormat::Text,
            output: Output::Text,
            status_address: None,
            places: Places::default(),
        }
    }
}

/// Printed for `-help`.
pub(crate) const USAGE: &str = "\
Usage: sriov-device-plugin [flags]

Offers SR-IOV virtual functions to kubelet. Flags take one dash or two, and a value after = or a space.

  -config-file FILE        pools and their selectors (default /etc/pcidp/config.json)
  -resource-prefix PREFIX  prefix of resources that name none (default intel.com)
  -use-cdi                 give devices to the container runtime by CDI name
  -v N, -log-level N       detail of the log: 0 what matters, 5 decisions, 10 everything (default 0)
  -log-format text|json    lines for people, or a JSON object a line (default text)
  -status-address ADDRESS  serve /metrics, /healthz, /readyz and /debug/devices at 127.0.0.1:9808, :9808 or
                           unix:/run/x.sock (default SRIOV_DEVICE_PLUGIN_STATUS_ADDRESS; not served without)
  -explain                 print which device is in which pool, and why others are in none; then end
  -output text|json        how -explain prints (default text)
  -check-config            print all that is suspicious in the configuration file; then end
  -version                 print the version; then end

Other flags of glog (-logtostderr, -alsologtostderr, -stderrthreshold, -log_dir, -vmodule, -log_backtrace_at,
-log_link, -logbuflevel) and -log-dir are accepted and do nothing: the log always goes to stderr.
";

/// A command line that cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("flag {0} is not defined; -help lists the flags")]
    Unknown(String),
    #[error("flag {0} needs a value")]
    NoValue(String),
    #[error("flag {flag}: {value:?} is not {expected}")]
    Value { flag: String, value: String, expected: &'static str },
    #[error("unexpected argument {0:?}; a switch takes its value as in -use-cdi=true")]
    Argument(String),
}

/// Understands the arguments, the program's name not among them, and the value of [`STATUS_ADDRESS`].
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = String>,
    status_address: Option<String>,
) -> Result<Options, Error> {
    let mut options = Options::default();
    if let Some(value) = status_address {
        options.status_address = address(STATUS_ADDRESS, value)?;
    }
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            return Err(Error::Argument(argument));
        };
        if flag.is_empty() {
            return arguments.next().map_or(Ok(options), |rest| Err(Error::Argument(rest)));
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let shown = || format!("-{name}");
        let switch = || match &value {
            None => Ok(true),
            Some(text) => boolean(text).ok_or_else(|| Error::Value {
                flag: shown(),
                value: text.clone(),
                expected: "true or false",
            }),
        };
        let mut text = || value.clone().or_else(|| arguments.next()).ok_or_else(|| Error::NoValue(shown()));
        let invalid = |value: String, expected| Error::Value { flag: shown(), value, expected };
        match name {
            "config-file" => given(text()?, |file| options.config_file = file.into()),
            "resource-prefix" => given(text()?, |prefix| options.resource_prefix = prefix),
            "use-cdi" => options.use_cdi = switch()?,
            "v" | "log-level" => {
                let value = text()?;
                options.verbosity = value.parse().map_err(|_| invalid(value, "a level such as 5"))?;
            }
            "output" => {
                let value = text()?;
                options.output = match value.as_str() {
                    "text" => Output::Text,
                    "json" => Output::Json,
                    _ => return Err(invalid(value, "text or json")),
                };
            }
            "log-format" => {
                let value = text()?;
                options.log_format = match value.as_str() {
                    "text" => LogFormat::Text,
                    "json" => LogFormat::Json,
                    _ => return Err(invalid(value, "text or json")),
                };
            }
            "status-address" => options.status_address = address(&shown(), text()?)?,
            "explain" => set(&mut options.task, Task::Explain, switch()?),
            "check-config" => set(&mut options.task, Task::CheckConfig, switch()?),
            "version" => set(&mut options.task, Task::Version, switch()?),
            "h" | "help" => set(&mut options.task, Task::Help, switch()?),
            "logtostderr" | "alsologtostderr" => drop(switch()?),
            "stderrthreshold" | "log_dir" | "log-dir" | "vmodule" | "log_backtrace_at" | "log_link"
            | "logbuflevel" => drop(text()?),
            // Not in the usage: for tests, and for those who mount the host somewhere else.
            "sysfs-root" => options.places.sysfs = text()?.into(),
            "dev-root" => options.places.dev = text()?.into(),
            "kubelet-root" => options.places.kubelet = text()?.into(),
            "device-info-dir" => options.places.device_info = text()?.into(),
            "cdi-dir" => options.places.cdi = text()?.into(),
            _ => return Err(Error::Unknown(argument)),
        }
    }
    Ok(options)
}

/// An address to serve at; an empty one is none.
fn address(flag: &str, value: String) -> Result<Option<Address>, Error> {
    match Address::parse(&value) {
        Some(address) => Ok(Some(address)),
        None if value.is_empty() => Ok(None),
        None => {
            let expected = "an address such as 127.0.0.1:9808, :9808 or unix:/run/x.sock";
            Err(Error::Value { flag: flag.to_owned(), value, expected })
        }
    }
}

/// Uses a value, unless it is empty: that is a template's variable without one, and leaves the default in force.
fn given(value: String, set: impl FnOnce(String)) {
    if !value.is_empty() {
        set(value);
    }
}

fn set(task: &mut Task, to: Task, given: bool) {
    if given {
        *task = to;
    }
}

/// What Go's `strconv.ParseBool` takes.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options, Error> {
        parse(line.split_whitespace().map(str::to_owned), None)
    }

    #[test]
    fn the_flag_overrules_the_environment() {
        let address = |line: &str, variable: Option<&str>| {
            let arguments = line.split_whitespace().map(str::to_owned);
            parse(arguments, variable.map(str::to_owned)).map(|options| options.status_address)
        };
        let port = Address::parse(":9808");
        assert_eq!(address("", None), Ok(None));
        assert_eq!(address("", Some(":9808")), Ok(port.clone()));
        assert_eq!(address("-status-address :9808", Some(":1")), Ok(port));
        assert_eq!(address("-status-address=", Some(":1")), Ok(None));
        let text = address("", Some("9808")).unwrap_err().to_string();
        assert!(
            text.starts_with("flag SRIOV_DEVICE_PLUGIN_STATUS_ADDRESS: \"9808\" is not an address"),
            "{text}"
        );
    }

    #[test]
    fn forms_of_the_log() {
        let format = |line: &str| options(line).map(|options| options.log_format);
        assert_eq!(format(""), Ok(LogFormat::Text));
        assert_eq!(format("--log-format=json"), Ok(LogFormat::Json));
        assert!(format("-log-format xml").unwrap_err().to_string().ends_with("is not text or json"));
    }

    #[test]
    fn the_lines_that_manifests_have() {
        let operator =
            "--log-level=10 --resource-prefix=openshift.io --config-file=/etc/pcidp/node1 --use-cdi";
        let understood = options(operator).unwrap();
        assert_eq!(understood.verbosity, 10);
        assert_eq!(understood.resource_prefix, "openshift.io");
        assert_eq!(understood.config_file, PathBuf::from("/etc/pcidp/node1"));
        assert!(understood.use_cdi);
        assert_eq!(understood.task, Task::Serve);

        let entry_point = "-v 10 --log_dir /var/log/sriovdp --alsologtostderr -config-file=/c -use-cdi=F";
        let understood = options(entry_point).unwrap();
        assert_eq!((understood.verbosity, understood.use_cdi), (10, false));
        assert_eq!(understood.config_file, PathBuf::from("/c"));

        assert_eq!(options("").unwrap(), Options::default());
        assert_eq!(options("--resource-prefix= --config-file=").unwrap(), Options::default());
        assert_eq!(options("-logtostderr -stderrthreshold=INFO --").unwrap(), Options::default());
    }

    #[test]
    fn tasks() {
        assert_eq!(options("--explain --output=json").unwrap().output, Output::Json);
        assert_eq!(options("-explain -output text").unwrap().task, Task::Explain);
        assert_eq!(options("--check-config").unwrap().task, Task::CheckConfig);
        assert_eq!(options("--explain=false").unwrap().task, Task::Serve);
        assert_eq!(options("-h").unwrap().task, Task::Help);
        assert_eq!(options("-version").unwrap().task, Task::Version);
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        for (line, expected) in [
            ("-config_file x", "flag -config_file is not defined"),
            ("-config-file", "flag -config-file needs a value"),
            ("-v=much", "flag -v: \"much\" is not a level"),
            ("-output=xml", "flag -output: \"xml\" is not text or json"),
            ("-use-cdi=yes", "flag -use-cdi: \"yes\" is not true or false"),
            ("-use-cdi true", "unexpected argument \"true\""),
            ("-- x", "unexpected argument \"x\""),
        ] {
            let text = options(line).unwrap_err().to_string();
            assert!(text.starts_with(expected), "{line}: {text}");
        }
    }
}
