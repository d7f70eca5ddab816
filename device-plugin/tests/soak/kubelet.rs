//! kubelet's sockets, in good days and bad.

use std::path::Path;

use kubelet_api::deviceplugin::registration_server::{Registration, RegistrationServer};
use kubelet_api::deviceplugin::{Empty, RegisterRequest};
use kubelet_api::podresources::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use kubelet_api::podresources::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, GetPodResourcesRequest,
    GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse,
};
use tokio::net::UnixListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// How a kubelet takes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Answers,
    Refuses,
    /// Takes connections and never says anything.
    Hangs,
}

pub(crate) const MOODS: [Mood; 3] = [Mood::Answers, Mood::Refuses, Mood::Hangs];

/// kubelet's two sockets below `root`; they go dead with this value, as those of a killed kubelet.
pub(crate) struct Kubelet {
    _stop: DropGuard,
}

impl Kubelet {
    pub(crate) fn start(root: &Path, mood: Mood) -> Self {
        let stop = CancellationToken::new();
        for directory in ["device-plugins", "pod-resources"] {
            let socket = root.join(directory).join("kubelet.sock");
            let _ = std::fs::remove_file(&socket);
            let listener = UnixListener::bind(socket).unwrap();
            let server = Server::builder()
                .add_service(RegistrationServer::new(Answerer(mood)))
                .add_service(PodResourcesListerServer::new(Answerer(mood)));
            let stopped = stop.clone();
            tokio::spawn(async move {
                if mood == Mood::Hangs {
                    let mut kept = Vec::new();
                    stopped
                        .run_until_cancelled(async {
                            loop {
                                kept.push(listener.accept().await.unwrap());
                            }
                        })
                        .await;
                } else {
                    let incoming = kubelet_api::incoming(listener);
                    let serving = server.serve_with_incoming_shutdown(incoming, stopped.cancelled_owned());
                    serving.await.unwrap();
                }
            });
        }
        Self { _stop: stop.drop_guard() }
    }
}

struct Answerer(Mood);

impl Answerer {
    fn answer<T>(&self, answer: T) -> Result<Response<T>, Status> {
        match self.0 {
            Mood::Answers => Ok(Response::new(answer)),
            Mood::Refuses | Mood::Hangs => Err(Status::unavailable("not today")),
        }
    }
}

#[tonic::async_trait]
impl Registration for Answerer {
    async fn register(&self, _: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.answer(Empty {})
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Answerer {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.answer(ListPodResourcesResponse::default())
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn get(
        &self,
        _: Request<GetPodResourcesRequest>,
    ) -> Result<Response<GetPodResourcesResponse>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }
}
