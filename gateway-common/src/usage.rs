//! Usage: what the sessions between two groups of addresses have carried.
//!
//! Packets count in their session and nowhere else. The sweep adds what a session has carried to its pair of groups
//! (map `USAGE`) when it removes the session, and the daemon adds the sessions that are there, once a second. Each of
//! the two elements of a session counts for itself, the inside one what was sent, the outside one what was received.

use crate::{
    counter::Counter,
    family::{Family, MappedAddress},
    pod,
    session::{SIDE_INSIDE, Session, Tuple},
};

/// Groups there can be; their numbers are from 1 to this.
pub const MAX_GROUPS: u32 = 64;
/// Prefixes of all groups.
pub const MAX_GROUP_PREFIXES: u32 = 16_384;
/// Number of the group of addresses that no group has.
pub const OTHER: u32 = 0;
/// Number of the group of all sources that packets from hosts of proxies show.
pub const PROXY: u32 = MAX_GROUPS + 1;
/// Numbers of groups.
pub const SIDES: u32 = MAX_GROUPS + 2;
/// Elements of `USAGE` and `USAGE_TOTALS`.
pub const PAIRS: u32 = SIDES * SIDES;

/// The element of a source group and a destination group.
#[inline(always)]
pub const fn pair(source: u32, destination: u32) -> u32 {
    source * SIDES + destination
}

/// The inverse of [`pair`].
pub const fn groups(pair: u32) -> (u32, u32) {
    (pair / SIDES, pair % SIDES)
}

/// Key of the trie `GROUPS`, behind a prefix length that counts all bits before those of the group's prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// See [`GroupKey::realm`].
    pub realm: u32,
    /// Zero: the trie wants keys of a multiple of 8 bytes.
    pub reserved: u32,
    /// See [`MappedAddress`].
    pub address: MappedAddress,
}

impl GroupKey {
    /// The family, network byte order: prefixes of one do not cover the other.
    #[inline(always)]
    pub const fn realm(ipv4: bool) -> u32 {
        (ipv4 as u32).to_be()
    }
}

/// Value of `GROUPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Number of the group.
    pub number: u32,
    /// Zero.
    pub reserved: u32,
    /// Digest of its name, by which the next daemon knows whose the number is.
    pub owner: u64,
}

/// What sessions have carried. Bytes are those of IP packets, without Ethernet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// From the inside.
    pub sent: Counter,
    /// From the outside.
    pub received: Counter,
    /// Sessions.
    pub connections: u64,
}

impl Usage {
    /// What an element of the session tables has carried.
    #[inline(always)]
    pub fn of<F: Family>(tuple: &Tuple<F>, session: &Session<F>) -> Self {
        let carried = Counter { packets: session.packets, bytes: session.bytes };
        if tuple.side == SIDE_INSIDE {
            Self { sent: carried, connections: 1, ..Self::default() }
        } else {
            Self { received: carried, ..Self::default() }
        }
    }

    /// Adds `other`.
    #[inline(always)]
    pub const fn add(&mut self, other: &Self) {
        self.sent.add(other.sent);
        self.received.add(other.received);
        self.connections = self.connections.wrapping_add(other.connections);
    }

    /// The result of `of` for each number of both.
    #[must_use]
    pub fn zip(&self, other: &Self, of: impl Fn(u64, u64) -> u64) -> Self {
        let count = |a: Counter, b: Counter| Counter {
            packets: of(a.packets, b.packets),
            bytes: of(a.bytes, b.bytes),
        };
        Self {
            sent: count(self.sent, other.sent),
            received: count(self.received, other.received),
            connections: of(self.connections, other.connections),
        }
    }
}

/// Map `USAGE_TOTALS`, the daemon's alone: what is told of a pair, and how it follows from what is counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// What was told last.
    pub told: Usage,
    /// What has to be added to what is counted, in two's complement.
    pub base: Usage,
    /// 1 where `base` is not known yet: what is told goes on from `told`.
    pub pending: u64,
}

/// The two hosts of an element of the session tables, the inside one first, and [`Tuple::origin`] of what that sends.
#[inline(always)]
pub fn ends<F: Family>(tuple: &Tuple<F>, session: &Session<F>) -> (F::Address, F::Address, u16) {
    if tuple.side == SIDE_INSIDE {
        (tuple.source, tuple.destination, tuple.origin)
    } else {
        (session.translated, tuple.source, session.ingress)
    }
}

const _: () = assert!(size_of::<GroupKey>() == 24);
const _: () = assert!(size_of::<Group>() == 16);
const _: () = assert!(size_of::<Usage>() == 40);
const _: () = assert!(size_of::<Total>() == 88);

pod!(GroupKey, Group, Usage, Total);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{V4, proxy};

    fn session(packets: u64) -> Session<V4> {
        // SAFETY: all-zero bytes are a valid `Session`.
        let session: Session<V4> = unsafe { core::mem::zeroed() };
        Session { packets, bytes: 100 * packets, ..session }
    }

    fn inside(origin: u16) -> Tuple<V4> {
        Tuple {
            source: V4::address([10, 0, 1, 2]),
            destination: V4::address([192, 0, 2, 1]),
            source_port: [1, 2],
            destination_port: [3, 4],
            proto: 6,
            side: SIDE_INSIDE,
            origin,
        }
    }

    #[test]
    fn every_pair_has_an_element_of_its_own() {
        let pairs: std::collections::BTreeSet<u32> = (0..SIDES)
            .flat_map(|source| (0..SIDES).map(move |destination| pair(source, destination)))
            .collect();
        assert_eq!(pairs.len(), PAIRS as usize);
        assert_eq!(pairs.last(), Some(&(PAIRS - 1)));
        for pair_number in pairs {
            let (source, destination) = groups(pair_number);
            assert_eq!(pair(source, destination), pair_number);
        }
    }

    #[test]
    fn both_elements_of_a_session_are_between_the_same_hosts() {
        for origin in [0, proxy::origin(3)] {
            let (tuple, mut forth, mut back) = (inside(origin), session(3), session(2));
            forth.translated = V4::address([198, 51, 100, 1]);
            back.translated = tuple.source;
            back.ingress = origin;
            let expected = (tuple.source, tuple.destination, origin);
            assert_eq!(ends(&tuple, &forth), expected);
            assert_eq!(ends(&tuple.pair(&forth), &back), expected);
        }
    }

    #[test]
    fn each_element_counts_its_own_direction() {
        let tuple = inside(0);
        let mut sum = Usage::of(&tuple, &session(3));
        sum.add(&Usage::of(&tuple.pair(&session(3)), &session(2)));
        assert_eq!(sum.sent, Counter { packets: 3, bytes: 300 });
        assert_eq!(sum.received, Counter { packets: 2, bytes: 200 });
        assert_eq!(sum.connections, 1);
        let twice = sum.zip(&sum, u64::wrapping_add);
        assert_eq!(twice.zip(&sum, u64::wrapping_sub), sum);
    }
}
