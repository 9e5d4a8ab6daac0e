//! `stats drops`, `stats maps`.

use super::{Cell, Column, Columns, Rated, Tone, human};
use crate::api::types::{DropRow, MapRow};

impl Columns for DropRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("REASON"),
            Column::number("PACKETS"),
            Column::number("BYTES"),
            Column::text("CLASS"),
            Column::text("MEANING"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::new(&self.reason),
            Cell::new(&self.count.packets),
            Cell::bytes(self.count.bytes),
            Cell::new(&self.class),
            Cell::new(&self.help),
        ]
    }

    fn tone(&self) -> Tone {
        match (self.count.packets, self.class.as_str()) {
            (0, _) => Tone::Faint,
            (_, "internal") => Tone::Bad,
            (_, "resource" | "limit" | "network") => Tone::Notice,
            _ => Tone::Plain,
        }
    }
}

impl Rated for DropRow {
    const COUNTERS: &'static [(&'static str, bool)] = &[("PACKETS", false), ("BYTES", true)];

    fn key(&self) -> String {
        self.reason.clone()
    }

    fn counters(&self) -> Vec<u64> {
        vec![self.count.packets, self.count.bytes]
    }
}

impl Columns for MapRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("MAP"),
            Column::number("ENTRIES"),
            Column::number("CAPACITY"),
            Column::number("USED"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::new(&self.name),
            Cell::new(&self.entries),
            Cell::new(&self.capacity),
            Cell::new(&human::percent(self.entries, self.capacity)),
        ]
    }

    fn tone(&self) -> Tone {
        // 85 % is where the alert on map pressure begins.
        if self.capacity > 0 && self.entries.saturating_mul(100) / self.capacity >= 85 {
            Tone::Notice
        } else {
            Tone::Plain
        }
    }
}

impl Rated for MapRow {
    const COUNTERS: &'static [(&'static str, bool)] = &[];

    fn key(&self) -> String {
        self.name.clone()
    }

    fn counters(&self) -> Vec<u64> {
        Vec::new()
    }
}
