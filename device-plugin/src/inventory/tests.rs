use std::os::unix::fs::symlink;

use host::sysfs::fake::FakeSysfs;
use proptest::prelude::*;

use super::*;

const PFS: [&str; 2] = ["0000:3b:00.0", "0000:5e:00.0"];

fn vf(pf: usize, number: u32) -> String {
    PFS[pf].replace(":00.0", &format!(":10.{number}"))
}

/// What happens to a machine. Numbers name a PF, a VF of it, a driver, an interface.
#[derive(Debug, Clone)]
enum Happening {
    Plug(usize, u32),
    Unplug(usize, u32),
    UnplugPf(usize),
    Bind(usize, u32, usize),
    Rename(usize, u32),
    Carrier(usize, bool),
    Enslave(usize, u32),
    ScalableFunction(usize, u32),
    Vdpa(usize, u32),
    Rdma(usize, u32),
    Route(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    let (pf, number) = (0..PFS.len(), 0..4_u32);
    prop_oneof![
        4 => (pf.clone(), number.clone()).prop_map(|(pf, vf)| Happening::Plug(pf, vf)),
        2 => (pf.clone(), number.clone()).prop_map(|(pf, vf)| Happening::Unplug(pf, vf)),
        1 => pf.clone().prop_map(Happening::UnplugPf),
        2 => (pf.clone(), number.clone(), 0..2_usize).prop_map(|(pf, vf, to)| Happening::Bind(pf, vf, to)),
        1 => (pf.clone(), number.clone()).prop_map(|(pf, name)| Happening::Rename(pf, name)),
        1 => (pf.clone(), any::<bool>()).prop_map(|(pf, up)| Happening::Carrier(pf, up)),
        1 => (pf.clone(), number.clone()).prop_map(|(pf, vf)| Happening::Enslave(pf, vf)),
        1 => (pf.clone(), number.clone()).prop_map(|(pf, sf)| Happening::ScalableFunction(pf, sf)),
        1 => (pf.clone(), number.clone()).prop_map(|(pf, vf)| Happening::Vdpa(pf, vf)),
        1 => (pf.clone(), number).prop_map(|(pf, vf)| Happening::Rdma(pf, vf)),
        1 => pf.prop_map(Happening::Route),
    ]
}

/// A machine, and what the kernel says of what happens to it.
struct Machine {
    fake: FakeSysfs,
    routes: DefaultRoutes,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { fake: FakeSysfs::new(), routes: DefaultRoutes::new() };
        machine.fake.pci("0000:00:1f.0").attribute("class", "0x060100");
        machine
    }

    fn read(&self) -> Inventory {
        Inventory::read(&self.fake.sysfs(), &self.routes).unwrap()
    }

    fn has(&self, address: &str) -> bool {
        self.fake.root().join("bus/pci/devices").join(address).exists()
    }

    fn plug_pf(&self, pf: usize) -> bool {
        let is_new = !self.has(PFS[pf]);
        if is_new {
            self.fake.pci(PFS[pf]).driver("igb").sriov(7).netdev(&format!("eth{pf}"));
        }
        is_new
    }

    /// The VF, and its PF if that is new too.
    fn plug(&self, pf: usize, number: u32) -> Vec<String> {
        let address = vf(pf, number);
        let mut said = vec![address.clone()];
        if self.plug_pf(pf) {
            said.push(PFS[pf].to_owned());
        }
        if !self.has(&address) {
            self.fake.pci(&address).vf_of(PFS[pf], number).driver("igbvf");
            self.fake.pci(&address).netdev(&format!("eth{pf}v{number}"));
        }
        said
    }

    /// Makes it happen; the functions of the events.
    fn make(&mut self, happening: &Happening) -> Vec<String> {
        let fake = &self.fake;
        match *happening {
            Happening::Plug(pf, number) => self.plug(pf, number),
            Happening::Unplug(pf, number) => {
                let address = vf(pf, number);
                if self.has(&address) {
                    fake.remove(&address);
                }
                vec![address]
            }
            Happening::UnplugPf(pf) => {
                let mut gone: Vec<String> = (0..4).map(|number| vf(pf, number)).collect();
                gone.push(PFS[pf].to_owned());
                gone.retain(|address| self.has(address));
                gone.iter().for_each(|address| fake.remove(address));
                gone
            }
            Happening::Bind(pf, number, to) => {
                let said = self.plug(pf, number);
                fake.pci(&said[0]).driver(["igbvf", "vfio-pci"][to]);
                said
            }
            Happening::Rename(pf, name) => {
                self.plug_pf(pf);
                let net = fake.root().join("devices/pci0000:00").join(PFS[pf]).join("net");
                for old in std::fs::read_dir(&net).unwrap().flatten() {
                    std::fs::remove_file(fake.root().join("class/net").join(old.file_name())).unwrap();
                    std::fs::remove_dir_all(old.path()).unwrap();
                }
                fake.pci(PFS[pf]).netdev(&format!("wan{pf}n{name}"));
                vec![PFS[pf].to_owned()]
            }
            Happening::Carrier(pf, up) => {
                self.plug_pf(pf);
                let net = fake.root().join("devices/pci0000:00").join(PFS[pf]).join("net");
                let name = std::fs::read_dir(&net).unwrap().flatten().next().unwrap().file_name();
                let carrier = if up { "1" } else { "0" };
                fake.pci(PFS[pf]).net_attribute(&name.to_string_lossy(), "carrier", carrier);
                vec![PFS[pf].to_owned()]
            }
            Happening::Enslave(pf, number) => {
                let said = self.plug(pf, number);
                let netdev = fake.root().join(format!("class/net/eth{pf}v{number}"));
                if netdev.exists() {
                    let _ = symlink("../bond0", netdev.join("master"));
                }
                said
            }
            Happening::ScalableFunction(pf, number) => {
                self.plug_pf(pf);
                fake.pci(PFS[pf])
                    .auxiliary(&format!("mlx5_core.sf.{}", pf * 8 + number as usize), "mlx5_core.sf");
                vec![PFS[pf].to_owned()]
            }
            Happening::Vdpa(pf, number) => {
                let said = self.plug(pf, number);
                fake.pci(&said[0]).vdpa(&format!("vdpa{pf}{number}"), "vhost_vdpa");
                said
            }
            Happening::Rdma(pf, number) => {
                let said = self.plug(pf, number);
                fake.pci(&said[0]).attribute(&format!("infiniband/mlx5_{pf}{number}/node_type"), "1");
                said
            }
            Happening::Route(pf) => {
                self.routes = DefaultRoutes::from([format!("eth{pf}")]);
                Vec::new()
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Events of any kind, looked at one by one or gathered: the inventory is what a look at everything finds.
    #[test]
    fn what_events_make_of_it_is_what_is_there(
        rounds in prop::collection::vec(prop::collection::vec(happening(), 1..4), 1..8)
    ) {
        let mut machine = Machine::new();
        let mut inventory = machine.read();
        for round in rounds {
            let mut scope = Scope::default();
            for happening in &round {
                for function in machine.make(happening) {
                    scope.add(function.parse().unwrap());
                }
            }
            inventory = inventory.renewed(&machine.fake.sysfs(), &machine.routes, &scope).unwrap();
            prop_assert_eq!(&inventory, &machine.read(), "after {:?}", round);
        }
    }
}

#[test]
fn an_event_costs_what_it_concerns() {
    let machine = Machine::new();
    for number in 0..4 {
        machine.plug(0, number);
        machine.plug(1, number);
    }
    let inventory = machine.read();
    let reach = |function: &str| {
        let touched = BTreeSet::from([function.parse().unwrap()]);
        let sysfs = machine.fake.sysfs();
        let physical = inventory.physical_of(&sysfs, &touched);
        let physical =
            physical.into_iter().map(|function| (function, discovery::physical(&sysfs, function))).collect();
        inventory.reach(touched, &physical).len()
    };
    assert_eq!(reach(&vf(0, 2)), 1);
    assert_eq!(reach(PFS[0]), 5, "the PF and its VFs");
    assert_eq!(reach("0000:00:1f.0"), 1);
    machine.fake.remove(&vf(0, 2));
    assert_eq!(reach(&vf(0, 2)), 5, "the PF has a VF less, which all of its VFs could show");
}
