//! Maps `WATCHERS` and `WATCHED`: packets that somebody wants to see, with what became of them. Map `LIVES`: sessions that
//! open and end, while somebody wants to see any.
//!
//! Nobody watches but for moments, and then one bit of the word that every packet reads says so
//! ([`crate::config::Policy::is_watched`]). The program that a packet meets first asks whom it concerns and keeps what it
//! looks like; the one that it ends in adds verdict and reason, and tells. So a packet is shown as it has arrived,
//! whatever has been translated since.
//!
//! A session is told where it is recorded, whether its route says so or not, if another bit of that word does
//! ([`crate::config::Policy::are_sessions_watched`]): packets of sessions that there are have nothing to do with it. Who wants
//! to see which is asked by the daemon: there are far fewer of them than of packets.
//!
//! A watcher has a lease, which the daemon renews, and so have the bits ([`crate::config::Config::watched_until`]). A daemon
//! that has died leaves nobody who is told anything.

use crate::{
    family::MappedAddress,
    parse::{PROTO_ICMP, PROTO_ICMPV6},
    pod,
};

/// Elements of `WATCHERS`: so many may watch at a time.
pub const MAX_WATCHERS: u32 = 8;
/// Bytes of a packet that are kept at most.
pub const MAX_SNAPLEN: u32 = 4_096;
/// Bytes of `WATCHED`: room for 13,000 packets of 128 bytes.
pub const WATCHED_BYTES: u32 = 2 << 20;
/// Bytes of `LIVES`: room for 17,000 [`crate::record::Record`]s, which the daemon takes out fifty times a second.
pub const LIVES_BYTES: u32 = 2 << 20;

/// [`Watcher::flags`]: only protocol [`Watcher::proto`].
pub const BY_PROTO: u8 = 1;
/// [`Watcher::flags`]: only destination port [`Watcher::port`].
pub const BY_PORT: u8 = 2;

/// Whom packets are shown to, and which. Element of `WATCHERS`. All that is asked of a packet is asked of it as it has
/// arrived.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watcher {
    /// Source, in the bits that [`Watcher::source_mask`] has.
    pub source: MappedAddress,
    /// Which bits of the source count.
    pub source_mask: MappedAddress,
    /// Destination, in the bits that [`Watcher::destination_mask`] has.
    pub destination: MappedAddress,
    /// Which bits of the destination count.
    pub destination_mask: MappedAddress,
    /// The last tick of the lease; 0: nobody watches.
    pub until: u32,
    /// Ifindex of the interface that it came in through, 0: of any.
    pub ifindex: u32,
    /// Packets that each CPU tells of in one tick (about 130 ms).
    pub per_tick: u32,
    /// Bit n: packets with verdict n, see [`crate::Verdict`]. 0: no packets.
    pub verdicts: u32,
    /// Bit n: dropped packets with reason n, see [`crate::DropReason`].
    pub reasons: u32,
    /// Bytes that are kept of a packet, at most [`MAX_SNAPLEN`].
    pub snaplen: u32,
    /// Destination port, network byte order.
    pub port: [u8; 2],
    /// IP protocol; that of ICMP stands for `ICMPv6`, too.
    pub proto: u8,
    /// [`BY_PROTO`], [`BY_PORT`].
    pub flags: u8,
}

/// What of a packet watchers ask about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Source; 0 where it is no IP packet.
    pub source: MappedAddress,
    /// Destination.
    pub destination: MappedAddress,
    /// IP protocol; 0 where none is seen.
    pub proto: u8,
    /// 1 where there are ports in it.
    pub has_ports: u8,
    /// Destination port, network byte order.
    pub port: [u8; 2],
}

impl Watcher {
    /// Whether a packet with these ends, which came in through `ifindex`, may concern the watcher.
    #[inline(always)]
    pub const fn asks_for(&self, now: u32, ifindex: u32, ends: &Ends) -> bool {
        let source = differ(&ends.source, &self.source, &self.source_mask);
        let destination = differ(&ends.destination, &self.destination, &self.destination_mask);
        let [wanted0, wanted1] = self.port;
        let [port0, port1] = ends.port;
        let icmp = self.proto == PROTO_ICMP && ends.proto == PROTO_ICMPV6;
        let other_port = ends.has_ports == 0 || wanted0 != port0 || wanted1 != port1;
        self.until >= now
            && self.verdicts != 0
            && source | destination == 0
            && (self.ifindex == 0 || self.ifindex == ifindex)
            && (self.flags & BY_PROTO == 0 || self.proto == ends.proto || icmp)
            && (self.flags & BY_PORT == 0 || !other_port)
    }

    /// Whether a packet that this has become of concerns the watcher; `reason` is 0 but for dropped ones.
    #[inline(always)]
    pub const fn wants(&self, verdict: u8, reason: u8) -> bool {
        self.verdicts >> (verdict & 31) & 1 != 0 && (reason == 0 || self.reasons >> (reason & 31) & 1 != 0)
    }
}

/// The bits of `mask` in which two addresses differ, all words of them in one.
#[inline(always)]
const fn differ(a: &MappedAddress, b: &MappedAddress, mask: &MappedAddress) -> u32 {
    (a[0] ^ b[0]) & mask[0] | (a[1] ^ b[1]) & mask[1] | (a[2] ^ b[2]) & mask[2] | (a[3] ^ b[3]) & mask[3]
}

/// What stands before the bytes of a packet in `WATCHED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// When it arrived: the kernel's monotonic clock, nanoseconds.
    pub time: u64,
    /// Ifindex of the interface that it came in through.
    pub ingress: u32,
    /// Slot of the interface that it left through, or [`crate::interface::NO_SLOT`].
    pub egress: u32,
    /// Bytes of the frame as it arrived.
    pub length: u32,
    /// How many of them follow.
    pub captured: u32,
    /// Bit n: watcher n is to see it.
    pub watchers: u32,
    /// [`crate::Verdict`].
    pub verdict: u8,
    /// [`crate::DropReason`]; 0 where it was not dropped.
    pub reason: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// What a CPU has told a watcher. Element of `WATCH_RATES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Packets that it should have seen and does not: there were more than [`Watcher::per_tick`], or there was no room.
    /// Never set back.
    pub lost: u64,
    /// A tick.
    pub tick: u32,
    /// Packets in that tick.
    pub count: u32,
}

const _: () = assert!(size_of::<Watcher>() == 92);
const _: () = assert!(size_of::<Watched>() == 32);
const _: () = assert!(size_of::<Told>() == 16);

pod!(Watcher, Watched, Told);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DropReason, Verdict};

    const ANY: Watcher = Watcher {
        source: [0; 4],
        source_mask: [0; 4],
        destination: [0; 4],
        destination_mask: [0; 4],
        until: 10,
        ifindex: 0,
        per_tick: 1,
        verdicts: u32::MAX,
        reasons: u32::MAX,
        snaplen: 128,
        port: [0; 2],
        proto: 0,
        flags: 0,
    };

    #[test]
    fn whoever_asks_for_nothing_gets_everything_until_the_lease_ends() {
        assert!(ANY.asks_for(10, 3, &Ends::default()));
        assert!(!ANY.asks_for(11, 3, &Ends::default()));
        assert!(!Watcher::default().asks_for(1, 3, &Ends::default()));
        assert!(!Watcher { verdicts: 0, ..ANY }.asks_for(10, 3, &Ends::default()));
    }

    #[test]
    fn every_word_of_the_filter_counts() {
        let ends = Ends {
            source: [0, 0, u32::from_be(0xffff), u32::from_be(0x0a00_0102)],
            destination: [1, 2, 3, 4],
            proto: 6,
            has_ports: 1,
            port: [1, 187],
        };
        let of_subnet = Watcher {
            source: [0, 0, u32::from_be(0xffff), u32::from_be(0x0a00_0100)],
            source_mask: [u32::MAX, u32::MAX, u32::MAX, u32::from_be(0xffff_ff00)],
            ifindex: 3,
            proto: 6,
            port: [1, 187],
            flags: BY_PROTO | BY_PORT,
            ..ANY
        };
        assert!(of_subnet.asks_for(1, 3, &ends));
        assert!(!of_subnet.asks_for(1, 4, &ends));
        assert!(!of_subnet.asks_for(1, 3, &Ends { proto: 17, ..ends }));
        assert!(!of_subnet.asks_for(1, 3, &Ends { port: [1, 188], ..ends }));
        assert!(!of_subnet.asks_for(1, 3, &Ends { has_ports: 0, ..ends }));
        assert!(!of_subnet.asks_for(1, 3, &Ends { source: [0; 4], ..ends }));
        let to_other = Watcher { destination: [1, 2, 3, 5], destination_mask: [u32::MAX; 4], ..ANY };
        assert!(!to_other.asks_for(1, 3, &ends));
    }

    #[test]
    fn verdict_and_reason_are_asked_for_together() {
        let watcher = Watcher {
            verdicts: 1 << Verdict::Drop as u32 | 1 << Verdict::Snat as u32,
            reasons: 1 << DropReason::NoRoute as u32,
            ..ANY
        };
        assert!(watcher.wants(Verdict::Drop as u8, DropReason::NoRoute as u8));
        assert!(!watcher.wants(Verdict::Drop as u8, DropReason::Blackhole as u8));
        assert!(watcher.wants(Verdict::Snat as u8, 0));
        assert!(!watcher.wants(Verdict::Direct as u8, 0));
    }
}
