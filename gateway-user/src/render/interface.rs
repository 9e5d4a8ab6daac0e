//! `interface show`, `stats interfaces`.

use super::{Cell, Column, Columns, Rated, Tone};
use crate::api::types::{InterfaceRow, InterfaceStats};

impl Columns for InterfaceRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("INTERFACE"),
            Column::number("INDEX"),
            Column::text("ROLE"),
            Column::text("MODE"),
            Column::text("ATTACHED"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        let attached = match (&self.attached, self.index) {
            (Some(attached), _) => attached.as_str(),
            (None, Some(_)) => "no",
            (None, None) => "no such device",
        };
        vec![
            Cell::new(&self.name),
            Cell::of(self.index.as_ref()),
            Cell::new(&self.role),
            Cell::new(&self.mode),
            Cell::new(attached),
        ]
    }

    fn tone(&self) -> Tone {
        if self.attached.is_some() { Tone::Plain } else { Tone::Bad }
    }
}

impl Columns for InterfaceStats {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("INTERFACE"),
            Column::number("IN-PACKETS"),
            Column::number("IN-BYTES"),
            Column::number("OUT-PACKETS"),
            Column::number("OUT-BYTES"),
            Column::text("VERDICTS"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::new(&self.name),
            Cell::new(&self.received.packets),
            Cell::bytes(self.received.bytes),
            Cell::new(&self.sent.packets),
            Cell::bytes(self.sent.bytes),
            Cell::of(verdicts(self).as_ref()),
        ]
    }
}

impl Rated for InterfaceStats {
    const COUNTERS: &'static [(&'static str, bool)] =
        &[("IN-PACKETS", false), ("IN-BYTES", true), ("OUT-PACKETS", false), ("OUT-BYTES", true)];

    fn key(&self) -> String {
        self.name.clone()
    }

    fn counters(&self) -> Vec<u64> {
        vec![self.received.packets, self.received.bytes, self.sent.packets, self.sent.bytes]
    }
}

/// Packets by direction and verdict: `in snat 10 drop 1, out reply 9`.
fn verdicts(row: &InterfaceStats) -> Option<String> {
    let mut directions: Vec<(&str, String)> = Vec::new();
    for verdict in &row.verdicts {
        let item = format!(" {} {}", verdict.verdict, verdict.count.packets);
        match directions.iter_mut().find(|(direction, _)| *direction == verdict.direction) {
            Some((_, items)) => items.push_str(&item),
            None => directions.push((&verdict.direction, item)),
        }
    }
    let directions: Vec<String> =
        directions.into_iter().map(|(direction, items)| format!("{direction}{items}")).collect();
    (!directions.is_empty()).then(|| directions.join(", "))
}
