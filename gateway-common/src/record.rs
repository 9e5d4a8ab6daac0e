//! Map `RECORDS`: who went where, and when. The access log in the daemon is made of it.
//!
//! A session is recorded where its route says so ([`crate::route::Route::log`]): when it opens and, since it remembers
//! ([`crate::session::Session::log`]), when it is removed, whatever has become of the route by then. No packet of a
//! session between the two does anything for it.
//!
//! A packet that is dropped is recorded where its route says so. Others like it, of the same period, are counted in
//! `DENIED`, and the daemon makes one record of them.
//!
//! The number in a record stands for the names of table, route and target in `LOG_NAMES`. A number keeps its meaning for
//! as long as the maps are there, so that a record says what was in force when the session opened.

use crate::{DropReason, counter::Counter, family::MappedAddress, pod, tcp::State};

/// Bytes of `RECORDS`: room for 34,000 records, which the daemon takes out ten times a second and more.
pub const RECORDS_BYTES: u32 = 4 << 20;
/// Names that `LOG_NAMES` has room for; 0 is none.
pub const MAX_LOG_NAMES: u32 = 65_535;
/// Bytes of the names of a record: table, route and target in UTF-8, each followed by a zero byte.
pub const LOG_NAME_LEN: usize = 256;

/// What a record tells. Numbers are part of the ABI.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A session has opened.
    Open = 1,
    /// A session was removed.
    Close = 2,
    /// A packet was dropped, the first of its [`DeniedKey`].
    Deny = 3,
}

impl Kind {
    /// The kind with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Open),
            2 => Some(Self::Close),
            3 => Some(Self::Deny),
            _ => None,
        }
    }
}

/// Why a session was removed, [`Record::reason`] of [`Kind::Close`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing was sent for as long as the idle time of its state.
    Idle = 1,
    /// Both sides have closed the connection.
    Fin = 2,
    /// The connection was reset.
    Rst = 3,
    /// The server has refused the connection.
    Refused = 4,
    /// An operator, or a change of routes, pools or proxies, has cut it.
    Killed = 5,
}

impl Ending {
    /// Every ending in the order of their numbers.
    pub const ALL: &'static [Self] = &[Self::Idle, Self::Fin, Self::Rst, Self::Refused, Self::Killed];

    /// The ending with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|ending| *ending as u8 == number)
    }

    /// Why a session ends that the sweep has found in that state. Of a flow through a proxy one FIN is all that the
    /// gateway may ever see.
    #[inline(always)]
    pub const fn of(state: State, proxied: bool) -> Self {
        match state {
            State::BothFins => Self::Fin,
            State::Reset => Self::Rst,
            State::Refused => Self::Refused,
            State::InsideFin | State::OutsideFin if proxied => Self::Fin,
            State::InsideFin
            | State::OutsideFin
            | State::Established
            | State::Opening
            | State::Answered
            | State::Gone => Self::Idle,
        }
    }

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Fin => "fin",
            Self::Rst => "rst",
            Self::Refused => "refused",
            Self::Killed => "killed",
        }
    }
}

/// One record of `RECORDS`. Ports are in network byte order; ICMP queries have their identifier as the port of the
/// asking side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// When it was written: the kernel's monotonic clock, nanoseconds.
    pub time: u64,
    /// [`Kind`].
    pub kind: u8,
    /// IP protocol.
    pub proto: u8,
    /// [`Kind::Close`]: an [`Ending`]. [`Kind::Deny`]: a [`DropReason`].
    pub reason: u8,
    /// 1 where the session goes to a proxy, and nothing is translated.
    pub proxied: u8,
    /// Key of `LOG_NAMES`. In `LIVES`, the slot of the interface that the inside host is behind.
    pub log: u16,
    /// [`crate::session::Session::counter`] of a session.
    pub counter: u16,
    /// The tick at which it was written.
    pub now: u32,
    /// The tick at which the session began.
    pub start: u32,
    /// The inside host.
    pub source: MappedAddress,
    /// What it is to the outside.
    pub translated: MappedAddress,
    /// The server.
    pub destination: MappedAddress,
    /// Port of the inside host.
    pub source_port: [u8; 2],
    /// The port that the outside sees.
    pub translated_port: [u8; 2],
    /// Port of the server.
    pub destination_port: [u8; 2],
    /// [`crate::session::Session::pool_address`] of a session.
    pub pool_address: u16,
    /// IP packets from the inside, and their bytes without Ethernet.
    pub sent: Counter,
    /// The same from the outside.
    pub received: Counter,
}

/// Key of `DENIED`: packets that are recorded together, but for the first of them, which has a record of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeniedKey {
    /// The inside host.
    pub source: MappedAddress,
    /// The server.
    pub destination: MappedAddress,
    /// See [`period`].
    pub period: u32,
    /// Port of the server, network byte order.
    pub destination_port: [u8; 2],
    /// Key of `LOG_NAMES`.
    pub log: u16,
    /// IP protocol.
    pub proto: u8,
    /// [`DropReason`].
    pub reason: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// Elements of `DENIED`.
pub const MAX_DENIED: u32 = 8_192;

/// Ticks of a period, as a power of two: 64 of them are at most 8.6 seconds.
pub const PERIOD_SHIFT: u32 = 6;

/// The period of a tick. Who is counted in one is written down when it is over, so that nobody counts there any more.
#[inline(always)]
pub const fn period(tick: u32) -> u32 {
    tick >> PERIOD_SHIFT
}

/// Whether a packet from inside that was dropped for `reason` was denied something: by policy, or for want of room.
#[inline(always)]
pub const fn is_denial(reason: DropReason) -> bool {
    const DENIALS: u32 = 1 << DropReason::NoRoute as u32
        | 1 << DropReason::Blackhole as u32
        | 1 << DropReason::Prohibited as u32
        | 1 << DropReason::DestinationRate as u32
        | 1 << DropReason::DestinationConcurrent as u32
        | 1 << DropReason::SourceRate as u32
        | 1 << DropReason::SourceConcurrent as u32
        | 1 << DropReason::PoolExhausted as u32
        | 1 << DropReason::SessionTableFull as u32
        | 1 << DropReason::ProxyDown as u32;
    DENIALS >> (reason as u32 & 31) & 1 != 0
}

const _: () = assert!(size_of::<Record>() == 112);
const _: () = assert!(size_of::<DeniedKey>() == 44);

pod!(Record, DeniedKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_ending() {
        for ending in Ending::ALL {
            assert_eq!(Ending::from_number(*ending as u8), Some(*ending));
        }
        assert_eq!(Ending::from_number(0), None);
    }
}
