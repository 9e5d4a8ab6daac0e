//! What the audience sees: acts, command lines, proofs and tables, within a hundred columns.

use std::io::{IsTerminal as _, Write as _, stdout};

use crate::term;

/// Columns of the stage.
const WIDTH: usize = 100;

/// Begins an act: what it is about, and why one should care.
pub(crate) fn act(number: usize, title: &str, about: &str) {
    let rule = "─".repeat(WIDTH.saturating_sub(title.chars().count() + 6));
    println!("\n{}", term::title(&format!("── {number} {title} {rule}")));
    for line in wrap(about, WIDTH) {
        println!("{}", term::dim(&line));
    }
}

/// A command line, and where it is typed.
pub(crate) fn command(host: &str, line: &str) {
    println!("  {} {}", term::host(&format!("{host}#")), term::strong(line));
}

/// What a command printed; lines that are too long for the stage are cut.
pub(crate) fn output(text: &str) {
    for line in text.trim_end().lines() {
        if line.chars().count() > WIDTH - 4 {
            let cut: String = line.chars().take(WIDTH - 5).collect();
            println!("    {}…", cut.trim_end());
        } else {
            println!("    {line}");
        }
    }
}

/// What a command had to say to its user; long lines are wrapped.
pub(crate) fn message(text: &str) {
    for line in text.trim_end().lines().flat_map(|line| wrap(line, WIDTH - 4)) {
        println!("    {}", term::warn(&line));
    }
}

/// Something that was promised and is so.
pub(crate) fn proof(text: &str) {
    let mut lines = wrap(text, WIDTH - 4).into_iter();
    if let Some(first) = lines.next() {
        println!("  {} {first}", term::good("✓"));
    }
    for line in lines {
        println!("    {line}");
    }
}

/// A table: the first row is its head, the first `left` columns are words and the others numbers.
pub(crate) fn table(rows: &[Vec<String>], left: usize) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let draw = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(draw).collect()
}

/// A table that is drawn again and again: over itself on a terminal, and only at its end elsewhere.
pub(crate) struct Live {
    drawn: usize,
    terminal: bool,
}

impl Live {
    pub(crate) fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        Self { drawn: 0, terminal: stdout().is_terminal() && !dumb }
    }

    /// Draws an interim state.
    pub(crate) fn draw(&mut self, lines: &[String]) {
        if !self.terminal {
            return;
        }
        let mut out = stdout().lock();
        if self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A", self.drawn);
        }
        for (number, line) in lines.iter().enumerate() {
            let line = if number == 0 { term::dim(line) } else { line.clone() };
            let _ = writeln!(out, "\x1b[2K    {line}");
        }
        let _ = out.flush();
        self.drawn = lines.len();
    }

    /// Draws the final state.
    pub(crate) fn finish(mut self, lines: &[String]) {
        if self.terminal {
            self.draw(lines);
        } else {
            print_table(lines);
        }
    }
}

/// Prints a table once.
pub(crate) fn print_table(lines: &[String]) {
    for (number, line) in lines.iter().enumerate() {
        println!("    {}", if number == 0 { term::dim(line) } else { line.clone() });
    }
}

/// `1234567` as `1.23 M`.
pub(crate) fn human(value: f64) -> String {
    let steps = [(1e9, " G"), (1e6, " M"), (1e3, " k")];
    steps
        .iter()
        .find(|(size, _)| value >= *size)
        .map_or_else(|| format!("{value:.0}"), |(size, unit)| format!("{:.2}{unit}", value / size))
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if lines[last].is_empty() {
            lines[last].push_str(word);
        } else if lines[last].chars().count() + 1 + word.chars().count() <= width {
            lines[last].push(' ');
            lines[last].push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_words_left_and_numbers_right() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let lines = table(&[row(["ROUTE", "PACKETS"]), row(["203.0.113.0/24", "7"])], 1);
        assert_eq!(lines, ["ROUTE           PACKETS", "203.0.113.0/24        7"]);
    }

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
    }

    #[test]
    fn large_numbers_are_short() {
        assert_eq!([human(999.0), human(1234.0), human(2.5e9)], ["999", "1.23 k", "2.50 G"]);
    }
}
