//! Sessions: one translated flow, two map elements.
//!
//! A session has an element under the tuple that the inside sends and one under the tuple that the outside
//! answers with. Each element holds all that a packet of its direction needs, so the established path does
//! one lookup and writes one element. Where elements are kept is told in [`crate::table`].
//!
//! # Life of a session
//!
//! [`Session::generation`] is also the state. A live session carries the generation of the policy that last
//! confirmed it. The sweep retires an idle session by writing 0 into both elements, which every packet
//! reads as "look again": the packet confirms the session and so revives it. A session that is still at 0
//! one sweep later is marked [`DEAD`] and its elements are deleted. A session that is cut, by a route, an
//! operator or a packet that needs the port of a closed one, is marked [`DEAD`] at once and queued for the sweep
//! ([`Cut`]), which deletes it the second time that it runs; where the queue is full, the second time that it
//! meets it. The time between mark and deletion keeps a packet that is reading an element from seeing it reused
//! for another flow.
//!
//! The inside element decides: the outside element's generation only says whether its copy is fresh.

use crate::{
    family::{Family, NextHop, V4, V6},
    interface::MAX_INTERFACES,
    pod,
    proxy::{self, PROXIED},
    source::Charge,
};

/// [`Tuple::side`] of a tuple as the inside sends it.
pub const SIDE_INSIDE: u8 = 0;
/// [`Tuple::side`] of a tuple as the outside sends it.
pub const SIDE_OUTSIDE: u8 = 1;

/// [`Session::generation`] of a session about to be removed.
pub const RETIRED: u32 = 0;
/// [`Session::generation`] of a session being deleted.
pub const DEAD: u32 = u32::MAX;

/// [`Session::flags`] of an inside element that was cut and is not queued.
pub const CUT: u8 = 1;
/// The sweep has seen [`CUT`] and removes the session at its next visit.
pub const CUT_SEEN: u8 = 2;
/// The session was cut and has a [`Cut`] in the queue.
pub const CUT_QUEUED: u8 = 3;

/// Element of the queue of sessions that were cut.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut<F: Family> {
    /// Inside tuple.
    pub tuple: Tuple<F>,
    /// How often the sweep had run.
    pub sweeps: u32,
    /// Zero.
    pub reserved: u32,
}

/// Room in the queue for each family: more than this in one turn of the sweep wait for its walk.
pub const MAX_CUTS: u32 = 8_192;

/// Key of the session tables: a flow as one side sends it.
///
/// ICMP queries use their identifier as the port of the asking side and 0 as the port of the answering one.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple<F: Family> {
    /// Source address, network byte order.
    pub source: F::Address,
    /// Destination address, network byte order.
    pub destination: F::Address,
    /// Source port, network byte order.
    pub source_port: [u8; 2],
    /// Destination port, network byte order.
    pub destination_port: [u8; 2],
    /// IP protocol.
    pub proto: u8,
    /// [`SIDE_INSIDE`] or [`SIDE_OUTSIDE`].
    pub side: u8,
    /// 0, or whose frames show the tuple: those of the proxy host of number `origin - 1`, known by its MAC address.
    pub origin: u16,
}

/// Flag of a TCP segment, as on the wire.
pub const TCP_FIN: u8 = 0x01;
/// See [`TCP_FIN`].
pub const TCP_SYN: u8 = 0x02;
/// See [`TCP_FIN`].
pub const TCP_RST: u8 = 0x04;
/// See [`TCP_FIN`].
pub const TCP_ACK: u8 = 0x10;

/// Bits of [`Session::ingress`] that are the slot.
const SLOT_BITS: u32 = 5;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;
const _: () = assert!(MAX_INTERFACES == 1 << SLOT_BITS && Charge::BITS + SLOT_BITS == u16::BITS);

/// Value of the session tables: what to do with a packet of one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session<F: Family> {
    /// Generation that confirmed the session, [`RETIRED`] or [`DEAD`].
    pub generation: u32,
    /// Tick of the last packet of this direction, see [`crate::config::MAX_TICK`].
    pub last_seen: u32,
    /// Packets of this direction.
    pub packets: u64,
    /// Bytes of this direction: IP packets, without Ethernet.
    pub bytes: u64,
    /// Way out.
    pub next_hop: NextHop,
    /// What the packet's source (inside element) or destination (outside element) becomes.
    pub translated: F::Address,
    /// The port that goes with it, network byte order.
    pub translated_port: [u8; 2],
    /// Change of the IPv4 header checksum, see [`crate::checksum::apply`].
    pub network_delta: u16,
    /// Change of the TCP, UDP or ICMP checksum.
    pub transport_delta: u16,
    /// Number of a [`crate::tcp::State`]. The inside element's is the session's; the outside element has a copy,
    /// which may lag behind and says only whether a packet may go straight on.
    pub state: u8,
    /// Inside element: 0, [`CUT`], [`CUT_SEEN`] or [`CUT_QUEUED`]. Outside element:
    /// [`crate::mapping::HELD`] | [`crate::mapping::HAIRPIN`] | [`crate::mapping::INWARD`] |
    /// [`crate::mapping::SHARED`].
    pub flags: u8,
    /// Element of `ROUTE_COUNTERS`. In the claim of a mapping: number of its pool.
    pub counter: u16,
    /// What the session is recorded under, as its route said when it began: key of `LOG_NAMES`, or 0 where it is not,
    /// see [`crate::record`].
    pub log: u16,
    /// Inside element: the sequence number that [`crate::tcp::Step::mark`] tells of, network byte order; packets
    /// of an established session leave what they acknowledge here. Outside element: the tick at which the
    /// session began, host byte order.
    pub mark: u32,
    /// Element of `POOL_ADDRESSES`; with [`crate::proxy::PROXIED`], of `PROXY_HOSTS`.
    pub pool_address: u16,
    /// Inside element: slot of the interface that its packets come from, below the session's [`crate::source::Charge`],
    /// see [`Session::slot`]. Outside element: [`Tuple::origin`] of the inside tuple.
    pub ingress: u16,
    /// Zero.
    pub padding: F::SessionPadding,
}

impl<F: Family> Tuple<F> {
    /// The tuple of the other direction's element.
    ///
    /// For an inside tuple, `session.translated` is the pool address; for an outside one, the client.
    #[inline(always)]
    pub fn pair(&self, session: &Session<F>) -> Self {
        Self {
            source: if self.side == SIDE_INSIDE { self.destination } else { session.translated },
            destination: if self.side == SIDE_INSIDE { session.translated } else { self.source },
            source_port: if self.side == SIDE_INSIDE {
                self.destination_port
            } else {
                session.translated_port
            },
            destination_port: if self.side == SIDE_INSIDE {
                session.translated_port
            } else {
                self.source_port
            },
            proto: self.proto,
            side: self.side ^ 1,
            origin: if self.side != SIDE_INSIDE {
                session.ingress
            } else if session.is_proxied() {
                proxy::origin(session.pool_address & !PROXIED)
            } else {
                0
            },
        }
    }
}

impl Tuple<V4> {
    /// The tuple in words of 8 bytes, memory order.
    ///
    /// The kernel hashes a key by words of 4 bytes and compares it by words of 8, right after it was written:
    /// a processor is slow to read what was written in smaller pieces.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        [word(self.source, self.destination), word(self.ports(), self.kind())]
    }
}

impl Tuple<V6> {
    /// As [`Tuple::<V4>::words`].
    #[inline(always)]
    pub const fn words(&self) -> [u64; 5] {
        let [s0, s1, s2, s3] = self.source;
        let [d0, d1, d2, d3] = self.destination;
        [word(s0, s1), word(s2, s3), word(d0, d1), word(d2, d3), word(self.ports(), self.kind())]
    }
}

impl<F: Family> Tuple<F> {
    #[inline(always)]
    const fn ports(&self) -> u32 {
        let ([s0, s1], [d0, d1]) = (self.source_port, self.destination_port);
        u32::from_ne_bytes([s0, s1, d0, d1])
    }

    #[inline(always)]
    const fn kind(&self) -> u32 {
        let [o0, o1] = self.origin.to_ne_bytes();
        u32::from_ne_bytes([self.proto, self.side, o0, o1])
    }
}

impl<F: Family> Session<F> {
    /// The word that [`Session::state`] is changed in, by compare and swap: number of words of 4 bytes before it.
    pub const CONTROL: usize = core::mem::offset_of!(Self, transport_delta) / 4;

    /// Whether the session's packets from inside are sent to a proxy host, and nothing is translated.
    #[inline(always)]
    pub const fn is_proxied(&self) -> bool {
        self.pool_address & PROXIED != 0
    }

    /// Slot of the interface that the packets of an inside element come from.
    #[inline(always)]
    pub const fn slot(&self) -> u32 {
        (self.ingress & SLOT_MASK) as u32
    }

    /// What an inside element's session is counted under.
    #[inline(always)]
    pub const fn charge(&self) -> Charge {
        Charge::from_number(self.ingress >> SLOT_BITS)
    }

    /// The [`Session::ingress`] of an inside element.
    #[inline(always)]
    pub const fn ingress_of(slot: u16, charge: Charge) -> u16 {
        (slot & SLOT_MASK) | charge.number() << SLOT_BITS
    }

    /// The word that holds [`Session::pool_address`] and [`Session::ingress`]: number of words of 4 bytes before it.
    pub const PEER: usize = core::mem::offset_of!(Self, pool_address) / 4;

    /// That word as `word`, with another [`Session::pool_address`].
    #[inline(always)]
    pub const fn with_peer(word: u32, pool_address: u16) -> u32 {
        let [_, _, i0, i1] = word.to_ne_bytes();
        let [p0, p1] = pool_address.to_ne_bytes();
        u32::from_ne_bytes([p0, p1, i0, i1])
    }

    /// That word as `word`, with another [`Session::slot`].
    #[inline(always)]
    pub const fn with_slot(word: u32, slot: u16) -> u32 {
        let [p0, p1, i0, i1] = word.to_ne_bytes();
        let charge = u16::from_ne_bytes([i0, i1]) & !SLOT_MASK;
        let [i0, i1] = (charge | slot & SLOT_MASK).to_ne_bytes();
        u32::from_ne_bytes([p0, p1, i0, i1])
    }

    /// That word as `word`, with another [`Session::charge`].
    #[inline(always)]
    pub const fn with_charge(word: u32, charge: Charge) -> u32 {
        let [p0, p1, i0, i1] = word.to_ne_bytes();
        let slot = u16::from_ne_bytes([i0, i1]);
        let [i0, i1] = Self::ingress_of(slot, charge).to_ne_bytes();
        u32::from_ne_bytes([p0, p1, i0, i1])
    }

    /// The [`Session::pool_address`] in that word.
    #[inline(always)]
    pub const fn peer_of(word: u32) -> u16 {
        let [p0, p1, _, _] = word.to_ne_bytes();
        u16::from_ne_bytes([p0, p1])
    }

    /// The control word as `word`, with another state.
    #[inline(always)]
    pub const fn with_state(word: u32, state: u8) -> u32 {
        let [delta0, delta1, _, flags] = word.to_ne_bytes();
        u32::from_ne_bytes([delta0, delta1, state, flags])
    }

    /// The state in a control word.
    #[inline(always)]
    pub const fn state_of(word: u32) -> u8 {
        word.to_ne_bytes()[2]
    }
}

/// The word that holds `first` and then `second`.
#[inline(always)]
const fn word(first: u32, second: u32) -> u64 {
    let (low, high) = if cfg!(target_endian = "little") { (first, second) } else { (second, first) };
    low as u64 | (high as u64) << 32
}

/// Keys of sessions in one run of the `sweep` program: its packet is a [`SweepHeader`] and that many tuples.
pub const SWEEP_BATCH: usize = 64;

/// Head of the input of the `sweep` program; the counts are its output.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepHeader {
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// Number of tuples that follow.
    pub count: u32,
    /// What to do: one of the constants `SWEEP_...`.
    pub action: u32,
    /// Sessions marked as retired by this run; [`SWEEP_CUTS`]: taken out of the queue.
    pub retired: u32,
    /// Sessions deleted by this run.
    pub removed: u32,
    /// The present tick.
    pub now: u32,
}

/// Remove sessions that are idle or closed.
pub const SWEEP_IDLE: u32 = 0;
/// Remove sessions whatever their age.
pub const SWEEP_KILL: u32 = 1;
/// Begin a turn, and take back the ports of destinations that have become quiet, see [`crate::ports`].
pub const SWEEP_TURN: u32 = 2;
/// Remove at most [`SWEEP_BATCH`] of the sessions of the family that were cut and have waited long enough.
pub const SWEEP_CUTS: u32 = 3;
/// Remove buckets that nobody needs, see [`crate::limit`]: the tuples are [`crate::ports::Destination`]s.
pub const SWEEP_DESTINATIONS: u32 = 4;
/// As [`SWEEP_DESTINATIONS`], of sources: the tuples are [`crate::source::Source`]s.
pub const SWEEP_SOURCES: u32 = 5;
/// Have sessions counted under the limits of sources that are in force.
pub const SWEEP_CHARGE: u32 = 6;

const _: () = assert!(size_of::<Tuple<V4>>() == 16);
const _: () = assert!(size_of::<Tuple<V6>>() == 40);
const _: () = assert!(size_of::<Session<V4>>() == 64);
const _: () = assert!(size_of::<Session<V6>>() == 80);
const _: () = assert!(size_of::<SweepHeader>() == 24);
const _: () = assert!(control_word_holds_the_state::<V4>() && control_word_holds_the_state::<V6>());
const _: () = assert!(peer_word_holds_both::<V4>() && peer_word_holds_both::<V6>());

const fn peer_word_holds_both<F: Family>() -> bool {
    core::mem::offset_of!(Session<F>, pool_address) == Session::<F>::PEER * 4
        && core::mem::offset_of!(Session<F>, ingress) == Session::<F>::PEER * 4 + 2
}

const fn control_word_holds_the_state<F: Family>() -> bool {
    core::mem::offset_of!(Session<F>, transport_delta) == Session::<F>::CONTROL * 4
        && core::mem::offset_of!(Session<F>, state) == Session::<F>::CONTROL * 4 + 2
        && core::mem::offset_of!(Session<F>, flags) == Session::<F>::CONTROL * 4 + 3
}

pod!(Tuple<V4>, Tuple<V6>, Session<V4>, Session<V6>, SweepHeader);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_and_charge_do_not_touch_each_other() {
        for (slot, number, per_prefix) in [(0, 1, false), (31, 1_023, true), (7, 512, false)] {
            let charge = Charge::of(number, per_prefix);
            // SAFETY: all-zero bytes are a valid `Session`.
            let mut session: Session<V4> = unsafe { core::mem::zeroed() };
            session.ingress = Session::<V4>::ingress_of(slot, charge);
            assert_eq!((session.slot(), session.charge()), (u32::from(slot), charge));
            let [i0, i1] = session.ingress.to_ne_bytes();
            let word = u32::from_ne_bytes([0xaa, 0xbb, i0, i1]);
            let other = Charge::of(77, true);
            let moved = Session::<V4>::with_slot(Session::<V4>::with_charge(word, other), 3);
            let [p0, p1, i0, i1] = moved.to_ne_bytes();
            session.ingress = u16::from_ne_bytes([i0, i1]);
            assert_eq!((p0, p1, session.slot(), session.charge()), (0xaa, 0xbb, 3, other));
        }
    }

    #[test]
    fn the_pair_of_the_pair_is_the_tuple() {
        let inside = Tuple::<V4> {
            source: V4::address([10, 0, 1, 2]),
            destination: V4::address([192, 0, 2, 1]),
            source_port: 4000u16.to_be_bytes(),
            destination_port: 443u16.to_be_bytes(),
            proto: 6,
            side: SIDE_INSIDE,
            origin: 0,
        };
        // SAFETY: all-zero bytes are a valid `Session`.
        let mut session: Session<V4> = unsafe { core::mem::zeroed() };
        session.translated = V4::address([198, 51, 100, 1]);
        session.translated_port = 5000u16.to_be_bytes();
        let outside = inside.pair(&session);
        assert_eq!(outside.source, V4::address([192, 0, 2, 1]));
        assert_eq!(outside.destination, V4::address([198, 51, 100, 1]));
        assert_eq!(outside.source_port, 443u16.to_be_bytes());
        assert_eq!(outside.destination_port, 5000u16.to_be_bytes());
        session.translated = inside.source;
        session.translated_port = inside.source_port;
        assert_eq!(outside.pair(&session), inside);
    }

    #[test]
    fn the_sides_of_a_proxied_flow_are_told_apart_by_their_origin() {
        let inside = Tuple::<V4> {
            source: V4::address([10, 0, 1, 2]),
            destination: V4::address([192, 0, 2, 1]),
            source_port: 4000u16.to_be_bytes(),
            destination_port: 443u16.to_be_bytes(),
            proto: 6,
            side: SIDE_INSIDE,
            origin: proxy::origin(7),
        };
        // SAFETY: all-zero bytes are a valid `Session`.
        let mut session: Session<V4> = unsafe { core::mem::zeroed() };
        session.translated = inside.source;
        session.translated_port = inside.source_port;
        session.pool_address = PROXIED | 9;
        let outside = inside.pair(&session);
        assert_eq!(outside.origin, proxy::origin(9));
        assert_eq!(outside.destination, inside.source);
        session.ingress = inside.origin;
        assert_eq!(outside.pair(&session), inside);
    }

    #[test]
    fn the_words_are_the_tuple() {
        // SAFETY: any bytes are a tuple.
        let v4: Tuple<V4> = unsafe { core::mem::transmute(*b"0123456789abcdef") };
        // SAFETY: as above.
        let v6: Tuple<V6> = unsafe { core::mem::transmute(*b"0123456789abcdefghijklmnopqrstuvwxyzABCD") };
        // SAFETY: words and tuple have one size, and any bytes are a tuple.
        unsafe {
            assert_eq!(core::mem::transmute::<[u64; 2], Tuple<V4>>(v4.words()), v4);
            assert_eq!(core::mem::transmute::<[u64; 5], Tuple<V6>>(v6.words()), v6);
        }
    }
}
