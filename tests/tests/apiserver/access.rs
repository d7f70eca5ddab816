//! Service accounts, their tokens, and the rights that roles give them.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, PODS, Refusal, eventually, pod, refusal};

const ACCOUNTS: &str = "/api/v1/namespaces/{ns}/serviceaccounts";
const RIGHTS: &str = "/apis/rbac.authorization.k8s.io/v1";

#[tokio::test]
async fn an_account_may_do_what_its_roles_say() {
    let cluster = Cluster::start("access").await;
    let role = json!({
        "metadata": {"name": cluster.namespace},
        "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
        ],
    });
    let binding = json!({
        "metadata": {"name": cluster.namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": cluster.namespace},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": cluster.namespace}],
    });
    let (roles, bindings) = (format!("{RIGHTS}/clusterroles"), format!("{RIGHTS}/clusterrolebindings"));
    cluster.post(&roles, &role).await.unwrap();
    cluster.post(PODS, &pod("p")).await.unwrap();
    let account = cluster.with_token(&token(&cluster, "default").await);

    let p = &format!("{PODS}/p");
    assert_eq!(account.get(p).await, refusal(403, "Forbidden"));
    assert!(account.client.apiserver_version().await.is_ok());
    assert!(account.get("/apis").await.is_ok(), "discovery is open");
    cluster.post(&bindings, &binding).await.unwrap();
    eventually("the role to count", || async { account.get(p).await.is_ok() }).await;
    assert!(account.patch(&format!("{p}/status"), crate::cluster::MERGE, &json!({})).await.is_ok());
    let refused = [
        ("GET", PODS.to_owned()),
        ("PATCH", p.clone()),
        ("DELETE", p.clone()),
        ("GET", "/api/v1/nodes".to_owned()),
        ("POST", "/api/v1/namespaces/{ns}/events".to_owned()),
        ("GET", "/apis/coordination.k8s.io/v1/leases".to_owned()),
    ];
    for (method, path) in refused {
        let answer = account.ask(method, &path, "application/json", &Value::Null).await;
        assert_eq!(answer, refusal(403, "Forbidden"), "{method} {path}");
    }
    let pods: Api<Pod> = Api::all(account.client.clone());
    let Err(kube::Error::Api(status)) = pods.list(&ListParams::default()).await else {
        panic!("listed pods")
    };
    let user = format!("system:serviceaccount:{}:default", cluster.namespace);
    let expected = format!(
        "pods is forbidden: User \"{user}\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
    );
    assert_eq!(status.message, expected);

    for collection in [roles, bindings] {
        cluster.delete(&format!("{collection}/{}", cluster.namespace), &Value::Null).await.unwrap();
    }
    eventually("the role to be gone", || async { account.get(p).await.is_err() }).await;
    cluster.delete(p, &json!({"gracePeriodSeconds": 0})).await.unwrap();
}

#[tokio::test]
async fn a_token_dies_with_its_account() {
    let cluster = Cluster::start("tokens").await;
    cluster.post(ACCOUNTS, &json!({"metadata": {"name": "brief"}})).await.unwrap();
    let account = cluster.with_token(&token(&cluster, "brief").await);
    assert_eq!(account.get(PODS).await, refusal(403, "Forbidden"));
    cluster.delete(&format!("{ACCOUNTS}/brief"), &Value::Null).await.unwrap();
    // A real server remembers for some seconds that a token was good.
    eventually("the token to die", || async {
        account.get(PODS).await == refusal::<Value>(401, "Unauthorized")
    })
    .await;
    let none: Result<Value, Refusal> = cluster.post(&format!("{ACCOUNTS}/brief/token"), &json!({})).await;
    assert_eq!(none, refusal(404, "NotFound"));
    let short = json!({"spec": {"expirationSeconds": 3}});
    assert_eq!(cluster.post(&format!("{ACCOUNTS}/default/token"), &short).await, refusal(422, "Invalid"));
}

async fn token(cluster: &Cluster, account: &str) -> String {
    let answer = cluster.post(&format!("{ACCOUNTS}/{account}/token"), &json!({})).await.unwrap();
    answer["status"]["token"].as_str().unwrap().to_owned()
}
