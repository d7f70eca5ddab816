//! What ADD is going to do, as a list of steps computed from the configuration and the state of the VF.

use host::netlink::{Link, VfOption, VfSetting, VfSettings, VfVlan};
use host::{MacAddress, PciAddress};

use crate::config::Conf;
use crate::error::Error;

/// How the VF is driven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Function {
    /// By the kernel, as this network interface.
    Netdev(Link),
    /// By a program in user space, through this driver.
    Userspace(String),
}

/// The state that a plan starts from.
#[derive(Debug, Clone)]
pub struct Observed {
    /// How the VF is driven.
    pub function: Function,
    /// Whether the PF is visible.
    pub has_pf: bool,
    /// What the PF reports about the VF; `None` when the driver reports nothing.
    pub vf: Option<VfSettings>,
    /// Every name and alternative name in the container.
    pub names_in_container: Vec<String>,
}

/// One change. [`crate::record::Baseline`] holds what each of them overwrites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A setting made through the PF.
    Vf(VfSetting),
    /// Set the interface with this index down.
    Down(u32),
    /// Take an alternative name of the interface away that would clash in the container.
    RemoveAltname(u32, String),
    /// Set the interface's own hardware address.
    Mac(u32, MacAddress),
    /// Set the interface's MTU, in bytes.
    Mtu(u32, u32),
    /// Move the interface into the container, under this name.
    Move(u32, String),
    /// Set the interface up, in the container.
    Up,
}

/// The steps that make the VF what `conf` asks for, as interface `ifname` of the container. A VF in user space has
/// no interface, and so no MTU that could be set.
///
/// # Errors
/// When something is asked for that cannot be: nothing has been touched then.
pub fn plan(conf: &Conf, ifname: &str, observed: &Observed) -> Result<Vec<Step>, Error> {
    let mut steps = through_pf(conf, observed)?;
    if let Function::Netdev(link) = &observed.function {
        through_netdev(conf, ifname, link, &observed.names_in_container, &mut steps);
    }
    Ok(steps)
}

fn through_pf(conf: &Conf, observed: &Observed) -> Result<Vec<Step>, Error> {
    let settings = conf.vf_settings();
    if !observed.has_pf {
        let refused = settings.into_iter().find(|setting| match setting {
            // The interface itself takes the MAC.
            VfSetting::Mac(_) => matches!(observed.function, Function::Userspace(_)),
            setting => !is_no_vlan(setting),
        });
        return match refused {
            Some(setting) => Err(Error::NoPf { device: conf.device, option: setting.to_string() }),
            None => Ok(Vec::new()),
        };
    }
    let Some(reported) = &observed.vf else {
        return match settings.iter().find(|setting| !is_no_vlan(setting)) {
            Some(setting) => Err(unreported(conf.device, &setting.to_string())),
            None => Ok(Vec::new()),
        };
    };
    // A setting that stands already is not made again: some firmware loses a trunk policy by clearing
    // the VLAN. The MAC always is, since some drivers report the one in use, which is no promise.
    let is_needed = |setting: &VfSetting| {
        setting.option() == VfOption::Mac || reported.get(setting.option()) != Some(*setting)
    };
    Ok(settings.into_iter().filter(is_needed).map(Step::Vf).collect())
}

/// "No VLAN" is what there is where nobody can make one; generated configurations always ask for it.
fn is_no_vlan(setting: &VfSetting) -> bool {
    matches!(setting, VfSetting::Vlan(VfVlan { id: 0, .. }))
}

fn unreported(device: PciAddress, setting: &str) -> Error {
    let reason = format!(
        "cannot be given {setting}: its PF's driver does not report VF settings, so the old ones could not be put back"
    );
    Error::Device { device, reason }
}

fn through_netdev(conf: &Conf, ifname: &str, link: &Link, taken: &[String], steps: &mut Vec<Step>) {
    let index = link.index;
    if link.up {
        steps.push(Step::Down(index));
    }
    // The kernel refuses to move an interface one of whose alternative names is in use in the target,
    // and to give it a name that is its own alternative one.
    let clashes = |altname: &&String| *altname == ifname || taken.contains(altname);
    let clashing = link.altnames.iter().filter(clashes).cloned();
    steps.extend(clashing.map(|altname| Step::RemoveAltname(index, altname)));
    if let Some(mac) = conf.mac {
        steps.push(Step::Mac(index, mac));
    }
    if let Some(mtu) = conf.mtu.filter(|mtu| *mtu != link.mtu) {
        steps.push(Step::Mtu(index, mtu));
    }
    steps.extend([Step::Move(index, ifname.to_owned()), Step::Up]);
}

#[cfg(test)]
mod tests {
    use cni::{Args, Object};
    use host::netlink::{VfLinkState, VlanProtocol};

    use super::*;

    fn conf(keys: &str) -> Conf {
        let comma = if keys.is_empty() { "" } else { "," };
        let json = format!(r#"{{"deviceID":"0000:3b:02.1"{comma}{keys}}}"#);
        Conf::parse(&Object::parse(json.as_bytes()).unwrap(), &Args::default()).unwrap()
    }

    fn observed() -> Observed {
        let link = Link { index: 7, name: "ens1v0".into(), mtu: 1500, ..Link::default() };
        let vf = VfSettings {
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            vlan: Some(VfVlan { id: 0, qos: 0, protocol: VlanProtocol::Dot1q }),
            rate: Some((0, 0)),
            spoofchk: Some(true),
            trust: None,
            link_state: Some(VfLinkState::Auto),
        };
        Observed {
            function: Function::Netdev(link),
            has_pf: true,
            vf: Some(vf),
            names_in_container: vec!["lo".into()],
        }
    }

    #[test]
    fn an_empty_configuration_just_moves_the_interface() {
        assert_eq!(plan(&conf(""), "net1", &observed()).unwrap(), [Step::Move(7, "net1".into()), Step::Up]);
    }

    #[test]
    fn steps_keep_the_order_that_drivers_need() {
        let keys = r#""link_state":"disable","trust":"on","spoofchk":"off","max_tx_rate":10,
            "mac":"02:00:00:00:00:09","vlan":5,"mtu":9000"#;
        let mac = "02:00:00:00:00:09".parse().unwrap();
        let mut observed = observed();
        observed.names_in_container.push("taken".into());
        if let Function::Netdev(link) = &mut observed.function {
            link.up = true;
            link.altnames = ["net1", "free", "taken"].map(str::to_owned).into();
        }
        let expected = [
            Step::Vf(VfSetting::Vlan(VfVlan { id: 5, qos: 0, protocol: VlanProtocol::Dot1q })),
            Step::Vf(VfSetting::Mac(mac)),
            Step::Vf(VfSetting::Rate { min: 0, max: 10 }),
            Step::Vf(VfSetting::Spoofchk(false)),
            Step::Vf(VfSetting::Trust(true)),
            Step::Vf(VfSetting::LinkState(VfLinkState::Disable)),
            Step::Down(7),
            Step::RemoveAltname(7, "net1".into()),
            Step::RemoveAltname(7, "taken".into()),
            Step::Mac(7, mac),
            Step::Mtu(7, 9000),
            Step::Move(7, "net1".into()),
            Step::Up,
        ];
        assert_eq!(plan(&conf(keys), "net1", &observed).unwrap(), expected);
    }

    #[test]
    fn what_stands_already_is_left_alone_but_for_the_mac() {
        let keys = r#""vlan":0,"mac":"02:00:00:00:00:01","min_tx_rate":0,"spoofchk":"on","link_state":"auto","mtu":1500"#;
        let mac = "02:00:00:00:00:01".parse().unwrap();
        let expected =
            [Step::Vf(VfSetting::Mac(mac)), Step::Mac(7, mac), Step::Move(7, "net1".into()), Step::Up];
        assert_eq!(plan(&conf(keys), "net1", &observed()).unwrap(), expected);
        // What the driver does not report may stand or not.
        let trust = plan(&conf(r#""trust":"off""#), "net1", &observed()).unwrap();
        assert_eq!(trust.first(), Some(&Step::Vf(VfSetting::Trust(false))));
    }

    #[test]
    fn without_a_pf_only_the_interface_can_be_set() {
        let in_vm = Observed { has_pf: false, vf: None, ..observed() };
        for (keys, accepted) in [
            (r#""mac":"02:00:00:00:00:09","mtu":1400"#, true),
            (r#""vlan":0"#, true),
            (r#""vlan":5"#, false),
            (r#""spoofchk":"off""#, false),
            (r#""trust":"on""#, false),
            (r#""link_state":"auto""#, false),
            (r#""min_tx_rate":1"#, false),
        ] {
            assert_eq!(plan(&conf(keys), "net1", &in_vm).is_ok(), accepted, "{keys}");
        }
        let vfio = Observed { function: Function::Userspace("vfio-pci".into()), ..in_vm };
        assert!(plan(&conf(""), "net1", &vfio).unwrap().is_empty());
        assert!(matches!(
            plan(&conf(r#""mac":"02:00:00:00:00:09""#), "net1", &vfio),
            Err(Error::NoPf { .. })
        ));
    }

    #[test]
    fn a_pf_that_reports_nothing_is_not_changed() {
        let silent = Observed { vf: None, ..observed() };
        assert!(plan(&conf(r#""vlan":0"#), "net1", &silent).is_ok());
        assert!(matches!(plan(&conf(r#""vlan":5"#), "net1", &silent), Err(Error::Device { .. })));
    }

    #[test]
    fn a_vf_in_user_space_has_no_interface_to_set() {
        let vfio = Observed { function: Function::Userspace("vfio-pci".into()), ..observed() };
        let keys = r#""vlan":5,"mac":"02:00:00:00:00:09","mtu":9000"#;
        let steps = plan(&conf(keys), "net1", &vfio).unwrap();
        assert!(
            matches!(steps[..], [Step::Vf(VfSetting::Vlan(_)), Step::Vf(VfSetting::Mac(_))]),
            "{steps:?}"
        );
    }
}
