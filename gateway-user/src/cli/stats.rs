//! `gwctl stats`.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{context::Context, failure::Failure, value};
use crate::{
    api::types::{
        DestinationQuery, DestinationRow, DropRow, InterfaceStats, List, MapRow, PoolAddressRow, RouteQuery,
        RouteRow, Row,
    },
    render::{Grid, Rated},
};

const INTERFACES: &str = "/v1/stats/interfaces";
const POOLS: &str = "/v1/stats/pools";
const DESTINATIONS: &str = "/v1/stats/destinations";
const DROPS: &str = "/v1/stats/drops";
const MAPS: &str = "/v1/stats/maps";
const ROUTES: &str = "/v1/stats/routes";

#[derive(Args, Debug)]
#[command(after_help = "gwctl stats\ngwctl stats drops --watch\ngwctl stats pools --json")]
pub(super) struct Stats {
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Dropped packets by reason; -v shows reasons that were not seen as well
    #[command(after_help = "gwctl stats drops\ngwctl stats drops --watch=2")]
    Drops(Drops),
    /// Packets and bytes by route
    #[command(after_help = "gwctl stats routes\ngwctl stats routes table servers --watch")]
    Routes(Routes),
    /// Sessions, ports and connections by pool address
    #[command(after_help = "gwctl stats pools\ngwctl stats pools --watch")]
    Pools(Plain),
    /// What was opened towards destinations, the fullest first
    #[command(
        after_help = "gwctl stats destinations\ngwctl stats destinations limit 100\ngwctl stats destinations --watch"
    )]
    Destinations(Destinations),
    /// Packets and bytes by interface and verdict
    #[command(after_help = "gwctl stats interfaces\ngwctl stats interfaces --watch")]
    Interfaces(Plain),
    /// How full the maps of the data plane are
    #[command(after_help = "gwctl stats maps")]
    Maps(Plain),
}

#[derive(Args, Debug)]
struct Drops {
    /// Reasons that were not seen, too
    #[arg(long, help_heading = super::words::OPTIONS)]
    all: bool,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Args, Debug)]
struct Routes {
    /// Routes of this table
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Args, Debug)]
struct Destinations {
    /// Rows at most [20]
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// Sources of each row at most [3]; 0 spares the walk through the session table
    #[arg(long, value_name = "N")]
    sources: Option<u32>,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Args, Debug)]
struct Plain {
    #[command(flatten)]
    watch: Watch,
}

#[derive(Args, Debug)]
struct Watch {
    /// Show again every SECS seconds [1], with rates
    #[arg(
        long,
        value_name = "SECS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = value::interval,
        help_heading = super::words::OPTIONS
    )]
    watch: Option<Duration>,
}

/// Every part but the routes, of which there may be a million.
#[derive(Debug, Serialize)]
struct Overview {
    interfaces: Vec<InterfaceStats>,
    pools: Vec<PoolAddressRow>,
    drops: Vec<DropRow>,
    maps: Vec<MapRow>,
}

impl Stats {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        match self.part {
            Some(part) => part.run(context).await,
            None => Overview::show(context).await,
        }
    }
}

impl Overview {
    async fn show(context: &mut Context<'_, '_>) -> Result<(), Failure> {
        let list = Self::read(context).await?;
        if context.json {
            return context.print_json(&list);
        }
        let all = context.verbose;
        let grids = list.items.iter().flat_map(|item| item.grids(all)).filter(|grid| !grid.is_empty());
        for (number, grid) in grids.enumerate() {
            if number > 0 {
                context.print_text("\n")?;
            }
            context.print_grid(&grid)?;
        }
        Ok(())
    }

    async fn read(context: &Context<'_, '_>) -> Result<List<Self>, Failure> {
        let interfaces: List<InterfaceStats> = context.get(INTERFACES, &()).await?;
        let pools: List<PoolAddressRow> = context.get(POOLS, &()).await?;
        let drops: List<DropRow> = context.get(DROPS, &()).await?;
        let maps: List<MapRow> = context.get(MAPS, &()).await?;
        let overview =
            Self { interfaces: interfaces.items, pools: pools.items, drops: drops.items, maps: maps.items };
        Ok(List::new(maps.revision, vec![overview]))
    }

    fn grids(&self, all: bool) -> [Grid; 4] {
        [
            Grid::new(&self.interfaces),
            Grid::new(&self.pools),
            Grid::new(self.drops.iter().filter(|row| all || row.count.packets > 0)),
            Grid::new(&self.maps),
        ]
    }
}

impl Row for Overview {
    const SCHEMA: &'static str = "gateway.stats/v1";
}

impl Part {
    async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        match self {
            Self::Drops(Drops { all, watch }) => {
                let all = all || context.verbose;
                // JSON has every reason, so that a program finds the one it looks for.
                let shown = move |row: &DropRow| all || row.count.packets > 0;
                show(context, DROPS, &(), &watch, shown).await
            }
            Self::Routes(Routes { table, watch }) => {
                let query = RouteQuery { table, counters: true, ..RouteQuery::default() };
                show::<RouteRow>(context, ROUTES, &query, &watch, |_| true).await
            }
            Self::Pools(Plain { watch }) => {
                show::<PoolAddressRow>(context, POOLS, &(), &watch, |_| true).await
            }
            Self::Destinations(Destinations { limit, sources, watch }) => {
                let query = DestinationQuery { limit, sources };
                show::<DestinationRow>(context, DESTINATIONS, &query, &watch, |_| true).await
            }
            Self::Interfaces(Plain { watch }) => {
                show::<InterfaceStats>(context, INTERFACES, &(), &watch, |_| true).await
            }
            Self::Maps(Plain { watch }) => show::<MapRow>(context, MAPS, &(), &watch, |_| true).await,
        }
    }
}

/// Shows the counters of `path` once, or until the user has seen enough.
async fn show<T>(
    context: &mut Context<'_, '_>,
    path: &str,
    query: &impl Serialize,
    watch: &Watch,
    shown: impl Fn(&T) -> bool,
) -> Result<(), Failure>
where
    T: Rated + Serialize + DeserializeOwned,
{
    let mut list: List<T> = context.get(path, query).await?;
    let Some(interval) = watch.watch else {
        if context.json {
            return context.print_json(&list);
        }
        return context.print_grid(&Grid::new(list.items.iter().filter(|row| shown(row))));
    };
    let mut read = Instant::now();
    let mut next = read;
    let mut before: Option<(Vec<T>, Duration)> = None;
    loop {
        if context.json {
            context.print_json_line(&list)?;
        } else {
            let rows = list.items.iter().filter(|row| shown(row));
            let before = before.as_ref().map(|(rows, elapsed)| (rows.as_slice(), *elapsed));
            context.redraw(&Grid::with_rates(rows, before))?;
        }
        next += interval;
        tokio::time::sleep_until(next).await;
        let items = std::mem::replace(&mut list, context.get(path, query).await?).items;
        before = Some((items, std::mem::replace(&mut read, Instant::now()).elapsed()));
    }
}
