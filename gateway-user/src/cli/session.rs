//! `gwctl session`.

use std::{net::SocketAddr, time::Duration};

use clap::{Args, Subcommand};

use super::{
    context::Context,
    failure::Failure,
    value,
    watch::{self, Before},
};
use crate::api::types::{List, SessionCount, SessionQuery, SessionRow, WhohadQuery, WhohadRow};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show sessions
    #[command(
        aliases = ["list", "ls"],
        after_help = "gwctl session show from 10.0.1.0/24 dport 443\n\
                      gwctl session show sort bytes limit 10\n\
                      gwctl session show proxy squid"
    )]
    Show(Show),
    /// Count sessions
    #[command(after_help = "gwctl session count\n\
                            gwctl session count proto tcp by destination")]
    Count(Count),
    /// Show the busiest sessions again and again, with rates
    #[command(after_help = "gwctl session watch\n\
                            gwctl session watch from 10.0.1.2 sort packets --interval 5")]
    Watch(Watch),
    /// Say whose an address and a port of a pool were at a time
    #[command(after_help = "gwctl session whohad 198.51.100.10:41234 at 2026-03-01T12:03:04Z\n\
                            gwctl session whohad 198.51.100.10:41234 proto udp at 2026-03-01T13:03:04+01:00")]
    Whohad(Whohad),
}

#[derive(Args, Debug)]
pub(super) struct Selectors {
    /// Only from this address or prefix
    #[arg(long, value_name = "PREFIX")]
    from: Option<String>,
    /// Only to this address or prefix
    #[arg(long, value_name = "PREFIX")]
    to: Option<String>,
    /// Only this protocol
    #[arg(long, value_name = "tcp|udp|icmp")]
    proto: Option<String>,
    /// Only to this port
    #[arg(long, value_name = "PORT", value_parser = value::port)]
    dport: Option<u16>,
    /// Only through this pool
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Only through this proxy
    #[arg(long, value_name = "PROXY")]
    proxy: Option<String>,
    /// Only in this state
    #[arg(long, value_name = "opening|established|closing|closed|active|replied")]
    state: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Show {
    #[command(flatten)]
    selectors: Selectors,
    /// The largest, or the oldest, first
    #[arg(long, value_name = "bytes|age|packets")]
    sort: Option<String>,
    /// Not more than this number [1000]
    #[arg(long, value_name = "N", value_parser = value::count)]
    limit: Option<u64>,
}

#[derive(Args, Debug)]
pub(super) struct Count {
    #[command(flatten)]
    selectors: Selectors,
    /// One number for each
    #[arg(long, value_name = "pool|route|proto|source|destination")]
    by: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Watch {
    #[command(flatten)]
    selectors: Selectors,
    /// The largest, or the oldest, first [bytes]
    #[arg(long, value_name = "bytes|age|packets")]
    sort: Option<String>,
    /// Not more than this number [20]
    #[arg(long, value_name = "N", value_parser = value::count)]
    limit: Option<u64>,
    /// Seconds between two looks [2]
    #[arg(
        long,
        value_name = "SECS",
        value_parser = value::interval,
        help_heading = super::words::OPTIONS
    )]
    interval: Option<Duration>,
}

#[derive(Args, Debug)]
pub(super) struct Whohad {
    /// Address of a pool, and a port
    #[arg(value_name = "ADDR:PORT")]
    endpoint: SocketAddr,
    /// Only this protocol
    #[arg(long, value_name = "tcp|udp|icmp")]
    proto: Option<String>,
    /// When, with its zone: 2026-03-01T12:03:04Z
    #[arg(long, value_name = "TIME")]
    at: String,
}

impl Verb {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        match self {
            Self::Show(show) => show.run(context).await,
            Self::Watch(watch) => watch.run(context).await,
            Self::Count(Count { selectors, by }) => {
                let query = SessionQuery { by, ..selectors.into() };
                context.show::<SessionCount>("/v1/sessions/count", &query).await
            }
            Self::Whohad(Whohad { endpoint, proto, at }) => {
                let query = WhohadQuery { address: endpoint.ip(), port: endpoint.port(), proto, at };
                context.show::<WhohadRow>("/v1/sessions/whohad", &query).await
            }
        }
    }
}

impl Show {
    async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        let query = SessionQuery { sort: self.sort, limit: self.limit, ..self.selectors.into() };
        let list: List<SessionRow> = context.get("/v1/sessions", &query).await?;
        context.print(&list)?;
        // Whoever names a limit expects it to cut.
        let shown = list.items.len() as u64;
        if let Some(total) = list.total.filter(|&total| total > shown && query.limit.is_none()) {
            context.note(&format!("{shown} of {total} sessions shown; `limit N` shows more"));
        }
        Ok(())
    }
}

impl Watch {
    async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        let interval = self.interval.unwrap_or(Duration::from_secs(2));
        let query = SessionQuery {
            sort: self.sort.or_else(|| Some("bytes".to_owned())),
            limit: self.limit.or(Some(20)),
            ..self.selectors.into()
        };
        let read = async |context: &Context<'_, '_>| context.get("/v1/sessions", &query).await;
        let grids =
            |now: &[SessionRow], before: &Before<'_, SessionRow>| vec![watch::grid(now, before, |_| true)];
        watch::show(context, read, Some(interval), grids).await
    }
}

impl From<Selectors> for SessionQuery {
    fn from(Selectors { from, to, proto, dport, pool, proxy, state }: Selectors) -> Self {
        Self { from, to, proto, dport, pool, proxy, state, ..Self::default() }
    }
}
