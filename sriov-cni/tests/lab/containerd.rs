//! The program as a container runtime's own libcni calls it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::machine::{Addresses, CNI_PATH, Vf, program, run};

/// Where the runtime's command line looks for networks and plugins.
const NETWORKS: &str = "/etc/cni/net.d";
const PLUGINS: &str = "/opt/cni/bin";
/// Where every libcni keeps what ADD answered.
const CACHE: &str = "/var/lib/cni";
const NETWORK: &str = "lab-containerd";

/// A containerd of the test's own, with one network and a root file system for containers.
struct Containerd {
    directory: tempfile::TempDir,
    daemon: Child,
    network: PathBuf,
}

impl Containerd {
    fn start(plugin: &serde_json::Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.overlayfs\", \"io.containerd.snapshotter.v1.zfs\", \
             \"io.containerd.tracing.processor.v1.otlp\", \"io.containerd.internal.v1.tracing\"]\n[grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("socket")
        );
        fs::write(path("config.toml"), config).unwrap();
        fs::create_dir_all(path("rootfs/bin")).unwrap();
        fs::copy("/bin/busybox", path("rootfs/bin/busybox")).unwrap();

        for folder in [NETWORKS, PLUGINS] {
            fs::create_dir_all(folder).unwrap();
        }
        for (name, target) in
            [("sriov", PathBuf::from(program())), ("host-local", Path::new(CNI_PATH).join("host-local"))]
        {
            let link = Path::new(PLUGINS).join(name);
            let _ = fs::remove_file(&link);
            symlink(target, link).unwrap();
        }
        let network = Path::new(NETWORKS).join("00-lab.conflist");
        let list = json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": [plugin]});
        fs::write(&network, list.to_string()).unwrap();

        let log = fs::File::create(path("log")).unwrap();
        let daemon = Command::new("containerd")
            .arg("--config")
            .arg(path("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let containerd = Self { directory, daemon, network };
        let answers = || containerd.ctr().arg("version").output().unwrap().status.success();
        let is_up = (0..300).any(|_| {
            thread::sleep(Duration::from_millis(200));
            answers()
        });
        assert!(is_up, "{}", fs::read_to_string(containerd.directory.path().join("log")).unwrap());
        containerd
    }

    fn ctr(&self) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.directory.path().join("socket"));
        ctr
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_file(&self.network);
    }
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_container_gets_the_vf_and_its_end_gives_it_back() {
    let (vf, addresses) = (Vf::take(), Addresses::new());
    let before = vf.snapshot();
    let containerd = Containerd::start(&json!({
        "type": "sriov", "deviceID": vf.address, "vlan": 100, "mtu": 1400, "ipam": addresses.ipam(),
    }));
    let script = "ip address show dev eth0; ip route; echo END; cat";
    let mut container = containerd
        .ctr()
        .args(["run", "--rm", "--cni", "--rootfs"])
        .arg(containerd.directory.path().join("rootfs"))
        .args(["vf-owner", "/bin/busybox", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(container.stdout.take().unwrap()).lines().map(Result::unwrap);
    let seen: Vec<_> = output.by_ref().take_while(|line| line != "END").collect();
    let seen = seen.join("\n");
    for part in ["mtu 1400", "192.0.2.2/24", "2001:db8::2/64", "198.51.100.0/24"] {
        assert!(seen.contains(part), "{part:?} is not in {seen}");
    }
    assert_eq!(vf.settings()["vlan_list"][0]["vlan"], 100);

    // What libcni remembers of it can be read here.
    let cache = cni::cache::Cache::new(Path::new(CACHE));
    let cached = cache.attachments(Some("default-vf-owner")).unwrap();
    let [cached] = &cached[..] else { panic!("{cached:?}") };
    assert_eq!((cached.network.as_str(), cached.ifname.as_str()), (NETWORK, "eth0"));
    let list = cni::NetworkList::parse(&cached.config).unwrap();
    let result = cache.result(&list, &cached.container_id, &cached.ifname).unwrap();
    assert_eq!(result.ips.len(), 2);

    // The container ends, and DEL comes when its namespace is gone.
    drop(container.stdin.take());
    assert!(container.wait().unwrap().success());
    vf.assert_is(&before, "after the container's end");
    assert!(addresses.held().is_empty());
    assert!(cache.attachments(Some("default-vf-owner")).unwrap().is_empty());
    run("udevadm", &["settle"]);
}
