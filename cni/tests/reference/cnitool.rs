//! libcni itself, by `cnitool`: what it attached is checked and detached by us, and the other way round.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cni::{Attachment, NetworkList, Runtime, Version};
use serde_json::Value;

use super::node::{Node, plugins, versions};

/// Where libcni keeps what ADD answered, for whatever it is part of.
const CACHE: &str = "/var/lib/cni";
const IFNAME: &str = "net1";
const ADDRESS: &str = "10.9.0.5";

/// A network that both runtimes use on one node.
struct Network<'a> {
    node: &'a Node,
    list: NetworkList,
}

impl<'a> Network<'a> {
    fn new(node: &'a Node, version: Version) -> Self {
        // The cache is one for the whole machine, where another run of this test may be on its way.
        let name = format!("cnitool-{}-{version}", std::process::id());
        // One address, so that both are given the same.
        let list = node.list(&format!(
            r#"{{"cniVersion":"{version}","name":"{name}","plugins":[
                {{"type":"bridge","bridge":"br9","capabilities":{{"mac":true}},"ipam":{{"type":"host-local","dataDir":"DATA",
                  "ranges":[[{{"subnet":"10.9.0.0/24","rangeStart":"{ADDRESS}","rangeEnd":"{ADDRESS}"}}]]}}}},
                {{"type":"tuning","mtu":1400}}]}}"#
        ));
        let networks = node.directory.path().join("networks");
        fs::create_dir_all(&networks).unwrap();
        fs::write(networks.join("net.conflist"), list.to_vec()).unwrap();
        Self { node, list }
    }

    /// Our runtime, with libcni's cache.
    fn runtime(&self) -> Runtime {
        Runtime { cache_dir: CACHE.into(), ..self.node.runtime() }
    }

    /// Runs `cnitool`; what it printed.
    fn libcni(&self, verb: &str) -> Vec<u8> {
        let output = Command::new(program())
            .args([verb, &self.list.name])
            .arg(&self.node.container.path)
            .env("CNI_PATH", plugins())
            .env("NETCONFPATH", self.node.directory.path().join("networks"))
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=pod")
            .env("CAP_ARGS", r#"{"mac":"02:00:00:00:09:01","unused":[1,2]}"#)
            .output()
            .unwrap();
        assert!(output.status.success(), "cnitool {verb}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// The one attachment of the network, as the cache has it, and the file.
    fn cached(&self) -> (Attachment, Value) {
        let cached = self.runtime().cache().attachments(None).unwrap();
        let mut cached = cached.into_iter().filter(|cached| cached.network == self.list.name);
        let mut attachment = Attachment::from(cached.next().unwrap());
        assert!(cached.next().is_none());
        let file = format!("results/{}-{}-{IFNAME}", self.list.name, attachment.container_id);
        let mut file: Value =
            serde_json::from_slice(&fs::read(Path::new(CACHE).join(file)).unwrap()).unwrap();
        // Those of the bridge and of its port are made up by the kernel each time, as is the port's name.
        for interface in &mut file["result"]["interfaces"].as_array_mut().unwrap()[..2] {
            interface["mac"].take();
            interface["name"].take();
        }
        // Since it knows 1.1.0, libcni leaves an empty `dns` out of a result of 1.0.0.
        let result = file["result"].as_object_mut().unwrap();
        result.retain(|key, value| key != "dns" || *value != serde_json::json!({}));
        // libcni remembers the namespace from 1.2 on only.
        let netns = &self.node.container.path;
        assert_eq!(attachment.netns.get_or_insert_with(|| netns.clone()), netns);
        file.as_object_mut().unwrap().remove("netns");
        (attachment, file)
    }

    fn check_attached(&self) {
        let addresses = self.node.addresses();
        assert!(addresses.contains(&format!("inet {ADDRESS}/24")), "{addresses}");
        assert!(self.lease().exists());
    }

    fn check_detached(&self) {
        assert!(!self.node.addresses().contains(IFNAME), "{}", self.node.addresses());
        assert!(!self.lease().exists());
        let cached = self.runtime().cache().attachments(None).unwrap();
        assert!(cached.iter().all(|cached| cached.network != self.list.name));
    }

    fn lease(&self) -> PathBuf {
        self.node.directory.path().join("data").join(&self.list.name).join(ADDRESS)
    }
}

/// `CNITOOL`, else the one that `hack/test` builds.
fn program() -> PathBuf {
    let built =
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/podrail/cnitool/bin/cnitool");
    let program = std::env::var_os("CNITOOL").map_or_else(built, PathBuf::from);
    assert!(program.is_file(), "no cnitool at {}: hack/test netns builds it", program.display());
    program
}

#[test]
fn libcni_and_our_runtime_take_over_from_each_other() {
    for version in versions().into_iter().filter(|version| *version >= Version::V0_3_1) {
        Node::run(|node| {
            let network = Network::new(node, version);
            let (list, runtime) = (&network.list, network.runtime());

            let printed = network.libcni("add");
            network.check_attached();
            let (attachment, by_libcni) = network.cached();
            assert_eq!(attachment.args[1], ("K8S_POD_NAME".to_owned(), "pod".to_owned()));
            assert_eq!(attachment.capabilities.get("unused"), Some("[1,2]"));
            let remembered = runtime.cache().result(list, &attachment.container_id, IFNAME).unwrap();
            assert_eq!(remembered, cni::CniResult::parse(&printed, version).unwrap(), "{version}");
            if version.has_check() {
                runtime.check(list, &attachment).unwrap();
            }
            runtime.del(list, &attachment).unwrap();
            network.check_detached();
            network.libcni("del");

            let result = runtime.add(list, &attachment).unwrap();
            assert_eq!(result.interfaces[2].mac, "02:00:00:00:09:01");
            network.check_attached();
            assert_eq!(network.cached().1, by_libcni, "{version}");
            if version.has_check() {
                network.libcni("check");
            }
            network.libcni("del");
            network.check_detached();
            runtime.del(list, &attachment).unwrap();
        });
    }
}
