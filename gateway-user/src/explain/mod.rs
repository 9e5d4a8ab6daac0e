//! What becomes of a packet, and why: the checklist of the packet path, walked on paper.
//!
//! The walk knows the policy, and what it is told of the host and of what there is at present. It is made of the state
//! that the operator wrote and not of the kernel's tables, so that it is an opinion of its own beside that of the
//! programs ([`crate::dataplane::Observe::try_packet`]). Where only the programs can say how it goes on, it says that.

mod frame;
pub mod pcap;
mod walk;

use std::{fmt, net::IpAddr};

use gateway_common::{DropReason, Verdict};

use crate::{
    dataplane::{Connected, DestinationStats, Host, LimitStats, ProxyHostStats, SessionRow},
    model::{Proto, Snapshot},
};

pub use frame::frame;
pub use walk::walk;

/// The packet that is asked about: the first one of its flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Source address.
    pub from: IpAddr,
    /// Source port; for ICMP, the identifier of the query.
    pub source_port: u16,
    /// Destination address, of the same family.
    pub to: IpAddr,
    /// Destination port; 0 for ICMP.
    pub port: u16,
    /// Protocol.
    pub proto: Proto,
    /// Interface it arrives on; `None`: the one that its source is behind.
    pub iif: Option<String>,
}

/// What the walk knows.
#[derive(Clone, Copy)]
pub struct World<'a> {
    /// The policy.
    pub state: &'a Snapshot,
    /// System routes.
    pub connected: &'a Connected,
    /// Devices and addresses of the host; `None`: nobody knows the host.
    pub host: Option<&'a Host>,
    /// The host's routes; `None`: they are taken to lead where they should.
    pub ways: Option<&'a dyn Ways>,
    /// Says where the host's routes lead, where there are no `ways`. Whether a neighbor is known is told, and decides nothing.
    pub told: Option<&'a Told<'a>>,
    /// What there is at present; `None`: a gateway that has just been started.
    pub present: Option<&'a Present>,
}

/// Where the host has an address, as [`Ways::way`]; an error: it does not say.
pub type Told<'a> = dyn Fn(IpAddr) -> anyhow::Result<Option<Way>> + 'a;

/// The host's routing table and neighbours.
pub trait Ways {
    /// The way to `address`, which is not one of the host's own.
    fn way(&self, address: IpAddr) -> Option<Way>;
    /// The way to a router on the link of `device`.
    fn hop(&self, device: &str, router: IpAddr) -> Way;
}

/// A way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Device.
    pub device: String,
    /// Next hop.
    pub router: IpAddr,
    /// MAC address of the next hop, if it is known.
    pub mac: Option<[u8; 6]>,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}, ", self.router, self.device)?;
        match self.mac {
            Some(mac) => f.write_str(&mac.map(|byte| format!("{byte:02x}")).join(":")),
            None => f.write_str("not resolved yet"),
        }
    }
}

/// What there is at present.
#[derive(Clone, Debug, Default)]
pub struct Present {
    /// The session that the packet belongs to.
    pub session: Option<SessionRow>,
    /// What pools have open.
    pub destinations: Vec<DestinationStats>,
    /// What limits of sources have admitted.
    pub limits: Vec<LimitStats>,
    /// Hosts of proxies.
    pub proxies: Vec<ProxyHostStats>,
}

/// A walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Interface that the packet arrives on, if it could be told.
    pub iif: Option<String>,
    /// What was looked at, in order.
    pub steps: Vec<Step>,
    /// Where it ends.
    pub end: End,
}

/// A step of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The stage of the packet path.
    pub stage: &'static str,
    /// What was found.
    pub found: String,
    /// What else is worth knowing, a line each.
    pub notes: Vec<String>,
}

/// Where a walk ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The packet goes on.
    Goes(Verdict),
    /// It is dropped.
    Drop(DropReason),
    /// Only the programs can tell; why.
    Open(String),
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, source_port, to, port, proto, .. } = self;
        match proto {
            Proto::Icmp => write!(f, "ICMP echo request {from} > {to}, identifier {source_port}"),
            Proto::Tcp | Proto::Udp => {
                let proto = if *proto == Proto::Tcp { "TCP SYN" } else { "UDP" };
                write!(f, "{proto} {} > {}", Port(*from, *source_port), Port(*to, *port))
            }
        }
    }
}

/// An address with a port.
struct Port(IpAddr, u16);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.0, self.1).fmt(f)
    }
}

#[cfg(test)]
mod tests;
