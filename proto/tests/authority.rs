//! A tonic server on a unix socket answers what kubelet really sends, thanks to `incoming` and not without it.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use kubelet_api::registration::registration_server::{Registration, RegistrationServer};
use kubelet_api::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;

struct Plugin;

#[tonic::async_trait]
impl Registration for Plugin {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo { name: "example.com/vfs".into(), ..Default::default() }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        assert!(status.into_inner().plugin_registered);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// The recorded frames, the preface first.
fn recorded() -> Vec<Vec<u8>> {
    include_str!("grpc-go-1.27.1.hex")
        .lines()
        .map(|line| line.split('#').next().unwrap().trim())
        .filter(|hex| !hex.is_empty())
        .map(|hex| {
            let octet = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            (0..hex.len()).step_by(2).map(octet).collect()
        })
        .collect()
}

/// The type, stream and payload of the next frame that the server sends.
async fn frame(stream: &mut UnixStream) -> (u8, u32, Vec<u8>) {
    let reading = async {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.unwrap();
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        (head[3], id, payload)
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("a frame within ten seconds")
}

/// Plays the recording to the server on `socket`; the answer to each of the two calls, or the HTTP/2 error code.
async fn play(socket: &Path) -> Vec<Result<Vec<u8>, Vec<u8>>> {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let mut frames = recorded().into_iter();
    for opening in frames.by_ref().take(2) {
        stream.write_all(&opening).await.unwrap();
    }
    // The client acknowledges the server's settings next, so they must have been sent.
    while frame(&mut stream).await.0 != SETTINGS {}
    let rest: Vec<u8> = frames.flatten().collect();
    stream.write_all(&rest).await.unwrap();
    let mut answers = Vec::new();
    while answers.len() < 2 {
        match frame(&mut stream).await {
            (DATA, _, payload) => answers.push(Ok(payload)),
            (RST_STREAM, _, code) => answers.push(Err(code)),
            _ => {}
        }
    }
    answers
}

#[tokio::test]
async fn kubelet_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("plugin.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(
        Server::builder()
            .add_service(RegistrationServer::new(Plugin))
            .serve_with_incoming(kubelet_api::incoming(listener)),
    );
    let answers = play(&socket).await;
    // gRPC messages: flag, length, PluginInfo with field 2 set, and an empty message.
    let info = [b"\0\0\0\0\x11\x12\x0f".as_slice(), b"example.com/vfs"].concat();
    assert_eq!(answers, [Ok(info), Ok(vec![0; 5])]);
}

#[tokio::test]
async fn a_plain_listener_does_not_answer_kubelet() {
    const PROTOCOL_ERROR: [u8; 4] = [0, 0, 0, 1];
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("plugin.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(
        Server::builder()
            .add_service(RegistrationServer::new(Plugin))
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
    let refused = || Err(PROTOCOL_ERROR.to_vec());
    assert_eq!(play(&socket).await, [refused(), refused()]);
}

#[tokio::test]
async fn our_own_client_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("plugin.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(
        Server::builder()
            .add_service(RegistrationServer::new(Plugin))
            .serve_with_incoming(kubelet_api::incoming(listener)),
    );
    let channel = kubelet_api::connect(&socket).await.unwrap();
    let mut client = kubelet_api::registration::registration_client::RegistrationClient::new(channel);
    for _ in 0..3 {
        let info = client.get_info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.name, "example.com/vfs");
    }
}

#[tokio::test]
async fn connecting_to_nothing_names_the_socket() {
    let missing = Path::new("/nonexistent/kubelet.sock");
    let error = kubelet_api::connect(missing).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/kubelet.sock"), "{error}");
    let relative = kubelet_api::connect(Path::new("kubelet.sock")).await.unwrap_err();
    assert!(relative.to_string().contains("absolute"), "{relative}");
}
