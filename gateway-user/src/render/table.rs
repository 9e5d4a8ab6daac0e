//! `table show`.

use std::fmt;

use super::{Cell, Column, Columns};
use crate::api::types::{BindingRow, TableRow};

impl Columns for TableRow {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("TABLE"),
            Column::text("KIND"),
            Column::number("ROUTES"),
            Column::number("IPV4"),
            Column::number("IPV6"),
            Column::number("PACKETS"),
            Column::number("BYTES"),
            Column::text("BINDINGS"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        let bindings: Vec<String> = self.bindings.iter().map(ToString::to_string).collect();
        vec![
            Cell::new(&self.name),
            Cell::new(&self.kind),
            Cell::new(&self.routes),
            Cell::new(&self.routes_ipv4),
            Cell::new(&self.routes_ipv6),
            Cell::new(&self.packets),
            Cell::bytes(self.bytes),
            Cell::of((!bindings.is_empty()).then(|| bindings.join(", ")).as_ref()),
        ]
    }
}

impl fmt::Display for BindingRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {}", self.from)?;
        match &self.iif {
            Some(iif) => write!(f, " iif {iif}"),
            None => Ok(()),
        }
    }
}
