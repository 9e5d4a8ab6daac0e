//! `route show`, `route get`, `stats routes`.

use super::{Cell, Column, Columns, Grid, Rated};
use crate::api::types::{BindingRow, RouteMatch, RouteRow};

impl Columns for RouteRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("TABLE"),
            Column::text("PREFIX"),
            Column::text("PROTO"),
            Column::text("DPORT"),
            Column::text("VIA"),
            Column::text("ORIGIN"),
            Column::text("LOG"),
            Column::number("PACKETS"),
            Column::number("BYTES"),
            Column::text("COMMENT"),
            Column::text("WHY"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::new(&self.table),
            Cell::new(&self.prefix),
            Cell::of(self.proto.as_ref()),
            Cell::of(self.dport.as_ref()),
            Cell::new(&self.via),
            Cell::of(self.system.then_some("system")),
            Cell::of(self.log.then_some("log")),
            if self.shared_counter { Cell::new("shared") } else { Cell::of(self.packets.as_ref()) },
            self.bytes.map_or(Cell::EMPTY, Cell::bytes),
            Cell::of(self.comment.as_ref()),
            Cell::of(self.why.as_ref()),
        ]
    }
}

impl Rated for RouteRow {
    const COUNTERS: &'static [(&'static str, bool)] = &[("PACKETS", false), ("BYTES", true)];

    fn key(&self) -> String {
        format!("{} {} {:?} {:?}", self.table, self.prefix, self.proto, self.dport)
    }

    fn counters(&self) -> Vec<u64> {
        vec![self.packets.unwrap_or(0), self.bytes.unwrap_or(0)]
    }
}

/// The answer of `route get`: the route that decides, with the binding that led to its table, and those that do not.
pub fn ruling(matches: &[RouteMatch]) -> Grid {
    let mut lines = Vec::new();
    for RouteMatch { route, binding, others } in matches {
        lines.push(Line { route, binding: binding.as_ref() });
        lines.extend(others.iter().map(|route| Line { route, binding: None }));
    }
    Grid::new(&lines)
}

struct Line<'a> {
    route: &'a RouteRow,
    binding: Option<&'a BindingRow>,
}

impl Columns for Line<'_> {
    fn columns() -> Vec<Column> {
        let mut columns = RouteRow::columns();
        columns.push(Column::text("BINDING"));
        columns
    }

    fn cells(&self) -> Vec<Cell> {
        let mut cells = self.route.cells();
        cells.push(Cell::of(self.binding));
        cells
    }
}
