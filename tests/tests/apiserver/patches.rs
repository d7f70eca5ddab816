//! The patch formats, and what they may not do.

use std::collections::BTreeSet;

use serde_json::json;

use crate::cluster::{Cluster, JSON, MAPS, MERGE, STRATEGIC, refusal};
use crate::custom::{Pools, pool};

#[tokio::test]
async fn patches_apply_or_are_refused() {
    let cluster = Cluster::start("patches").await;
    let map = json!({"metadata": {"name": "a"}, "data": {"x": "1"}});
    let made = cluster.post(MAPS, &map).await.unwrap();
    let a = &format!("{MAPS}/a");
    let second_fails = json!([{"op": "add", "path": "/data/y", "value": "2"}, {"op": "test", "path": "/data/x", "value": "9"}]);
    let refused = [
        (MERGE, json!({"metadata": {"uid": "another"}}), 422, "Invalid"),
        (STRATEGIC, json!({"metadata": {"uid": "another"}}), 422, "Invalid"),
        (MERGE, json!({"metadata": {"resourceVersion": "1"}, "data": {"x": "2"}}), 409, "Conflict"),
        (MERGE, json!({"metadata": {"name": "b"}}), 400, "BadRequest"),
        (JSON, json!([{"op": "test", "path": "/data/x", "value": "2"}]), 422, "Invalid"),
        (JSON, json!([{"op": "test", "path": "/data/none", "value": "2"}]), 422, "Invalid"),
        (JSON, json!([{"op": "test", "path": "/data/x", "value": null}]), 422, "Invalid"),
        (JSON, json!([{"op": "test", "path": "/none/none", "value": null}]), 422, "Invalid"),
        (JSON, json!([{"op": "remove", "path": "/data/none"}]), 422, "Invalid"),
        (JSON, json!([{"op": "add", "path": "/none/none", "value": "2"}]), 422, "Invalid"),
        (JSON, second_fails, 422, "Invalid"),
        (
            JSON,
            json!([{"op": "replace", "path": "/metadata/resourceVersion", "value": "1"}]),
            409,
            "Conflict",
        ),
        (JSON, json!({"op": "add"}), 400, "BadRequest"),
        ("text/plain", json!({}), 415, "UnsupportedMediaType"),
    ];
    for (media_type, patch, code, reason) in refused {
        let answer = cluster.patch(a, media_type, &patch).await;
        assert_eq!(answer, refusal(code, reason), "{media_type} {patch}");
    }
    assert_eq!(cluster.patch(&format!("{MAPS}/none"), MERGE, &json!({})).await, refusal(404, "NotFound"));
    let now = cluster.get(a).await.unwrap();
    assert_eq!(
        now["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"],
        "a refused patch wrote"
    );

    let same = json!({"metadata": {"uid": made["metadata"]["uid"]}, "data": {"x": "1"}});
    let same = cluster.patch(a, MERGE, &same).await.unwrap();
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "nothing changed");
    let patch = json!([
        {"op": "test", "path": "/data/y", "value": null},
        {"op": "test", "path": "/metadata/resourceVersion", "value": made["metadata"]["resourceVersion"]},
        {"op": "add", "path": "/data/y", "value": "2"},
        {"op": "remove", "path": "/data/x"},
    ]);
    assert_eq!(cluster.patch(a, JSON, &patch).await.unwrap()["data"], json!({"y": "2"}));
    assert_eq!(cluster.patch(a, JSON, &patch).await, refusal(422, "Invalid"), "the version has moved on");
    let patch = json!({"metadata": {"creationTimestamp": "1999-01-01T00:00:00Z"}, "data": null});
    let patched = cluster.patch(a, MERGE, &patch).await.unwrap();
    assert_eq!(patched["metadata"]["creationTimestamp"], made["metadata"]["creationTimestamp"]);
    assert_eq!(patched.get("data"), None);
}

#[tokio::test]
async fn of_many_writers_each_gets_its_own_place() {
    let cluster = &Cluster::start("race").await;
    let pools = Pools::define(cluster).await;
    let mut body = pool(&pools.group, "a");
    body["spec"]["allocations"] = json!({});
    cluster.post(&pools.path, &body).await.unwrap();
    let a = &format!("{}/a", pools.path);
    let writers = (0..10).map(|writer| async move {
        loop {
            let now = cluster.get(a).await.unwrap();
            let taken = now["spec"]["allocations"].as_object().unwrap();
            let free = (1..).find(|index| !taken.contains_key(&index.to_string())).unwrap();
            let patch = json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": now["metadata"]["resourceVersion"]},
                {"op": "add", "path": format!("/spec/allocations/{free}"), "value": {"id": format!("w{writer}")}},
            ]);
            match cluster.patch(a, JSON, &patch).await {
                Ok(_) => return free,
                Err((422 | 409, _)) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    });
    let places: BTreeSet<u32> = futures_util::future::join_all(writers).await.into_iter().collect();
    assert_eq!(places, (1..=10).collect());
    assert_eq!(cluster.get(a).await.unwrap()["spec"]["allocations"].as_object().unwrap().len(), 10);
    pools.forget(cluster).await;
}
