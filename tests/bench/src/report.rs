//! What is said about a figure: a table for people, JSON for machines.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::environment::Environment;

/// A figure, measured.
#[derive(Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    figure: &'static str,
    #[serde(skip)]
    title: String,
    /// Where it was taken.
    pub(crate) environment: Option<Environment>,
    #[serde(skip)]
    table: Table,
    /// Everything that was measured.
    values: Vec<Value>,
    targets: Vec<Target>,
}

/// What a figure should be.
#[derive(Serialize)]
struct Target {
    what: String,
    wanted: String,
    measured: f64,
    met: bool,
}

impl Report {
    /// An empty report; the first heading is of words, the others are of numbers.
    pub(crate) fn new(figure: &'static str, title: String, headings: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings.iter().copied());
        for (number, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if number > 0 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self {
            schema: "gateway.bench/v1",
            figure,
            title,
            environment: None,
            table,
            values: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// Adds a line of the table.
    pub(crate) fn line(&mut self, cells: &[String]) {
        self.table.add_row(cells);
    }

    /// Adds something that was measured.
    pub(crate) fn value(&mut self, value: &impl Serialize) -> Result<()> {
        self.values.push(serde_json::to_value(value)?);
        Ok(())
    }

    /// Compares something with the most it may be.
    pub(crate) fn at_most(&mut self, what: &str, measured: f64, limit: f64) {
        let (wanted, met) = (format!("at most {limit}"), measured <= limit);
        self.targets.push(Target { what: what.to_owned(), wanted, measured, met });
    }

    /// Compares something with the least it may be.
    pub(crate) fn at_least(&mut self, what: &str, measured: f64, limit: f64) {
        let (wanted, met) = (format!("at least {limit}"), measured >= limit);
        self.targets.push(Target { what: what.to_owned(), wanted, measured, met });
    }

    /// The targets that were missed, in words.
    pub(crate) fn missed(&self) -> impl Iterator<Item = String> {
        self.targets.iter().filter(|target| !target.met).map(ToString::to_string)
    }

    /// Writes the figure to `directory`.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        let path = directory.join(format!("{}.json", self.figure));
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.title, self.table.trim_fmt())?;
        for target in &self.targets {
            write!(f, "\n{} {target}", if target.met { "met:   " } else { "MISSED:" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, wanted, measured, .. } = self;
        write!(f, "{what}: {wanted}, measured {measured:.2}")
    }
}
