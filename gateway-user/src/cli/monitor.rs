//! `gwctl monitor`.

use std::time::{Duration, Instant};

use clap::Args;

use super::{context::Context, failure::Failure, value};
use crate::{
    api::types::{MonitorLine, MonitorQuery},
    render,
};

#[derive(Args, Debug)]
#[command(after_help = "gwctl monitor drop\n\
                  gwctl monitor drop from 10.0.1.0/24 reason no_route\n\
                  gwctl monitor limit route --json\n\
                  gwctl monitor session to 203.0.113.0/24 reason rst\n\
                  gwctl monitor drop proto tcp dport 443 for 30s")]
pub(super) struct Monitor {
    /// What is shown [all of it]
    #[arg(value_name = "drop|limit|route|session", num_args = 0..)]
    events: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// Only packets that were dropped for this reason, or sessions that end with it
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    #[command(flatten)]
    bounds: Bounds,
}

/// Which packets are shown.
#[derive(Args, Debug)]
pub(super) struct Filter {
    /// Only packets from this address or prefix, as they arrive
    #[arg(long, value_name = "PREFIX")]
    from: Option<String>,
    /// Only packets to this address or prefix
    #[arg(long, value_name = "PREFIX")]
    to: Option<String>,
    /// Only this protocol
    #[arg(long, value_name = "tcp|udp|icmp")]
    proto: Option<String>,
    /// Only to this port
    #[arg(long, value_name = "PORT", value_parser = value::port)]
    dport: Option<u16>,
    /// Only what comes in through this interface, and sessions of clients behind it
    #[arg(long, value_name = "IF")]
    iif: Option<String>,
}

/// When it ends.
#[derive(Args, Debug)]
pub(super) struct Bounds {
    /// End after this number
    #[arg(long, value_name = "N", value_parser = value::count)]
    count: Option<u64>,
    /// End after this time
    #[arg(long = "for", value_name = "DUR", value_parser = value::duration)]
    time: Option<Duration>,
    /// Packets that each CPU shows in a second, and sessions that are shown in one; the others are counted
    #[arg(long, value_name = "N", help_heading = super::words::OPTIONS)]
    rate: Option<u32>,
}

impl Bounds {
    /// Whether it ends with this number, or after all this time.
    pub(super) fn are_reached(&self, count: u64, begin: Instant) -> bool {
        self.count.is_some_and(|most| count >= most) || self.time.is_some_and(|time| begin.elapsed() >= time)
    }
}

impl Filter {
    /// What is asked of the daemon.
    pub(super) fn query(self, bounds: &Bounds) -> MonitorQuery {
        let Self { from, to, proto, dport, iif } = self;
        MonitorQuery {
            from,
            to,
            proto,
            dport,
            iif,
            count: bounds.count,
            milliseconds: bounds.time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            rate: bounds.rate,
            ..MonitorQuery::default()
        }
    }
}

impl Monitor {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        let Self { events, filter, reason, bounds } = self;
        let events = if events.is_empty() { None } else { Some(events.join(",")) };
        let query = MonitorQuery { events, reason, ..filter.query(&bounds) };
        let (begin, mut shown) = (Instant::now(), 0);
        let mut stream = context.open("/v1/monitor", &query).await?;
        let mut line = Vec::new();
        while let Some(piece) = stream.next(context).await? {
            for part in piece.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(part);
                if line.ends_with(b"\n") {
                    shown += u64::from(show(context, &line)?);
                    line.clear();
                }
            }
            context.terminal.out.flush()?;
        }
        stream.finish(bounds.are_reached(shown, begin))
    }
}

/// Shows a line. Whether it is of an event, and not of those that are missing.
fn show(context: &mut Context<'_, '_>, text: &[u8]) -> Result<bool, Failure> {
    let line: MonitorLine = serde_json::from_slice(text).map_err(|error| {
        Failure::new(crate::api::error::exit::UNEXPECTED, format!("a line makes no sense: {error}"))
            .hint("compare the versions of the two programs with `gwctl version`")
    })?;
    if context.json {
        context.terminal.out.write_all(text)?;
    } else {
        context.print_text(&render::monitor::line(&line, context.paint))?;
    }
    Ok(line.lost.is_none())
}
