//! Sessions as readers of the data plane see them.

use std::{cmp::Ordering, net::IpAddr, time::Duration};

use gateway_common::counter::Counter;

use super::Observe;
use crate::model::RouteKey;

/// A session as users see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRow {
    /// IP protocol number.
    pub proto: u8,
    /// Inside address.
    pub source: IpAddr,
    /// Inside port, or query identifier.
    pub source_port: u16,
    /// Pool address.
    pub translated: IpAddr,
    /// Pool port, or query identifier.
    pub translated_port: u16,
    /// Server address.
    pub destination: IpAddr,
    /// Server port; 0 for ICMP.
    pub destination_port: u16,
    /// Pool.
    pub pool: Option<String>,
    /// Proxy, and its host that the packets from inside go to.
    pub proxy: Option<(String, IpAddr)>,
    /// Table and route that allowed it, if the route still exists.
    pub route: Option<(String, RouteKey)>,
    /// `opening`, `established`, `closing`, `closed` for TCP; `active` or `replied` otherwise.
    pub state: &'static str,
    /// Time since it began.
    pub age: Duration,
    /// Time since its last packet.
    pub idle: Duration,
    /// Packets and bytes from the inside.
    pub sent: Counter,
    /// Packets and bytes from the outside.
    pub received: Counter,
}

/// A session that a walk through the table has come to. What is not asked for is not looked up: there may be a million.
pub trait Glance {
    /// See [`SessionRow::proto`].
    fn proto(&self) -> u8;
    /// See [`SessionRow::source`].
    fn source(&self) -> (IpAddr, u16);
    /// See [`SessionRow::translated`].
    fn translated(&self) -> (IpAddr, u16);
    /// See [`SessionRow::destination`].
    fn destination(&self) -> (IpAddr, u16);
    /// See [`SessionRow::pool`].
    fn pool(&self) -> Option<String>;
    /// Name of [`SessionRow::proxy`].
    fn proxy(&self) -> Option<String>;
    /// See [`SessionRow::route`].
    fn route(&self) -> Option<(String, RouteKey)>;
    /// See [`SessionRow::state`].
    fn state(&self) -> &'static str;
    /// All of it.
    fn row(&self) -> SessionRow;
}

impl Glance for SessionRow {
    fn proto(&self) -> u8 {
        self.proto
    }

    fn source(&self) -> (IpAddr, u16) {
        (self.source, self.source_port)
    }

    fn translated(&self) -> (IpAddr, u16) {
        (self.translated, self.translated_port)
    }

    fn destination(&self) -> (IpAddr, u16) {
        (self.destination, self.destination_port)
    }

    fn pool(&self) -> Option<String> {
        self.pool.clone()
    }

    fn proxy(&self) -> Option<String> {
        self.proxy.as_ref().map(|(name, _)| name.clone())
    }

    fn route(&self) -> Option<(String, RouteKey)> {
        self.route.clone()
    }

    fn state(&self) -> &'static str {
        self.state
    }

    fn row(&self) -> SessionRow {
        self.clone()
    }
}

/// Which sessions come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Those with most bytes, of both directions.
    Bytes,
    /// Those with most packets, of both directions.
    Packets,
    /// The oldest.
    Age,
}

impl Order {
    /// What is compared: bytes, packets, or nanoseconds.
    pub fn weight(self, row: &SessionRow) -> u64 {
        match self {
            Self::Bytes => row.sent.bytes + row.received.bytes,
            Self::Packets => row.sent.packets + row.received.packets,
            Self::Age => u64::try_from(row.age.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// The one that comes first is less. Equals are in a fixed order, so that a screen that is drawn again does not jump.
    pub fn compare(self, a: &SessionRow, b: &SessionRow) -> Ordering {
        let tuple = |row: &SessionRow| {
            (row.proto, row.source, row.source_port, row.destination, row.destination_port)
        };
        self.weight(b).cmp(&self.weight(a)).then_with(|| tuple(a).cmp(&tuple(b)))
    }

    /// Cuts `rows` to the first `limit`, in order.
    pub fn cut(self, rows: &mut Vec<SessionRow>, limit: usize) {
        rows.sort_by(|a, b| self.compare(a, b));
        rows.truncate(limit);
    }
}

/// [`Observe::largest`] by a walk that looks at all of each session, in bounded memory.
pub(super) fn largest(
    observe: &(impl Observe + ?Sized),
    filter: &mut dyn FnMut(&dyn Glance) -> bool,
    order: Order,
    limit: usize,
) -> anyhow::Result<(Vec<SessionRow>, u64)> {
    let (mut rows, mut total) = (Vec::new(), 0);
    let mut offer = |glance: &dyn Glance| {
        if filter(glance) {
            total += 1;
            rows.push(glance.row());
            // Cutting back at twice the limit costs a constant time a row.
            if rows.len() >= 2 * limit {
                rows.select_nth_unstable_by(limit - 1, |a, b| order.compare(a, b));
                rows.truncate(limit);
            }
        }
        // Kept here, not by the data plane.
        false
    };
    observe.sessions(&mut offer, 0)?;
    order.cut(&mut rows, limit);
    Ok((rows, total))
}
