//! Maps `TUNNELS` and `TUNNEL_HOSTS`, programs `encapsulate` and `decapsulate`: frames to and from hosts of proxies that
//! are not on a link of the gateway.
//!
//! ```text
//! any program -> a way whose slot is a tunnel -> encapsulate -> send
//! gateway     -> UDP to a port of tunnels, no session -> decapsulate -> session, confirmed -> as in gateway
//!                                                                    -> anything else      -> decide
//! ```
//!
//! A frame in a tunnel is as one on the link of the host: all that is decided is decided about the frame inside, and
//! [`gateway_common::session::Tuple::origin`] says which host it came from. What is not for the gateway to forward (ARP,
//! neighbour discovery, what is for its own addresses) is left in its tunnel for the host's stack, which has a device for
//! it.

use core::arch::asm;

use aya_ebpf::{
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::btf_map,
};
use gateway_common::{
    DropReason, Family as _, V4, V6, Verdict,
    address::{BROADCAST, LOCAL},
    checksum,
    family::{MappedAddress, is_v4},
    parse::{
        Bytes as _, ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Flow, IPV4_LEN, IPV6_LEN, PROTO_TCP,
        PROTO_UDP, Packet,
    },
    pool,
    proxy::{self as layout, MAX_PROXY_HOSTS},
    tunnel::{self as common, GENEVE_PORT, HEADER_LEN, Tunnel, TunnelKey, UDP_LEN, VXLAN_PORT},
};

use crate::{
    address, config,
    family::Datapath,
    forward,
    packet::{Frame, Mac, mac_words},
    path::{Context, Outcome},
    proxy,
};

#[btf_map]
static TUNNELS: Array<Tunnel, { MAX_PROXY_HOSTS as usize }> = Array::new();

#[btf_map]
static TUNNEL_HOSTS: HashMap<TunnelKey, u32, { MAX_PROXY_HOSTS as usize }> = HashMap::new();

/// What one program tells the one that it calls.
#[repr(C)]
#[derive(Clone, Copy)]
struct Note {
    /// To `decide`: the [`gateway_common::session::Tuple::origin`] of a frame that came out of a tunnel, or 0.
    origin: u16,
    /// To `encapsulate`: the number of the host.
    host: u16,
    /// To `encapsulate`: what to count the packet as.
    verdict: u8,
    reserved: [u8; 3],
}

#[btf_map]
static NOTES: PerCpuArray<Note, 1> = PerCpuArray::new();

#[inline(always)]
fn note() -> Option<&'static mut Note> {
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    NOTES.get_ptr_mut(0).map(|note| unsafe { &mut *note })
}

/// The origin of a frame that came out of a tunnel, or 0. For programs behind `gateway` or `decapsulate`.
#[inline(always)]
pub(crate) fn origin() -> u16 {
    note().map_or(0, |note| note.origin)
}

/// Tells `decide` the origin of a frame that came out of a tunnel; 0: the frame came as it is.
#[inline(always)]
pub(crate) fn came_from(origin: u16) {
    if let Some(note) = note() {
        note.origin = origin;
    }
}

/// Tells `encapsulate` where the frame goes, and what it counts as.
#[inline(always)]
pub(crate) fn towards(host: u16, verdict: Verdict) {
    if let Some(note) = note() {
        note.host = host;
        note.verdict = verdict as u8;
    }
}

/// The XDP action of a frame that is for its sender, in the tunnel that the note names.
pub(crate) const BACK: u32 = u32::MAX;

/// Sends a frame that says why a packet was dropped back to the host whose frames have this origin, where it is in a
/// tunnel. The packet is counted. Returns what [`crate::refuse`] does; `None`: the host is not in a tunnel.
#[inline(always)]
pub(crate) fn back(frame: &Frame<'_>, origin: u16) -> Option<u32> {
    let way = proxy::host_of(origin)?.next_hop;
    let host = common::host_of(u32::from(way.slot))?;
    frame.write_words(0, way.ethernet).ok()?;
    towards(host, Verdict::Drop);
    Some(BACK)
}

/// Whether a packet without a session may be a frame in a tunnel.
#[inline(always)]
pub(crate) fn may_be_one<F: Datapath>(packet: &Packet<F>) -> bool {
    let transport = &packet.transport_layer;
    matches!(transport.flow, Flow::Udp)
        && matches!(u16::from_be_bytes(transport.destination_port), VXLAN_PORT | GENEVE_PORT)
}

/// Puts the frame into the tunnel that the note names.
#[inline(always)]
pub(crate) fn encapsulate(context: &Context<'_>) -> Result<Outcome, DropReason> {
    let note = note().ok_or(DropReason::Internal)?;
    let verdict = Verdict::from_number(note.verdict).ok_or(DropReason::Internal)?;
    let tunnel = TUNNELS.get(u32::from(note.host)).ok_or(DropReason::Internal)?;
    // The way to the host was lost since the packet was decided.
    if tunnel.port == [0; 2] {
        return Err(DropReason::NeighborUnresolved);
    }
    wrap(context.frame, tunnel)?;
    Ok(Outcome { verdict, slot: u32::from(tunnel.next_hop.slot) })
}

/// The inner frame, as far as the headers around it depend on it.
struct Inner {
    /// Bytes of it.
    length: u16,
    /// TOS or traffic class: diffserv code point and ECN field are those of the packet inside (RFC 2983 3, RFC 6040 4.1).
    tos: u8,
    /// Of addresses and ports.
    hash: u32,
}

#[inline(always)]
fn wrap(frame: &Frame<'_>, tunnel: &Tunnel) -> Result<(), DropReason> {
    let inner = look_inside(frame)?;
    let v4 = is_v4(&tunnel.destination);
    let outer = if v4 { IPV4_LEN } else { IPV6_LEN };
    let mut bytes = frame.bytes();
    // The compiler would subtract in 32 bits, which the verifier does not allow for what was a pointer.
    // SAFETY: the instruction does nothing.
    unsafe { asm!("{0} = {0}", inout(reg) bytes, options(nomem, nostack, preserves_flags, pure)) };
    // Bytes behind the packet are not part of it, and might not fit.
    let trailer = i32::from(inner.length) - bytes as i32;
    // SAFETY: the helpers move the ends of the frame; all pointers are taken afresh by every access.
    let moved = unsafe {
        bpf_xdp_adjust_tail(frame.context(), trailer) == 0
            && bpf_xdp_adjust_head(frame.context(), -((ETHERNET_LEN + outer + UDP_LEN + HEADER_LEN) as i32))
                == 0
    };
    if !moved {
        return Err(DropReason::Internal);
    }
    frame.write_words(0, tunnel.next_hop.ethernet)?;
    let datagram = inner.length + (UDP_LEN + HEADER_LEN) as u16;
    let [l0, l1] = datagram.to_be_bytes();
    if v4 {
        frame.write::<u16>(12, ETHERTYPE_IPV4.to_be())?;
        let total = datagram + IPV4_LEN as u16;
        let [t0, t1] = total.to_be_bytes();
        let words = [
            u32::from_ne_bytes([0x45, inner.tos, t0, t1]),
            // Do not fragment: what does not fit has been refused.
            u32::from_ne_bytes([0, 0, 0x40, 0]),
            u32::from_ne_bytes([common::TTL, PROTO_UDP, 0, 0]),
            tunnel.source[3],
            tunnel.destination[3],
        ];
        let mut sum = 0;
        for word in words {
            let word = u32::from_be(word);
            sum += (word >> 16) + (word & 0xffff);
        }
        frame.write_words(ETHERNET_LEN, words)?;
        frame.write(ETHERNET_LEN + forward::CHECKSUM, (!checksum::fold(sum)).to_be())?;
        wrap_udp(frame, ETHERNET_LEN + IPV4_LEN, tunnel, &inner, [l0, l1])
    } else {
        frame.write::<u16>(12, ETHERTYPE_IPV6.to_be())?;
        let first = [0x60 | inner.tos >> 4, inner.tos << 4, 0, 0];
        frame.write(ETHERNET_LEN, u32::from_ne_bytes(first))?;
        frame.write(ETHERNET_LEN + 4, u32::from_ne_bytes([l0, l1, PROTO_UDP, common::TTL]))?;
        frame.write_words(ETHERNET_LEN + V6::SOURCE, tunnel.source)?;
        frame.write_words(ETHERNET_LEN + V6::DESTINATION, tunnel.destination)?;
        wrap_udp(frame, ETHERNET_LEN + IPV6_LEN, tunnel, &inner, [l0, l1])
    }
}

/// No checksum: that of the packet inside covers what matters (RFC 7348 5; RFC 6935 and 6936 for IPv6).
#[inline(always)]
fn wrap_udp(
    frame: &Frame<'_>,
    at: usize,
    tunnel: &Tunnel,
    inner: &Inner,
    [l0, l1]: [u8; 2],
) -> Result<(), DropReason> {
    let [s0, s1] = common::source_port(inner.hash).to_be_bytes();
    let [d0, d1] = tunnel.port;
    let [first, second] = tunnel.header;
    let words = [u32::from_ne_bytes([s0, s1, d0, d1]), u32::from_ne_bytes([l0, l1, 0, 0]), first, second];
    frame.write_words(at, words)
}

/// Reads the frame that is to be sent.
#[inline(always)]
fn look_inside(frame: &Frame<'_>) -> Result<Inner, DropReason> {
    let ethertype = u16::from_be(frame.read(12).ok_or(DropReason::Truncated)?);
    let at = ETHERNET_LEN;
    let [b0, b1, b2, b3, b4, b5, b6, b7]: [u8; 8] = frame.read(at).ok_or(DropReason::Truncated)?;
    let (length, tos, addresses, proto, header) = if ethertype == ETHERTYPE_IPV4 {
        let [source, destination]: [u32; 2] = frame.read(at + V4::SOURCE).ok_or(DropReason::Truncated)?;
        let proto: u8 = frame.read(at + 9).ok_or(DropReason::Truncated)?;
        // Of a fragmented datagram only the first part shows ports, and all of them go one way.
        let whole = u16::from_be_bytes([b6 & 0x3f, b7]) == 0;
        let proto = if b0 == 0x45 && whole { proto } else { 0 };
        (u16::from_be_bytes([b2, b3]), b1, source ^ destination.rotate_left(16), proto, IPV4_LEN)
    } else {
        let words: [u32; 8] = frame.read(at + V6::SOURCE).ok_or(DropReason::Truncated)?;
        let [s0, s1, s2, s3, d0, d1, d2, d3] = words;
        let addresses = s0 ^ s1 ^ s2 ^ s3 ^ (d0 ^ d1 ^ d2 ^ d3).rotate_left(16);
        let length = u16::from_be_bytes([b4, b5]).saturating_add(IPV6_LEN as u16);
        (length, b0 << 4 | b1 >> 4, addresses, b6, IPV6_LEN)
    };
    let ports = if matches!(proto, PROTO_TCP | PROTO_UDP) { frame.read::<u32>(at + header) } else { None };
    let hash = pool::respread(addresses ^ ports.unwrap_or_default());
    Ok(Inner { length: length.saturating_add(ETHERNET_LEN as u16), tos, hash })
}

/// Takes the headers of a tunnel off that a host of a proxy has put on. The origin of the frame, or 0: it is not the
/// gateway's to take off, and is as it was.
#[inline(always)]
pub(crate) fn unwrap(frame: &Frame<'_>) -> Result<u16, DropReason> {
    let ethertype = frame.read::<u16>(12).ok_or(DropReason::Truncated)?;
    let found = if u16::from_be(ethertype) == ETHERTYPE_IPV4 {
        look_for_host::<V4>(frame)?
    } else {
        look_for_host::<V6>(frame)?
    };
    let Some((host, start, tos)) = found else { return Ok(0) };
    // SAFETY: the helper moves the start of the frame; all pointers are taken afresh by every access.
    if unsafe { bpf_xdp_adjust_head(frame.context(), start as i32) } != 0 {
        return Err(DropReason::Internal);
    }
    mark(frame, tos)?;
    Ok(layout::origin(host))
}

/// The host that the frame comes from, where the frame inside begins, and TOS or traffic class of the outer header.
#[inline(always)]
fn look_for_host<F: Datapath>(frame: &Frame<'_>) -> Result<Option<(u16, usize, u8)>, DropReason> {
    let Some(packet) = F::parse_plain(frame)? else { return Ok(None) };
    if !may_be_one(&packet) {
        return Ok(None);
    }
    let header = if F::IS_V4 { IPV4_LEN } else { IPV6_LEN };
    let at = ETHERNET_LEN + header + UDP_LEN;
    let Some([h0, h1, h2, h3, v0, v1, v2, _]) = frame.read::<[u8; 8]>(at) else { return Ok(None) };
    let port = u16::from_be_bytes(packet.transport_layer.destination_port);
    let (kind, start) = if port == VXLAN_PORT {
        if h0 & common::VXLAN_VALID == 0 {
            return Ok(None);
        }
        (common::VXLAN, at + HEADER_LEN)
    } else {
        // Version 0, a data packet, no options that it may not be understood without.
        if h0 & 0xc0 != 0
            || h1 & (common::GENEVE_CONTROL | common::GENEVE_CRITICAL) != 0
            || u16::from_be_bytes([h2, h3]) != common::TRANSPARENT_ETHERNET
        {
            return Ok(None);
        }
        (common::GENEVE, at + HEADER_LEN + usize::from(h0 & 0x3f) * 4)
    };
    let vni = u32::from_be_bytes([0, v0, v1, v2]);
    let key = TunnelKey { host: F::mapped(&packet.source), identifier: common::identifier(kind, vni) };
    // SAFETY: the value is a plain integer and is copied at once.
    let Some(number) = (unsafe { TUNNEL_HOSTS.get(key) }) else { return Ok(None) };
    let number = *number as u16;
    // By the way that leads to the host, and no other: the addresses of a packet are easily forged.
    let Some(slot) = TUNNELS.get(u32::from(number)).map(|tunnel| u32::from(tunnel.next_hop.slot)) else {
        return Ok(None);
    };
    if config::interface(frame.ingress_ifindex()).is_none_or(|ingress| ingress.slot != slot) {
        return Ok(None);
    }
    if !is_own(&F::mapped(&packet.destination)) || !is_to_forward(frame, number, start) {
        return Ok(None);
    }
    let first: [u8; 2] = frame.read(ETHERNET_LEN).ok_or(DropReason::Truncated)?;
    let tos = if F::IS_V4 { first[1] } else { first[0] << 4 | first[1] >> 4 };
    Ok(Some((number, start, tos)))
}

/// Whether an address is the gateway host's own.
#[inline(always)]
fn is_own(address: &MappedAddress) -> bool {
    address::find(address).is_some_and(|found| found.flags & (LOCAL | BROADCAST) != 0)
}

/// Whether the frame at `start`, from this host, is for the gateway to forward: addressed to its end of the tunnel, and
/// with a packet for somebody else.
#[inline(always)]
fn is_to_forward(frame: &Frame<'_>, number: u16, start: usize) -> bool {
    let Some(host) = proxy::host(number) else { return false };
    let end = host.next_hop.source();
    let Some(mac) = frame.read::<Mac>(start) else { return false };
    if mac != mac_words(end) {
        return false;
    }
    let Some(ethertype) = frame.read::<u16>(start + 12) else { return false };
    let at = start + ETHERNET_LEN;
    match u16::from_be(ethertype) {
        ETHERTYPE_IPV4 => {
            let Some(destination) = frame.read::<u32>(at + V4::DESTINATION) else { return true };
            // Groups are the host's business.
            u32::from_be(destination) >> 28 != 0xe && !is_own(&V4::mapped(&destination))
        }
        ETHERTYPE_IPV6 => {
            let Some(destination) = frame.read::<[u32; 4]>(at + V6::DESTINATION) else { return true };
            let high = u32::from_be(destination[0]);
            // And so is what is for this link.
            high >> 24 != 0xff && high >> 22 != 0xfe80 >> 6 && !is_own(&destination)
        }
        _ => false,
    }
}

/// Congestion that was met on the way is told to the receiver of the packet inside, or the packet is dropped where it
/// cannot be (RFC 6040 4.2).
#[inline(always)]
fn mark(frame: &Frame<'_>, tos: u8) -> Result<(), DropReason> {
    const CONGESTION: u8 = 3;
    if tos & CONGESTION != CONGESTION {
        return Ok(());
    }
    let ethertype = u16::from_be(frame.read(12).ok_or(DropReason::Truncated)?);
    let [b0, b1]: [u8; 2] = frame.read(ETHERNET_LEN).ok_or(DropReason::Truncated)?;
    let shift = if ethertype == ETHERTYPE_IPV4 { 0 } else { 4 };
    if b1 >> shift & CONGESTION == 0 {
        return Err(DropReason::Malformed);
    }
    let marked = b1 | CONGESTION << shift;
    frame.write(ETHERNET_LEN + 1, marked)?;
    if ethertype == ETHERTYPE_IPV4 {
        let word = |b1| u32::from(u16::from_be_bytes([b0, b1]));
        frame.update_checksum(ETHERNET_LEN + forward::CHECKSUM, checksum::delta(word(b1), word(marked)))?;
    }
    Ok(())
}
