//! The screen of `top`, readable at 80 columns and 24 lines.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Cell, Paragraph, Row, Table, Wrap},
};

use super::view::{Panel, View};
use crate::render::Paint;

/// Columns of a number, where nothing longer stands above it.
const NUMBER: u16 = 5;

/// Columns at most of words that are not the first of their line.
const WORD: usize = 15;

/// Columns between the panels.
const BETWEEN: u16 = 2;

/// Draws the screen.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, paint: Paint) {
    let lines = [
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(2),
        Constraint::Length(1),
    ];
    let [head, first, second, third, hint, keys] = Layout::vertical(lines).areas(frame.area());
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let style = if view.wrong && paint.is_enabled() { bold.fg(Color::Red) } else { bold };
    frame.render_widget(Paragraph::new(Line::styled(&*view.head, style)), head);
    for (area, [left, right]) in [first, second, third].into_iter().zip(&view.panels) {
        // Names of routes and destinations are long, those on the right are not.
        let shares = [Constraint::Fill(3), Constraint::Length(BETWEEN), Constraint::Fill(2)];
        let [on_left, _, on_right] = Layout::horizontal(shares).areas(area);
        draw_panel(frame, left, on_left);
        draw_panel(frame, right, on_right);
    }
    if let Some(text) = &view.hint {
        frame.render_widget(Paragraph::new(&**text).wrap(Wrap { trim: true }), hint);
    }
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Line::styled(&*view.keys, reversed), keys);
}

fn draw_panel(frame: &mut Frame<'_>, panel: &Panel, area: Rect) {
    let widths = panel.headings.iter().enumerate().map(|(column, heading)| {
        let longest = panel.lines.iter().map(|line| line[column].len()).chain([heading.len()]).max();
        match column {
            // What remains.
            0 => Constraint::Fill(1),
            column if column < panel.words => Constraint::Length(longest.unwrap_or(0).min(WORD) as u16),
            _ => Constraint::Length(NUMBER.max(heading.len() as u16)),
        }
    });
    let row = |cells: &mut dyn Iterator<Item = String>| {
        let cells = cells.enumerate().map(|(column, text)| {
            let line = Line::from(text);
            Cell::from(if column < panel.words { line } else { line.right_aligned() })
        });
        Row::new(cells.collect::<Vec<_>>())
    };
    let headings = row(&mut panel.headings.iter().map(|&heading| heading.to_owned()));
    let lines = panel.lines.iter().map(|line| row(&mut line.iter().cloned()));
    let table = Table::new(lines, widths.collect::<Vec<_>>())
        .header(headings.style(Style::new().add_modifier(Modifier::REVERSED)))
        .column_spacing(1);
    frame.render_widget(table, area);
    if let Some(text) = panel.instead {
        let [_, below] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        frame.render_widget(Paragraph::new(text), below);
    }
}
