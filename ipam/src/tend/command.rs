//! The command line of the daemon.

use std::convert::Infallible;
use std::ffi::OsString;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::install::Targets;
use super::{Options, tend};
use crate::config::{Places, kubeconfig};
use crate::error::Error;
use crate::log;

const USAGE: &str = "usage: whereabouts tend [--data-dir DIRECTORY] [--kubeconfig FILE] [--metrics ADDRESS:PORT] \
                     [--bin-dir DIRECTORY] [--conf-dir DIRECTORY] [--log-level debug|verbose|error]";

/// Runs `whereabouts tend`; `arguments` are what follows.
#[must_use]
pub fn main(arguments: impl Iterator<Item = OsString>, places: &Places) -> ExitCode {
    let Some((mut options, targets, level)) = parse(arguments, places) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    log::start(None, level.as_deref());
    let ended = with_kubeconfig(&mut options, places).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        runtime.map_err(Error::Start)?.block_on(run(&options, &targets, places.node_name.as_deref()))
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(
    mut arguments: impl Iterator<Item = OsString>,
    places: &Places,
) -> Option<(Options, Targets, Option<String>)> {
    let mut options = Options { data_dir: places.data_dir.clone(), kubeconfig: None, metrics: None };
    let mut targets = Targets::default();
    let mut level = Some("verbose".to_owned());
    while let Some(argument) = arguments.next() {
        let value = arguments.next()?;
        match argument.to_str()? {
            "--data-dir" => options.data_dir = value.into(),
            "--kubeconfig" => options.kubeconfig = Some(value.into()),
            "--metrics" => options.metrics = Some(value.to_str()?.parse().ok()?),
            "--bin-dir" => targets.bin_dir = Some(value.into()),
            "--conf-dir" => targets.conf_dir = Some(value.into()),
            "--log-level" => level = Some(value.into_string().ok()?),
            _ => return None,
        }
    }
    Some((options, targets, level))
}

/// In a pod its service account, elsewhere what the flat file names.
fn with_kubeconfig(options: &mut Options, places: &Places) -> Result<(), Error> {
    if options.kubeconfig.is_none() && std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
        options.kubeconfig = Some(kubeconfig(places)?.ok_or(Error::NoKubeconfig)?);
    }
    Ok(())
}

async fn run(options: &Options, targets: &Targets, node_name: Option<&str>) -> Result<(), Error> {
    // The first process of a container is not ended by a signal that it does not listen to.
    let mut end = signal(SignalKind::terminate()).map_err(Error::Start)?;
    tracing::info!("podrail whereabouts {} tends {}", env!("CARGO_PKG_VERSION"), options.data_dir.display());
    tokio::select! {
        never = targets.keep(node_name) => match never {},
        ended = tend(options) => ended.map(|never: Infallible| match never {}),
        _ = end.recv() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags() {
        let parse = |line: &str| {
            let found = parse(line.split_whitespace().map(OsString::from), &Places::default());
            found.map(|(options, targets, level)| {
                let metrics = options.metrics.map(|address| address.to_string()).unwrap_or_default();
                let text = |path: Option<std::path::PathBuf>| path.unwrap_or_default().display().to_string();
                let paths = [options.kubeconfig, targets.bin_dir, targets.conf_dir].map(text).join(",");
                (options.data_dir.display().to_string(), paths, metrics, level.unwrap())
            })
        };
        let all = |a: &str, b: &str, c: &str, d: &str| Some((a.into(), b.into(), c.into(), d.into()));
        for (line, wanted) in [
            ("", all("/run/cni/whereabouts", ",,", "", "verbose")),
            (
                "--data-dir /d --kubeconfig /k --bin-dir /b --conf-dir /c --metrics [::]:9100 --log-level debug",
                all("/d", "/k,/b,/c", "[::]:9100", "debug"),
            ),
            ("--metrics 9100", None),
            ("--data-dir", None),
            ("--once yes", None),
        ] {
            assert_eq!(parse(line), wanted, "{line}");
        }
    }
}
