//! Binding a PCI function to a driver (`Documentation/ABI/testing/sysfs-bus-pci`).

use super::{PciDevice, Result, SysfsError, write};

impl PciDevice {
    /// Binds the function to `driver`, releasing it from any other, by `driver_override` and
    /// `drivers_probe`: the way that names one device and no device ID, so that no other function with
    /// the same ID is taken along.
    ///
    /// # Errors
    /// The driver's module is not loaded, the driver refuses the device, or the kernel does.
    pub fn bind(&self, driver: &str) -> Result<()> {
        if self.driver()?.as_deref() == Some(driver) {
            return Ok(());
        }
        self.set_driver_override(driver)?;
        self.unbind()?;
        self.probe()?;
        match self.driver()? {
            Some(found) if found == driver => Ok(()),
            found => Err(SysfsError::NotBound {
                address: self.address(),
                wanted: driver.to_owned(),
                found: found.unwrap_or_else(|| "no driver".to_owned()),
            }),
        }
    }

    /// Gives the function back to the driver that the kernel would choose for its device ID.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn bind_default(&self) -> Result<()> {
        // An empty line clears the override; an empty write would be ignored.
        self.set_driver_override("\n")?;
        self.unbind()?;
        self.probe()
    }

    /// Releases the function from its driver, if it has one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unbind(&self) -> Result<()> {
        if self.driver()?.is_none() {
            return Ok(());
        }
        write(&self.path().join("driver/unbind"), &self.address().to_string())
    }

    fn set_driver_override(&self, driver: &str) -> Result<()> {
        write(&self.path().join("driver_override"), driver)
    }

    fn probe(&self) -> Result<()> {
        write(&self.sysfs().root().join("bus/pci/drivers_probe"), &self.address().to_string())
    }
}
