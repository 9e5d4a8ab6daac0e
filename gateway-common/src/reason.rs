//! Why a packet was dropped: one enum feeds metric, log, `monitor`, `explain` and the reference page.

/// The kind of fault behind a drop, for alerts and colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropClass {
    /// The configuration asked for it.
    Policy,
    /// A configured or physical capacity was reached.
    Resource,
    /// A configured limit was reached.
    Limit,
    /// The packet itself is not acceptable.
    Packet,
    /// The network around the gateway is at fault.
    Network,
    /// The gateway is at fault.
    Internal,
}

impl DropClass {
    /// Lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Resource => "resource",
            Self::Limit => "limit",
            Self::Packet => "packet",
            Self::Network => "network",
            Self::Internal => "internal",
        }
    }
}

macro_rules! drop_reasons {
    ($($variant:ident = $number:literal, $name:literal, $class:ident, $help:literal;)+) => {
        /// Why a packet was dropped. Append only: a retired number is never used again.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason {
            $(#[doc = $help] $variant = $number,)+
        }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The `snake_case` name used by metrics, JSON and filters.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What kind of fault it is.
            pub const fn class(self) -> DropClass {
                match self { $(Self::$variant => DropClass::$class),+ }
            }

            /// One sentence for the operator.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help),+ }
            }

            /// The reason with this number, if there is one.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

drop_reasons! {
    NoRoute = 1, "no_route", Policy, "The gateway is active and no route of the source's table covers the destination.";
    Blackhole = 2, "blackhole", Policy, "The winning route's target is `blackhole`.";
    Prohibited = 3, "prohibited", Policy, "The winning route's target is `prohibit`; the client is told.";
    Inactive = 4, "inactive", Policy, "The packet needed a translation while the gateway was being deactivated.";
    DestinationRate = 5, "destination_rate", Limit, "Every address of the pool is at its rate of new connections to this destination.";
    DestinationConcurrent = 6, "destination_concurrent", Limit, "Every address of the pool is at its number of connections to this destination.";
    SourceRate = 7, "source_rate", Limit, "The source is at its rate of new connections.";
    SourceConcurrent = 8, "source_concurrent", Limit, "The source is at its number of connections.";
    PoolExhausted = 9, "pool_exhausted", Resource, "No port of any address of the pool is free for this destination: add addresses to the pool.";
    SessionTableFull = 10, "session_table_full", Resource, "The session table is full: raise `capacity.sessions`.";
    NoSession = 11, "no_session", Policy, "A packet to a pool address, or a reply, that belongs to no session.";
    NoEip = 12, "no_eip", Policy, "The route says `eip` and the source has none.";
    ProxyDown = 13, "proxy_down", Network, "No host of the proxy is up and its `fail` is `closed`.";
    TtlExceeded = 14, "ttl_exceeded", Packet, "The packet's TTL or hop limit ran out at the gateway.";
    MtuExceeded = 15, "mtu_exceeded", Packet, "The packet is larger than the MTU of its way out and may not be fragmented here.";
    NeighborUnresolved = 16, "neighbor_unresolved", Network, "The MAC address of the next hop is not known (yet).";
    Malformed = 17, "malformed", Packet, "The header breaks a rule of RFC 1812 5.2.2 or RFC 8200: version, lengths, addresses.";
    Truncated = 18, "truncated", Packet, "The frame ends before the header it announces.";
    BadChecksum = 19, "bad_checksum", Packet, "The checksum of the IPv4 header is wrong, or that of an ICMP error or of the IPv4 header it quotes.";
    FragmentUnmatched = 20, "fragment_unmatched", Packet, "A later fragment whose first one is not known, and which needs a translation or a port to decide by.";
    UnsupportedProtocol = 21, "unsupported_protocol", Packet, "The route translates and this protocol cannot be translated.";
    SpoofedSource = 22, "spoofed_source", Policy, "The source address does not belong behind the interface the packet came from.";
    Internal = 23, "internal", Internal, "The gateway could not do its work; this is a fault to report.";
}

const _: () = {
    // `from_number` and the counters index by number: they are dense from 1.
    let mut at = 0;
    while at < DropReason::ALL.len() {
        assert!(DropReason::ALL[at] as usize == at + 1);
        at += 1;
    }
};

#[cfg(test)]
mod reference;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for reason in DropReason::ALL {
            assert_eq!(DropReason::from_number(*reason as u8), Some(*reason));
        }
        assert_eq!(DropReason::from_number(0), None);
    }
}
