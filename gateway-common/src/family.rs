//! IPv4 and IPv6 behind one trait, so that the packet path exists once.

use crate::{parse, pod};

/// An address of either family, in words of network byte order; IPv4 as `::ffff:a.b.c.d` (RFC 4291 2.5.5.2).
///
/// Addresses are kept in words, not in bytes, because the BPF back end copies bytes one by one.
pub type MappedAddress = [u32; 4];

/// The third word of an IPv4 address in IPv6 form.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// Whether `address` is an IPv4 address in IPv6 form.
#[inline(always)]
pub const fn is_v4(address: &MappedAddress) -> bool {
    (address[0] | address[1]) == 0 && address[2] == MAPPED
}

/// Word by word: the comparison of arrays calls `memcmp`, which needs copies on the stack.
#[inline(always)]
pub const fn is_same(a: &MappedAddress, b: &MappedAddress) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}

/// `address` as std has it.
#[cfg(feature = "user")]
pub fn to_ip(address: &MappedAddress) -> std::net::IpAddr {
    std::net::Ipv6Addr::from(bytes(address)).to_canonical()
}

/// The inverse of [`to_ip`].
#[cfg(feature = "user")]
pub fn from_ip(address: std::net::IpAddr) -> MappedAddress {
    match address {
        std::net::IpAddr::V4(address) => V4::mapped(&V4::address(address.octets())),
        std::net::IpAddr::V6(address) => V6::mapped(&V6::address(address.octets())),
    }
}

/// The bytes of `address`, network byte order.
#[inline(always)]
pub const fn bytes(address: &MappedAddress) -> [u8; 16] {
    // SAFETY: both are 16 bytes and every bit pattern is valid.
    unsafe { core::mem::transmute(*address) }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::V4 {}
    impl Sealed for super::V6 {}
}

/// An address family. Sealed: IPv4 and IPv6 are the only ones.
pub trait Family: sealed::Sealed + Copy + Eq + core::hash::Hash + core::fmt::Debug + 'static {
    /// An address in words of network byte order.
    type Address: Copy + Eq + Default + core::hash::Hash + core::fmt::Debug;
    /// An address in bytes of network byte order.
    type Octets;
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

    /// The address with these octets.
    fn address(octets: Self::Octets) -> Self::Address;
    /// The address in the form of either family.
    fn mapped(address: &Self::Address) -> MappedAddress;
    /// The inverse of [`Family::mapped`]; the caller knows that `mapped` is of this family.
    fn unmapped(mapped: &MappedAddress) -> Self::Address;
    /// The address in the first words, the rest zero: as `struct bpf_fib_lookup` has it.
    fn words(address: &Self::Address) -> [u32; 4];
    /// The inverse of [`Family::words`].
    fn from_words(words: [u32; 4]) -> Self::Address;
    /// One's complement sum of the address, see [`crate::checksum`].
    fn sum(address: &Self::Address) -> u32;
    /// Whether it is the address that no host has.
    fn is_zero(address: &Self::Address) -> bool;
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct V6;

impl Family for V4 {
    type Address = u32;
    type Octets = [u8; 4];
    type SessionPadding = [u8; 0];
    const AF: u8 = 2;
    const ETHERTYPE: u16 = parse::ETHERTYPE_IPV4;
    const ICMP: u8 = parse::PROTO_ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const BITS: u32 = 32;
    const IS_V4: bool = true;

    #[inline(always)]
    fn address(octets: [u8; 4]) -> u32 {
        u32::from_ne_bytes(octets)
    }

    #[inline(always)]
    fn mapped(address: &u32) -> MappedAddress {
        [0, 0, MAPPED, *address]
    }

    #[inline(always)]
    fn unmapped(mapped: &MappedAddress) -> u32 {
        mapped[3]
    }

    #[inline(always)]
    fn words(address: &u32) -> [u32; 4] {
        [*address, 0, 0, 0]
    }

    #[inline(always)]
    fn from_words(words: [u32; 4]) -> u32 {
        words[0]
    }

    #[inline(always)]
    fn sum(address: &u32) -> u32 {
        sum_word(*address)
    }

    #[inline(always)]
    fn is_zero(address: &u32) -> bool {
        *address == 0
    }
}

impl Family for V6 {
    type Address = [u32; 4];
    type Octets = [u8; 16];
    type SessionPadding = [u8; 4];
    const AF: u8 = 10;
    const ETHERTYPE: u16 = parse::ETHERTYPE_IPV6;
    const ICMP: u8 = parse::PROTO_ICMPV6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const BITS: u32 = 128;
    const IS_V4: bool = false;

    #[inline(always)]
    fn address(octets: [u8; 16]) -> [u32; 4] {
        // SAFETY: both are 16 bytes and every bit pattern is valid.
        unsafe { core::mem::transmute(octets) }
    }

    #[inline(always)]
    fn mapped(address: &[u32; 4]) -> MappedAddress {
        *address
    }

    #[inline(always)]
    fn unmapped(mapped: &MappedAddress) -> [u32; 4] {
        *mapped
    }

    #[inline(always)]
    fn words(address: &[u32; 4]) -> [u32; 4] {
        *address
    }

    #[inline(always)]
    fn from_words(words: [u32; 4]) -> [u32; 4] {
        words
    }

    #[inline(always)]
    fn sum(address: &[u32; 4]) -> u32 {
        sum_word(address[0]) + sum_word(address[1]) + sum_word(address[2]) + sum_word(address[3])
    }

    #[inline(always)]
    fn is_zero(address: &[u32; 4]) -> bool {
        address[0] | address[1] | address[2] | address[3] == 0
    }
}

/// The two 16-bit halves of a word in network byte order, added.
#[inline(always)]
fn sum_word(word: u32) -> u32 {
    let word = u32::from_be(word);
    (word >> 16) + (word & 0xffff)
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

/// Elements of `LEARNED`.
pub const MAX_LEARNED: u32 = 8_192;

/// Map `LEARNED`, by the mapped address of a neighbour that the host's tables do not know (yet): where its
/// packets came from. A cache: an element may go at any time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// Slot of the interface.
    pub slot: u32,
    /// MAC address.
    pub mac: [u8; 6],
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<NextHop>() == 16);
const _: () = assert!(size_of::<Learned>() == 12);

pod!(NextHop, Learned);
