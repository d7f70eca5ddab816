//! Addresses and routes that IPAM gave, put onto the container's interface.

use std::time::Duration;

use cni::CniResult;
use host::netlink::{Events, Group, Link, Route};
use host::{Netlink, Netns, sysctl};
use tracing::{debug, warn};

use crate::error::Error;

/// How long duplicate detection may take when a gateway has to be reached at once; as the reference
/// plugins wait.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// How long the link may take to become operational before the addresses are announced into it.
const CARRIER_LIMIT: Duration = Duration::from_millis(200);

/// Parameters that are to stand before the interface goes up: the kernel announces addresses when the
/// link comes, and IPv6 addresses are usable while duplicate detection still runs.
pub(crate) fn prepare(netns: &Netns, ifname: &str) -> Result<(), Error> {
    let parameters = [
        (format!("ipv4/conf/{ifname}/arp_notify"), "1"),
        (format!("ipv6/conf/{ifname}/ndisc_notify"), "1"),
        (format!("ipv6/conf/{ifname}/optimistic_dad"), "1"),
    ];
    write(netns, &parameters)
}

/// Parameters that an IPv6 address needs; it is not lost when the interface goes down.
fn enable_ipv6(netns: &Netns, ifname: &str) -> Result<(), Error> {
    let parameters = [
        ("ipv6/conf/lo/disable_ipv6".to_owned(), "0"),
        (format!("ipv6/conf/{ifname}/disable_ipv6"), "0"),
        (format!("ipv6/conf/{ifname}/keep_addr_on_down"), "1"),
    ];
    write(netns, &parameters)
}

fn write(netns: &Netns, parameters: &[(String, &str)]) -> Result<(), Error> {
    for ((name, _), result) in parameters.iter().zip(sysctl::write(netns, parameters)?) {
        // Kernels are built without IPv6 or optimistic detection; the address itself will tell.
        if let Err(error) = result {
            debug!(parameter = %name, %error, "kernel parameter is not set");
        }
    }
    Ok(())
}

/// Puts the addresses and routes of `result` onto `link`, and tells the neighbours.
pub(crate) async fn configure(
    netns: &Netns,
    netlink: &Netlink,
    link: &Link,
    result: &CniResult,
) -> Result<(), Error> {
    if result.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
        enable_ipv6(netns, &link.name)?;
    }
    for ip in &result.ips {
        match netlink.add_address(link.index, ip.address).await {
            Err(error) if error.is_exists() => {}
            added => added?,
        }
    }
    if !carrier(netns, netlink, link).await? {
        debug!(interface = %link.name, "no carrier yet; neighbours may keep an earlier holder's MAC for a while");
    } else if result.ips.iter().any(|ip| ip.gateway.is_some_and(|gateway| gateway.is_ipv6())) {
        settle(netns, netlink, link, result).await?;
    }
    for route in routes(result, link.index) {
        match netlink.append_route(&route).await {
            Err(error) if error.is_exists() => {}
            added => added?,
        }
    }
    announce(netns, link, result);
    Ok(())
}

/// Waits until the interface is operational, which most are as soon as they are up.
async fn carrier(netns: &Netns, netlink: &Netlink, link: &Link) -> Result<bool, Error> {
    if link.running {
        return Ok(true);
    }
    let running = async || Ok(netlink.link(link.index).await?.filter(|link| link.running));
    let mut events = Events::subscribe_in(netns, &[Group::Link])?;
    Ok(events.wait_until(CARRIER_LIMIT, running).await?.is_some())
}

/// Waits until none of the addresses is tentative. Where the kernel grants optimistic detection, none is
/// from the start.
async fn settle(netns: &Netns, netlink: &Netlink, link: &Link, result: &CniResult) -> Result<(), Error> {
    let settled = async || {
        let mut addresses = netlink.addresses(link.index).await?;
        addresses.retain(|address| result.ips.iter().any(|ip| ip.address == address.net));
        Ok((!addresses.iter().any(|address| address.tentative)).then_some(addresses))
    };
    let mut events = Events::subscribe_in(netns, &[Group::Ipv6Address])?;
    match events.wait_until(SETTLE_LIMIT, settled).await? {
        Some(addresses) => match addresses.iter().find(|address| address.duplicate) {
            Some(duplicate) => Err(Error::Duplicate { address: duplicate.net, name: link.name.clone() }),
            None => Ok(()),
        },
        None => {
            warn!(interface = %link.name, "duplicate address detection is still running; going on");
            Ok(())
        }
    }
}

/// The routes of a result as the kernel takes them: one without a next hop goes to the gateway of its
/// family, if the addresses have one.
fn routes(result: &CniResult, index: u32) -> Vec<Route> {
    let gateway_of = |v4: bool| {
        let mut gateways = result.ips.iter().rev().filter_map(|ip| ip.gateway);
        gateways.find(|gateway| gateway.is_ipv4() == v4)
    };
    let number = |value: u32| Some(value).filter(|value| *value != 0);
    let route = |route: &cni::Route| {
        let mut wanted = Route::to(route.dst);
        wanted.gateway = route.gw.or_else(|| gateway_of(route.dst.addr().is_ipv4()));
        wanted.interface = Some(index);
        wanted.priority = number(route.priority);
        wanted.table = route.table.unwrap_or(wanted.table);
        wanted.scope = route.scope.and_then(|scope| u8::try_from(scope).ok()).unwrap_or(wanted.scope);
        wanted.mtu = number(route.mtu);
        wanted.advmss = number(route.advmss);
        wanted
    };
    result.routes.iter().map(route).collect()
}

/// Tells the neighbours, out of the container's interface. A neighbour that does not hear it learns
/// the address when it needs it, so failing here is no reason to fail ADD.
fn announce(netns: &Netns, link: &Link, result: &CniResult) {
    let Some(mac) = link.mac else { return };
    for ip in &result.ips {
        if let Err(error) = host::announce(netns, link.index, mac, ip.address.addr()) {
            debug!(%error, "address is not announced");
        }
    }
}

#[cfg(test)]
mod tests {
    use cni::IpConfig;

    use super::*;

    #[test]
    fn routes_take_the_gateway_of_their_family() {
        let ip = |address: &str, gateway: Option<&str>| IpConfig {
            interface: None,
            address: address.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        };
        let plain = |dst: &str, gw: Option<&str>| {
            cni::Route::new(dst.parse().unwrap(), gw.map(|gw| gw.parse().unwrap()))
        };
        let special = cni::Route {
            mtu: 1400,
            advmss: 1300,
            priority: 7,
            table: Some(100),
            scope: Some(253),
            ..plain("198.51.100.0/24", Some("192.0.2.7"))
        };
        let result = CniResult {
            ips: vec![ip("192.0.2.2/24", Some("192.0.2.1")), ip("2001:db8::2/64", None)],
            routes: vec![plain("0.0.0.0/0", None), plain("::/0", None), special],
            ..CniResult::default()
        };
        let base = |dst: &str, gateway: Option<&str>| Route {
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            interface: Some(3),
            ..Route::to(dst.parse().unwrap())
        };
        let expected = [
            base("0.0.0.0/0", Some("192.0.2.1")),
            base("::/0", None),
            Route {
                mtu: Some(1400),
                advmss: Some(1300),
                priority: Some(7),
                table: 100,
                scope: 253,
                ..base("198.51.100.0/24", Some("192.0.2.7"))
            },
        ];
        assert_eq!(routes(&result, 3), expected);
    }
}
