//! `history` and `diff`.

use std::fmt::Write as _;

use super::{Cell, Column, Columns, Paint, Tone};
use crate::api::types::{DiffRow, RevisionRow};

impl Columns for RevisionRow {
    fn columns() -> Vec<Column> {
        vec![Column::number("REVISION"), Column::text("TIME"), Column::text("UID"), Column::text("COMMAND")]
    }

    fn cells(&self) -> Vec<Cell> {
        let user = match (self.uid, &self.command) {
            (Some(uid), _) => uid.to_string(),
            (None, Some(_)) => "gateway".to_owned(),
            (None, None) => "-".to_owned(),
        };
        let command = self.command.as_deref().unwrap_or("-");
        let command = if self.in_force { format!("{command}  (in force)") } else { command.to_owned() };
        vec![
            Cell::new(&self.revision),
            Cell::new(self.time.as_deref().unwrap_or("-")),
            Cell::new(&user),
            Cell::new(&command),
        ]
    }
}

/// Differences, a line each: `-` in force, `+` in the configuration.
pub fn differences(rows: &[DiffRow], paint: Paint) -> String {
    let mut text = String::new();
    for DiffRow { before, after, .. } in rows {
        for (sign, words, tone) in [("-", before, Tone::Bad), ("+", after, Tone::Good)] {
            if let Some(words) = words {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{}", paint.text(tone, format!("{sign} {words}")));
            }
        }
    }
    text
}
