//! Finding and running plugins.

use crate::{Command, Error, Version};
use std::ffi::OsStr;
use std::io::{ErrorKind, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output, Stdio};
use std::time::Duration;

/// A plugin is being replaced on disk while it is started: how often and how long to wait for it.
const BUSY_RETRIES: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// What a pipe always takes without a reader (the smallest capacity Linux gives one).
const PIPE_ROOM: usize = 4096;

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// The variables of a call that are not the verb. Unset ones reach the plugin as empty texts, so that nothing
/// of our own environment shines through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Environment<'a> {
    /// `CNI_CONTAINERID`.
    pub container_id: &'a str,
    /// `CNI_NETNS`.
    pub netns: Option<&'a Path>,
    /// `CNI_IFNAME`.
    pub ifname: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
    /// `CNI_PATH`.
    pub path: &'a [PathBuf],
}

/// The first regular file called `kind` in the directories of `path`.
///
/// # Errors
/// Code 7 when `kind` is no plain file name; code 50 (not available) when there is no such file.
pub fn find(kind: &str, path: &[PathBuf]) -> Result<PathBuf, Error> {
    find_by(kind, path, Path::is_file)
}

/// As [`find`], among files of which `is_there` knows.
///
/// # Errors
/// As for [`find`].
pub fn find_by(kind: &str, path: &[PathBuf], is_there: impl Fn(&Path) -> bool) -> Result<PathBuf, Error> {
    if kind.is_empty() {
        return Err(Error::invalid_config("no plugin name provided: the configuration needs a \"type\""));
    }
    if kind.contains('/') || kind == "." || kind == ".." {
        return Err(Error::invalid_config(format!("invalid plugin name: {kind}")));
    }
    path.iter().map(|directory| directory.join(kind)).find(|file| is_there(file)).ok_or_else(|| {
        let list = path.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ");
        Error::plugin_not_available(format!(
            "failed to find plugin {kind:?} in path [{list}]: install it there, or correct the \"type\" of the \
             network configuration"
        ))
    })
}

/// How plugins are found, started and waited for.
pub trait Executor: std::fmt::Debug + Send + Sync {
    /// The plugin called `kind` in the directories of `path`, as whoever starts it will see it.
    ///
    /// # Errors
    /// As for [`find`].
    fn find(&self, kind: &str, path: &[PathBuf]) -> Result<PathBuf, Error> {
        find(kind, path)
    }

    /// Runs `command`, which has its program and variables, to its end with `stdin` as input.
    ///
    /// # Errors
    /// When it cannot be started, or talking to it fails.
    fn output(&self, command: std::process::Command, stdin: &[u8]) -> std::io::Result<Output>;
}

/// Plugins as plain children, with the variables of this process besides those of the call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

impl Executor for Direct {
    fn output(&self, mut command: std::process::Command, stdin: &[u8]) -> std::io::Result<Output> {
        start(&mut command).and_then(|child| communicate(child, stdin))
    }
}

/// Runs a plugin as a plain child and returns what it printed. Its standard error goes to ours.
///
/// # Errors
/// The error object of a plugin that fails, or code 999 with what is known of one that fails without;
/// code 5 when it cannot be started.
pub fn run(
    plugin: &Path,
    command: Command,
    environment: &Environment<'_>,
    stdin: &[u8],
) -> Result<Vec<u8>, Error> {
    run_by(&Direct, plugin, command, environment, stdin)
}

/// As [`run`], started by `executor`.
///
/// # Errors
/// As for [`run`].
pub fn run_by(
    executor: &dyn Executor,
    plugin: &Path,
    command: Command,
    environment: &Environment<'_>,
    stdin: &[u8],
) -> Result<Vec<u8>, Error> {
    let path = std::env::join_paths(environment.path)
        .map_err(|e| Error::invalid_environment(format!("CNI_PATH cannot be composed: {e}")))?;
    let mut process = std::process::Command::new(plugin);
    process
        .env("CNI_COMMAND", command.as_str())
        .env("CNI_CONTAINERID", environment.container_id)
        .env("CNI_NETNS", environment.netns.map_or(OsStr::new(""), Path::as_os_str))
        .env("CNI_IFNAME", environment.ifname)
        .env("CNI_ARGS", environment.args)
        .env("CNI_PATH", path);
    let failed = |e: std::io::Error| Error::io(format!("cannot run plugin {}: {e}", plugin.display()));
    let output = executor.output(process, stdin).map_err(failed)?;
    // Nothing can be done about a standard error that is closed.
    let _ = std::io::stderr().write_all(&output.stderr);
    if output.status.success() { Ok(output.stdout) } else { Err(complaint(&output)) }
}

/// Starts a plugin with pipes for its streams; waits a while for one that is just being replaced on disk.
///
/// # Errors
/// When it cannot be started.
pub fn start(process: &mut std::process::Command) -> std::io::Result<Child> {
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for _ in 0..BUSY_RETRIES {
        match process.spawn() {
            Err(e) if e.kind() == ErrorKind::ExecutableFileBusy => std::thread::sleep(BUSY_PAUSE),
            started => return started,
        }
    }
    process.spawn()
}

/// Gives a started plugin its input and collects its output until it ends.
///
/// # Errors
/// When a pipe breaks otherwise than by the plugin not reading its input.
pub fn communicate(mut child: Child, stdin: &[u8]) -> std::io::Result<Output> {
    let Some(mut pipe) = child.stdin.take() else { return child.wait_with_output() };
    if stdin.len() <= PIPE_ROOM {
        feed(&mut pipe, stdin)?;
        drop(pipe);
        return child.wait_with_output();
    }
    // A plugin may fill its output before it has read all its input: both directions at once.
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || feed(&mut pipe, stdin));
        let output = child.wait_with_output();
        writer.join().unwrap_or(Ok(())).and(output)
    })
}

/// Writes all; a plugin that closes its input unread is free to do so.
fn feed(pipe: &mut impl Write, stdin: &[u8]) -> std::io::Result<()> {
    match pipe.write_all(stdin) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

fn complaint(output: &Output) -> Error {
    let how = describe(output.status);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stdout.trim().is_empty() {
        // Somebody ended it in the middle: whatever it was doing is still to be done.
        let code = match output.status.signal() {
            Some(SIGKILL | SIGTERM) => Error::TRY_AGAIN_LATER,
            _ => Error::INTERNAL,
        };
        let text = if stderr.trim().is_empty() {
            format!("netplugin failed with no error message: {how}")
        } else {
            format!("netplugin failed: {:?}: {how}", stderr.trim_end())
        };
        return Error::new(code, text);
    }
    match Error::parse(&output.stdout) {
        Ok(error) if !error.msg.is_empty() => error,
        Ok(error) => Error { msg: format!("netplugin failed with no error message: {how}"), ..error },
        Err(parse) => Error::internal(format!(
            "netplugin failed but error parsing its diagnostic message {:?}: {parse} ({how})",
            stdout.trim_end()
        )),
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(SIGKILL)) => "signal: killed (did the kernel run out of memory? see its log)".to_owned(),
        (None, Some(signal)) => format!("signal: {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

/// Asks a plugin for the versions it speaks, leaving out those not known here. One that does not know VERSION
/// speaks 0.1.0.
///
/// # Errors
/// As for [`run`]; code 6 when its answer cannot be read.
pub fn versions(plugin: &Path) -> Result<Vec<Version>, Error> {
    // Plugins of the first generation ask for these before they look at the command.
    let dummy = [PathBuf::from("dummy")];
    let environment = Environment {
        netns: Some(Path::new("dummy")),
        ifname: "dummy",
        path: &dummy,
        ..Environment::default()
    };
    let stdin = format!("{{\"cniVersion\":\"{}\"}}", Version::LATEST);
    let answer = match run(plugin, Command::Version, &environment, stdin.as_bytes()) {
        Err(e) if e.msg == "unknown CNI_COMMAND: VERSION" => return Ok(vec![Version::V0_1_0]),
        answer => answer?,
    };
    let object = crate::Object::parse(&answer).map_err(|e| e.context("decoding version info"))?;
    let supported: Vec<String> = match object.decode("supportedVersions")? {
        Some(list) => list,
        None => match object.decode::<String>("cniVersion")?.as_deref() {
            Some("0.2.0") => vec!["0.1.0".to_owned(), "0.2.0".to_owned()],
            _ => return Err(Error::decoding("decoding version info: missing field supportedVersions")),
        },
    };
    Ok(supported.iter().filter_map(|text| text.parse().ok()).collect())
}
