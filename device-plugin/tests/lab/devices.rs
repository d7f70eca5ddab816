//! Devices that come, go and change while the plugin runs.

use serde_json::json;

use crate::machine::Pf;
use crate::plugin::Plugin;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs VFs: run in the lab"]
async fn vfs_come_and_go() {
    let pf = Pf::take();
    pf.make_vfs(0);
    // The link goes with every change of the number, and comes back when it likes: it has a test of its own.
    let pool = json!({"resourceName": "vfs", "selectors": {"pfNames": [pf.name]}, "ignoreLink": true});
    let plugin = Plugin::start(&json!([pool]));
    let mut list = plugin.list("vfs").await;
    // The PF itself, which has no VFs now, is not given away.
    list.becomes("at the start", &[], "Healthy").await;
    for count in [4, 0, 7] {
        pf.make_vfs(count);
        list.becomes(&format!("numvfs is {count}"), &pf.vfs(), "Healthy").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs VFs: run in the lab"]
async fn a_vf_changes_its_driver() {
    let pf = Pf::take();
    let plugin = Plugin::start(&json!([
        {"resourceName": "net", "selectors": {"drivers": ["igbvf"], "pfNames": [pf.name]}},
        {"resourceName": "dpdk", "selectors": {"drivers": ["vfio-pci"], "rootDevices": [pf.address]}},
    ]));
    let (mut net, mut dpdk) = (plugin.list("net").await, plugin.list("dpdk").await);
    let vfs = pf.vfs();
    let (vf, others) = vfs.split_first().unwrap();
    net.becomes("at the start", &vfs, "Healthy").await;
    for driver in [Some("vfio-pci"), None, Some("vfio-pci"), Some("igbvf"), None, Some("igbvf")] {
        pf.bind(vf, driver);
        let situation = format!("the driver is {}", driver.unwrap_or("none"));
        let in_net = if driver == Some("igbvf") { &vfs } else { others };
        let in_dpdk = if driver == Some("vfio-pci") { std::slice::from_ref(vf) } else { &[] };
        net.becomes(&situation, in_net, "Healthy").await;
        dpdk.becomes(&situation, in_dpdk, "Healthy").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs VFs: run in the lab"]
async fn a_pf_gets_another_name() {
    let pf = Pf::take();
    let plugin = Plugin::start(&json!([
        {"resourceName": "old", "selectors": {"pfNames": [format!("{}#0-2", pf.name)]}},
        {"resourceName": "new", "selectors": {"pfNames": ["rail0#1-3"]}},
    ]));
    let (mut old, mut new) = (plugin.list("old").await, plugin.list("new").await);
    let vfs = pf.vfs();
    old.becomes("at the start", vfs.get(0..3).unwrap(), "Healthy").await;
    pf.rename(&pf.name, "rail0");
    new.becomes("the new name", vfs.get(1..4).unwrap(), "Healthy").await;
    old.becomes("the new name", &[], "Healthy").await;
    pf.rename("rail0", &pf.name);
    old.becomes("the old name", vfs.get(0..3).unwrap(), "Healthy").await;
    new.becomes("the old name", &[], "Healthy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs VFs: run in the lab"]
async fn a_pf_goes_down_and_comes_up() {
    let pf = Pf::take();
    let vfs = pf.vfs();
    let (vf, others) = vfs.split_first().unwrap();
    pf.bind(vf, Some("vfio-pci"));
    let plugin = Plugin::start(&json!([
        {"resourceName": "net", "selectors": {"drivers": ["igbvf"], "pfNames": [pf.name]}},
        {"resourceName": "dpdk", "ignoreLink": true, "selectors": {"drivers": ["vfio-pci"], "pfNames": [pf.name]}},
    ]));
    let (mut net, mut dpdk) = (plugin.list("net").await, plugin.list("dpdk").await);
    net.becomes("at the start", others, "Healthy").await;
    pf.link_down();
    net.becomes("the PF is down", others, "Unhealthy").await;
    pf.link_up();
    net.becomes("the PF is up", others, "Healthy").await;
    dpdk.becomes("with ignoreLink", std::slice::from_ref(vf), "Healthy").await;
    assert_eq!(dpdk.changes(), 1, "with ignoreLink nothing changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs VFs: run in the lab"]
async fn a_pf_is_unplugged() {
    let pf = Pf::take();
    let plugin = Plugin::start(
        &json!([{"resourceName": "vfs", "selectors": {"drivers": ["igbvf"], "pfNames": [pf.name]}}]),
    );
    let mut list = plugin.list("vfs").await;
    let vfs = pf.vfs();
    list.becomes("at the start", &vfs, "Healthy").await;
    // VFs cannot be unplugged one by one: the kernel has no `remove` for them.
    pf.unplug();
    list.becomes("the PF is gone, with its VFs", &[], "Healthy").await;
    pf.plug();
    pf.make_vfs(vfs.len());
    list.becomes("all are back", &vfs, "Healthy").await;
}
