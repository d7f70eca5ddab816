//! Configurations that change while the plugin runs.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::machine::Pf;
use crate::plugin::Plugin;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs VFs: run in the lab"]
async fn a_config_map_changes() {
    let pf = Pf::take();
    let pools = |split: usize| {
        json!([
            {"resourceName": "low", "selectors": {"pfNames": [format!("{}#0-{}", pf.name, split - 1)]}},
            {"resourceName": "high", "selectors": {"pfNames": [format!("{}#{split}-63", pf.name)]}},
        ])
    };
    let plugin = Plugin::start(&pools(1));
    let (mut low, mut high) = (plugin.list("low").await, plugin.list("high").await);
    let vfs = pf.vfs();
    low.becomes("at the start", &vfs[..1], "Healthy").await;
    plugin.configure(&pools(3));
    low.becomes("the link ..data leads elsewhere", &vfs[..3], "Healthy").await;
    high.becomes("the link ..data leads elsewhere", &vfs[3..], "Healthy").await;

    let failures = "sriov_device_plugin_config_reload_failures_total";
    let stale = "sriov_device_plugin_config_stale";
    assert_eq!((plugin.metric(failures), plugin.metric(stale)), ("0".to_owned(), "0".to_owned()));
    plugin.configure_with(r#"{"resourceList": [{"resourceName": "low", "selectors": {"pfNames": "x"}}]}"#);
    let deadline = Instant::now() + Duration::from_secs(30);
    while plugin.metric(failures) != "1" {
        assert!(Instant::now() < deadline, "the bad configuration is not counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(plugin.metric(stale), "1");
    // What the kernel tells still comes through, by the old configuration.
    pf.bind(&vfs[0], None);
    low.becomes("a driver is gone while the configuration is bad", &vfs[1..3], "Healthy").await;
    plugin.configure(&pools(2));
    low.becomes("a good configuration", &vfs[1..2], "Healthy").await;
    high.becomes("a good configuration", &vfs[2..], "Healthy").await;
    assert_eq!((plugin.metric(failures), plugin.metric(stale)), ("1".to_owned(), "0".to_owned()));

    plugin.configure_unseen(&pools(4));
    plugin.hang_up();
    low.becomes("SIGHUP", &vfs[1..4], "Healthy").await;
    high.becomes("SIGHUP", &vfs[4..], "Healthy").await;
}
