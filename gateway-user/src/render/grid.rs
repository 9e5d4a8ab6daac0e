//! Tables without borders: headings in capitals, text to the left, numbers to the right.

use std::{collections::HashMap, fmt::Display, time::Duration};

use comfy_table::{CellAlignment, ContentArrangement, Row, Table, presets};

use super::{Paint, Tone, human};

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    heading: String,
    numeric: bool,
}

impl Column {
    /// A column of words.
    pub fn text(heading: &str) -> Self {
        Self { heading: heading.to_owned(), numeric: false }
    }

    /// A column of numbers.
    pub fn number(heading: &str) -> Self {
        Self { heading: heading.to_owned(), numeric: true }
    }
}

/// What a line has in a column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell(Option<String>);

impl Cell {
    /// A cell with nothing in it.
    pub const EMPTY: Self = Self(None);

    /// A cell with `value` as it displays itself.
    pub fn new(value: &(impl Display + ?Sized)) -> Self {
        Self(Some(value.to_string()))
    }

    /// A cell with `value`, if there is one.
    pub fn of(value: Option<&(impl Display + ?Sized)>) -> Self {
        value.map_or(Self::EMPTY, Self::new)
    }

    /// A cell with a number of bytes in units for human readers.
    pub fn bytes(bytes: u64) -> Self {
        Self(Some(human::bytes(bytes)))
    }
}

/// A type whose values are lines of a table.
pub trait Columns {
    /// The columns, in order. A column that every line leaves empty is not shown.
    fn columns() -> Vec<Column>;

    /// The cells of this line, one for each column.
    fn cells(&self) -> Vec<Cell>;

    /// How the line is meant.
    fn tone(&self) -> Tone {
        Tone::Plain
    }
}

/// Lines with counters, which have a rate between two looks.
pub trait Rated: Columns {
    /// Names of the counters and whether they count bytes, in the order of [`Rated::counters`].
    const COUNTERS: &'static [(&'static str, bool)];

    /// What identifies the line between two looks.
    fn key(&self) -> String;

    /// The counters.
    fn counters(&self) -> Vec<u64>;

    /// Whether a line that was not there so long ago has begun since, at 0: where lines are cut to a number, it may have
    /// been among those that were cut.
    fn is_fresh(&self, _elapsed: Duration) -> bool {
        true
    }
}

/// A table that is ready to be shown.
#[derive(Clone, Debug)]
pub struct Grid {
    columns: Vec<Column>,
    lines: Vec<(Tone, Vec<Cell>)>,
}

impl Grid {
    /// One line for each of `rows`.
    pub fn new<'a, T: Columns + 'a>(rows: impl IntoIterator<Item = &'a T>) -> Self {
        let lines = rows.into_iter().map(|row| (row.tone(), row.cells())).collect();
        Self { columns: T::columns(), lines }
    }

    /// As [`Grid::new`], with rates a second behind the last number: what was added to `before`, which was
    /// read so long ago.
    pub fn with_rates<'a, T: Rated + 'a>(
        rows: impl IntoIterator<Item = &'a T>,
        before: Option<(&[T], Duration)>,
    ) -> Self {
        let mut columns = T::columns();
        let at = columns.iter().rposition(|column| column.numeric).map_or(0, |last| last + 1);
        let headings = T::COUNTERS.iter().map(|(name, _)| Column::number(&format!("{name}/S")));
        columns.splice(at..at, headings);
        let before = before.map(|(rows, elapsed)| {
            let counters: HashMap<String, Vec<u64>> =
                rows.iter().map(|row| (row.key(), row.counters())).collect();
            (counters, elapsed)
        });
        let rate = |row: &T, index: usize, now: u64, bytes: bool| {
            let Some((before, elapsed)) = &before else { return Cell::new("-") };
            // A line that was not there before began at 0; a counter that fell belongs to a fresh object.
            let then = before.get(&row.key()).and_then(|counters| counters.get(index)).copied();
            if then.is_none() && !row.is_fresh(*elapsed) {
                return Cell::new("-");
            }
            let then = then.unwrap_or(0);
            let rate = per_second(now.saturating_sub(then), *elapsed);
            if bytes { Cell::bytes(rate) } else { Cell::new(&rate) }
        };
        let line = |row: &T| {
            let mut cells = row.cells();
            let counters = row.counters().into_iter().zip(T::COUNTERS).enumerate();
            let rates = counters.map(|(index, (now, &(_, bytes)))| rate(row, index, now, bytes));
            cells.splice(at..at, rates);
            (row.tone(), cells)
        };
        Self { columns, lines: rows.into_iter().map(line).collect() }
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The lines, each with its end of line; `header` puts the headings above them.
    pub fn print(&self, header: bool, paint: Paint) -> String {
        let shown: Vec<usize> = (0..self.columns.len())
            .filter(|&at| self.is_empty() || self.lines.iter().any(|(_, cells)| cells[at] != Cell::EMPTY))
            .collect();
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if header {
            table.set_header(Row::from(shown.iter().map(|&at| &self.columns[at].heading)));
        }
        for (_, cells) in &self.lines {
            table.add_row(Row::from(shown.iter().map(|&at| cells[at].0.as_deref().unwrap_or("-"))));
        }
        for (column, &at) in table.column_iter_mut().zip(&shown) {
            column.set_padding((0, 2));
            if self.columns[at].numeric {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let tones =
            header.then_some(Tone::Heading).into_iter().chain(self.lines.iter().map(|(tone, _)| *tone));
        let mut text = String::new();
        for (line, tone) in table.lines().zip(tones) {
            text.push_str(&paint.text(tone, line.trim_end()));
            text.push('\n');
        }
        text
    }
}

fn per_second(count: u64, elapsed: Duration) -> u64 {
    let nanoseconds = elapsed.as_nanos().max(1);
    u64::try_from(u128::from(count) * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Line(&'static str, Option<u64>);

    impl Columns for Line {
        fn columns() -> Vec<Column> {
            vec![Column::text("NAME"), Column::number("COUNT"), Column::text("LAST")]
        }

        fn cells(&self) -> Vec<Cell> {
            vec![Cell::new(self.0), Cell::of(self.1.as_ref()), Cell::new("x")]
        }
    }

    impl Rated for Line {
        const COUNTERS: &'static [(&'static str, bool)] = &[("COUNT", false)];

        fn key(&self) -> String {
            self.0.to_owned()
        }

        fn counters(&self) -> Vec<u64> {
            vec![self.1.unwrap_or(0)]
        }

        fn is_fresh(&self, _: Duration) -> bool {
            self.0 != "old"
        }
    }

    const PLAIN: Paint = Paint::new(false);

    #[test]
    fn numbers_are_aligned_to_the_right_and_words_to_the_left() {
        let grid = Grid::new(&[Line("a", Some(5)), Line("longer", Some(1234))]);
        assert_eq!(grid.print(true, PLAIN), "NAME    COUNT  LAST\na           5  x\nlonger   1234  x\n");
    }

    #[test]
    fn a_column_that_is_empty_in_every_line_is_left_out() {
        assert_eq!(Grid::new(&[Line("a", None)]).print(true, PLAIN), "NAME  LAST\na     x\n");
    }

    #[test]
    fn a_cell_that_is_empty_in_some_lines_has_a_dash() {
        let text = Grid::new(&[Line("a", None), Line("b", Some(1))]).print(false, PLAIN);
        assert_eq!(text, "a  -  x\nb  1  x\n");
    }

    #[test]
    fn an_empty_table_is_its_headings() {
        let none: [Line; 0] = [];
        assert_eq!(Grid::new(&none).print(true, PLAIN), "NAME  COUNT  LAST\n");
        assert_eq!(Grid::new(&none).print(false, PLAIN), "");
    }

    #[test]
    fn rates_are_per_second_since_the_last_look() {
        let before = [Line("a", Some(1000))];
        let after = [Line("a", Some(3000)), Line("fresh", Some(10))];
        let text = Grid::with_rates(&after, Some((&before, Duration::from_secs(2)))).print(true, PLAIN);
        assert_eq!(text, "NAME   COUNT  COUNT/S  LAST\na       3000     1000  x\nfresh     10        5  x\n");
    }

    #[test]
    fn a_line_that_was_only_cut_off_before_has_no_rate_yet() {
        let after = [Line("old", Some(3000)), Line("fresh", Some(10))];
        let text = Grid::with_rates(&after, Some((&[], Duration::from_secs(2)))).print(false, PLAIN);
        assert_eq!(text, "old    3000  -  x\nfresh    10  5  x\n");
    }

    #[test]
    fn colour_does_not_change_the_layout() {
        let text = Grid::new(&[Line("a", Some(5))]).print(true, Paint::new(true));
        assert_eq!(text, "\u{1b}[1mNAME  COUNT  LAST\u{1b}[0m\na         5  x\n");
    }
}
