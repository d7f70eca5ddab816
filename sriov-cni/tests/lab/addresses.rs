//! Addresses of pods, as their neighbours and a DHCP server see them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::machine::{CNI_PATH, Pod, Vf};
use crate::netdevice::inside;

/// Faults 5 and 8 of docs/sriov.md.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn neighbours_hear_of_the_address() {
    let vfs = Vf::take_many(3);
    let (pod, neighbour) = (Pod::new(), Pod::new());
    let other = pod.with_interface("other");
    let with = |vf: &Vf, host: u32| {
        let addresses =
            json!([{"address": format!("192.0.2.{host}/24")}, {"address": format!("2001:db8::{host}/64")}]);
        vf.conf(&json!({"vlan": 100, "ipam": {"type": "static", "addresses": addresses}}))
    };
    // A pod with another interface in front, which must not be the one that is heard.
    other.add(&vfs[0].conf(&json!({"vlan": 200}))).ok();
    neighbour.add(&with(&vfs[1], 1)).ok();
    let wanted = inside(&vfs[1], &neighbour)["ifname"].as_str().unwrap().to_owned();
    let known = |address: &str| neighbour.ip(&["neighbour", "show", address]);
    // The emulated NIC may take longer to see its link than ADD waits; then nobody hears.
    let heard = (0..10).any(|_| {
        for address in ["192.0.2.2", "2001:db8::2"] {
            let entry = [address, "lladdr", "02:00:00:00:00:99", "nud", "stale", "dev", &wanted];
            neighbour.ip(&[&["neighbour", "replace"], &entry[..]].concat());
        }
        pod.add(&with(&vfs[2], 2)).ok();
        let mac = inside(&vfs[2], &pod)["address"].as_str().unwrap().to_owned();
        let heard = known("192.0.2.2").contains(&mac) && known("2001:db8::2").contains(&mac);
        pod.del(&with(&vfs[2], 2)).ok();
        heard
    });
    assert!(heard, "{} {}", known("192.0.2.2"), known("2001:db8::2"));
    other.del(&vfs[0].conf(&json!({}))).ok();
    neighbour.del(&with(&vfs[1], 1)).ok();
}

/// A program that runs as long as this value lives.
struct Running(Child);

impl Running {
    fn start(program: &str, arguments: &[&str]) -> Self {
        Self(Command::new(program).args(arguments).stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_dhcp_server_gives_the_address_and_gets_it_back() {
    let vfs = Vf::take_many(3);
    let (server, pod) = (Pod::new(), Pod::new());
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let before = vfs[1].snapshot();
    let own = json!([{"address": "192.0.2.1/24"}]);
    let own = vfs[0].conf(&json!({"vlan": 100, "ipam": {"type": "static", "addresses": own}}));
    server.add(&own).ok();

    fs::write(path("leases"), "").unwrap();
    let conf = format!(
        "start 192.0.2.50\nend 192.0.2.50\ninterface {}\nlease_file {}\npidfile {}\n\
         opt subnet 255.255.255.0\nopt router 192.0.2.1\nopt lease 600\n",
        server.ifname,
        path("leases"),
        path("pid")
    );
    fs::write(path("udhcpd.conf"), conf).unwrap();
    let _server = Running::start(
        "ip",
        &["netns", "exec", &server.name, "busybox", "udhcpd", "-f", &path("udhcpd.conf")],
    );
    let plugin = format!("{CNI_PATH}/dhcp");
    let _daemon = Running::start(&plugin, &["daemon", "-socketpath", &path("socket")]);
    while !Path::new(&path("socket")).exists() {
        thread::sleep(Duration::from_millis(100));
    }

    let conf = |vf: &Vf| {
        vf.conf(&json!({"vlan": 100, "ipam": {"type": "dhcp", "daemonSocketPath": path("socket")}}))
    };
    let result = pod.add(&conf(&vfs[1])).ok();
    assert_eq!(result["ips"][0]["address"], "192.0.2.50/24");
    assert_eq!(result["ips"][0]["gateway"], "192.0.2.1");
    assert!(pod.can_ping("192.0.2.1"));
    pod.del(&conf(&vfs[1])).ok();
    vfs[1].assert_is(&before, "after DEL");
    // There is one address to be had: another VF gets it only because it was given back.
    let next = Pod::new();
    assert_eq!(next.add(&conf(&vfs[2])).ok()["ips"][0]["address"], "192.0.2.50/24");
    next.del(&conf(&vfs[2])).ok();
    server.del(&own).ok();
}
