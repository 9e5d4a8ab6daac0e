//! `limit show`.

use super::{Cell, Column, Columns, Tone};
use crate::api::types::LimitRow;

impl Columns for LimitRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("LIMIT"),
            Column::text("FROM"),
            Column::text("PER"),
            Column::number("RATE"),
            Column::number("BURST"),
            Column::number("CONCURRENT"),
            Column::number("SOURCES"),
            Column::number("SESSIONS"),
            Column::number("MOST"),
            Column::number("ADMITTED"),
            Column::number("OVER-RATE"),
            Column::number("OVER-CONCURRENT"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        // 0 stands for none.
        let bound = |bound: u32, value: u32| Cell::of((bound != 0).then_some(&value));
        vec![
            Cell::new(&self.name),
            Cell::new(&self.from),
            Cell::new(&self.per),
            bound(self.rate, self.rate),
            bound(self.rate, self.burst),
            bound(self.concurrent, self.concurrent),
            Cell::new(&self.sources),
            Cell::new(&self.sessions),
            Cell::new(&self.most),
            Cell::new(&self.admitted),
            Cell::new(&self.over_rate),
            Cell::new(&self.over_concurrent),
        ]
    }

    fn tone(&self) -> Tone {
        if self.over_rate + self.over_concurrent == 0 { Tone::Plain } else { Tone::Notice }
    }
}
