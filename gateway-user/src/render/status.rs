//! The screen of `status`: what an operator wants to know first, first.

use std::fmt::Write;

use super::{Cell, Column, Columns, Grid, Paint, Tone, human, proxy};
use crate::api::types::{DropRow, List, Notice, PoolAddressRow, Status};

/// One line: state, revision, sessions, drops, health.
pub fn brief(list: &List<Status>, status: &Status, paint: Paint) -> String {
    let drops: u64 = status.drops.iter().map(|row| row.count.packets).sum();
    format!(
        "{} {} revision {} sessions {}/{} drops {drops} {}\n",
        status.name,
        state(status, paint),
        list.revision,
        status.sessions.total,
        status.sessions.capacity,
        health(status, paint),
    )
}

/// The whole screen.
pub fn screen(list: &List<Status>, status: &Status, paint: Paint) -> String {
    let mut text = String::new();
    head(&mut text, list, status, paint);
    notices(&mut text, status, paint);
    section(
        &mut text,
        "interfaces",
        &Grid::new(&status.interfaces),
        "none: add one with `gwctl interface add`",
        paint,
    );
    section(&mut text, "tables", &Grid::new(&status.tables), "none", paint);
    let pools = status.pools.iter().map(|row| PoolUse { row }).collect::<Vec<_>>();
    section(&mut text, "pools", &Grid::new(&pools), "none", paint);
    if !status.proxies.is_empty() {
        section(&mut text, "proxies", &proxy::grid(&status.proxies), "none", paint);
    }
    sessions(&mut text, status, paint);
    let drops = status.drops.iter().map(|row| Drop { row }).collect::<Vec<_>>();
    section(&mut text, "drops", &Grid::new(&drops), "none so far", paint);
    text
}

fn head(text: &mut String, list: &List<Status>, status: &Status, paint: Paint) {
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{label:<10} {value}");
    };
    line("gateway", format!("{}, {}, {}", status.name, state(status, paint), health(status, paint)));
    line("revision", format!("{}{}", list.revision, differs(status)));
    line("config", status.config.file.clone());
    line(
        "daemon",
        format!("gatewayd {}, pid {}, up {}", status.version, status.pid, human::seconds(status.uptime)),
    );
}

fn state(status: &Status, paint: Paint) -> String {
    if status.active { paint.text(Tone::Good, "active") } else { paint.text(Tone::Notice, "inactive") }
}

fn health(status: &Status, paint: Paint) -> String {
    if status.healthy { paint.text(Tone::Good, "healthy") } else { paint.text(Tone::Bad, "unhealthy") }
}

fn differs(status: &Status) -> &'static str {
    match (status.config.differs, status.config.changed) {
        (false, false) => "",
        (true, false) => ", differs from the configuration file",
        (false, true) => ", the configuration file has changed since it was read",
        (true, true) => ", differs from the configuration file, which has changed since it was read",
    }
}

fn notices(text: &mut String, status: &Status, paint: Paint) {
    let lists: [(&[Notice], &str, Tone); 2] =
        [(&status.problems, "problem", Tone::Bad), (&status.warnings, "warning", Tone::Notice)];
    for (notices, label, tone) in lists {
        for notice in notices {
            let _ = writeln!(text, "{} {}", paint.text(tone, format!("{label}:")), notice.message);
            if let Some(hint) = &notice.hint {
                let _ = writeln!(text, "{:width$} {hint}", "", width = label.len() + 1);
            }
        }
    }
}

fn section(text: &mut String, heading: &str, grid: &Grid, none: &str, paint: Paint) {
    text.push('\n');
    if grid.is_empty() {
        let _ = writeln!(text, "{heading:<10} {none}");
    } else {
        text.push_str(&grid.print(true, paint));
    }
}

fn sessions(text: &mut String, status: &Status, paint: Paint) {
    let used = &status.sessions;
    let percent = human::percent(used.total, used.capacity);
    // The capacity is that of each family: a table that is nearly full shows at the latest here.
    let tone = if used.total.saturating_mul(100) >= used.capacity.saturating_mul(85) {
        Tone::Notice
    } else {
        Tone::Plain
    };
    let total = paint.text(tone, format!("{} of {} ({percent})", used.total, used.capacity));
    let _ = writeln!(
        text,
        "\nsessions   {total}: tcp {}, udp {}, icmp {}, other {}",
        used.tcp, used.udp, used.icmp, used.other
    );
}

/// A pool address without the counters that `stats pools` has.
struct PoolUse<'a> {
    row: &'a PoolAddressRow,
}

impl Columns for PoolUse<'_> {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("POOL"),
            Column::text("ADDRESS"),
            Column::number("SESSIONS"),
            Column::number("PORTS"),
            Column::number("NO-PORT"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        vec![
            Cell::new(&self.row.pool),
            Cell::new(&self.row.address),
            Cell::new(&self.row.sessions),
            Cell::new(&self.row.ports),
            Cell::new(&self.row.port_allocation_errors),
        ]
    }

    fn tone(&self) -> Tone {
        self.row.tone()
    }
}

/// A drop without its explanation, which `stats drops` has.
struct Drop<'a> {
    row: &'a DropRow,
}

impl Columns for Drop<'_> {
    fn columns() -> Vec<Column> {
        vec![Column::text("DROPS"), Column::number("PACKETS"), Column::number("BYTES"), Column::text("CLASS")]
    }

    fn cells(&self) -> Vec<Cell> {
        let mut cells = self.row.cells();
        cells.truncate(4);
        cells
    }

    fn tone(&self) -> Tone {
        self.row.tone()
    }
}
