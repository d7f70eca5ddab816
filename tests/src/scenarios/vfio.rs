//! Pods with VFs that are driven by a program of theirs.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use host::PciAddress;
use serde_json::Value;

use crate::inside;
use crate::pod::PodSpec;
use crate::prepare::VFIO;
use crate::session::{Running, Session};
use crate::testpmd;
use crate::wait::until;

/// What the device plugin says of the pod's devices.
const INFO: &str = "PCIDEVICE_INTEL_COM_SRIOV_DPDK_INFO";

/// How long testpmd may take to start and send.
const SENDS: Duration = Duration::from_secs(120);

/// /dev/vfio holds the container node and the VF's group, the environment names the VF.
pub(super) async fn device_nodes(session: &mut Session) -> Result<()> {
    let pod = session.run(PodSpec::new("vfio").devices(VFIO, 1)).await?;
    let address = device(&pod)?;
    ensure!(session.prepared.vfio.contains(&address), "{address} is not a VF of {VFIO}");
    let group = session.sysfs.pci_device(address)?.iommu_group()?.context("the VF has no IOMMU group")?;
    let expected = BTreeSet::from(["vfio".to_owned(), group.id.to_string()]);
    let folder = pod.inside.path("/dev/vfio");
    let listed = std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let found: BTreeSet<String> =
        listed.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    ensure!(found == expected, "/dev/vfio of the pod holds {found:?}, expected {expected:?}");
    for node in &expected {
        let path = format!("/dev/vfio/{node}");
        let (on_node, in_pod) =
            (std::fs::metadata(&path)?.rdev(), std::fs::metadata(pod.inside.path(&path))?.rdev());
        ensure!(on_node == in_pod, "{path} is device {in_pod:#x} in the pod and {on_node:#x} on the node");
    }
    let info = pod.inside.env(INFO).with_context(|| format!("the pod has no {INFO}"))?;
    let told: Value = serde_json::from_str(info).with_context(|| format!("{INFO} is {info}"))?;
    let told = told.pointer(&format!("/{address}/vfio/dev-mount")).and_then(Value::as_str);
    ensure!(told == Some(&format!("/dev/vfio/{}", group.id)), "{INFO} is {info}");
    session.delete(&pod).await
}

/// testpmd reports that it sends, through a VF on which the SR-IOV plugin set a VLAN.
pub(super) async fn testpmd(session: &mut Session) -> Result<()> {
    session.vfio_network("dpdk300", 300).await?;
    let pod = session.run(testpmd::pod("testpmd").networks("dpdk300")).await?;
    let vfs = session.vfs().await?;
    let vf = vfs.get(&device(&pod)?).context("the pod's VF is not on the node")?;
    ensure!(vf.admin.vlan.is_some_and(|vlan| vlan.id == 300), "VLAN on the PF: {:?}", vf.admin.vlan);
    ensure!(vf.driver.as_deref() == Some("vfio-pci"), "driver: {:?}", vf.driver);
    let sent = until(SENDS, "dpdk-testpmd to send packets", async || {
        let text = inside::log(pod.spec.name(), &pod.uid)?;
        Ok(testpmd::packets_per_second(&text).into_iter().find(|rate| *rate > 0))
    })
    .await;
    if let Err(error) = sent {
        let text = inside::log(pod.spec.name(), &pod.uid).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(8).collect();
        return Err(error.context(format!("last lines of its log, newest first: {tail:?}")));
    }
    session.delete(&pod).await
}

fn device(pod: &Running) -> Result<PciAddress> {
    let name = "PCIDEVICE_INTEL_COM_SRIOV_DPDK";
    let value = pod.inside.env(name).with_context(|| format!("the pod has no {name}"))?;
    value.parse().with_context(|| format!("{name} is {value}"))
}
