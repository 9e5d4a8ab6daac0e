//! `group show`, `stats usage`.

use std::fmt::Write as _;

use super::{Cell, Column, Columns, Rated};
use crate::api::types::{GroupRow, UsageRow};

impl Columns for GroupRow {
    fn columns() -> Vec<Column> {
        vec![Column::text("GROUP"), Column::text("PREFIXES")]
    }

    fn cells(&self) -> Vec<Cell> {
        let prefixes: Vec<String> = self.prefixes.iter().map(ToString::to_string).collect();
        vec![Cell::new(&self.name), Cell::new(&prefixes.join(","))]
    }
}

impl Columns for UsageRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("SOURCE"),
            Column::text("DESTINATION"),
            Column::number("CONNECTIONS"),
            Column::number("SENT-PACKETS"),
            Column::number("SENT-BYTES"),
            Column::number("RECEIVED-PACKETS"),
            Column::number("RECEIVED-BYTES"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::new(&self.source),
            Cell::new(&self.destination),
            Cell::new(&self.connections),
            Cell::new(&self.sent.packets),
            Cell::bytes(self.sent.bytes),
            Cell::new(&self.received.packets),
            Cell::bytes(self.received.bytes),
        ]
    }
}

impl Rated for UsageRow {
    const COUNTERS: &'static [(&'static str, bool)] = &[
        ("CONNECTIONS", false),
        ("SENT-PACKETS", false),
        ("SENT-BYTES", true),
        ("RECEIVED-PACKETS", false),
        ("RECEIVED-BYTES", true),
    ];

    fn key(&self) -> String {
        format!("{} {}", self.source, self.destination)
    }

    fn counters(&self) -> Vec<u64> {
        let Self { connections, sent, received, .. } = self;
        vec![*connections, sent.packets, sent.bytes, received.packets, received.bytes]
    }
}

/// Rows as comma separated values (RFC 4180, with line feeds), a line each. Names of groups need no quotes.
pub fn comma_separated(rows: &[UsageRow], header: bool) -> String {
    let mut text = String::new();
    if header {
        text.push_str(
            "source,destination,connections,sent_packets,sent_bytes,received_packets,received_bytes,since\n",
        );
    }
    for UsageRow { source, destination, connections, sent, received, since } in rows {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{source},{destination},{connections},{},{},{},{},{}",
            sent.packets,
            sent.bytes,
            received.packets,
            received.bytes,
            since.as_deref().unwrap_or_default()
        );
    }
    text
}
