//! The ranges of a network.

use std::net::IpAddr;

use cni::{IpConfig, Object};
use ipnet::IpNet;

use super::{Layers, Source, plain, value};
use crate::error::Error;
use crate::names;
use crate::range::Range;

/// `range` and `ipRanges`.
pub(super) fn sets(
    layers: &Layers,
    network_name: &str,
    fixed: &[IpConfig],
) -> Result<Vec<Vec<Source>>, Error> {
    // A gateway at the top belongs to the ranges of its family.
    let default_gateway = address(layers.text("gateway")?, "gateway")?;
    let fixed: Vec<IpNet> = fixed.iter().map(|ip| IpNet::from(ip.address.addr())).collect();
    let read = |object: &Object| source(object, network_name, default_gateway, &fixed);
    let mut sets = Vec::new();
    if layers.text("range")?.is_some() {
        // The top level's gateway is not that of its range alone, and may be of another family.
        let mut top = layers.values.clone();
        top.remove_fold("gateway");
        sets.push(vec![read(&top)?]);
    }
    for set in layers.get::<Vec<serde_json::Value>>("ipRanges")?.unwrap_or_default() {
        let members = match set {
            serde_json::Value::Array(members) => members,
            member => vec![member],
        };
        let parse = |member: serde_json::Value| {
            let object = Object::parse(member.to_string().as_bytes());
            read(&object.map_err(|e| Error::Conf(e.context("ipRanges")))?)
        };
        let set: Vec<Source> = members.into_iter().map(parse).collect::<Result<_, _>>()?;
        if set.is_empty() {
            return Err(value("ipRanges", "[]", "a range, or a list of ranges with at least one"));
        }
        sets.push(set);
    }
    if sets.is_empty() {
        return Err(value("range", "", "given, or ipRanges: without a range there are no addresses"));
    }
    Ok(sets)
}

fn source(
    object: &Object,
    network_name: &str,
    default_gateway: Option<IpAddr>,
    fixed: &[IpNet],
) -> Result<Source, Error> {
    let text = |key| object.decode::<String>(key).map_err(Error::Conf).map(|t| t.filter(|t| !t.is_empty()));
    let range = text("range")?.unwrap_or_default();
    let (subnet, first, last) = parse_range(&range)
        .ok_or_else(|| value("range", &range, "a CIDR, or FIRST-LAST/PREFIX with both inside it"))?;
    // Bounds that are written in the range itself count more.
    let bound =
        |key: &'static str, written: Option<IpAddr>| Ok::<_, Error>(written.or(address(text(key)?, key)?));
    let (first, last) = (bound("range_start", first)?, bound("range_end", last)?);
    let gateway = address(text("gateway")?, "gateway")?;
    let gateway = gateway.or(default_gateway.filter(|gateway| gateway.is_ipv4() == subnet.addr().is_ipv4()));
    let mut exclude = fixed.to_vec();
    for hole in object.decode::<Vec<String>>("exclude").map_err(Error::Conf)?.unwrap_or_default() {
        let plain = plain(&hole);
        let net = plain.parse::<IpAddr>().map(IpNet::from).ok().or_else(|| cni::parse_cidr(&plain));
        exclude.push(net.ok_or_else(|| value("exclude", &hole, "a CIDR or an address"))?);
    }
    let source = Source {
        pool: names::pool(network_name, subnet),
        range: Range::new(subnet, first, last, &exclude, gateway),
        whole: Range::new(subnet, None, None, &[], gateway),
    };
    if !names::is_object_name(&source.pool) {
        return Err(value("network_name", network_name, "lower-case letters, digits, '-' and '.'"));
    }
    if source.range.capacity() == 0 {
        return Err(value(
            "range",
            &range,
            "one in which range_start, range_end and exclude leave an address",
        ));
    }
    Ok(source)
}

/// The subnet, and the bounds of the spelling `FIRST-LAST/PREFIX`.
fn parse_range(text: &str) -> Option<(IpNet, Option<IpAddr>, Option<IpAddr>)> {
    let Some((first, rest)) = text.split_once('-') else {
        return cni::parse_cidr(&plain(text)).map(|net| (net.trunc(), None, None));
    };
    let (last, prefix) = rest.split_once('/')?;
    let first: IpAddr = plain(first.trim()).parse().ok()?;
    let last: IpAddr = plain(last.trim()).parse().ok()?;
    let subnet = cni::parse_cidr(&format!("{last}/{prefix}"))?.trunc();
    subnet.contains(&first).then_some((subnet, Some(first), Some(last)))
}

fn address(text: Option<String>, key: &'static str) -> Result<Option<IpAddr>, Error> {
    text.map(|text| plain(&text).parse().map_err(|_| value(key, text, "an IP address"))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_range() {
        for (text, subnet, bounds) in [
            ("192.168.2.0/24", "192.168.2.0/24", None),
            ("192.168.2.225/28", "192.168.2.224/28", None),
            ("192.168.002.010/024", "192.168.2.0/24", None),
            ("192.168.2.225-192.168.2.230/28", "192.168.2.224/28", Some(("192.168.2.225", "192.168.2.230"))),
            (
                "192.168.2.225 - 192.168.2.230/28",
                "192.168.2.224/28",
                Some(("192.168.2.225", "192.168.2.230")),
            ),
            ("fd00::10-fd00::ff/64", "fd00::/64", Some(("fd00::10", "fd00::ff"))),
            ("fd00::/64", "fd00::/64", None),
        ] {
            let address = |text: &str| text.parse::<IpAddr>().unwrap();
            let bounds = bounds.map(|(first, last)| (address(first), address(last)));
            let wanted = (subnet.parse().unwrap(), bounds.map(|b| b.0), bounds.map(|b| b.1));
            assert_eq!(parse_range(text), Some(wanted), "{text}");
        }
        for text in [
            "",
            "-",
            "/",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.1-10.0.0.2",
            "10.0.1.1-10.0.0.2/24",
            "10.0.0.1-/24",
            "10.0.0.1/24-10.0.0.2/24",
            "fd00::1-10.0.0.2/24",
            "10.0.0.0/-1",
            "x/24",
            "10.0.0.256/24",
        ] {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }
}
