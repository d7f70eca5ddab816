//! The program in a list with the reference plugins, run by the reference library and by our runtime in turns.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use cni::{Attachment, NetworkList, Runtime};
use serde_json::json;

use crate::machine::{Addresses, CNI_PATH, Pod, Vf, program, run};

/// Where libcni keeps what ADD answered.
const CACHE: &str = "/var/lib/cni";
const NETWORK: &str = "lab-cnitool";

/// `CNITOOL`, else the one that `hack/test` builds.
fn cnitool() -> PathBuf {
    let built =
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/podrail/cnitool/bin/cnitool");
    let cnitool = std::env::var_os("CNITOOL").map_or_else(built, PathBuf::from);
    assert!(cnitool.is_file(), "no cnitool at {}: hack/test lab builds it", cnitool.display());
    cnitool
}

/// The network's file, and the directories where plugins are.
struct Setup {
    networks: tempfile::TempDir,
    path: Vec<PathBuf>,
}

impl Setup {
    fn new(list: &serde_json::Value) -> Self {
        let networks = tempfile::tempdir().unwrap();
        fs::write(networks.path().join("lab.conflist"), list.to_string()).unwrap();
        let program = PathBuf::from(program());
        Self { networks, path: vec![program.parent().unwrap().to_owned(), CNI_PATH.into()] }
    }

    fn runtime(&self) -> Runtime {
        Runtime { path: self.path.clone(), cache_dir: CACHE.into(), executor: Arc::new(cni::exec::Direct) }
    }

    fn libcni(&self, verb: &str, pod: &Pod) -> Output {
        Command::new(cnitool())
            .args([verb, NETWORK, &pod.netns()])
            .env("CNI_PATH", std::env::join_paths(&self.path).unwrap())
            .env("NETCONFPATH", self.networks.path())
            .env("CNI_IFNAME", &pod.ifname)
            .env("CAP_ARGS", r#"{"mac":"02:00:00:00:07:01"}"#)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn libcni_ok(&self, verb: &str, pod: &Pod) -> Vec<u8> {
        let output = self.libcni(verb, pod);
        assert!(output.status.success(), "cnitool {verb}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn libcni_and_our_runtime_take_over_from_each_other() {
    let (vf, pod, addresses) = (Vf::take(), Pod::new(), Addresses::new());
    let before = vf.snapshot();
    let list = json!({"cniVersion": "1.0.0", "name": NETWORK, "plugins": [
        {"type": "sriov", "deviceID": vf.address, "vlan": 7, "capabilities": {"mac": true}, "ipam": addresses.ipam()},
        {"type": "tuning", "promisc": true},
    ]});
    let setup = Setup::new(&list);
    let (list, runtime) = (NetworkList::parse(list.to_string().as_bytes()).unwrap(), setup.runtime());
    let assert_attached = || {
        assert_eq!(vf.settings()["vlan_list"][0]["vlan"], 7);
        let link = vf.link(Some(&pod)).unwrap();
        assert_eq!((&link["ifname"], &link["address"]), (&json!(pod.ifname), &json!("02:00:00:00:07:01")));
        assert_eq!(link["promiscuity"], 1, "what the plugin after it does");
    };

    let printed = setup.libcni_ok("add", &pod);
    assert_attached();
    setup.libcni_ok("check", &pod);
    let (number, pf) = (vf.index.to_string(), &vf.pf);
    run("ip", &["link", "set", pf, "vf", &number, "vlan", "8"]);
    let drifted = setup.libcni("check", &pod);
    let complaint = String::from_utf8_lossy(&drifted.stderr);
    assert!(!drifted.status.success() && complaint.contains("vlan 8"), "{complaint}");
    run("ip", &["link", "set", pf, "vf", &number, "vlan", "7"]);

    let mut cached = runtime.cache().attachments(None).unwrap();
    cached.retain(|cached| cached.network == NETWORK);
    let attachment = Attachment { netns: Some(pod.netns().into()), ..Attachment::from(cached.remove(0)) };
    let result = runtime.cache().result(&list, &attachment.container_id, &pod.ifname).unwrap();
    assert_eq!(result, cni::CniResult::parse(&printed, list.version).unwrap());
    runtime.check(&list, &attachment).unwrap();
    runtime.del(&list, &attachment).unwrap();
    vf.assert_is(&before, "attached by libcni, detached by us");
    assert!(addresses.held().is_empty());

    runtime.add(&list, &attachment).unwrap();
    assert_attached();
    setup.libcni_ok("check", &pod);
    setup.libcni_ok("del", &pod);
    vf.assert_is(&before, "attached by us, detached by libcni");
    assert!(addresses.held().is_empty() && pod.is_empty());
    let left = format!("results/{NETWORK}-{}-{}", attachment.container_id, pod.ifname);
    assert!(!Path::new(CACHE).join(left).exists());
}
