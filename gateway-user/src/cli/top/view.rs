//! What `top` shows: two readings, and the rates between them.

use std::{collections::HashMap, time::Duration};

use super::reading::Reading;
use crate::{
    api::types::{PoolAddressRow, RouteRow, SessionUse},
    render::{Rated as _, human},
};

/// Rows that a panel has at most.
const ROWS: usize = 50;

/// A table on the screen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Panel {
    /// Headings; the first is the name of the panel.
    pub(super) headings: &'static [&'static str],
    /// How many columns are words; the others are numbers.
    pub(super) words: usize,
    /// Lines, the most important first.
    pub(super) lines: Vec<Vec<String>>,
    /// What stands in their place.
    pub(super) instead: Option<&'static str>,
}

/// The screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// First line.
    pub(super) head: String,
    /// Whether it says that something is wrong.
    pub(super) wrong: bool,
    /// Three rows of two.
    pub(super) panels: [[Panel; 2]; 3],
    /// What to know about the most frequent drop.
    pub(super) hint: Option<String>,
    /// Keys.
    pub(super) keys: String,
}

impl View {
    /// The screen of `now`, with rates since `before`. `failed` says why there is nothing later.
    pub(super) fn of(
        before: Option<&Reading>,
        now: &Reading,
        failed: Option<&str>,
        paused: bool,
        interval: Duration,
    ) -> Self {
        let rates = Rates { before, now };
        let (drops, hint) = rates.drops();
        let pause = if paused { "p go on" } else { "p pause" };
        let every = interval.as_secs_f64();
        let state = if paused { "  PAUSED" } else { "" };
        Self {
            head: failed.map_or_else(|| head(now), str::to_owned),
            wrong: failed.is_some() || now.problem.is_some() || !now.active,
            panels: [
                [rates.traffic(), drops],
                [rates.routes(), rates.pools()],
                [destinations(now), sources(now)],
            ],
            hint,
            keys: format!("q quit  {pause}  r look now  every {every} s{state}"),
        }
    }
}

fn head(now: &Reading) -> String {
    let Reading { name, revision, .. } = now;
    let state = if now.active { "active" } else { "inactive" };
    if let Some(problem) = &now.problem {
        return format!("{name}  {state}  problem: {problem}");
    }
    let SessionUse { total, capacity, .. } = now.sessions;
    let used = human::percent(total, capacity);
    let uptime = human::seconds(now.uptime);
    format!("{name}  {state}  revision {revision}  {total} of {capacity} sessions ({used})  up {uptime}")
}

/// What is counted, a second.
struct Rates<'a> {
    before: Option<&'a Reading>,
    now: &'a Reading,
}

impl Rates<'_> {
    /// How much a second. What `then` did not have began at 0.
    fn rate(&self, now: u64, then: Option<u64>) -> Option<f64> {
        let elapsed = self.now.at.duration_since(self.before?.at).as_secs_f64();
        (elapsed > 0.0).then(|| float(now.saturating_sub(then.unwrap_or(0))) / elapsed)
    }

    fn traffic(&self) -> Panel {
        type Key<'a> = (&'a str, &'a str, &'a str);
        fn cells(reading: &Reading) -> impl Iterator<Item = (Key<'_>, [u64; 2])> {
            reading.interfaces.iter().flat_map(|interface| {
                interface.verdicts.iter().map(|row| {
                    let key = (&*interface.name, &*row.direction, &*row.verdict);
                    (key, [row.count.packets, row.count.bytes])
                })
            })
        }
        let before: HashMap<Key<'_>, [u64; 2]> = self.before.into_iter().flat_map(cells).collect();
        let mut panel = Panel::new(&["TRAFFIC", "VERDICT", "PPS", "BIT/S"], 2);
        let lines =
            cells(self.now).filter(|(_, [packets, _])| *packets > 0).map(|(key, [packets, bytes])| {
                let then = before.get(&key);
                let pps = self.rate(packets, then.map(|then| then[0]));
                let bits = self.rate(bytes, then.map(|then| then[1])).map(|bytes| 8.0 * bytes);
                let (name, direction, verdict) = key;
                (pps, packets, vec![format!("{name} {direction}"), verdict.to_owned(), told(pps), told(bits)])
            });
        panel.rank(lines);
        panel
    }

    /// Drops, and what to know about the most frequent.
    fn drops(&self) -> (Panel, Option<String>) {
        let mut panel = Panel::new(&["DROPS", "PPS", "ALL"], 1);
        let lines = self.now.drops.iter().filter(|row| row.count.packets > 0).map(|row| {
            let then = self.before.and_then(|before| before.drops.iter().find(|it| it.reason == row.reason));
            let pps = self.rate(row.count.packets, then.map(|then| then.count.packets));
            let all = number(float(row.count.packets));
            (pps, row.count.packets, vec![row.reason.clone(), told(pps), all])
        });
        panel.rank(lines);
        let first = panel.lines.first().and_then(|line| line.first());
        let first = first.and_then(|reason| self.now.drops.iter().find(|row| row.reason == *reason));
        let hint = first.map(|row| format!("{}: {}", row.reason, row.help));
        (panel, hint)
    }

    fn routes(&self) -> Panel {
        let mut panel = Panel::new(&["ROUTE", "VIA", "PPS"], 2);
        let Some(routes) = &self.now.routes else {
            panel.instead = Some("more than 10,000: not ranked");
            return panel;
        };
        let packets = |row: &RouteRow| row.packets.unwrap_or(0);
        let before = self.before.and_then(|before| before.routes.as_ref());
        let before: HashMap<String, u64> =
            before.into_iter().flatten().map(|row| (row.key(), packets(row))).collect();
        let lines = routes.iter().filter(|row| packets(row) > 0).map(|row| {
            let pps = self.rate(packets(row), before.get(&row.key()).copied());
            let mut name = format!("{} {}", row.table, row.prefix);
            for selector in [row.proto.map(|it| it.to_string()), row.dport.map(|it| it.to_string())] {
                name.extend(selector.into_iter().flat_map(|it| [" ".to_owned(), it]));
            }
            (pps, packets(row), vec![name, row.via.clone(), told(pps)])
        });
        panel.rank(lines);
        panel
    }

    fn pools(&self) -> Panel {
        let mut panel = Panel::new(&["POOL", "USED", "NEW/S"], 1);
        let lines = self.now.pools.iter().map(|row| {
            let same = |then: &&PoolAddressRow| (&then.pool, then.address) == (&row.pool, row.address);
            let then = self.before.and_then(|before| before.pools.iter().find(same));
            let opened = self.rate(row.connection_attempts, then.map(|then| then.connection_attempts));
            let sessions = float(row.sessions);
            let name = format!("{} {}", row.pool, row.address);
            (Some(sessions), row.connection_attempts, vec![name, number(sessions), told(opened)])
        });
        panel.rank(lines);
        panel
    }
}

/// The fullest, and the time until they have no room left if they go on to fill as they do.
fn destinations(now: &Reading) -> Panel {
    let mut panel = Panel::new(&["DESTINATION", "FROM", "FULL", "LEFT"], 2);
    let lines = now.destinations.iter().map(|row| {
        let full = float(row.sessions) / float(row.room.max(1));
        let name = match row.proto.as_str() {
            "tcp" => row.destination.to_string(),
            proto => format!("{} {proto}", row.destination),
        };
        let share = human::percent(row.sessions, row.room);
        let left = row.exhausted_in.map_or_else(|| "-".to_owned(), |left| human::seconds(float(left)));
        (Some(full), row.sessions, vec![name, row.address.to_string(), share, left])
    });
    panel.rank(lines);
    panel
}

fn sources(now: &Reading) -> Panel {
    let mut panel = Panel::new(&["SOURCE", "SESSIONS"], 1);
    let rows = now.sources.iter().flat_map(|sources| &sources.rows);
    let lines = rows.filter_map(|row| {
        let sessions = float(row.count);
        Some((Some(sessions), row.count, vec![row.source?.to_string(), number(sessions)]))
    });
    panel.rank(lines);
    panel
}

impl Panel {
    fn new(headings: &'static [&'static str], words: usize) -> Self {
        Self { headings, words, ..Self::default() }
    }

    /// Lines by the first number, then by the second, then by name, so that a screen that is drawn again does not jump.
    fn rank(&mut self, lines: impl Iterator<Item = (Option<f64>, u64, Vec<String>)>) {
        let mut lines: Vec<_> =
            lines.map(|(first, second, line)| (first.unwrap_or(0.0), second, line)).collect();
        lines.sort_by(|(a, m, x), (b, n, y)| b.total_cmp(a).then(n.cmp(m)).then_with(|| x.cmp(y)));
        lines.truncate(ROWS);
        self.lines = lines.into_iter().map(|(_, _, line)| line).collect();
    }
}

/// A rate, or that there is none yet.
fn told(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), number)
}

/// A number in at most five characters, up to 999 T.
pub(super) fn number(number: f64) -> String {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let (mut scaled, mut unit) = (number, 0);
    while scaled >= 999.5 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let whole = scaled >= 99.95 || (10.0 * scaled).round() % 10.0 == 0.0;
    format!("{scaled:.*}{}", usize::from(!whole), UNITS[unit])
}

#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
fn float(number: u64) -> f64 {
    number as f64
}
