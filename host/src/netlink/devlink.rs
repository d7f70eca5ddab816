//! devlink: what the driver of a device tells of its firmware and parameters (`Documentation/networking/devlink`,
//! `include/uapi/linux/devlink.h`). It is a family of generic netlink, whose number the kernel chooses at run time
//! (`include/uapi/linux/genetlink.h`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use netlink_packet_core::{DefaultNla, Emitable};
use rtnetlink::sys::protocols::NETLINK_GENERIC;

use super::frame::{Attribute, Frame, attribute, attributes, text, u16_at};
use super::{Error, Netlink, Verb};
use crate::PciAddress;

/// The family that knows the others.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const FAMILY: &str = "devlink";
/// Of the commands of both families.
const VERSION: u8 = 1;
/// `struct genlmsghdr`.
const HEADER_LENGTH: usize = 4;

const DEVLINK_CMD_GET: u8 = 1;
const DEVLINK_CMD_PARAM_GET: u8 = 38;
const DEVLINK_CMD_INFO_GET: u8 = 51;
const DEVLINK_ATTR_BUS_NAME: u16 = 1;
const DEVLINK_ATTR_DEV_NAME: u16 = 2;
const DEVLINK_ATTR_PARAM: u16 = 80;
const DEVLINK_ATTR_PARAM_NAME: u16 = 81;
const DEVLINK_ATTR_PARAM_TYPE: u16 = 83;
const DEVLINK_ATTR_PARAM_VALUES_LIST: u16 = 84;
const DEVLINK_ATTR_PARAM_VALUE: u16 = 85;
const DEVLINK_ATTR_PARAM_VALUE_DATA: u16 = 86;
const DEVLINK_ATTR_PARAM_VALUE_CMODE: u16 = 87;
const DEVLINK_ATTR_INFO_VERSION_FIXED: u16 = 100;
const DEVLINK_ATTR_INFO_VERSION_RUNNING: u16 = 101;
const DEVLINK_ATTR_INFO_VERSION_STORED: u16 = 102;
const DEVLINK_ATTR_INFO_VERSION_NAME: u16 = 103;
const DEVLINK_ATTR_INFO_VERSION_VALUE: u16 = 104;
/// The type of a parameter that is on or off: its data is there, or not.
const NLA_FLAG: u8 = 6;

/// A device as devlink names it. Its text form is that of the `devlink` program, `pci/0000:3b:00.0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevlinkDevice {
    bus: String,
    name: String,
}

impl DevlinkDevice {
    /// The PCI function at `address`.
    #[must_use]
    pub fn pci(address: PciAddress) -> Self {
        Self { bus: "pci".to_owned(), name: address.to_string() }
    }

    /// The device `name` of the auxiliary bus, such as `mlx5_core.sf.4`.
    #[must_use]
    pub fn auxiliary(name: &str) -> Self {
        Self { bus: "auxiliary".to_owned(), name: name.to_owned() }
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let attributes = body.get(HEADER_LENGTH..)?;
        let bus = text(attribute(attributes, DEVLINK_ATTR_BUS_NAME)?);
        let name = text(attribute(attributes, DEVLINK_ATTR_DEV_NAME)?);
        Some(Self { bus, name })
    }
}

impl fmt::Display for DevlinkDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bus, self.name)
    }
}

/// Versions of a device's components by their names, such as `fw.mgmt`
/// (`Documentation/networking/devlink/devlink-info.rst`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Versions {
    /// Of hardware.
    pub fixed: BTreeMap<String, String>,
    /// Of what runs.
    pub running: BTreeMap<String, String>,
    /// Of what will run after the next reset.
    pub stored: BTreeMap<String, String>,
}

impl Versions {
    fn parse(body: &[u8]) -> Self {
        let mut versions = Self::default();
        for (kind, value) in attributes(body.get(HEADER_LENGTH..).unwrap_or_default()) {
            let list = match kind {
                DEVLINK_ATTR_INFO_VERSION_FIXED => &mut versions.fixed,
                DEVLINK_ATTR_INFO_VERSION_RUNNING => &mut versions.running,
                DEVLINK_ATTR_INFO_VERSION_STORED => &mut versions.stored,
                _ => continue,
            };
            let name = attribute(value, DEVLINK_ATTR_INFO_VERSION_NAME);
            let version = attribute(value, DEVLINK_ATTR_INFO_VERSION_VALUE);
            if let (Some(name), Some(version)) = (name, version) {
                list.insert(text(name), text(version));
            }
        }
        versions
    }
}

/// A connection to devlink in one network namespace. Cloning shares the socket.
#[derive(Debug, Clone)]
pub struct Devlink {
    netlink: Netlink,
    family: u16,
}

impl Devlink {
    /// Opens a connection in the namespace of the calling thread; `None` if the kernel has no devlink. Requires a tokio
    /// runtime, as [`Netlink::connect`] does.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel refuses the socket, and when it does not answer.
    pub async fn connect() -> Result<Option<Self>, Error> {
        let netlink = Netlink::connect_to(NETLINK_GENERIC)?;
        let family = family(&netlink, FAMILY).await?;
        Ok(family.map(|family| Self { netlink, family }))
    }

    /// All devices whose drivers speak devlink. No firmware is asked.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn devices(&self) -> Result<BTreeSet<DevlinkDevice>, Error> {
        let request = self.frame(DEVLINK_CMD_GET, &[]);
        let replies =
            self.netlink.request(Verb::Dump, request, || "listing devlink devices".to_owned()).await?;
        Ok(replies.iter().filter_map(|reply| DevlinkDevice::parse(&reply.body)).collect())
    }

    /// What runs in `device`; `None` if it is not there or does not say. The driver may ask its firmware.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub async fn versions(&self, device: &DevlinkDevice) -> Result<Option<Versions>, Error> {
        let request = self.frame(DEVLINK_CMD_INFO_GET, &named(device));
        let asked =
            self.netlink.request(Verb::Get, request, || format!("reading the versions of {device}")).await;
        let replies = known(asked)?;
        Ok(replies.and_then(|replies| replies.first().map(|reply| Versions::parse(&reply.body))))
    }

    /// The parameter `name` of `device`, such as `enable_rdma`; `None` if there is no such device, or it has no such
    /// parameter that is on or off.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub async fn flag(&self, device: &DevlinkDevice, name: &str) -> Result<Option<bool>, Error> {
        let [bus, device_name] = named(device);
        let request = self.frame(DEVLINK_CMD_PARAM_GET, &[bus, device_name, (DEVLINK_ATTR_PARAM_NAME, name)]);
        let operation = || format!("reading parameter {name} of {device}");
        let replies = match self.netlink.request(Verb::Get, request, operation).await {
            // What the kernel says of a parameter that it does not know.
            Err(error) if error.is_invalid() => return Ok(None),
            asked => known(asked)?,
        };
        Ok(replies.and_then(|replies| flag(&replies.first()?.body)))
    }

    fn frame(&self, command: u8, attributes: &[(u16, &str)]) -> Frame {
        Frame { kind: self.family, body: message(command, attributes) }
    }
}

fn named(device: &DevlinkDevice) -> [(u16, &str); 2] {
    [(DEVLINK_ATTR_BUS_NAME, &device.bus), (DEVLINK_ATTR_DEV_NAME, &device.name)]
}

/// No device, or a driver without that operation, is no error.
fn known(asked: Result<Vec<Frame>, Error>) -> Result<Option<Vec<Frame>>, Error> {
    match asked {
        Ok(replies) => Ok(Some(replies)),
        Err(error) if error.is_not_found() || error.is_unsupported() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number of a generic netlink family; `None` if the kernel does not have it.
async fn family(netlink: &Netlink, name: &str) -> Result<Option<u16>, Error> {
    let body = message(CTRL_CMD_GETFAMILY, &[(CTRL_ATTR_FAMILY_NAME, name)]);
    let operation = || format!("looking for the generic netlink family {name}");
    let replies = known(netlink.request(Verb::Get, Frame { kind: GENL_ID_CTRL, body }, operation).await)?;
    let id = |reply: &Frame| u16_at(attribute(reply.body.get(HEADER_LENGTH..)?, CTRL_ATTR_FAMILY_ID)?, 0);
    Ok(replies.and_then(|replies| id(replies.first()?)))
}

/// A command with texts, each ended by a NUL.
fn message(command: u8, attributes: &[(u16, &str)]) -> Vec<u8> {
    let mut octets = vec![command, VERSION, 0, 0];
    for (kind, text) in attributes {
        let attribute = DefaultNla::new(*kind, [text.as_bytes(), &[0]].concat());
        let start = octets.len();
        octets.resize(start + attribute.buffer_len(), 0);
        attribute.emit(octets.get_mut(start..).unwrap_or_default());
    }
    octets
}

/// The value of a parameter that is on or off: the one in force, or else the one that will be.
fn flag(body: &[u8]) -> Option<bool> {
    let parameter = attribute(body.get(HEADER_LENGTH..)?, DEVLINK_ATTR_PARAM)?;
    if attribute(parameter, DEVLINK_ATTR_PARAM_TYPE)? != [NLA_FLAG] {
        return None;
    }
    let value = |(kind, value): Attribute<'_>| {
        // In order of `enum devlink_param_cmode`: at run time, when the driver starts, for ever.
        let mode = attribute(value, DEVLINK_ATTR_PARAM_VALUE_CMODE)?.first().copied()?;
        let is_set = attribute(value, DEVLINK_ATTR_PARAM_VALUE_DATA).is_some();
        (kind == DEVLINK_ATTR_PARAM_VALUE).then_some((mode, is_set))
    };
    let values = attributes(attribute(parameter, DEVLINK_ATTR_PARAM_VALUES_LIST)?).filter_map(value);
    values.min().map(|(_, is_set)| is_set)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::in_new_netns;

    const NESTED: u16 = 1 << 15;

    fn attribute_of(kind: u16, value: &[u8]) -> Vec<u8> {
        let nla = DefaultNla::new(kind, value.to_vec());
        let mut octets = vec![0; nla.buffer_len()];
        nla.emit(&mut octets);
        octets
    }

    fn reply(command: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let handle = [
            attribute_of(DEVLINK_ATTR_BUS_NAME, b"pci\0"),
            attribute_of(DEVLINK_ATTR_DEV_NAME, b"0000:3b:00.0\0"),
        ];
        [vec![command, VERSION, 0, 0], handle.concat(), attributes.concat()].concat()
    }

    #[test]
    fn a_request_is_as_the_devlink_program_sends_it() {
        let device = DevlinkDevice::pci("0000:3b:00.0".parse().unwrap());
        assert_eq!(device.to_string(), "pci/0000:3b:00.0");
        assert_eq!(
            message(DEVLINK_CMD_INFO_GET, &named(&device)),
            b"\x33\x01\0\0\x08\0\x01\0pci\0\x11\0\x02\x000000:3b:00.0\0\0\0\0"
        );
        let auxiliary = DevlinkDevice::auxiliary("mlx5_core.sf.4");
        assert_eq!(auxiliary.to_string(), "auxiliary/mlx5_core.sf.4");
    }

    #[test]
    fn versions_by_name() {
        let version = |kind: u16, name: &[u8], value: &[u8]| {
            let name = attribute_of(DEVLINK_ATTR_INFO_VERSION_NAME, name);
            let value = attribute_of(DEVLINK_ATTR_INFO_VERSION_VALUE, value);
            attribute_of(kind | NESTED, &[name, value].concat())
        };
        let body = reply(
            DEVLINK_CMD_INFO_GET,
            &[
                attribute_of(98, b"ice\0"),
                version(DEVLINK_ATTR_INFO_VERSION_FIXED, b"board.id\0", b"K65390-000\0"),
                version(DEVLINK_ATTR_INFO_VERSION_RUNNING, b"fw.app.name\0", b"ICE COMMS Package\0"),
                version(DEVLINK_ATTR_INFO_VERSION_RUNNING, b"fw.app\0", b"1.3.45.0\0"),
                version(DEVLINK_ATTR_INFO_VERSION_STORED, b"fw.bundle_id\0", b"0x8000e1b5\0"),
                attribute_of(
                    DEVLINK_ATTR_INFO_VERSION_STORED | NESTED,
                    &attribute_of(DEVLINK_ATTR_INFO_VERSION_NAME, b"fw.lost\0"),
                ),
            ],
        );
        let versions = Versions::parse(&body);
        assert_eq!(versions.fixed["board.id"], "K65390-000");
        assert_eq!(versions.running["fw.app.name"], "ICE COMMS Package");
        assert_eq!(versions.running.len(), 2);
        assert_eq!(versions.stored, BTreeMap::from([("fw.bundle_id".to_owned(), "0x8000e1b5".to_owned())]));
        let device = DevlinkDevice::pci("0000:3b:00.0".parse().unwrap());
        assert_eq!(DevlinkDevice::parse(&body), Some(device));
    }

    fn parameter(kind: u8, values: &[(u8, bool)]) -> Vec<u8> {
        let value = |(mode, is_set): &(u8, bool)| {
            let data = if *is_set { attribute_of(DEVLINK_ATTR_PARAM_VALUE_DATA, &[]) } else { Vec::new() };
            let mode = attribute_of(DEVLINK_ATTR_PARAM_VALUE_CMODE, &[*mode]);
            attribute_of(DEVLINK_ATTR_PARAM_VALUE | NESTED, &[data, mode].concat())
        };
        let list: Vec<u8> = values.iter().flat_map(value).collect();
        let parameter = [
            attribute_of(DEVLINK_ATTR_PARAM_NAME, b"enable_rdma\0"),
            attribute_of(82, &[]),
            attribute_of(DEVLINK_ATTR_PARAM_TYPE, &[kind]),
            attribute_of(DEVLINK_ATTR_PARAM_VALUES_LIST | NESTED, &list),
        ];
        reply(DEVLINK_CMD_PARAM_GET, &[attribute_of(DEVLINK_ATTR_PARAM | NESTED, &parameter.concat())])
    }

    #[test]
    fn a_parameter_that_is_on_or_off() {
        const RUNTIME: u8 = 0;
        const DRIVERINIT: u8 = 1;
        const PERMANENT: u8 = 2;
        const NLA_U32: u8 = 3;
        type Case = (u8, &'static [(u8, bool)], Option<bool>);
        let cases: [Case; 6] = [
            (NLA_FLAG, &[(DRIVERINIT, true)], Some(true)),
            (NLA_FLAG, &[(DRIVERINIT, false)], Some(false)),
            (NLA_FLAG, &[(PERMANENT, false), (RUNTIME, true), (DRIVERINIT, false)], Some(true)),
            (NLA_FLAG, &[(DRIVERINIT, false), (PERMANENT, true)], Some(false)),
            (NLA_FLAG, &[], None),
            (NLA_U32, &[(DRIVERINIT, true)], None),
        ];
        for (kind, values, expected) in cases {
            assert_eq!(flag(&parameter(kind, values)), expected, "type {kind}, {values:?}");
        }
        assert_eq!(flag(&reply(DEVLINK_CMD_PARAM_GET, &[])), None);
    }

    /// What Linux 6.1 answered for a device of its driver netdevsim, whose parameter was switched off meanwhile.
    #[test]
    fn answers_of_a_kernel() {
        let info = b"3\x01\0\0\x0e\0\x01\0netdevsim\0\0\0\x10\0\x02\0netdevsim10\0\x0e\0b\0netdevsim\0\0\0 \0f\0\x0c\
            \0g\0fw.mgmt\0\x0d\0h\x0010.20.30\0\0\0\0 \0e\0\x0c\0g\0fw.mgmt\0\x0d\0h\x0010.20.30\0\0\0\0";
        let on = b"&\x01\0\0\x0e\0\x01\0netdevsim\0\0\0\x10\0\x02\0netdevsim10\0,\0P\0\x0a\0Q\0test1\0\0\0\x05\0S\0\
            \x06\0\0\0\x14\0T\0\x10\0U\0\x05\0W\0\x01\0\0\0\x04\0V\0";
        let off = b"&\x01\0\0\x0e\0\x01\0netdevsim\0\0\0\x10\0\x02\0netdevsim10\0(\0P\0\x0a\0Q\0test1\0\0\0\x05\0S\0\
            \x06\0\0\0\x10\0T\0\x0c\0U\0\x05\0W\0\x01\0\0\0";
        let device = DevlinkDevice { bus: "netdevsim".to_owned(), name: "netdevsim10".to_owned() };
        assert_eq!(DevlinkDevice::parse(info), Some(device));
        let firmware = BTreeMap::from([("fw.mgmt".to_owned(), "10.20.30".to_owned())]);
        let expected = Versions { running: firmware.clone(), stored: firmware, ..Versions::default() };
        assert_eq!(Versions::parse(info), expected);
        assert_eq!((flag(on), flag(off)), (Some(true), Some(false)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Versions::parse(&bytes), flag(&bytes), DevlinkDevice::parse(&bytes));
            let inside = reply(0, &[attribute_of(DEVLINK_ATTR_PARAM, &bytes), bytes]);
            let _ = (Versions::parse(&inside), flag(&inside));
        }
    }

    #[test]
    fn the_kernel_knows_its_families() {
        in_new_netns(|| async {
            let netlink = Netlink::connect_to(NETLINK_GENERIC).unwrap();
            assert_eq!(family(&netlink, "nlctrl").await.unwrap(), Some(GENL_ID_CTRL));
            assert_eq!(family(&netlink, "podrail-none").await.unwrap(), None);
        });
    }

    #[test]
    #[ignore = "needs a kernel with devlink, as the lab's"]
    fn of_a_device_that_is_not_there_nothing_is_known() {
        in_new_netns(|| async {
            let devlink = Devlink::connect().await.unwrap().unwrap();
            let device = DevlinkDevice::pci("ffff:ff:1f.7".parse().unwrap());
            assert!(!devlink.devices().await.unwrap().contains(&device));
            assert_eq!(devlink.versions(&device).await.unwrap(), None);
            assert_eq!(devlink.flag(&device, "enable_rdma").await.unwrap(), None);
        });
    }
}
