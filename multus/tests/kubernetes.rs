//! ADD and DEL of pods, against the suite's stand-in for the API server and a PodResources socket, on real
//! interfaces. Needs root and the reference plugins.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking"
)]

mod node;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cni::{Args, CniResult, Command, Object, Request, Version};
use e2e::sim::apiserver::{ApiServer, Fault, Verb};
use host::netns::Netns;
use kube::Client;
use kubelet_api::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use kubelet_api::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse,
    PodResources,
};
use multus::config::Conf;
use multus::kubernetes::Kubernetes;
use multus::{attach, detach};
use node::{Node, ip, new_netns, path_of};
use serde_json::{Value, json};
use tonic::{Response, Status};

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"main","type":"bridge","bridge":"br7","isGateway":true,
    "ipam":{"type":"host-local","dataDir":"DATA","subnet":"10.7.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}"#;

fn second(subnet: u8) -> String {
    format!(
        r#"{{"cniVersion":"0.3.1","type":"bridge","bridge":"br{subnet}","ipam":{{"type":"host-local","dataDir":"DATA","subnet":"10.{subnet}.0.0/24"}}}}"#
    )
}

/// A node with an API server.
struct Cluster<'a> {
    node: &'a Node,
    paths: multus::node::Node,
    server: ApiServer,
    client: Client,
}

impl<'a> Cluster<'a> {
    /// Runs `test` on a node of its own.
    fn run(test: impl AsyncFnOnce(&Cluster<'_>) + Send) {
        Node::run(|node| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                test(&Cluster::start(node).await).await;
            });
        });
    }

    async fn start(node: &'a Node) -> Self {
        let server = ApiServer::start().await.unwrap();
        std::fs::write(node.path("kubeconfig"), server.kubeconfig(None)).unwrap();
        let client = server.client().await.unwrap();
        let cluster = Cluster {
            node,
            paths: multus::node::Node {
                pod_resources: node.path("pod-resources.sock"),
                checkpoint: node.path("checkpoint"),
                device_info: node.path("devinfo"),
            },
            server,
            client,
        };
        for namespace in ["ns", "other", "kube-system"] {
            let _ = cluster.post("/api/v1/namespaces", json!({"metadata": {"name": namespace}})).await;
        }
        cluster
    }

    async fn post(&self, path: &str, object: Value) -> kube::Result<Value> {
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&object).unwrap())
            .unwrap();
        self.client.request(request).await
    }

    async fn get(&self, path: &str) -> Value {
        self.client.request(http::Request::get(path).body(Vec::new()).unwrap()).await.unwrap()
    }

    /// Makes the pod `p` of namespace `ns` and returns its UID.
    async fn pod(&self, annotations: Value) -> String {
        let pod = json!({
            "metadata": {"name": "p", "annotations": annotations},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
        });
        let pod = self.post("/api/v1/namespaces/ns/pods", pod).await.unwrap();
        pod["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    async fn nad(&self, namespace: &str, name: &str, config: &str, resource: Option<&str>) {
        let annotations = resource.map(|r| json!({"k8s.v1.cni.cncf.io/resourceName": r}));
        let data = self.node.path("data").display().to_string();
        let nad = json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"config": config.replace("DATA", &data)},
        });
        let path = format!("/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions");
        self.post(&path, nad).await.unwrap();
    }

    fn request(&self, command: Command, uid: &str, conf: &str) -> Request {
        let kubeconfig = self.node.path("kubeconfig");
        let conf = self.node.conf(&format!(r#""kubeconfig":"{}",{conf}"#, kubeconfig.display()));
        let mut path = vec![self.node.path("bin")];
        path.push(node::reference_plugins());
        Request {
            command,
            container_id: "c0ffee".into(),
            netns: Some(path_of(&self.node.container)),
            ifname: "eth0".into(),
            args: Args::parse(&format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID={uid}"
            ))
            .unwrap(),
            path,
            version: Version::V1_1_0,
            name: "multus".into(),
            config: Object::parse(conf.as_bytes()).unwrap(),
            stdin: conf.into_bytes(),
        }
    }

    async fn try_add(&self, uid: &str, conf: &str) -> Result<CniResult, multus::Error> {
        let request = self.request(Command::Add, uid, conf);
        attach::add(&self.paths, &Conf::load(&request)?, &request).await
    }

    async fn add(&self, uid: &str) -> CniResult {
        self.try_add(uid, &default_conf()).await.unwrap_or_else(|e| panic!("{e}"))
    }

    async fn refused(&self, uid: &str) -> String {
        let error = self.try_add(uid, &default_conf()).await.unwrap_err().to_string();
        self.node.assert_clean();
        error
    }

    fn del(&self, uid: &str) {
        let request = self.request(Command::Del, uid, &default_conf());
        let conf = Conf::load(&request).unwrap();
        detach::release_sandbox(&self.paths, &conf, &request).unwrap_or_else(|e| panic!("{e}"));
    }

    async fn status_text(&self) -> String {
        let pod = self.get("/api/v1/namespaces/ns/pods/p").await;
        pod["metadata"]["annotations"][NETWORK_STATUS].as_str().unwrap_or_default().to_owned()
    }

    /// `name interface ip,ip` of each state.
    async fn states(&self) -> Vec<String> {
        let states: Vec<Value> = serde_json::from_str(&self.status_text().await).unwrap();
        let each = |state: &Value| {
            let ips: Vec<_> =
                state["ips"].as_array().into_iter().flatten().map(|ip| ip.as_str().unwrap()).collect();
            format!(
                "{} {} {}",
                state["name"].as_str().unwrap(),
                state["interface"].as_str().unwrap_or("-"),
                ips.join(",")
            )
        };
        states.iter().map(each).collect()
    }

    /// `type reason message` of each event.
    async fn events(&self) -> Vec<String> {
        let list = self.get("/api/v1/namespaces/ns/events").await;
        let each = |event: &Value| {
            let text = |key: &str| event[key].as_str().unwrap().to_owned();
            assert_eq!(event["source"]["component"], "multus");
            assert_eq!(event["involvedObject"]["name"], "p");
            format!("{} {} {}", text("type"), text("reason"), text("message"))
        };
        let mut events: Vec<_> = list["items"].as_array().unwrap().iter().map(each).collect();
        events.sort();
        events
    }
}

fn default_conf() -> String {
    format!(r#""delegates":[{BRIDGE}]"#)
}

#[test]
fn a_pod_with_networks_by_the_short_form() {
    Cluster::run(async |cluster| {
        cluster.nad("ns", "net-a", &second(8), None).await;
        cluster.nad("other", "net-b", &second(9), None).await;
        let uid = cluster.pod(json!({NETWORKS: "net-a, other/net-b@extra0, net-a", "kept": "yes"})).await;
        cluster.server.clear_requests();
        let result = cluster.add(&uid).await;
        assert_eq!(result.ips[0].address.to_string(), "10.7.0.2/24");

        // One read of the pod, one of each network, one write; and the events.
        let seen = |verb, resource| cluster.server.count(verb, resource);
        assert_eq!(seen(Verb::Get, "pods"), 1);
        assert_eq!(seen(Verb::Get, "network-attachment-definitions"), 2);
        assert_eq!(seen(Verb::Patch, "pods"), 1);
        assert_eq!(seen(Verb::Create, "events"), 4);
        assert_eq!(cluster.server.requests().len(), 8);

        let want = [
            "main eth0 10.7.0.2",
            "ns/net-a net1 10.8.0.2",
            "other/net-b extra0 10.9.0.2",
            "ns/net-a net3 10.8.0.3",
        ];
        assert_eq!(cluster.states().await, want);
        let text = cluster.status_text().await;
        assert!(text.starts_with("[{\n    \"name\": \"main\",\n    \"interface\": \"eth0\",\n    \"ips\": [\n        \"10.7.0.2\"\n    ],\n    \"mac\": "), "{text}");
        assert!(
            text.contains("\n    \"default\": true,\n    \"dns\": {}") && text.contains("\n},{\n"),
            "{text}"
        );
        assert_eq!(
            cluster.events().await,
            [
                "Normal AddedInterface Add eth0 [10.7.0.2/24] from main",
                "Normal AddedInterface Add extra0 [10.9.0.2/24] from other/net-b",
                "Normal AddedInterface Add net1 [10.8.0.2/24] from ns/net-a",
                "Normal AddedInterface Add net3 [10.8.0.3/24] from ns/net-a",
            ]
        );
        let pod = cluster.get("/api/v1/namespaces/ns/pods/p").await;
        assert_eq!(pod["metadata"]["annotations"]["kept"], "yes");

        cluster.server.clear_requests();
        cluster.del(&uid);
        assert_eq!(cluster.server.requests(), []);
        cluster.node.assert_clean();
    });
}

#[test]
fn a_pod_without_networks_gets_its_status_too() {
    Cluster::run(async |cluster| {
        let uid = cluster.pod(json!({})).await;
        cluster.add(&uid).await;
        assert_eq!(cluster.states().await, ["main eth0 10.7.0.2"]);
        cluster.del(&uid);
    });
}

#[test]
fn every_field_of_the_json_form_arrives() {
    Cluster::run(async |cluster| {
        let recorder = r#"cat >seen-$CNI_IFNAME; echo $CNI_ARGS >args-$CNI_IFNAME; echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/8"}]}'"#;
        cluster.node.script("recorder", recorder);
        let config = r#"{"cniVersion":"1.0.0","plugins":[{"type":"recorder","args":{"cni":{"a":1}},
            "capabilities":{"ips":true,"mac":true,"portMappings":true,"bandwidth":true,"infinibandGUID":true,"deviceID":true}}]}"#;
        cluster.nad("ns", "a", config, None).await;
        let networks = json!([{
            "name": "a", "ips": ["10.0.0.1/8"], "mac": "02:00:00:00:00:01", "interface": "data0", "deviceID": "0000:01:10.0",
            "portMappings": [{"hostPort": 1, "containerPort": 2, "protocol": "tcp"}], "bandwidth": {"ingressRate": 1},
            "infiniband-guid": "02:00:00:00:00:00:00:01", "cni-args": {"b": 9007199254740993u64},
        }]);
        let uid = cluster.pod(json!({NETWORKS: networks.to_string()})).await;
        cluster.add(&uid).await;
        let read = |name: &str| std::fs::read_to_string(cluster.node.path(name)).unwrap();
        let seen: Value = serde_json::from_str(&read("seen-data0")).unwrap();
        assert_eq!(seen["runtimeConfig"]["ips"], json!(["10.0.0.1/8"]));
        assert_eq!(seen["runtimeConfig"]["mac"], "02:00:00:00:00:01");
        assert_eq!(seen["runtimeConfig"]["portMappings"][0]["containerPort"], 2);
        assert_eq!(seen["runtimeConfig"]["bandwidth"]["ingressRate"], 1);
        assert_eq!(seen["runtimeConfig"]["infinibandGUID"], "02:00:00:00:00:00:00:01");
        assert_eq!(seen["runtimeConfig"]["deviceID"], "0000:01:10.0");
        assert_eq!((&seen["deviceID"], &seen["pciBusID"]), (&json!("0000:01:10.0"), &json!("0000:01:10.0")));
        assert_eq!(seen["args"]["cni"], json!({"a": 1, "b": 9007199254740993u64}));
        assert_eq!(seen["name"], "a");
        let args = read("args-data0");
        assert!(args.contains(&format!("K8S_POD_UID={uid};MAC=02:00:00:00:00:01;IP=10.0.0.1/8")), "{args}");
        cluster.del(&uid);
        // DEL is called with what ADD was called with.
        let again: Value = serde_json::from_str(&read("seen-data0")).unwrap();
        assert_eq!(again["runtimeConfig"], seen["runtimeConfig"]);
        assert_eq!(read("args-data0"), args);
    });
}

#[test]
fn what_a_user_can_get_wrong_is_told_and_leaves_nothing() {
    Cluster::run(async |cluster| {
        cluster.nad("ns", "good", &second(8), None).await;
        cluster.nad("ns", "broken", "{", None).await;
        cluster.nad("ns", "no-plugins", r#"{"plugins":[]}"#, None).await;
        cluster.nad("ns", "not-installed", r#"{"type":"nonesuch"}"#, None).await;
        cluster.nad("ns", "empty", "", None).await;
        cluster
            .nad(
                "ns",
                "failing",
                r#"{"cniVersion":"1.0.0","type":"vlan","master":"none","vlanId":5000}"#,
                None,
            )
            .await;
        for (networks, part) in [
            ("good,absent", "cannot find a network-attachment-definition (absent) in namespace (ns)"),
            ("good,broken", "network ns/broken: spec.config cannot be understood"),
            ("good,no-plugins", "no plugins in list"),
            ("good,not-installed", "failed to find plugin \"nonesuch\" in path ["),
            ("good,empty", "No networks found in "),
            ("good,failing", "error adding container to network \"failing\""),
            ("good@x,good@x", "interface name x already exists"),
            ("good/x/y", "(failed at '/')"),
            ("good,", "element 1 of the networks annotation"),
            ("[null]", "element 0"),
            (r#"{"name":"good"}"#, "JSON format"),
            (r#"[{"name":"good","ips":["x"]}]"#, "failed to parse IP address"),
            (r#"[{"name":"good","cni-args":7}]"#, "cni-args"),
        ] {
            let uid = cluster.pod(json!({NETWORKS: networks})).await;
            let error = cluster.refused(&uid).await;
            assert!(error.contains(part), "{networks}: {error}");
            cluster.del(&uid);
            let request = http::Request::delete("/api/v1/namespaces/ns/pods/p?gracePeriodSeconds=0")
                .body(Vec::new())
                .unwrap();
            let _: Value = cluster.client.request(request).await.unwrap();
        }
        let events = cluster.events().await;
        assert!(
            events.iter().any(|e| e
                .starts_with("Warning NoNetworkFound cannot find a network-attachment-definition (absent)")),
            "{events:?}"
        );
    });
}

#[test]
fn which_pod_it_is() {
    Cluster::run(async |cluster| {
        // Not there: deleted while its sandbox was made.
        let result = cluster.add("some-uid").await;
        assert_eq!(result.ips[0].address.to_string(), "0.0.0.0/32");
        cluster.node.assert_clean();
        let uid = cluster.pod(json!({})).await;
        let error = cluster.refused("older-uid").await;
        assert!(
            error.starts_with(&format!("expected pod UID \"older-uid\" but got \"{uid}\" from Kube API")),
            "{error}"
        );
        // A runtime that tells no UID.
        cluster.add("").await;
        cluster.del("");
    });
}

#[test]
fn static_pods_have_a_uid_of_their_own() {
    Cluster::run(async |cluster| {
        cluster.pod(json!({"kubernetes.io/config.source": "file"})).await;
        cluster.add("kubelets-uid").await;
        assert_eq!(cluster.states().await, ["main eth0 10.7.0.2"]);
        cluster.del("kubelets-uid");
    });
}

#[test]
fn the_primary_is_the_clusters_or_the_pods_choice() {
    Cluster::run(async |cluster| {
        cluster.nad("kube-system", "primary", &second(8), None).await;
        cluster.nad("kube-system", "extra", &second(9), None).await;
        cluster.nad("kube-system", "chosen", &second(11), None).await;
        let conf = r#""clusterNetwork":"primary","defaultNetworks":["extra"],"namespaceIsolation":true"#;
        let uid = cluster.pod(json!({"v1.multus-cni.io/default-network": "chosen"})).await;
        let result = cluster.try_add(&uid, conf).await.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(result.ips[0].address.to_string(), "10.11.0.2/24");
        assert_eq!(
            cluster.states().await,
            ["kube-system/chosen eth0 10.11.0.2", "kube-system/extra net1 10.9.0.2"]
        );
        cluster.del(&uid);
        cluster.node.assert_clean();
    });
}

#[test]
fn networks_without_configuration_are_the_nodes() {
    Cluster::run(async |cluster| {
        cluster.nad("ns", "local", "", None).await;
        let conf = cluster.node.path("conf");
        std::fs::create_dir(&conf).unwrap();
        let config = second(8).replace("DATA", &cluster.node.path("data").display().to_string());
        std::fs::write(conf.join("local.conf"), config.replacen('{', r#"{"name":"local","#, 1)).unwrap();
        let uid = cluster.pod(json!({NETWORKS: "local"})).await;
        cluster.add(&uid).await;
        assert_eq!(cluster.states().await, ["main eth0 10.7.0.2", "ns/local net1 10.8.0.2"]);
        cluster.del(&uid);
    });
}

#[test]
fn default_routes_move_where_the_pod_wants_them() {
    Cluster::run(async |cluster| {
        cluster.nad("ns", "a", &second(8), None).await;
        let networks = json!([{"name": "a", "default-route": ["10.8.0.1"]}]);
        let uid = cluster.pod(json!({NETWORKS: networks.to_string()})).await;
        let result = cluster.add(&uid).await;
        assert!(!result.routes.iter().any(cni::Route::is_default), "{result:?}");
        let routes = ip(Some(&cluster.node.container), "route show default");
        assert!(routes.contains("via 10.8.0.1 dev net1") && routes.lines().count() == 1, "{routes}");
        let states: Value = serde_json::from_str(&cluster.status_text().await).unwrap();
        assert_eq!((&states[0]["gateway"], &states[1]["gateway"]), (&Value::Null, &json!(["10.8.0.1"])));
        // CHECK compares with what is there now.
        let request = cluster.request(Command::Check, &uid, &default_conf());
        multus::check::check(&Conf::load(&request).unwrap(), &request).unwrap();
        cluster.del(&uid);
    });
}

#[test]
fn an_unreachable_gateway_undoes_all() {
    Cluster::run(async |cluster| {
        cluster.nad("ns", "a", &second(8), None).await;
        let uid = cluster.pod(json!({NETWORKS: r#"[{"name":"a","default-route":["192.0.2.1"]}]"#})).await;
        let error = cluster.refused(&uid).await;
        assert!(error.contains("error setting default gateway: 192.0.2.1 on net1"), "{error}");
    });
}

#[test]
fn a_server_in_trouble_is_waited_for() {
    Cluster::run(async |cluster| {
        cluster.nad("ns", "a", &second(8), None).await;
        let uid = cluster.pod(json!({NETWORKS: "a"})).await;
        let pod = "/api/v1/namespaces/ns/pods/p";
        cluster.server.inject(Fault::on(Verb::Get, pod).times(2).answer(500));
        cluster
            .server
            .inject(Fault::on(Verb::Get, "/apis/k8s.cni.cncf.io").times(1).answer_retry_after(429, 1));
        cluster.server.inject(Fault::on(Verb::Patch, pod).times(1).drop_connection());
        cluster.server.inject(Fault::on(Verb::Patch, pod).times(1).drop_answer());
        cluster.server.inject(Fault::on(Verb::Create, "/api/v1/namespaces/ns/events").answer(403));
        cluster.add(&uid).await;
        cluster.server.clear_faults();
        assert_eq!(cluster.states().await.len(), 2);
        cluster.del(&uid);
    });
}

#[test]
fn a_status_that_cannot_be_written_undoes_all() {
    Cluster::run(async |cluster| {
        let uid = cluster.pod(json!({})).await;
        let pod = "/api/v1/namespaces/ns/pods/p";
        for (code, part) in
            [(403, "Forbidden"), (409, "made anew"), (422, "made anew"), (401, "Unauthorized")]
        {
            cluster.server.inject(Fault::on(Verb::Patch, pod).answer(code));
            cluster.server.inject(Fault::on(Verb::Update, pod).answer(code));
            let error = cluster.refused(&uid).await;
            assert!(
                error.contains("error setting the network-status of pod ns/p") && error.contains(part),
                "{error}"
            );
            cluster.server.clear_faults();
        }
        // A pod that is gone needs no status; its DEL follows.
        cluster.server.inject(Fault::on(Verb::Patch, pod).answer(404));
        cluster.add(&uid).await;
        cluster.server.clear_faults();
        cluster.del(&uid);
    });
}

/// The role of the peer's manifests: get, list, watch and update of pods and their status, but no patch.
#[test]
fn where_a_patch_is_forbidden_the_status_is_updated() {
    Cluster::run(async |cluster| {
        cluster.nad("ns", "a", &second(8), None).await;
        let uid = cluster.pod(json!({NETWORKS: "a", "other": "stays"})).await;
        let pod = "/api/v1/namespaces/ns/pods/p";
        cluster.server.inject(Fault::on(Verb::Patch, pod).answer(403));
        cluster.server.inject(Fault::on(Verb::Update, pod).times(1).answer(409));
        cluster.add(&uid).await;
        assert_eq!(cluster.states().await.len(), 2);
        assert_eq!(cluster.get(pod).await["metadata"]["annotations"]["other"], "stays");
        cluster.del(&uid);

        // A process that stays asks for the patch once.
        let kubeconfig = cluster.node.path("kubeconfig");
        let client = Kubernetes::connect(Some(&kubeconfig)).await.unwrap().unwrap();
        let known = client.pod("ns", "p").await.unwrap().unwrap();
        cluster.server.clear_requests();
        for status in ["[1]", "[2]"] {
            client.set_network_status(&known, status).await.unwrap();
            assert_eq!(cluster.status_text().await, status);
        }
        assert_eq!(cluster.server.count(Verb::Patch, "pods"), 1);
        // Of a pod made anew it is not the status.
        let another = multus::kubernetes::Pod { uid: "another".to_owned(), ..known };
        let error = client.set_network_status(&another, "[3]").await.unwrap_err().to_string();
        assert!(error.contains("made anew"), "{error}");
        assert_eq!(cluster.status_text().await, "[2]");
    });
}

#[test]
fn a_token_may_be_in_a_file_of_its_own() {
    Cluster::run(async |cluster| {
        let uid = cluster.pod(json!({})).await;
        let (kubeconfig, token) = (cluster.node.path("kubeconfig"), cluster.node.path("token"));
        let text = std::fs::read_to_string(&kubeconfig).unwrap();
        let inline = format!("token: \"{}\"", cluster.server.token());
        assert!(text.contains(&inline), "{text}");
        std::fs::write(&kubeconfig, text.replace(&inline, &format!("tokenFile: {}", token.display())))
            .unwrap();
        std::fs::write(&token, cluster.server.token()).unwrap();
        cluster.add(&uid).await;
        cluster.del(&uid);
        std::fs::write(&kubeconfig, "not: [a kubeconfig").unwrap();
        let error = cluster.refused(&uid).await;
        assert!(error.starts_with("cannot talk to Kubernetes by kubeconfig /"), "{error}");
    });
}

#[test]
fn the_runtimes_proxy_is_not_asked_for_the_api_server() {
    Cluster::run(async |cluster| {
        let uid = cluster.pod(json!({})).await;
        let kubeconfig = cluster.node.path("kubeconfig");
        let conf = format!(r#""kubeconfig":"{}",{}"#, kubeconfig.display(), default_conf());
        let call = |verb| {
            let mut command = cluster.node.command(verb, "c0ffee", &path_of(&cluster.node.container));
            let conf = cluster.node.conf(&conf);
            command
                .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID={uid}"))
                .env("HTTPS_PROXY", "http://127.0.0.1:9")
                .env("https_proxy", "http://127.0.0.1:9");
            tokio::task::spawn_blocking(move || node::call(&mut command, &conf))
        };
        let added = call("ADD").await.unwrap();
        assert!(added.ok, "{}", added.stdout);
        assert_eq!(cluster.states().await.len(), 1);
        let deleted = call("DEL").await.unwrap();
        assert!(deleted.ok, "{}", deleted.stdout);
    });
}

/// A proxy that opens one tunnel after the other and counts them.
fn proxy() -> (std::net::SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, count) = (listener.local_addr().unwrap(), std::sync::Arc::default());
    let tunnels: std::sync::Arc<std::sync::atomic::AtomicUsize> = std::sync::Arc::clone(&count);
    let copy = |mut from: std::net::TcpStream, mut to: std::net::TcpStream| {
        std::thread::spawn(move || std::io::copy(&mut from, &mut to))
    };
    // In the test's network namespace, where the API server is.
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            let target = first.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            let server = std::net::TcpStream::connect(target).unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            tunnels.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            copy(client.try_clone().unwrap(), server.try_clone().unwrap());
            copy(server, client);
        }
    });
    (address, count)
}

#[test]
fn the_proxy_of_the_kubeconfig_is_used() {
    Cluster::run(async |cluster| {
        let uid = cluster.pod(json!({})).await;
        let kubeconfig = cluster.node.path("kubeconfig");
        let text = std::fs::read_to_string(&kubeconfig).unwrap();
        let by_proxy = |url: &str| text.replace("server:", &format!("proxy-url: {url}\n    server:"));
        std::fs::write(&kubeconfig, by_proxy("ftp://127.0.0.1")).unwrap();
        let error = cluster.refused(&uid).await;
        assert!(error.contains("cannot talk to Kubernetes") && error.contains("ftp://127.0.0.1"), "{error}");
        let (address, tunnels) = proxy();
        std::fs::write(&kubeconfig, by_proxy(&format!("http://{address}"))).unwrap();
        cluster.add(&uid).await;
        assert!(tunnels.load(std::sync::atomic::Ordering::SeqCst) > 0);
        assert_eq!(cluster.states().await.len(), 1);
        cluster.del(&uid);
    });
}

#[test]
fn every_form_of_a_kubeconfig() {
    Cluster::run(async |cluster| {
        let uid = cluster.pod(json!({})).await;
        let kubeconfig = cluster.node.path("kubeconfig");
        let text = std::fs::read_to_string(&kubeconfig).unwrap();
        let line = |key: &str| text.lines().find(|line| line.contains(key)).unwrap().trim().to_owned();
        let (authority, token) = (line("certificate-authority-data"), line("token:"));
        let (certificate, key) = cluster.server.client_pem();
        for (name, content) in
            [("ca.crt", cluster.server.ca_pem()), ("client.crt", certificate), ("client.key", key)]
        {
            std::fs::write(cluster.node.path(name), content).unwrap();
        }
        let plugin = cluster.node.path("bin/credentials");
        let answer = json!({
            "kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1",
            "status": {"token": cluster.server.token()},
        });
        cluster.node.script("credentials", &format!("echo '{answer}'"));
        let port = cluster.server.addr().port();
        let (plain, with_name) =
            (line("server:"), format!("server: https://127.0.0.1:{port}\n    tls-server-name: kubernetes"));
        for (what, old, new) in [
            ("as it is", &token, token.clone()),
            // A path counts from where the kubeconfig is.
            ("a file of the authority", &authority, "certificate-authority: ca.crt".to_owned()),
            ("no check", &authority, "insecure-skip-tls-verify: true".to_owned()),
            ("another name in the certificate", &plain, with_name),
            (
                "a certificate in place of a token",
                &token,
                "client-certificate: client.crt\n    client-key: client.key".to_owned(),
            ),
            (
                "a program that has the token",
                &token,
                format!(
                    "exec:\n      apiVersion: client.authentication.k8s.io/v1\n      command: {}\n      interactiveMode: Never",
                    plugin.display()
                ),
            ),
        ] {
            std::fs::write(&kubeconfig, text.replace(old.as_str(), &new)).unwrap();
            let added = cluster.try_add(&uid, &default_conf()).await;
            assert!(added.is_ok(), "{what}: {}", added.unwrap_err());
            cluster.del(&uid);
        }
        std::fs::write(&kubeconfig, text.replace(&format!("    {authority}\n"), "")).unwrap();
        let begin = std::time::Instant::now();
        let error = cluster.refused(&uid).await;
        assert!(error.contains("does the kubeconfig have the certificate authority"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn a_capability_that_no_plugin_declares_is_told_or_refused() {
    Cluster::run(async |cluster| {
        cluster.nad("ns", "a", &second(8), None).await;
        let uid = cluster.pod(json!({NETWORKS: r#"[{"name":"a","ips":["10.8.0.77"]}]"#})).await;
        let told = "the pod asks for ips of network ns/a, and no plugin of it declares that capability";
        let refuse = format!(r#""undeclaredCapabilities":"refuse",{}"#, default_conf());
        let error = cluster.try_add(&uid, &refuse).await.unwrap_err();
        assert!(error.code() == 7 && error.to_string().starts_with(told), "{error}");
        cluster.node.assert_clean();
        assert_eq!(cluster.events().await, [""; 0]);
        cluster.add(&uid).await;
        let events = cluster.events().await;
        let warning = format!("Warning UndeclaredCapability {told}");
        assert!(events.iter().any(|event| event.starts_with(&warning)), "{events:?}");
        cluster.del(&uid);
    });
}

#[test]
fn refused_credentials_are_told_at_once() {
    Cluster::run(async |cluster| {
        let uid = cluster.pod(json!({})).await;
        cluster.server.revoke_token(cluster.server.token());
        let begin = std::time::Instant::now();
        let error = cluster.try_add(&uid, &default_conf()).await.unwrap_err().to_string();
        assert!(error.starts_with("error getting pod ns/p: Unauthorized"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    });
}

/// kubelet's side: what it answers Get and List with.
#[derive(Clone, Default)]
struct Kubelet {
    get: Option<PodResources>,
    list: Vec<PodResources>,
}

#[tonic::async_trait]
impl PodResourcesLister for Kubelet {
    async fn list(
        &self,
        _: tonic::Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        Ok(Response::new(ListPodResourcesResponse { pod_resources: self.list.clone() }))
    }

    async fn get_allocatable_resources(
        &self,
        _: tonic::Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get(
        &self,
        _: tonic::Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        match &self.get {
            Some(pod) => Ok(Response::new(GetPodResourcesResponse { pod_resources: Some(pod.clone()) })),
            None => Err(Status::unimplemented("unknown method Get")),
        }
    }
}

/// The pod's containers with their devices of `intel.com/vf`.
fn resources(name: &str, containers: &[&[&str]]) -> PodResources {
    let container = |ids: &&[&str]| ContainerResources {
        devices: vec![ContainerDevices {
            resource_name: "intel.com/vf".into(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..ContainerDevices::default()
        }],
        ..ContainerResources::default()
    };
    PodResources {
        name: name.into(),
        namespace: "ns".into(),
        containers: containers.iter().map(container).collect(),
    }
}

impl Kubelet {
    fn serve(self, cluster: &Cluster<'_>) -> tokio::task::JoinHandle<()> {
        let listener = tokio::net::UnixListener::bind(&cluster.paths.pod_resources).unwrap();
        let server = tonic::transport::Server::builder().add_service(PodResourcesListerServer::new(self));
        tokio::spawn(async move {
            server.serve_with_incoming(kubelet_api::incoming(listener)).await.unwrap();
        })
    }
}

/// Answers with its device as MAC-less interface, and amends the device-info file.
const DEVICE_PLUGIN: &str = r#"
input=$(cat)
echo "$CNI_COMMAND $CNI_IFNAME $(echo "$input" | sed 's/.*"deviceID":"\([^"]*\)".*/\1/')" >>devices
[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}]}'
exit 0"#;

async fn device_networks(cluster: &Cluster<'_>) -> String {
    cluster.node.script("device", DEVICE_PLUGIN);
    cluster.nad("ns", "vf", r#"{"cniVersion":"1.0.0","type":"device"}"#, Some("intel.com/vf")).await;
    cluster.pod(json!({NETWORKS: "vf,vf"})).await
}

#[test]
fn devices_come_from_pod_resources() {
    let pod = || resources("p", &[&["0000:03", "0000:02"], &["0000:01"]]);
    let others = || vec![resources("q", &[&["0000:09"]]), pod()];
    for kubelet in [Kubelet { get: Some(pod()), list: vec![] }, Kubelet { get: None, list: others() }] {
        Cluster::run(async |cluster| {
            let uid = device_networks(cluster).await;
            let serving = kubelet.serve(cluster);
            let plugin_info = cluster.node.path("devinfo/dp");
            std::fs::create_dir_all(&plugin_info).unwrap();
            let info = r#"{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:02"}}"#;
            std::fs::write(plugin_info.join("intel.com-vf-0000:02-device.json"), info).unwrap();
            cluster.add(&uid).await;
            assert_eq!(cluster.node.files("devinfo/cni"), ["ns-vf-c0ffee_net1"]);
            let states: Value = serde_json::from_str(&cluster.status_text().await).unwrap();
            assert_eq!(states[1]["device-info"]["pci"]["pci-address"], "0000:02");
            assert_eq!(states[2]["device-info"], Value::Null);
            cluster.del(&uid);
            let devices = std::fs::read_to_string(cluster.node.path("devices")).unwrap();
            assert_eq!(devices, "ADD net1 0000:02\nADD net2 0000:03\nDEL net2 0000:03\nDEL net1 0000:02\n");
            assert_eq!(cluster.node.files("devinfo/cni"), [""; 0]);
            serving.abort();
        });
    }
}

#[test]
fn a_network_without_its_device_is_not_attached() {
    Cluster::run(async |cluster| {
        let uid = device_networks(cluster).await;
        let serving = Kubelet { get: Some(resources("p", &[&["0000:01"]])), list: vec![] }.serve(cluster);
        let error = cluster.refused(&uid).await;
        for part in
            ["network ns/vf", "resource intel.com/vf", "allocated 1 of it", "pod ns/p", "resources.limits"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert!(!cluster.node.path("devices").exists());
        serving.abort();
    });
}

#[test]
fn a_resource_that_is_only_counted_needs_no_device() {
    Cluster::run(async |cluster| {
        let serving = Kubelet { get: Some(resources("p", &[&["0000:01"]])), list: vec![] }.serve(cluster);
        let counted = "bridge.network.kubevirt.io/br8";
        cluster.nad("ns", "counted", &second(8), Some(counted)).await;
        let needing = r#"[ $CNI_COMMAND = ADD ] && { echo '{"code":7,"msg":"no device"}'; exit 1; }; exit 0"#;
        cluster.node.script("needing", needing);
        cluster.nad("ns", "needing", r#"{"cniVersion":"1.0.0","type":"needing"}"#, Some(counted)).await;
        let uid = cluster.pod(json!({NETWORKS: "counted"})).await;
        cluster.add(&uid).await;
        assert_eq!(cluster.states().await, ["main eth0 10.7.0.2", "ns/counted net1 10.8.0.2"]);
        cluster.del(&uid);
        let request = http::Request::delete("/api/v1/namespaces/ns/pods/p?gracePeriodSeconds=0")
            .body(Vec::new())
            .unwrap();
        let _: Value = cluster.client.request(request).await.unwrap();
        let uid = cluster.pod(json!({NETWORKS: "needing"})).await;
        let error = cluster.refused(&uid).await;
        let advice = format!("no device: kubelet allocated no device of resource {counted} to the pod");
        assert!(error.contains(&advice), "{error}");
        serving.abort();
    });
}

#[test]
fn without_the_socket_the_checkpoint_tells() {
    Cluster::run(async |cluster| {
        let uid = device_networks(cluster).await;
        let error = cluster.refused(&uid).await;
        assert!(error.contains("no PodResources socket at") && error.contains("checkpoint"), "{error}");
        let checkpoint = json!({"Data": {"PodDeviceEntries": [
            {"PodUID": uid, "ContainerName": "c", "ResourceName": "intel.com/vf", "DeviceIDs": {"0": ["0000:02"], "1": ["0000:01"]}},
        ]}});
        std::fs::write(&cluster.paths.checkpoint, checkpoint.to_string()).unwrap();
        cluster.add(&uid).await;
        cluster.del(&uid);
        let devices = std::fs::read_to_string(cluster.node.path("devices")).unwrap();
        assert!(devices.starts_with("ADD net1 0000:01\nADD net2 0000:02\n"), "{devices}");
    });
}

#[test]
fn a_socket_nobody_listens_on_is_told() {
    Cluster::run(async |cluster| {
        let uid = device_networks(cluster).await;
        drop(std::os::unix::net::UnixListener::bind(&cluster.paths.pod_resources).unwrap());
        let error = cluster.refused(&uid).await;
        assert!(error.contains("cannot learn from kubelet which devices pod ns/p was allocated"), "{error}");
        assert!(error.contains("is kubelet running?"), "{error}");
    });
}

#[test]
fn isolation_holds_for_every_annotation() {
    Cluster::run(async |cluster| {
        cluster.nad("other", "x", &second(8), None).await;
        for key in [NETWORKS, "v1.multus-cni.io/default-network"] {
            let uid = cluster.pod(json!({key: "other/x"})).await;
            let conf = format!(r#""namespaceIsolation":true,{}"#, default_conf());
            let error = cluster.try_add(&uid, &conf).await.unwrap_err().to_string();
            assert!(error.contains("pod is in namespace ns but refers to target namespace other"), "{error}");
            let request = http::Request::delete("/api/v1/namespaces/ns/pods/p?gracePeriodSeconds=0")
                .body(Vec::new())
                .unwrap();
            let _: Value = cluster.client.request(request).await.unwrap();
        }
    });
}

#[test]
fn two_sandboxes_at_the_same_time() {
    Cluster::run(async |cluster| {
        let uid = cluster.pod(json!({})).await;
        let other: Netns = new_netns();
        cluster.add(&uid).await;
        let mut request = cluster.request(Command::Add, &uid, &default_conf());
        request.container_id = "second".into();
        request.netns = Some(path_of(&other));
        let conf = Conf::load(&request).unwrap();
        let result = attach::add(&cluster.paths, &conf, &request).await.unwrap();
        assert_eq!(result.ips[0].address.to_string(), "10.7.0.3/24");
        cluster.del(&uid);
        assert_eq!(cluster.node.files("data"), ["10.7.0.3"]);
        detach::release_sandbox(&cluster.paths, &conf, &request).unwrap();
        cluster.node.assert_clean();
    });
}

/// Passes connections on to `server`; what goes over those that were made before `cut` is lost from then on.
fn passed_on(server: SocketAddr, cut: &Arc<AtomicBool>) -> SocketAddr {
    fn pass(mut from: TcpStream, mut to: TcpStream, cut: Option<&AtomicBool>) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let is_cut = cut.is_some_and(|cut| cut.load(Ordering::SeqCst));
            if !is_cut && to.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, cut) = (listener.local_addr().unwrap(), Arc::clone(cut));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
            let cut = (!cut.load(Ordering::SeqCst)).then(|| Arc::clone(&cut));
            let back = (server.try_clone().unwrap(), client.try_clone().unwrap(), cut.clone());
            std::thread::spawn(move || pass(back.0, back.1, back.2.as_deref()));
            std::thread::spawn(move || pass(client, server, cut.as_deref()));
        }
    });
    address
}

#[test]
fn a_server_that_is_gone_does_not_take_the_call_with_it() {
    Cluster::run(async |cluster| {
        let cut = Arc::new(AtomicBool::new(false));
        let address = passed_on(cluster.server.addr(), &cut);
        let kubeconfig = cluster.node.path("passed-on");
        std::fs::write(&kubeconfig, cluster.server.kubeconfig(Some(&format!("https://{address}")))).unwrap();
        let kubernetes = Kubernetes::connect_for_call(Some(&kubeconfig)).await.unwrap().unwrap();
        assert!(kubernetes.pod("ns", "none").await.unwrap().is_none());
        cut.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        assert!(kubernetes.pod("ns", "none").await.unwrap().is_none());
        assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    });
}
