//! What `top` reads at one time.

use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::super::{context::Context, failure::Failure};
use crate::api::{
    error::exit,
    types::{
        DestinationQuery, DestinationRow, DropRow, InterfaceStats, List, PoolAddressRow, RouteQuery,
        RouteRow, SessionCount, SessionQuery, SessionUse, Status,
    },
};

/// Routes up to which all are read, to find the busiest: there is no telling which they are by less.
const ROUTES: u64 = 10_000;

/// Between two counts of sessions by source, at least.
const COUNT: Duration = Duration::from_secs(5);

/// Counting is this part of the time at most: it reads all sessions.
const SHARE: u32 = 20;

/// Rows that are asked for where the daemon ranks them; no screen has more.
const ROWS: u32 = 50;

/// What was read at one time.
pub(super) struct Reading {
    /// When the counters were read.
    pub(super) at: Instant,
    pub(super) revision: u64,
    pub(super) name: String,
    pub(super) active: bool,
    /// What is wrong, first things first.
    pub(super) problem: Option<String>,
    /// Seconds since the daemon started.
    pub(super) uptime: f64,
    pub(super) sessions: SessionUse,
    pub(super) interfaces: Vec<InterfaceStats>,
    pub(super) drops: Vec<DropRow>,
    /// `None`: there are too many.
    pub(super) routes: Option<Vec<RouteRow>>,
    pub(super) pools: Vec<PoolAddressRow>,
    pub(super) destinations: Vec<DestinationRow>,
    pub(super) sources: Option<Sources>,
}

/// Sessions by source.
#[derive(Clone)]
pub(super) struct Sources {
    /// When they were counted.
    pub(super) at: Instant,
    /// How long it took.
    pub(super) took: Duration,
    /// The sources with most of them.
    pub(super) rows: Vec<SessionCount>,
}

impl Reading {
    /// Reads everything; `sources` is what was counted last.
    pub(super) async fn take(context: &Context<'_, '_>, sources: Option<Sources>) -> Result<Self, Failure> {
        let query = DestinationQuery { limit: Some(ROWS), sources: Some(0) };
        // Destinations take a second, to see how fast they fill.
        let (counters, destinations, sources) = tokio::try_join!(
            Counters::take(context),
            context.get::<List<DestinationRow>>("/v1/stats/destinations", &query),
            Sources::take(context, sources),
        )?;
        let Counters { at, revision, status, interfaces, drops, routes } = counters;
        Ok(Self {
            at,
            revision,
            name: status.name,
            active: status.active,
            problem: status.problems.into_iter().next().map(|problem| problem.message),
            uptime: status.uptime,
            sessions: status.sessions,
            interfaces,
            drops,
            routes,
            pools: status.pools,
            destinations: destinations.items,
            sources: Some(sources),
        })
    }
}

/// Everything that has a rate.
struct Counters {
    at: Instant,
    revision: u64,
    status: Status,
    interfaces: Vec<InterfaceStats>,
    drops: Vec<DropRow>,
    routes: Option<Vec<RouteRow>>,
}

impl Counters {
    async fn take(context: &Context<'_, '_>) -> Result<Self, Failure> {
        let List { revision, items, .. }: List<Status> = context.get("/v1/status", &()).await?;
        let at = Instant::now();
        let status = items.into_iter().next();
        let status =
            status.ok_or_else(|| Failure::new(exit::UNEXPECTED, "gatewayd did not say how it is"))?;
        let interfaces = items_of(context, "/v1/stats/interfaces").await?;
        let drops = items_of(context, "/v1/stats/drops").await?;
        let routes: u64 = status.tables.iter().map(|table| table.routes).sum();
        let routes = if routes <= ROUTES {
            let query = RouteQuery { counters: true, ..RouteQuery::default() };
            let list: List<RouteRow> = context.get("/v1/stats/routes", &query).await?;
            Some(list.items)
        } else {
            None
        };
        Ok(Self { at, revision, status, interfaces, drops, routes })
    }
}

async fn items_of<T: DeserializeOwned>(context: &Context<'_, '_>, path: &str) -> Result<Vec<T>, Failure> {
    let list: List<T> = context.get(path, &()).await?;
    Ok(list.items)
}

impl Sources {
    /// Counts, unless it was done a short time ago.
    async fn take(context: &Context<'_, '_>, counted: Option<Self>) -> Result<Self, Failure> {
        if let Some(counted) = counted
            && counted.at.elapsed() < COUNT.max(counted.took * SHARE)
        {
            return Ok(counted);
        }
        let query = SessionQuery {
            by: Some("source".to_owned()),
            limit: Some(ROWS.into()),
            ..SessionQuery::default()
        };
        let at = Instant::now();
        let list: List<SessionCount> = context.get("/v1/sessions/count", &query).await?;
        Ok(Self { at, took: at.elapsed(), rows: list.items })
    }
}
