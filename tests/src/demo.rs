//! The story of a pod that gets a real VF, told on the terminal.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use serde_json::value::RawValue;

use crate::inside;
use crate::pod::PodSpec;
use crate::prepare::NETDEVICE;
use crate::session::{Running, Session, Setup};
use crate::table;
use crate::testpmd;
use crate::vfs::{Vfs, differences};
use crate::wait::until;

/// How many rates of testpmd are shown.
const RATES: usize = 3;
/// How long testpmd may take to report them.
const SENDS: Duration = Duration::from_secs(120);
/// How many pings must stay without an answer.
const PINGS: u32 = 3;

/// Where the story is.
struct Story {
    started: Instant,
    chapter: u32,
}

impl Story {
    /// A new chapter.
    fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        println!("\n[{:5.1} s] {}. {title}", self.started.elapsed().as_secs_f64(), self.chapter);
    }

    /// A line of the current chapter.
    fn say(&self, line: impl AsRef<str>) {
        for line in line.as_ref().lines() {
            println!("          {line}");
        }
    }
}

/// Tells the story on the node of `setup`.
///
/// # Errors
/// It takes a wrong turn.
pub async fn tell(setup: &Setup) -> Result<()> {
    let mut story = Story { started: Instant::now(), chapter: 0 };
    println!("Podrail: pods with SR-IOV virtual functions, on a {}", setup.grade);

    story.chapter("The node is prepared");
    let mut session = Session::start(setup, &mut |line| story.say(line)).await?;
    let before = session.vfs().await?;

    story.chapter("The kernel has these VFs");
    story.say(vf_table(&before));

    story.chapter("The device plugin advertises them, Kubernetes counts them");
    for (resource, _) in session.pools() {
        let (capacity, allocatable) = session.cluster.node_resource(resource).await?;
        story.say(format!("{resource}: {capacity} (allocatable: {allocatable})"));
    }

    let pods = separate_vlans(&mut story, &session).await?;
    let dpdk = send_packets(&mut story, &session).await?;

    story.chapter("Multus tells each pod's networks in its network-status");
    for pod in pods.iter().chain([&dpdk]) {
        story.say(format!("{}:", pod.spec.name()));
        story.say(compact(&session.cluster.network_status_text(pod.spec.name()).await?)?);
    }

    story.chapter("While the pods run, their VFs look like this");
    story.say(vf_table(&session.vfs().await?));

    story.chapter("The pods are deleted");
    session.delete_all(pods.iter().chain([&dpdk])).await?;
    story.say("red-1, red-2, blue and dpdk are gone, and so are their processes");
    session.cluster.clean().await?;

    story.chapter("Every VF is back as it was");
    let after = session.vfs().await?;
    story.say(before_and_after(&before, &after));
    let different = differences(&before, &after);
    session.prepared.device_plugin.check()?;
    session.stop().await;
    ensure!(different.is_empty(), "VFs are not as they were: {}", different.join("; "));
    println!("\nDone in {:.0} s: every VF came back as it was.", story.started.elapsed().as_secs_f64());
    Ok(())
}

/// Two pods on VLAN 100 that reach each other, a third on VLAN 200 that reaches neither.
async fn separate_vlans(story: &mut Story, session: &Session) -> Result<Vec<Running>> {
    story.chapter("Three pods ask for a VF each: red-1 and red-2 on VLAN 100, blue on VLAN 200");
    session.vlan_network("vlan100", 100).await?;
    session.vlan_network("vlan200", 200).await?;
    let wanted = [("red-1", "vlan100", 1), ("red-2", "vlan100", 2), ("blue", "vlan200", 3)];
    let specs = wanted.map(|(name, network, host)| {
        let request = json!([{"name": network, "ips": [format!("192.168.50.{host}/24")]}]);
        PodSpec::new(name).networks(&request).devices(NETDEVICE, 1)
    });
    let pods = session.run_all(specs).await?;
    for (pod, (name, _, host)) in pods.iter().zip(wanted) {
        let vf = pod.inside.env("PCIDEVICE_INTEL_COM_SRIOV_NETDEVICE").unwrap_or("?");
        story.say(format!("{name:<6} runs: net1 has 192.168.50.{host}, its VF is {vf}"));
    }

    story.chapter("Who reaches whom");
    let [red_1, red_2, blue] = pods.as_slice() else { anyhow::bail!("three pods were created") };
    for (from, to, address) in [(red_1, red_2, 2), (red_2, red_1, 1)] {
        from.inside.reaches(IpAddr::from([192, 168, 50, address])).await?;
        story.say(format!("{:<6} -> {:<6} answers", from.spec.name(), to.spec.name()));
    }
    for (from, to, address) in [(blue, red_1, 1), (blue, red_2, 2), (red_1, blue, 3)] {
        let answers = from.inside.ping(IpAddr::from([192, 168, 50, address]), PINGS).await?;
        let (from, to) = (from.spec.name(), to.spec.name());
        ensure!(answers == 0, "{from} reaches {to} on another VLAN");
        story.say(format!("{from:<6} -> {to:<6} no answer to {PINGS} pings, as it must be"));
    }
    Ok(pods)
}

/// A pod whose VF belongs to DPDK.
async fn send_packets(story: &mut Story, session: &Session) -> Result<Running> {
    story.chapter("A fourth pod drives a VF with DPDK: dpdk-testpmd through vfio-pci, on VLAN 300");
    session.vfio_network("dpdk300", 300).await?;
    let pod = session.run(testpmd::pod("dpdk").networks("dpdk300")).await?;
    let vf = pod.inside.env("PCIDEVICE_INTEL_COM_SRIOV_DPDK").unwrap_or("?");
    story.say(format!("dpdk runs, its VF is {vf}; testpmd reports:"));
    let mut shown = 0;
    until(SENDS, "dpdk-testpmd to report what it sends", async || {
        let text = inside::log("dpdk", &pod.uid)?;
        let rates: Vec<u64> =
            testpmd::packets_per_second(&text).into_iter().filter(|rate| *rate > 0).collect();
        for rate in rates.iter().take(RATES).skip(shown) {
            story.say(format!("{:>12} packets per second sent", grouped(*rate)));
            shown += 1;
        }
        Ok((shown >= RATES).then_some(()))
    })
    .await?;
    Ok(pod)
}

fn vf_table(vfs: &Vfs) -> String {
    let rows: Vec<Vec<String>> = vfs
        .values()
        .map(|vf| {
            let mut row = vec![vf.address.to_string(), format!("{} vf {}", vf.pf, vf.index)];
            row.extend(vf.summary());
            row
        })
        .collect();
    table::lines(&["PCI address", "PF", "driver", "interface", "MAC", "MTU", "VLAN"], &rows).join("\n")
}

fn before_and_after(before: &Vfs, after: &Vfs) -> String {
    let text =
        |vfs: &Vfs, address| vfs.get(address).map_or_else(|| "gone".to_owned(), |vf| vf.summary().join(" "));
    let rows: Vec<Vec<String>> = before
        .keys()
        .map(|address| {
            let same = before.get(address) == after.get(address);
            let verdict = if same { "same" } else { "DIFFERENT" };
            vec![address.to_string(), text(before, address), text(after, address), verdict.to_owned()]
        })
        .collect();
    let head = ["PCI address", "before: driver interface MAC MTU VLAN", "after", ""];
    table::lines(&head, &rows).join("\n")
}

/// A network-status with one line for each network, its members in their order.
fn compact(text: &str) -> Result<String> {
    let networks: Vec<&RawValue> =
        serde_json::from_str(text).with_context(|| format!("network-status: {text}"))?;
    Ok(networks
        .iter()
        .map(|network| format!("  {}", without_spaces(network.get())))
        .collect::<Vec<_>>()
        .join("\n"))
}

/// JSON without the white space between its tokens.
fn without_spaces(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let keeps = |character: &char| {
        let keep = in_string || !character.is_ascii_whitespace();
        if *character == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && *character == '\\' && !escaped;
        keep
    };
    json.chars().filter(keeps).collect()
}

/// A number with its thousands set apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        for (number, expected) in [(0, "0"), (999, "999"), (1_430_129, "1 430 129")] {
            assert_eq!(grouped(number), expected);
        }
    }

    #[test]
    fn network_status_is_one_line_per_network() {
        let text = "[{\n    \"name\": \"a \\\" b\\\\\", \"dns\": {}\n},{\n    \"name\": \"c\" }]";
        let lines = "  {\"name\":\"a \\\" b\\\\\",\"dns\":{}}\n  {\"name\":\"c\"}";
        assert_eq!(compact(text).unwrap(), lines);
    }
}
