//! What is shown again and again: `stats --watch`, `session watch`.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::{context::Context, failure::Failure};
use crate::{
    api::types::List,
    render::{Grid, Rated},
};

/// What was read before.
pub(super) enum Before<'a, T> {
    /// There is one look, and no rates.
    Once,
    /// Nothing: this is the first look.
    Nothing,
    /// These lines, so long ago.
    Lines(&'a [T], Duration),
}

impl<'a, T> Before<'a, T> {
    /// Of something that has parts, what was read of one of them.
    pub(super) fn part<U>(&self, part: impl FnOnce(&'a T) -> &'a [U]) -> Before<'a, U> {
        match *self {
            Self::Once => Before::Once,
            Self::Nothing => Before::Nothing,
            Self::Lines(whole, elapsed) => {
                whole.first().map_or(Before::Nothing, |whole| Before::Lines(part(whole), elapsed))
            }
        }
    }
}

/// The lines of `rows` that are to be seen, with rates if they are read again.
pub(super) fn grid<T: Rated>(rows: &[T], before: &Before<'_, T>, shown: impl Fn(&T) -> bool) -> Grid {
    let rows = rows.iter().filter(|row| shown(row));
    match *before {
        Before::Once => Grid::new(rows),
        Before::Nothing => Grid::with_rates(rows, None),
        Before::Lines(lines, elapsed) => Grid::with_rates(rows, Some((lines, elapsed))),
    }
}

/// Shows what is read as `grids` once, or every `interval` until the user has seen enough.
pub(super) async fn show<T: Serialize>(
    context: &mut Context<'_, '_>,
    read: impl AsyncFn(&Context<'_, '_>) -> Result<List<T>, Failure>,
    interval: Option<Duration>,
    grids: impl Fn(&[T], &Before<'_, T>) -> Vec<Grid>,
) -> Result<(), Failure> {
    let mut list = read(context).await?;
    let Some(interval) = interval else {
        return if context.json {
            context.print_json(&list)
        } else {
            context.print_grids(&grids(&list.items, &Before::Once))
        };
    };
    let mut at = Instant::now();
    let mut next = at;
    let mut before: Option<(Vec<T>, Duration)> = None;
    loop {
        if context.json {
            context.print_json_line(&list)?;
        } else {
            let before = before.as_ref();
            let before = before.map_or(Before::Nothing, |(rows, elapsed)| Before::Lines(rows, *elapsed));
            context.redraw(&grids(&list.items, &before))?;
        }
        // Not in a hurry after a daemon that took longer than that.
        next = (next + interval).max(Instant::now());
        tokio::time::sleep_until(next).await;
        let items = std::mem::replace(&mut list, read(context).await?).items;
        before = Some((items, std::mem::replace(&mut at, Instant::now()).elapsed()));
    }
}
