//! What is said about a figure: a table for people, JSON for machines, bars for the chart.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::{environment::Environment, statistic::Samples};

/// The part of its processor that a polling thread should have.
const BUSY: f64 = 0.85;

/// A figure, measured.
#[derive(Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    figure: &'static str,
    title: String,
    /// Where it was taken.
    pub(crate) environment: Option<Environment>,
    #[serde(skip)]
    table: Table,
    /// Everything that was measured.
    values: Vec<Value>,
    targets: Vec<Target>,
    /// What must be known to read the numbers.
    notes: Vec<String>,
    #[serde(skip)]
    unit: &'static str,
    #[serde(skip)]
    bars: Vec<Bar>,
    #[serde(skip)]
    limit: Option<f64>,
}

/// A bar of the chart.
pub(crate) struct Bar {
    /// What was measured.
    pub(crate) name: String,
    /// In the unit of the report.
    pub(crate) samples: Samples,
    /// Whether it is what the gateway is compared with.
    pub(crate) is_control: bool,
}

/// What a figure should be.
#[derive(Serialize)]
pub(crate) struct Target {
    what: String,
    wanted: String,
    measured: Samples,
    met: bool,
}

impl Target {
    /// Whether the median is what it should be.
    pub(crate) fn met(&self) -> bool {
        self.met
    }
}

/// The targets of all figures.
pub(crate) fn summary(reports: &[Report]) -> String {
    let mut table = table(&["TARGET", "WANTED", "MEASURED", "MET"]);
    for Target { what, wanted, measured, met } in reports.iter().flat_map(Report::targets) {
        let met = if *met { "yes" } else { "NO" };
        table.add_row([what, wanted, &format!("{measured}"), met]);
    }
    table.trim_fmt()
}

fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().copied());
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if number > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

impl Report {
    /// An empty report; the first heading is of words, the others are of numbers. `unit` is that of the bars.
    pub(crate) fn new(figure: &'static str, title: String, unit: &'static str, headings: &[&str]) -> Self {
        Self {
            schema: "gateway.bench/v1",
            figure,
            title,
            environment: None,
            table: table(headings),
            values: Vec::new(),
            targets: Vec::new(),
            notes: Vec::new(),
            unit,
            bars: Vec::new(),
            limit: None,
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

    /// Adds a bar for the gateway to the chart.
    pub(crate) fn bar(&mut self, name: &str, samples: &Samples) {
        self.bars.push(Bar { name: name.to_owned(), samples: samples.clone(), is_control: false });
    }

    /// Adds a bar for what the gateway is compared with.
    pub(crate) fn control(&mut self, name: &str, samples: &Samples) {
        self.bars.push(Bar { name: name.to_owned(), samples: samples.clone(), is_control: true });
    }

    /// Draws a line through the bars, where a target is in their unit.
    pub(crate) fn draw_limit(&mut self, limit: f64) {
        self.limit = Some(limit);
    }

    /// Says what must be known to read the numbers.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Says so where the thread that polls had much less than its processor: the numbers are too small then.
    pub(crate) fn judge_busy<'a>(&mut self, busy: impl Iterator<Item = &'a Samples>) {
        let least = busy.map(Samples::median).fold(f64::INFINITY, f64::min);
        if least < BUSY {
            self.note(format!(
                "others were at work on the processor of the packets, which had {:.0} % of it at the least: \
                 the figure is no good",
                least * 100.0
            ));
        }
    }

    /// Compares the median of something with the most it may be.
    pub(crate) fn at_most(&mut self, what: &str, measured: &Samples, limit: f64) {
        let met = measured.median() <= limit;
        self.target(what, format!("at most {limit}"), measured, met);
    }

    /// Compares the median of something with the least it may be.
    pub(crate) fn at_least(&mut self, what: &str, measured: &Samples, limit: f64) {
        let met = measured.median() >= limit;
        self.target(what, format!("at least {limit}"), measured, met);
    }

    fn target(&mut self, what: &str, wanted: String, measured: &Samples, met: bool) {
        self.targets.push(Target { what: what.to_owned(), wanted, measured: measured.clone(), met });
    }

    /// What it says above its table.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// Unit of the bars.
    pub(crate) fn unit(&self) -> &'static str {
        self.unit
    }

    /// Bars of the chart, in order.
    pub(crate) fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Where a line goes through the bars.
    pub(crate) fn limit(&self) -> Option<f64> {
        self.limit
    }

    /// What the figure should be.
    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The targets that were missed, in words.
    pub(crate) fn missed(&self) -> impl Iterator<Item = String> {
        self.targets.iter().filter(|target| !target.met).map(ToString::to_string)
    }

    /// Writes the figure to `directory`.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(format!("{}.json", self.figure));
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.title, self.table.trim_fmt())?;
        for note in &self.notes {
            write!(f, "\nnote:   {note}")?;
        }
        for target in &self.targets {
            write!(f, "\n{} {target}", if target.met { "met:   " } else { "MISSED:" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, wanted, measured, .. } = self;
        write!(f, "{what}: {wanted}, measured {measured}")
    }
}
