//! Intel's `ddptool`, for NICs whose driver does not tell devlink which DDP package is active (X710 with most kernels).

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use host::PciAddress;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

/// The program, and how long it may take.
#[derive(Debug, Clone)]
pub(crate) struct DdpTool {
    program: PathBuf,
    limit: Duration,
}

impl Default for DdpTool {
    fn default() -> Self {
        Self { program: "ddptool".into(), limit: Duration::from_secs(1) }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot run it: {0}")]
    Run(#[from] std::io::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Failed(ExitStatus),
    #[error("its answer names no package")]
    NoPackage,
}

impl DdpTool {
    /// The active package of the NIC of `function`, as that function has it or else the PF; `None` where there is none,
    /// or the program is not installed.
    ///
    /// # Errors
    /// The program cannot say now.
    pub(crate) async fn profile(
        &self,
        function: PciAddress,
        pf: PciAddress,
    ) -> Result<Option<String>, Error> {
        let addresses = if function == pf { vec![pf] } else { vec![function, pf] };
        let mut failed = None;
        for address in addresses {
            match self.ask(address).await {
                Ok(name) => return Ok(Some(name)),
                Err(Error::Run(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(Error::NoPackage) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    async fn ask(&self, address: PciAddress) -> Result<String, Error> {
        let mut command = Command::new(&self.program);
        // Silent, all functions, as JSON on standard output, of this one.
        command.args(["-l", "-a", "-j", "-s"]).arg(address.to_string());
        command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let output =
            timeout(self.limit, command.output()).await.map_err(|_| Error::Timeout(self.limit))??;
        if !output.status.success() {
            return Err(Error::Failed(output.status));
        }
        package(&output.stdout).ok_or(Error::NoPackage)
    }
}

/// The package's name in the program's answer, which is about one function, or a list of them.
fn package(answer: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let inventory = answer.get("DDPInventory")?;
    let mut functions = match inventory {
        Value::Array(functions) => functions.iter(),
        one => std::slice::from_ref(one).iter(),
    };
    let name = functions.find_map(|function| function.pointer("/DDPpackage/name")?.as_str())?;
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn answers() {
        let one = r#"{"DDPInventory": {"device": "1572", "address": "0000:02:00.0", "name": "enp2s0f0",
            "DDPpackage": {"track_id": "80000008", "version": "1.0.3.0", "name": "GTPv1-C/U IPv4/IPv6 payload"}}}"#;
        let cases = [
            (one, Some("GTPv1-C/U IPv4/IPv6 payload")),
            (r#"{"DDPInventory": [{"name": "a"}, {"DDPpackage": {"name": "x"}}]}"#, Some("x")),
            (r#"{"DDPInventory": {"DDPpackage": {"name": ""}}}"#, None),
            (r#"{"DDPInventory": {"DDPpackage": {"name": 7}}}"#, None),
            (r#"{"DDPInventory": "null"}"#, None),
            (r#"{"DDPInventory": []}"#, None),
            ("[]", None),
            ("", None),
        ];
        for (answer, expected) in cases {
            assert_eq!(package(answer.as_bytes()).as_deref(), expected, "{answer}");
        }
    }

    /// A program that notes its arguments and then does as `script` says.
    fn tool(directory: &tempfile::TempDir, script: &str) -> DdpTool {
        let program = directory.path().join("ddptool");
        let script = format!("#!/bin/sh\necho \"$@\" >>{}/calls\n{script}\n", directory.path().display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        DdpTool { program, limit: Duration::from_secs(10) }
    }

    #[tokio::test]
    async fn the_function_is_asked_and_then_its_pf() {
        let directory = tempfile::tempdir().unwrap();
        let (vf, pf) = ("0000:3b:10.0".parse().unwrap(), "0000:3b:00.0".parse().unwrap());
        let script = r#"[ "$5" = 0000:3b:00.0 ] || exit 8
            echo '{"DDPInventory": {"DDPpackage": {"name": "of the PF"}}}'"#;
        assert_eq!(tool(&directory, script).profile(vf, pf).await.unwrap().as_deref(), Some("of the PF"));
        let calls = fs::read_to_string(directory.path().join("calls")).unwrap();
        assert_eq!(calls, "-l -a -j -s 0000:3b:10.0\n-l -a -j -s 0000:3b:00.0\n");
    }

    #[tokio::test]
    async fn a_program_that_hangs_fails_or_is_missing_tells_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let address = "0000:3b:10.0".parse().unwrap();
        let mut hanging = tool(&directory, "exec sleep 600");
        hanging.limit = Duration::from_millis(200);
        assert!(matches!(hanging.profile(address, address).await, Err(Error::Timeout(_))));
        assert_eq!(tool(&directory, "echo nonsense").profile(address, address).await.unwrap(), None);
        assert!(matches!(tool(&directory, "exit 3").profile(address, address).await, Err(Error::Failed(_))));
        let calls = fs::read_to_string(directory.path().join("calls")).unwrap();
        assert_eq!(calls.lines().count(), 3, "a PF is asked once each time");
        let missing = DdpTool { program: directory.path().join("none"), ..hanging };
        assert_eq!(missing.profile(address, address).await.unwrap(), None);
    }
}
