//! A sysfs tree made of ordinary files, for tests of what no machine at hand has.
//!
//! It mirrors the kernel's layout: devices stand once below `devices/`, and `bus/`, `class/` and
//! `kernel/iommu_groups/` hold relative symbolic links to them, so that code which follows a link, or
//! looks only at its last component, meets what it meets on a machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::Sysfs;

/// A fake sysfs, removed when dropped. Its methods panic when the tree cannot be built.
#[derive(Debug)]
pub struct FakeSysfs {
    directory: TempDir,
}

/// A PCI function in the fake tree; every method adds to it and returns it.
#[derive(Debug, Clone)]
pub struct FakePci<'a> {
    fake: &'a FakeSysfs,
    address: String,
}

impl Default for FakeSysfs {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(
    clippy::expect_used,
    reason = "a tree that cannot be built is a broken test, not an error to handle"
)]
impl FakeSysfs {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let fake = Self { directory };
        for path in ["bus/pci/devices", "bus/pci/drivers", "class/net", "devices/pci0000:00"] {
            fs::create_dir_all(fake.root().join(path)).expect("a directory");
        }
        fs::write(fake.root().join("bus/pci/drivers_probe"), "").expect("an attribute");
        fake
    }

    /// A reader of the tree.
    #[must_use]
    pub fn sysfs(&self) -> Sysfs {
        Sysfs::new(self.root())
    }

    /// Where the tree stands.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// The PCI function at `address`: made if it is new, as an Intel Ethernet function without a driver.
    pub fn pci(&self, address: &str) -> FakePci<'_> {
        let pci = FakePci { fake: self, address: address.to_owned() };
        if !pci.path().exists() {
            fs::create_dir_all(pci.path()).expect("a device directory");
            self.link(&pci.path(), &format!("bus/pci/devices/{address}"));
            self.link(&self.root().join("bus/pci"), &format!("devices/pci0000:00/{address}/subsystem"));
            return pci
                .attribute("vendor", "0x8086")
                .attribute("device", "0x10c9")
                .attribute("class", "0x020000")
                .attribute("driver_override", "(null)")
                .attribute("numa_node", "-1");
        }
        pci
    }

    /// Makes the device at `path`, and the link to it that the kernel puts into its class.
    fn link_class(&self, class: &str, path: &str) {
        let device = self.root().join(path);
        fs::create_dir_all(&device).expect("a directory");
        let name = device.file_name().expect("a name").to_string_lossy();
        self.link(&device, &format!("class/{class}/{name}"));
    }

    /// Writes what the kernel's `uevent` of a function tells.
    fn pci_uevent(&self, address: &str) {
        let path = self.root().join("devices/pci0000:00").join(address);
        let hex = |name: &str| {
            let text = fs::read_to_string(path.join(name)).unwrap_or_default();
            text.trim().trim_start_matches("0x").to_uppercase()
        };
        let driver = fs::read_link(path.join("driver")).ok();
        let driver =
            driver.and_then(|link| Some(format!("DRIVER={}\n", link.file_name()?.to_string_lossy())));
        let (class, vendor, device) = (hex("class"), hex("vendor"), hex("device"));
        let text = format!(
            "{}PCI_CLASS={}\nPCI_ID={vendor}:{device}\nPCI_SLOT_NAME={address}\n",
            driver.unwrap_or_default(),
            class.trim_start_matches('0')
        );
        fs::write(path.join("uevent"), text).expect("an attribute");
    }

    /// Sets an attribute anywhere in the tree; the kernel's final newline is added. Directories are made.
    pub fn attribute(&self, path: &str, value: &str) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, format!("{value}\n")).expect("an attribute");
    }

    /// Puts functions behind the bridge `bridge` of the root.
    pub fn behind(&self, bridge: &str, functions: &[&str]) {
        for function in functions {
            let from = self.root().join("devices/pci0000:00").join(function);
            let to = format!("devices/pci0000:00/{bridge}/{function}");
            fs::create_dir_all(self.root().join("devices/pci0000:00").join(bridge)).expect("a directory");
            fs::rename(from, self.root().join(&to)).expect("a device directory");
            self.link(&self.root().join(&to), &format!("bus/pci/devices/{function}"));
        }
    }

    /// Takes a function away, as an unplug or `echo 0 > sriov_numvfs` does.
    pub fn remove(&self, address: &str) {
        let path = self.pci(address).path();
        for class in ["net", "infiniband"] {
            for entry in fs::read_dir(path.join(class)).into_iter().flatten().flatten() {
                let _ = fs::remove_file(self.root().join("class").join(class).join(entry.file_name()));
            }
        }
        for entry in fs::read_dir(path.join("physfn")).into_iter().flatten().flatten() {
            let is_link = entry.file_name().to_string_lossy().starts_with("virtfn");
            if is_link && fs::read_link(entry.path()).is_ok_and(|target| target.ends_with(address)) {
                fs::remove_file(entry.path()).expect("the PF's link");
            }
        }
        fs::remove_dir_all(&path).expect("a device directory");
        fs::remove_file(self.root().join("bus/pci/devices").join(address)).expect("a bus link");
    }

    /// Makes `root/name` a relative symbolic link to `target`, replacing what is there.
    fn link(&self, target: &Path, name: &str) {
        let path = self.root().join(name);
        let parent = Path::new(name).parent().unwrap_or(Path::new(""));
        fs::create_dir_all(self.root().join(parent)).expect("a directory");
        let up: PathBuf = parent.components().map(|_| "..").collect();
        let target = target.strip_prefix(self.root()).expect("a path in the tree");
        let _ = fs::remove_file(&path);
        symlink(up.join(target), path).expect("a symbolic link");
    }
}

#[expect(
    clippy::expect_used,
    reason = "a tree that cannot be built is a broken test, not an error to handle"
)]
impl FakePci<'_> {
    fn path(&self) -> PathBuf {
        self.fake.root().join("devices/pci0000:00").join(&self.address)
    }

    fn link(&self, target: &str, name: &str) {
        let Self { fake, address } = self;
        fake.link(&fake.root().join(target), &format!("devices/pci0000:00/{address}/{name}"));
    }

    /// Sets an attribute; the kernel's final newline is added. Sub-directories are made: one such as `net/eth0` or
    /// `infiniband/mlx5_0` is a device, with its link in the class.
    pub fn attribute(self, name: &str, value: &str) -> Self {
        for class in ["net", "infiniband"] {
            let parts: Vec<&str> = name.split('/').collect();
            let Some(at) = parts.iter().position(|part| *part == class) else { continue };
            if let Some(device) = parts.get(..at + 2).filter(|device| device.len() < parts.len()) {
                let device = format!("devices/pci0000:00/{}/{}", self.address, device.join("/"));
                self.fake.link_class(class, &device);
            }
        }
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, format!("{value}\n")).expect("an attribute");
        if ["class", "vendor", "device"].contains(&name) {
            self.fake.pci_uevent(&self.address);
        }
        self
    }

    /// Binds a driver.
    pub fn driver(self, driver: &str) -> Self {
        let (fake, address) = (self.fake, self.address.clone());
        fs::create_dir_all(fake.root().join("bus/pci/drivers").join(driver)).expect("a directory");
        self.link(&format!("bus/pci/drivers/{driver}"), "driver");
        fake.pci_uevent(&address);
        fake.link(&self.path(), &format!("bus/pci/drivers/{driver}/{address}"));
        if driver == "vfio-pci" {
            return self.attribute("vfio-dev/vfio0/uevent", "");
        }
        self
    }

    /// Gives the function SR-IOV: it may have `total` VFs and has none.
    pub fn sriov(self, total: u32) -> Self {
        self.attribute("sriov_totalvfs", &total.to_string()).attribute("sriov_numvfs", "0")
    }

    /// Makes the function VF number `index` of `pf`, which must have been made.
    pub fn vf_of(self, pf: &str, index: u32) -> Self {
        self.link(&format!("devices/pci0000:00/{pf}"), "physfn");
        let pf = self.fake.pci(pf);
        pf.link(&format!("devices/pci0000:00/{}", self.address), &format!("virtfn{index}"));
        let links = fs::read_dir(pf.path()).expect("the PF's directory").flatten();
        let count = links.filter(|e| e.file_name().to_string_lossy().starts_with("virtfn")).count();
        pf.attribute("sriov_numvfs", &count.to_string());
        self.attribute("device", "0x10ca")
    }

    /// Adds a network device, Ethernet and up.
    pub fn netdev(&self, name: &str) -> Self {
        let pci = self.clone();
        let (fake, address) = (self.fake, &self.address);
        let device = format!("devices/pci0000:00/{address}/net/{name}");
        fake.link_class("net", &device);
        fake.link(&self.path(), &format!("{device}/device"));
        pci.net_attribute(name, "type", "1")
            .net_attribute(name, "flags", "0x1003")
            .net_attribute(name, "operstate", "up")
            .net_attribute(name, "carrier", "1")
    }

    /// Sets a network device of the function down: then its carrier cannot be read.
    pub fn netdev_down(self, netdev: &str) -> Self {
        fs::remove_file(self.path().join("net").join(netdev).join("carrier")).expect("a carrier");
        self.net_attribute(netdev, "flags", "0x1002").net_attribute(netdev, "operstate", "down")
    }

    /// Sets an attribute of a network device of the function.
    pub fn net_attribute(self, netdev: &str, name: &str, value: &str) -> Self {
        self.attribute(&format!("net/{netdev}/{name}"), value)
    }

    /// Adds the auxiliary device `name`, bound to `driver`.
    pub fn auxiliary(self, name: &str, driver: &str) -> Self {
        self.child("auxiliary", name, driver)
    }

    /// Adds the vDPA device `name`, bound to `driver`.
    pub fn vdpa(self, name: &str, driver: &str) -> Self {
        self.child("vdpa", name, driver)
    }

    /// Adds a device that stands on a bus of its own below the function.
    fn child(self, bus: &str, name: &str, driver: &str) -> Self {
        let (fake, address) = (self.fake, &self.address);
        let device = format!("devices/pci0000:00/{address}/{name}");
        let driver = format!("bus/{bus}/drivers/{driver}");
        for directory in [&device, &driver] {
            fs::create_dir_all(fake.root().join(directory)).expect("a directory");
        }
        fake.link(&fake.root().join(&device), &format!("bus/{bus}/devices/{name}"));
        fake.link(&fake.root().join(&driver), &format!("{device}/driver"));
        self
    }

    /// Puts the function into an IOMMU group.
    pub fn iommu_group(self, id: u32) -> Self {
        let group = format!("kernel/iommu_groups/{id}");
        self.fake.link(&self.path(), &format!("{group}/devices/{}", self.address));
        self.link(&group, "iommu_group");
        self
    }
}
