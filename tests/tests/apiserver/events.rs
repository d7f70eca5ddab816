//! Events, under both of their API groups.

use serde_json::{Value, json};

use crate::cluster::{Cluster, refusal};

const OLD: &str = "/api/v1/namespaces/{ns}/events";
const NEW: &str = "/apis/events.k8s.io/v1/namespaces/{ns}/events";

#[tokio::test]
async fn an_event_is_seen_in_both_groups() {
    let cluster = Cluster::start("events").await;
    let about = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "namespace": cluster.namespace});
    let event = json!({
        "metadata": {"name": "old"}, "involvedObject": about, "reason": "FailedCreatePodSandBox",
        "message": "no VF", "type": "Warning", "source": {"component": "kubelet"}, "count": 2,
    });
    cluster.post(OLD, &event).await.unwrap();
    let seen = cluster.get(&format!("{NEW}/old")).await.unwrap();
    assert_eq!((&seen["note"], &seen["regarding"]["name"]), (&json!("no VF"), &json!("p")));
    assert_eq!((&seen["deprecatedCount"], &seen["apiVersion"]), (&json!(2), &json!("events.k8s.io/v1")));
    cluster.post(NEW, &new_event(&cluster)).await.unwrap();
    let seen = cluster.get(&format!("{OLD}/new")).await.unwrap();
    assert_eq!((&seen["message"], &seen["reportingComponent"]), (&json!("net1"), &json!("podrail/multus")));
    let query =
        format!("{OLD}?fieldSelector=involvedObject.name%3Dp,reason%3DFailedCreatePodSandBox,type%3DWarning");
    let found = cluster.get(&query).await.unwrap();
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_new_group_is_strict() {
    let cluster = Cluster::start("strict").await;
    let broken = [
        ("eventTime", Value::Null),
        ("reportingController", "a/b/c".into()),
        ("reportingInstance", Value::Null),
        ("action", Value::Null),
        ("type", "Odd".into()),
        ("note", "x".repeat(1025).into()),
        ("deprecatedCount", 1.into()),
        ("regarding", json!({"kind": "Pod", "name": "p"})),
    ];
    for (field, value) in broken {
        let mut event = new_event(&cluster);
        event[field] = value;
        assert_eq!(cluster.post(NEW, &event).await, refusal(422, "Invalid"), "{field}");
    }
    let elsewhere = json!({"kind": "Pod", "name": "p", "namespace": "elsewhere"});
    let stray = json!({"metadata": {"name": "stray"}, "involvedObject": elsewhere});
    assert_eq!(cluster.post(OLD, &stray).await, refusal(422, "Invalid"));
}

fn new_event(cluster: &Cluster) -> Value {
    let about = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "namespace": cluster.namespace});
    json!({
        "metadata": {"name": "new"}, "regarding": about, "reason": "AddedInterface", "note": "net1", "type": "Normal",
        "eventTime": "2020-01-01T00:00:00.000000Z", "reportingController": "podrail/multus",
        "reportingInstance": "node", "action": "Attach",
    })
}
