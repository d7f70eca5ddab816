//! Devices that a container holds.

use serde_json::json;

use crate::machine::Pf;
use crate::plugin::Plugin;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs VFs: run in the lab"]
async fn what_a_container_holds_stays_in_the_list() {
    let pf = Pf::take();
    let plugin = Plugin::start(&json!([
        {"resourceName": "net", "ignoreLink": true, "selectors": {"drivers": ["igbvf"], "pfNames": [pf.name]}},
        {"resourceName": "dpdk", "selectors": {"drivers": ["vfio-pci"], "pfNames": [pf.name]}},
    ]));
    let (mut net, mut dpdk) = (plugin.list("net").await, plugin.list("dpdk").await);
    let vfs = pf.vfs();
    let (held, others) = vfs.split_first().unwrap();
    net.becomes("at the start", &vfs, "Healthy").await;
    plugin.hold("net", held);

    let with_held = |held_is: &str, others_are: &[String]| -> Vec<String> {
        let others = others_are.iter().map(|vf| format!("{vf} Healthy"));
        others.chain([format!("{held} {held_is}")]).collect()
    };
    pf.bind(held, None);
    net.becomes_exactly("its driver is gone", &with_held("Unhealthy", others)).await;
    pf.bind(held, Some("vfio-pci"));
    net.becomes_exactly("it has a driver for another pool", &with_held("Unhealthy", others)).await;
    pf.bind(held, Some("igbvf"));
    net.becomes_exactly("its driver is back", &with_held("Healthy", others)).await;
    pf.make_vfs(0);
    net.becomes_exactly("all VFs are gone", &with_held("Unhealthy", &[])).await;
    pf.make_vfs(vfs.len());
    net.becomes_exactly("all VFs are back", &with_held("Healthy", others)).await;
    net.always_had(held);
    dpdk.becomes("in the end", &[], "Healthy").await;
    assert_eq!(dpdk.changes(), 1, "the other pool must never have had it");
}
