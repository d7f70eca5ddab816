//! What the specification allows as identifiers.

use crate::Error;

/// The longest interface name the kernel takes, in bytes (`IFNAMSIZ` without the final zero).
pub const MAX_INTERFACE_NAME: usize = 15;

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Checks a container ID: an alphanumeric, then alphanumerics, `_`, `.` and `-`.
///
/// # Errors
/// Code 3 when empty, code 4 for other characters.
pub fn check_container_id(id: &str) -> Result<(), Error> {
    if id.is_empty() {
        return Err(Error::unknown_container("missing containerID"));
    }
    if !is_identifier(id) {
        return Err(Error::invalid_environment("invalid characters in containerID").with_details(id));
    }
    Ok(())
}

/// Checks a network name: the same characters as a container ID.
///
/// # Errors
/// Code 7.
pub fn check_network_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::invalid_config("missing network name: the configuration needs a \"name\""));
    }
    if !is_identifier(name) {
        return Err(Error::invalid_config("invalid characters found in network name").with_details(name));
    }
    Ok(())
}

/// Checks an interface name by the kernel's rules.
///
/// # Errors
/// Code 4.
pub fn check_interface_name(name: &str) -> Result<(), Error> {
    let complaint = if name.is_empty() {
        "interface name is empty"
    } else if name.len() > MAX_INTERFACE_NAME {
        "interface name is too long, the kernel takes at most 15 bytes"
    } else if name == "." || name == ".." {
        "interface name is . or .."
    } else if name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        "interface name contains / or : or whitespace characters"
    } else {
        return Ok(());
    };
    Err(Error::invalid_environment(complaint).with_details(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        for good in ["a", "0", "A-b_c.d", "4f6e2b7c9d", "x--"] {
            assert!(check_container_id(good).is_ok(), "{good}");
            assert!(check_network_name(good).is_ok(), "{good}");
        }
        for bad in [".a", "-a", "_a", "a/b", "a b", "ä", "a\n", "../x"] {
            assert_eq!(check_container_id(bad).unwrap_err().code, Error::INVALID_ENVIRONMENT, "{bad}");
            assert_eq!(check_network_name(bad).unwrap_err().code, Error::INVALID_CONFIG, "{bad}");
        }
        assert_eq!(check_container_id("").unwrap_err().code, Error::UNKNOWN_CONTAINER);
        assert_eq!(check_network_name("").unwrap_err().code, Error::INVALID_CONFIG);
    }

    #[test]
    fn interface_names() {
        for good in ["eth0", "net1", "a", "0123456789abcde", "Eth_0.100", "..."] {
            assert!(check_interface_name(good).is_ok(), "{good}");
        }
        for bad in ["", "0123456789abcdef", ".", "..", "a/b", "a:b", "a b", "a\tb", "äöüäöüäö"] {
            assert_eq!(check_interface_name(bad).unwrap_err().code, Error::INVALID_ENVIRONMENT, "{bad}");
        }
    }
}
