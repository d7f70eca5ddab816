//! A gRPC call with the `:authority` that kubelet's plugin watcher sends: the path of the socket.
//!
//! No HTTP/2 client library agrees to send it (RFC 9113 section 8.3.1), so the few frames of one unary call are put
//! together here. Header fields are literals without Huffman code (RFC 7541 section 6.2.2).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const ACK: u8 = 0x1;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

/// How long a plugin may take to answer, connecting included.
const DEADLINE: Duration = Duration::from_secs(10);

/// Calls `method` (`/package.Service/Method`) of the server on the unix socket `socket`.
///
/// # Errors
/// The server cannot be reached, resets the call, or answers without a message, which is what it does when it fails.
pub(super) async fn unary<Answer: Message + Default>(
    socket: &Path,
    method: &str,
    request: &impl Message,
) -> Result<Answer> {
    tokio::time::timeout(DEADLINE, call(socket, method, request.encode_to_vec()))
        .await
        .map_err(anyhow::Error::from)
        .and_then(|answered| answered)
        .and_then(|body| Answer::decode(body.as_slice()).context("decode the answer"))
        .with_context(|| format!("{method} on {}", socket.display()))
}

async fn call(socket: &Path, method: &str, message: Vec<u8>) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await.context("connect")?;
    let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    put_frame(&mut hello, SETTINGS, 0, 0, &[])?;
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", socket.to_str().context("path of the socket is not UTF-8")?),
        ("content-type", "application/grpc"),
        ("user-agent", "grpc-go/1.27.1"),
        ("te", "trailers"),
    ] {
        block.push(0);
        put_string(&mut block, name)?;
        put_string(&mut block, value)?;
    }
    put_frame(&mut hello, HEADERS, END_HEADERS, 1, &block)?;
    let mut body = vec![0];
    body.extend(u32::try_from(message.len())?.to_be_bytes());
    body.extend(message);
    put_frame(&mut hello, DATA, END_STREAM, 1, &body)?;
    stream.write_all(&hello).await.context("send the call")?;

    let mut answer = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.context("connection closed before the answer was complete")?;
        let [l0, l1, l2, kind, flags, ..] = head;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let mut payload = vec![0; usize::try_from(length)?];
        stream.read_exact(&mut payload).await.context("connection closed inside a frame")?;
        match kind {
            SETTINGS | PING if flags & ACK == 0 => {
                let mut reply = Vec::new();
                let echo = if kind == PING { payload.as_slice() } else { &[] };
                put_frame(&mut reply, kind, ACK, 0, echo)?;
                stream.write_all(&reply).await.context("acknowledge")?;
            }
            DATA => {
                ensure!(flags & PADDED == 0, "padded DATA frame, which gRPC servers do not send");
                answer.extend(payload);
                if flags & END_STREAM != 0 {
                    break;
                }
            }
            HEADERS if flags & END_STREAM != 0 => break,
            RST_STREAM | GOAWAY => {
                bail!(
                    "server answered with frame type {kind} (3 = RST_STREAM, 7 = GOAWAY), payload {payload:02x?}"
                )
            }
            _ => {}
        }
    }
    let (prefix, message) = answer.split_at_checked(5).context("an error status instead of a message")?;
    ensure!(prefix.first() == Some(&0), "compressed answer");
    Ok(message.to_vec())
}

fn put_frame(to: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
    let length = u32::try_from(payload.len())?.to_be_bytes();
    to.extend(length.iter().skip(1));
    to.extend([kind, flags]);
    to.extend(stream.to_be_bytes());
    to.extend(payload);
    Ok(())
}

/// A string literal of HPACK, at most 126 + 127 octets long: more than the path of a socket can be.
fn put_string(to: &mut Vec<u8>, text: &str) -> Result<()> {
    let length = text.len();
    if length < 127 {
        to.push(u8::try_from(length)?);
    } else {
        ensure!(length < 127 + 128, "header too long: {text}");
        to.push(127);
        to.push(u8::try_from(length - 127)?);
    }
    to.extend(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubelet_api::registration::registration_server::{Registration, RegistrationServer};
    use kubelet_api::registration::{
        InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    };
    use tonic::{Request, Response, Status};

    struct Server;

    #[tonic::async_trait]
    impl Registration for Server {
        async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
            Ok(Response::new(PluginInfo { name: "example.org/x".into(), ..Default::default() }))
        }

        async fn notify_registration_status(
            &self,
            _: Request<RegistrationStatus>,
        ) -> Result<Response<RegistrationStatusResponse>, Status> {
            Err(Status::internal("no"))
        }
    }

    #[tokio::test]
    async fn a_server_with_repaired_connections_answers() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("plugin.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(Server));
        tokio::spawn(server.serve_with_incoming(kubelet_api::incoming(listener)));

        let info: PluginInfo =
            unary(&socket, "/pluginregistration.Registration/GetInfo", &InfoRequest {}).await.unwrap();
        assert_eq!(info.name, "example.org/x");
        let error = unary::<RegistrationStatusResponse>(
            &socket,
            "/pluginregistration.Registration/NotifyRegistrationStatus",
            &RegistrationStatus::default(),
        )
        .await
        .unwrap_err();
        assert!(format!("{error:#}").contains("an error status"), "{error:#}");
    }

    #[tokio::test]
    async fn a_plain_tonic_server_refuses_the_call() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("plugin.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(Server));
        tokio::spawn(server.serve_with_incoming(incoming));

        let error = unary::<PluginInfo>(&socket, "/pluginregistration.Registration/GetInfo", &InfoRequest {})
            .await
            .unwrap_err();
        assert!(format!("{error:#}").contains("RST_STREAM"), "{error:#}");
    }
}
