//! `gwctl stats`.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    context::Context,
    failure::Failure,
    value,
    watch::{self, Before},
};
use crate::{
    api::types::{
        DestinationQuery, DestinationRow, DropRow, InterfaceStats, List, MapRow, PoolAddressRow, RouteQuery,
        RouteRow, Row, UsageQuery, UsageRow,
    },
    render::{Grid, Rated, comma_separated},
};

const INTERFACES: &str = "/v1/stats/interfaces";
const POOLS: &str = "/v1/stats/pools";
const DESTINATIONS: &str = "/v1/stats/destinations";
const DROPS: &str = "/v1/stats/drops";
const MAPS: &str = "/v1/stats/maps";
const ROUTES: &str = "/v1/stats/routes";
const USAGE: &str = "/v1/stats/usage";

#[derive(Args, Debug)]
#[command(
    after_help = "gwctl stats\ngwctl stats --watch\ngwctl stats drops --watch\ngwctl stats pools --json"
)]
pub(super) struct Stats {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    watch: Watch,
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
    /// What sessions have carried, by group of sources and destinations; see `gwctl group`
    #[command(
        after_help = "gwctl stats usage\ngwctl stats usage since 1h\ngwctl stats usage since 30days --csv\n\
                      gwctl stats usage --watch"
    )]
    Usage(Usage),
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
struct Usage {
    /// Of this time only: 10m, 1h, 30days; as far back as gatewayd has run, 31 days at most
    #[arg(long, value_name = "DUR", value_parser = value::duration)]
    since: Option<Duration>,
    /// Print comma separated values
    #[arg(long, conflicts_with = "interval", help_heading = super::words::OPTIONS)]
    csv: bool,
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
        long = "watch",
        value_name = "SECS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = value::interval,
        help_heading = super::words::OPTIONS
    )]
    interval: Option<Duration>,
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
        let Some(part) = self.part else {
            let all = context.verbose;
            let grids = |now: &[Overview], before: &Before<'_, Overview>| Overview::grids(now, before, all);
            return watch::show(context, Overview::read, self.watch.interval, grids).await;
        };
        // `stats --watch drops` means what `stats drops --watch` does.
        part.run(context, self.watch.interval).await
    }
}

impl Overview {
    async fn read(context: &Context<'_, '_>) -> Result<List<Self>, Failure> {
        let interfaces: List<InterfaceStats> = context.get(INTERFACES, &()).await?;
        let pools: List<PoolAddressRow> = context.get(POOLS, &()).await?;
        let drops: List<DropRow> = context.get(DROPS, &()).await?;
        let maps: List<MapRow> = context.get(MAPS, &()).await?;
        let overview =
            Self { interfaces: interfaces.items, pools: pools.items, drops: drops.items, maps: maps.items };
        Ok(List::new(maps.revision, vec![overview]))
    }

    /// One grid for each part that has anything.
    fn grids(now: &[Self], before: &Before<'_, Self>, all: bool) -> Vec<Grid> {
        let Some(this) = now.first() else { return Vec::new() };
        let drops = |row: &DropRow| all || row.count.packets > 0;
        let grids = [
            watch::grid(&this.interfaces, &before.part(|it| &it.interfaces), |_| true),
            watch::grid(&this.pools, &before.part(|it| &it.pools), |_| true),
            watch::grid(&this.drops, &before.part(|it| &it.drops), drops),
            Grid::new(&this.maps),
        ];
        grids.into_iter().filter(|grid| !grid.is_empty()).collect()
    }
}

impl Row for Overview {
    const SCHEMA: &'static str = "gateway.stats/v1";
}

impl Part {
    async fn run(self, context: &mut Context<'_, '_>, interval: Option<Duration>) -> Result<(), Failure> {
        match self {
            Self::Drops(Drops { all, watch }) => {
                let all = all || context.verbose;
                // JSON has every reason, so that a program finds the one it looks for.
                let shown = move |row: &DropRow| all || row.count.packets > 0;
                rows(context, DROPS, &(), watch.interval.or(interval), shown).await
            }
            Self::Routes(Routes { table, watch }) => {
                let query = RouteQuery { table, counters: true, ..RouteQuery::default() };
                rows::<RouteRow>(context, ROUTES, &query, watch.interval.or(interval), |_| true).await
            }
            Self::Pools(Plain { watch }) => {
                rows::<PoolAddressRow>(context, POOLS, &(), watch.interval.or(interval), |_| true).await
            }
            Self::Destinations(Destinations { limit, sources, watch }) => {
                let query = DestinationQuery { limit, sources };
                let interval = watch.interval.or(interval);
                rows::<DestinationRow>(context, DESTINATIONS, &query, interval, |_| true).await
            }
            Self::Interfaces(Plain { watch }) => {
                rows::<InterfaceStats>(context, INTERFACES, &(), watch.interval.or(interval), |_| true).await
            }
            Self::Usage(Usage { since, csv, watch }) => {
                let query = UsageQuery { since: since.map(|since| since.as_secs_f64()) };
                match watch.interval.or(interval) {
                    None => usage(context, &query, csv).await,
                    Some(_) if csv => Err(Failure::usage("`--csv` and `--watch` do not go together")
                        .hint("leave one of them out")),
                    interval => rows::<UsageRow>(context, USAGE, &query, interval, |_| true).await,
                }
            }
            Self::Maps(Plain { watch }) => {
                rows::<MapRow>(context, MAPS, &(), watch.interval.or(interval), |_| true).await
            }
        }
    }
}

/// Shows what sessions have carried, and says since when.
async fn usage(context: &mut Context<'_, '_>, query: &UsageQuery, csv: bool) -> Result<(), Failure> {
    if csv && context.json {
        return Err(Failure::usage("`--csv` and `--json` do not go together").hint("leave one of them out"));
    }
    let list: List<UsageRow> = context.get(USAGE, query).await?;
    if csv {
        context.print_text(&comma_separated(&list.items, context.header))?;
    } else {
        context.print(&list)?;
    }
    if let Some(since) = list.items.first().and_then(|row| row.since.as_ref()) {
        context.note(&format!("since {since}"));
    }
    Ok(())
}

/// Shows the counters of `path` once, or until the user has seen enough.
async fn rows<T>(
    context: &mut Context<'_, '_>,
    path: &str,
    query: &impl Serialize,
    interval: Option<Duration>,
    shown: impl Fn(&T) -> bool,
) -> Result<(), Failure>
where
    T: Rated + Serialize + DeserializeOwned,
{
    let read = async |context: &Context<'_, '_>| context.get(path, query).await;
    let grids = |now: &[T], before: &Before<'_, T>| vec![watch::grid(now, before, &shown)];
    watch::show(context, read, interval, grids).await
}
