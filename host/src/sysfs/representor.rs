//! The network devices that stand for VFs in a NIC's embedded switch (`Documentation/networking/switchdev.rst`).

use super::{NetDevice, PciDevice, Result, Sysfs};

impl Sysfs {
    /// The network device that stands for VF `number` of `pf` while its NIC is in switchdev mode; `None` otherwise, or
    /// while the device is in another network namespace.
    ///
    /// # Errors
    /// A directory or an attribute cannot be read.
    pub fn representor(&self, pf: &PciDevice, number: u32) -> Result<Option<String>> {
        let Some(uplink) = pf.main_netdev()? else { return Ok(None) };
        let Some(switch) = uplink.phys_switch_id()? else { return Ok(None) };
        // The kernel numbers PFs by their PCI function.
        let port = format!("pf{}vf{number}", pf.address().routing_id() & 7);
        let find = |devices: Vec<NetDevice>| {
            for device in devices {
                if device.phys_port_name()?.as_deref() == Some(port.as_str())
                    && device.phys_switch_id()?.as_ref() == Some(&switch)
                {
                    return Ok(Some(device.name().to_owned()));
                }
            }
            Ok(None)
        };
        // Most drivers put the device below the PF, others below nothing.
        match find(pf.netdevs()?)? {
            None => {
                let names = self.directory("class/net").names()?;
                find(names.iter().map(|name| self.net_device(name)).collect())
            }
            found => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::sysfs::fake::FakeSysfs;

    #[test]
    fn a_vf_is_found_by_switch_and_port() {
        let fake = FakeSysfs::new();
        for (address, uplink, switch) in [("0000:3b:00.0", "p0", "c0ffee"), ("0000:3b:00.1", "p1", "c0ffee")]
        {
            fake.pci(address).netdev(uplink).net_attribute(uplink, "phys_switch_id", switch).net_attribute(
                uplink,
                "phys_port_name",
                uplink,
            );
        }
        let representors = [
            ("eth0", "c0ffee", "pf0vf3"),
            ("eth1", "c0ffee", "pf1vf3"),
            ("eth2", "c0ffee", "c1pf0vf4"),
            ("eth3", "decaf", "pf0vf4"),
        ];
        for (name, switch, port) in representors {
            fake.attribute(&format!("class/net/{name}/phys_switch_id"), switch);
            fake.attribute(&format!("class/net/{name}/phys_port_name"), port);
        }
        fake.pci("0000:5e:00.0").netdev("legacy");
        let sysfs = fake.sysfs();
        let cases = [
            ("0000:3b:00.0", 3, Some("eth0")),
            ("0000:3b:00.1", 3, Some("eth1")),
            ("0000:3b:00.0", 4, None),
            ("0000:5e:00.0", 3, None),
        ];
        for (pf, number, expected) in cases {
            let pf = sysfs.pci_device(pf.parse().unwrap()).unwrap();
            assert_eq!(
                sysfs.representor(&pf, number).unwrap().as_deref(),
                expected,
                "{} {number}",
                pf.address()
            );
        }
    }
}
