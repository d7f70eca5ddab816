//! The names of the peer's custom resources: what is called otherwise is not found by it, or by us.

use std::net::IpAddr;

use ipnet::IpNet;

/// The name of a range's `IPPool`. `network_name` is empty when the range belongs to no named network.
#[must_use]
pub fn pool(network_name: &str, subnet: IpNet) -> String {
    prefixed(network_name, normalised(&subnet.to_string()))
}

/// The name of the `IPPool` of a node's slice, where a controller has cut the range into slices.
#[must_use]
pub fn slice_pool(network_name: &str, node: &str, slice: IpNet) -> String {
    prefixed(network_name, format!("{node}-{}", normalised(&slice.to_string())))
}

/// The name of an address's `OverlappingRangeIPReservation`.
#[must_use]
pub fn reservation(network_name: &str, address: IpAddr) -> String {
    prefixed(network_name, normalised(&address.to_string()))
}

fn prefixed(network_name: &str, name: String) -> String {
    if network_name.is_empty() { name } else { format!("{network_name}-{name}") }
}

/// `:` and `/` become `-`, and a text that ends in `:` gets a `0`. One that begins with `:` does too, where the peer
/// makes a name that the API server refuses.
fn normalised(text: &str) -> String {
    let (front, back) =
        (if text.starts_with(':') { "0" } else { "" }, if text.ends_with(':') { "0" } else { "" });
    format!("{front}{text}{back}").replace([':', '/'], "-")
}

/// Whether `name` can be the name of an object (RFC 1123 subdomain), and so of a file.
#[must_use]
pub fn is_object_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        !label.is_empty() && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_peers() {
        for (network, subnet, name) in [
            ("", "10.0.0.0/24", "10.0.0.0-24"),
            ("red", "10.0.0.0/24", "red-10.0.0.0-24"),
            ("", "2001:db8::/64", "2001-db8---64"),
            ("", "fd00:1:2:3::/112", "fd00-1-2-3---112"),
            ("", "::/64", "0---64"),
        ] {
            assert_eq!(pool(network, subnet.parse().unwrap()), name);
            assert!(is_object_name(name), "{name}");
        }
        assert_eq!(slice_pool("", "n1", "10.0.0.0/26".parse().unwrap()), "n1-10.0.0.0-26");
        assert_eq!(slice_pool("red", "n1", "10.0.0.0/26".parse().unwrap()), "red-n1-10.0.0.0-26");
        for (network, address, name) in [
            ("", "10.0.0.5", "10.0.0.5"),
            ("red", "10.0.0.5", "red-10.0.0.5"),
            ("", "2001:db8::5", "2001-db8--5"),
            ("", "2001:db8::", "2001-db8--0"),
            ("", "::1", "0--1"),
        ] {
            assert_eq!(reservation(network, address.parse().unwrap()), name);
            assert!(is_object_name(name), "{name}");
        }
    }

    #[test]
    fn what_is_no_name() {
        for bad in ["", "Red-10.0.0.0-24", "a/b", "..", "../../etc", "-a", "a-", "a..b", "a_b"] {
            assert!(!is_object_name(bad), "{bad}");
        }
    }
}
