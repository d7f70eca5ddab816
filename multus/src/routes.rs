//! `default-route`: which attachment carries the pod's default routes.
//!
//! For each of IPv4 and IPv6 one attachment may be asked to. Its gateway then replaces the default routes of that
//! family that the plugins made; the other family stays as it is. An empty list means that the attachment
//! shall have no default route of its own.

use std::net::IpAddr;

use cni::CniResult;
use host::Netns;
use host::netlink::{self, Netlink};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::Error;
use crate::delegate::Delegate;

/// Where default routes shall go, by the delegates' positions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DefaultRoutes {
    /// At most one for each family.
    gateways: Vec<(usize, IpAddr)>,
    /// Delegates without a default route of their own.
    bare: Vec<usize>,
}

impl DefaultRoutes {
    /// What the delegates ask for.
    ///
    /// # Errors
    /// [`Error::Ecmp`] when there are two gateways of one family.
    pub fn wanted(delegates: &[Delegate]) -> Result<Self, Error> {
        let mut wanted = DefaultRoutes::default();
        for (index, delegate) in delegates.iter().enumerate() {
            let Some(gateways) = &delegate.default_route else { continue };
            if gateways.is_empty() {
                wanted.bare.push(index);
            }
            for gateway in gateways {
                if let Some((_, first)) = wanted.gateways.iter().find(|(_, g)| same_family(*g, *gateway)) {
                    return Err(Error::Ecmp { first: *first, second: *gateway });
                }
                wanted.gateways.push((index, *gateway));
            }
        }
        Ok(wanted)
    }

    /// Whether nothing is asked for, so that the plugins' routes stay.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gateways.is_empty() && self.bare.is_empty()
    }

    /// Whether the default route `destination` that the delegate's plugins made has to go.
    fn displaces(&self, delegate: usize, destination: &IpNet) -> bool {
        self.bare.contains(&delegate)
            || self.gateways.iter().any(|(_, g)| same_family(*g, destination.addr()))
    }

    /// The results as they are once the routes are changed.
    pub fn amend(&self, results: &mut [CniResult]) {
        for (index, result) in results.iter_mut().enumerate() {
            result.routes.retain(|route| !(route.is_default() && self.displaces(index, &route.dst)));
            for (_, gateway) in self.gateways.iter().filter(|(delegate, _)| *delegate == index) {
                result.routes.push(cni::Route::new(everything(*gateway), Some(*gateway)));
            }
        }
    }

    /// Changes the routes of the container, all or none.
    ///
    /// # Errors
    /// [`Error::Netlink`] with the kernel's reason, for example that the gateway cannot be reached; the default routes are
    /// then as before.
    pub async fn apply(&self, netns: &Netns, delegates: &[Delegate]) -> Result<(), Error> {
        let failed = |context: &str, source| Error::Netlink { context: context.to_owned(), source };
        let netlink = Netlink::connect_in(netns).map_err(|e| failed("default-route", e))?;
        let links = netlink.links().await.map_err(|e| failed("default-route", e))?;
        let index_of = |delegate: &Delegate| {
            links.iter().find(|link| link.name == delegate.attachment.ifname).map(|link| link.index)
        };
        let indices: Vec<Option<u32>> = delegates.iter().map(index_of).collect();
        let before = netlink.default_routes().await.map_err(|e| failed("default-route", e))?;
        let changed = self.change(&netlink, delegates, &indices, &before).await;
        if changed.is_err()
            && let Err(error) = restore(&netlink, &before).await
        {
            tracing::warn!("the default routes are not as before: {error}");
        }
        changed
    }

    async fn change(
        &self,
        netlink: &Netlink,
        delegates: &[Delegate],
        indices: &[Option<u32>],
        before: &[netlink::Route],
    ) -> Result<(), Error> {
        let failed = |context: &str, source| Error::Netlink { context: context.to_owned(), source };
        for route in before {
            let owner = indices.iter().position(|index| index.is_some_and(|index| route.uses(index)));
            if owner.is_some_and(|delegate| self.displaces(delegate, &route.destination)) {
                netlink.remove_route(route).await.map_err(|e| failed("error removing default route", e))?;
            }
        }
        for (delegate, gateway) in &self.gateways {
            let route = netlink::Route {
                gateway: Some(*gateway),
                interface: indices.get(*delegate).copied().flatten(),
                ..netlink::Route::to(everything(*gateway))
            };
            let ifname = delegates.get(*delegate).map_or("", |d| d.attachment.ifname.as_str());
            let context = format!(
                "error setting default gateway: {gateway} on {ifname} (it must lie in a subnet of {ifname}; see \
                 \"default-route\" of the networks annotation)"
            );
            netlink.replace_route(&route).await.map_err(|e| failed(&context, e))?;
        }
        Ok(())
    }
}

/// Makes the default routes those of `before` again.
async fn restore(netlink: &Netlink, before: &[netlink::Route]) -> Result<(), netlink::Error> {
    let now = netlink.default_routes().await?;
    for route in now.iter().filter(|route| !before.contains(route)) {
        netlink.remove_route(route).await?;
    }
    for route in before.iter().filter(|route| !now.contains(route)) {
        if route.next_hops.is_empty() {
            netlink.append_route(route).await?;
        }
        for (gateway, interface) in &route.next_hops {
            let hop = netlink::Route {
                gateway: *gateway,
                interface: Some(*interface),
                next_hops: Vec::new(),
                ..route.clone()
            };
            netlink.append_route(&hop).await?;
        }
    }
    Ok(())
}

fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

/// The default destination of the family of `address`.
fn everything(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    }
}

#[cfg(test)]
mod tests {
    use cni::{Attachment, NetworkList, Object, Version};

    use super::*;

    fn delegates(wanted: &[Option<&[&str]>]) -> Vec<Delegate> {
        let each = |(index, gateways): (usize, &Option<&[&str]>)| Delegate {
            label: format!("n{index}"),
            is_primary: index == 0,
            list: NetworkList::parse(br#"{"name":"n","type":"x"}"#).unwrap(),
            attachment: Attachment {
                container_id: "c".into(),
                netns: None,
                ifname: format!("e{index}"),
                args: Vec::new(),
                capabilities: Object::new(),
            },
            resource: None,
            device_id: None,
            default_route: gateways.map(|list| list.iter().map(|g| g.parse().unwrap()).collect()),
        };
        wanted.iter().enumerate().map(each).collect()
    }

    fn results() -> Vec<CniResult> {
        let text = br#"{"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"},{"dst":"::/0"},{"dst":"0.0.0.0/8"}]}"#;
        vec![CniResult::parse(text, Version::LATEST).unwrap(); 3]
    }

    fn shown(result: &CniResult) -> String {
        let each = |r: &cni::Route| format!("{}>{}", r.dst, r.gw.map_or(String::new(), |g| g.to_string()));
        result.routes.iter().map(each).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn results_tell_the_routes_as_they_become() {
        let all = "0.0.0.0/0>10.0.0.1 ::/0> 0.0.0.0/8>";
        let no_v4 = "::/0> 0.0.0.0/8>";
        type Case<'a> = (&'a [Option<&'a [&'a str]>], [&'a str; 3]);
        let table: [Case<'_>; 5] = [
            (&[None, None, None], [all, all, all]),
            (&[None, Some(&["10.9.0.1"]), None], [no_v4, "::/0> 0.0.0.0/8> 0.0.0.0/0>10.9.0.1", no_v4]),
            (
                &[None, Some(&["10.9.0.1"]), Some(&["fd00::1"])],
                ["0.0.0.0/8>", "0.0.0.0/8> 0.0.0.0/0>10.9.0.1", "0.0.0.0/8> ::/0>fd00::1"],
            ),
            (&[None, Some(&[]), None], [all, "0.0.0.0/8>", all]),
            (
                &[None, Some(&[]), Some(&["10.9.0.1"])],
                [no_v4, "0.0.0.0/8>", "::/0> 0.0.0.0/8> 0.0.0.0/0>10.9.0.1"],
            ),
        ];
        for (wanted, want) in table {
            let wanted = DefaultRoutes::wanted(&delegates(wanted)).unwrap();
            let mut results = results();
            wanted.amend(&mut results);
            assert_eq!(results.iter().map(shown).collect::<Vec<_>>(), want, "{wanted:?}");
        }
    }

    #[test]
    fn one_gateway_for_each_family() {
        for wanted in [
            [None, Some(&["10.0.0.1", "10.0.0.2"][..])],
            [Some(&["fd00::1"][..]), Some(&["10.0.0.1", "fd00::2"])],
        ] {
            let error = DefaultRoutes::wanted(&delegates(&wanted)).unwrap_err().to_string();
            assert!(error.starts_with("multus does not support ECMP for default-route"), "{error}");
        }
        assert!(DefaultRoutes::wanted(&delegates(&[None, None])).unwrap().is_empty());
    }
}
