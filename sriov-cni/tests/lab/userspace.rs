//! VFs for programs in user space.

use std::path::Path;

use serde_json::{Value, json};

use crate::machine::{Addresses, Pod, Vf, run};

/// A VF bound to a driver for user space, given back to its network driver at the end.
pub(crate) struct Vfio(Vf);

impl Vfio {
    pub(crate) fn take_many(count: usize) -> Vec<Self> {
        let bound = |vf: Vf| {
            vf.bind(Some("vfio-pci"));
            Self(vf)
        };
        Vf::take_many(count).into_iter().map(bound).collect()
    }

    fn take_with(driver: &str) -> Self {
        let vf = Vf::take();
        vf.bind(Some(driver));
        Self(vf)
    }

    pub(crate) fn vf(&self) -> &Vf {
        &self.0
    }
}

impl Drop for Vfio {
    fn drop(&mut self) {
        self.0.bind(Some("igbvf"));
        // udev names the interface anew; the next test wants it settled.
        run("udevadm", &["settle"]);
    }
}

/// Fault 1 of docs/sriov.md.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn settings_are_made_and_taken_back_by_one_del() {
    for driver in ["vfio-pci", "uio_pci_generic"] {
        let (vfio, pod, addresses) = (Vfio::take_with(driver), Pod::new(), Addresses::new());
        let vf = vfio.vf();
        let before = vf.snapshot();
        assert_eq!(before["netdev"], Value::Null);
        let conf =
            vf.conf(&json!({"vlan": 7, "mac": "02:00:00:00:02:01", "trust": "on", "ipam": addresses.ipam()}));
        let result = pod.add(&conf).ok();
        assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:02:01");
        assert_eq!(result["ips"][0]["address"], "192.0.2.2/24");
        assert_eq!(vf.settings()["vlan_list"][0]["vlan"], 7);
        assert!(pod.is_empty(), "addresses are told, not configured");

        // With the namespace alive: once is enough, and the VF can be had again at once.
        pod.del(&conf).ok();
        vf.assert_is(&before, &format!("{driver}: after DEL"));
        assert!(addresses.held().is_empty());
        let next = Pod::new();
        next.add(&conf).ok();
        next.del(&conf).ok();
        vf.assert_is(&before, &format!("{driver}: after the next pod"));
    }
}

/// The peers read no `mtu`: a configuration with one works there, so it has to here.
#[test]
#[ignore = "needs VFs: run in the lab"]
fn an_mtu_is_left_to_the_program_that_drives_the_vf() {
    let (vfio, pod) = (Vfio::take_with("vfio-pci"), Pod::new());
    let vf = vfio.vf();
    let before = vf.snapshot();
    let conf = vf.conf(&json!({"cniVersion": "1.1.0", "mtu": 1400}));
    let outcome = pod.add(&conf);
    assert!(outcome.log.contains("mtu is left to the program"), "{}", outcome.log);
    assert_eq!(outcome.ok()["interfaces"][0]["mtu"], 1500, "that of the PF");
    pod.del(&conf).ok();
    vf.assert_is(&before, "after DEL");
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_vf_rebound_while_attached_is_given_back_all_the_same() {
    let (vf, pod) = (Vf::take(), Pod::new());
    let before = vf.snapshot();
    let conf = vf.conf(&json!({"vlan": 7}));
    pod.add(&conf).ok();
    vf.bind(Some("vfio-pci"));
    pod.del(&conf).ok();
    assert!(!vf.has_state());
    assert_eq!(vf.settings(), before["pf"]);
    vf.bind(Some("igbvf"));
    run("udevadm", &["settle"]);
}

#[test]
#[ignore = "needs VFs: run in the lab"]
fn a_vf_without_a_driver_is_refused() {
    let (vf, pod) = (Vf::take(), Pod::new());
    vf.bind(None);
    let error = pod.add(&vf.conf(&json!({"vlan": 7}))).error();
    assert!(error.contains("has no driver"), "{error}");
    assert!(!vf.has_state());
    vf.bind(Some("igbvf"));
    run("udevadm", &["settle"]);
    assert!(Path::new(&format!("/sys/class/net/{}", vf.name())).exists());
}
