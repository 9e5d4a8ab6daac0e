//! `pool show`, `stats pools`, `stats destinations`.

use std::net::IpAddr;

use super::{Cell, Column, Columns, Rated, Tone, human};
use crate::api::types::{DestinationRow, PoolAddressRow, PoolRow};

impl Columns for PoolRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("POOL"),
            Column::text("ADDRESSES"),
            Column::text("PORTS"),
            Column::text("MAPPING"),
            Column::number("MSS"),
            Column::text("REFUSE"),
            Column::number("RATE"),
            Column::number("BURST"),
            Column::number("CONCURRENT"),
            Column::text("DRAINED"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        let list =
            |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        vec![
            Cell::new(&self.name),
            Cell::new(&list(&self.addresses)),
            Cell::new(&self.ports),
            Cell::new(&self.mapping),
            Cell::of(Some(&self.mss).filter(|mss| **mss != 0)),
            Cell::new(&self.refuse),
            limit(self.rate, self.rate),
            limit(self.rate, self.burst),
            limit(self.concurrent, self.concurrent),
            Cell::of(Some(&list(&self.drained)).filter(|list| !list.is_empty())),
        ]
    }
}

/// `value`, unless `limit` is 0, which stands for none.
fn limit(limit: u32, value: u32) -> Cell {
    Cell::of((limit != 0).then_some(&value))
}

impl Columns for PoolAddressRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("POOL"),
            Column::text("ADDRESS"),
            Column::text("STATE"),
            Column::number("PORTS"),
            Column::number("SESSIONS"),
            Column::number("ATTEMPTS"),
            Column::number("ESTABLISHED"),
            Column::number("NO-PORT"),
            Column::number("LIMITED"),
            Column::number("IDLE-TIMEOUTS"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::new(&self.pool),
            Cell::new(&self.address),
            Cell::new(if self.drained { "drained" } else { "active" }),
            Cell::new(&self.ports),
            Cell::new(&self.sessions),
            Cell::new(&self.connection_attempts),
            Cell::new(&self.connections_established),
            Cell::new(&self.port_allocation_errors),
            Cell::new(&(self.over_rate + self.over_concurrent)),
            Cell::new(&self.idle_timeouts),
        ]
    }

    fn tone(&self) -> Tone {
        let refused = self.port_allocation_errors + self.over_rate + self.over_concurrent;
        if refused == 0 { Tone::Plain } else { Tone::Notice }
    }
}

impl Rated for PoolAddressRow {
    const COUNTERS: &'static [(&'static str, bool)] =
        &[("ATTEMPTS", false), ("ESTABLISHED", false), ("NO-PORT", false), ("LIMITED", false)];

    fn key(&self) -> String {
        format!("{} {}", self.pool, self.address)
    }

    fn counters(&self) -> Vec<u64> {
        vec![
            self.connection_attempts,
            self.connections_established,
            self.port_allocation_errors,
            self.over_rate + self.over_concurrent,
        ]
    }
}

impl Columns for DestinationRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("PROTO"),
            Column::text("DESTINATION"),
            Column::text("POOL"),
            Column::text("ADDRESS"),
            Column::number("SESSIONS"),
            Column::number("FULL"),
            Column::number("LEFT"),
            Column::number("PER-SECOND"),
            Column::number("FULL-IN"),
            Column::number("TOKENS"),
            Column::number("ADMITTED"),
            Column::number("OVER-RATE"),
            Column::number("OVER-CONCURRENT"),
            Column::text("SOURCES"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        let exhausted_in = self.exhausted_in.and_then(|left| u32::try_from(left).ok());
        let sources = self.sources.iter().map(|share| format!("{}={}", share.address, share.sessions));
        let sources = sources.collect::<Vec<_>>().join(" ");
        vec![
            Cell::new(&self.proto),
            Cell::new(&self.destination),
            Cell::new(&self.pool),
            Cell::new(&self.address),
            Cell::new(&self.sessions),
            Cell::new(&human::percent(self.sessions, self.room)),
            Cell::new(&self.headroom),
            Cell::new(&self.connections_per_second),
            Cell::of(exhausted_in.map(|left| human::seconds(f64::from(left))).as_ref()),
            Cell::of(self.tokens.as_ref()),
            Cell::new(&self.admitted),
            Cell::new(&self.over_rate),
            Cell::new(&self.over_concurrent),
            Cell::of(Some(&sources).filter(|sources| !sources.is_empty())),
        ]
    }

    fn tone(&self) -> Tone {
        // Where the alert on destinations begins.
        if self.sessions * 100 >= self.room * 80 || self.tokens == Some(0) {
            Tone::Notice
        } else {
            Tone::Plain
        }
    }
}

impl Rated for DestinationRow {
    const COUNTERS: &'static [(&'static str, bool)] =
        &[("ADMITTED", false), ("OVER-RATE", false), ("OVER-CONCURRENT", false)];

    fn key(&self) -> String {
        format!("{} {} {}", self.proto, self.destination, self.address)
    }

    fn counters(&self) -> Vec<u64> {
        vec![self.admitted, self.over_rate, self.over_concurrent]
    }
}
