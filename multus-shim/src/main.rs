//! The CNI plugin of thick mode: hands each call to multus-daemon over its Unix socket.
//!
//! It is started for every call of the runtime and does next to nothing: configuration ([`conf`]), one request
//! ([`http`]), the result in the configuration's version ([`result`]). What it must not do is lose a DEL while the
//! daemon is away ([`pending`]).

mod base64;
mod call;
mod conf;
mod http;
mod json;
mod passthru;
mod pending;
mod result;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use call::{Call, Failure};
use conf::Conf;
use json::{Value, object, text};

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn main() -> ExitCode {
    if std::env::args().skip(1).any(|arg| matches!(arg.as_str(), "-version" | "--version" | "-v")) {
        println!("multus-shim: version:v{}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect();
    match environment.get("CNI_COMMAND").map_or("", String::as_str) {
        "" => {
            eprintln!(
                "meta-plugin that delegates to other CNI plugins, by multus-daemon; podrail multus-shim v{}\n\
                 CNI protocol versions supported: {}",
                env!("CARGO_PKG_VERSION"),
                VERSIONS.join(", ")
            );
            ExitCode::SUCCESS
        }
        "VERSION" => print(&format!("{}\n", versions().compact()), ExitCode::SUCCESS),
        _ if is_passthru() => print(&passthru::answer(&environment, &stdin()), ExitCode::SUCCESS),
        command => answer(command, &environment),
    }
}

fn is_passthru() -> bool {
    let program = std::env::args_os().next().unwrap_or_default();
    Path::new(&program).file_name().is_some_and(|name| name == passthru::NAME)
}

/// What there is of standard input, for who does not mind.
fn stdin() -> Vec<u8> {
    let mut stdin = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut stdin);
    stdin
}

fn answer(command: &str, environment: &BTreeMap<String, String>) -> ExitCode {
    let mut stdin = Vec::new();
    let read =
        std::io::stdin().read_to_end(&mut stdin).map_err(|e| e.to_string()).and_then(|_| Conf::read(&stdin));
    let conf = match read {
        Ok(conf) => conf,
        Err(why) => return fail(&call::unreadable(&why), ""),
    };
    match (Call { command, environment, stdin: &stdin }).run(&conf) {
        Ok(output) => print(&output, ExitCode::SUCCESS),
        Err(failure) => fail(&failure, &conf.version),
    }
}

fn fail(failure: &Failure, version: &str) -> ExitCode {
    print(&failure.to_json(version), ExitCode::FAILURE)
}

fn print(output: &str, code: ExitCode) -> ExitCode {
    let mut stdout = std::io::stdout();
    match stdout.write_all(output.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn versions() -> Value {
    let supported = VERSIONS.iter().map(|version| text(*version)).collect();
    object([("cniVersion", text("1.1.0")), ("supportedVersions", Value::Array(supported))])
}
