//! `version`.

use serde::Serialize;

use super::{Cell, Column, Columns};

/// A program and its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramVersion {
    /// `gwctl` or `gatewayd`.
    pub program: &'static str,
    /// Version.
    pub version: String,
    /// Version of the map layouts it was built for.
    pub abi: u32,
}

impl Columns for ProgramVersion {
    fn columns() -> Vec<Column> {
        vec![Column::text("PROGRAM"), Column::text("VERSION"), Column::number("ABI")]
    }

    fn cells(&self) -> Vec<Cell> {
        vec![Cell::new(&self.program), Cell::new(&self.version), Cell::new(&self.abi)]
    }
}
