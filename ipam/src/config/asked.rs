//! What the pod asks for: addresses by name, and a claim.

use std::net::IpAddr;

use cni::{Args, IpConfig, Object, Request};
use ipnet::IpNet;

use super::{plain, value};
use crate::error::Error;

/// `IP` and `GATEWAY` of CNI_ARGS.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    /// Addresses without a prefix length.
    pub(super) requested: Vec<IpAddr>,
    /// Addresses with one.
    pub(super) extra: Vec<IpConfig>,
    /// Each is that of the addresses in whose subnet it is.
    pub(super) gateways: Vec<IpAddr>,
}

impl Arguments {
    pub(super) fn read(args: &Args) -> Result<Self, Error> {
        let mut read = Self::default();
        for text in items(args, "GATEWAY") {
            let gateway = plain(text).parse();
            read.gateways.push(gateway.map_err(|_| value("GATEWAY", text, "an IP address"))?);
        }
        for text in items(args, "IP") {
            let plain = plain(text);
            match (cni::parse_cidr(&plain), plain.parse()) {
                (Some(address), _) => {
                    read.extra.push(IpConfig { interface: None, address, gateway: None });
                }
                (None, Ok(address)) => read.requested.push(address),
                (None, Err(_)) => {
                    return Err(value("IP", text, "an address, with or without a prefix length"));
                }
            }
        }
        Ok(read)
    }
}

/// The gateway that lies in the subnet.
pub(super) fn gateway_in(gateways: &[IpAddr], subnet: IpNet) -> Option<IpAddr> {
    gateways.iter().copied().find(|gateway| subnet.contains(gateway))
}

fn items<'a>(args: &'a Args, key: &str) -> impl Iterator<Item = &'a str> {
    args.get(key).unwrap_or_default().split(',').map(str::trim).filter(|text| !text.is_empty())
}

/// `runtimeConfig.ips` and `args.cni.ips`.
pub(super) fn addresses(request: &Request) -> Result<Vec<IpAddr>, Error> {
    let of = |section: Option<Object>| {
        let ips = section.map(|section| section.decode::<Vec<String>>("ips")).transpose();
        ips.map(|ips| ips.flatten().unwrap_or_default()).map_err(Error::Conf)
    };
    let mut texts = of(Some(request.runtime_config().map_err(Error::Conf)?))?;
    texts.extend(of(arguments_of_cni(request)?)?);
    let parse = |text: String| {
        let plain = plain(&text);
        let address = plain.parse().ok().or_else(|| cni::parse_cidr(&plain).map(|net| net.addr()));
        address.ok_or_else(|| value("ips", text, "addresses, with or without a prefix length"))
    };
    texts.into_iter().map(parse).collect()
}

/// `ipam-claim-reference` of `args.cni`: the claim that the pod refers to, by name.
pub(super) fn claim(request: &Request) -> Result<Option<String>, Error> {
    let args = arguments_of_cni(request)?;
    let claim = args.map(|args| args.decode::<String>("ipam-claim-reference")).transpose();
    Ok(claim.map_err(Error::Conf)?.flatten().filter(|claim| !claim.is_empty()))
}

fn arguments_of_cni(request: &Request) -> Result<Option<Object>, Error> {
    let args: Option<Object> = request.config.decode("args").map_err(Error::Conf)?;
    Ok(args.map(|args| args.decode::<Object>("cni")).transpose().map_err(Error::Conf)?.flatten())
}
