//! The one record that every packet reads first.

use crate::{counter::SessionClass, pod, route::MAX_TABLE_SLOTS, tcp::State};

/// Longest length of a tick, nanoseconds: coarse enough that an established flow writes its time stamp some
/// times a second at most, fine enough for every timer of the RFCs.
///
/// Times are kept in ticks of a power of two of the kernel's jiffies ([`Config::tick_shift`]): `bpf_jiffies64`
/// is two loads where the JIT inlines it, a clock in nanoseconds is a call and a loop around a sequence count.
pub const MAX_TICK: u64 = 134_217_728;

/// The power of two of jiffies that makes a tick, for jiffies of `jiffy` nanoseconds.
#[must_use]
pub const fn tick_shift(jiffy: u64) -> u32 {
    let mut shift = 0;
    while jiffy << (shift + 1) <= MAX_TICK && shift < 16 {
        shift += 1;
    }
    shift
}

/// Elements of `PROGRAMS`.
pub const PROGRAM_COUNT: u32 = 16;
/// Element of `PROGRAMS`: program `decide_v4`.
pub const DECIDE_V4: u32 = 0;
/// Element of `PROGRAMS`: program `decide_v6`.
pub const DECIDE_V6: u32 = 1;
/// Element of `PROGRAMS`: program `related_v4`.
pub const RELATED_V4: u32 = 2;
/// Element of `PROGRAMS`: program `related_v6`.
pub const RELATED_V6: u32 = 3;
/// Element of `PROGRAMS`: program `eip_v4`.
pub const EIP_V4: u32 = 4;
/// Element of `PROGRAMS`: program `eip_v6`.
pub const EIP_V6: u32 = 5;
/// Element of `PROGRAMS`: program `map_v4`.
pub const MAP_V4: u32 = 6;
/// Element of `PROGRAMS`: program `map_v6`.
pub const MAP_V6: u32 = 7;
/// Element of `PROGRAMS`: program `hairpin_v4`.
pub const HAIRPIN_V4: u32 = 8;
/// Element of `PROGRAMS`: program `hairpin_v6`.
pub const HAIRPIN_V6: u32 = 9;
/// Element of `PROGRAMS`: program `proxy_v4`.
pub const PROXY_V4: u32 = 10;
/// Element of `PROGRAMS`: program `proxy_v6`.
pub const PROXY_V6: u32 = 11;
/// Element of `PROGRAMS`: program `inward_v4`.
pub const INWARD_V4: u32 = 12;
/// Element of `PROGRAMS`: program `inward_v6`.
pub const INWARD_V6: u32 = 13;
/// Element of `PROGRAMS`: program `decapsulate`.
pub const DECAPSULATE: u32 = 14;
/// Element of `PROGRAMS`: program `encapsulate`.
pub const ENCAPSULATE: u32 = 15;

/// Server port whose UDP sessions have an idle time of their own.
pub const DNS_PORT: u16 = 53;

/// Idle times after which a session may be removed, in ticks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, established (RFC 5382 REQ-5: at least 2 h 4 min).
    pub tcp_established: u32,
    /// TCP, not established yet (RFC 5382 REQ-5: at least 4 min; RFC 7857 2.1: may be less).
    pub tcp_opening: u32,
    /// TCP, closed by both sides or reset (RFC 5382 REQ-5: at least 4 min).
    pub tcp_closing: u32,
    /// TCP, refused by the server.
    pub tcp_refused: u32,
    /// UDP (RFC 4787 REQ-5: at least 2 min, 5 min recommended).
    pub udp: u32,
    /// UDP to the port of the DNS (RFC 4787 REQ-5a: may be less).
    pub udp_dns: u32,
    /// ICMP queries (RFC 5508 REQ-2: at least 60 s).
    pub icmp: u32,
}

impl Timeouts {
    /// Idle time after which a session under the inside tuple's protocol and server port, in this state, may be
    /// removed.
    #[inline(always)]
    #[must_use]
    pub const fn of(&self, proto: u8, server_port: [u8; 2], state: State) -> u32 {
        match SessionClass::of(proto) {
            SessionClass::Tcp => match state {
                State::Opening | State::Answered => self.tcp_opening,
                // RFC 7857 2: a connection that one side has closed is alive.
                State::Established | State::InsideFin | State::OutsideFin => self.tcp_established,
                State::BothFins | State::Reset => self.tcp_closing,
                State::Refused | State::Gone => self.tcp_refused,
            },
            SessionClass::Udp if u16::from_be_bytes(server_port) == DNS_PORT => self.udp_dns,
            SessionClass::Udp => self.udp,
            SessionClass::Icmp | SessionClass::Other => self.icmp,
        }
    }
}

/// [`Config::no_session`]: the client is told by a reset.
pub const NO_SESSION_RESET: u32 = 0;
/// [`Config::no_session`]: dropped in silence.
pub const NO_SESSION_DROP: u32 = 1;

/// Which half of everything that is kept twice is in force: one word, so that it changes at once. A packet reads it
/// once, and asks every map by what it read.
///
/// Bit 0: the gateway is active. Bit 1: [`Policy::bindings`]. Bit 2: [`Policy::eips`]. Bit 3:
/// [`Policy::names_interfaces`]. Bits 4 and 5: [`Policy::limits`]. Bit 6: [`Policy::is_watched`]. Bit 7:
/// [`Policy::are_sessions_watched`]. The upper half: [`Policy::border`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy(u32);

const ACTIVE: u32 = 1;
const BINDINGS: u32 = 2;
const EIPS: u32 = 4;
const INTERFACES: u32 = 8;
const LIMITS: u32 = 4;
const LIMITS_MASK: u32 = 3 << LIMITS;
const WATCHED: u32 = 64;
const SESSIONS_WATCHED: u32 = 128;
const BORDER: u32 = 16;

const _: () = assert!(MAX_TABLE_SLOTS <= 1 << BORDER);

impl Policy {
    /// Whether the gateway decides packets; else it only observes.
    #[inline(always)]
    #[must_use]
    pub const fn is_active(self) -> bool {
        self.0 & ACTIVE != 0
    }

    /// Which element of `BINDINGS` is in force, 0 or 1, and so which tables.
    #[inline(always)]
    #[must_use]
    pub const fn bindings(self) -> u32 {
        (self.0 & BINDINGS != 0) as u32
    }

    /// Which half of `EIPS` is in force, 0 or 1.
    #[inline(always)]
    #[must_use]
    pub const fn eips(self) -> u32 {
        (self.0 & EIPS != 0) as u32
    }

    /// Whether a binding names an interface, so that asking for one is worth while.
    #[inline(always)]
    #[must_use]
    pub const fn names_interfaces(self) -> bool {
        self.0 & INTERFACES != 0
    }

    /// 1 more than the half of `LIMITS` that is in force; 0: there are no limits of sources.
    #[inline(always)]
    #[must_use]
    pub const fn limits(self) -> u32 {
        (self.0 & LIMITS_MASK) >> LIMITS
    }

    /// Whether somebody wants to see packets, see [`crate::watch`].
    #[inline(always)]
    #[must_use]
    pub const fn is_watched(self) -> bool {
        self.0 & WATCHED != 0
    }

    /// Whether somebody wants to see sessions that open and end, see [`crate::watch`].
    #[inline(always)]
    #[must_use]
    pub const fn are_sessions_watched(self) -> bool {
        self.0 & SESSIONS_WATCHED != 0
    }

    /// Slot of the border table, 0: there is none.
    #[inline(always)]
    #[must_use]
    pub const fn border(self) -> u32 {
        self.0 >> BORDER
    }

    /// As [`Policy::is_active`].
    #[must_use]
    pub const fn with_active(self, active: bool) -> Self {
        self.with(ACTIVE, active)
    }

    /// As [`Policy::bindings`].
    #[must_use]
    pub const fn with_bindings(self, element: u32) -> Self {
        self.with(BINDINGS, element != 0)
    }

    /// As [`Policy::eips`].
    #[must_use]
    pub const fn with_eips(self, half: u32) -> Self {
        self.with(EIPS, half != 0)
    }

    /// As [`Policy::names_interfaces`].
    #[must_use]
    pub const fn with_interfaces(self, named: bool) -> Self {
        self.with(INTERFACES, named)
    }

    /// As [`Policy::limits`], at most 2.
    #[must_use]
    pub const fn with_limits(self, limits: u32) -> Self {
        Self(self.0 & !LIMITS_MASK | limits << LIMITS & LIMITS_MASK)
    }

    /// As [`Policy::is_watched`].
    #[must_use]
    pub const fn with_watched(self, watched: bool) -> Self {
        self.with(WATCHED, watched)
    }

    /// As [`Policy::are_sessions_watched`].
    #[must_use]
    pub const fn with_sessions_watched(self, watched: bool) -> Self {
        self.with(SESSIONS_WATCHED, watched)
    }

    /// As [`Policy::border`]; `slot` is less than [`MAX_TABLE_SLOTS`].
    #[must_use]
    pub const fn with_border(self, slot: u32) -> Self {
        Self(self.0 & ((1 << BORDER) - 1) | slot << BORDER)
    }

    const fn with(self, bit: u32, set: bool) -> Self {
        Self(self.0 & !bit | if set { bit } else { 0 })
    }
}

/// Map `CONFIG`, element 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// [`crate::ABI_VERSION`] of the writer.
    pub abi: u32,
    /// What is in force. Flipping its bits replaces tables, bindings and EIPs at once.
    pub policy: Policy,
    /// Moves with every change that may alter a decision. Never 0: sessions being removed carry 0.
    pub generation: u32,
    /// Buckets of the table of IPv4 sessions, see [`crate::table::buckets`].
    pub buckets: u32,
    /// Idle times.
    pub timeouts: Timeouts,
    /// Secret of the choice of a client's pool address; random per installation.
    pub secret: u32,
    /// Bit n is set where the interface in slot n faces the inside.
    pub inside_slots: u32,
    /// Which half of the numbers that a daemon gives out is in force, 0 or 1: the next daemon uses the other.
    pub half: u32,
    /// A tick is that power of two of jiffies, see [`tick_shift`].
    pub tick_shift: u32,
    /// How many TCP sessions of both families together may be half open.
    pub half_open: u32,
    /// What becomes of clients' TCP segments that belong to no session: [`NO_SESSION_RESET`] or
    /// [`NO_SESSION_DROP`].
    pub no_session: u32,
    /// Elements that the table of IPv4 sessions takes, two for a session.
    pub elements: u32,
    /// What packets are recorded under that no route covers: key of `LOG_NAMES`, or 0 where they are not.
    pub unrouted: u32,
    /// The last tick for which [`Policy::is_watched`] and [`Policy::are_sessions_watched`] hold: whoever watches says so
    /// again and again, and for a daemon that has died nobody looks any more.
    pub watched_until: u32,
}

const _: () = assert!(size_of::<Config>() == 80);

pod!(Config);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{PROTO_ICMP, PROTO_TCP, PROTO_UDP};

    #[test]
    fn a_session_has_the_idle_time_of_its_kind() {
        let timeouts = Timeouts {
            tcp_established: 1,
            tcp_opening: 2,
            tcp_closing: 3,
            tcp_refused: 4,
            udp: 5,
            udp_dns: 6,
            icmp: 7,
        };
        let (dns, other) = (53u16.to_be_bytes(), 443u16.to_be_bytes());
        for state in State::ALL {
            let tcp = match state {
                State::Opening | State::Answered => 2,
                // A connection that one side has closed is alive.
                State::Established | State::InsideFin | State::OutsideFin => 1,
                State::BothFins | State::Reset => 3,
                State::Refused | State::Gone => 4,
            };
            assert_eq!(timeouts.of(PROTO_TCP, dns, *state), tcp, "{state:?}");
        }
        assert_eq!(timeouts.of(PROTO_UDP, other, State::Established), 5);
        assert_eq!(timeouts.of(PROTO_UDP, dns, State::Established), 6);
        assert_eq!(timeouts.of(PROTO_ICMP, other, State::Established), 7);
    }

    #[test]
    fn a_tick_is_the_longest_below_its_bound() {
        for hertz in [100, 250, 300, 1000] {
            let jiffy = 1_000_000_000 / hertz;
            let tick = jiffy << tick_shift(jiffy);
            assert!(tick <= MAX_TICK && tick * 2 > MAX_TICK, "{hertz} Hz: {tick} ns");
        }
    }

    #[test]
    fn the_parts_of_the_word_do_not_touch_each_other() {
        let policy = Policy::default().with_border(MAX_TABLE_SLOTS - 1).with_bindings(1).with_active(true);
        assert!(policy.is_active() && !policy.names_interfaces());
        assert_eq!((policy.bindings(), policy.eips(), policy.border()), (1, 0, MAX_TABLE_SLOTS - 1));
        assert_eq!(policy.with_limits(2).limits(), 2);
        assert!(policy.with_watched(true).is_watched() && !policy.is_watched());
        assert_eq!(policy.with_watched(true).with_watched(false), policy);
        let told = policy.with_sessions_watched(true);
        assert!(told.are_sessions_watched() && !told.is_watched() && told.is_active());
        assert_eq!(told.with_sessions_watched(false), policy);
        assert_eq!(policy.with_limits(2).with_limits(0), policy);
        let policy = policy.with_bindings(0).with_eips(1).with_interfaces(true).with_border(0);
        assert!(policy.is_active() && policy.names_interfaces());
        assert_eq!((policy.bindings(), policy.eips(), policy.border()), (0, 1, 0));
        assert_eq!(policy.with_active(false).with_eips(0).with_interfaces(false), Policy::default());
    }
}
