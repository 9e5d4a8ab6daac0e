//! Translation of a packet: address, port and checksums, by the deltas that the session keeps.

use gateway_common::{
    DropReason,
    parse::{Flow, Fragment, Packet},
    session::{SIDE_INSIDE, Session},
};

use crate::{family::Datapath, forward, fragment, packet::Frame};

pub(crate) const TCP_CHECKSUM: usize = 16;
pub(crate) const UDP_CHECKSUM: usize = 6;
pub(crate) const ICMP_CHECKSUM: usize = 2;
pub(crate) const ICMP_ID: usize = 4;

/// Rewrites the packet's source (from the inside) or destination (from the outside) as `session` says.
#[inline(always)]
pub(crate) fn translate<F: Datapath>(
    frame: &Frame<'_>,
    packet: &Packet<F>,
    session: &Session<F>,
    side: u8,
) -> Result<(), DropReason> {
    let (address, port) = if side == SIDE_INSIDE { (F::SOURCE, 0) } else { (F::DESTINATION, 2) };
    forward::age(frame, packet, session.network_delta)?;
    F::write_address(frame, packet.network() + address, session.translated)?;
    if !matches!(packet.fragment, Fragment::Whole) {
        fragment::relabel(frame, packet)?;
        if matches!(packet.fragment, Fragment::Later) {
            return Ok(());
        }
    }
    let translated_port = u16::from_ne_bytes(session.translated_port);
    match packet.transport_layer.flow {
        Flow::Tcp => {
            frame.write::<u16>(packet.transport() + port, translated_port)?;
            frame.update_checksum(packet.transport() + TCP_CHECKSUM, session.transport_delta)
        }
        Flow::Udp => {
            frame.write::<u16>(packet.transport() + port, translated_port)?;
            frame.update_udp_checksum(packet.transport() + UDP_CHECKSUM, session.transport_delta)
        }
        Flow::EchoRequest | Flow::EchoReply => {
            frame.write::<u16>(packet.transport() + ICMP_ID, translated_port)?;
            frame.update_checksum(packet.transport() + ICMP_CHECKSUM, session.transport_delta)
        }
        Flow::Icmp | Flow::Other => Err(DropReason::UnsupportedProtocol),
    }
}
