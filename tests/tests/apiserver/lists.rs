//! Selectors and pages.

use serde_json::{Value, json};

use crate::cluster::{Cluster, MAPS, PODS, pod};

#[tokio::test]
async fn selectors_choose() {
    let cluster = Cluster::start("selectors").await;
    for (name, labels) in
        [("a", json!({"app": "upf", "n": "1"})), ("b", json!({"app": "amf"})), ("c", json!({}))]
    {
        let map = json!({"metadata": {"name": name, "labels": labels}});
        cluster.post(MAPS, &map).await.unwrap();
    }
    let table = [
        ("labelSelector=app%3Dupf", "a"),
        ("labelSelector=app", "ab"),
        ("labelSelector=!app", "c"),
        ("labelSelector=app!%3Dupf", "bc"),
        ("labelSelector=app%20in%20(upf,amf),n", "a"),
        ("labelSelector=app%20notin%20(upf)", "bc"),
        ("fieldSelector=metadata.name%3Db", "b"),
        ("fieldSelector=metadata.name!%3Db", "ac"),
        ("fieldSelector=metadata.name%3Db&labelSelector=app%3D%3Dupf", ""),
    ];
    for (query, expected) in table {
        let list = cluster.get(&format!("{MAPS}?{query}")).await.unwrap();
        let names: String = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|item| item["metadata"]["name"].as_str())
            // A real cluster puts a map of its own into every namespace.
            .filter(|name| name.len() == 1)
            .collect();
        assert_eq!(names, expected, "{query}");
    }
    let mut on_node = pod("p");
    on_node["spec"]["nodeName"] = cluster.namespace.as_str().into();
    cluster.post(PODS, &on_node).await.unwrap();
    cluster.post(PODS, &pod("q")).await.unwrap();
    let query =
        format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{},status.phase%3DPending", cluster.namespace);
    let list = cluster.get(&query).await.unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["kind"], "PodList");
    for name in ["p", "q"] {
        cluster.delete(&format!("{PODS}/{name}"), &json!({"gracePeriodSeconds": 0})).await.unwrap();
    }
}

#[tokio::test]
async fn pages_show_one_moment() {
    let cluster = Cluster::start("pages").await;
    let labelled = |name: &str| json!({"metadata": {"name": name, "labels": {"page": "x"}}});
    for index in 0..5 {
        cluster.post(MAPS, &labelled(&format!("m{index}"))).await.unwrap();
    }
    let select = format!("{MAPS}?labelSelector=page%3Dx&limit=2");
    let first = cluster.get(&select).await.unwrap();
    cluster.delete(&format!("{MAPS}/m3"), &Value::Null).await.unwrap();
    cluster.post(MAPS, &labelled("m31")).await.unwrap();
    let mut names = Vec::new();
    let mut page = first.clone();
    loop {
        assert_eq!(page["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        names.extend(page["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()));
        let Some(token) = page["metadata"]["continue"].as_str().filter(|token| !token.is_empty()) else {
            break;
        };
        page = cluster.get(&format!("{select}&continue={token}")).await.unwrap();
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4"]);
    let whole = cluster.get(&format!("{MAPS}?limit=1")).await.unwrap();
    assert!(whole["metadata"]["remainingItemCount"].as_u64().unwrap() >= 4, "{}", whole["metadata"]);
}
