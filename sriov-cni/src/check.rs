//! CHECK: is everything as ADD left it?

use cni::{CniResult, Request};
use host::netlink::VfSettings;
use host::{Netlink, Netns};

use crate::config::Conf;
use crate::error::Error;
use crate::machine::Machine;
use crate::record::Phase;
use crate::state::State;
use crate::vf::Vf;

/// Compares record, VF, interface, addresses and IPAM with configuration and previous result; reports
/// every difference.
pub(crate) async fn check(machine: &Machine, state: &State, request: &Request) -> Result<(), Error> {
    let conf = Conf::parse(&request.config, &request.args)?;
    let previous = request.prev_result()?.ok_or_else(|| {
        cni::Error::invalid_config("CHECK needs prevResult, the result of ADD, in the configuration")
    })?;
    let netns = Netns::open(request.require_netns()?)?;
    let mut differences = Vec::new();

    match state.record(conf.device)? {
        Some(record) if !record.owner.is(&request.container_id, &request.ifname) => {
            return Err(Error::Allocated { device: conf.device, owner: Box::new(record.owner) });
        }
        Some(record) if record.phase == Phase::Attached => {}
        // A peer's attachment has no record but a cache file.
        None if state.cache(&request.container_id, &request.ifname)?.is_some() => {}
        _ => differences.push(format!("no record says that VF {} is attached", conf.device)),
    }
    let vf = Vf::require(machine, conf.device).await?;
    if let Some(reported) = vf.settings(machine).await? {
        differences.extend(setting_differences(&conf, &reported));
    }
    if vf.userspace_driver()?.is_none() {
        let container = Netlink::connect_in(&netns)?;
        match vf.link_in(machine, &netns, &container).await? {
            Some(link) => {
                let addresses = container.addresses(link.index).await?;
                let wanted = Wanted::new(&conf, &request.ifname, &previous);
                differences.extend(wanted.link_differences(&link));
                let missing = previous.ips.iter().filter(|ip| !addresses.iter().any(|a| a.net == ip.address));
                differences.extend(missing.map(|ip| format!("address {} is missing", ip.address)));
                let routes = container.routes().await?;
                let missing = previous.routes.iter().filter(|wanted| {
                    !routes.iter().any(|route| route.destination.trunc() == wanted.dst.trunc())
                });
                differences.extend(missing.map(|route| format!("route to {} is missing", route.dst)));
            }
            None => differences.push(format!("the interface of VF {} is not in the container", conf.device)),
        }
    }
    if let Some(kind) = &conf.ipam
        && let Err(error) = cni::ipam::check(kind, request)
    {
        differences.push(error.to_string());
    }
    if differences.is_empty() { Ok(()) } else { Err(Error::Check(differences)) }
}

/// What drivers do not report cannot differ.
fn setting_differences(conf: &Conf, reported: &VfSettings) -> Vec<String> {
    let differs = |setting: host::netlink::VfSetting| {
        let found = reported.get(setting.option())?;
        (found != setting).then(|| format!("{found} on the VF instead of {setting}"))
    };
    conf.vf_settings().into_iter().filter_map(differs).collect()
}

struct Wanted {
    name: String,
    mac: Option<String>,
    mtu: Option<u32>,
}

impl Wanted {
    /// The configuration's word, else that of ADD's result.
    fn new(conf: &Conf, ifname: &str, previous: &CniResult) -> Self {
        let interface = previous.interfaces.iter().find(|interface| interface.name == ifname);
        let mac = interface.map(|interface| interface.mac.to_ascii_lowercase()).filter(|mac| !mac.is_empty());
        let mtu = interface.map(|interface| interface.mtu).filter(|mtu| *mtu != 0);
        Self {
            name: ifname.to_owned(),
            mac: conf.mac.map(|mac| mac.to_string()).or(mac),
            mtu: conf.mtu.or(mtu),
        }
    }

    fn link_differences(&self, link: &host::netlink::Link) -> Vec<String> {
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        let name = &self.name;
        let mut differences = Vec::new();
        if link.name != *name {
            differences.push(format!("the interface is called {} instead of {name}", link.name));
        }
        if !link.up {
            differences.push(format!("{name} is down"));
        }
        if let Some(wanted) = self.mac.as_ref().filter(|wanted| **wanted != mac) {
            differences.push(format!("{name} has MAC {mac} instead of {wanted}"));
        }
        if let Some(wanted) = self.mtu.filter(|wanted| *wanted != link.mtu) {
            differences.push(format!("{name} has MTU {} instead of {wanted}", link.mtu));
        }
        differences
    }
}

#[cfg(test)]
mod tests {
    use cni::{Args, Object};
    use host::netlink::Link;

    use super::*;

    fn conf(keys: &str) -> Conf {
        let json = format!(r#"{{"deviceID":"0000:3b:02.1",{keys}}}"#);
        Conf::parse(&Object::parse(json.as_bytes()).unwrap(), &Args::default()).unwrap()
    }

    #[test]
    fn each_setting_that_drifted_is_named() {
        let conf = conf(r#""vlan":100,"spoofchk":"on","trust":"on","link_state":"auto""#);
        let reported = VfSettings {
            vlan: Some(host::netlink::VfVlan::default()),
            spoofchk: Some(false),
            trust: None,
            link_state: Some(host::netlink::VfLinkState::Auto),
            ..VfSettings::default()
        };
        let differences = setting_differences(&conf, &reported);
        assert!(
            matches!(&differences[..], [vlan, spoof] if vlan.contains("vlan 100") && spoof.contains("spoofchk on"))
        );
    }

    #[test]
    fn the_configuration_goes_before_the_result() {
        let previous = CniResult {
            interfaces: vec![cni::Interface {
                name: "net1".into(),
                mac: "02:00:00:00:00:0A".into(),
                mtu: 1500,
                ..cni::Interface::default()
            }],
            ..CniResult::default()
        };
        let link = Link {
            name: "net1".into(),
            up: true,
            mtu: 1500,
            mac: "02:00:00:00:00:0a".parse().ok(),
            ..Link::default()
        };
        let differences =
            |keys: &str, link: &Link| Wanted::new(&conf(keys), "net1", &previous).link_differences(link);
        assert!(differences(r#""x":1"#, &link).is_empty());
        assert_eq!(differences(r#""mtu":9000"#, &link), ["net1 has MTU 1500 instead of 9000"]);
        let drifted = Link { name: "x".into(), up: false, mtu: 1400, mac: None, ..link };
        assert_eq!(differences(r#""x":1"#, &drifted).len(), 4);
    }
}
