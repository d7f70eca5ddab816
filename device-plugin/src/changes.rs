//! What makes another look at the devices or the configuration necessary.

use std::future::pending;
use std::path::{Path, PathBuf};

use host::netlink::{Event, Events, Group};
use host::{DirectoryWatch, Uevent, Uevents};

/// What may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Devices,
    Configuration,
}

/// All that tells of changes. A source that cannot be opened, or breaks, is tried again at every [`Changes::mend`];
/// until then the regular scan has to do.
#[derive(Debug)]
pub(crate) struct Changes {
    /// The directory of the configuration file: the file itself may be exchanged, or the link that leads to it.
    directory: PathBuf,
    uevents: Option<Uevents>,
    links: Option<Events>,
    configuration: Option<DirectoryWatch>,
}

impl Changes {
    /// Begins to listen; what happens from now on is told by [`Changes::next`].
    pub(crate) fn new(config_file: &Path) -> Self {
        let directory = match config_file.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut changes = Self { directory, uevents: None, links: None, configuration: None };
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
            tokio::select! {
                change = next_uevent(&mut self.uevents) => {
                    if change.is_none_or(|event| concerns_devices(&event)) {
                        return Change::Devices;
                    }
                }
                change = next_link(&mut self.links) => {
                    if change.is_none_or(|event| concerns_ports(&event)) {
                        return Change::Devices;
                    }
                }
                () = next_configuration(&mut self.configuration) => return Change::Configuration,
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

/// Whether a uevent can mean another inventory. Virtual network devices come and go with every pod.
fn concerns_devices(event: &Uevent) -> bool {
    match event.subsystem() {
        "pci" | "auxiliary" | "vdpa" | "infiniband" | "infiniband_verbs" | "infiniband_mad" | "vfio-dev"
        | "uio" => true,
        "net" => !event.devpath.starts_with("/devices/virtual/"),
        _ => false,
    }
}

/// Whether a link event can: a carrier, a name or a master that changed, of a hardware device.
fn concerns_ports(event: &Event) -> bool {
    match event {
        Event::Link(link) => link.kind.is_none(),
        Event::Lost => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn only_hardware_matters() {
        for (subsystem, devpath, matters) in [
            ("pci", "/devices/pci0000:00/0000:00:01.0/0000:01:10.0", true),
            ("net", "/devices/pci0000:00/0000:00:01.0/0000:01:10.0/net/eth3", true),
            ("net", "/devices/virtual/net/veth12", false),
            ("vfio-dev", "/devices/pci0000:00/0000:01:10.0/vfio-dev/vfio1", true),
            ("block", "/devices/virtual/block/loop1", false),
        ] {
            let properties = BTreeMap::from([("SUBSYSTEM".to_owned(), subsystem.to_owned())]);
            let event = Uevent { action: "add".into(), devpath: devpath.into(), properties };
            assert_eq!(concerns_devices(&event), matters, "{devpath}");
        }
        let veth = host::netlink::Link { kind: Some("veth".into()), ..Default::default() };
        assert!(!concerns_ports(&Event::Link(veth)));
        assert!(concerns_ports(&Event::Link(host::netlink::Link::default())));
        assert!(concerns_ports(&Event::Lost));
    }

    #[tokio::test]
    async fn an_exchanged_configuration_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        std::fs::write(&file, "{}").unwrap();
        let mut changes = Changes::new(&file);
        std::fs::rename(&file, directory.path().join("other")).unwrap();
        let told = async { while changes.next().await != Change::Configuration {} };
        tokio::time::timeout(std::time::Duration::from_secs(5), told).await.unwrap();
    }
}
