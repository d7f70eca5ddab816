//! Pods: status, binding, graceful deletion.

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, JSON, MERGE, PODS, Refusal, STRATEGIC, pod, refusal, unbound_pod};

#[tokio::test]
async fn a_pod_and_its_status_change_apart() {
    let cluster = Cluster::start("status").await;
    let mut body = pod("p");
    body["status"] = json!({"phase": "Running"});
    let made = cluster.post(PODS, &body).await.unwrap();
    assert_eq!(made["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(made["spec"]["terminationGracePeriodSeconds"], 30);
    let (path, status) = (&format!("{PODS}/p"), &format!("{PODS}/p/status"));

    let patch = json!({"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Failed"}});
    let patched = cluster.patch(path, MERGE, &patch).await.unwrap();
    assert_eq!(
        (&patched["metadata"]["labels"]["a"], &patched["status"]["phase"]),
        (&json!("b"), &json!("Pending"))
    );

    let patch = json!({
        "metadata": {"annotations": {"k8s.v1.cni.cncf.io/network-status": "[]"}},
        "spec": {"containers": [{"name": "c", "image": "z"}]},
        "status": {"phase": "Running", "podIP": "10.1.2.3"},
    });
    let patched = cluster.patch(status, MERGE, &patch).await.unwrap();
    assert_eq!(patched["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"], "[]");
    assert_eq!(patched["status"]["phase"], "Running");
    assert_eq!(patched["status"]["podIPs"], json!([{"ip": "10.1.2.3"}]));
    assert_eq!(patched["spec"]["containers"], made["spec"]["containers"]);

    let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    cluster.patch(status, STRATEGIC, &patch).await.unwrap();
    let both = json!([{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}]);
    let patch = json!({"status": {"conditions": both}});
    let patched = cluster.patch(status, STRATEGIC, &patch).await.unwrap();
    assert_eq!(patched["status"]["conditions"].as_array().unwrap().len(), 2);

    assert_eq!(
        cluster.patch(path, MERGE, &json!({"spec": {"hostname": "h"}})).await,
        refusal(422, "Invalid")
    );
    let image = json!([{"op": "replace", "path": "/spec/containers/0/image", "value": "j"}]);
    assert!(cluster.patch(path, JSON, &image).await.is_ok());
    let other = json!({"metadata": {"uid": "another"}});
    assert_eq!(cluster.patch(status, MERGE, &other).await, refusal(422, "Invalid"));
    assert_eq!(cluster.put(status, &made).await, refusal(409, "Conflict"));
    cluster.delete(path, &json!({"gracePeriodSeconds": 0})).await.unwrap();
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let cluster = Cluster::start("binding").await;
    cluster.post(PODS, &unbound_pod("p")).await.unwrap();
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "nowhere"},
    });
    let path = &format!("{PODS}/p/binding");
    assert_eq!(cluster.post(path, &binding).await.unwrap()["status"], "Success");
    assert_eq!(cluster.post(path, &binding).await, refusal(409, "Conflict"));
    let bound = cluster.get(&format!("{PODS}/p")).await.unwrap();
    assert_eq!(bound["spec"]["nodeName"], "nowhere");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    cluster.delete(&format!("{PODS}/p"), &json!({"gracePeriodSeconds": 0})).await.unwrap();
}

#[tokio::test]
async fn a_pod_on_a_node_goes_when_kubelet_says_so() {
    let cluster = Cluster::start("graceful").await;
    let path = &format!("{PODS}/p");
    let made = cluster.post(PODS, &pod("p")).await.unwrap();
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let version = made["metadata"]["resourceVersion"].as_str().unwrap();
    let events = api.watch(&WatchParams::default().fields("metadata.name=p"), version).await.unwrap();

    let grace =
        |answer: Result<Value, Refusal>| answer.unwrap()["metadata"]["deletionGracePeriodSeconds"].clone();
    assert_eq!(grace(cluster.delete(path, &Value::Null).await), 30);
    let longer = json!({"gracePeriodSeconds": 50});
    assert_eq!(grace(cluster.delete(path, &longer).await), 30, "only a shorter one counts");
    let shorter = json!({"gracePeriodSeconds": 5});
    assert_eq!(grace(cluster.delete(path, &shorter).await), 5);
    assert_eq!(grace(cluster.delete(path, &shorter).await), 5);
    let annotated = json!({"metadata": {"annotations": {"still": "here"}}});
    assert!(cluster.patch(&format!("{path}/status"), MERGE, &annotated).await.is_ok());
    let last = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "another"}});
    assert_eq!(cluster.delete(path, &last).await, refusal(409, "Conflict"));
    let last = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": made["metadata"]["uid"]}});
    assert_eq!(grace(cluster.delete(path, &last).await), 0);
    assert_eq!(cluster.get(path).await, refusal(404, "NotFound"));

    let seen: Vec<(&str, Option<i64>)> = events
        .map_ok(|event| match event {
            WatchEvent::Modified(pod) => ("MODIFIED", pod.metadata.deletion_grace_period_seconds),
            WatchEvent::Deleted(pod) => ("DELETED", pod.metadata.deletion_grace_period_seconds),
            other => panic!("{other:?}"),
        })
        .take(5)
        .try_collect()
        .await
        .unwrap();
    let modified = |grace| ("MODIFIED", Some(grace));
    assert_eq!(seen, [modified(30), modified(5), modified(5), modified(0), ("DELETED", Some(0))]);
}

#[tokio::test]
async fn pods_that_run_nowhere_or_no_more_go_at_once() {
    let cluster = Cluster::start("atonce").await;
    let path = &format!("{PODS}/p");
    cluster.post(PODS, &unbound_pod("p")).await.unwrap();
    let gone = cluster.delete(path, &Value::Null).await.unwrap();
    assert_eq!(gone["metadata"]["deletionGracePeriodSeconds"], 0);
    assert_eq!(cluster.get(path).await, refusal(404, "NotFound"));

    cluster.post(PODS, &pod("p")).await.unwrap();
    let ended = json!({"status": {"phase": "Succeeded"}});
    cluster.patch(&format!("{path}/status"), MERGE, &ended).await.unwrap();
    cluster.delete(path, &Value::Null).await.unwrap();
    assert_eq!(cluster.get(path).await, refusal(404, "NotFound"));
}

#[tokio::test]
async fn a_finalizer_holds_a_pod_after_kubelet_is_done() {
    let cluster = Cluster::start("held").await;
    let path = &format!("{PODS}/p");
    let mut body = pod("p");
    body["metadata"]["finalizers"] = json!(["podrail.test/x"]);
    cluster.post(PODS, &body).await.unwrap();
    cluster.delete(path, &Value::Null).await.unwrap();
    cluster.delete(path, &json!({"gracePeriodSeconds": 0})).await.unwrap();
    assert!(cluster.get(path).await.is_ok());
    cluster.patch(path, MERGE, &json!({"metadata": {"finalizers": null}})).await.unwrap();
    assert_eq!(cluster.get(path).await, refusal(404, "NotFound"));
}
