//! The second half of a hairpin: programs `inward_v4` and `inward_v6`.
//!
//! The packet in the subject is from inside, and for an address that stands for an inside host. The first half,
//! [`hairpin`], [`eip`] or [`related`], has given it the source that its sender has outside. From here on it is one from
//! outside: a session, a mapping or an EIP leads it in, as the callee's own table allows. Only its source is not looked
//! at, which no frame from a wire may have.
//!
//! Both halves work on the subject. Nothing is written before the way is known to be good; then all of it is. So a packet
//! never is half of each, and the sender of one that does not get through is told about what it has sent.

use aya_ebpf::bindings::xdp_action;
use gateway_common::{
    DropReason, Verdict,
    address::{EIP, MAPPING},
    checksum,
    parse::{Flow, Fragment, Packet},
    session::{SIDE_INSIDE, SIDE_OUTSIDE},
};

use crate::{
    address, eip,
    family::Datapath,
    forward, fragment, hairpin, mapping,
    packet::Frame,
    path::{self, Code, Context, Outcome},
    refuse, related, rewrite,
    session::Subject,
};

/// [`Subject::half`]: the sender's session has given the packet its source.
pub(crate) const BY_SESSION: u8 = 1;
/// [`Subject::half`]: the sender's EIP has.
pub(crate) const BY_EIP: u8 = 2;

/// Ends the first half: the packet in the subject has `source` and `port` now, and comes from outside.
#[inline(always)]
pub(crate) fn turn<F: Datapath>(subject: &mut Subject<F>, source: F::Address, port: [u8; 2], half: u8) {
    let Subject { packet, sent, tuple, .. } = &mut *subject;
    *sent = *packet;
    packet.source = source;
    packet.transport_layer.source_port = port;
    packet.ttl = packet.ttl.wrapping_sub(1);
    *tuple = path::tuple(packet, SIDE_OUTSIDE);
    subject.half = half;
    subject.cut = 0;
}

/// Sends the packet in the subject in.
#[inline(always)]
pub(crate) fn forward<F: Datapath>(context: &Context<'_>) -> Result<Outcome, DropReason> {
    let subject = F::subject().ok_or(DropReason::Internal)?;
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let subject = unsafe { &mut *subject };
    let flags = meaning(subject);
    if related::is_error(&subject.packet) {
        related::read_again(context, subject).result()?;
        if flags & EIP != 0 {
            eip::let_in(context, subject).result()?;
        } else {
            related::let_in(context, subject).result()?;
        }
        related::exchange(context.frame, subject).result()?;
    } else {
        let code = let_in(context, subject, flags);
        if !code.is_open() {
            return code.result();
        }
        exchange(context.frame, &subject.sent, &subject.packet).result()?;
    }
    let Subject { packet, forth, half, .. } = &*subject;
    forward::readdress::<F>(context.frame, packet.network(), forth)?;
    let verdict = if *half == BY_EIP { Verdict::Eip } else { Verdict::Snat };
    Ok(Outcome { verdict, slot: u32::from(forth.slot) })
}

/// The flags of the packet's destination, see [`gateway_common::address`]. A function of its own, for its stack.
#[inline(never)]
fn meaning<F: Datapath>(subject: &Subject<F>) -> u32 {
    address::find(&F::mapped(&subject.packet.destination)).map_or(0, |found| found.flags)
}

/// Gives the packet its destination, and leaves the way there in the subject: [`Code::OPEN`].
#[inline(always)]
fn let_in<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>, flags: u32) -> Code {
    if flags & EIP != 0 {
        let code = eip::let_in(context, subject);
        return if code.result().is_ok() { Code::OPEN } else { code };
    }
    let later = matches!(subject.packet.fragment, Fragment::Later);
    if later {
        let completed = fragment::complete(subject);
        if completed.result().is_err() {
            return completed;
        }
    }
    if subject.shown != 0 && F::session(&subject.tuple).is_some() {
        let code = hairpin::follow(context, subject);
        return if code.result().is_ok() { Code::OPEN } else { code };
    }
    if flags & MAPPING == 0 || !mapping::may_open(&subject.packet) {
        return Code::drop(if later { DropReason::FragmentUnmatched } else { DropReason::NoSession });
    }
    let code = mapping::let_in::<F, true>(context, subject);
    if !code.is_open() {
        return code;
    }
    let code = mapping::enter(context, subject);
    if code.is_open() {
        // Another CPU has been faster.
        let code = hairpin::follow(context, subject);
        return if code.result().is_ok() { Code::OPEN } else { code };
    }
    if code.result().is_err() {
        return code;
    }
    take_client(subject)
}

/// Gives the packet the client of the session that was entered for it.
#[inline(always)]
fn take_client<F: Datapath>(subject: &mut Subject<F>) -> Code {
    let Some(scratch) = F::scratch() else { return Code::drop(DropReason::Internal) };
    // SAFETY: the scratch element is this CPU's own.
    let answer = unsafe { &(*scratch).outside_session };
    let Subject { packet, forth, back, .. } = subject;
    packet.destination = answer.translated;
    packet.transport_layer.destination_port = answer.translated_port;
    *forth = *back;
    Code::OPEN
}

/// Tells the sender of the packet about it as it was sent. Returns the XDP action. A function of its own, for its stack.
#[inline(never)]
pub(crate) fn refuse<F: Datapath>(context: &Context<'_>, reason: DropReason) -> u32 {
    let Some(subject) = F::subject() else { return xdp_action::XDP_DROP };
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let Subject { packet, sent, tuple, .. } = unsafe { &mut *subject };
    *packet = *sent;
    tuple.side = SIDE_INSIDE;
    refuse::answer::<F>(context, reason)
}

/// Makes the packet in the frame, which is `sent`, into `packet`: other addresses, ports and TTL.
#[inline(never)]
fn exchange<F: Datapath>(frame: &Frame<'_>, sent: &Packet<F>, packet: &Packet<F>) -> Code {
    match try_exchange(frame, sent, packet) {
        Ok(()) => Code::OK,
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_exchange<F: Datapath>(
    frame: &Frame<'_>,
    sent: &Packet<F>,
    packet: &Packet<F>,
) -> Result<(), DropReason> {
    let addresses = readdress(frame, sent, packet)?;
    if !matches!(packet.fragment, Fragment::Whole) {
        fragment::relabel(frame, packet)?;
        if matches!(packet.fragment, Fragment::Later) {
            return Ok(());
        }
    }
    let (from, to) = (&sent.transport_layer, &packet.transport_layer);
    let at = packet.transport();
    let source = checksum::delta(number(from.source_port), number(to.source_port));
    let destination = checksum::delta(number(from.destination_port), number(to.destination_port));
    match packet.transport_layer.flow {
        Flow::Tcp | Flow::Udp => {
            frame.write::<u16>(at, u16::from_ne_bytes(to.source_port))?;
            frame.write::<u16>(at + 2, u16::from_ne_bytes(to.destination_port))?;
            let delta = checksum::combine(addresses, checksum::combine(source, destination));
            if matches!(packet.transport_layer.flow, Flow::Tcp) {
                frame.update_checksum(at + rewrite::TCP_CHECKSUM, delta)
            } else {
                frame.update_udp_checksum(at + rewrite::UDP_CHECKSUM, delta)
            }
        }
        Flow::EchoRequest | Flow::EchoReply => {
            let asks = matches!(packet.transport_layer.flow, Flow::EchoRequest);
            let (identifier, delta) =
                if asks { (to.source_port, source) } else { (to.destination_port, destination) };
            frame.write::<u16>(at + rewrite::ICMP_ID, u16::from_ne_bytes(identifier))?;
            let delta = if F::IS_V4 { delta } else { checksum::combine(addresses, delta) };
            frame.update_checksum(at + rewrite::ICMP_CHECKSUM, delta)
        }
        Flow::Icmp | Flow::Other => Err(DropReason::UnsupportedProtocol),
    }
}

/// Writes addresses and TTL of `packet` in the place of those of `sent`. Returns by how much that changes a sum over the
/// addresses.
#[inline(always)]
pub(crate) fn readdress<F: Datapath>(
    frame: &Frame<'_>,
    sent: &Packet<F>,
    packet: &Packet<F>,
) -> Result<u16, DropReason> {
    let source = checksum::delta(F::sum(&sent.source), F::sum(&packet.source));
    let destination = checksum::delta(F::sum(&sent.destination), F::sum(&packet.destination));
    let addresses = checksum::combine(source, destination);
    let network = packet.network();
    // The second hop less: the first is in the packet already.
    let ttl = checksum::combine(forward::TTL_DELTA, forward::TTL_DELTA);
    forward::age(frame, packet, checksum::combine(addresses, ttl))?;
    F::write_address(frame, network + F::SOURCE, packet.source)?;
    F::write_address(frame, network + F::DESTINATION, packet.destination)?;
    Ok(addresses)
}

#[inline(always)]
fn number(port: [u8; 2]) -> u32 {
    u32::from(u16::from_be_bytes(port))
}
