//! One request whose reply is larger than what a [`Netlink`](super::Netlink) reads: 64 KiB, past which the protocol
//! library drops the reply and passes on the acknowledgement alone.

use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::frame::{Frame, u16_at, u32_at};
use super::{Error, LIMIT};

/// Room for the link message of a PF with some three thousand VFs.
const SIZE: usize = 1 << 20;
// `struct nlmsghdr` of `include/uapi/linux/netlink.h`.
pub(super) const HEADER: usize = 16;
pub(super) const TYPE_OFFSET: usize = 4;
pub(super) const ERROR: u16 = 2;
const REQUEST: u16 = 1;

/// Sends one request in the calling thread's namespace; its reply, which is one message.
pub(super) async fn get(frame: &Frame, operation: impl FnOnce() -> String) -> Result<Frame, Error> {
    let exchange = async {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind_auto()?;
        socket.send_to(&message(frame)?, &SocketAddr::new(0, 0)).await?;
        let mut reply = Vec::with_capacity(SIZE);
        socket.recv_from(&mut reply).await?;
        Ok(reply)
    };
    let reply = match tokio::time::timeout(LIMIT, exchange).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(cause)) => return Err(Error::Socket { cause }),
        Err(_) => return Err(Error::Timeout { operation: operation(), limit: LIMIT }),
    };
    match (u16_at(&reply, TYPE_OFFSET), reply.get(HEADER..)) {
        (Some(ERROR), Some(body)) => {
            let code = u32_at(body, 0).unwrap_or_default().cast_signed();
            Err(Error::kernel(operation(), code, None))
        }
        (Some(kind), Some(body)) => Ok(Frame { kind, body: body.to_vec() }),
        _ => Err(Error::Incomplete { operation: operation(), missing: "a netlink header".to_owned() }),
    }
}

/// A request on the wire.
pub(super) fn message(frame: &Frame) -> std::io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER + frame.body.len()).map_err(std::io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend([frame.kind, REQUEST].into_iter().flat_map(u16::to_ne_bytes));
    message.resize(HEADER, 0);
    message.extend(&frame.body);
    Ok(message)
}
