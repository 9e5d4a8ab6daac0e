//! What the packet path needs of a family beyond [`Family`]: its maps and its header fields.

use aya_ebpf::btf_maps::Queue;
use gateway_common::{
    DropReason, Family, V4, V6,
    family::{MappedAddress, is_v4},
    interface::Interface,
    parse::{self, Bytes as _, Packet},
    quote::{self, Quote},
    route::Route,
    session::{Cut, MAX_CUTS, Session, Tuple},
};

use crate::{packet::Frame, route, session, table};

/// A family with its session table and routes.
pub(crate) trait Datapath: Family {
    /// Offset of the source address in the header.
    const SOURCE: usize;
    /// Offset of the destination address in the header.
    const DESTINATION: usize;
    /// Offset of the TTL or hop limit in the header.
    const TTL: usize;

    /// Reads the headers at `network`.
    fn parse(frame: &Frame<'_>, network: usize) -> Result<Packet<Self>, DropReason>;
    /// Reads the headers of a frame without tags, options and extension headers; `None` for all others.
    fn parse_plain(frame: &Frame<'_>) -> Result<Option<Packet<Self>>, DropReason>;
    /// Reads the packet that an ICMP error quotes, see [`quote`].
    fn quote(frame: &Frame<'_>, network: usize, end: usize) -> Option<Quote<Self>>;
    /// As [`Datapath::quote`], for translations of addresses only, see [`quote::ipv4_addresses`].
    fn quote_addresses(frame: &Frame<'_>, network: usize, end: usize) -> Option<Quote<Self>>;
    /// Whether an ICMP message of this type is for its link only, or for nobody any more.
    fn is_icmp_of_link(kind: u8) -> bool;
    /// Whether an ICMP message of this type is an error that a router passes on.
    fn is_icmp_error(kind: u8) -> bool;
    /// Writes an address at `offset`.
    fn write_address(frame: &Frame<'_>, offset: usize, address: Self::Address) -> Result<(), DropReason>;
    /// Type and code of the ICMP error for a packet dropped for `reason`.
    fn icmp_error(reason: DropReason) -> (u8, u8);
    /// What the pseudo header adds to an ICMP checksum.
    fn icmp_pseudo_sum(source: &Self::Address, destination: &Self::Address, length: u32) -> u32;
    /// The interface's own address; the default where it has none.
    fn own_address(interface: &Interface) -> Self::Address;
    /// Reads a session key at `offset`.
    fn read_tuple(frame: &Frame<'_>, offset: usize) -> Option<Tuple<Self>>;
    /// Whether a pool address is of this family.
    fn is_member(address: &MappedAddress) -> bool;
    /// Whether the packet is for a group, or for addresses on this link only: the host's business.
    fn is_local_scope(packet: &Packet<Self>) -> bool;
    /// Whether no router may forward the packet.
    fn is_martian(packet: &Packet<Self>) -> bool;

    /// The session under `tuple`.
    fn session(tuple: &Tuple<Self>) -> Option<*mut Session<Self>>;
    /// [`Datapath::session`] for a tuple that is not in memory yet: it is written there in words that the kernel
    /// can read back at once, see [`Tuple::<V4>::words`].
    fn session_of(tuple: Tuple<Self>) -> Option<*mut Session<Self>>;
    /// Adds a session element; fails where one exists.
    fn insert_session(tuple: &Tuple<Self>, session: &Session<Self>) -> Result<(), i32>;
    /// Removes a session element.
    fn remove_session(tuple: &Tuple<Self>) -> Result<(), i32>;
    /// The queue of sessions that were cut.
    fn cuts() -> &'static Queue<Cut<Self>, { MAX_CUTS as usize }>;
    /// Room for this CPU's packet.
    fn subject() -> Option<*mut session::Subject<Self>>;
    /// Scratch space of this CPU.
    fn scratch() -> Option<*mut session::Scratch<Self>>;

    /// The longest prefix of table `slot` that covers `address`.
    fn route(slot: u32, address: Self::Address) -> Option<&'static Route>;
}

impl Datapath for V4 {
    const SOURCE: usize = 12;
    const DESTINATION: usize = 16;
    const TTL: usize = 8;

    #[inline(always)]
    fn parse(frame: &Frame<'_>, network: usize) -> Result<Packet<Self>, DropReason> {
        parse::ipv4(frame, network)
    }

    #[inline(always)]
    fn parse_plain(frame: &Frame<'_>) -> Result<Option<Packet<Self>>, DropReason> {
        parse::ipv4_plain(frame)
    }

    #[inline(always)]
    fn quote(frame: &Frame<'_>, network: usize, end: usize) -> Option<Quote<Self>> {
        quote::ipv4(frame, network, end)
    }

    #[inline(always)]
    fn quote_addresses(frame: &Frame<'_>, network: usize, end: usize) -> Option<Quote<Self>> {
        quote::ipv4_addresses(frame, network, end)
    }

    #[inline(always)]
    fn is_icmp_of_link(kind: u8) -> bool {
        // Source quench (RFC 6633), redirect, router advertisement and solicitation (RFC 1256).
        matches!(kind, 4 | 5 | 9 | 10)
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        // Destination unreachable, time exceeded, parameter problem (RFC 792). Not the source quench, which
        // nobody may send or heed any more (RFC 6633), nor the redirect, which is for its link.
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn write_address(frame: &Frame<'_>, offset: usize, address: u32) -> Result<(), DropReason> {
        frame.write(offset, address)
    }

    #[inline(always)]
    fn icmp_error(reason: DropReason) -> (u8, u8) {
        // Time exceeded in transit; fragmentation needed (RFC 792).
        if matches!(reason, DropReason::TtlExceeded) {
            (11, 0)
        } else if matches!(reason, DropReason::MtuExceeded) {
            (3, 4)
        } else {
            // Communication administratively prohibited (RFC 1812 5.2.7.1).
            (3, 13)
        }
    }

    #[inline(always)]
    fn icmp_pseudo_sum(_: &u32, _: &u32, _: u32) -> u32 {
        0
    }

    #[inline(always)]
    fn own_address(interface: &Interface) -> u32 {
        Self::address(interface.address4)
    }

    #[inline(always)]
    fn read_tuple(frame: &Frame<'_>, offset: usize) -> Option<Tuple<Self>> {
        // SAFETY: a tuple of IPv4 is four words and accepts every bit pattern.
        frame.read::<[u32; 4]>(offset).map(|words| unsafe { core::mem::transmute(words) })
    }

    #[inline(always)]
    fn is_member(address: &MappedAddress) -> bool {
        is_v4(address)
    }

    #[inline(always)]
    fn is_local_scope(packet: &Packet<Self>) -> bool {
        parse::is_group_v4(packet.destination)
    }

    #[inline(always)]
    fn is_martian(packet: &Packet<Self>) -> bool {
        parse::is_martian_source_v4(packet.source) || parse::is_martian_destination_v4(packet.destination)
    }

    #[inline(always)]
    fn session(tuple: &Tuple<Self>) -> Option<*mut Session<Self>> {
        table::get_outlined(tuple.words())
    }

    #[inline(always)]
    fn session_of(tuple: Tuple<Self>) -> Option<*mut Session<Self>> {
        table::get(tuple.words())
    }

    #[inline(always)]
    fn insert_session(tuple: &Tuple<Self>, session: &Session<Self>) -> Result<(), i32> {
        table::insert(tuple, session)
    }

    #[inline(always)]
    fn remove_session(tuple: &Tuple<Self>) -> Result<(), i32> {
        table::remove(tuple)
    }

    #[inline(always)]
    fn cuts() -> &'static Queue<Cut<Self>, { MAX_CUTS as usize }> {
        &session::CUTS_V4
    }

    #[inline(always)]
    fn subject() -> Option<*mut session::Subject<Self>> {
        session::SUBJECT_V4.get_ptr_mut(0)
    }

    #[inline(always)]
    fn scratch() -> Option<*mut session::Scratch<Self>> {
        session::SCRATCH_V4.get_ptr_mut(0)
    }

    #[inline(always)]
    fn route(slot: u32, address: u32) -> Option<&'static Route> {
        route::longest_prefix_v4(slot, address)
    }
}

impl Datapath for V6 {
    const SOURCE: usize = 8;
    const DESTINATION: usize = 24;
    const TTL: usize = 7;

    #[inline(always)]
    fn parse(frame: &Frame<'_>, network: usize) -> Result<Packet<Self>, DropReason> {
        parse::ipv6(frame, network)
    }

    #[inline(always)]
    fn parse_plain(frame: &Frame<'_>) -> Result<Option<Packet<Self>>, DropReason> {
        parse::ipv6_plain(frame)
    }

    #[inline(always)]
    fn quote(frame: &Frame<'_>, network: usize, end: usize) -> Option<Quote<Self>> {
        quote::ipv6(frame, network, end)
    }

    #[inline(always)]
    fn quote_addresses(frame: &Frame<'_>, network: usize, end: usize) -> Option<Quote<Self>> {
        quote::ipv6_addresses(frame, network, end)
    }

    #[inline(always)]
    fn is_icmp_of_link(kind: u8) -> bool {
        // Listeners of groups (RFC 2710, RFC 3810), neighbour discovery and redirects (RFC 4861).
        matches!(kind, 130..=137 | 143)
    }

    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        // Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443 3).
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn write_address(frame: &Frame<'_>, offset: usize, address: [u32; 4]) -> Result<(), DropReason> {
        frame.write_words(offset, address)
    }

    #[inline(always)]
    fn icmp_error(reason: DropReason) -> (u8, u8) {
        // RFC 4443 3.1 to 3.3.
        if matches!(reason, DropReason::TtlExceeded) {
            (3, 0)
        } else if matches!(reason, DropReason::MtuExceeded) {
            (2, 0)
        } else {
            (1, 1)
        }
    }

    #[inline(always)]
    fn icmp_pseudo_sum(source: &[u32; 4], destination: &[u32; 4], length: u32) -> u32 {
        Self::sum(source) + Self::sum(destination) + length + u32::from(Self::ICMP)
    }

    #[inline(always)]
    fn own_address(interface: &Interface) -> [u32; 4] {
        Self::address(interface.address6)
    }

    #[inline(always)]
    fn read_tuple(frame: &Frame<'_>, offset: usize) -> Option<Tuple<Self>> {
        // SAFETY: a tuple of IPv6 is ten words and accepts every bit pattern.
        frame.read::<[u32; 10]>(offset).map(|words| unsafe { core::mem::transmute(words) })
    }

    #[inline(always)]
    fn is_member(address: &MappedAddress) -> bool {
        !is_v4(address)
    }

    #[inline(always)]
    fn is_local_scope(packet: &Packet<Self>) -> bool {
        parse::is_link_scope_v6(&packet.destination)
    }

    #[inline(always)]
    fn is_martian(packet: &Packet<Self>) -> bool {
        parse::is_martian_source_v6(&packet.source)
            || parse::is_unspecified_or_loopback_v6(&packet.destination)
    }

    #[inline(always)]
    fn session(tuple: &Tuple<Self>) -> Option<*mut Session<Self>> {
        session::SESSIONS_V6.get_ptr_mut(tuple)
    }

    #[inline(always)]
    fn session_of(tuple: Tuple<Self>) -> Option<*mut Session<Self>> {
        let words = tuple.words();
        // SAFETY: the words are a tuple, and aligned as one.
        Self::session(unsafe { &*(&raw const words).cast() })
    }

    #[inline(always)]
    fn insert_session(tuple: &Tuple<Self>, session: &Session<Self>) -> Result<(), i32> {
        session::SESSIONS_V6.insert(tuple, session, session::NOEXIST)
    }

    #[inline(always)]
    fn remove_session(tuple: &Tuple<Self>) -> Result<(), i32> {
        session::SESSIONS_V6.remove(tuple)
    }

    #[inline(always)]
    fn cuts() -> &'static Queue<Cut<Self>, { MAX_CUTS as usize }> {
        &session::CUTS_V6
    }

    #[inline(always)]
    fn subject() -> Option<*mut session::Subject<Self>> {
        session::SUBJECT_V6.get_ptr_mut(0)
    }

    #[inline(always)]
    fn scratch() -> Option<*mut session::Scratch<Self>> {
        session::SCRATCH_V6.get_ptr_mut(0)
    }

    #[inline(always)]
    fn route(slot: u32, address: [u32; 4]) -> Option<&'static Route> {
        route::longest_prefix_v6(slot, address)
    }
}
