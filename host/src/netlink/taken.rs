//! Whether names of interfaces are taken, asked by a thread that does nothing else: no runtime has to be woken for it.

use nix::errno::Errno;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use super::Error;
use super::frame::{Frame, u16_at, u32_at};
use super::large::{ERROR, HEADER, TYPE_OFFSET, message};
use super::link::{RTM_GETLINK, called};

/// Room for what is read of an answer; the rest of it does not count.
const ROOM: usize = 4096;

/// The first of `names` that an interface of the calling thread's namespace has, as its name or as an alternative one.
///
/// # Errors
/// Any refusal other than absence.
pub fn taken<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Option<&'a str>, Error> {
    let broken = |cause| Error::Socket { cause };
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(broken)?;
    socket.bind_auto().map_err(broken)?;
    let mut answer = Vec::with_capacity(ROOM);
    for name in names {
        let operation = || format!("reading interface {name}");
        let request = message(&Frame::new(RTM_GETLINK, &called(name).build())).map_err(broken)?;
        socket.send_to(&request, &SocketAddr::new(0, 0), 0).map_err(broken)?;
        answer.clear();
        socket.recv(&mut answer, 0).map_err(broken)?;
        match u16_at(&answer, TYPE_OFFSET) {
            Some(ERROR) => {
                let code = u32_at(&answer, HEADER).unwrap_or_default().cast_signed();
                if Errno::from_raw(code.saturating_neg()) != Errno::ENODEV {
                    return Err(Error::kernel(operation(), code, None));
                }
            }
            Some(_) => return Ok(Some(name)),
            None => {
                return Err(Error::Incomplete {
                    operation: operation(),
                    missing: "a netlink header".to_owned(),
                });
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Netlink;
    use crate::testing::in_new_netns;

    #[test]
    fn by_either_kind_of_name() {
        const LONG: &str = "a-name-that-is-longer-than-fifteen-bytes";
        in_new_netns(async || {
            let netlink = Netlink::connect().unwrap();
            netlink.add_veth("d0", "peer").await.unwrap();
            let index = netlink.link_by_name("d0").await.unwrap().unwrap().index;
            netlink.add_altname(index, "other").await.unwrap();
            netlink.add_altname(index, LONG).await.unwrap();
            for (names, expected) in [
                (&["net1", "eth0"][..], None),
                (&["net1", "d0", "peer"], Some("d0")),
                (&["other"], Some("other")),
                (&["a", LONG], Some(LONG)),
                (&["another-name-that-is-longer-than-fifteen-bytes"], None),
                (&[], None),
            ] {
                assert_eq!(taken(names.iter().copied()).unwrap(), expected, "{names:?}");
            }
        });
    }
}
