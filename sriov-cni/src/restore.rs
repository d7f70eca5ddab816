//! Bringing a VF back to its baseline, from wherever it is and however far an attachment got.
//!
//! Everything is compared before it is changed, so doing it twice does nothing the second time. The
//! order is what drivers need: the interface comes home first (a container that still holds it keeps its
//! VLAN and spoof checking), then the administrative MAC if ADD set one, since a VF may take back only the
//! MAC that its PF allows it, then the interface's own settings, then the rest, trust last.

use std::path::Path;

use host::netlink::{Link, VfOption, VfSettings};
use host::{Netlink, Netns};
use tracing::{info, warn};

use crate::error::Error;
use crate::machine::Machine;
use crate::netdev::{self, Place};
use crate::record::{NetdevBaseline, Record};
use crate::vf::Vf;

/// The order in which options go back, trust last: without it some drivers refuse other changes.
const ORDER: [VfOption; 6] =
    [VfOption::Mac, VfOption::Vlan, VfOption::Rate, VfOption::Spoofchk, VfOption::LinkState, VfOption::Trust];

/// Brings the VF of `record` to its baseline. `also` is one more place where its interface may be, besides
/// the namespace of the record. A VF that vanished, or was made anew, needs nothing.
///
/// # Errors
/// [`Error::NotReleased`] with everything that failed.
pub(crate) async fn restore(machine: &Machine, record: &Record, also: Option<&Path>) -> Result<(), Error> {
    if record.boot_id != machine.boot_id {
        info!(device = %record.device, "record is of an earlier boot; the VF starts afresh");
        return Ok(());
    }
    let not_released = |error| Error::NotReleased(vec![error]);
    let Some(vf) = Vf::find(machine, record.device).await.map_err(not_released)? else {
        info!(device = %record.device, "VF is gone; nothing to restore");
        return Ok(());
    };
    if record.incarnation.is_some_and(|incarnation| incarnation != vf.incarnation) {
        info!(device = %record.device, "VF was made anew; nothing to restore");
        return Ok(());
    }
    let mut errors = Vec::new();
    let home = match &record.baseline.netdev {
        Some(baseline) => {
            bring_home(machine, &vf, record, baseline, also, &mut errors).await.map_err(not_released)?
        }
        None => None,
    };
    if let (Some(link), Some(baseline)) = (&home, &record.baseline.netdev) {
        if record.changes.contains(&VfOption::Mac) && vf.pf.is_some() {
            let reported = settings_now(machine, &vf, &mut errors).await;
            restore_options(machine, &vf, record, &[VfOption::Mac], reported.as_ref(), &mut errors).await;
        }
        restore_netdev(machine, link, baseline, &mut errors).await;
    }
    // Programs in the container may change the MAC that the PF reports, whether or not ADD did.
    let touched = |option: &VfOption| *option == VfOption::Mac || record.changes.contains(option);
    let options: Vec<_> = ORDER.into_iter().filter(touched).collect();
    let now = match &home {
        Some(_) => settings_now(machine, &vf, &mut errors).await,
        None => vf.settings_found().cloned(),
    };
    restore_options(machine, &vf, record, &options, now.as_ref(), &mut errors).await;
    if errors.is_empty() { Ok(()) } else { Err(Error::NotReleased(errors)) }
}

/// What the PF reports after the interface was worked on.
async fn settings_now(machine: &Machine, vf: &Vf, errors: &mut Vec<Error>) -> Option<VfSettings> {
    vf.settings(machine).await.unwrap_or_else(|error| {
        errors.push(error);
        None
    })
}

/// Puts the options back in which what the PF reports differs from the baseline, and sees that they stay.
async fn restore_options(
    machine: &Machine,
    vf: &Vf,
    record: &Record,
    options: &[VfOption],
    reported: Option<&VfSettings>,
    errors: &mut Vec<Error>,
) {
    let baseline = &record.baseline;
    if vf.pf.is_none() {
        // What ADD set stands still, and will be seen again with the PF.
        let left = options.iter().filter(|option| record.changes.contains(option));
        let left = left.filter_map(|option| baseline.setting(*option)).map(|setting| setting.to_string());
        errors.extend(left.map(|option| Error::NoPf { device: vf.address(), option }));
        return;
    }
    let Some(reported) = reported else { return };
    let wanted: Vec<_> = options.iter().filter_map(|option| baseline.setting(*option)).collect();
    let mut differs = false;
    for setting in &wanted {
        if reported.get(setting.option()) == Some(*setting) {
            continue;
        }
        differs = true;
        let is_reported = baseline.vf.as_ref().is_some_and(|vf| vf.get(setting.option()).is_some());
        match vf.set(machine, *setting).await {
            // An option that the driver does not have was not set by ADD either.
            Err(Error::Setting { cause, .. }) if cause.is_unsupported() && !is_reported => {}
            made => errors.extend(made.err()),
        }
    }
    if differs {
        errors.extend(vf.await_settings(machine, &wanted).await.err());
    }
}

/// Moves the interface into our namespace under its old name, if it is not there already. `None` when the
/// VF has no interface any more.
async fn bring_home(
    machine: &Machine,
    vf: &Vf,
    record: &Record,
    baseline: &NetdevBaseline,
    also: Option<&Path>,
    errors: &mut Vec<Error>,
) -> Result<Option<Link>, Error> {
    let recorded = Netns::open(&record.owner.netns).ok();
    let recorded = recorded.filter(|netns| record.owner.netns_id.is_none_or(|id| id == netns.id()));
    let also = also.and_then(|path| Netns::open(path).ok());
    let likely = recorded.into_iter().chain(also).collect();
    let Some(place) = netdev::locate(machine, vf, likely).await? else {
        info!(device = %record.device, driver = vf.driver_name(), "VF has no interface any more");
        return Ok(None);
    };
    if place.netns.id() == machine.netns.id() {
        rename_here(machine, vf, &place.link, baseline, errors).await?;
    } else {
        move_here(machine, vf, &place, baseline, errors).await?;
    }
    vf.link_here(machine).await
}

async fn move_here(
    machine: &Machine,
    vf: &Vf,
    place: &Place,
    baseline: &NetdevBaseline,
    errors: &mut Vec<Error>,
) -> Result<(), Error> {
    let Place { netlink, link, .. } = place;
    if link.up {
        netlink.set_up(link.index, false).await?;
    }
    // Names that the container gave could clash on the host; the old ones are put back there.
    for altname in &link.altnames {
        netlink.remove_altname(link.index, altname).await?;
    }
    let (here, outside) = (&machine.netns, &machine.netlink);
    match netlink.move_link(link.index, here, outside, &baseline.name).await {
        Err(error) if error.is_exists() => {
            errors.push(Error::HostNameTaken { device: vf.address(), name: baseline.name.clone() });
            netlink.move_link(link.index, here, outside, &spare_name(vf)).await?;
        }
        moved => moved?,
    }
    Ok(())
}

async fn rename_here(
    machine: &Machine,
    vf: &Vf,
    link: &Link,
    baseline: &NetdevBaseline,
    errors: &mut Vec<Error>,
) -> Result<(), Error> {
    if link.name == baseline.name {
        return Ok(());
    }
    let netlink = &machine.netlink;
    if link.up {
        netlink.set_up(link.index, false).await?;
    }
    match netlink.set_name(link.index, &baseline.name).await {
        Err(error) if error.is_exists() => {}
        renamed => return Ok(renamed?),
    }
    // udev may have made its old name an alternative one, which the kernel calls a clash with itself.
    if netlink.remove_altname(link.index, &baseline.name).await.is_ok() {
        return Ok(netlink.set_name(link.index, &baseline.name).await?);
    }
    errors.push(Error::HostNameTaken { device: vf.address(), name: baseline.name.clone() });
    Ok(())
}

/// A name that belongs to the VF alone, for when its own is taken: `vf` and the address's digits, at most
/// 15 bytes, the kernel's limit.
fn spare_name(vf: &Vf) -> String {
    format!("vf{}", vf.address().to_string().replace([':', '.'], ""))
}

async fn restore_netdev(machine: &Machine, link: &Link, baseline: &NetdevBaseline, errors: &mut Vec<Error>) {
    let (netlink, index) = (&machine.netlink, link.index);
    let mut up = link.up;
    if let Some(mac) = baseline.mac.filter(|mac| link.mac != Some(*mac)) {
        if up {
            errors.extend(netlink.set_up(index, false).await.err().map(Error::from));
            up = false;
        }
        errors.extend(netdev::set_mac(&machine.netns, netlink, index, mac).await.err());
    }
    if let Some(mtu) = baseline.mtu.filter(|mtu| link.mtu != *mtu) {
        errors.extend(netlink.set_mtu(index, mtu).await.err().map(Error::from));
    }
    if (link.promiscuous, link.allmulti) != (baseline.promiscuous, baseline.allmulti) {
        let reception = netlink.set_reception(index, baseline.promiscuous, baseline.allmulti).await;
        errors.extend(reception.err().map(Error::from));
    }
    restore_altnames(netlink, link, baseline).await;
    if up != baseline.up {
        errors.extend(netlink.set_up(index, baseline.up).await.err().map(Error::from));
    }
}

// Alternative names are given by udev and are taken by whoever comes first; that one of them went to
// another interface meanwhile is worth a line in the log, not a DEL that never ends.
async fn restore_altnames(netlink: &Netlink, link: &Link, baseline: &NetdevBaseline) {
    for altname in link.altnames.iter().filter(|altname| !baseline.altnames.contains(altname)) {
        if let Err(error) = netlink.remove_altname(link.index, altname).await {
            warn!(%error, "alternative name is not taken away");
        }
    }
    for altname in baseline.altnames.iter().filter(|altname| !link.is_called(altname)) {
        if let Err(error) = netlink.add_altname(link.index, altname).await {
            warn!(%error, "alternative name is not put back");
        }
    }
}
