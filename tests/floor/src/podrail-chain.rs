//! Runs a plugin a number of times, one after the other, for `podrail-e2e bench`: the least that any meta-plugin can
//! cost with so many delegates. Arguments: the plugin, the number.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let plugin = arguments.next().context("no plugin")?;
    let count: usize = arguments.next().context("no number")?.parse()?;
    let mut config = Vec::new();
    std::io::stdin().read_to_end(&mut config)?;
    for _ in 0..count {
        let mut child = Command::new(&plugin).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.take().context("no pipe")?.write_all(&config)?;
        let status = child.wait_with_output()?.status;
        ensure!(status.success(), "{plugin}: {status}");
    }
    Ok(())
}
