//! VFs, pods and calls of the program, for tests.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The program under test: the one built with these tests, or the one that PODRAIL_SRIOV names.
pub(crate) fn program() -> String {
    std::env::var("PODRAIL_SRIOV").unwrap_or_else(|_| env!("CARGO_BIN_EXE_sriov").to_owned())
}

pub(crate) const STATE: &str = "/var/lib/cni/sriov";
pub(crate) const CNI_PATH: &str = "/usr/lib/cni";

/// igbvf looks every two seconds whether the PF is there, and resets itself if it was not. A reset that meets an
/// interface just closed waits for ever, with the kernel's RTNL lock in its hands.
pub(crate) const VF_RESET: Duration = Duration::from_secs(3);

/// The VFs that tests hold. A test that makes VFs anew holds all of them.
static TAKEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
/// The VFs that failed tests left as they were; no other test is to fail because of them.
static SPOILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static FREED: Condvar = Condvar::new();

/// Runs a program to its end; its standard output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `ip` with JSON output.
fn ip_json(arguments: &[&str]) -> Value {
    let text = run("ip", &[&["-details", "-json"], arguments].concat());
    if text.is_empty() { json!([]) } else { serde_json::from_str(&text).unwrap() }
}

/// A VF, nobody else's while this value lives.
pub(crate) struct Vf {
    pub(crate) address: String,
    pub(crate) pf: String,
    pub(crate) index: usize,
    _lease: Lease,
}

/// The right to a VF.
struct Lease(String);

impl Drop for Lease {
    fn drop(&mut self) {
        if std::thread::panicking() {
            SPOILT.lock().unwrap_or_else(PoisonError::into_inner).insert(self.0.clone());
        }
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        FREED.notify_all();
    }
}

impl Vf {
    /// Takes a VF that no other test has; waits for one.
    pub(crate) fn take() -> Self {
        Self::take_many(1).remove(0)
    }

    /// Takes several VFs at once.
    pub(crate) fn take_many(count: usize) -> Vec<Self> {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // Looked for anew each time: while all were taken, they may have been made anew.
            let free: Vec<_> =
                all_vfs().into_iter().filter(|vf| !taken.contains(&vf.0)).take(count).collect();
            if free.len() == count {
                taken.extend(free.iter().map(|vf| vf.0.clone()));
                return free.into_iter().map(Self::leased).collect();
            }
            taken = FREED.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes all VFs; waits until no test has any.
    pub(crate) fn take_all() -> Vec<Self> {
        Self::take_many(sound_vfs().len())
    }

    fn leased((address, pf, index): (String, String, usize)) -> Self {
        Self { _lease: Lease(address.clone()), address, pf, index }
    }

    /// Everything about the VF that is to be the same after DEL: what the PF says, its interface on the
    /// host (null when it has none there), its driver.
    pub(crate) fn snapshot(&self) -> Value {
        let netdev = self.link(None).map(|link| {
            let mut flags: Vec<_> = link["flags"].as_array().unwrap().clone();
            // Up and promiscuous count; carrier and the like come and go.
            flags.retain(|flag| ["UP", "PROMISC", "ALLMULTI"].contains(&flag.as_str().unwrap()));
            json!({"name": link["ifname"], "mac": link["address"], "mtu": link["mtu"],
                   "altnames": link["altnames"], "flags": flags})
        });
        json!({"pf": self.settings(), "netdev": netdev, "driver": self.driver()})
    }

    /// The PF's entry for the VF.
    pub(crate) fn settings(&self) -> Value {
        ip_json(&["link", "show", "dev", &self.pf])[0]["vfinfo_list"][self.index].clone()
    }

    /// The VF's interface in a pod, or on the host.
    pub(crate) fn link(&self, pod: Option<&Pod>) -> Option<Value> {
        let links = match pod {
            Some(pod) => ip_json(&["-netns", &pod.name, "link", "show"]),
            None => ip_json(&["link", "show"]),
        };
        links.as_array().unwrap().iter().find(|link| link["parentdev"] == json!(self.address)).cloned()
    }

    pub(crate) fn name(&self) -> String {
        let link = self.link(None).unwrap_or_else(|| panic!("VF {} has no interface here", self.address));
        link["ifname"].as_str().unwrap().to_owned()
    }

    pub(crate) fn driver(&self) -> Option<String> {
        let target = fs::read_link(self.sysfs().join("driver")).ok()?;
        Some(target.file_name().unwrap().to_str().unwrap().to_owned())
    }

    /// Whether it is bound to a driver for user space.
    pub(crate) fn is_in_user_space(&self) -> bool {
        self.driver().is_some_and(|driver| driver != "igbvf")
    }

    pub(crate) fn sysfs(&self) -> PathBuf {
        Path::new("/sys/bus/pci/devices").join(&self.address)
    }

    /// Binds the VF to another driver, or to none.
    pub(crate) fn bind(&self, driver: Option<&str>) {
        if self.driver().is_some() {
            fs::write(self.sysfs().join("driver/unbind"), &self.address).unwrap();
        }
        let Some(driver) = driver else { return };
        run("modprobe", &[driver]);
        fs::write(self.sysfs().join("driver_override"), driver).unwrap();
        fs::write("/sys/bus/pci/drivers_probe", &self.address).unwrap();
        fs::write(self.sysfs().join("driver_override"), "\n").unwrap();
        assert_eq!(self.driver().as_deref(), Some(driver));
    }

    /// A configuration for the VF, with `keys` added.
    pub(crate) fn conf(&self, keys: &Value) -> Value {
        let mut conf =
            json!({"cniVersion": "1.0.0", "name": "lab", "type": "sriov", "deviceID": self.address});
        let members = conf.as_object_mut().unwrap();
        members.extend(keys.as_object().unwrap().clone());
        conf
    }

    /// Whether any file speaks about the VF.
    pub(crate) fn has_state(&self) -> bool {
        let files = [format!("podrail/{}.json", self.address), format!("pci/{}", self.address)];
        let caches = fs::read_dir(STATE).into_iter().flatten().flatten();
        let is_cache = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains(&self.address));
        files.iter().any(|file| Path::new(STATE).join(file).exists())
            || caches.into_iter().any(|entry| is_cache(&entry.path()))
    }

    /// Fails unless the VF is as it was, and nothing is left behind.
    pub(crate) fn assert_is(&self, before: &Value, situation: &str) {
        assert_eq!(&self.snapshot(), before, "{situation}");
        assert!(!self.has_state(), "{situation}: state is left for {}", self.address);
    }
}

fn sound_vfs() -> Vec<(String, String, usize)> {
    let spoilt = SPOILT.lock().unwrap_or_else(PoisonError::into_inner);
    all_vfs().into_iter().filter(|vf| !spoilt.contains(&vf.0)).collect()
}

/// Address, PF and number of each VF of the machine.
fn all_vfs() -> Vec<(String, String, usize)> {
    let mut vfs = Vec::new();
    for device in fs::read_dir("/sys/bus/pci/devices").unwrap() {
        let device = device.unwrap().path();
        let Some(pf) = fs::read_dir(device.join("net")).ok().and_then(|mut net| net.next()) else { continue };
        let pf = pf.unwrap().file_name().into_string().unwrap();
        for index in 0.. {
            let Ok(target) = fs::read_link(device.join(format!("virtfn{index}"))) else { break };
            let address = target.file_name().unwrap().to_str().unwrap().to_owned();
            vfs.push((address, pf.clone(), index));
        }
    }
    assert!(!vfs.is_empty(), "this machine has no VF; these tests run in a lab guest: hack/test lab");
    vfs
}

/// A pod: a named network namespace, removed at the end.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) ifname: String,
    owns_namespace: bool,
}

impl Pod {
    pub(crate) fn new() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("pod{}x{serial}", std::process::id());
        run("ip", &["netns", "add", &name]);
        // The kernel brings an interface back to the host under this name, where tests must not clash.
        Self { name, ifname: format!("net{serial}"), owns_namespace: true }
    }

    /// The same pod, as the runtime calls for another of its interfaces.
    pub(crate) fn with_interface(&self, ifname: &str) -> Self {
        Self { name: self.name.clone(), ifname: ifname.to_owned(), owns_namespace: false }
    }

    pub(crate) fn netns(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Removes the namespace, as a runtime does before DEL when it has to.
    pub(crate) fn vanish(&self) {
        run("ip", &["netns", "delete", &self.name]);
    }

    /// Runs `ip` inside.
    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        run("ip", &[&["-netns", &self.name], arguments].concat())
    }

    /// Whether the pod has no interface but `lo`.
    pub(crate) fn is_empty(&self) -> bool {
        ip_json(&["-netns", &self.name, "link", "show"]).as_array().unwrap().len() == 1
    }

    pub(crate) fn can_ping(&self, address: &str) -> bool {
        // The emulated NIC takes a while to see its link.
        let arguments = ["netns", "exec", &self.name, "ping", "-c", "10", "-i", "0.5", "-W", "3", address];
        Command::new("ip").args(arguments).output().unwrap().status.success()
    }

    pub(crate) fn add(&self, conf: &Value) -> Outcome {
        call("ADD", self, &self.netns(), conf, &[])
    }

    pub(crate) fn del(&self, conf: &Value) -> Outcome {
        call("DEL", self, &self.netns(), conf, &[])
    }

    pub(crate) fn check(&self, conf: &Value) -> Outcome {
        call("CHECK", self, &self.netns(), conf, &[])
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if self.owns_namespace {
            let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
        }
    }
}

/// What a call of the program came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) success: bool,
    pub(crate) killed: bool,
    /// Result or error object; null for an empty output.
    pub(crate) answer: Value,
    pub(crate) log: String,
}

impl Outcome {
    /// From exit code or signal, and what was printed.
    pub(crate) fn new(end: Result<i32, Signal>, stdout: &[u8], stderr: &[u8]) -> Self {
        Self {
            success: end == Ok(0),
            killed: end == Err(Signal::SIGKILL),
            answer: serde_json::from_slice(stdout).unwrap_or(Value::Null),
            log: String::from_utf8_lossy(stderr).into_owned(),
        }
    }

    /// The result of a call that must succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.success, "{}\n{}", self.answer, self.log);
        self.answer
    }

    /// The message of a call that must fail.
    #[track_caller]
    pub(crate) fn error(self) -> String {
        assert!(!self.success && !self.killed, "should have failed: {}\n{}", self.answer, self.log);
        self.answer["msg"].as_str().unwrap_or_else(|| panic!("no msg in {}", self.answer)).to_owned()
    }
}

/// The program, ready to be called; `wrapper` goes in front of it (to set a variable).
pub(crate) fn command(verb: &str, pod: &Pod, netns: &str, wrapper: &[&str]) -> Command {
    let program = program();
    let line = [wrapper, &[&program]].concat();
    let (first, arguments) = line.split_first().unwrap();
    let mut command = Command::new(first);
    command
        .args(arguments)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &pod.name)
        .env("CNI_IFNAME", &pod.ifname)
        .env("CNI_NETNS", netns)
        .env("CNI_PATH", CNI_PATH);
    command
}

/// Calls the program.
pub(crate) fn call(verb: &str, pod: &Pod, netns: &str, conf: &Value, wrapper: &[&str]) -> Outcome {
    let mut child = command(verb, pod, netns, wrapper)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let end = match (output.status.code(), output.status.signal()) {
        (Some(code), _) => Ok(code),
        (None, signal) => Err(Signal::try_from(signal.unwrap()).unwrap()),
    };
    Outcome::new(end, &output.stdout, &output.stderr)
}

/// A `host-local` section with a store of its own, which must be empty in the end.
pub(crate) struct Addresses {
    directory: tempfile::TempDir,
}

impl Addresses {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn ipam(&self) -> Value {
        json!({"type": "host-local", "dataDir": self.directory.path(),
               "ranges": [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]],
               "routes": [{"dst": "198.51.100.0/24"}]})
    }

    /// The addresses that are held.
    pub(crate) fn held(&self) -> Vec<String> {
        let networks = fs::read_dir(self.directory.path()).unwrap();
        let files = networks.flat_map(|network| fs::read_dir(network.unwrap().path()).unwrap());
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip")).collect()
    }
}
