//! The plugin frame: which calls reach the plugin, and what the others are answered with.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use cni::skel::{self, Streams};
use cni::{CniResult, Error, Plugin, Request, Version};
use std::cell::RefCell;
use std::ffi::OsString;

/// Records the verbs and namespaces it is called with.
#[derive(Default)]
struct Probe {
    versions: Vec<Version>,
    calls: RefCell<Vec<String>>,
    answer: Option<Error>,
}

impl Probe {
    fn called(&self, verb: &str, request: &Request) -> Result<(), Error> {
        let netns = request.netns.as_ref().map_or("-".to_owned(), |p| p.display().to_string());
        self.calls.borrow_mut().push(format!("{verb} {netns}"));
        self.answer.clone().map_or(Ok(()), Err)
    }
}

impl Plugin for Probe {
    fn about(&self) -> String {
        "CNI probe plugin".to_owned()
    }
    fn versions(&self) -> &[Version] {
        if self.versions.is_empty() { Version::ALL } else { &self.versions }
    }
    fn add(&self, request: &Request) -> Result<CniResult, Error> {
        self.called("add", request).map(|()| CniResult::default())
    }
    fn del(&self, request: &Request) -> Result<(), Error> {
        self.called("del", request)
    }
    fn check(&self, request: &Request) -> Result<(), Error> {
        self.called("check", request)
    }
    fn gc(&self, request: &Request) -> Result<(), Error> {
        self.called("gc", request)
    }
    fn status(&self, request: &Request) -> Result<(), Error> {
        self.called("status", request)
    }
}

struct Outcome {
    code: u8,
    stdout: String,
    stderr: String,
}

impl Outcome {
    fn error(&self) -> Error {
        assert_eq!(self.code, 1, "{}", self.stdout);
        Error::parse(self.stdout.as_bytes()).unwrap()
    }
}

fn call(probe: &Probe, env: &[(&str, &str)], config: &str) -> Outcome {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut stdin = config.as_bytes();
    let mut streams = Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
    let get = |name: &str| env.iter().rev().find(|(k, _)| *k == name).map(|(_, v)| OsString::from(v));
    let code = skel::run(probe, &get, &mut streams);
    Outcome { code, stdout: String::from_utf8(stdout).unwrap(), stderr: String::from_utf8(stderr).unwrap() }
}

type Variables = &'static [(&'static str, &'static str)];

const ENV: Variables = &[
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/none"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_PATH", "/opt/cni/bin"),
];

fn with<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    ENV.iter().chain(changes).copied().collect()
}

#[test]
fn without_a_command_it_tells_what_it_is() {
    let probe = Probe::default();
    let outcome = call(&probe, &[], "");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, ""));
    assert_eq!(
        outcome.stderr,
        "CNI probe plugin\nCNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"
    );
}

#[test]
fn version_needs_nothing_else() {
    let probe = Probe { versions: vec![Version::V0_4_0, Version::V1_0_0], ..Probe::default() };
    let outcome = call(&probe, &[("CNI_COMMAND", "VERSION")], "not read");
    assert_eq!(outcome.code, 0);
    assert_eq!(outcome.stdout, "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}\n");
}

#[test]
fn verbs_reach_the_plugin() {
    for (command, version, want) in [
        ("ADD", "0.1.0", "add /run/netns/none"),
        ("DEL", "0.1.0", "del /run/netns/none"),
        ("CHECK", "0.4.0", "check /run/netns/none"),
        ("GC", "1.1.0", "gc /run/netns/none"),
        ("STATUS", "1.1.0", "status /run/netns/none"),
    ] {
        let probe = Probe::default();
        let config = format!(r#"{{"cniVersion":"{version}","name":"n","type":"t"}}"#);
        let outcome = call(&probe, &with(&[("CNI_COMMAND", command)]), &config);
        assert_eq!(outcome.code, 0, "{command}: {}", outcome.stdout);
        assert_eq!(*probe.calls.borrow(), [want]);
        assert_eq!(outcome.stdout.is_empty(), command != "ADD", "{command}");
    }
}

#[test]
fn the_result_has_the_version_of_the_configuration() {
    for version in Version::ALL {
        let config = format!(r#"{{"cniVersion":"{version}","name":"n"}}"#);
        let outcome = call(&Probe::default(), &with(&[("CNI_COMMAND", "ADD")]), &config);
        assert!(outcome.stdout.contains(&format!("\"cniVersion\": \"{version}\"")), "{}", outcome.stdout);
    }
}

#[test]
fn missing_variables_are_listed() {
    let table: &[(&str, Variables, &str)] = &[
        ("ADD", &[], "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("CHECK", &[("CNI_IFNAME", "eth0")], "CNI_CONTAINERID,CNI_NETNS,CNI_PATH"),
        ("DEL", &[], "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
        ("DEL", &[("CNI_PATH", ""), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "e")], "CNI_PATH"),
        ("GC", &[], "CNI_PATH"),
        ("STATUS", &[], "CNI_PATH"),
    ];
    for (command, env, list) in table {
        let probe = Probe::default();
        let env: Vec<_> = env.iter().copied().chain([("CNI_COMMAND", *command)]).collect();
        let error = call(&probe, &env, r#"{"cniVersion":"1.1.0","name":"n"}"#).error();
        assert_eq!(error.code, 4, "{command}");
        assert_eq!(error.msg, format!("required env variables [{list}] missing"));
        assert!(probe.calls.borrow().is_empty());
    }
}

#[test]
fn bad_calls_are_refused_before_the_plugin_sees_them() {
    let good = r#"{"cniVersion":"1.1.0","name":"n"}"#;
    let table: &[(&str, Variables, &str, u32, &str)] = &[
        ("DANCE", &[], good, 4, "unknown CNI_COMMAND: DANCE"),
        ("ADD", &[("CNI_CONTAINERID", "a/b")], good, 4, "containerID"),
        ("ADD", &[("CNI_IFNAME", "a/b")], good, 4, "interface name"),
        ("DEL", &[("CNI_IFNAME", "0123456789abcdef")], good, 4, "too long"),
        ("ADD", &[("CNI_ARGS", "A=1;oops")], good, 4, "oops"),
        ("ADD", &[], "", 6, "stdin"),
        ("ADD", &[], "[1]", 6, "stdin"),
        ("ADD", &[], r#"{"cniVersion":1,"name":"n"}"#, 6, "cniVersion"),
        ("ADD", &[], r#"{"cniVersion":"1.0.0"}"#, 7, "name"),
        ("ADD", &[], r#"{"cniVersion":"1.0.0","name":"a b"}"#, 7, "network name"),
        ("ADD", &[], r#"{"cniVersion":"7.0.0","name":"n"}"#, 1, "7.0.0"),
        ("CHECK", &[], r#"{"cniVersion":"0.3.1","name":"n"}"#, 1, "does not allow CHECK"),
        ("GC", &[], r#"{"cniVersion":"1.0.0","name":"n"}"#, 1, "does not allow GC"),
        ("STATUS", &[], r#"{"cniVersion":"1.0.0","name":"n"}"#, 1, "does not allow STATUS"),
    ];
    for (command, env, config, code, part) in table {
        let probe = Probe::default();
        let mut env = with(env);
        env.push(("CNI_COMMAND", command));
        let error = call(&probe, &env, config).error();
        assert_eq!(error.code, *code, "{command} {config}: {error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(probe.calls.borrow().is_empty());
    }
}

#[test]
fn a_plugin_is_not_called_with_a_version_it_does_not_speak() {
    let probe = Probe { versions: vec![Version::V0_4_0], ..Probe::default() };
    let error =
        call(&probe, &with(&[("CNI_COMMAND", "ADD")]), r#"{"cniVersion":"1.0.0","name":"n"}"#).error();
    assert_eq!((error.code, error.msg.as_str()), (1, "incompatible CNI versions"));
    assert!(error.details.contains("1.0.0") && error.details.contains("0.4.0"));
}

#[test]
fn del_lives_with_what_add_refuses() {
    let probe = Probe::default();
    let env = with(&[("CNI_COMMAND", "DEL"), ("CNI_ARGS", "oops;A=1"), ("CNI_NETNS", "")]);
    assert_eq!(call(&probe, &env, r#"{"name":"n"}"#).code, 0);
    assert_eq!(*probe.calls.borrow(), ["del -"]);
}

#[test]
fn its_own_namespace_is_not_the_containers() {
    let own = "/proc/self/ns/net";
    let config = r#"{"cniVersion":"1.1.0","name":"n"}"#;
    for command in ["ADD", "CHECK"] {
        let probe = Probe::default();
        let error = call(&probe, &with(&[("CNI_COMMAND", command), ("CNI_NETNS", own)]), config).error();
        assert_eq!(error.code, 8, "{command}");
        assert!(probe.calls.borrow().is_empty());
    }
    let probe = Probe::default();
    assert_eq!(call(&probe, &with(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", own)]), config).code, 0);
    assert_eq!(*probe.calls.borrow(), ["del -"]);
    for allowed in ["1", "true", "TRUE"] {
        let probe = Probe::default();
        let env = with(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", own), ("CNI_NETNS_OVERRIDE", allowed)]);
        assert_eq!(call(&probe, &env, config).code, 0, "{allowed}");
    }
}

#[test]
fn the_plugins_error_is_printed_as_it_is() {
    let probe = Probe { answer: Some(Error::new(11, "later").with_details("d")), ..Probe::default() };
    let outcome = call(&probe, &with(&[("CNI_COMMAND", "ADD")]), r#"{"cniVersion":"0.4.0","name":"n"}"#);
    assert_eq!(outcome.error(), Error::new(11, "later").with_details("d"));
    assert!(outcome.stdout.contains("\"cniVersion\": \"0.4.0\""));
}
