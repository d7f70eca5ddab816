//! One look after the other, with a kubelet that does or does not say what containers hold.

use std::fs;
use std::os::unix::net::UnixListener;

use host::sysfs::fake::FakeSysfs;
use tempfile::TempDir;

use super::*;
use crate::cli;

/// A node with two VFs for `intel.com/net`, and none of kubelet's sockets.
struct Node {
    fake: FakeSysfs,
    directory: TempDir,
    daemon: Daemon,
}

impl Node {
    fn new() -> Self {
        let fake = FakeSysfs::new();
        for address in ["0000:3b:10.0", "0000:3b:10.1"] {
            fake.pci(address).driver("igbvf");
        }
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("kubelet/pod-resources")).unwrap();
        let file = directory.path().join("config.json");
        let conf = r#"{"resourceList": [{"resourceName": "net", "selectors": {"drivers": ["igbvf"]}},
            {"resourceName": "dpdk", "selectors": {"drivers": ["vfio-pci"]}}]}"#;
        fs::write(&file, conf).unwrap();
        let flags = [
            format!("-config-file={}", file.display()),
            format!("-sysfs-root={}", fake.root().display()),
            format!("-kubelet-root={}", directory.path().join("kubelet").display()),
        ];
        let options = cli::parse(flags, None).unwrap();
        let (conf, _) = config::load(&file, "intel.com").unwrap();
        let daemon = Daemon::new(&options, conf, Changes::new(&file, fake.sysfs()));
        Self { fake, directory, daemon }
    }

    /// Looks at everything; what kubelet is told of each resource.
    async fn look(&mut self) -> [Vec<String>; 2] {
        self.daemon.scope = Scope::Everything;
        self.daemon.scan(Duration::from_millis(50)).await;
        ["dpdk", "net"].map(|name| {
            let served = self.daemon.served.iter().find(|(resource, _)| resource.name == name);
            let told = served.unwrap().1.pool.borrow().advertised();
            told.iter().map(|device| format!("{} {}", device.id, device.health)).collect()
        })
    }

    /// A kubelet that takes connections and says nothing.
    fn hung_kubelet(&self) -> UnixListener {
        UnixListener::bind(self.directory.path().join("kubelet/pod-resources/kubelet.sock")).unwrap()
    }
}

#[tokio::test]
async fn nothing_is_withdrawn_while_kubelet_does_not_say_who_holds_it() {
    let mut node = Node::new();
    let both = ["0000:3b:10.0 Healthy", "0000:3b:10.1 Healthy"].map(str::to_owned).to_vec();
    assert_eq!(node.look().await, [vec![], both.clone()]);
    let hung = node.hung_kubelet();
    node.fake.remove("0000:3b:10.0");
    node.fake.pci("0000:3b:10.1").driver("vfio-pci");
    let unhealthy = ["0000:3b:10.0 Unhealthy", "0000:3b:10.1 Unhealthy"].map(str::to_owned).to_vec();
    assert_eq!(node.look().await, [vec![], unhealthy.clone()]);
    assert_eq!(node.daemon.unanswered, Some(ASK_AGAIN));
    // It is killed, and its socket stays: the next one will know.
    drop(hung);
    assert_eq!(node.look().await, [vec![], unhealthy]);
    assert!(node.daemon.unanswered > Some(ASK_AGAIN));
    // A device that comes back is offered again.
    node.fake.pci("0000:3b:10.0").driver("igbvf");
    node.fake.pci("0000:3b:10.1").driver("igbvf");
    assert_eq!(node.look().await, [vec![], both]);
}

#[tokio::test]
async fn a_kubelet_that_cannot_say_who_holds_what_keeps_nothing() {
    let mut node = Node::new();
    node.look().await;
    node.fake.pci("0000:3b:10.1").driver("vfio-pci");
    let moved = [vec!["0000:3b:10.1 Healthy".to_owned()], vec!["0000:3b:10.0 Healthy".to_owned()]];
    assert_eq!(node.look().await, moved);
    assert_eq!(node.daemon.unanswered, None);
}
