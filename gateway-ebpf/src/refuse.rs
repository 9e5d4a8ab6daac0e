//! What a sender is told of a packet that was dropped: ICMP errors and TCP resets, built from the packet itself
//! and sent back through the interface it came from.
//!
//! Answers are made only where the RFCs allow them: never about ICMP errors, later fragments and groups
//! (RFC 1812 4.3.2.7, RFC 4443 2.4), and at a limited rate (RFC 1812 4.3.2.8).

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::btf_map,
};
use gateway_common::{
    DropReason,
    address::EIP,
    checksum,
    config::{Config, NO_SESSION_DROP},
    parse::{Bytes as _, ETHERNET_LEN, Flow, Fragment, IPV4_LEN, IPV6_LEN, PROTO_TCP, Packet},
    pool::REFUSE_RESET,
    route::Target,
    session::{SIDE_INSIDE, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};

use crate::{
    address, config,
    family::Datapath,
    forward,
    packet::{Frame, Mac, mac_words},
    path::Context,
    pool, record,
    session::Subject,
    tunnel,
};

/// Answers that one CPU makes in one tick (about 130 ms): about a thousand a second.
const PER_TICK: u32 = 134;

/// Tick and number of answers in it.
#[btf_map]
static REFUSALS: PerCpuArray<[u32; 2], 1> = PerCpuArray::new();

/// TTL of what the gateway sends itself.
const TTL: u8 = 64;
/// Bytes of an ICMP header.
const ICMP_LEN: usize = 8;
/// Bytes of a TCP header without options.
const TCP_LEN: usize = 20;
/// What is quoted behind the IP header of a refused packet: enough for the ports.
const QUOTED: usize = 8;

/// Tells the sender of the packet in the subject, if `reason` is something to tell, and records it, if its route says
/// so. Returns the XDP action.
#[inline(always)]
pub(crate) fn answer<F: Datapath>(context: &Context<'_>, reason: DropReason) -> u32 {
    record::denied::<F>(reason);
    let full = is_full(reason);
    if !full
        && !matches!(
            reason,
            DropReason::Prohibited
                | DropReason::TtlExceeded
                | DropReason::MtuExceeded
                | DropReason::NoSession
        )
    {
        return xdp_action::XDP_DROP;
    }
    let Some(subject) = F::subject() else { return xdp_action::XDP_DROP };
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let subject = unsafe { &*subject };
    let packet = &subject.packet;
    if matches!(reason, DropReason::NoSession)
        && (context.config.no_session == NO_SESSION_DROP || !is_orphan(subject))
    {
        return xdp_action::XDP_DROP;
    }
    let refusal = if full { refusal(subject) } else { REFUSE_RESET };
    if refusal == 0 {
        return xdp_action::XDP_DROP;
    }
    if !may_answer(packet) || !within_rate(context.config) {
        return xdp_action::XDP_DROP;
    }
    let resets = full || matches!(reason, DropReason::Prohibited | DropReason::NoSession);
    let built = if resets && refusal & REFUSE_RESET != 0 && matches!(packet.transport_layer.flow, Flow::Tcp) {
        reset::<F>(context, packet)
    } else {
        let (kind, code) = F::icmp_error(reason);
        let mtu = if matches!(reason, DropReason::MtuExceeded) { subject.mtu } else { 0 };
        error::<F>(context, packet, u32::from(kind) << 8 | u32::from(code), mtu)
    };
    if built != 0 {
        return xdp_action::XDP_DROP;
    }
    if subject.tuple.origin != 0
        && let Some(action) = tunnel::back(context.frame, subject.tuple.origin)
    {
        return action;
    }
    forward::send(context.ingress, context.ingress.slot)
}

/// Whether a new flow was dropped because there was no room for it. What its client is told is the pool's to say.
#[inline(always)]
const fn is_full(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::PoolExhausted
            | DropReason::SessionTableFull
            | DropReason::DestinationRate
            | DropReason::DestinationConcurrent
            | DropReason::SourceRate
            | DropReason::SourceConcurrent
    )
}

/// What the pool says that the client of a flow is told for which there is no room; 0: nothing, as of flows that go
/// through no pool. Strangers outside are told nothing.
#[inline(always)]
fn refusal<F: Datapath>(subject: &Subject<F>) -> u32 {
    if subject.tuple.side == SIDE_INSIDE && subject.route.target == Target::Pool as u8 {
        pool::refusal(subject.route.object)
    } else {
        0
    }
}

/// Whether the packet is a client's segment of a connection that the gateway does not know, or not any more. A
/// client that is told begins anew at once. From outside, such segments are scans, and nobody is told. A SYN is
/// dropped only for the moment. EIPs have no sessions.
#[inline(always)]
fn is_orphan<F: Datapath>(subject: &Subject<F>) -> bool {
    let transport = &subject.packet.transport_layer;
    subject.tuple.side == SIDE_INSIDE
        && matches!(transport.flow, Flow::Tcp)
        && transport.detail & TCP_SYN == 0
        && matches!(subject.packet.fragment, Fragment::Whole)
        && address::find(&F::mapped(&subject.packet.destination)).is_none_or(|found| found.flags & EIP == 0)
}

#[inline(always)]
fn may_answer<F: Datapath>(packet: &Packet<F>) -> bool {
    let transport = &packet.transport_layer;
    !matches!(packet.fragment, Fragment::Later)
        && !matches!(transport.flow, Flow::Icmp)
        && !packet.options
        && (!matches!(transport.flow, Flow::Tcp) || transport.detail & TCP_RST == 0)
}

#[inline(always)]
fn within_rate(config: &Config) -> bool {
    let Some(state) = REFUSALS.get_ptr_mut(0) else { return false };
    // SAFETY: the element is this CPU's own.
    let [tick, count] = unsafe { &mut *state };
    let now = config::now(config);
    if *tick != now {
        *tick = now;
        *count = 0;
    }
    *count += 1;
    *count <= PER_TICK
}

/// Turns the frame into an ICMP error about its packet. Returns 0, or the reason why it could not.
#[inline(never)]
fn error<F: Datapath>(context: &Context<'_>, packet: &Packet<F>, kind_and_code: u32, mtu: u16) -> u64 {
    match try_error(context, packet, kind_and_code, mtu) {
        Ok(()) => 0,
        Err(reason) => reason as u64,
    }
}

#[inline(always)]
fn try_error<F: Datapath>(
    context: &Context<'_>,
    packet: &Packet<F>,
    kind_and_code: u32,
    mtu: u16,
) -> Result<(), DropReason> {
    let header = if F::IS_V4 { IPV4_LEN } else { IPV6_LEN };
    let frame = context.frame;
    let own = F::own_address(context.ingress);
    if own == F::Address::default() || usize::from(packet.length) < header + QUOTED {
        return Err(DropReason::Malformed);
    }
    let sender: Mac = frame.read(6).ok_or(DropReason::Truncated)?;
    // Room before the packet for the headers of the error, and nothing behind what is quoted.
    let front = ETHERNET_LEN + header + ICMP_LEN;
    resize(frame, packet.network() as i32 - front as i32, front + header + QUOTED)?;
    ethernet::<F>(context, sender)?;

    let payload = ICMP_LEN + header + QUOTED;
    write_header::<F>(frame, payload, F::ICMP, own, packet.source)?;
    let icmp = ETHERNET_LEN + header;
    let rest = u32::from(mtu).to_be();
    let mut sum = kind_and_code + u32::from(mtu) + F::icmp_pseudo_sum(&own, &packet.source, payload as u32);
    let mut at = front;
    for _ in 0..(IPV6_LEN + QUOTED) / 4 {
        if at >= front + header + QUOTED {
            break;
        }
        let word = u32::from_be(frame.read(at).ok_or(DropReason::Truncated)?);
        sum += (word >> 16) + (word & 0xffff);
        at += 4;
    }
    frame.write(icmp, (kind_and_code as u16).to_be())?;
    frame.write(icmp + 2, (!checksum::fold(sum)).to_be())?;
    frame.write(icmp + 4, rest)
}

/// Turns the frame into a reset of its connection (RFC 9293 3.10.7.1). Returns 0, or the reason why not.
#[inline(never)]
fn reset<F: Datapath>(context: &Context<'_>, packet: &Packet<F>) -> u64 {
    match try_reset(context, packet) {
        Ok(()) => 0,
        Err(reason) => reason as u64,
    }
}

#[inline(always)]
fn try_reset<F: Datapath>(context: &Context<'_>, packet: &Packet<F>) -> Result<(), DropReason> {
    let header = if F::IS_V4 { IPV4_LEN } else { IPV6_LEN };
    let frame = context.frame;
    if packet.transport() != packet.network() + header {
        return Err(DropReason::Malformed);
    }
    let sender: Mac = frame.read(6).ok_or(DropReason::Truncated)?;
    let sequence: u32 = frame.read(packet.transport() + 4).ok_or(DropReason::Truncated)?;
    let acknowledged: u32 = frame.read(packet.transport() + 8).ok_or(DropReason::Truncated)?;
    let offset: u8 = frame.read(packet.transport() + 12).ok_or(DropReason::Truncated)?;
    let flags = packet.transport_layer.detail;
    let (sequence, acknowledgement, answer) = if flags & TCP_ACK != 0 {
        (acknowledged, 0, TCP_RST)
    } else {
        let headers = header as u32 + u32::from(offset >> 4) * 4;
        let data = u32::from(packet.length).wrapping_sub(headers);
        let controls = u32::from(flags & TCP_SYN != 0) + u32::from(flags & TCP_FIN != 0);
        (0, u32::from_be(sequence).wrapping_add(data).wrapping_add(controls).to_be(), TCP_RST | TCP_ACK)
    };
    let front = packet.network() as i32 - ETHERNET_LEN as i32;
    resize(frame, front, ETHERNET_LEN + header + TCP_LEN)?;
    ethernet::<F>(context, sender)?;
    write_header::<F>(frame, TCP_LEN, PROTO_TCP, packet.destination, packet.source)?;
    let tcp = ETHERNET_LEN + header;
    let [s0, s1] = packet.transport_layer.source_port;
    let [d0, d1] = packet.transport_layer.destination_port;
    let words = [
        u32::from_ne_bytes([d0, d1, s0, s1]),
        sequence,
        acknowledgement,
        u32::from_ne_bytes([5 << 4, answer, 0, 0]),
        0,
    ];
    let mut sum =
        F::sum(&packet.source) + F::sum(&packet.destination) + u32::from(PROTO_TCP) + TCP_LEN as u32;
    for word in words {
        let word = u32::from_be(word);
        sum += (word >> 16) + (word & 0xffff);
    }
    frame.write(tcp, words)?;
    frame.write(tcp + 16, (!checksum::fold(sum)).to_be())
}

/// Moves the front of the frame by `front` bytes (negative: outwards) and makes it `length` bytes long.
#[inline(always)]
fn resize(frame: &Frame<'_>, front: i32, length: usize) -> Result<(), DropReason> {
    // SAFETY: the helpers move the ends of the frame; pointers are taken afresh by every access.
    unsafe {
        if bpf_xdp_adjust_head(frame.context(), front) != 0 {
            return Err(DropReason::Internal);
        }
        if bpf_xdp_adjust_tail(frame.context(), length as i32 - frame.bytes() as i32) != 0 {
            return Err(DropReason::Internal);
        }
    }
    Ok(())
}

/// Writes an Ethernet header back to `sender`.
#[inline(always)]
fn ethernet<F: Datapath>(context: &Context<'_>, sender: Mac) -> Result<(), DropReason> {
    context.frame.write(0, sender)?;
    context.frame.write(6, mac_words(context.ingress.mac))?;
    context.frame.write(12, F::ETHERTYPE.to_be())
}

/// Writes an IP header behind the Ethernet header.
#[inline(always)]
fn write_header<F: Datapath>(
    frame: &Frame<'_>,
    payload: usize,
    proto: u8,
    source: F::Address,
    destination: F::Address,
) -> Result<(), DropReason> {
    let at = ETHERNET_LEN;
    if F::IS_V4 {
        let [l0, l1] = ((IPV4_LEN + payload) as u16).to_be_bytes();
        // Precedence "internetwork control" (RFC 1812 4.3.2.5), do not fragment.
        frame.write(at, u32::from_ne_bytes([0x45, 0xc0, l0, l1]))?;
        frame.write(at + 4, u32::from_ne_bytes([0, 0, 0x40, 0]))?;
        let sum = 0x45c0
            + (IPV4_LEN + payload) as u32
            + 0x4000
            + (u32::from(TTL) << 8 | u32::from(proto))
            + F::sum(&source)
            + F::sum(&destination);
        let [c0, c1] = (!checksum::fold(sum)).to_be_bytes();
        frame.write(at + 8, u32::from_ne_bytes([TTL, proto, c0, c1]))?;
    } else {
        let [l0, l1] = (payload as u16).to_be_bytes();
        frame.write(at, u32::from_ne_bytes([0x60, 0, 0, 0]))?;
        frame.write(at + 4, u32::from_ne_bytes([l0, l1, proto, TTL]))?;
    }
    F::write_address(frame, at + F::SOURCE, source)?;
    F::write_address(frame, at + F::DESTINATION, destination)
}
