//! `gwctl route`.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use clap::{Args, Subcommand};
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    context::Context,
    failure::{self, Failure},
    value,
};
use crate::api::{
    error::exit,
    types::{
        Change, List, RouteFlush, RouteGet, RouteImport, RouteMatch, RouteQuery, RouteRequest, RouteRow,
        RouteSelector, Version,
    },
};

/// How long an import may take, if no longer time is given: a million prefixes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(10);

/// The name of a value that is a target: one to four words.
pub(super) const TARGET: &str = "TARGET";

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add a route; fails if the table has one with the same prefix, proto and dport
    #[command(after_help = "gwctl route add 203.0.113.0/24 via pool nat\n\
                            gwctl route add 192.0.2.53 via direct proto udp dport 53\n\
                            gwctl route add default via gateway 198.51.100.1 dev eth0 table servers\n\
                            gwctl route add 203.0.113.66 via prohibit comment \"asked for by security\"")]
    Add(Full),
    /// Add a route, or replace the one with the same prefix, proto and dport
    #[command(after_help = "gwctl route replace 203.0.113.0/24 via pool other")]
    Replace(Full),
    /// Remove a route
    #[command(
        alias = "delete",
        after_help = "gwctl route del 203.0.113.0/24\n\
                      gwctl route del 192.0.2.53 proto udp dport 53 table servers"
    )]
    Del(Selector),
    /// Show routes
    #[command(
        aliases = ["list", "ls"],
        after_help = "gwctl route show\n\
                      gwctl route show in 203.0.113.0/24 table main --counters\n\
                      gwctl route show for 203.0.113.7"
    )]
    Show(Show),
    /// Show the one route that decides a packet
    #[command(after_help = "gwctl route get 203.0.113.7\n\
                            gwctl route get 203.0.113.7 from 10.0.2.4 proto tcp dport 443")]
    Get(Get),
    /// Give a list of prefixes the same target
    #[command(after_help = "gwctl route import trusted.txt via direct table servers\n\
                            gwctl route import blocked.txt via prohibit --prune\n\
                            curl -s https://lists.example.com/v4.txt | gwctl route import - via pool nat")]
    Import(Import),
    /// Remove every route of a table
    #[command(after_help = "gwctl route flush table servers")]
    Flush(Flush),
}

#[derive(Args, Debug)]
pub(super) struct Full {
    /// Destination: prefix, address, or default (0.0.0.0/0)
    #[arg(value_name = "PREFIX")]
    prefix: String,
    /// direct | pool NAME | gateway ADDR [dev IF] | blackhole | prohibit | host
    #[arg(long, value_name = TARGET)]
    via: String,
    /// Table of the route [main]
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// Only packets of this protocol
    #[arg(long, value_name = "tcp|udp|icmp")]
    proto: Option<String>,
    /// Only packets to these ports
    #[arg(long, value_name = "A[-B]")]
    dport: Option<String>,
    /// Record its sessions in the access log
    #[arg(long)]
    log: bool,
    /// A note for whoever reads the table next
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Selector {
    /// Destination: prefix, address, or default (0.0.0.0/0)
    #[arg(value_name = "PREFIX")]
    prefix: String,
    /// Table of the route [main]
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// Protocol of the route
    #[arg(long, value_name = "tcp|udp|icmp")]
    proto: Option<String>,
    /// Ports of the route
    #[arg(long, value_name = "A[-B]")]
    dport: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Show {
    /// Routes of exactly this prefix
    #[arg(value_name = "PREFIX")]
    prefix: Option<String>,
    /// Routes of this prefix and of those inside it
    #[arg(long = "in", value_name = "PREFIX", conflicts_with = "prefix")]
    within: Option<String>,
    /// Routes that cover this address, the longest prefix first
    #[arg(long = "for", value_name = "ADDR", conflicts_with_all = ["prefix", "within"])]
    covering: Option<String>,
    /// Routes of this table
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// With packets and bytes
    #[arg(long, help_heading = super::words::OPTIONS)]
    counters: bool,
}

#[derive(Args, Debug)]
pub(super) struct Get {
    /// Destination of the packet
    #[arg(value_name = "ADDR")]
    address: String,
    /// Source of the packet, which selects the table
    #[arg(long, value_name = "ADDR")]
    from: Option<String>,
    /// Protocol of the packet
    #[arg(long, value_name = "tcp|udp|icmp")]
    proto: Option<String>,
    /// Destination port of the packet
    #[arg(long, value_name = "PORT", value_parser = value::port)]
    dport: Option<u16>,
}

#[derive(Args, Debug)]
pub(super) struct Import {
    /// File with a prefix a line, where # begins a remark; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// direct | pool NAME | eip | gateway ADDR [dev IF] | blackhole | prohibit | host
    #[arg(long, value_name = TARGET)]
    via: String,
    /// Table of the routes [main]
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// Remove the table's routes with this target whose prefix is not in the file
    #[arg(long, help_heading = super::words::OPTIONS)]
    prune: bool,
}

#[derive(Args, Debug)]
pub(super) struct Flush {
    /// Table that loses its routes
    #[arg(long, value_name = "TABLE", required = true)]
    table: String,
}

impl Verb {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        const PATH: &str = "/v1/routes";
        match self {
            Self::Add(route) => context.change(Method::POST, PATH, &RouteRequest::from(route)).await,
            Self::Replace(route) => context.change(Method::PUT, PATH, &RouteRequest::from(route)).await,
            Self::Del(Selector { prefix, table, proto, dport }) => {
                context.delete(PATH, &RouteSelector { prefix, table, proto, dport }).await
            }
            Self::Show(Show { prefix, within, covering, table, counters }) => {
                let query = RouteQuery { prefix, within, covering, table, counters };
                context.show::<RouteRow>(PATH, &query).await
            }
            Self::Get(Get { address, from, proto, dport }) => {
                let query = RouteGet { address, from, proto, dport };
                let list: List<RouteMatch> = context.get("/v1/routes/get", &query).await?;
                if context.json {
                    return context.print_json(&list);
                }
                context.print_grid(&crate::render::ruling(&list.items))
            }
            Self::Import(import) => import.run(context).await,
            Self::Flush(flush) => flush.run(context).await,
        }
    }
}

impl Import {
    async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        let Self { file, via, table, prune } = self;
        // Nobody should wait for a long list, or type one, for a daemon that is not there.
        let _: List<Version> = context.get("/v1/version", &()).await?;
        let text = read(&file).map_err(|error| {
            Failure::new(
                exit::UNEXPECTED,
                format!("cannot read {}: {}", file.display(), failure::reason(&error)),
            )
            .hint("give a file with a prefix a line, or `-` for standard input")
        })?;
        let bar = progress(text.len(), context.terminal.err_is_terminal && !context.quiet);
        let told = bar.clone();
        let sent = move |bytes: usize| {
            told.set_position(bytes as u64);
            if Some(bytes as u64) == told.length() {
                told.set_message("the gateway takes them over");
            }
        };
        let query = RouteImport { via, table, prune };
        let client = context.client.patient(PATIENCE);
        let upload = client.upload("/v1/routes/import", &query, text.into(), sent);
        let change: Result<Change, _> = while_ticking(&bar, upload).await;
        bar.finish_and_clear();
        context.changed(&change.map_err(|error| Failure::of_call(error, client.socket()))?)
    }
}

/// Waits for `work`, and has the bar show how time goes by. A thread of the bar's own could not: standard error is locked
/// as long as the program runs.
async fn while_ticking<T>(bar: &ProgressBar, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => bar.tick(),
        }
    }
}

/// The text of a file, or of standard input.
pub(super) fn read(file: &Path) -> io::Result<Vec<u8>> {
    if file.as_os_str() != "-" {
        return fs::read(file);
    }
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text)?;
    Ok(text)
}

/// A bar on standard error, where somebody looks at it.
fn progress(bytes: usize, shown: bool) -> ProgressBar {
    const STYLE: &str = "{bar:20} {bytes}/{total_bytes}  {elapsed}  {msg}";
    if !shown {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes as u64);
    if let Ok(style) = ProgressStyle::with_template(STYLE) {
        bar.set_style(style);
    }
    bar
}

impl Flush {
    async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        context.confirm(&format!("remove every route of table {}?", self.table))?;
        context.change(Method::POST, "/v1/routes/flush", &RouteFlush { table: self.table }).await
    }
}

impl From<Full> for RouteRequest {
    fn from(Full { prefix, via, table, proto, dport, log, comment }: Full) -> Self {
        Self { prefix, via, table, proto, dport, domain: None, log, comment }
    }
}
