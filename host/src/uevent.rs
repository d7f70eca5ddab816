//! Kernel uevents: what happens to devices, as it happens.
//!
//! The kernel sends each event as text, `action@devpath` and then `KEY=value` pairs, to group 1 of the
//! `NETLINK_KOBJECT_UEVENT` protocol (`lib/kobject_uevent.c`, `Documentation/core-api/kobject.rst`). PCI
//! events reach every network namespace of the initial user namespace, those of network devices only the
//! namespace that owns the device.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fmt, io};

use netlink_sys::protocols::NETLINK_KOBJECT_UEVENT;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::PciAddress;

/// The group of the kernel's own messages; udev's go to group 2.
const KERNEL: u32 = 1;
/// One message; the kernel's limit is 2048 octets of properties and a path.
const MESSAGE_SIZE: usize = 8192;
/// Room for the events of some thousand VFs that come at once.
const BUFFER_SIZE: usize = 8 << 20;

/// Why uevents cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the kernel's uevents: {source}")]
pub struct Error {
    operation: &'static str,
    source: io::Error,
}

/// One event of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `change`, `bind`, `unbind`, `move`, `online`, `offline`.
    pub action: String,
    /// The device's directory below the sysfs root, with a slash in front.
    pub devpath: String,
    /// All properties, `SUBSYSTEM`, `DRIVER` and `PCI_SLOT_NAME` among them.
    pub properties: BTreeMap<String, String>,
}

impl Uevent {
    /// The subsystem: `pci`, `net`, `infiniband`, `vfio-dev`, ...; empty if the event names none.
    #[must_use]
    pub fn subsystem(&self) -> &str {
        self.properties.get("SUBSYSTEM").map_or("", String::as_str)
    }

    /// The PCI function that the event's device is or stands below; `None` for devices on no PCI bus.
    #[must_use]
    pub fn function(&self) -> Option<PciAddress> {
        PciAddress::in_path(Path::new(&self.devpath))
    }

    fn parse(message: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(message).ok()?;
        let mut parts = text.split('\0');
        let (action, devpath) = parts.next()?.split_once('@')?;
        let properties = parts
            .filter_map(|part| part.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Some(Self { action: action.to_owned(), devpath: devpath.to_owned(), properties })
    }
}

/// A subscription to the kernel's uevents. Events queue up from the moment of [`Uevents::subscribe`].
pub struct Uevents {
    socket: TokioSocket,
}

impl Uevents {
    /// Subscribes, in the network namespace of the calling thread. Requires a tokio runtime with I/O.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn subscribe() -> Result<Self, Error> {
        let open = || -> io::Result<Self> {
            let mut socket = TokioSocket::new(NETLINK_KOBJECT_UEVENT)?;
            let inner = socket.socket_mut();
            // Needs CAP_NET_ADMIN; without it the system's limit holds, and a burst is noticed as lost.
            let _ = setsockopt(inner, sockopt::RcvBufForce, &BUFFER_SIZE);
            inner.bind(&SocketAddr::new(0, KERNEL))?;
            Ok(Self { socket })
        };
        open().map_err(|source| Error { operation: "subscribing to", source })
    }

    /// The next event; waits for it. `None` says that events were lost, so that only a scan of sysfs
    /// tells what is there.
    ///
    /// # Errors
    /// The socket broke.
    pub async fn next(&mut self) -> Result<Option<Uevent>, Error> {
        loop {
            let mut message = Vec::with_capacity(MESSAGE_SIZE);
            match self.socket.recv_from(&mut message).await {
                // Only the kernel has port 0: anything else is a process that plays kernel.
                Ok(from) if from.port_number() == 0 => {
                    if let Some(event) = Uevent::parse(&message) {
                        return Ok(Some(event));
                    }
                }
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(None),
                Err(source) => return Err(Error { operation: "reading", source }),
            }
        }
    }
}

impl fmt::Debug for Uevents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uevents").finish_non_exhaustive()
    }
}

/// Has the kernel tell an event that did not happen to all who listen in the network namespace of the calling thread
/// (`uevent_net_rcv_skb()` in `lib/kobject_uevent.c`, since Linux 4.17): what a fake tree cannot do by itself.
///
/// # Errors
/// The caller lacks `CAP_SYS_ADMIN` in the user namespace that owns the network namespace.
#[cfg(any(test, feature = "fake"))]
pub fn pretend(action: &str, devpath: &str, subsystem: &str) -> io::Result<()> {
    // `NLMSG_MIN_TYPE` and `NLM_F_REQUEST` of `include/uapi/linux/netlink.h`: less is not looked at.
    const MIN_TYPE: u16 = 0x10;
    const REQUEST: u16 = 1;
    const HEADER: usize = 16;
    let text = format!("{action}@{devpath}\0ACTION={action}\0DEVPATH={devpath}\0SUBSYSTEM={subsystem}\0");
    let length = u32::try_from(HEADER + text.len()).map_err(io::Error::other)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend([MIN_TYPE, REQUEST].into_iter().flat_map(u16::to_ne_bytes));
    message.resize(HEADER, 0);
    message.extend(text.as_bytes());
    let mut socket = netlink_sys::Socket::new(NETLINK_KOBJECT_UEVENT)?;
    socket.bind_auto()?;
    socket.send_to(&message, &SocketAddr::new(0, 0), 0).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Netlink;
    use crate::testing::in_new_netns;

    #[test]
    fn messages() {
        let bind = b"bind@/devices/pci0000:00/0000:3b:10.0\0ACTION=bind\0SUBSYSTEM=pci\0DRIVER=igbvf\0\
                     PCI_SLOT_NAME=0000:3b:10.0\0SEQNUM=7\0";
        let event = Uevent::parse(bind).unwrap();
        assert_eq!((event.action.as_str(), event.subsystem()), ("bind", "pci"));
        assert_eq!(event.devpath, "/devices/pci0000:00/0000:3b:10.0");
        assert_eq!(event.properties["PCI_SLOT_NAME"], "0000:3b:10.0");
        assert_eq!(event.function().unwrap().to_string(), "0000:3b:10.0");
        // udev's own messages begin with "libudev" and a binary header.
        for other in [b"libudev\0\xfe\xed\xca\xfe".as_slice(), b"", b"\xff@/x", b"add"] {
            assert_eq!(Uevent::parse(other), None);
        }
    }

    #[test]
    fn a_new_network_device_is_told() {
        in_new_netns(|| async {
            let mut uevents = Uevents::subscribe().unwrap();
            let netlink = Netlink::connect().unwrap();
            netlink.add_veth("vf7", "peer").await.unwrap();
            let told = async {
                loop {
                    let Some(event) = uevents.next().await.unwrap() else { continue };
                    if event.devpath.ends_with("/net/vf7") {
                        return event;
                    }
                }
            };
            let event = tokio::time::timeout(Duration::from_secs(5), told).await.unwrap();
            assert_eq!((event.action.as_str(), event.subsystem()), ("add", "net"));
        });
    }

    #[test]
    fn a_pretended_event_is_told_as_a_real_one() {
        in_new_netns(|| async {
            let mut uevents = Uevents::subscribe().unwrap();
            pretend("bind", "/devices/pci0000:00/0000:3b:10.0", "pci").unwrap();
            let told = async {
                loop {
                    match uevents.next().await.unwrap() {
                        Some(event) if event.devpath.ends_with("0000:3b:10.0") => return event,
                        _ => {}
                    }
                }
            };
            let event = tokio::time::timeout(Duration::from_secs(5), told).await.unwrap();
            assert_eq!((event.action.as_str(), event.subsystem()), ("bind", "pci"));
        });
    }
}
