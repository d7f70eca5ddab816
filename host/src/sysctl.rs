//! Kernel parameters of network namespaces, `/proc/sys/net`.

use std::fs;
use std::io;
use std::path::Path;

use crate::netns::{self, Netns};

/// Writes parameters of the namespace `netns` in order. Each is a path below `/proc/sys/net` with
/// slashes (interface names may contain dots), such as `ipv6/conf/net1/optimistic_dad`, and its value.
/// Returns one result per parameter: which of them exist depends on how the kernel was built.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn write(netns: &Netns, parameters: &[(String, &str)]) -> Result<Vec<io::Result<()>>, netns::Error> {
    // The kernel shows each thread the parameters of the namespace that the thread is in.
    let root = Path::new("/proc/sys/net");
    netns.run(|| parameters.iter().map(|(name, value)| fs::write(root.join(name), value)).collect())
}

/// Reads one parameter of the namespace `netns`, without the line end.
///
/// # Errors
/// When the namespace cannot be entered; the inner result tells whether the parameter was readable.
pub fn read(netns: &Netns, parameter: &str) -> Result<io::Result<String>, netns::Error> {
    let path = Path::new("/proc/sys/net").join(parameter);
    netns.run(|| fs::read_to_string(path).map(|value| value.trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_of_the_namespace() {
        let (one, other) = (crate::testing::new_netns(), crate::testing::new_netns());
        let name = "ipv4/conf/lo/arp_notify".to_owned();
        let results = write(&one, &[(name.clone(), "1"), ("no/such".to_owned(), "1")]).unwrap();
        assert!(matches!(&results[..], [Ok(()), Err(_)]), "{results:?}");
        let values = [&one, &other].map(|netns| read(netns, &name).unwrap().unwrap());
        assert_eq!(values, ["1", "0"]);
    }
}
