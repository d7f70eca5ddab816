//! Objects of any kind: reading, writing, refusing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, LEASES, MAPS, MERGE, PODS, named, pod, refusal};
use crate::custom::{Pools, pool};

#[tokio::test]
async fn typed_clients_work() {
    let cluster = Cluster::start("typed").await;
    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let data = |value: &str| Some(BTreeMap::from([("k".to_owned(), value.to_owned())]));
    let map = ConfigMap {
        metadata: ObjectMeta { generate_name: Some("map-".to_owned()), ..ObjectMeta::default() },
        data: data("1"),
        ..ConfigMap::default()
    };
    let made = api.create(&PostParams::default(), &map).await.unwrap();
    let name = made.metadata.name.clone().unwrap();
    assert!(name.starts_with("map-") && name.len() == 9, "{name}");
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());

    let mut changed = made.clone();
    changed.data = data("2");
    let changed = api.replace(&name, &PostParams::default(), &changed).await.unwrap();
    assert_eq!(changed.data, data("2"));
    let Err(kube::Error::Api(status)) = api.replace(&name, &PostParams::default(), &made).await else {
        panic!("a stale object replaced a newer one");
    };
    assert!(status.is_conflict() && status.code == 409, "{status:?}");
    assert_eq!(status.details.unwrap().name, name);

    let patch = Patch::Merge(json!({"data": {"l": "3"}}));
    api.patch(&name, &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(api.get(&name).await.unwrap().data.unwrap().len(), 2);
    let only = ListParams::default().fields(&format!("metadata.name={name}"));
    assert_eq!(api.list(&only).await.unwrap().items.len(), 1);
    api.delete(&name, &DeleteParams::default()).await.unwrap();
    assert!(api.get_opt(&name).await.unwrap().is_none());
}

#[tokio::test]
async fn discovery_names_what_is_served() {
    let cluster = Cluster::start("discovery").await;
    let pools = Pools::define(&cluster).await;
    let version = cluster.client.apiserver_version().await.unwrap();
    assert_eq!(version.major, "1");
    let found = kube::discovery::Discovery::new(cluster.client.clone())
        .filter(&[&pools.group, ""])
        .run()
        .await
        .unwrap();
    let group = found.get(&pools.group).unwrap();
    assert_eq!(group.preferred_version(), Some("v1"));
    let (resource, capabilities) = group.recommended_kind("IPPool").unwrap();
    assert_eq!(resource.plural, "ippools");
    assert_eq!(capabilities.scope, kube::discovery::Scope::Namespaced);
    let core = cluster.client.list_core_api_resources("v1").await.unwrap();
    for name in
        ["pods", "pods/status", "pods/binding", "nodes", "nodes/status", "namespaces", "events", "secrets"]
    {
        assert!(core.resources.iter().any(|resource| resource.name == name), "{name}");
    }
    pools.forget(&cluster).await;
}

#[tokio::test]
async fn refusals_have_the_code_and_reason_that_programs_match_on() {
    let cluster = Cluster::start("refusals").await;
    cluster.post(MAPS, &named("a")).await.unwrap();
    let a = &format!("{MAPS}/a");
    let none = &format!("{MAPS}/none");
    let binding = &format!("{PODS}/none/binding");
    let map = |metadata: Value| json!({ "metadata": metadata });
    // A real server looks for the account's token before it looks at the pod.
    let bare = |containers: Value| {
        json!({
            "metadata": {"name": "b"},
            "spec": {"automountServiceAccountToken": false, "containers": containers},
        })
    };
    let table: Vec<(&str, &str, Value, u16, &str)> = vec![
        ("GET", none, Value::Null, 404, "NotFound"),
        ("GET", "/api/v1/namespaces/{ns}/foos", Value::Null, 404, "NotFound"),
        ("GET", "/api/v1/namespaces/{ns}/nodes", Value::Null, 404, "NotFound"),
        ("POST", MAPS, named("a"), 409, "AlreadyExists"),
        ("POST", MAPS, named("A_b"), 422, "Invalid"),
        ("POST", MAPS, map(json!({})), 422, "Invalid"),
        ("POST", MAPS, map(json!({"name": "b", "namespace": "elsewhere"})), 400, "BadRequest"),
        ("POST", MAPS, map(json!({"name": "b", "labels": {"x": "_"}})), 422, "Invalid"),
        (
            "POST",
            MAPS,
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "b"}}),
            400,
            "BadRequest",
        ),
        ("POST", "/api/v1/namespaces/nowhere-at-all/configmaps", named("b"), 404, "NotFound"),
        ("POST", a, named("a"), 405, "MethodNotAllowed"),
        ("POST", "/api/v1/pods", pod("b"), 405, "MethodNotAllowed"),
        ("PUT", a, named("b"), 400, "BadRequest"),
        ("PUT", a, map(json!({})), 400, "BadRequest"),
        ("PUT", a, map(json!({"name": "a", "resourceVersion": "1"})), 409, "Conflict"),
        ("PUT", a, map(json!({"name": "a", "uid": "another"})), 409, "Conflict"),
        ("PUT", none, named("none"), 404, "NotFound"),
        ("DELETE", none, Value::Null, 404, "NotFound"),
        ("DELETE", a, json!({"preconditions": {"uid": "another"}}), 409, "Conflict"),
        ("DELETE", a, json!({"preconditions": {"resourceVersion": "1"}}), 409, "Conflict"),
        ("GET", "/api/v1/pods?fieldSelector=spec.foo%3Dx", Value::Null, 400, "BadRequest"),
        ("GET", "/api/v1/pods?fieldSelector=nonsense", Value::Null, 400, "BadRequest"),
        ("GET", "/api/v1/pods?labelSelector=a%3Db%3Dc", Value::Null, 400, "BadRequest"),
        ("GET", "/api/v1/pods?labelSelector=a%20in%20b", Value::Null, 400, "BadRequest"),
        ("GET", "/api/v1/pods?limit=1&continue=nonsense", Value::Null, 400, "BadRequest"),
        ("GET", "/api/v1/pods?resourceVersion=999999999", Value::Null, 504, "Timeout"),
        ("POST", PODS, bare(Value::Null), 422, "Invalid"),
        ("POST", PODS, bare(json!([{"name": "c"}])), 422, "Invalid"),
        ("POST", binding, json!({"metadata": {"name": "none"}, "target": {"name": "n"}}), 404, "NotFound"),
    ];
    for (method, path, body, code, reason) in table {
        let answer = cluster.ask(method, path, "application/json", &body).await;
        assert_eq!(answer, refusal(code, reason), "{method} {path} {body}");
    }
}

#[tokio::test]
async fn kinds_differ_in_what_a_put_without_version_does() {
    let cluster = Cluster::start("puts").await;
    let pools = Pools::define(&cluster).await;
    let a_pool = pool(&pools.group, "a");
    cluster.post(MAPS, &named("a")).await.unwrap();
    cluster.post(LEASES, &named("a")).await.unwrap();
    cluster.post(&pools.path, &a_pool).await.unwrap();
    assert!(cluster.put(&format!("{MAPS}/a"), &named("a")).await.is_ok(), "config maps are overwritten");
    assert_eq!(cluster.put(&format!("{LEASES}/a"), &named("a")).await, refusal(422, "Invalid"));
    assert_eq!(cluster.put(&format!("{}/a", pools.path), &a_pool).await, refusal(422, "Invalid"));
    assert!(cluster.put(&format!("{LEASES}/b"), &named("b")).await.is_ok(), "PUT creates a lease");
    let b_pool = pool(&pools.group, "b");
    assert_eq!(cluster.put(&format!("{}/b", pools.path), &b_pool).await, refusal(404, "NotFound"));
    pools.forget(&cluster).await;
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let cluster = Cluster::start("finalizers").await;
    let path = &format!("{MAPS}/f");
    let map = json!({"metadata": {"name": "f", "finalizers": ["podrail.test/x"]}});
    cluster.post(MAPS, &map).await.unwrap();
    let marked = cluster.delete(path, &Value::Null).await.unwrap();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let again = cluster.delete(path, &Value::Null).await.unwrap();
    assert_eq!(again["metadata"]["resourceVersion"], marked["metadata"]["resourceVersion"]);
    let more = json!({"metadata": {"finalizers": ["podrail.test/x", "podrail.test/y"]}});
    assert_eq!(cluster.patch(path, MERGE, &more).await, refusal(422, "Invalid"));
    let undead = json!({"metadata": {"deletionTimestamp": null, "labels": {"a": "b"}}});
    let patched = cluster.patch(path, MERGE, &undead).await.unwrap();
    assert!(patched["metadata"]["deletionTimestamp"].is_string(), "deletion cannot be undone");
    cluster.patch(path, MERGE, &json!({"metadata": {"finalizers": null}})).await.unwrap();
    assert_eq!(cluster.get(path).await, refusal(404, "NotFound"));
}

#[tokio::test]
async fn secrets_dry_runs_and_collections() {
    let cluster = Cluster::start("details").await;
    let secrets = "/api/v1/namespaces/{ns}/secrets";
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}});
    let made = cluster.post(secrets, &secret).await.unwrap();
    assert_eq!((&made["data"]["a"], &made["type"]), (&json!("Yg=="), &json!("Opaque")));
    assert_eq!(made.get("stringData"), None);
    cluster.post(&format!("{MAPS}?dryRun=All"), &named("dry")).await.unwrap();
    assert_eq!(cluster.get(&format!("{MAPS}/dry")).await, refusal(404, "NotFound"));
    cluster.delete(&format!("{secrets}?labelSelector=none"), &Value::Null).await.unwrap();
    assert!(cluster.get(&format!("{secrets}/s")).await.is_ok());
    cluster.delete(&format!("{secrets}?fieldSelector=metadata.name%3Ds"), &Value::Null).await.unwrap();
    assert_eq!(cluster.get(&format!("{secrets}/s")).await, refusal(404, "NotFound"));
}
