//! Why a VLAN interface cannot be made: the ID is taken on that master, and plugins only say "file exists".

use host::Netns;
use host::netlink::vlan_holder;

use crate::delegate::Delegate;

/// What the `vlan` plugin of a network is told to make.
#[derive(Debug, PartialEq, Eq)]
struct VlanRequest {
    master: String,
    id: u16,
    /// The master is an interface of the container, not of the node.
    is_master_inside: bool,
}

/// Who holds the VLAN that `delegate`, which failed with `error`, was to make, and what to do about it; `None`
/// when it failed for another reason.
pub(crate) async fn explain(delegate: &Delegate, error: &cni::Error) -> Option<String> {
    if !error.msg.contains("file exists") {
        return None;
    }
    let VlanRequest { master, id, is_master_inside } = request(delegate)?;
    let home = || match (&delegate.attachment.netns, is_master_inside) {
        (Some(path), true) => Netns::open(path),
        _ => Netns::current(),
    };
    let found = match home() {
        Ok(home) => vlan_holder(home, &master, id).await,
        Err(source) => Err(source.into()),
    };
    match found {
        Ok(found) => {
            let (netns, name) = found?;
            let is_home = home().is_ok_and(|home| home.id() == netns.id());
            Some(advice(&name, id, &master, (!is_home).then(|| netns.path().display().to_string())))
        }
        Err(error) => {
            tracing::warn!("{}: cannot learn who has VLAN {id} on {master}: {error}", delegate.label);
            None
        }
    }
}

fn advice(name: &str, id: u16, master: &str, elsewhere: Option<String>) -> String {
    let what = format!("has VLAN ID {id} on master {master} already, and the kernel allows one");
    match elsewhere {
        None => format!(
            "interface {name}, in the network namespace of {master}, {what}: take it out of the network configuration of the node and delete it (ip link delete {name}), or leave it and attach pods to it by a macvlan or ipvlan network with \"master\": \"{name}\", or use another VLAN ID"
        ),
        Some(netns) => format!(
            "interface {name}, in the network namespace {netns} (another pod, or this one by another network), {what}: one pod at a time can have it; for several, make a VLAN interface on the node and attach them to it by a macvlan or ipvlan network, or use another VLAN ID"
        ),
    }
}

fn request(delegate: &Delegate) -> Option<VlanRequest> {
    let conf = &delegate.list.plugins.iter().find(|plugin| plugin.kind == "vlan")?.config;
    Some(VlanRequest {
        master: conf.decode("master").ok()??,
        id: conf.decode("vlanId").ok()??,
        is_master_inside: conf.decode("linkInContainer").ok()?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegate::tests::delegate;

    #[test]
    fn the_request_is_that_of_the_vlan_plugin() {
        let wanted = |id, is_master_inside| Some(VlanRequest { master: "up0".into(), id, is_master_inside });
        for (config, want) in [
            (r#"{"name":"n","type":"vlan","master":"up0","vlanId":100}"#, wanted(100, false)),
            (
                r#"{"name":"n","plugins":[{"type":"x"},{"type":"vlan","master":"up0","vlanId":7,"linkInContainer":true}]}"#,
                wanted(7, true),
            ),
            (r#"{"name":"n","type":"vlan","master":"up0","vlanId":"100"}"#, None),
            (r#"{"name":"n","type":"vlan","vlanId":100}"#, None),
            (r#"{"name":"n","type":"macvlan","master":"up0","vlanId":100}"#, None),
        ] {
            assert_eq!(request(&delegate(config)), want, "{config}");
        }
    }

    #[test]
    fn advice_names_who_where_and_what_to_do() {
        let here = advice("vlan100", 100, "up0", None);
        for part in ["interface vlan100", "VLAN ID 100", "master up0", "ip link delete vlan100", "macvlan"] {
            assert!(here.contains(part), "{here}");
        }
        let there = advice("net1", 100, "up0", Some("/run/netns/pod".into()));
        assert!(there.contains("namespace /run/netns/pod") && there.contains("another VLAN ID"), "{there}");
    }
}
