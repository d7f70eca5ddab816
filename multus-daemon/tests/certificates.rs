//! The certificate of a node: asked for, used, and renewed while the daemon runs. Needs root, for a network namespace.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking"
)]

mod node;

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2e::sim::apiserver::{ApiServer, Verb};
use hyper::Request;
use node::Node;
use serde_json::{Value, json};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const USER: &str = "system:multus:n";

/// The node's own credentials.
const TOKEN: &str = "of-the-node";

/// How long a certificate is good for.
const LIFE: Duration = Duration::from_secs(8);

struct Cluster {
    server: ApiServer,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    /// A cluster in which the user of the certificate, and the node, may do what they have to.
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(ApiServer::start()).unwrap();
        let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let definition = json!({
            "metadata": {
                "name": "certificatesigningrequests.certificates.k8s.io",
                "annotations": {"api-approved.kubernetes.io": "built in elsewhere"},
            },
            "spec": {
                "group": "certificates.k8s.io", "scope": "Cluster",
                "names": {
                    "kind": "CertificateSigningRequest", "plural": "certificatesigningrequests",
                    "singular": "certificatesigningrequest", "listKind": "CertificateSigningRequestList",
                },
                "versions": [{
                    "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": any},
                }],
            },
        });
        server.define(&definition).unwrap();
        server.add_token(TOKEN, "system:node:n");
        let cluster = Cluster { server, runtime };
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        cluster.ask("POST", &format!("{rbac}/clusterroles"), &json!({
            "metadata": {"name": "all"}, "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
        }));
        cluster.ask(
            "POST",
            &format!("{rbac}/clusterrolebindings"),
            &json!({
                "metadata": {"name": "all"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "all"},
                "subjects": [
                    {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER},
                    {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:node:n"},
                ],
            }),
        );
        cluster
    }

    fn ask(&self, method: &str, path: &str, object: &Value) -> Value {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let body = if method == "GET" { Vec::new() } else { object.to_string().into_bytes() };
        self.runtime.block_on(async {
            let client = self.server.client().await.unwrap();
            client.request(request.body(body).unwrap()).await.unwrap()
        })
    }

    /// Signs every request that has no certificate yet, as approver and signer do; how many that were.
    fn sign(&self) -> usize {
        let mut signed = 0;
        for request in self.ask("GET", REQUESTS, &Value::Null)["items"].as_array().unwrap() {
            if request["status"]["certificate"].is_string() {
                continue;
            }
            assert_eq!(request["spec"]["signerName"], "kubernetes.io/kube-apiserver-client");
            assert_eq!(request["spec"]["expirationSeconds"], 3600);
            let pem = STANDARD.decode(request["spec"]["request"].as_str().unwrap()).unwrap();
            let certificate = self.server.sign(std::str::from_utf8(&pem).unwrap(), LIFE).unwrap();
            let name = request["metadata"]["name"].as_str().unwrap();
            let status = json!({"status": {"certificate": STANDARD.encode(certificate)}});
            self.ask("PATCH", &format!("{REQUESTS}/{name}/status"), &status);
            signed += 1;
        }
        signed
    }

    /// Who has asked to watch pods.
    fn watchers(&self) -> BTreeSet<String> {
        let requests = self.server.requests();
        let watches = requests.iter().filter(|r| r.verb == Verb::Watch && r.resource == "pods");
        watches.map(|request| request.user.clone()).collect()
    }
}

#[test]
fn a_node_has_a_certificate_of_its_own_and_renews_it() {
    let (cluster, node) = (Cluster::new(), Node::new(""));
    let bootstrap = cluster.server.kubeconfig(None).replace(cluster.server.token(), TOKEN);
    std::fs::write(node.path("bootstrap"), bootstrap).unwrap();
    let mut daemon = node.start(&json!({
        "perNodeCertificate": {
            "enabled": true, "bootstrapKubeconfig": node.path("bootstrap"), "certDir": node.path("certs"),
            "certDuration": "1h",
        },
    }));
    // Calls wait for the first certificate.
    let early = node.send("GET", "/readyz", &Value::Null);
    node.until("the first certificate", || cluster.sign() == 1);
    node.until("the daemon watches as its certificate says", || cluster.watchers().contains(USER));
    if let Some(early) = early {
        assert_eq!(node::read(early).unwrap().0, 200);
    }
    let first = std::fs::read(node.path("certs/multus-client-current.pem")).unwrap();
    let asked_as_itself = || {
        cluster.sign();
        let requests = cluster.server.requests();
        requests
            .iter()
            .any(|r| r.verb == Verb::Create && r.resource.starts_with("certificates") && r.user == USER)
    };
    node.until("the certificate asks for the next one", asked_as_itself);
    node.until("the next one is in force", || {
        cluster.sign();
        std::fs::read(node.path("certs/multus-client-current.pem")).unwrap() != first
    });
    cluster.server.clear_requests();
    cluster.server.drop_watches();
    node.until("the watch goes on", || cluster.watchers().contains(USER));
    assert!(daemon.child.try_wait().unwrap().is_none(), "it was never started again");
}
