//! What sysfs does not tell: the DDP profile of a NIC, and whether a device whose RDMA device is in a container has one.
//!
//! devlink is asked, and for a profile that it does not know Intel's `ddptool`. Both may ask the firmware, which takes
//! its time; so only that is asked which a selector wants to know, each NIC once in a look, and again when an event
//! named it or when everything is looked at. What cannot be learnt now stays as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use host::PciAddress;
use host::netlink::{Devlink, DevlinkDevice, Error};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::aside::aside;
use crate::config::{Conf, DeviceType, Selector};
use crate::ddptool::DdpTool;
use crate::device::Device;
use crate::inventory::Scope;

/// The name of a NIC's active DDP package among its versions (`Documentation/networking/devlink/ice.rst`).
const PACKAGE: &str = "fw.app.name";
/// Whether the driver makes an RDMA device (`Documentation/networking/devlink/devlink-params.rst`).
const ENABLE_RDMA: &str = "enable_rdma";
/// How long a look waits for all answers together; what comes later is there for the next one.
const LIMIT: Duration = Duration::from_secs(3);

/// What is known from earlier looks.
#[derive(Debug, Default)]
pub(crate) struct Firmware {
    profiles: BTreeMap<PciAddress, Profile>,
    /// Whether a device has an RDMA device, wherever it is.
    rdma: BTreeMap<String, bool>,
    /// Answers that are still to come.
    asked: Option<mpsc::UnboundedReceiver<Answer>>,
}

/// The DDP profile of a NIC, by the PF of its functions.
#[derive(Debug, Clone)]
struct Profile {
    name: Option<String>,
    asked: Instant,
    /// Whether it is to be asked again.
    is_due: bool,
}

impl Firmware {
    /// What events may have changed is asked again in the next look.
    pub(crate) fn doubt(&mut self, scope: &Scope) {
        for (pf, profile) in &mut self.profiles {
            profile.is_due |= match scope {
                Scope::Everything => true,
                Scope::Functions(functions) => functions.contains(pf),
            };
        }
    }

    /// Adds to `devices` what the selectors of `conf` want to know.
    pub(crate) async fn complete(&mut self, conf: &Conf, mut devices: Vec<Arc<Device>>) -> Vec<Arc<Device>> {
        let questions = Questions::of(conf, &devices);
        self.profiles.retain(|pf, _| questions.profiles.contains_key(pf));
        self.rdma.retain(|id, _| questions.rdma.contains_key(id));
        if questions == Questions::default() {
            return devices;
        }
        self.ask(&questions).await;
        self.tell(&questions, &mut devices);
        devices
    }

    /// Asks, or waits for the answers to what an earlier look asked: a firmware that is slow is not asked twice at once.
    async fn ask(&mut self, questions: &Questions) {
        let earlier = self.asked.take();
        let is_late = earlier.is_some();
        let mut answers = match earlier {
            Some(answers) => answers,
            None => {
                let (rdma, due) = (questions.rdma.clone(), self.due(questions));
                let (tell, answers) = mpsc::unbounded_channel();
                if let Err(error) = aside(move || answer(rdma, due, tell)) {
                    tracing::warn!(%error, "cannot ask the firmware; keeping what was known");
                    return;
                }
                answers
            }
        };
        let deadline = Instant::now() + LIMIT;
        loop {
            match timeout_at(deadline, answers.recv()).await {
                Ok(Some(answer)) => self.learn(answer, is_late),
                Ok(None) => return,
                Err(_) => {
                    tracing::warn!("the firmware is slow to answer; keeping what was known");
                    self.asked = Some(answers);
                    return;
                }
            }
        }
    }

    /// A late answer may be older than an event that has come since: its NIC is asked again.
    fn learn(&mut self, answer: Answer, is_late: bool) {
        let (pf, name) = match answer {
            Answer::Rdma(id, has_rdma) => {
                self.rdma.remove(&id);
                self.rdma.extend(has_rdma.map(|has_rdma| (id, has_rdma)));
                return;
            }
            Answer::Profile(pf, name) => (pf, name),
            Answer::ProfileAsBefore(pf) => {
                (pf, self.profiles.get(&pf).and_then(|profile| profile.name.clone()))
            }
        };
        self.profiles.insert(pf, Profile { name, asked: Instant::now(), is_due: is_late });
    }

    /// The NICs to be asked for their profile: those first that were not asked for the longest time, so that slow
    /// ones do not keep others from their turn.
    fn due(&self, questions: &Questions) -> Vec<(PciAddress, BTreeSet<PciAddress>)> {
        let asked = |pf: &PciAddress| self.profiles.get(pf).map(|profile| profile.asked);
        let is_due = |pf: &PciAddress| self.profiles.get(pf).is_none_or(|profile| profile.is_due);
        let due = questions.profiles.iter().filter(|(pf, _)| is_due(pf));
        let mut due: Vec<_> = due.map(|(pf, functions)| (*pf, functions.clone())).collect();
        due.sort_by_key(|(pf, _)| asked(pf));
        due
    }

    fn tell(&self, questions: &Questions, devices: &mut [Arc<Device>]) {
        for device in devices {
            let wants_profile = questions
                .profiles
                .get(&device.pf)
                .is_some_and(|functions| functions.contains(&device.address));
            let profile = self.profiles.get(&device.pf).filter(|_| wants_profile);
            if let Some(name) = profile.and_then(|profile| profile.name.clone())
                && device.kind == DeviceType::NetDevice
            {
                Arc::make_mut(device).ddp_profile = Some(name);
            }
            if self.rdma.get(&*device.id) == Some(&true) {
                Arc::make_mut(device).rdma_enabled = true;
            }
        }
    }
}

/// What was learnt. Of what no answer comes nothing was: it stays as it was, and is asked again.
#[derive(Debug)]
enum Answer {
    Profile(PciAddress, Option<String>),
    /// The NIC could not say, and will not be able to soon.
    ProfileAsBefore(PciAddress),
    /// Whether the device has an RDMA device; `None` of a driver that does not speak devlink: it makes no hidden one.
    Rdma(String, Option<bool>),
}

/// Asks for everything in turn, and tells each answer as it comes.
async fn answer(
    rdma: BTreeMap<String, DevlinkDevice>,
    profiles: Vec<(PciAddress, BTreeSet<PciAddress>)>,
    tell: mpsc::UnboundedSender<Answer>,
) {
    // Nobody may want to know any more.
    let tell = |answer| drop(tell.send(answer));
    let devlink = match connected().await {
        Ok(devlink) => devlink,
        Err(error) => return tracing::warn!(%error, "cannot ask devlink; keeping what was known"),
    };
    let devlink = devlink.as_ref();
    for (id, device) in rdma {
        let Some((devlink, _)) = devlink.filter(|(_, present)| present.contains(&device)) else {
            tell(Answer::Rdma(id, None));
            continue;
        };
        match devlink.flag(&device, ENABLE_RDMA).await {
            Ok(flag) => tell(Answer::Rdma(id, Some(flag == Some(true)))),
            Err(error) => tracing::warn!(%error, "keeping what was known"),
        }
    }
    let tool = DdpTool::default();
    for (pf, functions) in profiles {
        let told = match devlink {
            Some((devlink, present)) => package(devlink, present, pf, &functions).await,
            None => Ok(None),
        };
        match (told, functions.first()) {
            (Err(error), _) => tracing::warn!(%error, "keeping what was known"),
            (Ok(None), Some(function)) => match tool.profile(*function, pf).await {
                Ok(name) => tell(Answer::Profile(pf, name)),
                Err(error) => {
                    tracing::warn!(%pf, %error, "ddptool tells no profile; keeping what was known");
                    tell(Answer::ProfileAsBefore(pf));
                }
            },
            (Ok(name), _) => tell(Answer::Profile(pf, name)),
        }
    }
}

/// devlink, and the devices that speak it; `None` if the kernel does not.
async fn connected() -> Result<Option<(Devlink, BTreeSet<DevlinkDevice>)>, Error> {
    let Some(devlink) = Devlink::connect().await? else { return Ok(None) };
    let present = devlink.devices().await?;
    Ok(Some((devlink, present)))
}

/// The active package by devlink: as a VF has it, or else its PF.
async fn package(
    devlink: &Devlink,
    present: &BTreeSet<DevlinkDevice>,
    pf: PciAddress,
    functions: &BTreeSet<PciAddress>,
) -> Result<Option<String>, Error> {
    let function =
        functions.iter().map(|function| DevlinkDevice::pci(*function)).find(|f| present.contains(f));
    let pf = Some(DevlinkDevice::pci(pf)).filter(|pf| present.contains(pf) && function.as_ref() != Some(pf));
    for device in function.iter().chain(&pf) {
        let versions = devlink.versions(device).await?;
        if let Some(name) = versions.and_then(|mut versions| versions.running.remove(PACKAGE)) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// What the selectors want to know that sysfs does not tell.
#[derive(Debug, Default, PartialEq, Eq)]
struct Questions {
    /// The functions whose DDP profile is wanted, by their PF.
    profiles: BTreeMap<PciAddress, BTreeSet<PciAddress>>,
    /// Devices without network and RDMA device in sight, of which an RDMA device is wanted.
    rdma: BTreeMap<String, DevlinkDevice>,
}

impl Questions {
    /// A device that meets the other conditions is asked about, and no other.
    fn of(conf: &Conf, devices: &[Arc<Device>]) -> Self {
        let mut questions = Self::default();
        let selectors = conf.pools.iter().flat_map(|pool| {
            let asking = |selector: &&Selector| selector.is_rdma || !selector.ddp_profiles.is_empty();
            pool.selectors.iter().filter(asking).map(|selector| {
                let others = Selector { is_rdma: false, ddp_profiles: Vec::new(), ..selector.clone() };
                (pool.device_type, selector, others)
            })
        });
        for (kind, selector, others) in selectors {
            let candidates = devices.iter().filter(|device| device.kind == kind);
            for device in candidates.filter(|device| others.takes(device)) {
                if !selector.ddp_profiles.is_empty() {
                    questions.profiles.entry(device.pf).or_default().insert(device.address);
                }
                // A container has both or none. Where only the RDMA device is missing, its driver is, and whoever got
                // the device would miss it too.
                if selector.is_rdma && device.rdma.is_empty() && device.netdevs.is_empty() {
                    let name = match kind {
                        DeviceType::AuxNetDevice => DevlinkDevice::auxiliary(&device.id),
                        DeviceType::NetDevice | DeviceType::Accelerator => DevlinkDevice::pci(device.address),
                    };
                    questions.rdma.insert(device.id.to_string(), name);
                }
            }
        }
        questions
    }
}

#[cfg(test)]
mod tests {
    use host::sysfs::fake::FakeSysfs;

    use super::*;
    use crate::config::parse;
    use crate::discovery::DefaultRoutes;
    use crate::inventory::Inventory;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    /// Two PFs with two VFs each, of which one has an RDMA device in sight, and a scalable function.
    fn devices() -> Vec<Arc<Device>> {
        let fake = FakeSysfs::new();
        for pf in ["0000:3b:00.0", "0000:5e:00.0"] {
            fake.pci(pf).driver("ice").netdev(if pf.contains("3b") { "ens1" } else { "ens2" }).sriov(8);
            for number in 0..2 {
                let vf = pf.replace("00.0", &format!("10.{number}"));
                fake.pci(&vf).vf_of(pf, number).driver(if number == 0 { "iavf" } else { "vfio-pci" });
            }
        }
        fake.pci("0000:5e:10.0").netdev("ens2v0");
        fake.pci("0000:3b:10.0").attribute("infiniband/irdma0/node_type", "1");
        fake.pci("0000:3b:00.0").auxiliary("mlx5_core.sf.4", "mlx5_core.sf");
        Inventory::read(&fake.sysfs(), &DefaultRoutes::new()).unwrap().devices()
    }

    fn questions(selectors: &str) -> Questions {
        let text = format!(r#"{{"resourceList": [{{"resourceName": "a", "selectors": {selectors}}}]}}"#);
        Questions::of(&parse(&text, "intel.com").unwrap().0, &devices())
    }

    #[test]
    fn only_what_a_selector_wants_to_know_is_asked() {
        assert_eq!(questions(r#"{"drivers": ["iavf"]}"#), Questions::default());
        let asked = questions(r#"{"drivers": ["iavf"], "ddpProfiles": ["ICE COMMS Package"]}"#);
        assert_eq!(
            asked.profiles,
            BTreeMap::from([
                (address("0000:3b:00.0"), BTreeSet::from([address("0000:3b:10.0")])),
                (address("0000:5e:00.0"), BTreeSet::from([address("0000:5e:10.0")])),
            ])
        );
        assert_eq!(asked.rdma, BTreeMap::new());
        let asked = questions(
            r#"[{"pfNames": ["ens1"], "ddpProfiles": ["x"], "isRdma": true}, {"vendors": ["ffff"], "isRdma": true}]"#,
        );
        let vfs = BTreeSet::from([address("0000:3b:10.0"), address("0000:3b:10.1")]);
        assert_eq!(asked.profiles, BTreeMap::from([(address("0000:3b:00.0"), vfs)]));
        let hidden = DevlinkDevice::pci(address("0000:3b:10.1"));
        assert_eq!(asked.rdma, BTreeMap::from([("0000:3b:10.1".to_owned(), hidden)]));
        let asked = questions(r#"{"pfNames": ["ens2"], "isRdma": true}"#);
        assert_eq!(asked.rdma.keys().collect::<Vec<_>>(), ["0000:5e:10.1"], "the other's netdev is in sight");
    }

    #[test]
    fn scalable_functions_are_asked_on_their_bus() {
        let text = r#"{"resourceList": [{"resourceName": "a", "deviceType": "auxNetDevice",
            "selectors": {"auxTypes": ["sf"], "isRdma": true}}]}"#;
        let asked = Questions::of(&parse(text, "intel.com").unwrap().0, &devices());
        let hidden = DevlinkDevice::auxiliary("mlx5_core.sf.4");
        assert_eq!(asked.rdma, BTreeMap::from([("mlx5_core.sf.4".to_owned(), hidden)]));
    }

    #[test]
    fn answers_reach_the_devices_that_were_asked_about() {
        let asked = questions(r#"{"pfNames": ["ens1"], "ddpProfiles": ["x"], "isRdma": true}"#);
        let profile = Profile { name: Some("x".into()), asked: Instant::now(), is_due: false };
        let firmware = Firmware {
            profiles: BTreeMap::from([(address("0000:3b:00.0"), profile)]),
            rdma: BTreeMap::from([("0000:3b:10.1".into(), true), ("0000:5e:10.1".into(), false)]),
            ..Firmware::default()
        };
        let mut devices = devices();
        firmware.tell(&asked, &mut devices);
        let told: Vec<_> = devices
            .iter()
            .filter(|device| device.ddp_profile.is_some() || device.rdma_enabled)
            .map(|device| (&*device.id, device.ddp_profile.as_deref(), device.rdma_enabled))
            .collect();
        assert_eq!(told, [("0000:3b:10.0", Some("x"), false), ("0000:3b:10.1", Some("x"), true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_nic_keeps_no_other_waiting_and_its_answer_is_there_for_the_next_look() {
        let wanted = questions(r#"{"ddpProfiles": ["x"]}"#);
        let [quick, slow] = ["0000:3b:00.0", "0000:5e:00.0"].map(address);
        let profile = |pf| Answer::Profile(pf, Some("x".into()));
        let (tell, asked) = mpsc::unbounded_channel();
        let mut firmware = Firmware { asked: Some(asked), ..Firmware::default() };
        tell.send(profile(quick)).unwrap();
        firmware.ask(&wanted).await;
        assert_eq!(firmware.profiles.keys().collect::<Vec<_>>(), [&quick]);
        assert!(firmware.asked.is_some());
        tell.send(profile(slow)).unwrap();
        drop(tell);
        firmware.ask(&wanted).await;
        assert_eq!(firmware.profiles[&slow].name.as_deref(), Some("x"));
        assert!(firmware.asked.is_none());
        // An event may have come after the question.
        assert_eq!(firmware.due(&wanted).len(), 2);
    }

    #[test]
    fn each_nic_is_asked_once_and_again_when_an_event_names_it() {
        let asked = questions(r#"{"ddpProfiles": ["x"]}"#);
        let mut firmware = Firmware::default();
        let due = |firmware: &Firmware| {
            firmware.due(&asked).into_iter().map(|(pf, _)| pf.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(due(&firmware), ["0000:3b:00.0", "0000:5e:00.0"]);
        let now = Instant::now();
        for (pf, asked) in [("0000:3b:00.0", now), ("0000:5e:00.0", now.checked_sub(LIMIT).unwrap())] {
            firmware.profiles.insert(address(pf), Profile { name: None, asked, is_due: false });
        }
        assert_eq!(due(&firmware), [""; 0]);
        firmware.doubt(&Scope::Functions(BTreeSet::from([address("0000:3b:00.0")])));
        assert_eq!(due(&firmware), ["0000:3b:00.0"]);
        firmware.doubt(&Scope::Everything);
        assert_eq!(due(&firmware), ["0000:5e:00.0", "0000:3b:00.0"], "the one first that waits longer");
    }
}
