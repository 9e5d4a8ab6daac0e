//! `explain`: the walk, numbered.

use std::fmt::Write as _;

use super::{Paint, Tone};
use crate::api::types::{Endpoint, ExplainLive, ExplainRow};

/// Width of the names of stages.
const STAGE: usize = 17;

/// The walk as a terminal shows it.
pub fn walk(row: &ExplainRow, paint: Paint) -> String {
    let mut text = String::new();
    for (number, step) in (1..).zip(&row.steps) {
        let last = number == row.steps.len();
        let found =
            if last { paint.text(tone(row.verdict.as_deref()), &step.found) } else { step.found.clone() };
        let _infallible = writeln!(text, "{number:2}. {:STAGE$} {found}", step.stage);
        for note in &step.notes {
            let _infallible = writeln!(text, "    {:STAGE$} {note}", "");
        }
    }
    if let Some(live) = &row.live {
        let said = paint.text(tone(Some(&live.verdict)), said(live));
        let _infallible = writeln!(text, "    {:STAGE$} {said}", "programs");
        for note in notes(live, row.agrees) {
            let _infallible = writeln!(text, "    {:STAGE$} {note}", "");
        }
    }
    text
}

/// A packet of a capture, on one line; its walk below that if it is wanted.
pub fn packet(number: usize, row: &ExplainRow, paint: Paint, steps: bool) -> String {
    let (verdict, reason) = match &row.live {
        Some(live) => (Some(live.verdict.as_str()), live.reason.as_deref()),
        None => (row.verdict.as_deref(), row.reason.as_deref()),
    };
    let said = match (verdict, reason, row.steps.last()) {
        (Some(verdict), Some(reason), _) => format!("{verdict}, {reason}"),
        (Some(verdict), None, _) => verdict.to_owned(),
        (None, _, Some(last)) => format!("not known: {}", last.found),
        (None, _, None) => "not explained".to_owned(),
    };
    let mut text = format!("{number}. {}: {}\n", row.packet, paint.text(tone(verdict), said));
    if steps {
        text.push_str(&walk(row, paint));
    }
    text
}

fn tone(verdict: Option<&str>) -> Tone {
    match verdict {
        Some("drop") => Tone::Bad,
        Some(_) => Tone::Good,
        None => Tone::Notice,
    }
}

fn said(live: &ExplainLive) -> String {
    let mut said = live.verdict.clone();
    if let Some(reason) = &live.reason {
        let _infallible = write!(said, ", {reason}");
    }
    if let Some(egress) = &live.egress {
        let _infallible = write!(said, " through {egress}");
    }
    if let Some(mac) = &live.next_hop {
        let _infallible = write!(said, " to {mac}");
    }
    said
}

fn notes(live: &ExplainLive, agrees: Option<bool>) -> Vec<String> {
    let mut notes = Vec::new();
    if let (Some(source), Some(destination)) = (&live.source, &live.destination) {
        let session = if live.opens_session { ", with a session of its own" } else { "" };
        notes.push(format!("as {} > {}{session}", end(source), end(destination)));
    }
    notes.extend(live.routes.iter().map(|route| format!("counted on route {route}")));
    match agrees {
        Some(true) => notes.push("steps and programs agree".to_owned()),
        Some(false) => notes.push("the steps say something else: trust the programs".to_owned()),
        None => {}
    }
    notes
}

fn end(end: &Endpoint) -> String {
    if end.port == 0 { end.address.to_string() } else { end.to_string() }
}
