//! Counters. All of them are per CPU and are summed by the reader.

use crate::{
    Verdict,
    interface::{MAX_INTERFACES, NO_SLOT},
    pod,
};

/// Packets and bytes. Bytes are those of the frame as it arrived, Ethernet header included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Counter {
    /// Adds `other`.
    pub const fn add(&mut self, other: Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

/// Elements of `TRAFFIC`: a matrix (ingress slot or none, egress slot or none, verdict), so that one update
/// counts a packet where it came in, where it went out, and what became of it.
pub const TRAFFIC_LEN: u32 = (MAX_INTERFACES + 1) * (MAX_INTERFACES + 1) * Verdict::COUNT;

/// Index of `TRAFFIC`. `ingress` is [`NO_SLOT`] where the packet came from a device that the gateway does not
/// know, and `egress` where the packet did not leave.
#[inline(always)]
pub const fn traffic_index(ingress: u32, egress: u32, verdict: Verdict) -> u32 {
    (ingress * (MAX_INTERFACES + 1) + egress) * Verdict::COUNT + verdict as u32
}

/// The inverse of [`traffic_index`]: ingress (or [`NO_SLOT`]), egress (`None`: did not leave), verdict number.
pub const fn traffic_position(index: u32) -> (u32, Option<u32>, usize) {
    let verdict = (index % Verdict::COUNT) as usize;
    let pair = index / Verdict::COUNT;
    let egress = pair % (MAX_INTERFACES + 1);
    (pair / (MAX_INTERFACES + 1), if egress == NO_SLOT { None } else { Some(egress) }, verdict)
}

/// Elements of `DROPS`, indexed by the number of a [`crate::DropReason`].
pub const DROPS_LEN: u32 = 64;

/// Classes of `SESSION_COUNTERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionClass {
    /// TCP.
    Tcp = 0,
    /// UDP.
    Udp = 1,
    /// ICMP and `ICMPv6` queries.
    Icmp = 2,
    /// Any other protocol.
    Other = 3,
}

impl SessionClass {
    /// Every class in the order of their numbers.
    pub const ALL: &'static [Self] = &[Self::Tcp, Self::Udp, Self::Icmp, Self::Other];

    /// The class of an IP protocol.
    #[inline(always)]
    pub const fn of(proto: u8) -> Self {
        match proto {
            crate::parse::PROTO_TCP => Self::Tcp,
            crate::parse::PROTO_UDP => Self::Udp,
            crate::parse::PROTO_ICMP | crate::parse::PROTO_ICMPV6 => Self::Icmp,
            _ => Self::Other,
        }
    }

    /// The `proto` label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Other => "other",
        }
    }
}

/// Map `SESSION_COUNTERS`, indexed by [`SessionClass`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Sessions opened.
    pub created: u64,
    /// Sessions removed after both sides had closed them.
    pub closed: u64,
    /// Sessions removed because they were idle.
    pub expired: u64,
    /// Sessions cut by a change of routes or by an operator.
    pub killed: u64,
    /// Mappings made, see [`crate::mapping`]. They are no sessions.
    pub mapped: u64,
    /// Mappings removed.
    pub unmapped: u64,
}

/// Map `ROUTE_OWNERS`, indexed as `ROUTE_COUNTERS`: whose a counter is. Programs do not read it; it lets a
/// daemon that takes a gateway over give every route the counter that it had.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterOwner {
    /// Digest of who counts here; 0: nobody.
    pub owner: u64,
    /// Digest of the table and the kind of target that the counter belongs to.
    pub group: u64,
}

const _: () = assert!(size_of::<CounterOwner>() == 16);
const _: () = assert!(size_of::<Counter>() == 16);
const _: () = assert!(size_of::<SessionCounters>() == 48);

pod!(Counter, CounterOwner, SessionCounters);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_positions_round_trip() {
        for index in 0..TRAFFIC_LEN {
            let (ingress, egress, verdict) = traffic_position(index);
            assert_eq!(traffic_index(ingress, egress.unwrap_or(NO_SLOT), Verdict::ALL[verdict]), index);
        }
    }
}
