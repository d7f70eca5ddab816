//! The life of one pod on the node, from admission to its final deletion.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Container as PodContainer, Event, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::manager::DeviceManager;
use super::{Options, pod};
use crate::sim::runtime::{Container, PodIdentity, Runtime, Sandbox};

/// What a pod's life needs of the kubelet it lives in.
pub(super) struct Environment {
    /// The API server.
    pub(super) client: Client,
    /// The container runtime.
    pub(super) runtime: Arc<Runtime>,
    /// The device manager.
    pub(super) manager: Arc<DeviceManager>,
    /// Names, paths and patience.
    pub(super) options: Options,
}

/// The pod as the API server shows it; `None` once it is gone there.
pub(super) type Seen = watch::Receiver<Option<Pod>>;

/// Follows one pod until nothing of it is left.
pub(super) async fn run(environment: Arc<Environment>, pod: Pod, seen: Seen) {
    let identity = match pod::identity(&pod) {
        Ok(identity) => identity,
        Err(error) => {
            warn!("pod ignored: {error:#}");
            return;
        }
    };
    let mut worker = Worker { api: pods(&environment.client, &identity), environment, pod, identity, seen };
    let lived = worker.live().await;
    worker.end(lived).await;
}

fn pods(client: &Client, identity: &PodIdentity) -> Api<Pod> {
    Api::namespaced(client.clone(), &identity.namespace)
}

struct Worker {
    environment: Arc<Environment>,
    api: Api<Pod>,
    pod: Pod,
    identity: PodIdentity,
    seen: Seen,
}

/// How a pod's life ended before anybody deleted it.
enum Life {
    /// It was deleted.
    Deleted,
    /// Its containers ended, or it could not start: phase, reason and message.
    Over(&'static str, Option<(&'static str, String)>),
}

impl Worker {
    /// Admission, sandbox, containers; returns when the pod is deleted or has ended by itself.
    async fn live(&mut self) -> Life {
        if self.is_deleted() {
            return Life::Deleted;
        }
        let admitted = match pod::wanted(&self.pod) {
            Ok(wanted) => self.environment.manager.admit(&self.identity.uid, &wanted).await,
            Err(error) => Err(error),
        };
        if let Err(error) = admitted {
            return Life::Over("Failed", Some(("UnexpectedAdmissionError", format!("{error:#}"))));
        }
        let Some(sandbox) = self.sandbox().await else { return Life::Deleted };
        let specs: Result<Vec<_>> = pod::containers(&self.pod)
            .map(|(init, container)| Ok((init, container.clone(), self.container_spec(container)?)))
            .collect();
        let specs = match specs {
            Ok(specs) => specs,
            Err(error) => {
                return Life::Over("Failed", Some(("CreateContainerConfigError", format!("{error:#}"))));
            }
        };

        let mut running = Vec::new();
        for (init, container, spec) in specs {
            let known = self.environment.runtime.containers(&self.identity.uid);
            let known = known.into_iter().find(|known| known.name() == container.name);
            let started = match known {
                Some(known) => Ok(known),
                None => match self.environment.manager.pre_start(&self.identity.uid, &container.name).await {
                    Ok(()) => self.environment.runtime.start_container(&sandbox, spec),
                    Err(error) => Err(error),
                },
            };
            let started = match started {
                Ok(started) => started,
                Err(error) => return Life::Over("Failed", Some(("StartError", format!("{error:#}")))),
            };
            if init {
                let code = tokio::select! {
                    code = started.wait() => code,
                    () = deleted(&mut self.seen) => return Life::Deleted,
                };
                if code != 0 {
                    let text = format!("init container {} ended with exit code {code}", started.name());
                    return Life::Over("Failed", Some(("InitContainerFailed", text)));
                }
            } else {
                running.push((container, started));
            }
        }
        self.report_running(&sandbox, &running).await;
        let containers: Vec<Arc<Container>> = running.into_iter().map(|(_, started)| started).collect();
        let all = join_all(containers.iter().map(|container| container.wait()));
        tokio::select! {
            codes = all => {
                let phase = if codes.iter().all(|code| *code == 0) { "Succeeded" } else { "Failed" };
                self.report_ended(phase, &containers).await;
                Life::Over(phase, None)
            }
            () = deleted(&mut self.seen) => Life::Deleted,
        }
    }

    /// The pod's sandbox: the one it has, or new ones until one gets its network; `None` when the pod is deleted
    /// meanwhile.
    async fn sandbox(&mut self) -> Option<Sandbox> {
        if let Some(sandbox) = self.environment.runtime.sandbox(&self.identity.uid) {
            info!(pod = self.identity.name, sandbox = sandbox.id, "found running");
            return Some(sandbox);
        }
        loop {
            if self.is_deleted() {
                return None;
            }
            // On a task of its own: a kubelet that stops does not stop a CNI plugin.
            let (runtime, identity) = (Arc::clone(&self.environment.runtime), self.identity.clone());
            let attached = tokio::spawn(async move { runtime.run_sandbox(&identity).await }).await;
            match attached.map_err(anyhow::Error::from).and_then(|attached| attached) {
                Ok(sandbox) => return Some(sandbox),
                Err(error) => {
                    let text =
                        format!("Failed to create pod sandbox: rpc error: code = Unknown desc = {error:#}");
                    debug!(pod = self.identity.name, text);
                    self.event("FailedCreatePodSandBox", &text).await;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.environment.options.sandbox_retry) => {}
                () = deleted(&mut self.seen) => return None,
            }
        }
    }

    /// Takes down what the pod has; waits for its deletion if it ended by itself, and deletes it for good.
    async fn end(&mut self, life: Life) {
        if let Life::Over(phase, Some((reason, message))) = &life {
            let status = json!({"status": {"phase": phase, "reason": reason, "message": message}});
            self.patch_status(&status).await;
            self.event(reason, message).await;
        }
        loop {
            let grace = match self.seen.borrow().as_ref() {
                Some(pod) => pod::grace(pod),
                None => Duration::ZERO,
            };
            match self.environment.runtime.stop_pod(&self.identity.uid, grace).await {
                Ok(()) => break,
                Err(error) => {
                    let text = format!("error killing pod: failed to \"KillPodSandbox\": {error:#}");
                    self.event("FailedKillPod", &text).await;
                }
            }
            tokio::time::sleep(self.environment.options.sandbox_retry).await;
        }
        self.environment.manager.release(&self.identity.uid);
        if let Life::Over(..) = life {
            deleted(&mut self.seen).await;
        }
        let _ = std::fs::remove_dir_all(self.folder());
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.identity.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        for _ in 0..self.environment.options.api_tries {
            match self.api.delete(&self.identity.name, &parameters).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => return,
                Err(error) => warn!(pod = self.identity.name, "delete: {error}"),
            }
            tokio::time::sleep(self.environment.options.sandbox_retry).await;
        }
    }

    fn is_deleted(&self) -> bool {
        is_deleted(self.seen.borrow().as_ref())
    }

    fn folder(&self) -> PathBuf {
        self.environment.options.root.join("pods").join(&self.identity.uid)
    }

    fn container_spec(&self, container: &PodContainer) -> Result<crate::sim::runtime::ContainerSpec> {
        let grant = self.environment.manager.grant(&self.identity.uid, &container.name);
        pod::container_spec(&self.pod, container, grant, &self.folder())
            .with_context(|| format!("container {}", container.name))
    }

    async fn report_running(&self, sandbox: &Sandbox, running: &[(PodContainer, Arc<Container>)]) {
        let now = Timestamp::now();
        let statuses: Vec<_> = running
            .iter()
            .map(|(container, _)| {
                json!({
                    "name": container.name,
                    "image": container.image.clone().unwrap_or_default(),
                    "imageID": "",
                    "containerID": format!("sim://{}-{}", sandbox.id, container.name),
                    "ready": true,
                    "started": true,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": now}},
                })
            })
            .collect();
        let conditions: Vec<_> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .iter()
            .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": now}))
            .collect();
        let addresses: Vec<_> = sandbox.addresses.iter().map(|address| json!({"ip": address})).collect();
        let status = json!({"status": {
            "phase": "Running",
            "startTime": now,
            "hostIP": self.environment.options.address,
            "podIP": sandbox.addresses.first(),
            "podIPs": addresses,
            "conditions": conditions,
            "containerStatuses": statuses,
        }});
        self.patch_status(&status).await;
    }

    async fn report_ended(&self, phase: &str, containers: &[Arc<Container>]) {
        let now = Timestamp::now();
        let statuses: Vec<_> = containers
            .iter()
            .map(|container| {
                let code = container.exit_code().unwrap_or_default();
                let reason = if code == 0 { "Completed" } else { "Error" };
                json!({
                    "name": container.name(),
                    "image": "",
                    "imageID": "",
                    "ready": false,
                    "restartCount": 0,
                    "state": {"terminated": {"exitCode": code, "reason": reason, "finishedAt": now}},
                })
            })
            .collect();
        self.patch_status(&json!({"status": {"phase": phase, "containerStatuses": statuses}})).await;
    }

    async fn patch_status(&self, patch: &serde_json::Value) {
        for _ in 0..self.environment.options.api_tries {
            let patched = self
                .api
                .patch_status(&self.identity.name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            match patched {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.is_not_found() => return,
                Err(error) => warn!(pod = self.identity.name, "status: {error}"),
            }
            tokio::time::sleep(self.environment.options.sandbox_retry).await;
        }
    }

    async fn event(&self, reason: &str, message: &str) {
        let PodIdentity { namespace, name, uid } = &self.identity;
        let now = Timestamp::now();
        let event = json!({
            "metadata": {"generateName": format!("{name}."), "namespace": namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "source": {"component": "kubelet", "host": self.environment.options.node},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let created = match serde_json::from_value::<Event>(event) {
            Ok(event) => {
                let api: Api<Event> = Api::namespaced(self.environment.client.clone(), namespace);
                api.create(&PostParams::default(), &event).await.map(drop).map_err(anyhow::Error::from)
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = created {
            warn!(pod = name, "event {reason}: {error:#}");
        }
    }
}

fn is_deleted(pod: Option<&Pod>) -> bool {
    pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
}

/// Resolves when the pod is deleted, or gone.
async fn deleted(seen: &mut Seen) {
    // An error means that the kubelet stops, which ends this worker too.
    if seen.wait_for(|pod| is_deleted(pod.as_ref())).await.is_err() {
        std::future::pending::<()>().await;
    }
}
