//! A PF of this machine with its VFs, changed as an administrator changes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

const FUNCTIONS: &str = "/sys/bus/pci/devices";
const NETDEV_DRIVER: &str = "igbvf";

/// How long the kernel and udev may take for anything.
const LIMIT: Duration = Duration::from_secs(30);

/// igbvf looks every two seconds whether the PF is there, and resets itself if it was not: then it is left alone.
const VF_RESET: Duration = Duration::from_secs(3);

/// Tests have the PF one after the other.
static TURN: Mutex<()> = Mutex::new(());

/// Runs a program to its end.
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for {what}");
        sleep(Duration::from_millis(10));
    }
}

/// Where a function stands in sysfs.
fn function(address: &str) -> PathBuf {
    Path::new(FUNCTIONS).join(address)
}

fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

/// The network device of a function.
fn netdev(address: &str) -> Option<String> {
    let mut names = fs::read_dir(function(address).join("net")).ok()?;
    names.next()?.ok()?.file_name().into_string().ok()
}

fn vfs(pf: &str) -> Vec<String> {
    let link = |number: usize| link_name(&function(pf).join(format!("virtfn{number}")));
    (0..).map_while(link).collect()
}

/// The driver of a function.
pub(crate) fn driver(address: &str) -> Option<String> {
    link_name(&function(address).join("driver"))
}

/// The first PF of this machine, nobody else's while this value lives, and as it was afterwards.
pub(crate) struct Pf {
    pub(crate) address: String,
    pub(crate) name: String,
    vfs: usize,
    _turn: MutexGuard<'static, ()>,
}

impl Pf {
    /// Waits for the PF.
    pub(crate) fn take() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pfs: Vec<_> = fs::read_dir(FUNCTIONS)
            .unwrap()
            .map(|function| function.unwrap().file_name().into_string().unwrap())
            .filter(|address| function(address).join("sriov_totalvfs").exists())
            .collect();
        pfs.sort();
        let address = pfs.first().expect("a PF: these tests run in a lab guest, see hack/test lab").clone();
        let name = netdev(&address).unwrap();
        let vfs = vfs(&address).len();
        assert!(vfs >= 5, "PF {address} has {vfs} VFs, these tests want five");
        Self { address, name, vfs, _turn: turn }
    }

    /// The addresses of the VFs, in the order of their numbers.
    pub(crate) fn vfs(&self) -> Vec<String> {
        vfs(&self.address)
    }

    /// Changes how many VFs there are; from one number to another the kernel goes through none.
    pub(crate) fn make_vfs(&self, count: usize) {
        let attribute = function(&self.address).join("sriov_numvfs");
        if fs::read_to_string(&attribute).unwrap().trim() != "0" {
            fs::write(&attribute, "0").unwrap();
        }
        if count > 0 {
            fs::write(&attribute, count.to_string()).unwrap();
        }
        assert_eq!(self.vfs().len(), count);
    }

    /// Binds a VF to another driver, or to none.
    pub(crate) fn bind(&self, vf: &str, wanted: Option<&str>) {
        if driver(vf).is_some() {
            fs::write(function(vf).join("driver/unbind"), vf).unwrap();
        }
        if let Some(wanted) = wanted {
            fs::write(function(vf).join("driver_override"), wanted).unwrap();
            fs::write("/sys/bus/pci/drivers_probe", vf).unwrap();
            fs::write(function(vf).join("driver_override"), "\n").unwrap();
        }
        assert_eq!(driver(vf).as_deref(), wanted);
    }

    /// Gives the PF's network device another name.
    pub(crate) fn rename(&self, from: &str, to: &str) {
        run("ip", &["link", "set", from, "down"]);
        // udev keeps the old name as an alternative one, and that stands in its own way.
        run("udevadm", &["settle"]);
        let _ = Command::new("ip").args(["link", "property", "del", "dev", from, "altname", to]).output();
        run("ip", &["link", "set", from, "name", to]);
        run("ip", &["link", "set", to, "up"]);
        self.wait_carrier();
    }

    pub(crate) fn link_down(&self) {
        run("ip", &["link", "set", &netdev(&self.address).unwrap(), "down"]);
    }

    /// Sets the link up; returns when it has a carrier.
    pub(crate) fn link_up(&self) {
        run("ip", &["link", "set", &netdev(&self.address).unwrap(), "up"]);
        self.wait_carrier();
    }

    fn wait_carrier(&self) {
        let carrier = || {
            let net = function(&self.address).join("net").join(netdev(&self.address)?);
            fs::read_to_string(net.join("carrier")).ok()
        };
        until("the PF's carrier", || carrier().is_some_and(|carrier| carrier.trim() == "1"));
    }

    /// Pulls the PF out, as far as software can.
    pub(crate) fn unplug(&self) {
        fs::write(function(&self.address).join("remove"), "1").unwrap();
        until("the PF to be gone", || !function(&self.address).exists());
    }

    /// Has the kernel look for what was plugged in, and waits for the PF.
    pub(crate) fn plug(&self) {
        fs::write("/sys/bus/pci/rescan", "1").unwrap();
        until("the PF's network device", || netdev(&self.address).is_some());
        run("udevadm", &["settle"]);
        self.link_up();
    }
}

impl Drop for Pf {
    fn drop(&mut self) {
        if !function(&self.address).exists() {
            self.plug();
        }
        let name = netdev(&self.address).unwrap();
        if name != self.name {
            self.rename(&name, &self.name);
        }
        self.link_up();
        if self.vfs().len() != self.vfs {
            self.make_vfs(self.vfs);
        }
        for vf in self.vfs() {
            if driver(&vf).as_deref() != Some(NETDEV_DRIVER) {
                self.bind(&vf, Some(NETDEV_DRIVER));
            }
            until("the VF's network device", || netdev(&vf).is_some());
        }
        run("udevadm", &["settle"]);
        sleep(VF_RESET);
    }
}
