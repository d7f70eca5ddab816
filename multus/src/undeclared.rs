//! Capabilities that a pod asks for and no plugin of the network declares: nobody would see to them.

use cni::{NetworkList, Object};

use crate::networks::Wanted;

/// What comes of such a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// The pod starts, and a warning is an event of it: as upstream, but told.
    #[default]
    Warn,
    /// The pod does not start, as the multi-network specification (1.3, section 7.5) wants it.
    Refuse,
}

impl Policy {
    /// Reads `undeclaredCapabilities`: `warn` (the default) or `refuse`.
    ///
    /// # Errors
    /// Code 7 for any other value.
    pub(crate) fn read(conf: &Object) -> Result<Self, cni::Error> {
        match conf.decode::<String>("undeclaredCapabilities")?.as_deref() {
            None | Some("" | "warn") => Ok(Policy::Warn),
            Some("refuse") => Ok(Policy::Refuse),
            Some(other) => Err(cni::Error::invalid_config(format!(
                "undeclaredCapabilities is {other:?}; it must be \"warn\" or \"refuse\""
            ))),
        }
    }
}

/// A network of which a pod asks what none of its plugins declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undeclared {
    /// The network.
    pub network: String,
    /// The capabilities.
    pub capabilities: Vec<&'static str>,
}

/// Those of `wanted`.
pub(crate) fn undeclared(wanted: &[Wanted]) -> Vec<Undeclared> {
    let of_one = |wanted: &Wanted| Undeclared {
        network: wanted.network.label.clone(),
        capabilities: of_network(wanted, &wanted.network.list),
    };
    wanted.iter().map(of_one).filter(|found| !found.capabilities.is_empty()).collect()
}

fn of_network(wanted: &Wanted, list: &NetworkList) -> Vec<&'static str> {
    let Some(selection) = &wanted.selection else { return Vec::new() };
    let asked = [
        ("portMappings", !selection.port_mappings.is_empty()),
        ("bandwidth", selection.bandwidth.is_some()),
        ("ips", !selection.ips.is_empty()),
        ("mac", selection.mac.is_some()),
        ("infinibandGUID", selection.infiniband_guid.is_some()),
    ];
    let is_declared = |capability: &str| list.plugins.iter().any(|plugin| plugin.has_capability(capability));
    asked.into_iter().filter(|(name, asked)| *asked && !is_declared(name)).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegate::tests::wanted;

    #[test]
    fn what_no_plugin_declares() {
        let list = r#"{"plugins":[{"type":"x"},{"type":"y","capabilities":{"mac":true,"ips":false}}]}"#;
        let asked = r#"[{"name":"b","ips":["10.0.0.1"],"mac":"02:00:00:00:00:01","bandwidth":{}}]"#;
        let all = [wanted("b", list, None, asked), wanted("c", list, None, ""), wanted("b", list, None, "b")];
        let found = Undeclared { network: "ns/b".into(), capabilities: vec!["bandwidth", "ips"] };
        assert_eq!(undeclared(&all), [found]);
    }

    #[test]
    fn the_policy_is_one_of_two() {
        let read = |conf: &str| Policy::read(&Object::parse(conf.as_bytes()).unwrap());
        for conf in ["{}", r#"{"undeclaredCapabilities":null}"#, r#"{"UndeclaredCapabilities":"warn"}"#] {
            assert_eq!(read(conf).unwrap(), Policy::Warn, "{conf}");
        }
        assert_eq!(read(r#"{"undeclaredCapabilities":"refuse"}"#).unwrap(), Policy::Refuse);
        let error = read(r#"{"undeclaredCapabilities":"ignore"}"#).unwrap_err();
        assert!(error.code == 7 && error.msg.contains("\"ignore\""), "{error}");
    }
}
