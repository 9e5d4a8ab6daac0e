//! The frame of a packet that is asked about.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder};

use super::Question;
use crate::model::Proto;

/// TTL that hosts begin with.
const TTL: u8 = 64;
/// Window of the SYN.
const WINDOW: u16 = 64_240;

/// The frame of a question: for the device with the MAC address `to`, from whoever has `from`.
///
/// # Errors
/// The addresses are of different families.
pub fn frame(question: &Question, from: [u8; 6], to: [u8; 6]) -> Result<Vec<u8>> {
    let Question { source_port, port, proto, .. } = *question;
    let link = PacketBuilder::ethernet2(from, to);
    let (network, v4) = match (question.from, question.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (link.ipv4(from.octets(), to.octets(), TTL), true),
        (IpAddr::V6(from), IpAddr::V6(to)) => (link.ipv6(from.octets(), to.octets(), TTL), false),
        (from, to) => bail!("{from} and {to} are of different families"),
    };
    let mut frame = Vec::new();
    let echo = etherparse::IcmpEchoHeader { id: source_port, seq: 1 };
    match (proto, v4) {
        (Proto::Tcp, _) => network.tcp(source_port, port, 1, WINDOW).syn().write(&mut frame, &[]),
        (Proto::Udp, _) => network.udp(source_port, port).write(&mut frame, &[]),
        (Proto::Icmp, true) => network.icmpv4(Icmpv4Type::EchoRequest(echo)).write(&mut frame, &[]),
        (Proto::Icmp, false) => network.icmpv6(Icmpv6Type::EchoRequest(echo)).write(&mut frame, &[]),
    }
    .context("the packet cannot be made")?;
    Ok(frame)
}
