//! Work on a VF's interface that takes more than one request.

use std::time::Duration;

use host::netlink::{Events, Group, Link};
use host::{MacAddress, Netlink, Netns, netlink, netns};

use crate::error::Error;
use crate::machine::Machine;
use crate::vf::Vf;

/// How long a driver gets to accept a hardware address. Some propagate an administrative MAC to the VF by
/// resetting it, and refuse changes until that is done.
pub(crate) const MAC_LIMIT: Duration = Duration::from_secs(2);

/// How long the kernel gets to hand a dead namespace's interfaces back.
const RETURN_LIMIT: Duration = Duration::from_secs(5);

/// Where a VF's interface is.
pub(crate) struct Place {
    pub(crate) netns: Netns,
    pub(crate) netlink: Netlink,
    pub(crate) link: Link,
}

/// Sets the hardware address of an interface that is down, and sees that it stays.
///
/// Most drivers take it at once. Some (igbvf) refuse any change once the PF has set the administrative
/// MAC, even to that very MAC, and take it over by themselves when they reset the VF, which setting the
/// interface up and down makes them do. Others are busy for a while with a reset of their own.
pub(crate) async fn set_mac(
    netns: &Netns,
    netlink: &Netlink,
    index: u32,
    mac: MacAddress,
) -> Result<(), Error> {
    if matches!(try_mac(netlink, index, mac).await, Ok(true)) {
        return Ok(());
    }
    netlink.set_up(index, true).await?;
    netlink.set_up(index, false).await?;
    let mut last = Ok(false);
    let again = async || {
        last = try_mac(netlink, index, mac).await;
        Ok(matches!(last, Ok(true)).then_some(()))
    };
    match Events::subscribe_in(netns, &[Group::Link])?.wait_until(MAC_LIMIT, again).await? {
        Some(()) => Ok(()),
        None => Err(last.err().map_or(Error::MacNotTaken { mac, index }, Error::from)),
    }
}

/// Sets the address; whether the interface has it, which it may whatever the driver said of that.
async fn try_mac(netlink: &Netlink, index: u32, mac: MacAddress) -> Result<bool, netlink::Error> {
    let set = netlink.set_mac(index, mac).await;
    let has_it = netlink.link(index).await?.is_some_and(|link| link.mac == Some(mac));
    if has_it { Ok(true) } else { set.map(|()| false) }
}

/// Asks `check` now and after every event of our namespace until it answers, at most for `limit`.
pub(crate) async fn wait_for<T>(
    limit: Duration,
    mut check: impl AsyncFnMut() -> Result<Option<T>, Error>,
) -> Result<Option<T>, Error> {
    let mut failure = None;
    let asked = async || match check().await {
        Ok(answer) => {
            failure = None;
            Ok(answer)
        }
        Err(error) => {
            failure = Some(error);
            Ok(None)
        }
    };
    let answer = Events::subscribe(&[Group::Link])?.wait_until(limit, asked).await?;
    match (answer, failure) {
        (None, Some(error)) => Err(error),
        (answer, _) => Ok(answer),
    }
}

/// Finds the VF's interface wherever it is: here, in `likely` namespaces, in any other; failing that it
/// waits for the kernel to bring it back from a namespace that is being torn down. `None` when the VF
/// has no interface, being bound to no driver or to one for user space.
pub(crate) async fn locate(machine: &Machine, vf: &Vf, likely: Vec<Netns>) -> Result<Option<Place>, Error> {
    let place = |link| -> Result<Place, Error> {
        Ok(Place { netns: Netns::current()?, netlink: machine.netlink.clone(), link })
    };
    let here = async || vf.link_here(machine).await?.map(place).transpose();
    if let Some(link) = vf.shown_here(machine).await? {
        return place(link).map(Some);
    }
    if vf.driver.is_none() || vf.userspace_driver()?.is_some() {
        return Ok(None);
    }
    if let Some(place) = search(machine, vf, likely).await? {
        return Ok(Some(place));
    }
    if let Some(place) = here().await? {
        return Ok(Some(place));
    }
    if let Some(place) = search(machine, vf, netns::discover()?).await? {
        return Ok(Some(place));
    }
    if let Some(place) = wait_for(RETURN_LIMIT, here).await? {
        return Ok(Some(place));
    }
    // The kernel returns interfaces to the first namespace of the machine, which need not be ours.
    match search(machine, vf, netns::discover()?).await? {
        Some(place) => Ok(Some(place)),
        None => Err(Error::Lost { device: vf.address(), driver: vf.driver_name().to_owned() }),
    }
}

async fn search(machine: &Machine, vf: &Vf, namespaces: Vec<Netns>) -> Result<Option<Place>, Error> {
    for netns in namespaces {
        // A namespace may vanish, or not be enterable, while we look for something that is elsewhere.
        let Ok(netlink) = Netlink::connect_in(&netns) else { continue };
        if let Ok(Some(link)) = vf.link_in(machine, &netns, &netlink).await {
            return Ok(Some(Place { netns, netlink, link }));
        }
    }
    Ok(None)
}
