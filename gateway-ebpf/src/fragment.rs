//! Maps `FRAGMENTS` and `IDENTIFICATIONS`: fragments of datagrams of sessions (RFC 4787 REQ-14).
//!
//! The first fragment is handled as a whole packet is, and leaves a note of its ports. Later ones find it and so
//! the session; they are confirmed, counted and sent as all packets of it, but only addresses change: the
//! transport checksum is in the first. One that comes before the first is dropped, because nobody can tell whose
//! it is, and holding it would need memory that anybody can fill.
//!
//! All of them get another identification, see [`gateway_common::fragment::identifications`].

use aya_ebpf::{
    bindings::BPF_ANY,
    btf_maps::{Array, LruHashMap},
    helpers::generated::bpf_ktime_get_coarse_ns,
    macros::btf_map,
};
use gateway_common::{
    DropReason, checksum,
    fragment::{Datagram, IDENTIFICATIONS_LEN, Key, LIFETIME, identifications},
    parse::{Bytes as _, Packet},
    session::SIDE_INSIDE,
};

use crate::{
    atomic,
    family::Datapath,
    forward,
    packet::Frame,
    path::{Code, Context},
    session::Subject,
};

/// Full, it forgets what was used longest ago. The capacity is set by the loader, see
/// [`gateway_common::fragment::capacity`].
///
/// An element may be given to another datagram while its value is read. What is read then leads to a session of
/// the same two hosts at most, since the addresses are those of the packet.
#[btf_map]
static FRAGMENTS: LruHashMap<Key, Datagram, 512> = LruHashMap::new();

#[btf_map]
static IDENTIFICATIONS: Array<u32, { IDENTIFICATIONS_LEN as usize }> = Array::new();

/// Largest datagram: all offsets and lengths have 16 bits.
const MAX_LENGTH: u32 = 65_535;

/// Room to build an element in.
#[repr(C)]
pub(crate) struct Note {
    key: Key,
    datagram: Datagram,
}

/// Completes the session's key for the later fragment in the subject, if its first one is known.
///
/// # Errors
/// [`DropReason::Malformed`] where it begins within the first (RFC 1858, RFC 3128, RFC 5722), or ends beyond what a
/// datagram may be long.
#[inline(never)]
pub(crate) fn complete<F: Datapath>(subject: &mut Subject<F>) -> Code {
    write_key(subject);
    let Some(known) = find(&subject.note.key) else { return Code::OK };
    let end = u32::from(subject.packet.part.offset) + u32::from(subject.packet.part_length());
    if subject.packet.part.offset < known.end || end > MAX_LENGTH {
        return Code::drop(DropReason::Malformed);
    }
    subject.packet.part.identification = known.identification;
    subject.tuple.source_port = known.source_port;
    subject.tuple.destination_port = known.destination_port;
    subject.tuple.proto = known.proto;
    subject.packet.proto = known.proto;
    subject.shown = 1;
    Code::OK
}

/// Takes note of the first fragment in the subject, whose datagram is about to be translated, and gives it the
/// identification that it leaves with.
///
/// # Errors
/// [`DropReason::Malformed`] where another first fragment says something else (RFC 5722);
/// [`DropReason::FragmentUnmatched`] where there is no room for the note: the later ones would not follow.
#[inline(never)]
pub(crate) fn teach<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    write_key(subject);
    let Subject { packet, tuple, note: Note { key, datagram }, .. } = subject;
    datagram.since = now();
    datagram.source_port = tuple.source_port;
    datagram.destination_port = tuple.destination_port;
    datagram.end = packet.part_length();
    datagram.proto = tuple.proto;
    datagram.reserved = [0; 5];
    datagram.identification = match find(key) {
        Some(known) if is_same(known, datagram) => known.identification,
        Some(_) => return Code::drop(DropReason::Malformed),
        None => next_identification(context, packet, key),
    };
    packet.part.identification = datagram.identification;
    let (key, datagram): (&Key, &Datagram) = (key, datagram);
    match FRAGMENTS.insert(key, datagram, u64::from(BPF_ANY)) {
        Ok(()) => Code::OK,
        Err(_) => Code::drop(DropReason::FragmentUnmatched),
    }
}

/// Writes the identification of a fragment that is translated. It must be known: see [`complete`] and [`teach`].
#[inline(always)]
pub(crate) fn relabel<F: Datapath>(frame: &Frame<'_>, packet: &Packet<F>) -> Result<(), DropReason> {
    let at = usize::from(packet.part.at);
    if !F::IS_V4 {
        return frame.write(at, packet.part.identification.to_be());
    }
    let old = u16::from_be(frame.read(at).ok_or(DropReason::Truncated)?);
    let new = packet.part.identification as u16;
    frame.write(at, new.to_be())?;
    frame.update_checksum(packet.network() + forward::CHECKSUM, checksum::delta(old.into(), new.into()))
}

/// Writes the key of the datagram in the subject beside it.
#[inline(always)]
fn write_key<F: Datapath>(subject: &mut Subject<F>) {
    let Subject { packet, tuple, note, .. } = subject;
    note.key.source = F::mapped(&packet.source);
    note.key.destination = F::mapped(&packet.destination);
    note.key.identification = packet.part.identification;
    note.key.proto = if F::IS_V4 { packet.proto } else { 0 };
    // Of what a proxy host sends, the side shows when the ports are known.
    note.key.side = if tuple.origin == 0 { tuple.side } else { SIDE_INSIDE };
    note.key.reserved = [0; 2];
}

/// What is known of a datagram, unless that is too long ago.
#[inline(always)]
fn find(key: &Key) -> Option<&'static Datagram> {
    // SAFETY: what is read from an element that has gone to another datagram is plain data, see `FRAGMENTS`.
    let datagram = FRAGMENTS.get_ptr(key).map(|datagram| unsafe { &*datagram })?;
    if now().wrapping_sub(datagram.since) < LIFETIME { Some(datagram) } else { None }
}

/// Whether two first fragments agree.
#[inline(always)]
fn is_same(one: &Datagram, other: &Datagram) -> bool {
    one.source_port == other.source_port
        && one.destination_port == other.destination_port
        && one.proto == other.proto
        && one.end == other.end
}

/// An identification that no other datagram from here to the same receiver has had for long.
///
/// A count needs no memory of what is in use, and cannot run out. It comes round after 65,536 datagrams in IPv4,
/// as that of any sender does (RFC 6864 4.3).
#[inline(always)]
fn next_identification<F: Datapath>(context: &Context<'_>, packet: &Packet<F>, key: &Key) -> u32 {
    let server = if key.side == SIDE_INSIDE { packet.destination } else { packet.source };
    let (element, offset) = identifications(&F::mapped(&server), key.proto, key.side, context.config.secret);
    let Some(count) = IDENTIFICATIONS.get_ptr_mut(element) else { return offset };
    // SAFETY: the pointer is to a map value.
    let identification = unsafe { atomic::add(count, 1) }.wrapping_add(offset);
    if F::IS_V4 { identification & 0xffff } else { identification }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}
