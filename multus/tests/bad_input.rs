//! Input that must not hurt: the corpus, and mutations of it, reach whatever reads them, which may refuse but neither
//! panic nor hang; and a sandbox gets all its networks or none. Runs as root.
//!
//! `PODRAIL_MUTATIONS` is the number of mutations of each input (default 300). They are the same in each run.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    dead_code,
    reason = "a test fails by panicking"
)]

mod mutate;
mod node;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cni::cache::CachedAttachment;
use cni::{Args, Command, NetworkList, Object, Request, Version};
use multus::config::Conf;
use multus::delegate::Sandbox;
use multus::device_info::DeviceInfo;
use multus::devices::DevicePool;
use multus::kubernetes::{Kubernetes, Pod};
use multus::nad::{Nad, Network};
use multus::networks::Wanted;
use multus::{cached_delegates, checkpoint, selection};
use mutate::{corpus, with_mutations};
use node::Node;

fn request(config: &[u8]) -> Option<Request> {
    Some(Request {
        command: Command::Add,
        container_id: "c0ffee".into(),
        netns: Some("/run/netns/x".into()),
        ifname: "eth0".into(),
        args: Args::default(),
        path: Vec::new(),
        version: Version::LATEST,
        name: "multus".into(),
        config: Object::parse(config).ok()?,
        stdin: config.to_vec(),
    })
}

/// Whatever delegates come of a network and an annotation can be written down and read again.
#[test]
fn annotations_and_networks() {
    let node = multus::node::Node::default();
    let none = tempfile::tempdir().unwrap();
    let request = request(b"{}").unwrap();
    let (annotations, networks) = (corpus("annotations"), corpus("networks"));
    let attach = |annotation: &[u8], config: &[u8]| -> Option<()> {
        let (annotation, config) = (String::from_utf8_lossy(annotation), String::from_utf8_lossy(config));
        let _ = selection::parse_default(&annotation);
        let nad = Nad {
            namespace: "ns".into(),
            name: "n".into(),
            config: Some(config.into_owned()),
            resource: None,
        };
        let network = Network::of(&nad, none.path()).ok();
        let selections = selection::parse(&annotation).ok()?;
        let network = network?;
        assert!(!network.list.plugins.is_empty(), "a network without plugins: {:?}", nad.config);
        let wanted = |selection| Wanted { network: network.clone(), selection: Some(selection) };
        let wanted = std::iter::once(Wanted::from(network.clone())).chain(selections.into_iter().map(wanted));
        let sandbox = Sandbox { request: &request, pod: None, runtime_config: &Object::new(), node: &node };
        let delegates = sandbox.delegates(wanted.collect(), &mut DevicePool::default()).ok()?;
        let record = cached_delegates::encode(&delegates);
        let again = cached_delegates::decode(&record, &request).unwrap();
        assert_eq!(cached_delegates::encode(&again), record);
        Some(())
    };
    let (good_annotation, good_network) =
        (br#"[{"name":"n","deviceID":"0000:01:00.0"}]"#, br#"{"name":"n","type":"x"}"#);
    assert!(attach(good_annotation, good_network).is_some());
    with_mutations(&annotations, |annotation| {
        attach(annotation, good_network);
    });
    with_mutations(&networks, |config| {
        attach(good_annotation, config);
    });
    for annotation in &annotations {
        for config in &networks {
            attach(annotation, config);
        }
    }
}

#[test]
fn configurations() {
    let networks = corpus("networks");
    let directory = tempfile::tempdir().unwrap();
    with_mutations(&networks, |config| {
        let _ = NetworkList::parse(config);
        if let Some(request) = request(config) {
            let _ = Conf::load(&request);
        }
    });
    for config in networks {
        let file = directory.path().join("10.conflist");
        std::fs::write(&file, config).unwrap();
        let _ = NetworkList::load(&file);
        let _ = multus::nad::find(directory.path(), "n");
        let _ = multus::nad::load(directory.path());
    }
}

#[test]
fn files_of_the_node() {
    let request = request(b"{}").unwrap();
    with_mutations(&corpus("records"), |file| drop(cached_delegates::decode(file, &request)));
    with_mutations(&corpus("cached-results"), |file| drop(CachedAttachment::parse(file)));
    with_mutations(&corpus("checkpoints"), |file| {
        if let Ok(containers) = checkpoint::devices_of(file, "u") {
            let _ = DevicePool::new(&containers).take("r");
        }
    });
    with_mutations(&corpus("device-infos"), |file| drop(serde_json::from_slice::<DeviceInfo>(file)));
}

/// An HTTP server on a loopback port that answers everything with the body of the moment.
fn serve(body: Arc<Mutex<Vec<u8>>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
                head.push(byte[0]);
            }
            let body = body.lock().unwrap().clone();
            let start =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[start.as_bytes(), &body].concat());
        }
    });
    port
}

#[test]
fn answers_of_the_api_server() {
    let body = Arc::new(Mutex::new(Vec::new()));
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let port = serve(Arc::clone(&body));
    let text = format!(
        "clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\nusers: [{{name: u, user: {{}}}}]\ncontexts: \
         [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let kubernetes = runtime.block_on(Kubernetes::connect(Some(&kubeconfig))).unwrap().unwrap();
    let pod = Pod { namespace: "ns".into(), name: "p".into(), ..Pod::default() };
    let mut understood = 0;
    mutate::with_some_mutations(&corpus("answers"), 20, |answer| {
        *body.lock().unwrap() = answer.to_vec();
        runtime.block_on(async {
            let asked = async {
                let found = kubernetes.pod("ns", "p").await;
                understood += usize::from(matches!(found, Ok(Some(pod)) if pod.uid == "u"));
                let _ = kubernetes.nad("ns", "n").await;
                let _ = kubernetes.set_network_status(&pod, "[]").await;
            };
            // A guard against an answer that is waited for or asked for for ever.
            let ended = tokio::time::timeout(Duration::from_secs(60), asked).await;
            assert!(ended.is_ok(), "no end with {}", String::from_utf8_lossy(answer));
        });
    });
    assert!(understood > 0, "no answer was understood: the server of this test is not heard");
}

/// Each network of the corpus is the second of a sandbox whose first one works: with an error nothing stays attached,
/// without one all is.
#[test]
fn all_networks_or_none() {
    Node::run(|node| {
        let script = r#"cat >/dev/null
            case $CNI_COMMAND in
            ADD) : >"attached-$CNI_IFNAME"; echo '{"cniVersion":"1.0.0"}' ;;
            DEL) rm -f "attached-$CNI_IFNAME" ;;
            esac"#;
        node.script("podrail-first", script);
        node.script("podrail-none", script);
        let attached =
            || ["eth0", "net1"].map(|ifname| node.path(&format!("attached-{ifname}")).exists()).to_vec();
        let mut outcomes = [0, 0];
        for config in corpus("networks") {
            let Ok(network) = String::from_utf8(config) else { continue };
            let network = if network.is_empty() { "null".to_owned() } else { network };
            let conf = node.conf(&format!(
                r#""delegates":[{{"cniVersion":"1.0.0","name":"first","type":"podrail-first"}},{network}]"#
            ));
            let added = node.call("ADD", &conf);
            assert_eq!(attached(), [added.ok; 2], "{network}: {}", added.stdout);
            outcomes[usize::from(added.ok)] += 1;
            if !added.ok {
                let (_, message) = added.error();
                assert!(!message.contains("panicked"), "{network}: {message}");
            }
            if serde_json::from_str::<serde_json::Value>(&conf).is_ok() {
                let deleted = node.call("DEL", &conf);
                assert!(deleted.ok, "{network}: {}", deleted.stdout);
                assert_eq!((attached(), node.files("state")), (vec![false; 2], Vec::new()), "{network}");
            }
        }
        assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
    });
}

/// DEL with whatever lies where the record and the result cache should be: it ends with success or an error object.
#[test]
fn del_with_broken_state() {
    Node::run(|node| {
        node.script("podrail-none", "cat >/dev/null");
        let conf = node.conf(r#""delegates":[{"cniVersion":"1.0.0","name":"n","type":"podrail-none"}]"#);
        let state = node.path("state");
        for (kind, file) in [("records", "c0ffee"), ("cached-results", "results/n-c0ffee-net1")] {
            for content in corpus(kind) {
                let _ = std::fs::remove_dir_all(&state);
                std::fs::create_dir_all(state.join("results")).unwrap();
                std::fs::write(state.join(file), &content).unwrap();
                let deleted = node.call("DEL", &conf);
                let text = String::from_utf8_lossy(&content);
                assert!(!deleted.stdout.contains("panicked"), "{text}: {}", deleted.stdout);
                if !deleted.ok {
                    assert!(!deleted.error().1.is_empty(), "{text}");
                }
            }
        }
    });
}
