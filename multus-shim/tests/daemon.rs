//! The shim as a runtime starts it, against daemons that answer as ours, as the peers do, or not at all.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const RESULT: &str = r#"{"Result":{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mtu":1450,"sandbox":"/n"}],"ips":[{"interface":0,"address":"10.0.0.2/24"}]}}"#;

struct Node {
    directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        Node { directory: tempfile::tempdir().unwrap() }
    }

    /// A daemon that gives each connection the next of `answers` (an empty one hangs up) and then ends; what it was
    /// asked.
    fn daemon(&self, answers: Vec<String>) -> JoinHandle<Vec<(String, Value)>> {
        let listener = UnixListener::bind(self.directory.path().join("multus.sock")).unwrap();
        std::thread::spawn(move || {
            let serve = |answer: String| {
                let (mut stream, _) = listener.accept().unwrap();
                let asked = read(&mut stream);
                stream.write_all(answer.as_bytes()).unwrap();
                asked
            };
            answers.into_iter().map(serve).collect()
        })
    }

    /// Exit code success, and standard output.
    fn call(&self, command: &str, version: &str) -> (bool, String) {
        let directory = self.directory.path().display();
        let conf = format!(
            r#"{{"cniVersion":"{version}","name":"multus-cni-network","type":"multus-shim","daemonSocketDir":"{directory}","cniDir":"{directory}/state","logLevel":"error","logFile":"{directory}/log"}}"#
        );
        let mut child = Command::new(env!("CARGO_BIN_EXE_multus-shim"))
            .env_clear()
            .envs([
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", "c0ffee"),
                ("CNI_NETNS", "/n"),
                ("CNI_IFNAME", "eth0"),
            ])
            .envs([("CNI_PATH", "/opt/cni/bin"), ("CNI_ARGS", "K8S_POD_NAME=p"), ("OTHER", "x=y")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Some verbs do without it.
        let _ = child.stdin.take().unwrap().write_all(conf.as_bytes());
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    }

    fn pending(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path().join("state/pending")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// Path and body of a request.
fn read(stream: &mut UnixStream) -> (String, Value) {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).unwrap();
        bytes.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8(bytes.clone()).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            return (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap());
        }
    }
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn chunked(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

#[test]
fn add_asks_with_everything_and_prints_the_result_in_its_version() {
    for answer in [answer("200 OK", RESULT), chunked(RESULT)] {
        let node = Node::new();
        let daemon = node.daemon(vec![answer]);
        let (ok, stdout) = node.call("ADD", "0.4.0");
        assert!(ok, "{stdout}");
        let result: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(
            result,
            json!({"cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "sandbox": "/n"}],
                "ips": [{"version": "4", "interface": 0, "address": "10.0.0.2/24"}], "dns": {}})
        );
        let (head, body) = daemon.join().unwrap().pop().unwrap();
        assert_eq!(head, "POST /cni HTTP/1.1");
        assert_eq!(body["env"]["CNI_CONTAINERID"], "c0ffee");
        assert_eq!(body["env"]["OTHER"], "x=y");
        assert!(body["config"].as_str().unwrap().starts_with("eyJjbmlWZXJzaW9uIjoiMC40LjAiLC"), "{body}");
    }
}

#[test]
fn errors_keep_their_code_and_plain_texts_are_errors_too() {
    let coded = r#"{"cniVersion":"1.1.0","code":11,"msg":"busy","details":"d"}"#;
    for (body, code, text) in [(coded, 11, "'busy'"), ("ContainerID:\"c\" ERRORED: why", 999, "ERRORED: why")]
    {
        let node = Node::new();
        let _daemon = node.daemon(vec![answer("400 Bad Request", body)]);
        let (ok, stdout) = node.call("ADD", "1.0.0");
        let error: Value = serde_json::from_str(&stdout).unwrap();
        assert!(!ok && error["code"] == code, "{stdout}");
        let message = error["msg"].as_str().unwrap();
        assert!(
            message.contains("CmdAdd (shim): CNI request failed with status 400") && message.contains(text),
            "{message}"
        );
        assert_eq!(error["details"], if code == 11 { json!("d") } else { Value::Null });
    }
    // What the runtime reads by its code comes as it is.
    let node = Node::new();
    let _daemon = node.daemon(vec![answer("400 Bad Request", r#"{"code":50,"msg":"not yet"}"#)]);
    let (_, stdout) = node.call("STATUS", "1.1.0");
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["msg"], "not yet");
}

#[test]
fn add_survives_daemons_that_go_and_come() {
    let node = Node::new();
    let half = answer("200 OK", RESULT).replace("10.0.0.2/24\"}]}}", "");
    let daemon = node.daemon(vec![
        String::new(),
        answer("503 Service Unavailable", "going down"),
        half,
        answer("200 OK", RESULT),
    ]);
    let (ok, stdout) = node.call("ADD", "1.0.0");
    assert!(ok && stdout.contains("10.0.0.2/24"), "{stdout}");
    assert_eq!(daemon.join().unwrap().len(), 4);
}

#[test]
fn del_is_kept_when_nobody_takes_it() {
    for answers in [None, Some(String::new()), Some(answer("503 Service Unavailable", ""))] {
        let node = Node::new();
        let daemon = answers.map(|answer| node.daemon(vec![answer]));
        let started = Instant::now();
        let (ok, stdout) = node.call("DEL", "0.4.0");
        assert!(ok && stdout.is_empty(), "{stdout}");
        assert!(started.elapsed() < Duration::from_secs(30));
        assert_eq!(node.pending(), ["c0ffee-eth0"]);
        let file = node.directory.path().join("state/pending/c0ffee-eth0");
        let kept: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(kept["env"]["CNI_COMMAND"], "DEL");
        assert!(std::fs::read_to_string(node.directory.path().join("log")).unwrap().contains("is kept in"));
        drop(daemon);
    }
}

#[test]
fn del_that_fails_or_cannot_be_kept_is_an_error() {
    let node = Node::new();
    let _daemon = node.daemon(vec![answer("400 Bad Request", r#"{"code":999,"msg":"stuck"}"#)]);
    let (ok, stdout) = node.call("DEL", "0.4.0");
    assert!(!ok && stdout.contains("stuck"), "{stdout}");
    assert!(node.pending().is_empty());

    let node = Node::new();
    std::fs::write(node.directory.path().join("state"), "in the way").unwrap();
    let (ok, stdout) = node.call("DEL", "0.4.0");
    assert!(!ok && stdout.contains("cannot be kept"), "{stdout}");
}

#[test]
fn status_does_not_wait_for_a_daemon() {
    let node = Node::new();
    let (ok, stdout) = node.call("STATUS", "1.1.0");
    let error: Value = serde_json::from_str(&stdout).unwrap();
    assert!(!ok && error["code"] == 50, "{stdout}");
    assert!(error["msg"].as_str().unwrap().contains("Daemon not reachable"), "{stdout}");
}

#[test]
fn what_needs_no_daemon() {
    let node = Node::new();
    let (ok, stdout) = node.call("VERSION", "");
    let versions: Value = serde_json::from_str(&stdout).unwrap();
    assert!(ok && versions["supportedVersions"].as_array().unwrap().len() == 7);
    let (ok, stdout) = node.call("FETCH", "1.0.0");
    assert!(
        !ok && stdout.contains("unknown CNI_COMMAND: FETCH") && stdout.contains("\"code\": 4"),
        "{stdout}"
    );
}
