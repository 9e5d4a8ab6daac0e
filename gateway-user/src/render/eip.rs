//! `eip show`.

use super::{Cell, Column, Columns};
use crate::api::types::EipRow;

impl Columns for EipRow {
    fn columns() -> Vec<Column> {
        vec![Column::text("EIP"), Column::text("HOST")]
    }

    fn cells(&self) -> Vec<Cell> {
        vec![Cell::new(&self.address), Cell::new(&self.host)]
    }
}
