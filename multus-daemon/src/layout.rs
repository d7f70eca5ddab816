//! Where the node's container runtime looks for networks and plugins, by its own configuration.
//!
//! Distributions choose other directories than containerd and CRI-O do by themselves: k3s and RKE2 below
//! `/var/lib/rancher`, `MicroK8s` below `/var/snap`, `OpenShift` and `MicroShift` in `/etc/kubernetes` and `/run/cni`. k0s
//! and Talos keep to the usual ones, but configure their containerd elsewhere.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// A container runtime of some distribution.
#[derive(Debug)]
struct Runtime {
    /// Its socket: it is there when this is the runtime that runs.
    socket: &'static str,
    /// Its configuration.
    file: &'static str,
    /// Further files, of which the last one counts most; those of containerd are named by its configuration.
    folder: Option<&'static str>,
    reads: fn(&Table) -> Found,
}

const fn containerd(socket: &'static str, file: &'static str) -> Runtime {
    Runtime { socket, file, folder: None, reads: of_containerd }
}

const RUNTIMES: [Runtime; 8] = [
    containerd("run/k3s/containerd/containerd.sock", "var/lib/rancher/k3s/agent/etc/containerd/config.toml"),
    containerd("run/k3s/containerd/containerd.sock", "var/lib/rancher/rke2/agent/etc/containerd/config.toml"),
    containerd("run/k0s/containerd.sock", "etc/k0s/containerd.toml"),
    containerd(
        "var/snap/microk8s/common/run/containerd.sock",
        "var/snap/microk8s/current/args/containerd.toml",
    ),
    Runtime {
        socket: "run/crio/crio.sock",
        file: "etc/crio/crio.conf",
        folder: Some("etc/crio/crio.conf.d"),
        reads: of_crio,
    },
    // Talos, whose other containerd is not kubelet's.
    containerd("run/containerd/containerd.sock", "etc/cri/containerd.toml"),
    containerd("run/containerd/containerd.sock", "etc/containerd/config.toml"),
    containerd("run/containerd/containerd.sock", "usr/local/etc/containerd/config.toml"),
];

/// The directories, as the host sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Where configurations of networks are.
    pub conf_dir: PathBuf,
    /// Where plugins are, the first one to be looked in first.
    pub bin_dirs: Vec<PathBuf>,
}

impl Default for Layout {
    fn default() -> Self {
        Layout { conf_dir: "/etc/cni/net.d".into(), bin_dirs: vec!["/opt/cni/bin".into()] }
    }
}

/// What one configuration says.
#[derive(Debug, Default)]
struct Found {
    conf_dir: Option<PathBuf>,
    bin_dirs: Option<Vec<PathBuf>>,
    /// Patterns of further files.
    imports: Vec<String>,
}

impl Layout {
    /// The directories of the runtime on the host whose root directory is `root`. What cannot be read, or says nothing
    /// of them, means the usual ones.
    #[must_use]
    pub fn of_host(root: &Path) -> Self {
        let is_there = |runtime: &&Runtime| {
            let has_file = root.join(runtime.file).is_file();
            has_file || runtime.folder.is_some_and(|folder| root.join(folder).is_dir())
        };
        let runs = |runtime: &&Runtime| root.join(runtime.socket).exists();
        let mut known = RUNTIMES.iter().filter(is_there);
        let Some(runtime) = known.clone().find(runs).or_else(|| known.next()) else {
            return Layout::default();
        };
        let mut found = read(&root.join(runtime.file), runtime.reads).unwrap_or_default();
        let folder = runtime.folder.map(|folder| format!("/{folder}/*.conf"));
        for pattern in found.imports.clone().into_iter().chain(folder) {
            for file in matching(root, &pattern) {
                let Some(further) = read(&file, runtime.reads) else { continue };
                found.conf_dir = further.conf_dir.or(found.conf_dir);
                found.bin_dirs = further.bin_dirs.or(found.bin_dirs);
            }
        }
        let usual = Layout::default();
        Layout {
            conf_dir: found.conf_dir.unwrap_or(usual.conf_dir),
            bin_dirs: found.bin_dirs.unwrap_or(usual.bin_dirs),
        }
    }

    /// Where plugins are to be installed: the first directory that is there below `root`, else the first.
    #[must_use]
    pub fn bin_dir(&self, root: &Path) -> PathBuf {
        let mut below = self.bin_dirs.iter().map(|directory| under(root, directory));
        let is_there = below.clone().find(|directory| directory.is_dir());
        is_there.or_else(|| below.next()).unwrap_or_else(|| root.join("opt/cni/bin"))
    }
}

/// A path of the host, as it is seen from outside of `root`.
#[must_use]
pub fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn read(file: &Path, reads: fn(&Table) -> Found) -> Option<Found> {
    let text = std::fs::read_to_string(file).ok()?;
    match text.parse::<Table>() {
        Ok(table) => Some(reads(&table)),
        Err(error) => {
            tracing::warn!("{}: {error}; the usual directories are taken", file.display());
            None
        }
    }
}

/// The files of the host that `pattern` means, which may have a star in its last part.
fn matching(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = under(root, Path::new(pattern));
    let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((start, end)) = name.split_once('*') else { return vec![pattern] };
    let entries = pattern.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let mut files: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

fn of_containerd(table: &Table) -> Found {
    let plugins = table.get("plugins");
    // By version of the configuration: 3, 2, 1.
    let names = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri"];
    let cni = names.iter().find_map(|name| plugins?.get(name)?.get("cni"));
    let of = |key| cni.and_then(|cni| cni.get(key));
    Found {
        conf_dir: of("conf_dir").and_then(path),
        bin_dirs: of("bin_dirs")
            .and_then(paths)
            .or_else(|| of("bin_dir").and_then(path).map(|one| vec![one])),
        imports: strings(table.get("imports")),
    }
}

fn of_crio(table: &Table) -> Found {
    let of = |key| table.get("crio")?.get("network")?.get(key);
    Found {
        conf_dir: of("network_dir").and_then(path),
        bin_dirs: of("plugin_dirs").and_then(paths),
        imports: Vec::new(),
    }
}

fn path(value: &Value) -> Option<PathBuf> {
    value.as_str().filter(|text| text.starts_with('/')).map(PathBuf::from)
}

fn paths(value: &Value) -> Option<Vec<PathBuf>> {
    let paths: Vec<PathBuf> = value.as_array()?.iter().filter_map(path).collect();
    (!paths.is_empty()).then_some(paths)
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let all = value.and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host with these files; those without content are sockets.
    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = host.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        host
    }

    fn layout(files: &[(&str, &str)]) -> (String, String) {
        let Layout { conf_dir, bin_dirs } = Layout::of_host(host(files).path());
        let bin_dirs: Vec<_> = bin_dirs.iter().map(|d| d.display().to_string()).collect();
        (conf_dir.display().to_string(), bin_dirs.join(" "))
    }

    fn is(conf_dir: &str, bin_dirs: &str) -> (String, String) {
        (conf_dir.to_owned(), bin_dirs.to_owned())
    }

    const CONTAINERD: &str = "etc/containerd/config.toml";

    #[test]
    fn containerd_of_every_version() {
        let usual = is("/etc/cni/net.d", "/opt/cni/bin");
        assert_eq!(layout(&[]), usual);
        for (text, expected) in [
            ("version = 2", usual.clone()),
            ("broken [", usual.clone()),
            (
                "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/a', '/b']\nconf_dir = '/c'",
                is("/c", "/a /b"),
            ),
            (
                "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/a\"\nconf_dir = \"/c\"",
                is("/c", "/a"),
            ),
            ("[plugins.cri.cni]\nconf_dir = \"/c\"\nbin_dir = 7", is("/c", "/opt/cni/bin")),
        ] {
            assert_eq!(layout(&[(CONTAINERD, text)]), expected, "{text}");
        }
        let imports = "imports = ['/etc/containerd/conf.d/*.toml', '/etc/one.toml']";
        let files = [
            (CONTAINERD, imports),
            (
                "etc/containerd/conf.d/a.toml",
                "[plugins.'io.containerd.grpc.v1.cri'.cni]\nconf_dir = '/first'",
            ),
            ("etc/containerd/conf.d/b.toml", "[plugins.'io.containerd.grpc.v1.cri'.cni]\nconf_dir = '/last'"),
            ("etc/containerd/conf.d/b.toml.bak", "[plugins.cri.cni]\nconf_dir = '/no'"),
            ("etc/one.toml", "[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/one'"),
        ];
        assert_eq!(layout(&files), is("/last", "/one"));
    }

    #[test]
    fn distributions() {
        let k3s = "[plugins.'io.containerd.cri.v1.runtime'.cni]\n\
                   bin_dirs = ['/var/lib/rancher/k3s/data/cni']\n\
                   conf_dir = '/var/lib/rancher/k3s/agent/etc/cni/net.d'";
        let files = [
            ("var/lib/rancher/k3s/agent/etc/containerd/config.toml", k3s),
            ("run/k3s/containerd/containerd.sock", ""),
            // Left by a docker that is installed besides.
            (CONTAINERD, "[plugins.cri.cni]\nconf_dir = '/docker'"),
        ];
        assert_eq!(
            layout(&files),
            is("/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni")
        );
        // The same files, and the other one runs.
        let files = [files[0], files[2], ("run/containerd/containerd.sock", "")];
        assert_eq!(layout(&files).0, "/docker");

        let microshift = [
            ("run/crio/crio.sock", ""),
            ("etc/crio/crio.conf", "[crio.network]\nnetwork_dir = '/etc/cni/net.d'\n"),
            (
                "etc/crio/crio.conf.d/10-microshift.conf",
                "[crio.network]\nplugin_dirs = ['/run/cni/bin', '/usr/libexec/cni']",
            ),
        ];
        assert_eq!(layout(&microshift), is("/etc/cni/net.d", "/run/cni/bin /usr/libexec/cni"));
        let openshift = [
            ("etc/crio/crio.conf.d/00-default", ""),
            (
                "etc/crio/crio.conf.d/00-default.conf",
                "[crio.network]\nnetwork_dir = '/etc/kubernetes/cni/net.d/'\nplugin_dirs = ['/var/lib/cni/bin', '/usr/libexec/cni']",
            ),
        ];
        assert_eq!(layout(&openshift), is("/etc/kubernetes/cni/net.d/", "/var/lib/cni/bin /usr/libexec/cni"));

        let talos = [
            ("etc/cri/containerd.toml", "imports = ['/etc/cri/conf.d/cri.toml']"),
            ("etc/cri/conf.d/cri.toml", "version = 3"),
        ];
        assert_eq!(layout(&talos), is("/etc/cni/net.d", "/opt/cni/bin"));
        let k0s = [
            ("etc/k0s/containerd.toml", "imports = ['/run/k0s/containerd-cri.toml']"),
            ("run/k0s/containerd.sock", ""),
            (
                "run/k0s/containerd-cri.toml",
                "[plugins.'io.containerd.grpc.v1.cri'.cni]\nbin_dir = '/opt/cni/bin'",
            ),
        ];
        assert_eq!(layout(&k0s), is("/etc/cni/net.d", "/opt/cni/bin"));
    }

    #[test]
    fn plugins_go_where_there_is_a_directory() {
        let host = host(&[("usr/libexec/cni/bridge", "")]);
        let layout =
            Layout { bin_dirs: vec!["/run/cni/bin".into(), "/usr/libexec/cni".into()], ..Layout::default() };
        assert_eq!(layout.bin_dir(host.path()), host.path().join("usr/libexec/cni"));
        assert_eq!(layout.bin_dir(Path::new("/nonexistent")), Path::new("/nonexistent/run/cni/bin"));
    }
}
