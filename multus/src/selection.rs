//! What a pod asks for: the grammar of `k8s.v1.cni.cncf.io/networks` and `v1.multus-cni.io/default-network`.
//!
//! Source: Kubernetes Network Custom Resource Definition De-facto Standard v1.3, section 4, and what the
//! reference implementation accepts beyond it. Anything a user can write is either a selection or an error
//! that quotes the offending part; nothing is dropped silently.

use std::fmt;
use std::net::IpAddr;

use cni::Object;
use serde::{Deserialize, Serialize};

/// One network that a pod selects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Name of the NAD.
    pub name: String,
    /// Namespace of the NAD; `None` means that of the pod (or of multus, for the default network).
    pub namespace: Option<String>,
    /// Name of the interface in the pod; `None` lets multus choose `net<i>`.
    pub interface: Option<String>,
    /// Addresses asked for, with or without prefix length, as written.
    pub ips: Vec<String>,
    /// Link address asked for, as written: 6, 8 or 20 bytes.
    pub mac: Option<String>,
    /// InfiniBand GUID asked for, as written.
    pub infiniband_guid: Option<String>,
    /// Ports to map, for a plugin with the `portMappings` capability.
    pub port_mappings: Vec<PortMapping>,
    /// Rate limits, for a plugin with the `bandwidth` capability.
    pub bandwidth: Option<Bandwidth>,
    /// Gateways that the pod's default routes shall use; `Some` and empty is a request for none.
    pub default_route: Option<Vec<IpAddr>>,
    /// Merged into `args.cni` of the delegate's configuration.
    pub cni_args: Option<Object>,
    /// Device to use when none comes from the NAD's `resourceName`.
    pub device_id: Option<String>,
    /// Name of an IPAMClaim in the pod's namespace, consumed by delegates.
    pub ipam_claim_reference: Option<String>,
}

/// One entry of `portMappings`, as kubelet writes it too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortMapping {
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`; empty is the plugin's default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// Address of the host to listen on; empty is all of them.
    #[serde(rename = "hostIP", skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

/// The `bandwidth` capability: rates in bits per second, bursts in bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Rate towards the pod.
    pub ingress_rate: u64,
    /// Burst towards the pod.
    pub ingress_burst: u64,
    /// Rate from the pod.
    pub egress_rate: u64,
    /// Burst from the pod.
    pub egress_burst: u64,
}

impl fmt::Display for Selection {
    /// `[namespace/]name[@interface]`, the short form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)?;
        match &self.interface {
            Some(interface) => write!(f, "@{interface}"),
            None => Ok(()),
        }
    }
}

/// Why an annotation cannot be understood. The wording starts as the reference implementation's does, because
/// users search for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// The JSON form is not a list of objects.
    #[error(
        "failed to parse pod Network Attachment Selection Annotation JSON format: {0}; write a list of objects such as [{{\"name\": \"net-a\"}}]"
    )]
    Json(String),
    /// An item of the short form has two slashes.
    #[error("Invalid network object (failed at '/'): {0:?} is not [namespace/]name[@interface]")]
    Slash(String),
    /// An item of the short form has two `@`.
    #[error("Invalid network object (failed at '@'): {0:?} is not [namespace/]name[@interface]")]
    At(String),
    /// A name or namespace has characters that the short form does not take.
    #[error(
        "failed to parse: the comma-delimited format takes names of lower-case letters, digits and '-'; mismatch @ {0:?}; names with other characters need the JSON format"
    )]
    Name(String),
    /// An element names no network.
    #[error(
        "element {0} of the networks annotation names no network; remove the stray comma or give it a name"
    )]
    NoName(usize),
    /// An interface name that the kernel would refuse.
    #[error(
        "invalid interface name {0:?}: it must be less than 15 chars long or just so, without white space, '/' or ':'"
    )]
    Interface(String),
    /// A link address that is none.
    #[error("failed to mac: {mac:?} of network {network} is not a link address of 6, 8 or 20 bytes")]
    Mac {
        /// What was written.
        mac: String,
        /// The element's network.
        network: String,
    },
    /// A GUID that is none.
    #[error(
        "failed to validate infiniband GUID: {guid:?} of network {network} is not 8 bytes in hexadecimal"
    )]
    Guid {
        /// What was written.
        guid: String,
        /// The element's network.
        network: String,
    },
    /// An address with a prefix that is not CIDR.
    #[error("failed to parse CIDR {ip:?} of network {network}")]
    Cidr {
        /// What was written.
        ip: String,
        /// The element's network.
        network: String,
    },
    /// An address that is none.
    #[error("failed to parse IP address {ip:?} of network {network}")]
    Ip {
        /// What was written.
        ip: String,
        /// The element's network.
        network: String,
    },
    /// A port mapping that nobody can make.
    #[error("portMappings of network {network}: {what}")]
    PortMapping {
        /// What is wrong, and what is right.
        what: String,
        /// The element's network.
        network: String,
    },
    /// The default network is not exactly one.
    #[error("the annotation v1.multus-cni.io/default-network names {0} networks; it takes exactly one")]
    NotOne(usize),
}

/// Parses the annotation `k8s.v1.cni.cncf.io/networks`. An empty one selects nothing.
///
/// # Errors
/// Any element that cannot be understood fails the whole: a pod must not start with a network less than it
/// asked for.
pub fn parse(annotation: &str) -> Result<Vec<Selection>, SelectionError> {
    if annotation.trim().is_empty() {
        return Ok(Vec::new());
    }
    let selections = if annotation.contains(['[', '{', '"']) {
        parse_json(annotation)?
    } else {
        annotation.split(',').enumerate().map(|(i, item)| parse_item(i, item)).collect::<Result<_, _>>()?
    };
    for selection in &selections {
        validate(selection)?;
    }
    Ok(selections)
}

/// Parses the annotation `v1.multus-cni.io/default-network`, which names exactly one network.
///
/// # Errors
/// As [`parse`], and where there is not exactly one element.
pub fn parse_default(annotation: &str) -> Result<Selection, SelectionError> {
    let mut selections = parse(annotation)?;
    match (selections.pop(), selections.len()) {
        (Some(selection), 0) => Ok(selection),
        (last, rest) => Err(SelectionError::NotOne(rest + usize::from(last.is_some()))),
    }
}

/// `[namespace/]name[@interface]`
fn parse_item(index: usize, item: &str) -> Result<Selection, SelectionError> {
    let (namespace, rest) = match item.split_once('/') {
        Some((_, rest)) if rest.contains('/') => return Err(SelectionError::Slash(item.trim().to_owned())),
        Some((namespace, rest)) => (Some(namespace.trim()), rest),
        None => (None, item),
    };
    let (name, interface) = match rest.split_once('@') {
        Some((_, rest)) if rest.contains('@') => return Err(SelectionError::At(item.trim().to_owned())),
        Some((name, interface)) => (name.trim(), Some(interface.trim())),
        None => (rest.trim(), None),
    };
    for part in [namespace.unwrap_or_default(), name] {
        if !part.is_empty() && !is_label(part) {
            return Err(SelectionError::Name(part.to_owned()));
        }
    }
    if name.is_empty() {
        return Err(SelectionError::NoName(index));
    }
    let some = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
    Ok(Selection {
        name: name.to_owned(),
        namespace: some(namespace),
        interface: some(interface),
        ..Selection::default()
    })
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
fn is_label(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && text.chars().all(|c| alphanumeric(c) || c == '-')
}

fn parse_json(annotation: &str) -> Result<Vec<Selection>, SelectionError> {
    let elements: Vec<Option<Object>> =
        serde_json::from_str(annotation).map_err(|error| SelectionError::Json(error.to_string()))?;
    let mut selections = Vec::with_capacity(elements.len());
    for (index, element) in elements.iter().enumerate() {
        let element = element.as_ref().ok_or(SelectionError::NoName(index))?;
        selections.push(
            parse_element(index, element)
                .map_err(|error| SelectionError::Json(format!("element {index}: {}", error.msg)))??,
        );
    }
    Ok(selections)
}

/// The outer result is a value of the wrong type, the inner one a value that is not allowed.
fn parse_element(index: usize, element: &Object) -> Result<Result<Selection, SelectionError>, cni::Error> {
    let text = |key: &str| Ok::<_, cni::Error>(element.decode::<String>(key)?.filter(|t| !t.is_empty()));
    let Some(name) = text("name")? else { return Ok(Err(SelectionError::NoName(index))) };
    let mut port_mappings = Vec::new();
    for mapping in element.decode::<Vec<Object>>("portMappings")?.unwrap_or_default() {
        port_mappings.push(PortMapping {
            host_port: mapping.decode("hostPort")?.unwrap_or_default(),
            container_port: mapping.decode("containerPort")?.unwrap_or_default(),
            protocol: mapping.decode("protocol")?.unwrap_or_default(),
            host_ip: mapping.decode("hostIP")?.unwrap_or_default(),
        });
    }
    let bandwidth = match element.decode::<Object>("bandwidth")? {
        None => None,
        Some(limits) => Some(Bandwidth {
            ingress_rate: limits.decode("ingressRate")?.unwrap_or_default(),
            ingress_burst: limits.decode("ingressBurst")?.unwrap_or_default(),
            egress_rate: limits.decode("egressRate")?.unwrap_or_default(),
            egress_burst: limits.decode("egressBurst")?.unwrap_or_default(),
        }),
    };
    Ok(Ok(Selection {
        name,
        namespace: text("namespace")?,
        // `interfaceRequest` is the older name of the key.
        interface: text("interface")?.map_or_else(|| text("interfaceRequest"), |name| Ok(Some(name)))?,
        ips: element.decode("ips")?.unwrap_or_default(),
        mac: text("mac")?,
        infiniband_guid: text("infiniband-guid")?,
        port_mappings,
        bandwidth,
        default_route: element.decode::<Vec<IpAddr>>("default-route")?.as_deref().map(canonical),
        cni_args: element.decode("cni-args")?,
        device_id: text("deviceID")?,
        ipam_claim_reference: text("ipam-claim-reference")?,
    }))
}

/// An IPv4 address in the clothes of an IPv6 one is an IPv4 address, as for Go.
fn canonical(addresses: &[IpAddr]) -> Vec<IpAddr> {
    addresses.iter().map(IpAddr::to_canonical).collect()
}

fn validate(selection: &Selection) -> Result<(), SelectionError> {
    if let Some(interface) = &selection.interface
        && cni::names::check_interface_name(interface).is_err()
    {
        return Err(SelectionError::Interface(interface.clone()));
    }
    let network = || selection.to_string();
    for ip in &selection.ips {
        if ip.contains('/') {
            if cni::parse_cidr(ip).is_none() {
                return Err(SelectionError::Cidr { ip: ip.clone(), network: network() });
            }
        } else if ip.parse::<IpAddr>().is_err() {
            return Err(SelectionError::Ip { ip: ip.clone(), network: network() });
        }
    }
    if let Some(mac) = &selection.mac
        && !matches!(link_address_length(mac), Some(6 | 8 | 20))
    {
        return Err(SelectionError::Mac { mac: mac.clone(), network: network() });
    }
    if let Some(guid) = &selection.infiniband_guid
        && link_address_length(guid) != Some(8)
    {
        return Err(SelectionError::Guid { guid: guid.clone(), network: network() });
    }
    if let Some(what) = selection.port_mappings.iter().find_map(PortMapping::fault) {
        return Err(SelectionError::PortMapping { what, network: network() });
    }
    Ok(())
}

impl PortMapping {
    /// What is wrong with it. Left to the plugin, it would be refused there or, worse, not be made.
    fn fault(&self) -> Option<String> {
        const PROTOCOLS: [&str; 4] = ["", "tcp", "udp", "sctp"];
        let Self { host_port, container_port, protocol, host_ip } = self;
        if *host_port == 0 || *container_port == 0 {
            return Some("hostPort and containerPort must be from 1 to 65535".to_owned());
        }
        if !PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(protocol)) {
            return Some(format!("protocol is {protocol:?}; it must be tcp, udp or sctp"));
        }
        (!host_ip.is_empty() && host_ip.parse::<IpAddr>().is_err())
            .then(|| format!("hostIP is {host_ip:?}; it must be an IP address of the node"))
    }
}

/// How many bytes a link address has, in one of the notations of the field: pairs of digits joined by `:` or
/// `-`, or groups of four joined by `.`.
fn link_address_length(text: &str) -> Option<usize> {
    let (separator, digits) = match text {
        _ if text.contains(':') => (':', 2),
        _ if text.contains('-') => ('-', 2),
        _ => ('.', 4),
    };
    let mut length = 0;
    for group in text.split(separator) {
        if group.len() != digits || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        length += digits / 2;
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(selections: &[Selection]) -> Vec<String> {
        selections.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn short_form() {
        for (annotation, expected) in [
            ("", vec![]),
            ("  ", vec![]),
            ("a", vec!["a"]),
            ("a,b", vec!["a", "b"]),
            (" ns / a @ net7 , b ", vec!["ns/a@net7", "b"]),
            ("a,a", vec!["a", "a"]),
            ("a@Eth_0", vec!["a@Eth_0"]),
            ("a@", vec!["a"]),
            ("/a", vec!["a"]),
        ] {
            assert_eq!(names(&parse(annotation).unwrap()), expected, "{annotation:?}");
        }
    }

    #[test]
    fn short_form_errors_quote_the_offending_part() {
        for (annotation, part) in [
            ("a/b/c", "(failed at '/'): \"a/b/c\""),
            ("a@b@c", "(failed at '@'): \"a@b@c\""),
            ("a,,b", "element 1"),
            ("a,", "element 1"),
            ("ns/", "element 0"),
            ("A", "mismatch @ \"A\""),
            ("a.b", "mismatch @ \"a.b\""),
            ("-a", "mismatch @ \"-a\""),
            ("a@0123456789abcdef", "less than 15 chars"),
            ("a@b c", "\"b c\""),
        ] {
            let text = parse(annotation).unwrap_err().to_string();
            assert!(text.contains(part), "{annotation:?}: {text}");
        }
    }

    #[test]
    fn json_form_takes_every_field() {
        let annotation = r#"[
            {"Name": "net.a", "namespace": "ns", "interface": "sriov0", "ips": ["10.0.0.1/24", "fd00::1"],
             "mac": "C2:B0:57:49:47:F1", "infiniband-guid": "c2:11:22:33:44:55:66:77",
             "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "1.2.3.4"}],
             "bandwidth": {"ingressRate": 2048, "ingressBurst": 1600, "egressRate": 4096, "EgressBurst": 1600},
             "default-route": ["10.0.0.254"], "cni-args": {"big": 9007199254740993}, "deviceID": "0000:3b:10.0",
             "ipam-claim-reference": "claim", "unknown": true},
            {"name": "b", "namespace": null, "interfaceRequest": "net9", "ips": null, "default-route": []}
        ]"#;
        let selections = parse(annotation).unwrap();
        let [a, b] = selections.as_slice() else { panic!("{selections:?}") };
        assert_eq!(a.to_string(), "ns/net.a@sriov0");
        assert_eq!(a.ips, ["10.0.0.1/24", "fd00::1"]);
        assert_eq!(a.mac.as_deref(), Some("C2:B0:57:49:47:F1"));
        assert_eq!(a.port_mappings.first().map(|m| (m.host_port, m.container_port)), Some((8080, 80)));
        assert_eq!(a.bandwidth.map(|b| (b.ingress_rate, b.egress_burst)), Some((2048, 1600)));
        assert_eq!(a.default_route, Some(vec!["10.0.0.254".parse().unwrap()]));
        assert_eq!(a.cni_args.as_ref().and_then(|args| args.get("big")), Some("9007199254740993"));
        assert_eq!(a.device_id.as_deref(), Some("0000:3b:10.0"));
        assert_eq!(a.ipam_claim_reference.as_deref(), Some("claim"));
        assert_eq!(b.to_string(), "b@net9");
        assert_eq!(b.default_route, Some(vec![]));
    }

    #[test]
    fn a_mapped_gateway_is_one_of_ipv4() {
        let selections =
            parse(r#"[{"name": "a", "default-route": ["::ffff:10.0.0.1", "fd00::1"]}]"#).unwrap();
        assert_eq!(
            selections[0].default_route,
            Some(vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()])
        );
    }

    #[test]
    fn json_form_errors_name_the_element_and_the_value() {
        for (annotation, part) in [
            ("[null]", "element 0"),
            (r#"{"name": "a"}"#, "JSON format"),
            (r#"[{"name": "a"}"#, "JSON format"),
            (r#"[{"name": "a"}, {}]"#, "element 1"),
            (r#"[{"name": 1}]"#, "\"name\""),
            (r#"[{"name": "a", "ips": "10.0.0.1"}]"#, "\"ips\""),
            (
                r#"[{"name": "a", "ips": ["10.0.0.1/33"]}]"#,
                "failed to parse CIDR \"10.0.0.1/33\" of network a",
            ),
            (r#"[{"name": "a", "ips": ["010.0.0.1/8"]}]"#, "failed to parse CIDR \"010.0.0.1/8\""),
            (r#"[{"name": "a", "ips": ["10.0.0"]}]"#, "failed to parse IP address \"10.0.0\" of network a"),
            (r#"[{"name": "a", "mac": "c2:b0"}]"#, "failed to mac"),
            (r#"[{"name": "a", "infiniband-guid": "c2:b0:57:49:47:f1"}]"#, "infiniband GUID"),
            (r#"[{"name": "a", "interface": "a/b"}]"#, "\"a/b\""),
            (r#"[{"name": "a", "default-route": ["10.0.0"]}]"#, "\"default-route\""),
            (r#"[{"name": "a", "cni-args": []}]"#, "\"cni-args\""),
            (r#"[{"name": "a", "portMappings": [{"hostPort": 70000}]}]"#, "\"hostPort\""),
            (
                r#"[{"name": "a", "portMappings": [{"hostPort": 80}]}]"#,
                "portMappings of network a: hostPort and",
            ),
            (
                r#"[{"name": "a", "portMappings": [{"hostPort": 1, "containerPort": 2, "protocol": "icmp"}]}]"#,
                "protocol is \"icmp\"",
            ),
            (
                r#"[{"name": "a", "portMappings": [{"hostPort": 1, "containerPort": 2, "hostIP": "eth0"}]}]"#,
                "hostIP is \"eth0\"",
            ),
        ] {
            let text = parse(annotation).unwrap_err().to_string();
            assert!(text.contains(part), "{annotation}: {text}");
        }
    }

    #[test]
    fn the_default_network_is_exactly_one() {
        assert_eq!(parse_default("ns/a").unwrap().to_string(), "ns/a");
        for (annotation, count) in [("", 0), ("[]", 0), ("a,b", 2)] {
            assert_eq!(parse_default(annotation), Err(SelectionError::NotOne(count)), "{annotation}");
        }
    }

    proptest! {
        #[test]
        fn no_annotation_panics(annotation in "\\PC*") {
            let _ = parse(&annotation);
        }

        #[test]
        fn no_json_panics(annotation in r#"\[(\{("(name|ips|mac|cni-args|bandwidth)":(null|1|"a"|\[\]|\{\})),?\}|null|,){0,3}\]"#) {
            let _ = parse(&annotation);
        }

        #[test]
        fn the_short_form_survives_a_round_trip(
            items in proptest::collection::vec(("([a-z0-9]{1,9})?", "[a-z0-9]([-a-z0-9]{0,9}[a-z0-9])?", "([A-Za-z0-9_]{1,15})?"), 1..5)
        ) {
            let text = items.iter().map(|(namespace, name, interface)| {
                let namespace = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
                let interface = if interface.is_empty() { String::new() } else { format!("@{interface}") };
                format!("{namespace}{name}{interface}")
            }).collect::<Vec<_>>().join(",");
            prop_assert_eq!(names(&parse(&text).unwrap()).join(","), text);
        }
    }
}
