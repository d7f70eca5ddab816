//! What a pod got: the annotation `k8s.v1.cni.cncf.io/network-status`.
//!
//! Source: Kubernetes Network Custom Resource Definition De-facto Standard v1.3, section 5, with the
//! reference implementation's field order, omissions and white space, which tools and tests compare.

use cni::{CniResult, Dns, Interface};
use serde::Serialize;
use serde::ser::Serializer;

use crate::device_info::DeviceInfo;

/// The state of one interface of a pod.
#[derive(Debug, Clone, Serialize)]
pub struct NetworkStatus {
    /// `<namespace>/<name>` of the NAD, or the CNI network's name for the primary.
    pub name: String,
    /// The interface in the pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// Its addresses, without prefix length.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// Its link address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes, 0 if the result does not tell.
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Whether this is the pod's default network; left out when it is not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    /// Name resolution; always there, `{}` when empty.
    #[serde(serialize_with = "serialize_dns")]
    pub dns: Dns,
    /// What the device-info file of the attachment says.
    #[serde(rename = "device-info", skip_serializing_if = "Option::is_none")]
    pub device_info: Option<DeviceInfo>,
    /// Next hops of the default routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateway: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn serialize_dns<S: Serializer>(dns: &Dns, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Wire<'a> {
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        nameservers: &'a [String],
        #[serde(skip_serializing_if = "str::is_empty")]
        domain: &'a str,
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        search: &'a [String],
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        options: &'a [String],
    }
    let Dns { nameservers, domain, search, options } = dns;
    Wire { nameservers, domain, search, options }.serialize(serializer)
}

/// The states that one delegate's result amounts to.
///
/// A result with several interfaces yields one state for each that is in the pod (has a sandbox), with the
/// addresses that point at it; an address that points at none goes to the last. Gateways, name resolution and
/// device-info are the result's, and so repeat. A result of an old plugin has addresses and no interfaces: it
/// speaks of `ifname`, the interface that the delegate was asked for.
#[must_use]
pub fn of_result(
    name: &str,
    ifname: &str,
    is_primary: bool,
    result: &CniResult,
    device_info: Option<&DeviceInfo>,
) -> Vec<NetworkStatus> {
    let gateway: Vec<String> = result
        .routes
        .iter()
        .filter(|route| route.is_default())
        .filter_map(|route| route.gw.map(|gw| gw.to_string()))
        .collect();
    let state = |interface: &Interface, ips: Vec<String>, default: bool| NetworkStatus {
        name: name.to_owned(),
        interface: interface.name.clone(),
        ips,
        mac: interface.mac.clone(),
        mtu: interface.mtu,
        default,
        dns: result.dns.clone(),
        device_info: device_info.cloned(),
        gateway: gateway.clone(),
    };
    let in_pod: Vec<(usize, &Interface)> =
        result.interfaces.iter().enumerate().filter(|(_, interface)| !interface.sandbox.is_empty()).collect();

    if result.interfaces.len() <= 1 {
        let ips: Vec<String> = result.ips.iter().map(|ip| ip.address.addr().to_string()).collect();
        return match (in_pod.last(), result.interfaces.first()) {
            (Some((_, interface)), _) => vec![state(interface, ips, is_primary)],
            (None, None) if ips.is_empty() => Vec::new(),
            (None, None) => {
                let asked = Interface { name: ifname.to_owned(), ..Interface::default() };
                vec![state(&asked, ips, is_primary)]
            }
            (None, Some(_)) => vec![state(&Interface::default(), ips, is_primary)],
        };
    }

    // The address with a gateway tells which of several interfaces carries the default network.
    let default = result
        .ips
        .iter()
        .filter(|ip| ip.gateway.is_some())
        .find_map(|ip| ip.interface)
        .or_else(|| in_pod.first().map(|(index, _)| *index));
    let last = in_pod.last().map(|(index, _)| *index);
    in_pod
        .iter()
        .map(|(index, interface)| {
            let ips = result
                .ips
                .iter()
                .filter(|ip| ip.interface.or(last) == Some(*index))
                .map(|ip| ip.address.addr().to_string())
                .collect();
            state(interface, ips, is_primary && default == Some(*index))
        })
        .collect()
}

/// The annotation's text: each state indented by four, joined by a bare comma.
///
/// # Errors
/// Never in practice: every field has a JSON form.
pub fn annotation(states: &[NetworkStatus]) -> Result<String, serde_json::Error> {
    let mut text = Vec::from(b"[");
    for (index, state) in states.iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        state.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    }
    text.push(b']');
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use cni::Version;

    use super::*;

    fn result(json: &str) -> CniResult {
        CniResult::parse(json.as_bytes(), Version::LATEST).unwrap()
    }

    const BRIDGE: &str = r#"{"cniVersion": "1.1.0",
        "interfaces": [{"name": "cni0", "mac": "0a:00:00:00:00:01"}, {"name": "veth1"},
                       {"name": "eth0", "mac": "0a:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/a"}],
        "ips": [{"address": "10.244.0.7/24", "gateway": "10.244.0.1", "interface": 2}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}, {"dst": "10.0.0.0/8"}, {"dst": "::/0"}],
        "dns": {"nameservers": ["10.96.0.10"]}}"#;

    #[test]
    fn the_annotation_has_the_ecosystem_s_white_space() {
        let mut states = of_result("cbr0", "eth0", true, &result(BRIDGE), None);
        let macvlan = result(
            r#"{"cniVersion": "0.3.1", "interfaces": [{"name": "net1", "mac": "7a:00:00:00:00:01", "sandbox": "/run/netns/a"}],
                "ips": [{"version": "4", "address": "192.168.1.200/24", "interface": 0}]}"#,
        );
        let info: DeviceInfo =
            serde_json::from_str(r#"{"type":"pci","pci":{"pci-address":"0000:3b:10.0"}}"#).unwrap();
        states.extend(of_result("default/macvlan-conf", "net1", false, &macvlan, Some(&info)));
        let expected = r#"[{
    "name": "cbr0",
    "interface": "eth0",
    "ips": [
        "10.244.0.7"
    ],
    "mac": "0a:00:00:00:00:02",
    "mtu": 1450,
    "default": true,
    "dns": {
        "nameservers": [
            "10.96.0.10"
        ]
    },
    "gateway": [
        "10.244.0.1"
    ]
},{
    "name": "default/macvlan-conf",
    "interface": "net1",
    "ips": [
        "192.168.1.200"
    ],
    "mac": "7a:00:00:00:00:01",
    "dns": {},
    "device-info": {
        "type": "pci",
        "pci": {
            "pci-address": "0000:3b:10.0"
        }
    }
}]"#;
        assert_eq!(annotation(&states).unwrap(), expected);
        assert_eq!(annotation(&[]).unwrap(), "[]");
    }

    #[test]
    fn states_of_results() {
        // (what it is, result, primary, expected as interface:ips:default)
        let table = [
            ("bridge, secondary", BRIDGE, false, vec!["eth0:10.244.0.7:false"]),
            (
                "two in the pod, the second has the gateway",
                r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "a", "sandbox": "/n"}, {"name": "b", "sandbox": "/n"}],
                    "ips": [{"address": "10.0.0.1/24", "interface": 0},
                            {"address": "10.0.1.1/24", "interface": 1, "gateway": "10.0.1.254"},
                            {"address": "10.0.2.1/24"}]}"#,
                true,
                vec!["a:10.0.0.1:false", "b:10.0.1.1,10.0.2.1:true"],
            ),
            (
                "two in the pod, no gateway",
                r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "a", "sandbox": "/n"}, {"name": "b", "sandbox": "/n"}]}"#,
                true,
                vec!["a::true", "b::false"],
            ),
            (
                "an old plugin",
                r#"{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}}"#,
                true,
                vec!["net1:10.0.0.2:true"],
            ),
            ("nothing", r#"{"cniVersion": "1.0.0"}"#, true, vec![]),
            (
                "one on the host only",
                r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "a"}]}"#,
                false,
                vec!["::false"],
            ),
            (
                "an index that points nowhere",
                r#"{"cniVersion": "1.0.0", "interfaces": [{"name": "a", "sandbox": "/n"}, {"name": "b"}],
                    "ips": [{"address": "10.0.0.1/24", "interface": 0}]}"#,
                false,
                vec!["a:10.0.0.1:false"],
            ),
        ];
        for (what, json, primary, expected) in table {
            let states: Vec<String> = of_result("n", "net1", primary, &result(json), None)
                .iter()
                .map(|s| format!("{}:{}:{}", s.interface, s.ips.join(","), s.default))
                .collect();
            assert_eq!(states, expected, "{what}");
        }
    }

    #[test]
    fn a_default_route_without_next_hop_is_no_gateway() {
        let states = of_result("n", "eth0", true, &result(BRIDGE), None);
        assert_eq!(states.first().map(|s| s.gateway.as_slice()), Some(&["10.244.0.1".to_owned()][..]));
    }
}
