//! What makes another look at the devices or the configuration necessary.

use std::future::pending;
use std::path::{Path, PathBuf};

use host::netlink::{Event, Events, Group};
use host::{DirectoryWatch, PciAddress, Sysfs, Uevent, Uevents};

/// What may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// The devices of one function.
    Function(PciAddress),
    /// Any device.
    Everything,
    Configuration,
}

/// All that tells of changes. A source that cannot be opened, or breaks, is tried again at every [`Changes::mend`];
/// until then the regular scan has to do.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Knows which function a network device belongs to.
    sysfs: Sysfs,
    /// The directory of the configuration file: the file itself may be exchanged, or the link that leads to it.
    directory: PathBuf,
    uevents: Option<Uevents>,
    links: Option<Events>,
    configuration: Option<DirectoryWatch>,
}

impl Changes {
    /// Begins to listen; what happens from now on is told by [`Changes::next`].
    pub(crate) fn new(config_file: &Path, sysfs: Sysfs) -> Self {
        let directory = match config_file.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut changes = Self { sysfs, directory, uevents: None, links: None, configuration: None };
        changes.mend();
        changes
    }

    /// Opens what is not open.
    pub(crate) fn mend(&mut self) {
        mend(&mut self.uevents, Uevents::subscribe);
        mend(&mut self.links, || Events::subscribe(&[Group::Link]));
        mend(&mut self.configuration, || DirectoryWatch::new(&self.directory));
    }

    /// The next change; waits for it.
    pub(crate) async fn next(&mut self) -> Change {
        loop {
            let change = tokio::select! {
                event = next_uevent(&mut self.uevents) => of_uevent(event.as_ref()),
                event = next_link(&mut self.links) => of_link(event.as_ref(), &self.sysfs),
                () = next_configuration(&mut self.configuration) => Some(Change::Configuration),
            };
            if let Some(change) = change {
                return change;
            }
        }
    }
}

fn mend<T, E: std::fmt::Display>(source: &mut Option<T>, open: impl FnOnce() -> Result<T, E>) {
    if source.is_none() {
        match open() {
            Ok(opened) => *source = Some(opened),
            Err(error) => tracing::warn!(%error, "will look regularly instead"),
        }
    }
}

/// The next uevent; `None` if some were lost.
async fn next_uevent(uevents: &mut Option<Uevents>) -> Option<Uevent> {
    let Some(open) = uevents else { return pending().await };
    match open.next().await {
        Ok(event) => event,
        Err(error) => {
            tracing::error!(%error, "uevents ended");
            *uevents = None;
            None
        }
    }
}

async fn next_link(links: &mut Option<Events>) -> Option<Event> {
    let Some(open) = links else { return pending().await };
    match open.next().await {
        Ok(event) => Some(event),
        Err(error) => {
            tracing::error!(%error, "link events ended");
            *links = None;
            None
        }
    }
}

async fn next_configuration(watch: &mut Option<DirectoryWatch>) {
    let Some(open) = watch else { return pending().await };
    if let Err(error) = open.changed().await {
        tracing::error!(%error, "the watch ended");
        *watch = None;
    }
}

/// What a uevent, or the loss of some, can have changed. Virtual network devices come and go with every pod.
fn of_uevent(event: Option<&Uevent>) -> Option<Change> {
    let Some(event) = event else { return Some(Change::Everything) };
    match event.subsystem() {
        "pci" | "auxiliary" | "vdpa" | "infiniband" | "infiniband_verbs" | "infiniband_mad" | "vfio-dev"
        | "uio" | "net" => event.function().map(Change::Function),
        _ => None,
    }
}

/// What a link event can have changed: a carrier, a name or a master of a hardware device. One that is gone by now
/// has a uevent to tell of it.
fn of_link(event: Option<&Event>, sysfs: &Sysfs) -> Option<Change> {
    match event {
        Some(Event::Link(link)) if link.kind.is_none() => {
            sysfs.net_device(&link.name).function().ok().flatten().map(Change::Function)
        }
        Some(Event::Lost) | None => Some(Change::Everything),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use host::netlink::Link;
    use host::sysfs::fake::FakeSysfs;

    use super::*;

    fn function(address: &str) -> Option<Change> {
        Some(Change::Function(address.parse().unwrap()))
    }

    #[test]
    fn uevents_name_the_function_that_they_concern() {
        for (subsystem, devpath, change) in [
            ("pci", "/devices/pci0000:00/0000:00:01.0/0000:01:10.0", function("0000:01:10.0")),
            ("net", "/devices/pci0000:00/0000:00:01.0/0000:01:10.0/net/eth3", function("0000:01:10.0")),
            ("vfio-dev", "/devices/pci0000:00/0000:01:10.0/vfio-dev/vfio1", function("0000:01:10.0")),
            ("vdpa", "/devices/pci0000:00/0000:01:10.0/vdpa0", function("0000:01:10.0")),
            ("auxiliary", "/devices/pci0000:00/0000:01:00.0/mlx5_core.sf.4", function("0000:01:00.0")),
            ("net", "/devices/virtual/net/veth12", None),
            ("block", "/devices/virtual/block/loop1", None),
            ("block", "/devices/pci0000:00/0000:01:00.0/ata1/block/sda", None),
        ] {
            let properties = BTreeMap::from([("SUBSYSTEM".to_owned(), subsystem.to_owned())]);
            let event = Uevent { action: "add".into(), devpath: devpath.into(), properties };
            assert_eq!(of_uevent(Some(&event)), change, "{devpath}");
        }
        assert_eq!(of_uevent(None), Some(Change::Everything));
    }

    #[test]
    fn link_events_concern_the_function_below() {
        let fake = FakeSysfs::new();
        fake.pci("0000:3b:00.0").netdev("ens1f0");
        let of = |name: &str, kind: Option<&str>| {
            let link = Link { name: name.to_owned(), kind: kind.map(str::to_owned), ..Link::default() };
            of_link(Some(&Event::Link(link)), &fake.sysfs())
        };
        assert_eq!(of("ens1f0", None), function("0000:3b:00.0"));
        assert_eq!(of("ens1f0", Some("veth")), None);
        assert_eq!(of("lo", None), None);
        assert_eq!(of_link(Some(&Event::LinkGone(7)), &fake.sysfs()), None);
        assert_eq!(of_link(Some(&Event::Lost), &fake.sysfs()), Some(Change::Everything));
        assert_eq!(of_link(None, &fake.sysfs()), Some(Change::Everything));
    }

    #[tokio::test]
    async fn an_exchanged_configuration_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        std::fs::write(&file, "{}").unwrap();
        let mut changes = Changes::new(&file, Sysfs::default());
        std::fs::rename(&file, directory.path().join("other")).unwrap();
        let told = async { while changes.next().await != Change::Configuration {} };
        tokio::time::timeout(std::time::Duration::from_secs(5), told).await.unwrap();
    }
}
