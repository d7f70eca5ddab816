//! ADD: look, plan, write the intent down, act; on any failure undo all of it.

use std::cell::OnceCell;
use std::path::Path;

use cni::{CniResult, Interface, Request};
use host::netlink::{Link, VfOption};
use host::{Netlink, Netns};
use tracing::{info, warn};

use crate::address;
use crate::claim;
use crate::config::{self, Conf};
use crate::error::Error;
use crate::machine::Machine;
use crate::netdev;
use crate::peer;
use crate::plan::{Function, Observed, Step, plan};
use crate::record::{Baseline, NetdevBaseline, Owner, Phase, Record};
use crate::release::release;
use crate::state::State;
use crate::vf::Vf;

/// Attaches the VF that the configuration names.
pub(crate) async fn add(machine: &Machine, state: &State, request: &Request) -> Result<CniResult, Error> {
    let conf = Conf::parse(&request.config, &request.args)?;
    let netns = Netns::open(request.require_netns()?)?;
    Vf::refuse_others(machine, conf.device)?;
    state.prepare()?;
    let _lock = state.lock(conf.device)?;

    let kept_baseline = claim::claim(machine, state, request, conf.device).await?;
    let vf = Vf::require(machine, conf.device).await?;
    let container = Container::new(netns);
    let observed = observe(machine, &vf, &container).await?;
    if observed.names_in_container.contains(&request.ifname)
        && matches!(observed.function, Function::Netdev(_))
    {
        return Err(Error::NameTaken { name: request.ifname.clone(), netns: container.path().to_owned() });
    }
    let steps = plan(&conf, &request.ifname, &observed)?;
    if let (Function::Userspace(driver), Some(mtu)) = (&observed.function, conf.mtu) {
        // Configurations are shared by pods of both kinds, and the peers read no `mtu` at all.
        warn!(device = %conf.device, driver, mtu, "mtu is left to the program that drives the VF");
    }

    let owner = Owner {
        container_id: request.container_id.clone(),
        ifname: request.ifname.clone(),
        network: request.name.clone(),
        netns: container.path().to_owned(),
        netns_id: Some(container.netns.id()),
    };
    let baseline = kept_baseline.unwrap_or_else(|| baseline(&observed));
    let changes = steps.iter().filter_map(changed_option).collect();
    let mut record =
        Record::new(conf.device, owner, machine.boot_id.clone(), Some(vf.incarnation), baseline, changes);
    let pf = vf.pf.as_ref().map(|pf| (pf.name.as_str(), pf.vf));
    let cache = peer::cache(&request.config, &conf, &record, pf)?;
    state.save(&record)?;

    let attachment = Attachment { machine, request, conf: &conf, vf: &vf, container: &container };
    let attached = async {
        state.save_for_peers(&record, &cache)?;
        attachment.carry_out(&steps).await?;
        let result = attachment.address(&observed.function).await?;
        record.phase = Phase::Attached;
        state.save(&record)?;
        Ok(result)
    };
    match attached.await {
        Ok(result) => {
            info!(device = %conf.device, "attached");
            Ok(result)
        }
        Err(failure) => Err(undo(machine, state, request, record, failure).await),
    }
}

/// Takes a failed attachment back; the failure comes out, with what could not be undone. The record of
/// what could not says that the VF was given up, so that whoever comes next may finish.
async fn undo(machine: &Machine, state: &State, request: &Request, record: Record, failure: Error) -> Error {
    if let Some(kind) = config::ipam_of(&request.config)
        && let Err(error) = cni::ipam::del(&kind, request)
    {
        warn!(%error, "addresses of the failed attachment are not given back");
    }
    match release(machine, state, record, request).await {
        Ok(()) => failure,
        Err(undo) => Error::Undo { failure: Box::new(failure), undo: Box::new(undo) },
    }
}

/// Reads what the plan depends on.
async fn observe(machine: &Machine, vf: &Vf, container: &Container) -> Result<Observed, Error> {
    let function = match vf.shown_here(machine).await? {
        Some(link) => Function::Netdev(link),
        None => match (vf.userspace_driver()?, &vf.driver) {
            (Some(driver), _) => Function::Userspace(driver),
            (None, Some(_)) => Function::Netdev(claim::stray(machine, vf).await?),
            (None, None) => {
                let reason =
                    "has no driver: bind it to its network driver, or to vfio-pci for use in user space";
                return Err(Error::Device { device: vf.address(), reason: reason.to_owned() });
            }
        },
    };
    let mut names_in_container = Vec::new();
    if let Function::Netdev(link) = &function {
        refuse_in_use(machine, vf, link).await?;
        for link in container.netlink()?.links().await? {
            names_in_container.push(link.name);
            names_in_container.extend(link.altnames);
        }
    }
    let settings = vf.settings_found().cloned();
    Ok(Observed { function, has_pf: vf.pf.is_some(), vf: settings, names_in_container })
}

/// An interface that the host works with is not given away: it would take the host's connection along.
async fn refuse_in_use(machine: &Machine, vf: &Vf, link: &Link) -> Result<(), Error> {
    let refused = |reason: String| Err(Error::Device { device: vf.address(), reason });
    if let Some(master) = link.master {
        return refused(format!("is in use: its interface {} belongs to interface {master}", link.name));
    }
    // Only a passed-through device in a virtual machine can be the machine's own uplink unnoticed.
    if vf.pf.is_none() {
        let routes = machine.netlink.default_routes().await?;
        if routes.iter().any(|route| route.uses(link.index)) {
            return refused(format!("is in use: its interface {} has the host's default route", link.name));
        }
    }
    Ok(())
}

fn baseline(observed: &Observed) -> Baseline {
    let netdev = match &observed.function {
        Function::Netdev(link) => Some(NetdevBaseline::from(link)),
        Function::Userspace(_) => None,
    };
    Baseline { vf: observed.vf.clone(), netdev }
}

fn changed_option(step: &Step) -> Option<VfOption> {
    match step {
        Step::Vf(setting) => Some(setting.option()),
        _ => None,
    }
}

/// The container's namespace, and netlink in it from its first use on: a VF for user space needs none.
struct Container {
    netns: Netns,
    connection: OnceCell<Netlink>,
}

impl Container {
    fn new(netns: Netns) -> Self {
        Self { netns, connection: OnceCell::new() }
    }

    fn path(&self) -> &Path {
        self.netns.path()
    }

    fn netlink(&self) -> Result<&Netlink, Error> {
        if let Some(connected) = self.connection.get() {
            return Ok(connected);
        }
        let connected = Netlink::connect_in(&self.netns)?;
        Ok(self.connection.get_or_init(|| connected))
    }
}

struct Attachment<'a> {
    machine: &'a Machine,
    request: &'a Request,
    conf: &'a Conf,
    vf: &'a Vf,
    container: &'a Container,
}

impl Attachment<'_> {
    async fn carry_out(&self, steps: &[Step]) -> Result<(), Error> {
        for step in steps {
            self.step(step).await?;
        }
        let settings = steps.iter().filter_map(|step| match step {
            Step::Vf(setting) => Some(*setting),
            _ => None,
        });
        self.vf.await_settings(self.machine, &settings.collect::<Vec<_>>()).await
    }

    async fn step(&self, step: &Step) -> Result<(), Error> {
        let here = &self.machine.netlink;
        match step {
            Step::Vf(setting) => return self.vf.set(self.machine, *setting).await,
            Step::Down(index) => here.set_up(*index, false).await?,
            Step::RemoveAltname(index, name) => here.remove_altname(*index, name).await?,
            Step::Mac(index, mac) => return netdev::set_mac(&self.machine.netns, here, *index, *mac).await,
            Step::Mtu(index, mtu) => here.set_mtu(*index, *mtu).await?,
            Step::Move(index, name) => {
                here.move_link(*index, &self.container.netns, self.container.netlink()?, name).await?;
            }
            Step::Up => {
                address::prepare(&self.container.netns, &self.request.ifname)?;
                self.container.netlink()?.set_up(self.link_in_container().await?.index, true).await?;
            }
        }
        Ok(())
    }

    /// The interface in the container, under the name that it was moved there.
    async fn link_in_container(&self) -> Result<Link, Error> {
        let link = self.container.netlink()?.link_by_name(&self.request.ifname).await?;
        link.ok_or_else(|| Error::Lost {
            device: self.vf.address(),
            driver: self.vf.driver_name().to_owned(),
        })
    }

    /// Has IPAM give addresses, configures them and builds the result.
    async fn address(&self, function: &Function) -> Result<CniResult, Error> {
        let mut result = match &self.conf.ipam {
            Some(kind) => cni::ipam::add(kind, self.request)?,
            None => CniResult::default(),
        };
        let link = match function {
            Function::Netdev(_) => Some(self.link_in_container().await?),
            Function::Userspace(_) => None,
        };
        result.interfaces = vec![self.interface(link.as_ref()).await?];
        for ip in &mut result.ips {
            ip.interface = Some(0);
        }
        if let Some(link) = &link
            && !result.ips.is_empty()
        {
            let Container { netns, .. } = self.container;
            let netlink = self.container.netlink()?;
            address::configure(netns, netlink, link, &result).await?;
        }
        Ok(result)
    }

    async fn interface(&self, link: Option<&Link>) -> Result<Interface, Error> {
        let (mac, mtu) = match link {
            Some(link) => (link.mac, link.mtu),
            None => {
                let mac = match self.conf.mac {
                    Some(mac) => Some(mac),
                    None => self.vf.settings(self.machine).await?.and_then(|settings| settings.mac),
                };
                (mac, self.vf.pf.as_ref().map(|pf| pf.mtu).unwrap_or_default())
            }
        };
        Ok(Interface {
            name: self.request.ifname.clone(),
            mac: mac.filter(|mac| !mac.is_zero()).map(|mac| mac.to_string()).unwrap_or_default(),
            mtu,
            sandbox: self.container.path().display().to_string(),
            socket_path: String::new(),
            pci_id: self.vf.address().to_string(),
        })
    }
}
