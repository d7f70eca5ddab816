//! Notifications: what changes in a network namespace, as it changes.

use std::fmt;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::proto::ConnectionHandle;
use rtnetlink::sys::SocketAddr;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use tokio::time::Instant;

use super::addr::{Address, RTM_DELADDR, RTM_NEWADDR};
use super::frame::Frame;
use super::link::{Link, RTM_DELLINK, RTM_NEWLINK};
use super::{Error, open_socket, spawn};
use crate::netns::Netns;

/// What to be told about; the numbers are the kernel's RTNLGRP_ ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Group {
    /// Interfaces: made, changed, moved, removed.
    Link = 1,
    /// IPv4 addresses.
    Ipv4Address = 5,
    /// IPv6 addresses, including the end of duplicate detection.
    Ipv6Address = 9,
}

/// One notification.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An interface appeared or changed; this is its present state.
    Link(Link),
    /// The interface with this index left the namespace.
    LinkGone(u32),
    /// An address appeared or changed.
    Address(Address),
    /// An address was removed.
    AddressGone(Address),
    /// Notifications were lost because they were not read in time: read the state anew.
    Lost,
}

/// A subscription. Notifications queue up from the moment of [`Events::subscribe`], so state that is
/// read after subscribing and events together miss nothing.
pub struct Events {
    messages: BoxStream<'static, (NetlinkMessage<Frame>, SocketAddr)>,
    // The connection ends when its last handle is gone.
    _handle: ConnectionHandle<Frame>,
}

impl Events {
    /// Subscribes to `groups` in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel refuses the socket.
    pub fn subscribe(groups: &[Group]) -> Result<Self, Error> {
        let bits = groups.iter().fold(0, |bits, group| bits | 1 << (*group as u32 - 1));
        let (socket, _) = open_socket(NETLINK_ROUTE, bits)?;
        let (connection, handle, messages) = rtnetlink::proto::from_socket_with_codec(socket);
        spawn(connection);
        Ok(Self { messages: messages.boxed(), _handle: handle })
    }

    /// Subscribes to `groups` in the namespace `netns`; the calling thread stays where it is.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel refuses the socket, [`Error::Netns`] when the namespace
    /// cannot be entered.
    pub fn subscribe_in(netns: &Netns, groups: &[Group]) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::current();
        netns.run(|| {
            let _runtime = runtime.enter();
            Self::subscribe(groups)
        })?
    }

    /// The next notification; waits for it.
    ///
    /// # Errors
    /// [`Error::Closed`] when the socket broke.
    pub async fn next(&mut self) -> Result<Event, Error> {
        while let Some((message, _)) = self.messages.next().await {
            let event = match message.payload {
                NetlinkPayload::Overrun(_) => Some(Event::Lost),
                NetlinkPayload::InnerMessage(frame) => parse(&frame),
                _ => None,
            };
            if let Some(event) = event {
                return Ok(event);
            }
        }
        Err(Error::Closed { operation: "waiting for netlink events".to_owned() })
    }

    /// Asks `check` now and after every notification until it answers with a value, at most for
    /// `limit`; `None` when the limit passed. `check` looks at the state itself, and once more when the
    /// limit has passed, so lost, merged or missing notifications do no harm.
    ///
    /// # Errors
    /// The first error of `check`, or a broken socket.
    pub async fn wait_until<T>(
        &mut self,
        limit: Duration,
        mut check: impl AsyncFnMut() -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(value) = check().await? {
                return Ok(Some(value));
            }
            match tokio::time::timeout_at(deadline, self.next()).await {
                Ok(event) => drop(event?),
                Err(_) => return check().await,
            }
        }
    }
}

fn parse(frame: &Frame) -> Option<Event> {
    match frame.kind {
        RTM_NEWLINK => Link::parse(&frame.body).map(Event::Link),
        RTM_DELLINK => Link::parse(&frame.body).map(|link| Event::LinkGone(link.index)),
        RTM_NEWADDR => Address::parse(&frame.body).map(Event::Address),
        RTM_DELADDR => Address::parse(&frame.body).map(Event::AddressGone),
        _ => None,
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
