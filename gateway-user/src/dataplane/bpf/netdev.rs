//! What the driver of a device can do with XDP: the generic netlink family `netdev` (`linux/netdev.h`),
//! Linux 6.3 and later.
//!
//! A frame that a program redirects out of a driver's receive path is handed to `ndo_xdp_xmit` of the other
//! device. Where there is none, the frame is lost after the program has run.

use std::{collections::BTreeMap, io};

use rtnetlink::{
    packet_core::{
        DecodeError, DefaultNla, Emitable as _, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
        NlasIterator,
    },
    sys::protocols::NETLINK_GENERIC,
};

use super::netlink;

// `linux/genetlink.h`
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Length of `struct genlmsghdr`.
const HEADER: usize = 4;

// `linux/netdev.h`
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_REDIRECT: u64 = 2;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

/// What a driver can do, bits of `enum netdev_xdp_act`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features(u64);

impl Features {
    /// Programs run in the driver and may redirect.
    pub(super) fn runs_programs(self) -> bool {
        self.0 & NETDEV_XDP_ACT_REDIRECT != 0
    }

    /// Frames can be redirected to the device. Many drivers (ena, i40e, ice, virtio-net) can only while they
    /// run a program themselves, a veth only while its peer has GRO on or runs a program.
    pub(super) fn takes_redirects(self) -> bool {
        self.0 & NETDEV_XDP_ACT_NDO_XMIT != 0
    }
}

/// Asks about devices of this thread's network namespace. Those that are gone, or that the kernel is too old
/// to tell about, are absent.
///
/// # Errors
/// What the kernel says.
pub(super) fn features(devices: impl IntoIterator<Item = u32>) -> io::Result<BTreeMap<u32, Features>> {
    let mut found = BTreeMap::new();
    let Some(family) = family("netdev")? else { return Ok(found) };
    for ifindex in devices {
        let request = Message {
            family,
            command: NETDEV_CMD_DEV_GET,
            attributes: vec![(NETDEV_A_DEV_IFINDEX, ifindex.to_ne_bytes().to_vec())],
        };
        let answers = match netlink::ask(NETLINK_GENERIC, request, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
            answers => answers?,
        };
        let bits = answers.iter().find_map(|answer| answer.attribute(NETDEV_A_DEV_XDP_FEATURES));
        if let Some(bits) = bits {
            found.insert(ifindex, Features(u64::from_ne_bytes(bits)));
        }
    }
    Ok(found)
}

/// The number of a family of generic netlink; `None` where the kernel does not have it.
fn family(name: &str) -> io::Result<Option<u16>> {
    let name = [name.as_bytes(), &[0]].concat();
    let request = Message {
        family: GENL_ID_CTRL,
        command: CTRL_CMD_GETFAMILY,
        attributes: vec![(CTRL_ATTR_FAMILY_NAME, name)],
    };
    match netlink::ask(NETLINK_GENERIC, request, 0) {
        Ok(answers) => Ok(answers
            .iter()
            .find_map(|answer| answer.attribute(CTRL_ATTR_FAMILY_ID))
            .map(u16::from_ne_bytes)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A message of generic netlink.
#[derive(Clone, Debug)]
struct Message {
    family: u16,
    command: u8,
    /// Type and value.
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Message {
    fn attribute<const N: usize>(&self, wanted: u16) -> Option<[u8; N]> {
        let (_, value) = self.attributes.iter().find(|(kind, _)| *kind == wanted)?;
        value.as_slice().try_into().ok()
    }

    fn encoded(&self) -> Vec<DefaultNla> {
        self.attributes.iter().map(|(kind, value)| DefaultNla::new(*kind, value.clone())).collect()
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.encoded().as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(HEADER);
        header.copy_from_slice(&[self.command, 1, 0, 0]);
        self.encoded().as_slice().emit(attributes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(payload.get(HEADER..).unwrap_or_default())
            .map(|attribute| attribute.map(|attribute| (attribute.kind(), attribute.value().to_vec())))
            .collect::<Result<_, _>>()?;
        let command = payload.first().copied().unwrap_or_default();
        Ok(Self { family: header.message_type, command, attributes })
    }
}
