//! The least that attaching a VF can cost, for `podrail-e2e bench`: the same requests to the kernel and the same calls of
//! the IPAM plugin as `sriov` makes to change anything, told everything on its command line. It validates nothing,
//! records nothing, verifies nothing and could not undo anything.
//!
//! The IPAM plugin's environment and configuration come as they come to a CNI plugin.

use std::env;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use dlmalloc::GlobalDlmalloc;
use host::netlink::{VfSetting, VfVlan};
use host::{MacAddress, Netlink, Netns, PciAddress, Sysfs};

/// As in `sriov`: what is compared is the work, not the allocator.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

const USAGE: &str = "usage: podrail-floor netdevice-add PF VF NETDEV NETNS IFNAME VLAN MAC
       podrail-floor netdevice-del PF VF NETDEV NETNS IFNAME ADMIN-MAC MAC
       podrail-floor userspace BDF MAC";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match *arguments.as_slice() {
            ["netdevice-add", pf, vf, netdev, netns, ifname, vlan, mac] => {
                let vlan = VfVlan { id: vlan.parse()?, ..VfVlan::default() };
                add(pf, vf.parse()?, netdev, &Netns::open(netns)?, ifname, vlan, mac.parse()?).await
            }
            ["netdevice-del", pf, vf, netdev, netns, ifname, admin_mac, mac] => {
                let macs = (admin_mac.parse()?, mac.parse()?);
                del(pf, vf.parse()?, netdev, &Netns::open(netns)?, ifname, macs).await
            }
            ["userspace", device, mac] => userspace(device.parse()?, mac.parse()?).await,
            _ => bail!(USAGE),
        }
    })
}

async fn add(
    pf: &str,
    vf: u32,
    netdev: &str,
    netns: &Netns,
    ifname: &str,
    vlan: VfVlan,
    mac: MacAddress,
) -> Result<()> {
    let here = Netlink::connect()?;
    let inside = Netlink::connect_in(netns)?;
    let pf = index(&here, pf).await?;
    let link = index(&here, netdev).await?;
    here.set_vf(pf, vf, VfSetting::Vlan(vlan)).await?;
    here.set_vf(pf, vf, VfSetting::Mac(mac)).await?;
    here.set_vf(pf, vf, VfSetting::Trust(true)).await?;
    here.set_mac(link, mac).await?;
    here.move_link(link, netns, &inside, ifname).await?;
    let link = index(&inside, ifname).await?;
    inside.set_up(link, true).await?;
    let answer = ipam()?;
    let result: serde_json::Value = serde_json::from_slice(&answer)?;
    let address = result.pointer("/ips/0/address").and_then(serde_json::Value::as_str);
    inside.add_address(link, address.context("IPAM gave no address")?.parse()?).await?;
    io::stdout().write_all(&answer)?;
    Ok(())
}

async fn del(
    pf: &str,
    vf: u32,
    netdev: &str,
    netns: &Netns,
    ifname: &str,
    (admin_mac, mac): (MacAddress, MacAddress),
) -> Result<()> {
    ipam()?;
    let here = Netlink::connect()?;
    let inside = Netlink::connect_in(netns)?;
    let link = index(&inside, ifname).await?;
    inside.set_up(link, false).await?;
    inside.move_link(link, &Netns::current()?, &here, netdev).await?;
    let pf = index(&here, pf).await?;
    let link = index(&here, netdev).await?;
    here.set_vf(pf, vf, VfSetting::Mac(admin_mac)).await?;
    here.set_mac(link, mac).await?;
    here.set_vf(pf, vf, VfSetting::Vlan(VfVlan::default())).await?;
    here.set_vf(pf, vf, VfSetting::Trust(false)).await?;
    Ok(())
}

/// A VF without an interface gets its MAC through the PF, or its old one back.
async fn userspace(device: PciAddress, mac: MacAddress) -> Result<()> {
    let here = Netlink::connect()?;
    let vf = Sysfs::default().pci_device(device)?;
    let pf = vf.physfn()?.context("not a VF")?.main_netdev()?.context("the PF has no interface")?;
    let number = vf.vf_index()?.context("not a VF")?;
    here.set_vf(index(&here, pf.name()).await?, number, VfSetting::Mac(mac)).await?;
    println!(r#"{{"cniVersion":"1.0.0","interfaces":[{{"name":"net1","mac":"{mac}"}}]}}"#);
    Ok(())
}

async fn index(netlink: &Netlink, name: &str) -> Result<u32> {
    Ok(netlink.link_by_name(name).await?.with_context(|| format!("no interface {name}"))?.index)
}

/// Calls host-local as this program was called, with what stands on standard input.
fn ipam() -> Result<Vec<u8>> {
    let mut configuration = Vec::new();
    io::stdin().read_to_end(&mut configuration)?;
    let program = PathBuf::from(env::var_os("CNI_PATH").context("CNI_PATH is not set")?).join("host-local");
    let mut child = Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start host-local")?;
    child.stdin.take().context("no pipe")?.write_all(&configuration)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "host-local: {}", String::from_utf8_lossy(&output.stdout));
    Ok(output.stdout)
}
