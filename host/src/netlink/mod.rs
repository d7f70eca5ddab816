//! Route netlink: links, virtual functions, addresses, routes and their events. And devlink, which is generic netlink.
//!
//! Requests are built with rtnetlink's types, so that what is sent equals what iproute2 sends. Replies
//! are read attribute by attribute, taking what is known and skipping the rest: a kernel newer than
//! this program, or a driver with odd answers, cannot make a reply undecodable.

mod addr;
mod devlink;
mod error;
mod events;
mod ext_ack;
mod frame;
mod large;
mod link;
mod route;
mod taken;
mod vf;
mod vf_counters;
mod vlan;

use std::time::Duration;

use futures_util::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::proto::{Connection, ConnectionHandle};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};

use crate::netns::Netns;

pub use addr::Address;
pub use devlink::{Devlink, DevlinkDevice, Versions};
pub use error::Error;
pub use events::{Event, Events, Group};
pub use link::Link;
pub use route::Route;
pub use taken::taken;
pub use vf::{UnknownVfOption, VfLinkState, VfOption, VfSetting, VfSettings, VfVlan, VlanProtocol};
pub use vf_counters::VfCounters;
pub use vlan::vlan_holder;

use frame::Frame;

/// A connection to route netlink in one network namespace.
///
/// It belongs to the namespace it was opened in, wherever its methods are called from; so no code
/// ever awaits inside a foreign namespace. Cloning shares the socket. Requires a tokio runtime with
/// I/O and time enabled, current at the time of [`Netlink::connect`].
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: ConnectionHandle<Frame>,
    limit: Duration,
}

/// How long the kernel gets for one request. It holds the RTNL lock while firmware is being asked, and
/// some NICs take seconds for one VF setting.
const LIMIT: Duration = Duration::from_secs(30);

/// What a request does besides naming its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    Dump,
    Change,
    Create,
    CreateBeside,
    CreateOrReplace,
}

impl Verb {
    fn flags(self) -> u16 {
        match self {
            Self::Get | Self::Change => NLM_F_REQUEST | NLM_F_ACK,
            Self::Dump => NLM_F_REQUEST | NLM_F_DUMP,
            Self::Create => NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
            Self::CreateBeside => NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE,
            Self::CreateOrReplace => NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        }
    }
}

impl Netlink {
    /// Opens a connection in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel refuses the socket.
    pub fn connect() -> Result<Self, Error> {
        Self::connect_to(NETLINK_ROUTE)
    }

    fn connect_to(protocol: isize) -> Result<Self, Error> {
        let (socket, _) = open_socket(protocol, 0)?;
        let (connection, handle, _unsolicited) = rtnetlink::proto::from_socket_with_codec(socket);
        spawn(connection);
        Ok(Self { handle, limit: LIMIT })
    }

    /// Opens a connection in the namespace `netns`; the calling thread stays where it is.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel refuses the socket, [`Error::Netns`] when the namespace
    /// cannot be entered.
    pub fn connect_in(netns: &Netns) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        netns.run(|| {
            let _runtime = runtime.enter();
            Self::connect()
        })?
    }

    /// Sends one request and collects the replies up to the kernel's acknowledgement. `operation`
    /// says what is attempted on what, for errors: "reading link eth0".
    async fn request(
        &self,
        verb: Verb,
        frame: Frame,
        operation: impl FnOnce() -> String,
    ) -> Result<Vec<Frame>, Error> {
        let exchange = async {
            loop {
                match self.exchange(verb, frame.clone()).await {
                    Err(Failure::Interrupted) => {}
                    result => return result,
                }
            }
        };
        match tokio::time::timeout(self.limit, exchange).await {
            Ok(Ok(frames)) => Ok(frames),
            Ok(Err(Failure::Refused(code, text))) => Err(Error::kernel(operation(), code, text)),
            Ok(Err(Failure::Closed | Failure::Interrupted)) => Err(Error::Closed { operation: operation() }),
            Err(_) => Err(Error::Timeout { operation: operation(), limit: self.limit }),
        }
    }

    async fn exchange(&self, verb: Verb, frame: Frame) -> Result<Vec<Frame>, Failure> {
        let mut header = NetlinkHeader::default();
        header.flags = verb.flags();
        let message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(frame));
        let mut replies = self.handle.request(message, SocketAddr::new(0, 0)).map_err(|_| Failure::Closed)?;
        let mut frames = Vec::new();
        let mut interrupted = false;
        while let Some(reply) = replies.next().await {
            interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
            match reply.payload {
                NetlinkPayload::InnerMessage(frame) => frames.push(frame),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    let text = ext_ack::message(reply.header.flags, &error.header);
                    return Err(Failure::Refused(error.raw_code(), text));
                }
                NetlinkPayload::Done(done) if done.code < 0 => return Err(Failure::Refused(done.code, None)),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                    return if interrupted { Err(Failure::Interrupted) } else { Ok(frames) };
                }
                _ => {}
            }
        }
        // Only an acknowledgement is success; a stream that just ends is a socket that broke.
        Err(Failure::Closed)
    }
}

enum Failure {
    Refused(i32, Option<String>),
    Closed,
    /// The dump is a mixture of two states, because something changed meanwhile.
    Interrupted,
}

/// A socket of a netlink protocol, bound to multicast `groups` (bit n-1 for group n), with the kernel's extended
/// acknowledgements switched on.
fn open_socket(protocol: isize, groups: u32) -> Result<(TokioSocket, SocketAddr), Error> {
    let open = || -> std::io::Result<_> {
        let mut socket = TokioSocket::new(protocol)?;
        let address = SocketAddr::new(0, groups);
        let inner = socket.socket_mut();
        inner.bind(&address)?;
        // Kernels before 4.12 know no extended acknowledgements; errors are then just shorter.
        let _ = inner.set_ext_ack(true);
        Ok((socket, address))
    };
    open().map_err(|cause| Error::Socket { cause })
}

fn spawn(mut connection: Connection<Frame, TokioSocket>) {
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    tokio::spawn(connection);
}
