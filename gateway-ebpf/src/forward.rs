//! Map `EGRESS`, and the last steps of a packet that leaves: TTL, Ethernet header, device.

use aya_ebpf::{
    bindings::xdp_action, btf_maps::DevMap, helpers::generated::bpf_xdp_adjust_head, macros::btf_map,
};
use gateway_common::{
    DropReason, checksum,
    family::NextHop,
    interface::{Interface, MAX_INTERFACES, REDIRECT_ONLY},
    parse::{ETHERNET_LEN, Packet},
};

use crate::{family::Datapath, packet::Frame};

/// Devices by slot.
#[btf_map]
static EGRESS: DevMap<{ MAX_INTERFACES as usize }> = DevMap::new();

/// Offset of the header checksum in an IPv4 header.
pub(crate) const CHECKSUM: usize = 10;

/// What one hop less does to the IPv4 header checksum, see [`checksum::apply`]: the word that the TTL leads
/// becomes less by 0x0100.
pub(crate) const TTL_DELTA: u16 = checksum::delta(0x0100, 0);

/// Whether the packet may go on: RFC 1812 5.3.1 and 4.2.2.9, RFC 8200 4.
#[inline(always)]
pub(crate) fn check<F: Datapath>(packet: &Packet<F>, next_hop: &NextHop) -> Result<(), DropReason> {
    if packet.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    if packet.length > next_hop.mtu {
        return Err(DropReason::MtuExceeded);
    }
    Ok(())
}

/// Writes the TTL, and the IPv4 header checksum changed by `delta`, which includes [`TTL_DELTA`].
#[inline(always)]
pub(crate) fn age<F: Datapath>(frame: &Frame<'_>, packet: &Packet<F>, delta: u16) -> Result<(), DropReason> {
    frame.write::<u8>(packet.network() + F::TTL, packet.ttl - 1)?;
    if F::IS_V4 {
        frame.update_checksum(packet.network() + CHECKSUM, delta)?;
    }
    Ok(())
}

/// Puts the Ethernet header of `next_hop` before the IP header at `network`; tags are taken off.
///
/// The frame's offsets change: nothing may be read or written by offset afterwards.
#[inline(always)]
pub(crate) fn readdress<F: Datapath>(
    frame: &Frame<'_>,
    network: usize,
    next_hop: &NextHop,
) -> Result<(), DropReason> {
    untag(frame, network, F::ETHERTYPE)?;
    frame.write_words(0, next_hop.ethernet)
}

/// Takes off the tags before what begins at `network`, which begins at [`ETHERNET_LEN`] afterwards. Where
/// there were any, the MAC addresses are lost.
#[inline(always)]
pub(crate) fn untag(frame: &Frame<'_>, network: usize, ethertype: u16) -> Result<(), DropReason> {
    if network == ETHERNET_LEN {
        return Ok(());
    }
    // SAFETY: the helper moves the start of the frame; all pointers are taken afresh by `write`.
    let result = unsafe { bpf_xdp_adjust_head(frame.context(), (network - ETHERNET_LEN) as i32) };
    if result != 0 {
        return Err(DropReason::Internal);
    }
    frame.write::<u16>(12, ethertype.to_be())
}

/// Hands the frame to the device in `slot`: back out where it came from, or redirected.
#[inline(always)]
pub(crate) fn send(ingress: &Interface, slot: u32) -> u32 {
    if ingress.slot == slot && ingress.flags & REDIRECT_ONLY == 0 {
        return xdp_action::XDP_TX;
    }
    // Where the slot is empty the flags say what to do: drop.
    EGRESS.redirect(slot, u64::from(xdp_action::XDP_DROP)).unwrap_or(xdp_action::XDP_DROP)
}
