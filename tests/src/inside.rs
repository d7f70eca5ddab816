//! Looking into a running pod from the node, in the same way for every container runtime.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use host::netlink::{Address, Link};
use host::{Netlink, Netns};

use crate::cluster::NAMESPACE;
use crate::pod::{MARK, PodSpec};
use crate::wait::until;

/// How long a process may take to appear after its pod is reported as running.
const APPEARS: Duration = Duration::from_secs(60);
/// How long two interfaces may take to reach each other: link, ARP, the switch of the NIC.
const REACHES: Duration = Duration::from_secs(60);

/// A running pod, seen through one of its processes.
#[derive(Clone, Debug)]
pub struct Inside {
    pid: u32,
    env: BTreeMap<String, String>,
}

impl Inside {
    /// Finds the process of the pod by the mark in its environment.
    ///
    /// # Errors
    /// There is none.
    pub async fn find(spec: &PodSpec) -> Result<Inside> {
        Inside::find_with(spec, MARK).await
    }

    /// Finds the process of the pod that also has the environment variable `name`: that of one of its containers.
    ///
    /// # Errors
    /// There is none.
    pub async fn find_with(spec: &PodSpec, name: &str) -> Result<Inside> {
        let what = format!("a process of pod {} with {name} on this node", spec.name());
        let look = async || Ok(processes(spec.mark())?.into_iter().find(|inside| inside.env(name).is_some()));
        until(APPEARS, &what, look).await
    }

    /// Whether any process of the pod is left.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn is_alive(spec: &PodSpec) -> Result<bool> {
        Ok(!processes(spec.mark())?.is_empty())
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its environment variable `name`.
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str)
    }

    /// A path as the pod sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join("root").join(path.trim_start_matches('/'))
    }

    /// Its network namespace.
    ///
    /// # Errors
    /// The process has ended.
    pub fn netns(&self) -> Result<Netns> {
        Ok(Netns::open(Path::new("/proc").join(self.pid.to_string()).join("ns/net"))?)
    }

    /// An interface of the pod with its addresses.
    ///
    /// # Errors
    /// The pod has none of that name.
    pub async fn link(&self, name: &str) -> Result<(Link, Vec<Address>)> {
        let netlink = Netlink::connect_in(&self.netns()?)?;
        let link = netlink.link_by_name(name).await?;
        let link = link.with_context(|| format!("the pod has no interface {name}"))?;
        let addresses = netlink.addresses(link.index).await?;
        Ok((link, addresses))
    }

    /// The names of the pod's interfaces, sorted.
    ///
    /// # Errors
    /// The process has ended.
    pub async fn interfaces(&self) -> Result<Vec<String>> {
        let links = Netlink::connect_in(&self.netns()?)?.links().await?;
        let mut names: Vec<String> = links.into_iter().map(|link| link.name).collect();
        names.sort();
        Ok(names)
    }

    /// Waits until `target` answers a ping from the pod.
    ///
    /// # Errors
    /// It never does.
    pub async fn reaches(&self, target: IpAddr) -> Result<()> {
        let pid = self.pid;
        until(REACHES, &format!("an answer of {target} to process {pid}"), async || {
            Ok((self.ping(target, 1).await? > 0).then_some(()))
        })
        .await
    }

    /// Pings `target` from the pod `count` times, one second each; how many answers came.
    ///
    /// # Errors
    /// The program cannot be run.
    pub async fn ping(&self, target: IpAddr, count: u32) -> Result<u32> {
        let text = self.busybox(&["ping", "-c", &count.to_string(), "-W", "1", &target.to_string()]).await?;
        received(&text).with_context(|| format!("busybox ping: {text}"))
    }

    /// What busybox prints in the pod's network namespace, started with `arguments`, on both of its outputs.
    ///
    /// # Errors
    /// The program cannot be run.
    pub async fn busybox(&self, arguments: &[&str]) -> Result<String> {
        let netns = self.netns()?;
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let output = tokio::task::spawn_blocking(move || {
            // A child belongs to the namespace of the thread that starts it.
            netns.run(|| Command::new("busybox").args(arguments).env_clear().output())
        })
        .await??;
        let output = output.context("run busybox")?;
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        Ok(stdout + &stderr)
    }
}

/// The container's log without what the CRI format adds.
///
/// # Errors
/// There is no log.
pub fn log(pod: &str, uid: &str) -> Result<String> {
    let path = format!("/var/log/pods/{NAMESPACE}_{pod}_{uid}/main/0.log");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default()).collect::<Vec<_>>().join("\n"))
}

fn processes(mark: &str) -> Result<Vec<Inside>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("read /proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes end while we look.
        let Ok(bytes) = std::fs::read(entry.path().join("environ")) else { continue };
        let env = environment(&bytes);
        if env.get(MARK).is_some_and(|value| value == mark) {
            found.push(Inside { pid, env });
        }
    }
    Ok(found)
}

fn environment(bytes: &[u8]) -> BTreeMap<String, String> {
    let pairs = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    pairs
        .filter_map(|pair| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect()
}

fn received(output: &str) -> Option<u32> {
    let line = output.lines().find(|line| line.contains("packets transmitted"))?;
    let field = line.split(',').find(|field| field.contains("received"))?;
    field.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_answers_are_counted() {
        let text =
            "--- 10.0.0.1 ping statistics ---\n3 packets transmitted, 2 packets received, 33% packet loss";
        assert_eq!(received(text), Some(2));
        assert_eq!(received("ping: bad address"), None);
    }

    #[test]
    fn environments_are_split_at_the_first_equals_sign() {
        let env = environment(b"A=1\0B=x=y\0\0junk\0");
        assert_eq!(env["B"], "x=y");
        assert_eq!(env.len(), 2);
    }
}
