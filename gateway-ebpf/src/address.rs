//! Map `ADDRESSES`, and the answers to ARP and neighbour solicitations for pool addresses and EIPs.
//!
//! These need not be on the host; the gateway speaks for them on the link.

use aya_ebpf::{btf_maps::HashMap, helpers::generated::bpf_xdp_adjust_tail, macros::btf_map};
use gateway_common::{
    DropReason, Family as _, V4, V6, Verdict,
    address::{Address, EIP, LOCAL, MAX_ADDRESSES, POOL},
    checksum,
    family::{MappedAddress, is_same},
    parse::{Bytes as _, ETHERNET_LEN, ETHERTYPE_ARP, IPV6_LEN, PROTO_ICMPV6, Packet},
};

use crate::{
    family::Datapath,
    forward,
    packet::{Mac, mac_words},
    path::{Code, Context, Outcome},
};

/// `ICMPv6` type of a neighbour solicitation (RFC 4861 4.3).
pub(crate) const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

#[btf_map]
static ADDRESSES: HashMap<MappedAddress, Address, { MAX_ADDRESSES as usize }> = HashMap::new();

/// What `address` means to the gateway.
#[inline(always)]
pub(crate) fn find(address: &MappedAddress) -> Option<Address> {
    // SAFETY: the value is copied at once; a concurrent deletion may give a stale answer, never a wild one.
    unsafe { ADDRESSES.get(address) }.copied()
}

/// Whether the gateway, and not the host, answers for `address`.
#[inline(always)]
fn speaks_for(address: &MappedAddress) -> bool {
    find(address).is_some_and(|found| found.flags & (POOL | EIP) != 0 && found.flags & LOCAL == 0)
}

/// An ARP packet begins with hardware type Ethernet, protocol type IPv4 (RFC 826)...
const ARP_TYPES: u32 = u32::from_ne_bytes([0, 1, 8, 0]);
/// ...then their address lengths, and the operation: request.
const ARP_REQUEST: u32 = u32::from_ne_bytes([6, 4, 0, 1]);

/// Answers an ARP request for a pool address or an EIP; all else is the host's (RFC 826).
#[inline(never)]
pub(crate) fn answer_arp(context: &Context<'_>, network: usize) -> Code {
    Code::from(try_answer_arp(context, network))
}

#[inline(always)]
fn try_answer_arp(context: &Context<'_>, network: usize) -> Result<Outcome, DropReason> {
    let frame = context.frame;
    let Some(words) = frame.read::<[u32; 7]>(network) else { return Ok(Outcome::HOST) };
    if words[0] != ARP_TYPES || words[1] != ARP_REQUEST {
        return Ok(Outcome::HOST);
    }
    if !speaks_for(&V4::mapped(&words[6])) {
        return Ok(Outcome::HOST);
    }
    let sender: Mac = frame.read(network + 8).ok_or(DropReason::Truncated)?;
    let sender_address: u32 = frame.read(network + 14).ok_or(DropReason::Truncated)?;
    let own = mac_words(context.ingress.mac);
    forward::untag(frame, network, ETHERTYPE_ARP)?;
    let network = ETHERNET_LEN;
    frame.write(0, sender)?;
    frame.write(6, own)?;
    frame.write(network + 6, 2u16.to_be())?;
    frame.write(network + 8, own)?;
    frame.write(network + 14, words[6])?;
    frame.write(network + 18, sender)?;
    frame.write(network + 24, sender_address)?;
    Ok(Outcome { verdict: Verdict::Host, slot: context.ingress.slot })
}

/// `ff02::1` (RFC 4291 2.7.1).
const ALL_NODES: [u32; 4] = [0xff02_0000u32.to_be(), 0, 0, 1u32.to_be()];

/// Length of an advertisement with a link-layer address option.
const ADVERTISEMENT_LEN: usize = 32;
/// Flags solicited and override (RFC 4861 4.4).
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Answers a neighbour solicitation for a pool address or an EIP; all else is the host's (RFC 4861 7.2.4).
#[inline(never)]
pub(crate) fn answer_solicitation<F: Datapath>(context: &Context<'_>, packet: &Packet<F>) -> Code {
    Code::from(try_answer_solicitation(context, packet))
}

#[inline(always)]
fn try_answer_solicitation<F: Datapath>(
    context: &Context<'_>,
    packet: &Packet<F>,
) -> Result<Outcome, DropReason> {
    let frame = context.frame;
    let Some(target) = frame.read::<[u32; 4]>(packet.transport() + 8) else {
        return Ok(Outcome::HOST);
    };
    let plain = packet.transport() == packet.network() + IPV6_LEN;
    if packet.ttl != 255 || !plain || !speaks_for(&V6::mapped(&target)) {
        return Ok(Outcome::HOST);
    }
    let sender: Mac = frame.read(6).ok_or(DropReason::Truncated)?;
    let detection = is_same(&F::mapped(&packet.source), &[0; 4]);
    // To a host that tests the address for duplicates, the answer goes to all nodes (RFC 4861 7.2.4).
    let destination = if detection { ALL_NODES } else { F::mapped(&packet.source) };
    forward::untag(frame, packet.network(), V6::ETHERTYPE)?;
    let length = (ETHERNET_LEN + IPV6_LEN + ADVERTISEMENT_LEN) as i32;
    // SAFETY: the helper changes the length; pointers are taken afresh by `write`.
    if unsafe { bpf_xdp_adjust_tail(frame.context(), length - frame.bytes() as i32) } != 0 {
        return Err(DropReason::Internal);
    }
    let own = context.ingress.mac;
    let flags = if detection { OVERRIDE } else { SOLICITED | OVERRIDE };
    let body = [u32::from_ne_bytes([NEIGHBOR_ADVERTISEMENT, 0, 0, 0]), u32::from_ne_bytes([flags, 0, 0, 0])];
    let option =
        [u32::from_ne_bytes([2, 1, own[0], own[1]]), u32::from_ne_bytes([own[2], own[3], own[4], own[5]])];
    // Pseudo header (RFC 8200 8.1), then the message with its checksum as zero.
    let sum = V6::sum(&target)
        + V6::sum(&destination)
        + ADVERTISEMENT_LEN as u32
        + u32::from(PROTO_ICMPV6)
        + (u32::from(NEIGHBOR_ADVERTISEMENT) << 8)
        + (u32::from(flags) << 8)
        + V6::sum(&target)
        + 0x0201
        + u32::from(u16::from_be_bytes([own[0], own[1]]))
        + u32::from(u16::from_be_bytes([own[2], own[3]]))
        + u32::from(u16::from_be_bytes([own[4], own[5]]));
    let group: Mac = [0x3333u16.to_be(), 0, 1u16.to_be()];
    frame.write(0, if detection { group } else { sender })?;
    frame.write(6, mac_words(own))?;
    let network = ETHERNET_LEN;
    frame.write(network, [u32::from_ne_bytes([0x60, 0, 0, 0])])?;
    frame.write(network + 4, [u32::from_ne_bytes([0, ADVERTISEMENT_LEN as u8, PROTO_ICMPV6, 255])])?;
    frame.write(network + 8, target)?;
    frame.write(network + 24, destination)?;
    let transport = network + IPV6_LEN;
    frame.write(transport, body)?;
    frame.write(transport + 2, (!checksum::fold(sum)).to_be())?;
    frame.write(transport + 8, target)?;
    frame.write(transport + 24, option)?;
    Ok(Outcome { verdict: Verdict::Host, slot: context.ingress.slot })
}
