//! `proxy show`: a line for each host.

use super::{Cell, Column, Columns, Grid, Tone, human};
use crate::api::types::{ProxyHostRow, ProxyRow};

/// The table of `proxies`.
pub fn grid(proxies: &[ProxyRow]) -> Grid {
    let lines = proxies.iter().flat_map(|proxy| proxy.hosts.iter().map(move |host| Line { proxy, host }));
    Grid::new(&lines.collect::<Vec<_>>())
}

struct Line<'a> {
    proxy: &'a ProxyRow,
    host: &'a ProxyHostRow,
}

impl Columns for Line<'_> {
    fn columns() -> Vec<Column> {
        vec![
            Column::text("PROXY"),
            Column::text("HOST"),
            Column::number("WEIGHT"),
            Column::text("STATE"),
            Column::number("FOR"),
            Column::text("DRAINED"),
            Column::number("FLOWS"),
            Column::text("MODE"),
            Column::text("CHECK"),
            Column::text("FAIL"),
            Column::text("ERROR"),
        ]
    }

    fn cells(&self) -> Vec<Cell> {
        let Self { proxy, host } = self;
        let mode = proxy.vni.map_or_else(|| proxy.mode.clone(), |vni| format!("{} vni {vni}", proxy.mode));
        vec![
            Cell::new(&proxy.name),
            Cell::new(&host.address),
            Cell::new(&host.weight),
            Cell::new(&host.state),
            Cell::of(host.age.map(human::seconds).as_ref()),
            Cell::of(host.drained.then_some("drained")),
            Cell::new(&host.flows),
            Cell::new(&mode),
            Cell::new(&proxy.check),
            Cell::new(&proxy.fail),
            Cell::of(host.error.as_ref()),
        ]
    }

    fn tone(&self) -> Tone {
        match (self.host.up, &self.host.error) {
            (false, _) => Tone::Bad,
            (true, Some(_)) => Tone::Notice,
            (true, None) => Tone::Plain,
        }
    }
}
