//! Fragments of datagrams that are translated (RFC 791, RFC 8200 4.5).
//!
//! The first fragment shows the ports, and so the session; the later ones show which datagram they are of. The
//! map `FRAGMENTS` leads from one to the other. It is a cache: an element that is pushed out costs the rest of
//! one datagram, and no fragment leaves untranslated for it.

use crate::{
    family::MappedAddress,
    pod,
    pool::{respread, spread},
};

/// Nanoseconds from a first fragment to the last of its later ones that follows it. Hosts wait 30 to 120 s
/// (RFC 791 3.2, RFC 1122 3.3.2, RFC 8200 4.5); what is on its way for longer has been lost.
pub const LIFETIME: u64 = 30_000_000_000;

/// Elements of `IDENTIFICATIONS`.
pub const IDENTIFICATIONS_LEN: u32 = 4_096;

/// Elements of `FRAGMENTS` for so many sessions on a machine with so many CPUs.
#[must_use]
pub const fn capacity(sessions: u32, cpus: u32) -> u32 {
    // A CPU takes up to 128 free elements for itself; there have to be more than all of them can take.
    let least = 256 * if cpus == 0 { 1 } else { cpus };
    let wanted = if sessions > 1 << 22 { 1 << 16 } else { sessions / 64 };
    if wanted < least { least } else { wanted }
}

/// A datagram in fragments, as they arrive. Key of `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Source.
    pub source: MappedAddress,
    /// Destination.
    pub destination: MappedAddress,
    /// Identification, host byte order.
    pub identification: u32,
    /// IP protocol in IPv4. In IPv6 0: addresses and identification make the datagram, and the header that a later
    /// fragment names need not be the transport's.
    pub proto: u8,
    /// [`crate::session::SIDE_INSIDE`] or [`crate::session::SIDE_OUTSIDE`].
    pub side: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// What its first fragment has shown. Value of `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// When it arrived, nanoseconds of the kernel's coarse monotonic clock.
    pub since: u64,
    /// The identification that its fragments leave with, host byte order.
    pub identification: u32,
    /// Source port, network byte order; see [`crate::session::Tuple`].
    pub source_port: [u8; 2],
    /// Destination port, network byte order.
    pub destination_port: [u8; 2],
    /// Where the first fragment's data ends, bytes. A later fragment begins there or behind.
    pub end: u16,
    /// Transport protocol.
    pub proto: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// The element of `IDENTIFICATIONS` that counts the datagrams with this server, protocol and direction, and what is
/// to be added to the count: nobody can tell the next identification of others from his own (RFC 7739 5.3).
///
/// All clients of all pool addresses share the count. The servers would put fragments of two clients behind one
/// address together where these use the same identification (RFC 6864 5.3); and so would a client those of one
/// server that come to it from two addresses of a pool.
#[inline(always)]
pub const fn identifications(server: &MappedAddress, proto: u8, side: u8, secret: u32) -> (u32, u32) {
    let hash = spread(server, secret ^ u32::from_ne_bytes([proto, side, 0, 0]));
    (hash % IDENTIFICATIONS_LEN, respread(hash ^ secret))
}

const _: () = assert!(size_of::<Key>() == 40);
const _: () = assert!(size_of::<Datagram>() == 24);

pod!(Key, Datagram);
