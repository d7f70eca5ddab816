//! Configuration files that cannot work.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::prepare::write_config;
use crate::session::Session;

/// How long a daemon may take to see that its configuration is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is wrong, the file, and what the error has to name.
const BROKEN: [(&str, &str, &str); 5] = [
    ("cut off", r#"{"resourceList": ["#, "broken.json:1:"),
    (
        "a string for a list",
        r#"{"resourceList": [{"resourceName": "x", "selectors": [{"vendors": "8086"}]}]}"#,
        "vendors",
    ),
    (
        "a bad name",
        r#"{"resourceList": [{"resourceName": "x y", "selectors": [{"vendors": ["8086"]}]}]}"#,
        "x y",
    ),
    (
        "an unknown type of device",
        r#"{"resourceList": [{"resourceName": "x", "deviceType": "fpga", "selectors": [{"vendors": ["8086"]}]}]}"#,
        "fpga",
    ),
    (
        "one name twice",
        r#"{"resourceList": [{"resourceName": "twice", "selectors": [{"vendors": ["8086"]}]},
                             {"resourceName": "twice", "selectors": [{"vendors": ["15b3"]}]}]}"#,
        "twice",
    ),
];

/// The device plugin ends with an error that names the file and what is wrong in it.
pub(super) async fn device_plugin(session: &mut Session) -> Result<()> {
    let before = session.vfs().await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("broken.json");
    for (what, text, word) in BROKEN {
        write_config(&path, text)?;
        let (status, output) =
            session.prepared.device_plugin.try_config(&path, PATIENCE).with_context(|| what.to_owned())?;
        ensure!(!status.success(), "{what}: exit code 0, output {output}");
        ensure!(!output.contains("panicked"), "{what}: {output}");
        ensure!(
            output.contains(word) && output.contains("broken.json"),
            "{what}: no {word} and file in {output}"
        );
    }
    let missing = folder.path().join("missing.json");
    let (status, output) = session.prepared.device_plugin.try_config(&missing, PATIENCE)?;
    ensure!(!status.success() && output.contains("missing.json"), "a missing file: {status}, {output}");
    session.wait_advertised().await?;
    session.ensure_unchanged(&before).await
}
