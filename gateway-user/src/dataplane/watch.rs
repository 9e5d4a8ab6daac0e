//! Packets and sessions that somebody wants to see, as long as somebody does.

use std::{net::IpAddr, sync::Arc};

use gateway_common::{
    DropReason, Verdict,
    counter::Counter,
    parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP},
    record::Ending,
    watch::MAX_WATCHERS,
};
use ipnet::IpNet;
use jiff::Timestamp;

use crate::model::{Proto, RouteKey};

/// Which packets and sessions somebody wants to see. All but verdict and reason is asked of a packet as it has arrived, and
/// of a session as its client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// From this prefix.
    pub from: Option<IpNet>,
    /// To this prefix.
    pub to: Option<IpNet>,
    /// Of this protocol.
    pub proto: Option<Proto>,
    /// To this port.
    pub dport: Option<u16>,
    /// Ifindex of the interface that they came in through, or that the client of a session is behind.
    pub ingress: Option<u32>,
    /// Sessions that open.
    pub openings: bool,
    /// Sessions that end so.
    pub endings: Vec<Ending>,
    /// Packets with these verdicts.
    pub verdicts: Vec<Verdict>,
    /// Of those that were dropped, with these reasons.
    pub reasons: Vec<DropReason>,
    /// Bytes of a packet that are wanted, at most [`gateway_common::watch::MAX_SNAPLEN`].
    pub snaplen: u32,
    /// Packets that each CPU tells of in a second, and sessions that are told in a second.
    pub rate: u32,
}

impl Filter {
    /// Whether any packets are wanted.
    pub fn packets(&self) -> bool {
        !self.verdicts.is_empty()
    }

    /// Whether any sessions are wanted.
    pub fn sessions(&self) -> bool {
        self.openings || !self.endings.is_empty()
    }

    /// Whether a session of this protocol, from `source` to `destination`, is wanted that has opened (`None`) or ended, by all
    /// but [`Filter::ingress`].
    pub fn wants(
        &self,
        ending: Option<Ending>,
        proto: u8,
        source: IpAddr,
        destination: (IpAddr, u16),
    ) -> bool {
        let is_event = match ending {
            None => self.openings,
            Some(ending) => self.endings.contains(&ending),
        };
        let within = |prefix: Option<IpNet>, address| prefix.is_none_or(|prefix| prefix.contains(&address));
        is_event
            && within(self.from, source)
            && within(self.to, destination.0)
            && self.proto.is_none_or(|wanted| match wanted {
                Proto::Tcp => proto == PROTO_TCP,
                Proto::Udp => proto == PROTO_UDP,
                Proto::Icmp => matches!(proto, PROTO_ICMP | PROTO_ICMPV6),
            })
            && self.dport.is_none_or(|port| matches!(proto, PROTO_TCP | PROTO_UDP) && destination.1 == port)
    }
}

/// What is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// A packet.
    Packet(Arc<Seen>),
    /// A session that has opened or ended.
    Session(Arc<Life>),
}

/// A session that has opened or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// When it did.
    pub time: Timestamp,
    /// When it began.
    pub start: Timestamp,
    /// How it ended; `None`: it has opened.
    pub ending: Option<Ending>,
    /// IP protocol.
    pub proto: u8,
    /// The inside host; of ICMP queries, the port is their identifier.
    pub source: (IpAddr, u16),
    /// What it is to the outside, where anything is translated.
    pub translated: Option<(IpAddr, u16)>,
    /// The server.
    pub destination: (IpAddr, u16),
    /// Interface that the inside host is behind.
    pub ingress: Option<String>,
    /// Pool of the translated address, or proxy that its packets are sent to: as routes write it.
    pub target: Option<String>,
    /// Table of the route that allows it.
    pub table: Option<String>,
    /// That route, if it is still there and is counted by itself.
    pub route: Option<RouteKey>,
    /// Packets and bytes from the inside.
    pub sent: Counter,
    /// Packets and bytes from the outside.
    pub received: Counter,
}

/// A packet, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When it arrived.
    pub time: Timestamp,
    /// Interface that it came in through.
    pub ingress: String,
    /// Interface that it left through, if it did.
    pub egress: Option<String>,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was dropped, if it was.
    pub reason: Option<DropReason>,
    /// Length of the frame, bytes.
    pub length: u32,
    /// The beginning of the frame as it arrived.
    pub bytes: Vec<u8>,
}

/// So many may watch at a time.
pub const MOST: usize = MAX_WATCHERS as usize;

/// The packet path's side of watching. There is to be one reader.
pub trait Watchers: Send {
    /// Says who watches what. Nobody does for longer than some seconds after it was last said.
    ///
    /// # Errors
    /// The maps cannot be written.
    fn set(&mut self, filters: &[Option<Filter>; MOST]) -> anyhow::Result<()>;

    /// Adds what somebody wants to see to `into`, at most `most` of it, and does not wait for any. Bit n says that watcher
    /// n is to see it. Returns how many there were of the kind that there was most of: with `most`, there may be more.
    ///
    /// # Errors
    /// The maps cannot be read.
    fn read(&mut self, most: usize, into: &mut Vec<(u32, Sight)>) -> anyhow::Result<usize>;

    /// What each watcher should have seen and has not, of all who have had its number.
    ///
    /// # Errors
    /// The maps cannot be read.
    fn lost(&self) -> anyhow::Result<[u64; MOST]>;
}
