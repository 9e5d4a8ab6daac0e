//! IPv4 and IPv6 behind one trait, so that the packet path exists once.

use crate::{parse, pod};

/// An address of either family in 16 bytes, network byte order; IPv4 as `::ffff:a.b.c.d` (RFC 4291 2.5.5.2).
pub type MappedAddress = [u8; 16];

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::V4 {}
    impl Sealed for super::V6 {}
}

/// An address family. Sealed: IPv4 and IPv6 are the only ones.
pub trait Family: sealed::Sealed + Copy + Eq + core::hash::Hash + core::fmt::Debug + 'static {
    /// An address in network byte order.
    type Address: Copy + Eq + Default + core::hash::Hash + core::fmt::Debug + AsRef<[u8]>;
    /// Explicit padding at the end of a [`crate::session::Session`].
    type SessionPadding: Copy + Eq + Default + core::fmt::Debug;
    /// `AF_INET` or `AF_INET6`.
    const AF: u8;
    /// EtherType, host byte order.
    const ETHERTYPE: u16;
    /// The protocol number of this family's ICMP.
    const ICMP: u8;
    /// ICMP type of an echo request.
    const ECHO_REQUEST: u8;
    /// ICMP type of an echo reply.
    const ECHO_REPLY: u8;
    /// Address width in bits.
    const BITS: u32;
    /// `true` where the network header carries a checksum and where the ICMP checksum has no pseudo header.
    const IS_V4: bool;

    /// The address as 16 bytes, see [`MappedAddress`].
    fn mapped(address: &Self::Address) -> MappedAddress;
    /// The inverse of [`Family::mapped`]; the caller knows that `mapped` is of this family.
    fn unmapped(mapped: &MappedAddress) -> Self::Address;
    /// The address in words of memory order, from the first on, the rest zero: as `struct bpf_fib_lookup` has it.
    fn words(address: &Self::Address) -> [u32; 4];
    /// The inverse of [`Family::words`].
    fn from_words(words: [u32; 4]) -> Self::Address;
    /// [`Family::mapped`] in words of memory order.
    fn mapped_words(address: &Self::Address) -> [u32; 4];
    /// The 16-bit words of the address folded into a one's complement sum.
    fn sum(address: &Self::Address) -> u32;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V6;

impl Family for V4 {
    type Address = [u8; 4];
    type SessionPadding = [u8; 0];
    const AF: u8 = 2;
    const ETHERTYPE: u16 = parse::ETHERTYPE_IPV4;
    const ICMP: u8 = parse::PROTO_ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const BITS: u32 = 32;
    const IS_V4: bool = true;

    #[inline(always)]
    fn mapped(a: &[u8; 4]) -> MappedAddress {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]]
    }

    #[inline(always)]
    fn unmapped(m: &MappedAddress) -> [u8; 4] {
        [m[12], m[13], m[14], m[15]]
    }

    #[inline(always)]
    fn words(a: &[u8; 4]) -> [u32; 4] {
        [u32::from_ne_bytes(*a), 0, 0, 0]
    }

    #[inline(always)]
    fn from_words(words: [u32; 4]) -> [u8; 4] {
        words[0].to_ne_bytes()
    }

    #[inline(always)]
    fn mapped_words(a: &[u8; 4]) -> [u32; 4] {
        [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), u32::from_ne_bytes(*a)]
    }

    #[inline(always)]
    fn sum(a: &[u8; 4]) -> u32 {
        word(a[0], a[1]) + word(a[2], a[3])
    }
}

impl Family for V6 {
    type Address = [u8; 16];
    type SessionPadding = [u8; 4];
    const AF: u8 = 10;
    const ETHERTYPE: u16 = parse::ETHERTYPE_IPV6;
    const ICMP: u8 = parse::PROTO_ICMPV6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const BITS: u32 = 128;
    const IS_V4: bool = false;

    #[inline(always)]
    fn mapped(a: &[u8; 16]) -> MappedAddress {
        *a
    }

    #[inline(always)]
    fn unmapped(m: &MappedAddress) -> [u8; 16] {
        *m
    }

    #[inline(always)]
    fn words(a: &[u8; 16]) -> [u32; 4] {
        let word = |at: usize| u32::from_ne_bytes([a[at], a[at + 1], a[at + 2], a[at + 3]]);
        [word(0), word(4), word(8), word(12)]
    }

    #[inline(always)]
    fn from_words(words: [u32; 4]) -> [u8; 16] {
        parse::address_v6(words)
    }

    #[inline(always)]
    fn mapped_words(a: &[u8; 16]) -> [u32; 4] {
        Self::words(a)
    }

    #[inline(always)]
    fn sum(a: &[u8; 16]) -> u32 {
        word(a[0], a[1])
            + word(a[2], a[3])
            + word(a[4], a[5])
            + word(a[6], a[7])
            + word(a[8], a[9])
            + word(a[10], a[11])
            + word(a[12], a[13])
            + word(a[14], a[15])
    }
}

#[inline(always)]
fn word(high: u8, low: u8) -> u32 {
    u32::from(u16::from_be_bytes([high, low]))
}

/// Where a packet goes next on the wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// Egress interface, as a slot of `EGRESS` ([`crate::interface::Interface::slot`]).
    pub slot: u16,
    /// Largest IP packet the next hop takes, bytes.
    pub mtu: u16,
    /// Destination and source MAC address as they stand on the wire, in words so that they are copied as such.
    pub ethernet: [u32; 3],
}

impl NextHop {
    /// A next hop behind `slot`.
    #[inline(always)]
    pub const fn new(slot: u16, mtu: u16, destination: [u8; 6], source: [u8; 6]) -> Self {
        let [d0, d1, d2, d3, d4, d5] = destination;
        let [s0, s1, s2, s3, s4, s5] = source;
        Self {
            slot,
            mtu,
            ethernet: [
                u32::from_ne_bytes([d0, d1, d2, d3]),
                u32::from_ne_bytes([d4, d5, s0, s1]),
                u32::from_ne_bytes([s2, s3, s4, s5]),
            ],
        }
    }

    /// Destination MAC address.
    pub const fn destination(&self) -> [u8; 6] {
        let [d0, d1, d2, d3] = self.ethernet[0].to_ne_bytes();
        let [d4, d5, _, _] = self.ethernet[1].to_ne_bytes();
        [d0, d1, d2, d3, d4, d5]
    }

    /// Source MAC address.
    pub const fn source(&self) -> [u8; 6] {
        let [_, _, s0, s1] = self.ethernet[1].to_ne_bytes();
        let [s2, s3, s4, s5] = self.ethernet[2].to_ne_bytes();
        [s0, s1, s2, s3, s4, s5]
    }
}

const _: () = assert!(size_of::<NextHop>() == 16);

pod!(NextHop);
