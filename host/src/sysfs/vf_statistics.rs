//! Counters of VFs below their PF, `sriov/<number>/stats/`: Intel's `i40e` and `ice` have them where they do not come
//! with the kernel. The names of the files are the driver's.

use std::collections::BTreeMap;

use super::{PciDevice, Result};

impl PciDevice {
    /// The counters that the driver of this PF keeps of VF `number`, by their names; empty with most drivers.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn vf_statistics(&self, number: u32) -> Result<BTreeMap<String, u64>> {
        let directory = self.directory().child("sriov").child(&number.to_string()).child("stats");
        let mut counters = BTreeMap::new();
        for name in directory.names()? {
            if let Some(value) = directory.attribute(&name)?.and_then(|text| text.parse().ok()) {
                counters.insert(name, value);
            }
        }
        Ok(counters)
    }
}

#[cfg(test)]
mod tests {
    use crate::sysfs::fake::FakeSysfs;

    #[test]
    fn counters_of_a_driver_that_has_them() {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:00.0")
            .attribute("sriov/3/stats/rx_bytes", "7")
            .attribute("sriov/3/stats/tx_errors", "0")
            .attribute("sriov/3/stats/note", "no number")
            .attribute("sriov/3/trust", "on");
        let pf = fake.sysfs().pci_device("0000:3b:00.0".parse().unwrap()).unwrap();
        let counters = pf.vf_statistics(3).unwrap();
        assert_eq!(
            counters.into_iter().collect::<Vec<_>>(),
            [("rx_bytes".into(), 7), ("tx_errors".into(), 0)]
        );
        assert!(pf.vf_statistics(4).unwrap().is_empty());
    }
}
