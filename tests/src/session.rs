//! A prepared node with its cluster: what scenarios and the demo work on.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use host::{Netlink, Sysfs};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::inside::Inside;
use crate::node::{Grade, KubeNode, Node, SimNode};
use crate::pod::PodSpec;
use crate::prepare::{
    Access, MULTUS, NETDEVICE, Prepared, Sources, VFIO, WHEREABOUTS, kubeconfig, prepare, wait_in_front,
};
use crate::vfs::{self, Vfs};

/// How a session is started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Simulated or real.
    pub grade: Grade,
    /// The cluster of a real Kubernetes.
    pub kubeconfig: Option<PathBuf>,
    /// Where the programs come from.
    pub sources: Sources,
}

/// A prepared node.
#[derive(Debug)]
pub struct Session {
    /// The API.
    pub cluster: Cluster,
    /// What differs between the grades.
    pub node: Box<dyn Node>,
    /// What was put on the node.
    pub prepared: Prepared,
    /// Devices.
    pub sysfs: Sysfs,
    /// Interfaces of the node.
    pub netlink: Netlink,
    /// Whether VFs were made anew, so that what they were before does not count any more.
    pub renewed: bool,
}

/// A pod that runs, with its specification.
#[derive(Debug)]
pub struct Running {
    /// What was asked for.
    pub spec: PodSpec,
    /// UID in the API.
    pub uid: String,
    /// Its process on the node.
    pub inside: Inside,
}

impl Session {
    /// Starts or joins the cluster, prepares the node, waits until it advertises its devices.
    ///
    /// # Errors
    /// Whatever stands in the way, and what to do about it.
    pub async fn start(setup: &Setup, tell: &mut dyn FnMut(String)) -> Result<Session> {
        let node: Box<dyn Node> = match setup.grade {
            Grade::Simulated => Box::new(SimNode::start(std::env::current_exe()?).await?),
            Grade::Kubernetes => {
                let kubeconfig = setup.kubeconfig.clone();
                let kubeconfig =
                    kubeconfig.context("--node kubernetes needs --kubeconfig, see hack/kubernetes")?;
                Box::new(KubeNode::new(kubeconfig))
            }
        };
        let cluster = Cluster::connect(node.kubeconfig()).await?;
        cluster.define_nads().await?;
        cluster.clean().await.context("remove what an earlier run left")?;
        let sysfs = Sysfs::default();
        let client = cluster.client();
        let access = Access {
            multus: kubeconfig(&client, node.kubeconfig(), MULTUS).await?,
            whereabouts: kubeconfig(&client, node.kubeconfig(), WHEREABOUTS).await?,
            node: cluster.node_name().await?,
        };
        let prepared = prepare(&setup.sources, &sysfs, &access, tell)?;
        let netlink = Netlink::connect()?;
        let mut session = Session { cluster, node, prepared, sysfs, netlink, renewed: false };
        if session.prepared.multus_daemon.is_some() {
            wait_in_front().await?;
        }
        session.wait_advertised().await?;
        session.cluster.wait_ready().await?;
        Ok(session)
    }

    /// Waits until the node offers every VF.
    ///
    /// # Errors
    /// It does not, or the device plugin has ended.
    pub async fn wait_advertised(&mut self) -> Result<()> {
        for (resource, count) in self.pools() {
            if let Err(error) = self.cluster.wait_allocatable(resource, count).await {
                self.prepared.device_plugin.check()?;
                let log = self.prepared.device_plugin.log().display();
                return Err(error.context(format!("the device plugin does not advertise its VFs, see {log}")));
            }
        }
        Ok(())
    }

    /// The two resources with the number of VFs that belong to them.
    pub fn pools(&self) -> [(&'static str, u64); 2] {
        [(NETDEVICE, self.prepared.netdevices.len() as u64), (VFIO, self.prepared.vfio.len() as u64)]
    }

    /// Every VF as it is now.
    ///
    /// # Errors
    /// sysfs or netlink cannot be read.
    pub async fn vfs(&self) -> Result<Vfs> {
        vfs::look(&self.sysfs, &self.netlink).await
    }

    /// Creates a pod and waits until it runs.
    ///
    /// # Errors
    /// It does not come to run.
    pub async fn run(&self, spec: PodSpec) -> Result<Running> {
        let uid = self.cluster.create_pod(&spec).await?;
        self.cluster.wait_running(spec.name()).await?;
        let inside = Inside::find(&spec).await?;
        Ok(Running { spec, uid, inside })
    }

    /// Creates pods and waits until all run; in their order.
    ///
    /// # Errors
    /// One of them does not come to run.
    pub async fn run_all(&self, specs: impl IntoIterator<Item = PodSpec>) -> Result<Vec<Running>> {
        try_join_all(specs.into_iter().map(|spec| self.run(spec))).await
    }

    /// Deletes pods as [`Session::delete`] does, all at once.
    ///
    /// # Errors
    /// Something of one of them stays.
    pub async fn delete_all(&self, pods: impl IntoIterator<Item = &Running>) -> Result<()> {
        try_join_all(pods.into_iter().map(|pod| self.delete(pod))).await?;
        Ok(())
    }

    /// Deletes a pod, waits until it is gone, and looks whether its processes are.
    ///
    /// # Errors
    /// Something of it stays.
    pub async fn delete(&self, running: &Running) -> Result<()> {
        let name = running.spec.name();
        self.cluster.delete_pod(name).await?;
        ensure!(!Inside::is_alive(&running.spec)?, "pod {name} is gone and its processes are not");
        Ok(())
    }

    /// Creates the NAD of an SR-IOV network on `vlan`: addresses and MAC come from the pod's annotation.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn vlan_network(&self, name: &str, vlan: u16) -> Result<()> {
        self.cluster.create_nad(name, &sriov(vlan, &json!({"type": "static"})), Some(NETDEVICE)).await
    }

    /// Creates the NAD of VFs on `vlan` that belong to a program.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn vfio_network(&self, name: &str, vlan: u16) -> Result<()> {
        let config = json!({"cniVersion": "1.0.0", "type": "sriov", "vlan": vlan});
        self.cluster.create_nad(name, &config, Some(VFIO)).await
    }

    /// Fails if any VF differs from `before`.
    ///
    /// # Errors
    /// The differences.
    pub async fn ensure_unchanged(&self, before: &Vfs) -> Result<()> {
        let differences = vfs::differences(before, &self.vfs().await?);
        if !differences.is_empty() {
            bail!("VFs are not as they were: {}", differences.join("; "));
        }
        Ok(())
    }

    /// Ends what the session started on the node.
    pub async fn stop(mut self) {
        let _ = self.prepared.device_plugin.end(nix::sys::signal::Signal::SIGTERM);
        self.node.stop().await;
    }
}

/// Configuration of an SR-IOV network on `vlan`, with addresses of `ipam` and what the pod's annotation asks for.
pub fn sriov(vlan: u16, ipam: &Value) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "type": "sriov",
        "vlan": vlan,
        "capabilities": {"ips": true, "mac": true},
        "ipam": ipam,
    })
}
