//! The character devices of RDMA devices (`Documentation/ABI/stable/sysfs-class-infiniband`).

use super::{Result, Sysfs};

/// Names below `/dev/infiniband` of the nodes of one RDMA device, each `None` where its module is not loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RdmaNodes {
    /// The verbs node, such as `uverbs0`.
    pub uverbs: Option<String>,
    /// The user MAD node, such as `umad0`.
    pub umad: Option<String>,
    /// The subnet manager's node, such as `issm0`.
    pub issm: Option<String>,
    /// The connection manager's node of old kernels, such as `ucm0`.
    pub ucm: Option<String>,
}

impl Sysfs {
    /// The nodes of the RDMA device `name`, such as `mlx5_2`. Empty while the device is in another network
    /// namespace in exclusive mode.
    ///
    /// # Errors
    /// A class directory or attribute cannot be read.
    pub fn rdma_nodes(&self, name: &str) -> Result<RdmaNodes> {
        let mut nodes = RdmaNodes::default();
        for class in ["infiniband_verbs", "infiniband_mad", "infiniband_cm"] {
            let directory = self.directory("class").child(class);
            for node in directory.names()? {
                // Beside the nodes stand attributes of the class itself, such as `abi_version`.
                let slot = match node.trim_end_matches(|c: char| c.is_ascii_digit()) {
                    "uverbs" => &mut nodes.uverbs,
                    "umad" => &mut nodes.umad,
                    "issm" => &mut nodes.issm,
                    "ucm" => &mut nodes.ucm,
                    _ => continue,
                };
                if directory.child(&node).attribute("ibdev")?.as_deref() != Some(name) {
                    continue;
                }
                *slot = Some(node);
            }
        }
        Ok(nodes)
    }

    /// The first partition key of the first port of the RDMA device `name`, such as `0xffff`.
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn rdma_pkey(&self, name: &str) -> Result<Option<String>> {
        self.directory("class/infiniband").child(name).attribute("ports/1/pkeys/0")
    }

    /// Whether the kernel offers the character device `name` of class `misc`, such as `vhost-net`, `tun` or
    /// `iommu`. One whose module loads on first use is not offered before.
    ///
    /// # Errors
    /// The attribute is not a device number.
    pub fn has_misc_device(&self, name: &str) -> Result<bool> {
        let directory = self.directory("class/misc").child(name);
        let number = directory.parsed::<DeviceNumber>("dev", "major:minor")?;
        Ok(number.is_some())
    }
}

/// `major:minor`, of which only the form matters here.
struct DeviceNumber;

impl std::str::FromStr for DeviceNumber {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let (major, minor) = text.split_once(':').unwrap_or((text, ""));
        major.parse::<u32>().and(minor.parse::<u32>()).map(|_| Self)
    }
}

#[cfg(test)]
mod tests {
    use crate::sysfs::fake::FakeSysfs;

    #[test]
    fn nodes_are_found_by_their_device() {
        let fake = FakeSysfs::new();
        let attributes = [
            ("class/infiniband_verbs/uverbs4/ibdev", "mlx5_4"),
            ("class/infiniband_verbs/uverbs5/ibdev", "mlx5_5"),
            ("class/infiniband_verbs/abi_version", "6"),
            ("class/infiniband_mad/umad5/ibdev", "mlx5_5"),
            ("class/infiniband_mad/issm5/ibdev", "mlx5_5"),
            ("class/infiniband/mlx5_5/ports/1/pkeys/0", "0x7fff"),
            ("class/misc/tun/dev", "10:200"),
        ];
        for (path, text) in attributes {
            fake.attribute(path, text);
        }
        let sysfs = fake.sysfs();
        let nodes = sysfs.rdma_nodes("mlx5_5").unwrap();
        let names = [nodes.uverbs, nodes.umad, nodes.issm, nodes.ucm].map(Option::unwrap_or_default);
        assert_eq!(names, ["uverbs5", "umad5", "issm5", ""]);
        assert_eq!(sysfs.rdma_nodes("mlx5_4").unwrap().umad, None);
        assert_eq!(sysfs.rdma_pkey("mlx5_5").unwrap().as_deref(), Some("0x7fff"));
        assert!(sysfs.has_misc_device("tun").unwrap());
        assert!(!sysfs.has_misc_device("vhost-net").unwrap());
    }
}
