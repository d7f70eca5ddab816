//! What only the simulated API server does: trouble on demand, counting, credentials, and surviving its clients.

use std::time::{Duration, Instant};

use base64::Engine as _;
use e2e::sim::apiserver::{ApiServer, Fault, Options, Verb};
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{Api, ListParams, ObjectMeta, PostParams, WatchEvent, WatchParams};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster::{Cluster, JSON, MAPS, MERGE, PODS, STRATEGIC, named, pod, refusal};

fn map(name: &str) -> ConfigMap {
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    ConfigMap { metadata, ..ConfigMap::default() }
}

async fn create(api: &Api<ConfigMap>, name: &str) -> Result<ConfigMap, kube::Error> {
    api.create(&PostParams::default(), &map(name)).await
}

fn code<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("{other:?}"),
    }
}

async fn maps(server: &ApiServer) -> Api<ConfigMap> {
    Api::namespaced(server.client().await.unwrap(), "default")
}

async fn config(server: &ApiServer) -> Config {
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(None)).unwrap();
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap()
}

#[tokio::test]
async fn faults_meet_the_requests_they_name() {
    let server = ApiServer::start().await.unwrap();
    let api = maps(&server).await;
    server.inject(
        Fault::on(Verb::Create, "/api/v1/namespaces/default/configmaps").skip(1).times(2).answer(500),
    );
    create(&api, "a").await.unwrap();
    assert_eq!(code(create(&api, "b").await), 500);
    assert_eq!(code(create(&api, "b").await), 500);
    assert_eq!(server.pending_faults(), 0);
    create(&api, "b").await.unwrap();
    assert_eq!(server.count(Verb::Create, "configmaps"), 4);
    let codes: Vec<_> = server.requests().into_iter().map(|request| request.status).collect();
    assert_eq!(codes, [Some(201), Some(500), Some(500), Some(201)]);
}

#[tokio::test]
async fn kube_waits_as_long_as_retry_after_says() {
    let server = ApiServer::start().await.unwrap();
    let client = Client::try_from(config(&server).await).unwrap();
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    server.inject(Fault::on(Verb::List, "").times(1).answer_retry_after(429, 1));
    let start = Instant::now();
    api.list(&ListParams::default()).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    assert_eq!(server.count(Verb::List, "configmaps"), 2);
}

#[tokio::test]
async fn a_lost_answer_is_not_a_lost_write() {
    let server = ApiServer::start().await.unwrap();
    let api = maps(&server).await;
    server.inject(Fault::on(Verb::Create, "").times(1).drop_connection());
    assert!(create(&api, "before").await.is_err());
    assert_eq!(api.get_opt("before").await.unwrap(), None);
    server.inject(Fault::on(Verb::Create, "").times(1).drop_answer());
    assert!(create(&api, "after").await.is_err());
    assert!(api.get_opt("after").await.unwrap().is_some());
}

#[tokio::test]
async fn delays_and_silence_end() {
    let server = ApiServer::start().await.unwrap();
    let api = maps(&server).await;
    server.inject(Fault::on(Verb::Get, "").times(1).delay(Duration::from_millis(300)));
    let start = Instant::now();
    assert_eq!(api.get_opt("none").await.unwrap(), None);
    assert!(start.elapsed() >= Duration::from_millis(300));
    server.inject(Fault::on(Verb::Get, "").hang());
    let silent = tokio::time::timeout(Duration::from_millis(300), api.get_opt("none"));
    assert!(silent.await.is_err(), "it answered");
    server.clear_faults();
    assert_eq!(api.get_opt("none").await.unwrap(), None);
}

#[tokio::test]
async fn a_watcher_survives_what_happens_to_api_servers() {
    let mut server = ApiServer::start().await.unwrap();
    let api = maps(&server).await;
    let mut events = std::pin::pin!(watcher(api.clone(), watcher::Config::default()));
    let mut applied = async |name: &str| loop {
        let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap().unwrap();
        // Errors on the way are what this is about.
        if let Ok(watcher::Event::Apply(map) | watcher::Event::InitApply(map)) = event
            && map.metadata.name.as_deref() == Some(name)
        {
            break;
        }
    };
    create(&api, "a").await.unwrap();
    applied("a").await;
    server.drop_watches();
    create(&api, "b").await.unwrap();
    applied("b").await;
    server.drop_watches();
    create(&api, "c").await.unwrap();
    server.compact();
    applied("c").await;
    server.pause();
    server.resume().await.unwrap();
    create(&api, "d").await.unwrap();
    applied("d").await;
}

#[tokio::test]
async fn a_paused_server_refuses_connections() {
    let mut server = ApiServer::start().await.unwrap();
    let api = maps(&server).await;
    create(&api, "a").await.unwrap();
    server.pause();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(matches!(api.get("a").await, Err(error) if !matches!(error, kube::Error::Api(_))));
    server.resume().await.unwrap();
    assert!(api.get("a").await.is_ok());
}

#[tokio::test]
async fn bookmarks_come_when_asked_for() {
    let bookmark_every = Duration::from_millis(50);
    let server = ApiServer::start_with(Options { bookmark_every, ..Options::default() }).await.unwrap();
    let api = maps(&server).await;
    let events = api.watch(&WatchParams::default(), "0").await.unwrap();
    let first = std::pin::pin!(events).next().await.unwrap().unwrap();
    assert!(matches!(first, WatchEvent::Bookmark(_)), "{first:?}");

    // The modern way to list: a watch that begins with all objects and says where they end.
    create(&api, "a").await.unwrap();
    let seen: Vec<String> = watcher(api, watcher::Config::default().streaming_lists())
        .take(3)
        .map_ok(|event| match event {
            watcher::Event::Init => "init".to_owned(),
            watcher::Event::InitApply(map) => map.metadata.name.unwrap_or_default(),
            watcher::Event::InitDone => "done".to_owned(),
            other => panic!("{other:?}"),
        })
        .try_collect()
        .await
        .unwrap();
    assert_eq!(seen, ["init", "a", "done"]);
}

#[tokio::test]
async fn a_bounded_history_ends_watches_and_pages() {
    let server = ApiServer::start_with(Options { history: 5, ..Options::default() }).await.unwrap();
    let api = maps(&server).await;
    let made = create(&api, "a").await.unwrap();
    for index in 0..10 {
        create(&api, &format!("b{index}")).await.unwrap();
    }
    let events = api.watch(&WatchParams::default(), &made.metadata.resource_version.unwrap()).await.unwrap();
    let first = std::pin::pin!(events).next().await.unwrap().unwrap();
    assert!(matches!(first, WatchEvent::Error(status) if status.code == 410));
    let page = api.list(&ListParams::default().limit(2)).await.unwrap();
    for index in 0..10 {
        create(&api, &format!("c{index}")).await.unwrap();
    }
    let next = ListParams::default().limit(2).continue_token(&page.metadata.continue_.unwrap());
    assert_eq!(code(api.list(&next).await), 410);
}

#[tokio::test]
async fn deleting_a_namespace_deletes_what_is_in_it() {
    let cluster = Cluster::simulated("namespace").await;
    cluster.post(PODS, &pod("p")).await.unwrap();
    cluster.post(MAPS, &named("a")).await.unwrap();
    let gone = cluster.delete("/api/v1/namespaces/{ns}", &Value::Null).await.unwrap();
    assert_eq!(gone["status"]["phase"], "Terminating");
    assert_eq!(cluster.post(MAPS, &named("b")).await, refusal(403, "Forbidden"));
    assert_eq!(cluster.get(&format!("{MAPS}/a")).await, refusal(404, "NotFound"));
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    assert!(pods.get("p").await.unwrap().metadata.deletion_timestamp.is_some(), "kubelet has it still");
    cluster.delete(&format!("{PODS}/p"), &json!({"gracePeriodSeconds": 0})).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    assert_eq!(namespaces.get_opt(&cluster.namespace).await.unwrap(), None);

    let cluster = Cluster::simulated("empty").await;
    cluster.delete("/api/v1/namespaces/{ns}/serviceaccounts/default", &Value::Null).await.unwrap();
    cluster.delete("/api/v1/namespaces/{ns}", &Value::Null).await.unwrap();
    assert_eq!(cluster.get("/api/v1/namespaces/{ns}").await, refusal(404, "NotFound"));
}

#[tokio::test]
async fn credentials_are_checked() {
    let server = ApiServer::start().await.unwrap();
    let base = config(&server).await;
    let with = |auth_info: AuthInfo| {
        let mut config = base.clone();
        config.auth_info = auth_info;
        Client::try_from(config).unwrap()
    };
    let with_token = |token: &str| with(AuthInfo { token: Some(token.into()), ..AuthInfo::default() });
    let list = async |client: Client| {
        Api::<ConfigMap>::default_namespaced(client).list(&ListParams::default()).await
    };

    let nobody = with(AuthInfo::default());
    assert!(nobody.apiserver_version().await.is_ok());
    assert_eq!(code(list(nobody).await), 403);
    assert_eq!(code(list(with_token("wrong")).await), 401);
    let user = "system:serviceaccount:kube-system:multus";
    server.add_token("rotated", user);
    assert_eq!(code(list(with_token("rotated")).await), 403, "known, but without rights");
    assert_eq!(server.requests().last().unwrap().user, user);
    server.revoke_token("rotated");
    assert_eq!(code(list(with_token("rotated")).await), 401);

    let base64 = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let (certificate, key) = server.client_pem();
    let certified = with(AuthInfo {
        client_certificate_data: Some(base64(certificate)),
        client_key_data: Some(base64(key).into()),
        ..AuthInfo::default()
    });
    assert!(list(certified).await.is_ok());
}

#[tokio::test]
async fn nothing_that_a_client_sends_kills_the_server() {
    let cluster = Cluster::simulated("hostile").await;
    let server = cluster.server.as_ref().unwrap();

    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]] {
        let mut stream = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        // Whether it says goodbye or just hangs up is the TLS library's business.
        let _reply = stream.read_to_end(&mut Vec::new()).await;
    }

    let odd = [
        Value::Null,
        json!([]),
        json!("text"),
        json!({"metadata": []}),
        json!({"metadata": {"name": 5}}),
        json!({"metadata": {"name": "x", "labels": []}}),
        json!({"metadata": {"name": "x", "finalizers": {"a": 1}}, "spec": []}),
        json!({"metadata": {"name": "x", "ownerReferences": 1}, "spec": {"containers": [1, null]}}),
        json!({"metadata": {"name": "x"}, "spec": {"containers": {"a": 1}}, "status": 5}),
        json!({"kind": 1, "apiVersion": [], "metadata": {"name": "x"}}),
        json!({"metadata": {"name": "x".repeat(1 << 16)}}),
        json!({"spec": {"group": 1, "names": [], "versions": {}}}),
        json!([{"op": "add", "path": "no-slash", "value": 1}]),
        json!([{"op": "add", "path": "/spec/containers/99999999999999999999", "value": 1}]),
        json!([{"op": "move", "from": "/metadata", "path": "/metadata/name"}]),
        json!([{"op": "replace", "path": "", "value": null}]),
        json!({"metadata": {"name": "x"}, "preconditions": 5, "gracePeriodSeconds": "soon"}),
        json!({"metadata": {"name": "x"}, "gracePeriodSeconds": i64::MIN}),
        json!({"metadata": {"name": "y"}, "subjects": 1, "roleRef": [], "rules": {"verbs": 1}}),
        json!({"metadata": {"name": "z"}, "subjects": [1, {"kind": "User"}], "rules": [1, {"verbs": [1]}]}),
    ];
    let paths = [
        "/api/v1/namespaces/{ns}/pods",
        "/api/v1/namespaces/{ns}/events",
        "/api/v1/namespaces/{ns}/secrets",
        "/apis/events.k8s.io/v1/namespaces/{ns}/events",
        "/api/v1/nodes",
        "/api/v1/namespaces",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        "/apis/k8s.cni.cncf.io/v1/namespaces/{ns}/network-attachment-definitions",
    ];
    for path in paths {
        let x = &format!("{path}/x");
        for body in &odd {
            for method in ["POST", "PUT", "DELETE"] {
                let path = if method == "POST" { path } else { x };
                // The answer is not the point; that there is one is, or `ask` panics.
                let _answer = cluster.ask(method, path, "application/json", body).await;
            }
            for media_type in [MERGE, JSON, STRATEGIC] {
                let _answer = cluster.patch(x, media_type, body).await;
                let _answer = cluster.patch(&format!("{x}/status"), media_type, body).await;
            }
        }
    }
    let queries = [
        "%",
        "%zz",
        "=&=&",
        "labelSelector=((",
        "labelSelector=!",
        "fieldSelector=,,,=",
        "limit=x&continue=%00",
        "watch=1&timeoutSeconds=-1&resourceVersion=-1",
        "limit=-1",
        "gracePeriodSeconds=x",
    ];
    for query in queries {
        let _answer = cluster.get(&format!("/api/v1/pods?{query}")).await;
    }
    for body in [vec![b'x'; 4 << 20], "[".repeat(100_000).into_bytes(), vec![0xff; 100]] {
        let request = hyper::Request::post("/api/v1/namespaces/default/configmaps").body(body).unwrap();
        assert!(cluster.client.request::<Value>(request).await.is_err());
    }
    assert!(maps(server).await.list(&ListParams::default()).await.is_ok());
}
