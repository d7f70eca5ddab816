//! Custom resources: schemas, versions, generations.

use serde_json::{Value, json};

use crate::cluster::{Cluster, MERGE, STRATEGIC, eventually, refusal};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A kind that a test defines, in a group of the test's own.
pub(crate) struct Pools {
    pub(crate) group: String,
    /// Path of the objects in the test's namespace.
    pub(crate) path: String,
}

impl Pools {
    pub(crate) async fn define(cluster: &Cluster) -> Self {
        let group = format!("{}.podrail.test", cluster.namespace);
        let schema = json!({
            "type": "object",
            "required": ["spec"],
            "properties": {
                "status": {"type": "object", "properties": {"n": {"type": "integer"}}},
                "spec": {"type": "object", "required": ["range"], "properties": {
                    "range": {"type": "string"},
                    "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
                    "n": {"type": "integer", "minimum": 1},
                    "allocations": {"type": "object", "additionalProperties": {
                        "type": "object", "required": ["id"], "properties": {"id": {"type": "string"}},
                    }},
                }},
            },
        });
        let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("ippools.{group}")},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"plural": "ippools", "kind": "IPPool"},
                "versions": [
                    {"name": "v1alpha1", "served": true, "storage": false, "schema": {"openAPIV3Schema": open}},
                    {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                     "subresources": {"status": {}}},
                ],
            },
        });
        cluster.post(DEFINITIONS, &definition).await.unwrap();
        let path = format!("/apis/{group}/v1/namespaces/{{ns}}/ippools");
        // A real server establishes a kind in steps; writes may fail for a moment after reads work.
        eventually("taking objects", || async {
            cluster.get(&path).await.is_ok()
                && cluster.post(&path, &pool(&group, "probe")).await.is_ok()
                && cluster.delete(&format!("{path}/probe"), &Value::Null).await.is_ok()
        })
        .await;
        Self { group, path }
    }

    pub(crate) async fn forget(&self, cluster: &Cluster) {
        cluster.delete(&format!("{DEFINITIONS}/ippools.{}", self.group), &Value::Null).await.unwrap();
        eventually("forgetting the kind", || async {
            cluster.get(&self.path).await.is_err_and(|refusal| refusal.0 == 404)
        })
        .await;
    }
}

pub(crate) fn pool(group: &str, name: &str) -> Value {
    json!({
        "apiVersion": format!("{group}/v1"), "kind": "IPPool",
        "metadata": {"name": name}, "spec": {"range": "10.0.0.0/8"},
    })
}

#[tokio::test]
async fn a_schema_prunes_completes_and_refuses() {
    let cluster = Cluster::start("schema").await;
    let pools = Pools::define(&cluster).await;
    let mut body = pool(&pools.group, "a");
    body["spec"]["extra"] = 1.into();
    body["status"] = json!({"n": 1});
    let made = cluster.post(&pools.path, &body).await.unwrap();
    assert_eq!(made["spec"], json!({"range": "10.0.0.0/8", "mode": "a"}));
    assert_eq!(made.get("status"), None, "status has its own door");

    let mut untyped = pool(&pools.group, "b");
    untyped["kind"] = Value::Null;
    let broken = |change: fn(&mut Value)| {
        let mut body = pool(&pools.group, "b");
        change(&mut body["spec"]);
        body
    };
    let refused = [
        (untyped, 400, "BadRequest"),
        (broken(|spec| *spec = json!({})), 422, "Invalid"),
        (broken(|spec| spec["range"] = 5.into()), 422, "Invalid"),
        (broken(|spec| spec["mode"] = "z".into()), 422, "Invalid"),
        (broken(|spec| spec["n"] = 0.into()), 422, "Invalid"),
        (broken(|spec| spec["allocations"] = json!({"5": {}})), 422, "Invalid"),
    ];
    for (body, code, reason) in refused {
        assert_eq!(cluster.post(&pools.path, &body).await, refusal(code, reason), "{body}");
    }
    pools.forget(&cluster).await;
}

#[tokio::test]
async fn generation_counts_changes_of_the_spec() {
    let cluster = Cluster::start("generation").await;
    let pools = Pools::define(&cluster).await;
    let made = cluster.post(&pools.path, &pool(&pools.group, "a")).await.unwrap();
    assert_eq!(made["metadata"]["generation"], 1);
    let a = &format!("{}/a", pools.path);
    let patch = json!({"spec": {"n": 5}, "status": {"n": 7}});
    let patched = cluster.patch(a, MERGE, &patch).await.unwrap();
    assert_eq!((&patched["metadata"]["generation"], patched.get("status")), (&json!(2), None));
    let patch = json!({"metadata": {"labels": {"x": "y"}}, "spec": {"n": 6}, "status": {"n": 7}});
    let patched = cluster.patch(&format!("{a}/status"), MERGE, &patch).await.unwrap();
    assert_eq!((&patched["spec"]["n"], &patched["status"]["n"]), (&json!(5), &json!(7)));
    assert_eq!((patched["metadata"].get("labels"), &patched["metadata"]["generation"]), (None, &json!(2)));
    let labelled = cluster.patch(a, MERGE, &json!({"metadata": {"labels": {"x": "y"}}})).await.unwrap();
    assert_eq!(labelled["metadata"]["generation"], 2);
    assert_eq!(cluster.patch(a, STRATEGIC, &json!({})).await, refusal(415, "UnsupportedMediaType"));
    pools.forget(&cluster).await;
}

#[tokio::test]
async fn every_version_shows_the_same_object() {
    let cluster = Cluster::start("versions").await;
    let pools = Pools::define(&cluster).await;
    let a = &format!("{}/a", pools.path);
    cluster.post(&pools.path, &pool(&pools.group, "a")).await.unwrap();
    let old = cluster.get(&a.replace("/v1/", "/v1alpha1/")).await.unwrap();
    assert_eq!(old["apiVersion"], format!("{}/v1alpha1", pools.group));
    let patched =
        cluster.patch(&a.replace("/v1/", "/v1alpha1/"), MERGE, &json!({"spec": {"n": 3}})).await.unwrap();
    assert_eq!(patched["apiVersion"], format!("{}/v1alpha1", pools.group));
    assert_eq!(cluster.get(a).await.unwrap()["spec"]["n"], 3);
    let list = cluster.get(&pools.path).await.unwrap();
    assert_eq!((&list["kind"], &list["items"][0]["kind"]), (&json!("IPPoolList"), &json!("IPPool")));
    let deleted = cluster.delete(a, &Value::Null).await.unwrap();
    assert_eq!((&deleted["status"], &deleted["details"]["group"]), (&json!("Success"), &json!(pools.group)));
    pools.forget(&cluster).await;
}
