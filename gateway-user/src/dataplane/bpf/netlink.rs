//! Netlink requests of the data plane's thread, which waits for the answer. Asynchronous netlink, and all
//! that follows the host, is in [`crate::netlink`].
#![expect(clippy::wildcard_enum_match_arm, reason = "what else netlink may say is not an answer")]

use std::{collections::HashMap, io, net::IpAddr};

use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_ALIGNTO, NetlinkDeserializable,
        NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// Dumps that may be cut short by changes before it is given up.
const DUMP_ATTEMPTS: usize = 5;

/// Asks for something, or for a change, in the network namespace of this thread; `flags` are added to those
/// of every request. Returns the answers that are neither errors nor acknowledgements.
///
/// # Errors
/// What the kernel says.
pub(super) fn ask<M>(protocol: isize, request: M, flags: u16) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    exchange(protocol, request, flags | NLM_F_ACK).map(|(answers, _)| answers)
}

/// Asks for a list, and again where it changed while it was read.
///
/// # Errors
/// What the kernel says.
pub(super) fn list<M>(protocol: isize, request: &M) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable + Clone,
{
    for _ in 0..DUMP_ATTEMPTS {
        let (answers, interrupted) = exchange(protocol, request.clone(), NLM_F_DUMP)?;
        if !interrupted {
            return Ok(answers);
        }
    }
    Err(io::Error::other("the list changes faster than it can be read"))
}

/// The MAC addresses of neighbours, by ifindex and address: of those that the kernel would send to.
///
/// # Errors
/// What the kernel says.
pub(super) fn neighbors() -> io::Result<HashMap<(u32, IpAddr), [u8; 6]>> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let answers = list(NETLINK_ROUTE, &request)?;
    Ok(answers
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => neighbor(message),
            _ => None,
        })
        .collect())
}

/// The MAC address of one neighbor, if the kernel would send to it.
///
/// # Errors
/// What the kernel says.
pub(super) fn neighbor_at(ifindex: u32, address: IpAddr) -> io::Result<Option<[u8; 6]>> {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    let (family, destination) = match address {
        IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    let answers = match ask(NETLINK_ROUTE, RouteNetlinkMessage::GetNeighbour(message), 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        answers => answers?,
    };
    let found = answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNeighbour(message) => neighbor(message),
        _ => None,
    });
    Ok(found.map(|(_, mac)| mac))
}

fn neighbor(message: &NeighbourMessage) -> Option<((u32, IpAddr), [u8; 6])> {
    let usable = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Noarp
            | NeighbourState::Permanent
    );
    if !usable || message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some((*v4).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some((*v6).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some(((message.header.ifindex, address?), mac?))
}

/// Sends a request and reads up to the acknowledgement or the end of the list. Says whether the list changed.
fn exchange<M>(protocol: isize, request: M, flags: u16) -> io::Result<(Vec<M>, bool)>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(request));
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let (mut answers, mut interrupted) = (Vec::new(), false);
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
            interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            let length = (message.header.length as usize).next_multiple_of(NLMSG_ALIGNTO.into());
            rest = rest.get(length..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok((answers, interrupted)),
                _ => {}
            }
        }
    }
}
