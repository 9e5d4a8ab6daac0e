//! The one record that every packet reads first.

use crate::pod;

/// Times are kept in ticks of 2^27 ns (134 ms) of the monotonic clock: coarse enough that an established
/// flow writes its time stamp seven times a second at most, fine enough for every timer of the RFCs.
pub const TICK_SHIFT: u32 = 27;

/// Converts nanoseconds of `CLOCK_MONOTONIC` to ticks.
#[inline(always)]
pub const fn ticks(nanoseconds: u64) -> u32 {
    (nanoseconds >> TICK_SHIFT) as u32
}

/// Elements of `PROGRAMS`.
pub const PROGRAM_COUNT: u32 = 2;
/// Element of `PROGRAMS`: program `decide_v4`.
pub const DECIDE_V4: u32 = 0;
/// Element of `PROGRAMS`: program `decide_v6`.
pub const DECIDE_V6: u32 = 1;

/// Idle times after which a session may be removed, in ticks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, established (RFC 5382 REQ-5: at least 2 h 4 min).
    pub tcp_established: u32,
    /// TCP, opening or closing (RFC 5382 REQ-5: at least 4 min).
    pub tcp_transitory: u32,
    /// UDP (RFC 4787 REQ-5: at least 2 min, 5 min recommended).
    pub udp: u32,
    /// ICMP queries (RFC 5508 REQ-2: at least 60 s).
    pub icmp: u32,
}

/// Map `CONFIG`, element 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// [`crate::ABI_VERSION`] of the writer.
    pub abi: u32,
    /// 1 when the gateway is active, 0 when it only observes.
    pub active: u32,
    /// Moves with every change that may alter a decision. Never 0: sessions being removed carry 0.
    pub generation: u32,
    /// Which element of `BINDINGS` is in force; flipping it replaces the whole policy at once.
    pub bindings: u32,
    /// Idle times.
    pub timeouts: Timeouts,
    /// Secret of the choice of a client's pool address; random per installation.
    pub secret: u32,
    /// Bit n is set where the interface in slot n faces the inside.
    pub inside_slots: u32,
    /// 1 where a binding names an interface, so that asking for one is worth while.
    pub interface_bindings: u32,
    /// Which half of the numbers that a daemon gives out is in force, 0 or 1: the next daemon uses the other.
    pub half: u32,
}

const _: () = assert!(size_of::<Config>() == 48);

pod!(Config);
