//! A result as the configuration's version spells it.
//!
//! The daemon answers in version 1.1.0, whatever the configuration says; so do its peers. Within a shape (0.1.0 and
//! 0.2.0; 0.3.0 to 0.4.0; 1.0.0 and later) everything is printed, as the reference library does.

use crate::json::{Value, object, text};

/// What a configuration without a version gets: the newest that every runtime knows and that has room for
/// interfaces.
const UNSAID: &str = "0.4.0";

/// `result` in `version`; an empty version stands for none said.
///
/// # Errors
/// When the version is not known, or cannot tell what the result says.
pub(crate) fn convert(result: &Value, version: &str) -> Result<Value, String> {
    match version {
        "" => Ok(with_families(result, UNSAID)),
        "0.1.0" | "0.2.0" => of_addresses(result, version),
        "0.3.0" | "0.3.1" | "0.4.0" => Ok(with_families(result, version)),
        "1.0.0" | "1.1.0" => Ok(as_it_is(result, version)),
        _ => Err(format!("incompatible CNI versions: config is {version}, plugin supports 0.1.0 to 1.1.0")),
    }
}

fn as_it_is(result: &Value, version: &str) -> Value {
    let mut members = vec![("cniVersion".to_owned(), text(version))];
    if let Value::Object(rest) = result {
        members.extend(rest.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("cniVersion")).cloned());
    }
    Value::Object(members)
}

fn with_families(result: &Value, version: &str) -> Value {
    let mut members = vec![("cniVersion".to_owned(), text(version))];
    let mut list = |key: &str, elements: Vec<Value>| {
        if !elements.is_empty() {
            members.push((key.to_owned(), Value::Array(elements)));
        }
    };
    list(
        "interfaces",
        result.elements("interfaces").iter().map(|i| only(i, &["name", "mac", "sandbox"])).collect(),
    );
    list("ips", result.elements("ips").iter().map(with_family).collect());
    list("routes", result.elements("routes").to_vec());
    members.push(("dns".to_owned(), dns(result)));
    Value::Object(members)
}

fn with_family(ip: &Value) -> Value {
    let family = text(if is_v4(ip, "address") { "4" } else { "6" });
    let mut members = vec![("version".to_owned(), family)];
    if let Value::Object(rest) = ip {
        members.extend(rest.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("version")).cloned());
    }
    Value::Object(members)
}

fn of_addresses(result: &Value, version: &str) -> Result<Value, String> {
    let mut members = vec![("cniVersion".to_owned(), text(version))];
    for (key, v4) in [("ip4", true), ("ip6", false)] {
        if let Some(ip) = result.elements("ips").iter().find(|ip| is_v4(ip, "address") == v4) {
            members.push((key.to_owned(), family(result, ip, v4)));
        }
    }
    if members.len() == 1 && !result.elements("interfaces").is_empty() {
        return Err(format!(
            "cannot convert: no valid IP addresses: a result of version {version} is made of addresses, and this one \
             has none; raise the cniVersion of the configuration to 0.3.1 or later"
        ));
    }
    members.push(("dns".to_owned(), dns(result)));
    Ok(Value::Object(members))
}

fn family(result: &Value, ip: &Value, v4: bool) -> Value {
    let mut members = Vec::new();
    for (from, to) in [("address", "ip"), ("gateway", "gateway")] {
        if let Some(value) = ip.get(from) {
            members.push((to.to_owned(), value.clone()));
        }
    }
    let of_family = |route: &&Value| is_v4(route, "dst") == v4;
    let routes: Vec<Value> =
        result.elements("routes").iter().filter(of_family).map(|r| only(r, &["dst", "gw"])).collect();
    if !routes.is_empty() {
        members.push(("routes".to_owned(), Value::Array(routes)));
    }
    Value::Object(members)
}

fn is_v4(value: &Value, key: &str) -> bool {
    !value.text(key).unwrap_or_default().contains(':')
}

fn only(value: &Value, keys: &[&str]) -> Value {
    let members =
        keys.iter().filter_map(|key| value.get(key).map(|value| ((*key).to_owned(), value.clone())));
    Value::Object(members.collect())
}

fn dns(result: &Value) -> Value {
    result.get("dns").cloned().unwrap_or_else(|| object([]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni::{CniResult, Version};

    const RESULT: &str = r#"{"cniVersion":"1.1.0",
        "interfaces":[{"name":"br0","mac":"02:00:00:00:00:01","mtu":1450},
            {"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/n","socketPath":"/s","pciID":"0000:01:00.0"}],
        "ips":[{"interface":1,"address":"10.0.0.2/24","gateway":"10.0.0.1"},{"address":"fd00::2/64"}],
        "routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1","mtu":1400,"table":7},{"dst":"fd01::/64","gw":"fd00::1"}],
        "dns":{"nameservers":["10.0.0.53"],"search":["a.b"]}}"#;

    /// The library of the daemon converts too: both must say the same.
    #[test]
    fn as_the_library_does() {
        for json in [
            RESULT,
            r#"{"cniVersion":"1.1.0"}"#,
            r#"{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}]}"#,
            r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/n"}]}"#,
        ] {
            let parsed = CniResult::parse(json.as_bytes(), Version::LATEST).unwrap();
            for version in Version::ALL {
                let ours = convert(&Value::parse(json.as_bytes()).unwrap(), version.as_str());
                match (ours, parsed.to_json(*version)) {
                    (Ok(ours), Ok(library)) => {
                        assert_eq!(ours.pretty(), String::from_utf8(library).unwrap(), "{version}: {json}");
                    }
                    (Err(ours), Err(library)) => assert_eq!(ours, library.msg, "{version}: {json}"),
                    (ours, library) => panic!("{version}: {json}: {ours:?} {library:?}"),
                }
            }
        }
    }

    #[test]
    fn unknown_versions_are_refused_and_none_is_one() {
        let result = Value::parse(RESULT.as_bytes()).unwrap();
        assert!(convert(&result, "9.9.9").unwrap_err().contains("9.9.9"));
        assert_eq!(convert(&result, "").unwrap().text("cniVersion"), Some("0.4.0"));
    }
}
