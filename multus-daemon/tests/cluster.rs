//! The daemon with a cluster: what it asks of the API server, and attaching to pods that run. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking"
)]

mod node;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2e::sim::apiserver::{ApiServer, Verb};
use hyper::Request;
use node::{Daemon, Node};
use serde_json::{Value, json};

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
const POD: &str = "/api/v1/namespaces/ns/pods/p";

struct Cluster {
    node: Node,
    server: ApiServer,
    runtime: tokio::runtime::Runtime,
    uid: String,
}

impl Cluster {
    /// A cluster with the NADs `a` and `b`, and a pod that wants `networks`.
    fn new(networks: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(ApiServer::start()).unwrap();
        let mut cluster = Cluster { node: Node::new(""), server, runtime, uid: String::new() };
        std::fs::write(cluster.node.path("kubeconfig"), cluster.server.kubeconfig(None)).unwrap();
        cluster.ask("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "ns"}}));
        for name in ["a", "b"] {
            cluster.create_nad(name, "second");
        }
        cluster.uid = cluster.create_pod("p", networks);
        cluster
    }

    fn create_nad(&self, name: &str, plugin: &str) {
        let config = json!({"cniVersion": "1.0.0", "name": name, "type": plugin}).to_string();
        let nad = json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name}, "spec": {"config": config},
        });
        self.ask("POST", "/apis/k8s.cni.cncf.io/v1/namespaces/ns/network-attachment-definitions", &nad);
    }

    /// The UID of the pod.
    fn create_pod(&self, name: &str, networks: &str) -> String {
        let pod = json!({
            "metadata": {"name": name, "annotations": {NETWORKS: networks}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
        });
        let pod = self.ask("POST", "/api/v1/namespaces/ns/pods", &pod);
        pod["metadata"]["uid"].as_str().unwrap().to_owned()
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

    fn start(&self, follows: bool) -> Daemon {
        self.start_with(
            follows,
            &json!({"delegates": [{"cniVersion": "1.0.0", "name": "main", "type": "main"}]}),
        )
    }

    fn start_with(&self, follows: bool, members: &Value) -> Daemon {
        let mut conf = json!({"kubeconfig": self.node.path("kubeconfig"), "followAnnotations": follows});
        conf.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        self.node.daemon(&conf)
    }

    fn daemon(&self, follows: bool) -> Daemon {
        self.watching(self.start(follows))
    }

    fn watching(&self, daemon: Daemon) -> Daemon {
        // Both watches are there, and what came before them is known.
        self.node.until("the daemon watches", || {
            self.server.requests().iter().filter(|r| r.verb == Verb::Watch).count() == 2
        });
        daemon
    }

    fn call(&self, command: &str) -> Value {
        let mut call = self.node.call(command, "c1");
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID={}", self.uid);
        call["env"]["CNI_ARGS"] = json!(args);
        call
    }

    fn cni(&self, command: &str) -> (u16, String) {
        self.node.ask("POST", "/cni", &self.call(command)).unwrap()
    }

    /// A call as a controller makes it, for network `name` as `ifname`.
    fn delegate(&self, command: &str, name: &str, ifname: &str) -> (u16, String) {
        self.delegate_with(
            command,
            name,
            ifname,
            &json!({"ips": ["10.0.0.9/24"], "mac": "", "cni-args": null}),
        )
    }

    fn delegate_with(&self, command: &str, name: &str, ifname: &str, attributes: &Value) -> (u16, String) {
        let mut call = self.call(command);
        call["env"]["CNI_IFNAME"] = json!(ifname);
        call["env"].as_object_mut().unwrap().remove("CNI_PATH");
        let config = json!({
            "cniVersion": "1.1.0", "name": name, "type": "second", "logLevel": "mine",
            "capabilities": {"portMappings": true, "bandwidth": true, "deviceID": true, "ips": true},
        });
        call["config"] = json!(STANDARD.encode(config.to_string()));
        call["interfaceAttributes"] = attributes.clone();
        self.node.ask("POST", "/delegate", &call).unwrap()
    }

    fn annotate(&self, networks: &str) {
        self.annotate_pod(POD, networks);
    }

    fn annotate_pod(&self, pod: &str, networks: &str) {
        self.ask("PATCH", pod, &json!({"metadata": {"annotations": {NETWORKS: networks}}}));
    }

    /// Messages of the events that were told.
    fn events(&self) -> Vec<String> {
        let events = self.ask("GET", "/api/v1/namespaces/ns/events", &Value::Null);
        let events = events["items"].as_array().unwrap();
        events.iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect()
    }

    /// The interfaces of the pod's network-status.
    fn interfaces(&self) -> Vec<String> {
        self.interfaces_of(POD)
    }

    fn interfaces_of(&self, pod: &str) -> Vec<String> {
        let pod = self.ask("GET", pod, &Value::Null);
        let text =
            pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().unwrap_or("[]");
        let states: Vec<Value> = serde_json::from_str(text).unwrap();
        states.iter().map(|state| state["name"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn what_is_known_is_not_asked_for() {
    let cluster = Cluster::new("a");
    let _daemon = cluster.daemon(false);
    cluster.server.clear_requests();
    let (status, body) = cluster.cni("ADD");
    assert_eq!(status, 200, "{body}");
    let asked = |verb| cluster.server.requests().iter().filter(|r| r.verb == verb).count();
    assert_eq!((asked(Verb::Get), asked(Verb::Patch)), (0, 1), "{:?}", cluster.server.requests());
    cluster.node.until("the events are told", || asked(Verb::Create) == 2);
    cluster.server.clear_requests();
    assert_eq!(cluster.cni("DEL").0, 200);
    assert_eq!(cluster.server.requests(), []);
    assert!(cluster.node.state().is_empty());
}

#[test]
fn gc_asks_for_nothing_that_is_known() {
    let cluster = Cluster::new("b");
    let members = json!({"delegates": null, "clusterNetwork": "a", "multusNamespace": "ns"});
    let _daemon = cluster.watching(cluster.start_with(false, &members));
    assert_eq!(cluster.cni("ADD").0, 200);
    // Events are told off the path.
    cluster.node.until("the events are told", || cluster.events().len() == 2);
    cluster.server.clear_requests();
    assert_eq!(cluster.node.gc("[]").0, 200);
    assert!(cluster.node.state().is_empty(), "{:?}", cluster.node.state());
    assert_eq!(cluster.server.requests(), []);
}

#[test]
fn a_pod_made_anew_is_asked_for() {
    let mut cluster = Cluster::new("a");
    let _daemon = cluster.daemon(false);
    cluster.uid = "another".to_owned();
    let (status, body) = cluster.cni("ADD");
    assert_eq!(status, 400);
    assert!(body.contains("expected pod UID"), "{body}");
    assert_eq!(cluster.server.count(Verb::Get, "pods"), 1);
}

#[test]
fn a_controller_attaches_and_detaches_and_the_pod_takes_the_rest_with_it() {
    let cluster = Cluster::new("");
    let _daemon = cluster.daemon(false);
    assert_eq!(cluster.cni("ADD").0, 200);
    for ifname in ["net1", "net2"] {
        let (status, body) = cluster.delegate("ADD", "a", ifname);
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &answer["Result"]["cniVersion"]), (200, &json!("1.1.0")), "{body}");
    }
    assert_eq!(cluster.delegate("ADD", "a", "net2").0, 200, "the controller may ask again");
    assert_eq!(cluster.node.count("ADD c1 net2"), 1);
    assert_eq!(cluster.delegate("CHECK", "a", "net2").0, 200);
    assert_eq!(cluster.delegate("DEL", "a", "net1").0, 200);
    assert_eq!(cluster.node.state(), ["a-c1-net2", "c1", "main-c1-eth0"]);
    assert_eq!(cluster.cni("DEL").0, 200);
    assert_eq!(cluster.node.count("DEL c1 net2"), 1);
    assert!(cluster.node.state().is_empty());
    assert_eq!(cluster.delegate("STATUS", "a", "net1").0, 200);
}

#[test]
fn a_controller_may_ask_for_everything_that_a_selection_may_have() {
    let cluster = Cluster::new("");
    let _daemon = cluster.daemon(false);
    assert_eq!(cluster.cni("ADD").0, 200);
    let attributes = json!({
        "ips": ["10.0.0.9/24"], "cni-args": {"k": "v"}, "deviceID": "0000:01:00.1",
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 1000, "ingressBurst": 8000},
    });
    let (status, body) = cluster.delegate_with("ADD", "a", "net1", &attributes);
    assert_eq!(status, 200, "{body}");
    let was_given = |verb: &str| {
        let input = cluster.node.input(verb);
        assert_eq!(input["deviceID"], "0000:01:00.1", "{verb} {input}");
        assert_eq!(input["args"]["cni"]["k"], "v", "{verb} {input}");
        assert_eq!(input["runtimeConfig"]["portMappings"][0]["hostPort"], 8080, "{verb} {input}");
        assert_eq!(input["runtimeConfig"]["bandwidth"]["ingressRate"], 1000, "{verb} {input}");
        assert_eq!(input["runtimeConfig"]["ips"], json!(["10.0.0.9/24"]), "{verb} {input}");
    };
    was_given("ADD");
    cluster.node.until("an event is told", || {
        cluster.events().iter().any(|message| message == "Add net1 [10.0.0.2/24] from a")
    });
    // Afterwards the record tells the rest, of which the controller says nothing.
    assert_eq!(cluster.delegate_with("CHECK", "a", "net1", &Value::Null).0, 200);
    was_given("CHECK");
    assert_eq!(cluster.delegate_with("DEL", "a", "net1", &Value::Null).0, 200);
    was_given("DEL");
    let (status, body) = cluster.delegate_with("ADD", "a", "net1", &json!({"ips": ["10.0.0.x"]}));
    assert_eq!((status, body.contains("10.0.0.x")), (400, true), "{body}");
}

/// STATUS and GC are about a network, not about a pod.
#[test]
fn a_controller_asks_for_the_state_of_a_network_and_collects_its_garbage() {
    let cluster = Cluster::new("");
    let _daemon = cluster.daemon(false);
    let ask = |command: &str, more: Value| {
        let mut config = json!({"cniVersion": "1.1.0", "name": "a", "type": "second"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let call = json!({"env": {"CNI_COMMAND": command}, "config": STANDARD.encode(config.to_string())});
        cluster.node.ask("POST", "/delegate", &call).unwrap()
    };
    assert_eq!(ask("STATUS", json!({})), (200, String::new()));
    assert_eq!(cluster.node.count("STATUS"), 1);
    assert_eq!(ask("GC", json!({})), (200, String::new()), "without a list nothing can be concluded");
    assert_eq!(cluster.node.count("GC"), 0);
    let valid = json!([{"containerID": "c9", "ifname": "net1"}]);
    assert_eq!(ask("GC", json!({"cni.dev/valid-attachments": valid})), (200, String::new()));
    assert_eq!(cluster.node.input("GC")["cni.dev/valid-attachments"], valid);
    assert_eq!(ask("STATUS", json!({"type": "missing"})).0, 400);
}

#[test]
fn the_primary_network_of_a_pod_is_not_a_controllers() {
    let cluster = Cluster::new("");
    let _daemon = cluster.daemon(false);
    assert_eq!(cluster.cni("ADD").0, 200);
    let (status, body) = cluster.delegate("DEL", "main", "eth0");
    assert_eq!((status, body.contains("primary network")), (400, true), "{body}");
    assert_eq!(cluster.node.count("DEL"), 0);
}

#[test]
fn an_annotation_that_changes_while_the_daemon_is_away_is_followed() {
    let cluster = Cluster::new("a");
    let daemon = cluster.daemon(true);
    assert_eq!(cluster.cni("ADD").0, 200);
    // Attached for another reason: it is not the annotation's to take away.
    assert_eq!(cluster.delegate("ADD", "by-hand", "extra").0, 200);
    let followed = cluster.node.path("state/followed").join(&cluster.uid);
    cluster.node.until("the annotation is known", || followed.exists());
    daemon.kill();
    cluster.annotate("b");
    cluster.server.clear_requests();
    let daemon = cluster.daemon(true);
    cluster.node.until("b is attached", || cluster.interfaces() == ["main", "by-hand", "ns/b"]);
    assert_eq!((cluster.node.count("DEL c1 net1"), cluster.node.count("ADD c1 net1")), (1, 2));
    daemon.kill();
    // Nothing has changed: nothing is touched. What is known of a pod goes with it.
    let calls = cluster.node.calls().len();
    cluster.server.clear_requests();
    std::fs::write(cluster.node.path("state/followed/gone"), "{}").unwrap();
    let daemon = cluster.daemon(true);
    cluster.node.until("what is left of a pod goes", || !cluster.node.path("state/followed/gone").exists());
    assert_eq!(cluster.cni("CHECK").0, 200);
    assert_eq!(cluster.node.count("DEL") + cluster.node.count("ADD"), calls);
    assert!(followed.exists());
    daemon.kill();
    // One that does not follow leaves nothing that would be old when one does again.
    let _daemon = cluster.start(false);
    assert!(!cluster.node.path("state/followed").exists());
}

#[test]
fn what_could_not_be_followed_is_tried_again() {
    let cluster = Cluster::new("a");
    let daemon = cluster.daemon(true);
    assert_eq!(cluster.cni("ADD").0, 200);
    cluster.annotate("a,later");
    let followed = cluster.node.path("state/followed").join(&cluster.uid);
    let told = || std::fs::read_to_string(&followed).unwrap_or_default();
    cluster.node.until("it fails", || told().contains(r#""failed":{"net2":"ns/later"}"#));
    cluster.create_nad("later", "second");
    // A daemon that starts does so at once, one that runs after a while.
    daemon.kill();
    cluster.server.clear_requests();
    let _daemon = cluster.daemon(true);
    cluster.node.until("it is attached", || cluster.interfaces() == ["main", "ns/a", "ns/later"]);
    cluster.node.until("and remembered", || told().contains(r#""failed":{}"#));
    assert_eq!(cluster.node.count("ADD c1 net1"), 1);
}

#[test]
fn annotations_of_running_pods_are_followed() {
    let cluster = Cluster::new("a");
    let _daemon = cluster.daemon(true);
    assert_eq!(cluster.cni("ADD").0, 200);
    assert_eq!(cluster.interfaces(), ["main", "ns/a"]);
    let annotate = |networks: &str| cluster.annotate(networks);
    annotate("a,b@extra");
    cluster.node.until("b is attached", || cluster.interfaces() == ["main", "ns/a", "ns/b"]);
    assert_eq!((cluster.node.count("ADD c1 extra"), cluster.node.count("ADD c1 net1")), (1, 1));
    annotate("b@extra");
    cluster.node.until("a is detached", || cluster.interfaces() == ["main", "ns/b"]);
    assert_eq!((cluster.node.count("DEL c1 net1"), cluster.node.count("DEL c1 extra")), (1, 0));
    assert_eq!(cluster.cni("DEL").0, 200);
    assert_eq!(cluster.node.count("DEL c1 extra"), 1);
    assert!(cluster.node.state().is_empty());
}

#[test]
fn a_pod_whose_plugin_hangs_holds_up_no_other() {
    const OTHER: &str = "/api/v1/namespaces/ns/pods/q";
    let cluster = Cluster::new("a");
    let (node, gate) = (&cluster.node, cluster.node.path("gate"));
    node.script(
        "slow",
        &format!(
            "cat >/dev/null; [ $CNI_COMMAND = ADD ] || exit 0\n\
             touch reached; while [ -e gate ]; do sleep 0.02; done; echo '{}'",
            node::RESULT
        ),
    );
    std::fs::write(&gate, "").unwrap();
    cluster.create_nad("slow", "slow");
    let uid = cluster.create_pod("q", "a");
    let _daemon = cluster.daemon(true);
    assert_eq!(cluster.cni("ADD").0, 200);
    let mut other = node.call("ADD", "c2");
    other["env"]["CNI_ARGS"] =
        json!(format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=q;K8S_POD_UID={uid}"));
    assert_eq!(node.ask("POST", "/cni", &other).unwrap().0, 200);
    cluster.annotate("a,slow");
    node.until("the slow one runs", || node.path("reached").exists());
    cluster.annotate_pod(OTHER, "a,b");
    node.until("the other pod has b", || cluster.interfaces_of(OTHER) == ["main", "ns/a", "ns/b"]);
    // What changes meanwhile comes when it is done.
    cluster.annotate("a,b");
    assert!(gate.exists());
    std::fs::remove_file(&gate).unwrap();
    node.until("b takes the place of the slow one", || cluster.interfaces() == ["main", "ns/a", "ns/b"]);
    assert_eq!((node.count("ADD c1 net2"), node.count("DEL c1 net1")), (1, 0));
}

#[test]
fn networks_of_the_node_are_not_the_annotations() {
    let cluster = Cluster::new("a");
    for (name, kind) in [("main", "main"), ("every", "second")] {
        let network = json!({"cniVersion": "1.0.0", "name": name, "type": kind});
        std::fs::write(cluster.node.path(&format!("{name}.conf")), network.to_string()).unwrap();
    }
    let [main, every] = ["main.conf", "every.conf"].map(|name| cluster.node.path(name));
    let members = json!({"delegates": null, "clusterNetwork": main, "defaultNetworks": [every]});
    let _daemon = cluster.watching(cluster.start_with(true, &members));
    assert_eq!(cluster.cni("ADD").0, 200);
    assert_eq!(cluster.interfaces(), ["main", "every", "ns/a"]);
    cluster.annotate("a,b");
    cluster.node.until("b is attached", || cluster.interfaces() == ["main", "every", "ns/a", "ns/b"]);
    assert_eq!(cluster.node.count("ADD c1 net3"), 1);
    cluster.annotate("");
    cluster.node.until("both are taken away", || cluster.interfaces() == ["main", "every"]);
    assert_eq!(cluster.node.count("DEL c1 net1"), 0);
}

#[test]
fn what_another_network_has_is_not_the_annotations() {
    let cluster = Cluster::new("a");
    let _daemon = cluster.daemon(true);
    assert_eq!(cluster.cni("ADD").0, 200);
    assert_eq!(cluster.delegate("ADD", "by-hand", "net2").0, 200);
    let followed = cluster.node.path("state/followed").join(&cluster.uid);
    let told = || std::fs::read_to_string(&followed).unwrap_or_default();
    cluster.node.until("the annotation is known", || followed.exists());
    cluster.annotate("a,b");
    cluster.node.until("it fails", || told().contains(r#""failed":{"net2":"ns/b"}"#));
    cluster.annotate("a");
    cluster.node.until("there is nothing left to do", || told().contains(r#""failed":{}"#));
    cluster.annotate("");
    cluster.node.until("a is taken away", || cluster.node.count("DEL c1 net1") == 1);
    assert_eq!((cluster.node.count("ADD c1 net2"), cluster.node.count("DEL c1 net2")), (1, 0));
}

#[test]
fn an_annotation_that_changes_before_there_is_a_record_is_followed() {
    let cluster = Cluster::new("a");
    let daemon = cluster.daemon(true);
    assert_eq!(cluster.cni("ADD").0, 200);
    let followed = cluster.node.path("state/followed").join(&cluster.uid);
    cluster.node.until("the annotation is known", || followed.exists());
    daemon.kill();
    // As while an ADD has read the annotation, and has not written its record yet.
    let [record, aside] = ["state/c1", "aside"].map(|name| cluster.node.path(name));
    std::fs::rename(&record, &aside).unwrap();
    cluster.annotate("a,b");
    std::fs::write(cluster.node.path("state/followed/gone"), "{}").unwrap();
    let daemon = cluster.start(true);
    cluster.node.until("it is looked at", || !cluster.node.path("state/followed/gone").exists());
    std::thread::sleep(std::time::Duration::from_millis(300));
    daemon.kill();
    std::fs::rename(&aside, &record).unwrap();
    // A daemon that starts looks at once, one that runs after a while.
    let _daemon = cluster.start(true);
    cluster.node.until("b is attached", || cluster.interfaces() == ["main", "ns/a", "ns/b"]);
    assert_eq!(cluster.node.count("ADD c1 net1"), 1);
}

/// A sandbox that is made anew has the pod's UID, as the one before it has that is not taken down yet.
#[test]
fn of_two_sandboxes_the_one_that_is_there_is_followed() {
    let cluster = Cluster::new("a");
    let _daemon = cluster.daemon(true);
    assert_eq!(cluster.cni("ADD").0, 200);
    let gone = cluster.node.path("netns/gone");
    std::os::unix::fs::symlink(cluster.node.netns(), &gone).unwrap();
    let mut other = cluster.call("ADD");
    (other["env"]["CNI_CONTAINERID"], other["env"]["CNI_NETNS"]) = (json!("c2"), json!(gone));
    assert_eq!(cluster.node.ask("POST", "/cni", &other).unwrap().0, 200);
    std::fs::remove_file(&gone).unwrap();
    let followed = cluster.node.path("state/followed").join(&cluster.uid);
    cluster.node.until("the annotation is known", || followed.exists());
    cluster.annotate("a,b");
    cluster.node.until("b is attached", || cluster.node.count("ADD c1 net2") == 1);
}

#[test]
fn a_status_that_was_lost_is_told_again() {
    let cluster = Cluster::new("a");
    let daemon = cluster.daemon(false);
    assert_eq!(cluster.cni("ADD").0, 200);
    daemon.kill();
    let status = "k8s.v1.cni.cncf.io/network-status";
    cluster.ask("PATCH", POD, &json!({"metadata": {"annotations": {status: null}}}));
    assert_eq!(cluster.interfaces(), [""; 0]);
    cluster.server.clear_requests();
    let daemon = cluster.daemon(false);
    cluster.node.until("the status is told", || cluster.interfaces() == ["main", "ns/a"]);
    daemon.kill();
    // One that is there is left alone.
    cluster.server.clear_requests();
    let _daemon = cluster.daemon(false);
    assert_eq!(cluster.cni("CHECK").0, 200);
    assert_eq!(cluster.server.requests().iter().filter(|r| r.verb == Verb::Patch).count(), 0);
}

/// How long the server is away: `PODRAIL_OUTAGE=120 cargo test -p multus-daemon --test cluster` for two minutes.
#[test]
fn pods_come_and_go_while_the_api_server_is_away() {
    let outage: u64 = std::env::var("PODRAIL_OUTAGE").map_or(3, |seconds| seconds.parse().unwrap());
    let mut cluster = Cluster::new("a");
    let daemon = cluster.daemon(false);
    assert_eq!(cluster.cni("ADD").0, 200);
    cluster.server.pause();
    assert_eq!(cluster.cni("CHECK").0, 200);
    assert_eq!(cluster.cni("DEL").0, 200);
    assert!(cluster.node.state().is_empty(), "{:?}", cluster.node.state());
    let (node, call) = (&cluster.node, cluster.call("ADD"));
    let failed = std::thread::scope(|scope| {
        // ADD waits for the server for a while, then fails whole; the runtime asks again.
        let runtime = scope.spawn(|| {
            let mut failed = 0;
            loop {
                let (status, body) = node.ask("POST", "/cni", &call).unwrap();
                if status == 200 {
                    return failed;
                }
                assert!(body.contains("setting the network-status of pod ns/p"), "{body}");
                assert!(node.state().is_empty(), "{:?}", node.state());
                failed += 1;
            }
        });
        std::thread::sleep(std::time::Duration::from_secs(outage));
        cluster.runtime.block_on(cluster.server.resume()).unwrap();
        runtime.join().unwrap()
    });
    println!("the API server was away for {outage} s, in which {failed} ADDs failed");
    // One is waited with for 20 seconds.
    assert!(failed <= outage / 15 && failed >= outage / 40, "{failed}");
    assert_eq!(cluster.interfaces(), ["main", "ns/a"]);

    // A daemon that finds no server at its start is ready all the same.
    cluster.server.pause();
    daemon.kill();
    let _daemon = cluster.start(false);
    assert_eq!(cluster.cni("CHECK").0, 200);
    assert_eq!(cluster.cni("DEL").0, 200);
    assert!(cluster.node.state().is_empty(), "{:?}", cluster.node.state());
}

/// Calls of the long run come from the environment: `PODRAIL_SOAK=100000 cargo test -p multus-daemon --test cluster`.
#[test]
fn memory_and_files_stay_where_they_are() {
    let cluster = Cluster::new("a");
    let daemon = cluster.daemon(false);
    let pid = daemon.child.id();
    let rounds = |count: usize| {
        for _ in 0..count {
            for verb in ["ADD", "DEL"] {
                let (status, body) = cluster.cni(verb);
                assert_eq!(status, 200, "{body}");
            }
            if cluster.server.requests().len() > 1000 {
                cluster.server.clear_requests();
            }
        }
    };
    let measure = || {
        // Events are told off the path, over connections of their own.
        std::thread::sleep(std::time::Duration::from_millis(500));
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        (files, resident.trim().trim_end_matches(" kB").parse::<usize>().unwrap())
    };
    let calls: usize = std::env::var("PODRAIL_SOAK").map_or(120, |calls| calls.parse().unwrap());
    rounds(20);
    let before = measure();
    rounds(calls / 2);
    let after = measure();
    println!(
        "{calls} calls: open files {} -> {}, resident {} -> {} KiB",
        before.0, after.0, before.1, after.1
    );
    assert!(after.0 <= before.0 + 5, "open files: {before:?} -> {after:?}");
    assert!(after.1 <= before.1 + 4096, "resident KiB: {before:?} -> {after:?}");
}
