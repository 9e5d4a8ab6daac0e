//! The data plane as the controller sees it.
//!
//! [`Dataplane`] is the writing side, owned by the one task that owns the desired state. [`Observe`] is the
//! reading side: cheap to share, safe to use from any task, never in the way of the writer.
//! `bpf` is the real one; [`memory`] keeps everything in this process, so that the control plane can be
//! tested without root.

pub mod bpf;
mod connected;
pub mod maglev;
pub mod memory;
pub mod session;
pub mod trial;
pub mod tunnel;
pub mod watch;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use gateway_common::{
    DropReason, Verdict,
    counter::{Counter, SessionClass, SessionCounters},
    pool::PoolCounters,
    source::LimitCounters,
    usage::Usage,
};

use jiff::Timestamp;

use crate::model::{Role, RouteKey, Snapshot};

pub use connected::Connected;
pub use session::{Glance, Order, SessionRow};
pub use trial::{Trial, Tried};

/// How often [`Sweeper::sweep`] wants to be called, and the length of its turns.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(50);

/// A data plane that can be made to follow the desired state.
pub trait Dataplane: Send {
    /// Makes `to` the state in force, for the next packet, or changes nothing.
    ///
    /// `from` is what was applied before; `None` on the first call after a start, when what is pinned in the
    /// kernel (possibly a live gateway with sessions) has to be brought to `to` without a gap.
    ///
    /// # Errors
    /// Names what could not be done; the previous state is still in force.
    fn apply(&mut self, from: Option<&Snapshot>, to: &Snapshot) -> anyhow::Result<()>;

    /// Tells the data plane about addresses and devices of the host. Called at the start, before the first
    /// [`Dataplane::apply`], and whenever netlink reports a change. Moves the generation.
    fn host_changed(&mut self, host: &Host) -> anyhow::Result<()>;

    /// Tells the data plane which hosts of proxies are up, by name of the proxy and address of the host. In force for
    /// the next packet. What a host was last said to be holds where it is not named, also under the next daemon; of a
    /// host that nothing was ever said about it is assumed that it is up.
    fn health_changed(&mut self, up: &BTreeMap<(String, IpAddr), bool>) -> anyhow::Result<()>;

    /// Removes programs, links, maps and pins.
    fn remove(&mut self) -> anyhow::Result<()>;

    /// The side that removes sessions.
    fn sweeper(&self) -> Arc<dyn Sweeper>;

    /// The reading side.
    fn observe(&self) -> Arc<dyn Observe>;
}

/// Removes sessions that are idle, closed or cut.
pub trait Sweeper: Send + Sync {
    /// One slice of it, some milliseconds. `turn`: a turn begins, because [`SWEEP_INTERVAL`] has passed since the last
    /// one did. Between two visits of a session lies a turn, so that no packet still reads what is deleted.
    ///
    /// What it met says how soon, and how urgently, the next one should follow.
    fn sweep(&self, turn: bool) -> anyhow::Result<Swept>;

    /// Has the next slices compare what is counted with what there is, see [`Observe::drift`], and add up what sessions
    /// have carried, see [`Observe::usage`], although it is not due.
    fn recount(&self);
}

/// What a slice of the sweep met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// There is much to remove: the next slice should follow at once.
    pub busy: bool,
    /// New flows find no room.
    pub urgent: bool,
}

/// What the host's network stack says, as far as the data plane needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Devices by name.
    pub links: BTreeMap<String, Link>,
}

impl Host {
    /// The addresses that are the host's, with their prefix lengths. Those of a device that is down are nobody's:
    /// the host would forward what is for them.
    pub fn addresses(&self) -> impl Iterator<Item = &ipnet::IpNet> {
        self.links.values().filter(|link| link.up).flat_map(|link| &link.addresses)
    }

    /// The device whose subnet holds `address`, the longest prefix first.
    pub fn link_of(&self, address: IpAddr) -> Option<(&str, &Link)> {
        let subnets = self
            .links
            .iter()
            .flat_map(|(name, link)| link.addresses.iter().map(move |own| (own, name, link)));
        subnets
            .filter(|(own, ..)| own.contains(&address) && own.addr() != address)
            .max_by_key(|(own, ..)| own.prefix_len())
            .map(|(_, name, link)| (name.as_str(), link))
    }
}

/// A device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Ifindex.
    pub index: u32,
    /// MAC address; zero for devices without one.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is one end of a veth pair. There, `XDP_TX` does not wake the other end
    /// (`veth_xdp_flush` in drivers/net/veth.c), and the data plane redirects instead.
    pub veth: bool,
    /// Addresses with their prefix lengths.
    pub addresses: Vec<ipnet::IpNet>,
}

/// Reads counters and sessions. Every call reads the live state.
pub trait Observe: Send + Sync {
    /// Attached interfaces.
    fn interfaces(&self) -> anyhow::Result<Vec<AttachedInterface>>;
    /// Packets by way in, way out and verdict; only non-zero entries.
    fn traffic(&self) -> anyhow::Result<Vec<Traffic>>;
    /// Drops, every reason present.
    fn drops(&self) -> anyhow::Result<Vec<(DropReason, Counter)>>;
    /// Packets by table and route. Routes beyond the counters available share none and are absent.
    fn routes(&self) -> anyhow::Result<BTreeMap<(String, RouteKey), Counter>>;
    /// Packets by table and kind of target ([`crate::model::Target::kind`]); monotonic, deleted routes included.
    fn tables(&self) -> anyhow::Result<BTreeMap<(String, &'static str), Counter>>;
    /// Pool addresses.
    fn pools(&self) -> anyhow::Result<Vec<PoolAddressStats>>;
    /// Hosts of proxies.
    fn proxies(&self) -> anyhow::Result<Vec<ProxyHostStats>>;
    /// Destinations that something was opened towards lately.
    fn destinations(&self) -> anyhow::Result<Vec<DestinationStats>>;
    /// How full the fullest destinations of each pool are, at most [`FULLEST`] of each, the fullest first: sessions that
    /// there are, of those that there may be.
    fn fullest(&self) -> anyhow::Result<BTreeMap<String, Vec<f64>>>;
    /// Limits of sources.
    fn limits(&self) -> anyhow::Result<Vec<LimitStats>>;
    /// What the sessions between two groups have carried, of those where it is anything; as of the last walk through the
    /// session tables, which is a second old, or older where there are many sessions. It never goes back, but with a
    /// group that is removed.
    fn usage(&self) -> anyhow::Result<Arc<[UsageStats]>>;
    /// Session life by protocol class, every class present.
    fn session_counters(&self) -> anyhow::Result<Vec<(SessionClass, SessionCounters)>>;
    /// Sessions that `filter` accepts, at most `limit` of them (0: all). It is shown all others, too.
    fn sessions(
        &self,
        filter: &mut dyn FnMut(&dyn Glance) -> bool,
        limit: usize,
    ) -> anyhow::Result<Vec<SessionRow>>;
    /// The first `limit` sessions by `order` of those that `filter` accepts, and how many it accepts. It may be asked more
    /// than once about a session.
    fn largest(
        &self,
        filter: &mut dyn FnMut(&dyn Glance) -> bool,
        order: Order,
        limit: usize,
    ) -> anyhow::Result<(Vec<SessionRow>, u64)> {
        session::largest(self, filter, order, limit)
    }
    /// The session that a packet of protocol `proto` from `source` to `destination` belongs to, whichever side it is from.
    fn session(
        &self,
        proto: u8,
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
    ) -> anyhow::Result<Option<SessionRow>>;
    /// Where the host's routes have `to` now, and the MAC address of the next hop, if it is known; `None`: nowhere.
    ///
    /// # Errors
    /// The host does not say.
    fn next_hop(&self, to: IpAddr) -> anyhow::Result<Option<NextHopRow>>;
    /// What the programs would do with a frame. No packet notices, and nothing is written that any of them reads.
    ///
    /// # Errors
    /// The kernel refuses it: there is no such interface, or the frame is too short.
    fn try_packet(&self, trial: &Trial<'_>) -> anyhow::Result<Tried>;
    /// How full the maps are.
    fn maps(&self) -> anyhow::Result<Vec<MapStats>>;
    /// By how much counts differ from what there is.
    fn drift(&self) -> anyhow::Result<Drift>;
    /// Events that were lost because the ring buffer was full.
    fn events_lost(&self) -> anyhow::Result<u64>;
    /// Records of sessions that were lost because their ring buffer was full.
    fn records_lost(&self) -> anyhow::Result<u64>;
}

/// A way of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHopRow {
    /// Ifindex of the device.
    pub ifindex: u32,
    /// Next hop: a router, or the destination itself.
    pub router: IpAddr,
    /// MAC address of the next hop, if it is known.
    pub mac: Option<[u8; 6]>,
}

/// Takes out what the packet path has recorded of sessions.
pub trait Records: Send {
    /// Adds records to `into`, as they were written, at most `most` of them, and does not wait for any. Returns how many
    /// there were.
    fn read(&mut self, most: usize, into: &mut Vec<Logged>) -> anyhow::Result<usize>;
}

/// What was recorded of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// What has happened.
    pub event: LogEvent,
    /// When.
    pub time: Timestamp,
    /// When the session began, to about 130 ms; or since when packets were dropped.
    pub start: Timestamp,
    /// IP protocol number.
    pub proto: u8,
    /// Inside address, and port or query identifier.
    pub source: (IpAddr, u16),
    /// What they are to the outside; `None` where nothing is translated.
    pub translated: Option<(IpAddr, u16)>,
    /// Server address and port; port 0 for ICMP.
    pub destination: (IpAddr, u16),
    /// What decided, in the words of when the session began; `None` where they are not known.
    pub names: Option<Arc<LogNames>>,
}

/// What has happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// It has opened.
    Open,
    /// It was removed.
    Close {
        /// Why, see [`gateway_common::record::Ending`].
        reason: &'static str,
        /// IP packets from the inside, and their bytes.
        sent: Counter,
        /// The same from the outside.
        received: Counter,
    },
    /// Packets of it were dropped: there is none.
    Deny {
        /// Why.
        reason: DropReason,
        /// How many. Of more than one, the source port is not known.
        sent: Counter,
    },
}

/// What decided a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogNames {
    /// Table.
    pub table: String,
    /// Route; `None` where too many routes are recorded to tell them apart.
    pub route: Option<String>,
    /// Target.
    pub target: String,
}

/// An interface with a program on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedInterface {
    /// Device name.
    pub name: String,
    /// Ifindex.
    pub index: u32,
    /// What it faces.
    pub role: Role,
    /// `native` or `generic`; `None` while the device is missing or the program is not attached.
    pub mode: Option<&'static str>,
    /// Whether native programs of other interfaces can redirect to it; `None` where the kernel does not tell.
    pub takes_redirects: Option<bool>,
    /// Whether the host forwards nothing that arrives there, because the program is missing.
    pub shut: bool,
}

/// Where packets came in that arrived through a device which the gateway does not know.
pub const UNKNOWN_INTERFACE: &str = "unknown";

/// One cell of the traffic matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Interface the packets came in through, or [`UNKNOWN_INTERFACE`].
    pub ingress: String,
    /// Interface they left through, if they did.
    pub egress: Option<String>,
    /// What became of them.
    pub verdict: Verdict,
    /// How many.
    pub counter: Counter,
}

/// One address of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolAddressStats {
    /// Pool.
    pub pool: String,
    /// Address.
    pub address: IpAddr,
    /// Ports the pool may use on it.
    pub ports: u32,
    /// Whether it takes no new sessions.
    pub drained: bool,
    /// Counters.
    pub counters: PoolCounters,
}

/// One host of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHostStats {
    /// Proxy.
    pub proxy: String,
    /// Address of the host.
    pub address: IpAddr,
    /// Whether the data plane takes it to be up.
    pub up: bool,
    /// Sessions that go through it.
    pub flows: u64,
}

/// What an address of a pool has opened towards a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationStats {
    /// Pool.
    pub pool: String,
    /// Address of the pool.
    pub address: IpAddr,
    /// Server address.
    pub destination: IpAddr,
    /// Server port; 0 for ICMP.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Sessions there are, each with a port of the address.
    pub sessions: u32,
    /// Sessions there may be: as many as the address has ports, or as the limit says.
    pub room: u32,
    /// Connections that may be opened at once, right now; `None`: any number.
    pub tokens: Option<u32>,
    /// Connections admitted since something was first opened towards it, after a time without any.
    pub admitted: u64,
    /// Connections refused because of the rate.
    pub over_rate: u64,
    /// Connections refused because there were too many at a time.
    pub over_concurrent: u64,
}

/// Destinations of a pool that [`Observe::fullest`] tells of.
pub const FULLEST: usize = 10;

/// Keeps `ratio` in `fullest`, which is in order, if it is one of the [`FULLEST`] largest.
fn keep_fullest(fullest: &mut Vec<f64>, ratio: f64) {
    let at = fullest.partition_point(|larger| *larger >= ratio);
    if at < FULLEST {
        fullest.insert(at, ratio);
        fullest.truncate(FULLEST);
    }
}

/// What a limit of sources has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitStats {
    /// Name.
    pub name: String,
    /// Buckets that are in use: clients, or 1.
    pub sources: u64,
    /// Sessions counted in them.
    pub sessions: u64,
    /// Sessions counted in the one that has most.
    pub most: u64,
    /// Connections admitted and refused.
    pub counters: LimitCounters,
}

/// What the sessions between two groups have carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageStats {
    /// Group of the inside hosts.
    pub source: Arc<str>,
    /// Group of the servers.
    pub destination: Arc<str>,
    /// How much.
    pub usage: Usage,
}

/// By how much what is counted differs from what the session tables have, where that is known for certain: 0, or there is
/// an error in the data plane. Looked at once a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Sessions that buckets of destinations have too many or too few.
    pub destinations: u64,
    /// As many of buckets of sources.
    pub sources: u64,
    /// Ports that nobody has and nobody gets.
    pub ports: u64,
    /// How often it was looked at.
    pub rounds: u64,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapStats {
    /// Name.
    pub name: String,
    /// Elements in use, where that can be told.
    pub entries: u64,
    /// Elements it can hold.
    pub capacity: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_are_kept_in_order() {
        let mut fullest = Vec::new();
        for number in 0..25_u32 {
            keep_fullest(&mut fullest, f64::from(number * 7 % 25) / 25.0);
        }
        let expected: Vec<f64> = (0..10_u32).map(|rank| f64::from(24 - rank) / 25.0).collect();
        assert_eq!(fullest, expected);
    }
}
