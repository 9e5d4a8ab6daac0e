//! `session show`, `session count`, `session whohad`.

use std::{fmt, net::IpAddr, time::Duration};

use super::{Cell, Column, Columns, Rated, human};
use crate::api::types::{Endpoint, SessionCount, SessionRow, WhohadRow};

impl Columns for SessionRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("PROTO"),
            Column::text("SOURCE"),
            Column::text("TRANSLATED"),
            Column::text("DESTINATION"),
            Column::text("POOL"),
            Column::text("PROXY"),
            Column::text("ROUTE"),
            Column::text("STATE"),
            Column::number("AGE"),
            Column::number("IDLE"),
            Column::number("SENT"),
            Column::number("RECEIVED"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        let route = self.table.as_ref().zip(self.route).map(|(table, route)| format!("{table} {route}"));
        vec![
            Cell::new(&self.proto),
            Cell::new(&self.source),
            Cell::new(&self.translated),
            Cell::new(&self.destination),
            Cell::of(self.pool.as_ref()),
            Cell::of(self.proxy.as_ref().map(|proxy| format!("{} {}", proxy.name, proxy.host)).as_ref()),
            Cell::of(route.as_ref()),
            Cell::new(&self.state),
            Cell::new(&human::seconds(self.age)),
            Cell::new(&human::seconds(self.idle)),
            Cell::bytes(self.sent.bytes),
            Cell::bytes(self.received.bytes),
        ]
    }
}

impl Rated for SessionRow {
    const COUNTERS: &'static [(&'static str, bool)] = &[("SENT", true), ("RECEIVED", true)];

    fn key(&self) -> String {
        let Self { proto, source, translated, destination, .. } = self;
        format!("{proto} {source} {translated} {destination}")
    }

    fn counters(&self) -> Vec<u64> {
        vec![self.sent.bytes, self.received.bytes]
    }

    fn is_fresh(&self, elapsed: Duration) -> bool {
        self.age <= elapsed.as_secs_f64()
    }
}

impl Columns for WhohadRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("PROTO"),
            Column::text("SOURCE"),
            Column::text("TRANSLATED"),
            Column::text("DESTINATION"),
            Column::text("START"),
            Column::text("END"),
            Column::text("TABLE"),
            Column::text("ROUTE"),
            Column::text("TARGET"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        let end = self.end.clone().or_else(|| self.live.then(|| "live".to_owned()));
        vec![
            Cell::new(&self.proto),
            Cell::new(&self.source),
            Cell::new(&self.translated),
            Cell::new(&self.destination),
            Cell::new(&self.start),
            Cell::of(end.as_ref()),
            Cell::of(self.table.as_ref()),
            Cell::of(self.route.as_ref()),
            Cell::of(self.target.as_ref()),
        ]
    }
}

impl Columns for SessionCount {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("POOL"),
            Column::text("TABLE"),
            Column::text("ROUTE"),
            Column::text("PROTO"),
            Column::text("SOURCE"),
            Column::text("DESTINATION"),
            Column::number("SESSIONS"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::of(self.pool.as_ref()),
            Cell::of(self.table.as_ref()),
            Cell::of(self.route.as_ref()),
            Cell::of(self.proto.as_ref()),
            Cell::of(self.source.as_ref()),
            Cell::of(self.destination.as_ref()),
            Cell::new(&self.count),
        ]
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:{}", self.port),
            IpAddr::V6(address) => write!(f, "[{address}]:{}", self.port),
        }
    }
}
