//! The frame of a plugin: environment and standard input in, JSON and exit code out.

use crate::{Args, CniResult, Command, Error, Object, Request, Version, names, wire};
use serde::Serialize;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A CNI plugin.
pub trait Plugin {
    /// One line that says what the program is, printed when it is started without `CNI_COMMAND`.
    fn about(&self) -> String;

    /// The protocol versions it speaks.
    fn versions(&self) -> &[Version] {
        Version::ALL
    }

    /// The version ADD's result is printed in: that of the configuration.
    fn result_version(&self, request: &Request) -> Version {
        request.version
    }

    /// Attaches the container. A failing ADD must leave nothing behind.
    ///
    /// # Errors
    /// Whatever the plugin finds; printed as it is.
    fn add(&self, request: &Request) -> Result<CniResult, Error>;

    /// Detaches the container: succeeds when there is nothing (left) to do, also without a namespace.
    ///
    /// # Errors
    /// When something could not be released, so that the runtime calls again.
    fn del(&self, request: &Request) -> Result<(), Error>;

    /// Verifies that the attachment is still as ADD left it.
    ///
    /// # Errors
    /// When it is not.
    fn check(&self, request: &Request) -> Result<(), Error>;

    /// Releases what belongs to no attachment of [`Request::valid_attachments`].
    ///
    /// # Errors
    /// When something could not be released.
    fn gc(&self, request: &Request) -> Result<(), Error> {
        let _ = request;
        Ok(())
    }

    /// Says whether ADD can be served.
    ///
    /// # Errors
    /// Code 50 or 51 when not.
    fn status(&self, request: &Request) -> Result<(), Error> {
        let _ = request;
        Ok(())
    }
}

/// Runs `plugin` on the process's own environment and streams. A panic, which should not happen, is still
/// answered with an error object, so that the runtime can tell the user more than an exit code.
pub fn main(plugin: &impl Plugin) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        let error = Error::internal(format!("the plugin panicked, please report this: {panic}"));
        let _ = std::io::stdout().write_all(&error.to_json(Version::LATEST));
        std::process::exit(1);
    }));
    let mut streams =
        Streams { stdin: &mut Stdin, stdout: &mut std::io::stdout(), stderr: &mut std::io::stderr() };
    ExitCode::from(run(plugin, &|name| std::env::var_os(name), &mut streams))
}

/// Standard input, opened when it is read: VERSION reads none, and need not pay for the buffer.
struct Stdin;

impl Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        std::io::stdin().read(buffer)
    }
}

/// The standard streams of a call.
pub struct Streams<'a> {
    /// Where the configuration comes from.
    pub stdin: &'a mut dyn Read,
    /// Where the result or error object goes.
    pub stdout: &'a mut dyn Write,
    /// Where the about text goes.
    pub stderr: &'a mut dyn Write,
}

impl std::fmt::Debug for Streams<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Streams")
    }
}

/// As [`main`], with everything that is outside given; returns the exit code.
pub fn run(plugin: &impl Plugin, env: &dyn Fn(&str) -> Option<OsString>, streams: &mut Streams<'_>) -> u8 {
    let command = text(env, "CNI_COMMAND");
    if command.is_empty() {
        let versions = Version::join(plugin.versions());
        let about = plugin.about();
        let _ = writeln!(streams.stderr, "{about}\nCNI protocol versions supported: {versions}");
        return 0;
    }
    let mut version = Version::LATEST;
    match answer(plugin, &command, env, streams.stdin, &mut version) {
        Ok(output) => {
            u8::from(streams.stdout.write_all(&output).and_then(|()| streams.stdout.flush()).is_err())
        }
        Err(error) => {
            let _ = streams.stdout.write_all(&error.to_json(version)).and_then(|()| streams.stdout.flush());
            1
        }
    }
}

fn text(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> String {
    env(name).map(|v| v.to_string_lossy().into_owned()).unwrap_or_default()
}

fn answer(
    plugin: &impl Plugin,
    command: &str,
    env: &dyn Fn(&str) -> Option<OsString>,
    stdin: &mut dyn Read,
    version: &mut Version,
) -> Result<Vec<u8>, Error> {
    let command = parse_command(command)?;
    if command == Command::Version {
        return Ok(version_info(plugin.versions()));
    }
    let request = read_request(command, Environment::read(command, env)?, stdin)?;
    *version = request.version;
    check_version(&request, plugin.versions())?;
    match command {
        Command::Add => plugin.add(&request)?.to_json(plugin.result_version(&request)),
        Command::Del => plugin.del(&request).map(|()| Vec::new()),
        Command::Check => plugin.check(&request).map(|()| Vec::new()),
        Command::Gc => plugin.gc(&request).map(|()| Vec::new()),
        Command::Status => plugin.status(&request).map(|()| Vec::new()),
        Command::Version => Ok(Vec::new()),
    }
}

/// The call of a runtime that reached this process on another way than by starting it: the variables by `env`, and
/// standard input. Any version is accepted that has the command.
///
/// # Errors
/// As a plugin answers them: codes 1, 4, 6 and 7.
pub fn request(env: &dyn Fn(&str) -> Option<OsString>, mut stdin: &[u8]) -> Result<Request, Error> {
    let command = parse_command(&text(env, "CNI_COMMAND"))?;
    let request = read_request(command, Environment::read(command, env)?, &mut stdin)?;
    check_version(&request, Version::ALL)?;
    Ok(request)
}

fn parse_command(text: &str) -> Result<Command, Error> {
    Command::parse(text).ok_or_else(|| Error::invalid_environment(format!("unknown CNI_COMMAND: {text}")))
}

fn version_info(versions: &[Version]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct VersionInfo<'a> {
        cni_version: Version,
        supported_versions: &'a [Version],
    }
    let mut bytes =
        wire::compact(&VersionInfo { cni_version: Version::LATEST, supported_versions: versions });
    bytes.push(b'\n');
    bytes
}

/// The variables of a call, checked for presence and form.
struct Environment {
    container_id: String,
    netns: Option<PathBuf>,
    ifname: String,
    args: Args,
    path: Vec<PathBuf>,
}

impl Environment {
    fn read(command: Command, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let container_id = text(env, "CNI_CONTAINERID");
        let netns = env("CNI_NETNS").filter(|v| !v.is_empty()).map(PathBuf::from);
        let ifname = text(env, "CNI_IFNAME");
        let path = env("CNI_PATH").filter(|v| !v.is_empty());
        let of_attachment = command.concerns_attachment();
        let missing: Vec<&str> = [
            ("CNI_CONTAINERID", of_attachment && container_id.is_empty()),
            ("CNI_NETNS", matches!(command, Command::Add | Command::Check) && netns.is_none()),
            ("CNI_IFNAME", of_attachment && ifname.is_empty()),
            ("CNI_PATH", path.is_none()),
        ]
        .into_iter()
        .filter_map(|(name, is_missing)| is_missing.then_some(name))
        .collect();
        if !missing.is_empty() {
            let list = missing.join(",");
            return Err(Error::invalid_environment(format!("required env variables [{list}] missing")));
        }
        if of_attachment {
            names::check_container_id(&container_id)?;
            names::check_interface_name(&ifname)?;
        }
        let args = text(env, "CNI_ARGS");
        let args = if command == Command::Del { Args::parse_lossy(&args) } else { Args::parse(&args)? };
        let netns = refuse_own_netns(command, netns, &text(env, "CNI_NETNS_OVERRIDE"))?;
        let path = path.map(|p| std::env::split_paths(&p).filter(|p| !p.as_os_str().is_empty()).collect());
        Ok(Environment { container_id, netns, ifname, args, path: path.unwrap_or_default() })
    }
}

/// A plugin that took its own namespace for the container's would move and delete the host's interfaces. ADD
/// and CHECK refuse before anything is touched. On DEL the container's namespace no longer exists (its path
/// `/proc/<pid>/ns/net` now belongs to another process), and DEL must still release everything else.
fn refuse_own_netns(
    command: Command,
    netns: Option<PathBuf>,
    allowed: &str,
) -> Result<Option<PathBuf>, Error> {
    let allowed = allowed == "1" || allowed.eq_ignore_ascii_case("true");
    match netns {
        Some(path) if !allowed && is_own_netns(&path) => match command {
            Command::Add | Command::Check => Err(Error::invalid_netns(format!(
                "plugin's netns and netns from CNI_NETNS should not be the same: {} is the plugin's own network \
                 namespace; give the container one, or set CNI_NETNS_OVERRIDE=1 if this is meant",
                path.display()
            ))),
            Command::Del | Command::Gc | Command::Status | Command::Version => Ok(None),
        },
        netns => Ok(netns),
    }
}

fn is_own_netns(path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
    match (identity(Path::new("/proc/thread-self/ns/net")), identity(path)) {
        (Ok(own), Ok(other)) => own == other,
        _ => false,
    }
}

fn read_request(command: Command, vars: Environment, stdin: &mut dyn Read) -> Result<Request, Error> {
    let mut bytes = Vec::new();
    stdin.read_to_end(&mut bytes).map_err(|e| Error::io(format!("error reading from stdin: {e}")))?;
    let config = Object::parse(&bytes).map_err(|e| e.context("network configuration on stdin"))?;
    let name: String = config.decode("name")?.unwrap_or_default();
    names::check_network_name(&name)?;
    let version = config.decode::<String>("cniVersion")?.unwrap_or_default().parse()?;
    let Environment { container_id, netns, ifname, args, path } = vars;
    Ok(Request { command, container_id, netns, ifname, args, path, version, name, config, stdin: bytes })
}

fn check_version(request: &Request, versions: &[Version]) -> Result<(), Error> {
    let (command, version) = (request.command, request.version);
    let too_old = match command {
        Command::Check => !version.has_check(),
        Command::Gc | Command::Status => !version.has_gc_and_status(),
        Command::Add | Command::Del | Command::Version => false,
    };
    if too_old {
        let command = command.as_str();
        return Err(Error::incompatible_version(format!("config version does not allow {command}"))
            .with_details(format!("cniVersion of the configuration is {version}")));
    }
    if !versions.contains(&version) {
        return Err(Error::incompatible_version("incompatible CNI versions")
            .with_details(format!("config is {version}, plugin supports {}", Version::join(versions))));
    }
    Ok(())
}
