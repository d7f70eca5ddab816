//! The command line. One program stands for several of the peer's: it looks at the name it is called by.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::conf::DEFAULT_FILE;
use crate::entrypoint;
use crate::flags::{self, Flag, Values};
use crate::install::SOURCE;
use crate::layout::{Layout, under};

/// What can be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Verb {
    /// Serve multus-shim.
    Daemon {
        /// The configuration file.
        config: PathBuf,
    },
    /// Install and keep thin multus.
    Thin(Values),
    /// Put programs on the host.
    Install {
        /// Whether they are those of thick mode.
        thick: bool,
        /// Where they are.
        source: PathBuf,
        /// Where they go.
        target: PathBuf,
    },
    /// Leave the node as it was.
    Uninstall {
        /// The daemon's configuration file.
        config: PathBuf,
        /// The runtime's plugins.
        bin_dir: PathBuf,
        /// The runtime's configurations.
        conf_dir: PathBuf,
        /// Where the programs of this image are.
        source: PathBuf,
        /// How long sandboxes that run are waited for.
        wait: Duration,
    },
    /// Keep a certificate of the node's own, and a kubeconfig with it.
    Enrol(Values),
    /// Approve the certificates that nodes ask for.
    Approve {
        /// How the cluster is reached from outside.
        kubeconfig: Option<PathBuf>,
    },
    /// Start delegates for the daemon.
    StartDelegates {
        /// The host's root, where it is another one.
        root: Option<PathBuf>,
    },
    /// Ask a daemon whether it is well.
    Probe {
        /// Its socket's directory.
        socket_dir: PathBuf,
        /// Which of its answers counts.
        path: String,
    },
    /// Print a text and end with a code.
    Print(String, u8),
}

const DAEMON: [Flag; 2] = [
    Flag::new(&["config"], DEFAULT_FILE, "the daemon's configuration"),
    Flag::new(&["version"], "false", "print the version; then end"),
];

const INSTALL: [Flag; 4] = [
    Flag::new(&["type", "t"], "", "thick or thin"),
    Flag::new(&["dest-dir", "d"], "/host/opt/cni/bin", "where the programs go"),
    Flag::new(&["source-dir"], SOURCE, "where they are"),
    Flag::new(&["host-root"], "", "the host's root: directories are those of its container runtime"),
];

const UNINSTALL: [Flag; 6] = [
    Flag::new(&["config"], DEFAULT_FILE, "the daemon's configuration"),
    Flag::new(&["cni-bin-dir"], "/host/opt/cni/bin", "the runtime's plugins"),
    Flag::new(&["cni-conf-dir"], "/host/etc/cni/net.d", "the runtime's configurations"),
    Flag::new(&["source-dir"], SOURCE, "where the programs of this image are"),
    Flag::new(&["host-root"], "", "the host's root: directories are those of its container runtime"),
    Flag::new(&["wait"], "0", "how many seconds running pods may take to go"),
];

const PROBE: [Flag; 2] = [
    Flag::new(&["socket-dir"], "/run/multus", "where the daemon's socket is"),
    Flag::new(&["path"], "/readyz", "/readyz or /healthz"),
];

const ENROL: [Flag; 4] = [
    Flag::new(&["certdir"], "/tmp", "where certificates are kept"),
    Flag::new(&["bootstrap-config"], "/tmp/kubeconfig", "a kubeconfig of the node"),
    Flag::new(&["kubeconfig"], "/run/multus/kubeconfig", "the kubeconfig to write"),
    Flag::new(&["cert-duration"], "10m", "how long a certificate is to be good for"),
];

const APPROVE: [Flag; 1] =
    [Flag::new(&["kubeconfig"], "", "how the cluster is reached; in-cluster when empty")];

const START_DELEGATES: [Flag; 1] = [Flag::new(&["root"], "", "the host's root, where it is another one")];

const OVERVIEW: &str = "\
usage: multus-daemon [--config FILE]    serve multus-shim (thick mode)
       multus-daemon install            put programs on the host; also called as install_multus
       multus-daemon upgrade            the same, over those of another version
       multus-daemon thin-entrypoint    install and keep thin multus; also called as thin_entrypoint
       multus-daemon enrol              keep a certificate of the node's own; also called as kubeconfig_generator
       multus-daemon approve            approve such certificates; also called as cert-approver
       multus-daemon uninstall          leave the node as it was
       multus-daemon probe              ask a daemon whether it is ready

Each has its flags: -help after it lists them.
";

impl Verb {
    /// What `arguments` ask of a program called `name`.
    #[must_use]
    pub fn of(name: &str, arguments: Vec<String>) -> Verb {
        let mut arguments = arguments;
        let is_peers =
            matches!(name, "install_multus" | "thin_entrypoint" | "kubeconfig_generator" | "cert-approver");
        let verb = match name {
            "install_multus" => "install".to_owned(),
            "thin_entrypoint" => "thin-entrypoint".to_owned(),
            "kubeconfig_generator" => "enrol".to_owned(),
            "cert-approver" => "approve".to_owned(),
            _ if arguments.first().is_some_and(|first| !first.starts_with('-')) => arguments.remove(0),
            _ => String::new(),
        };
        let wants_help = arguments.iter().any(|a| matches!(a.as_str(), "-h" | "-help" | "--help"));
        let parsed = |known: &[Flag], make: fn(Values) -> Verb| {
            if wants_help {
                let overview = if verb.is_empty() { OVERVIEW } else { "" };
                return Verb::Print(format!("{overview}flags:\n{}", flags::help(known)), 1);
            }
            let values = match is_peers {
                true => flags::parse_some(known, arguments.clone()).map(|(values, rest)| {
                    if !rest.is_empty() {
                        eprintln!("{name}: passed over: {}", rest.join(" "));
                    }
                    values
                }),
                false => flags::parse(known, arguments.clone()),
            };
            match values {
                Ok(values) => make(values),
                Err(error) => Verb::Print(format!("{error}\n"), 2),
            }
        };
        match verb.as_str() {
            "" => parsed(&DAEMON, |values| match values.is_on("version") {
                true => Verb::Print(format!("multus-daemon: version:v{}\n", env!("CARGO_PKG_VERSION")), 4),
                false => Verb::Daemon { config: values.path("config") },
            }),
            "install" | "upgrade" => parsed(&INSTALL, |values| match values.text("type") {
                kind @ ("thick" | "thin") => Verb::Install {
                    thick: kind == "thick",
                    source: values.path("source-dir"),
                    target: host_root(&values).map_or_else(
                        || values.path("dest-dir"),
                        |root| Layout::of_host(&root).bin_dir(&root),
                    ),
                },
                _ => Verb::Print("--type must be thick or thin\n".to_owned(), 1),
            }),
            "thin-entrypoint" => parsed(&entrypoint::FLAGS, Verb::Thin),
            "uninstall" => parsed(&UNINSTALL, |values| match values.text("wait").parse() {
                Ok(seconds) => {
                    let (bin_dir, conf_dir) = match host_root(&values) {
                        Some(root) => {
                            let layout = Layout::of_host(&root);
                            (layout.bin_dir(&root), under(&root, &layout.conf_dir))
                        }
                        None => (values.path("cni-bin-dir"), values.path("cni-conf-dir")),
                    };
                    let (config, source) = (values.path("config"), values.path("source-dir"));
                    Verb::Uninstall { config, bin_dir, conf_dir, source, wait: Duration::from_secs(seconds) }
                }
                Err(_) => Verb::Print("--wait must be a number of seconds\n".to_owned(), 2),
            }),
            "enrol" => parsed(&ENROL, Verb::Enrol),
            "approve" => parsed(&APPROVE, |values| Verb::Approve {
                kubeconfig: values.optional("kubeconfig").map(PathBuf::from),
            }),
            // The daemon's own; nobody else has a use for it.
            "start-delegates" => parsed(&START_DELEGATES, |values| Verb::StartDelegates {
                root: values.optional("root").map(PathBuf::from),
            }),
            "probe" => parsed(&PROBE, |values| Verb::Probe {
                socket_dir: values.path("socket-dir"),
                path: values.text("path").to_owned(),
            }),
            other => Verb::Print(format!("unknown command {other:?}\n{OVERVIEW}"), 2),
        }
    }

    /// What this process is asked.
    #[must_use]
    pub fn of_process() -> Verb {
        let mut arguments = std::env::args();
        let program = arguments.next().unwrap_or_default();
        let name = Path::new(&program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Verb::of(name, arguments.collect())
    }
}

fn host_root(values: &Values) -> Option<PathBuf> {
    values.optional("host-root").map(PathBuf::from)
}

/// Prints what there is to say; an error's text goes to standard error.
#[must_use]
pub fn print(text: &str, code: u8) -> ExitCode {
    match code {
        0 | 4 => print!("{text}"),
        _ => eprint!("{text}"),
    }
    code.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Verb {
        let mut words = line.split_whitespace().map(str::to_owned);
        let name = words.next().unwrap();
        Verb::of(&name, words.collect())
    }

    #[test]
    fn by_every_name() {
        assert_eq!(of("multus-daemon"), Verb::Daemon { config: DEFAULT_FILE.into() });
        assert_eq!(of("multus-daemon -config=/c"), Verb::Daemon { config: "/c".into() });
        assert!(matches!(of("multus-daemon -version"), Verb::Print(_, 4)));
        let thick =
            |target: &str| Verb::Install { thick: true, source: SOURCE.into(), target: target.into() };
        assert_eq!(of("install_multus --type thick"), thick("/host/opt/cni/bin"));
        assert_eq!(of("multus-daemon upgrade -t=thick -d /b"), thick("/b"));
        assert_eq!(of("install_multus -t thick --host-root=/nowhere"), thick("/nowhere/opt/cni/bin"));
        assert!(matches!(
            of("multus-daemon uninstall --host-root=/nowhere"),
            Verb::Uninstall { conf_dir, .. } if conf_dir == Path::new("/nowhere/etc/cni/net.d")
        ));
        assert!(
            matches!(of("thin_entrypoint --rename-conf-file=true"), Verb::Thin(v) if v.is_on("rename-conf-file"))
        );
        assert!(
            matches!(of("multus-daemon uninstall --wait 5"), Verb::Uninstall { wait, .. } if wait.as_secs() == 5)
        );
        assert!(
            matches!(of("kubeconfig_generator --certdir=/c"), Verb::Enrol(v) if v.text("cert-duration") == "10m")
        );
        assert_eq!(of("cert-approver"), Verb::Approve { kubeconfig: None });
        assert!(matches!(of("thin_entrypoint --namespace-isolation true --multus-log-to-stderr=false"),
                Verb::Thin(v) if v.is_on("namespace-isolation") && !v.is_on("multus-log-to-stderr")));
        assert!(
            matches!(of("multus-daemon probe --path=/healthz"), Verb::Probe { path, .. } if path == "/healthz")
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("multus-daemon frobnicate", "frobnicate"),
            ("install_multus", "--type"),
            ("multus-daemon --bogus", "bogus"),
            ("multus-daemon thin-entrypoint --namespace-isolation true", "unexpected argument \"true\""),
            ("multus-daemon uninstall --wait=soon", "--wait"),
            ("thin_entrypoint --help", "--cni-conf-dir"),
            ("multus-daemon -h", "uninstall"),
        ] {
            assert!(matches!(of(line), Verb::Print(text, 1 | 2) if text.contains(part)), "{line}");
        }
    }
}
