//! A call: what the runtime asked goes to the daemon, what the daemon answers comes back.
//!
//! The daemon may be away: it is being upgraded, was killed, or the node has just booted. ADD waits for it, and is
//! asked again when the connection is lost, because the daemon undoes what a lost ADD left before it starts anew. DEL
//! does not wait: it is kept on disk, from where the daemon takes it. Nothing else is worth waiting for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::conf::Conf;
use crate::http::{self, Outcome};
use crate::json::{Value, object, text};
use crate::{base64, pending, result};

/// How long ADD waits for a daemon that is away.
const AWAY_LIMIT: Duration = Duration::from_secs(60);
/// How long the others do: as long as a daemon needs to give way to the next one on the same socket.
const SHORT_LIMIT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// How long the daemon may take for an answer: more than any runtime waits for the shim.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a daemon answers that is about to end, or not ready yet: another one will do it.
const UNAVAILABLE: u16 = 503;

/// Codes of the specification.
const INVALID_ENVIRONMENT: u32 = 4;
const IO: u32 = 5;
const DECODING: u32 = 6;
const TRY_AGAIN_LATER: u32 = 11;
const NOT_AVAILABLE: u32 = 50;
const INTERNAL: u32 = 999;

/// An error object of the protocol.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u32,
    message: String,
    details: String,
}

impl Failure {
    fn new(code: u32, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), details: String::new() }
    }

    /// As a plugin prints it.
    pub(crate) fn to_json(&self, version: &str) -> String {
        let version = if version.is_empty() { "1.1.0" } else { version };
        let mut members = vec![
            ("cniVersion".to_owned(), text(version)),
            ("code".to_owned(), Value::Number(self.code.to_string())),
            ("msg".to_owned(), text(&self.message)),
        ];
        if !self.details.is_empty() {
            members.push(("details".to_owned(), text(&self.details)));
        }
        Value::Object(members).pretty()
    }
}

/// The call of one process.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    /// `CNI_COMMAND`.
    pub(crate) command: &'a str,
    /// The whole environment.
    pub(crate) environment: &'a BTreeMap<String, String>,
    /// Standard input.
    pub(crate) stdin: &'a [u8],
}

impl Call<'_> {
    /// Does it; what is to be printed.
    ///
    /// # Errors
    /// What the runtime is to be told.
    pub(crate) fn run(&self, conf: &Conf) -> Result<String, Failure> {
        self.check_environment()?;
        let done = self.ask(conf);
        if let Err(failure) = &done {
            conf.log.error(&format!("{}: {}", self.command, failure.message));
        }
        done
    }

    fn check_environment(&self) -> Result<(), Failure> {
        let needed: &[&str] = match self.command {
            "ADD" | "CHECK" => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            "DEL" => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            "GC" | "STATUS" => &["CNI_PATH"],
            command => {
                return Err(Failure::new(INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND: {command}")));
            }
        };
        let missing: Vec<&str> =
            needed.iter().filter(|name| self.variable(name).is_empty()).copied().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let list = missing.join(",");
        Err(Failure::new(INVALID_ENVIRONMENT, format!("required env variables [{list}] missing")))
    }

    fn variable(&self, name: &str) -> &str {
        self.environment.get(name).map_or("", String::as_str)
    }

    fn ask(&self, conf: &Conf) -> Result<String, Failure> {
        let request = self.request();
        let is_add = self.command == "ADD";
        let deadline = Instant::now() + if is_add { AWAY_LIMIT } else { SHORT_LIMIT };
        let mut pause = FIRST_PAUSE;
        loop {
            let why = match http::post(&conf.socket, "/cni", request.as_bytes(), PATIENCE) {
                Outcome::Answer { status: 200, body } => return self.accept(&body, conf),
                Outcome::Answer { status, body } if status != UNAVAILABLE => {
                    return Err(self.refused(status, &body));
                }
                Outcome::Answer { .. } => "Daemon not ready".to_owned(),
                Outcome::Lost(why) => format!("failed to send CNI request: Post \"http://dummy/cni\": {why}"),
                Outcome::Absent(why) => format!(
                    "failed to send CNI request: Post \"http://dummy/cni\": dial unix {}: {why}",
                    conf.socket.display()
                ),
            };
            if self.command == "DEL" {
                return self.keep(conf, &request, &why);
            }
            if Instant::now() + pause > deadline {
                return Err(self.away(conf, &why));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn request(&self) -> String {
        let env = self.environment.iter().map(|(name, value)| (name.clone(), text(value))).collect();
        object([("env", Value::Object(env)), ("config", text(base64::encode(self.stdin)))]).compact()
    }

    fn accept(&self, body: &[u8], conf: &Conf) -> Result<String, Failure> {
        if self.command != "ADD" {
            return Ok(String::new());
        }
        let unreadable =
            |why: String| Failure::new(DECODING, format!("failed to read the daemon's answer: {why}"));
        let answer = Value::parse(body).map_err(unreadable)?;
        let result = answer.get("Result").ok_or_else(|| unreadable("it has no \"Result\"".to_owned()))?;
        result::convert(result, &conf.version)
            .map(|result| result.pretty())
            .map_err(|why| Failure::new(1, why))
    }

    /// The daemon's own error keeps its code. Other daemons answer with a plain text.
    fn refused(&self, status: u16, body: &[u8]) -> Failure {
        let told = Value::parse(body).ok();
        let said = |key| told.as_ref().and_then(|object| object.text(key)).unwrap_or_default().to_owned();
        let code = match told.as_ref().and_then(|object| object.get("code")) {
            Some(Value::Number(digits)) => digits.parse().unwrap_or(INTERNAL),
            _ => INTERNAL,
        };
        let message = match said("msg") {
            message if message.is_empty() => String::from_utf8_lossy(body).trim().to_owned(),
            message => message,
        };
        // STATUS and its codes are read by the runtime as they are.
        let message = match self.command {
            "STATUS" => message,
            command => {
                format!("{} (shim): CNI request failed with status {status}: '{message}'", verb(command))
            }
        };
        Failure { code, message, details: said("details") }
    }

    fn keep(&self, conf: &Conf, request: &str, why: &str) -> Result<String, Failure> {
        let (container, ifname) = (self.variable("CNI_CONTAINERID"), self.variable("CNI_IFNAME"));
        let kept = pending::keep(&conf.pending, container, ifname, request.as_bytes());
        let directory = conf.pending.display();
        match kept {
            Ok(()) => {
                conf.log.error(&format!("DEL of {container} is kept in {directory} for the daemon: {why}"));
                Ok(String::new())
            }
            Err(error) => Err(Failure::new(
                IO,
                format!(
                    "CmdDel (shim): {why}; and the request cannot be kept for later in {directory}: {error}"
                ),
            )),
        }
    }

    fn away(&self, conf: &Conf, why: &str) -> Failure {
        let code = if self.command == "STATUS" { NOT_AVAILABLE } else { TRY_AGAIN_LATER };
        let message = format!(
            "{} (shim): timed out waiting for the condition: Daemon not reachable over socketfile {}: {why}; is the \
             multus-daemon pod of this node running?",
            verb(self.command),
            conf.socket.display()
        );
        Failure::new(code, message)
    }
}

/// The verb as the field's log lines have it.
fn verb(command: &str) -> &'static str {
    match command {
        "ADD" => "CmdAdd",
        "CHECK" => "CmdCheck",
        "GC" => "CmdGC",
        "STATUS" => "CmdStatus",
        _ => "CmdDel",
    }
}

/// The error of a call whose configuration cannot be read.
pub(crate) fn unreadable(why: &str) -> Failure {
    Failure::new(DECODING, format!("network configuration on stdin: {why}"))
}
