//! The certificate of a node from a real cluster: its validation, its approval, its signer, its roles.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use hyper::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// Nothing here takes that long.
const PATIENCE: Duration = Duration::from_secs(180);

/// A process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn client(kubeconfig: Kubeconfig) -> Client {
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn ask(client: &Client, method: &str, path: &str, object: &Value) -> kube::Result<Value> {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let body = if method == "GET" { Vec::new() } else { object.to_string().into_bytes() };
    client.request(request.body(body).unwrap()).await
}

/// The roles of the manifests.
async fn apply(client: &Client) {
    for file in ["multus-rbac.yaml", "multus-certificates.yaml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
        let objects: Vec<Value> =
            serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap();
        for object in objects {
            let plural = match object["kind"].as_str().unwrap() {
                "ClusterRole" => "clusterroles",
                "ClusterRoleBinding" => "clusterrolebindings",
                _ => continue,
            };
            match ask(client, "POST", &format!("/apis/rbac.authorization.k8s.io/v1/{plural}"), &object).await
            {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => panic!("{file}: {error}"),
            }
        }
    }
}

/// The requests of this test, the oldest first, with their conditions.
async fn requests(client: &Client) -> Vec<Value> {
    let all = ask(client, "GET", REQUESTS, &Value::Null).await.unwrap();
    let ours = all["items"].as_array().unwrap().iter();
    ours.filter(|r| r["spec"]["username"] == "system:node:worker-7").cloned().collect()
}

fn condition(request: &Value) -> Option<&str> {
    request["status"]["conditions"][0]["type"].as_str()
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
#[ignore = "needs a real API server: hack/test kubernetes"]
async fn a_real_cluster_issues_what_it_is_asked_for() {
    let file =
        std::env::var("PODRAIL_KUBECONFIG").expect("PODRAIL_KUBECONFIG is the kubeconfig of hack/kubernetes");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let admin = client(Kubeconfig::read_from(&file).unwrap()).await;
    apply(&admin).await;

    // As kubelet's credentials have it.
    let mut node = Kubeconfig::read_from(&file).unwrap();
    for user in node.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
        user.impersonate = Some("system:node:worker-7".to_owned());
        user.impersonate_groups = Some(vec!["system:nodes".to_owned(), "system:authenticated".to_owned()]);
    }
    std::fs::write(path("bootstrap"), serde_json::to_string(&node).unwrap()).unwrap();
    let program = env!("CARGO_BIN_EXE_multus-daemon");
    let approve =
        || Process(Command::new(program).arg("approve").arg("--kubeconfig").arg(&file).spawn().unwrap());
    let approver = approve();
    let _enrolment = Process(
        Command::new(program)
            .args(["enrol", "--cert-duration=1h", "--bootstrap-config"])
            .arg(path("bootstrap"))
            .arg("--certdir")
            .arg(path("certs"))
            .arg("--kubeconfig")
            .arg(path("kubeconfig"))
            .env("MULTUS_NODE_NAME", "worker-7")
            .spawn()
            .unwrap(),
    );
    let first = until("the approver answers", async || {
        requests(&admin).await.into_iter().find(|request| condition(request).is_some())
    })
    .await;
    if first["spec"]["expirationSeconds"].is_null() {
        // Kubernetes before 1.22 does not know how long it is asked for: the approver says no, an administrator yes.
        assert_eq!(condition(&first), Some("Denied"), "{first:#}");
        drop(approver);
        let mut next = until("the node asks again", async || {
            requests(&admin).await.into_iter().find(|request| condition(request).is_none())
        })
        .await;
        next["status"]["conditions"] = json!([{"type": "Approved", "status": "True", "reason": "Test"}]);
        let name = next["metadata"]["name"].as_str().unwrap();
        ask(&admin, "PUT", &format!("{REQUESTS}/{name}/approval"), &next).await.unwrap();
    } else {
        assert_eq!(condition(&first), Some("Approved"), "{first:#}");
    }
    let multus = until("the kubeconfig", async || Kubeconfig::read_from(path("kubeconfig")).ok()).await;
    let multus = client(multus).await;
    // By the role of its group: pods, and nobody's secrets.
    ask(&multus, "GET", "/api/v1/pods", &Value::Null).await.unwrap();
    let refused = ask(&multus, "GET", "/api/v1/secrets", &Value::Null).await.unwrap_err();
    assert!(refused.to_string().contains("system:multus:worker-7"), "{refused}");
}
