//! `gwctl explain`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{context::Context, failure::Failure};
use crate::{
    api::{
        error::exit,
        types::{ExplainQuery, ExplainRow, List},
    },
    config::{self, Config},
    dataplane::Connected,
    explain::{World, pcap, walk},
    render,
};

/// `--exit-verdict`: dropped.
const DROPPED: u8 = 20;
/// Left to the host's own stack.
const LEFT: u8 = 21;
/// Only the programs can tell.
const OPEN: u8 = 22;

#[derive(Args, Debug)]
#[command(after_help = "gwctl explain 203.0.113.10:443 from 10.0.1.2\n\
                  gwctl explain 203.0.113.10:53 from 10.0.1.2 proto udp iif eth1 --live\n\
                  gwctl explain 203.0.113.10:443 from 10.0.1.2 --config new.toml --exit-verdict\n\
                  gwctl explain --pcap clients.pcap --config new.toml")]
pub(super) struct Explain {
    /// Destination of the packet; without a port, an ICMP echo request
    #[arg(value_name = "ADDR[:PORT]", required_unless_present = "pcap")]
    to: Option<String>,
    /// Source of the packet
    #[arg(long, value_name = "ADDR[:PORT]", required_unless_present = "pcap")]
    from: Option<String>,
    /// Protocol of the packet [tcp]
    #[arg(long, value_name = "tcp|udp|icmp")]
    proto: Option<String>,
    /// Interface it arrives on [where its source is]
    #[arg(long, value_name = "IF")]
    iif: Option<String>,
    /// Ask the loaded programs, too; no packet notices, and nothing is counted
    #[arg(long, help_heading = super::words::OPTIONS, conflicts_with = "config")]
    live: bool,
    /// By this configuration file, without a daemon
    #[arg(long, value_name = "FILE", help_heading = super::words::OPTIONS)]
    config: Option<PathBuf>,
    /// Explain every packet of this capture (pcap or pcapng), as the first one of its flow; -v shows the steps
    #[arg(
        long,
        value_name = "FILE",
        help_heading = super::words::OPTIONS,
        conflicts_with_all = ["to", "from", "proto", "exit_verdict"]
    )]
    pcap: Option<PathBuf>,
    /// Exit with 0 if it is sent on, 20 if dropped, 21 if left to the host, 22 if not known
    #[arg(long, help_heading = super::words::OPTIONS)]
    exit_verdict: bool,
}

impl Explain {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<u8, Failure> {
        let Self { to, from, proto, iif, live, config, pcap, exit_verdict } = self;
        let config = config.as_deref().map(load).transpose()?;
        if let Some(file) = pcap {
            return capture(context, &file, iif.as_deref(), live, config.as_ref()).await;
        }
        let query =
            ExplainQuery { to: to.unwrap_or_default(), from: from.unwrap_or_default(), proto, iif, live };
        let list = match &config {
            Some(config) => List::new(0, vec![offline(&query, config)?]),
            None => context.get("/v1/explain", &query).await?,
        };
        let Some(row) = list.items.first() else {
            return Err(Failure::new(exit::UNEXPECTED, "gatewayd did not say what becomes of the packet"));
        };
        if context.json {
            context.print_json(&list)?;
        } else {
            let text = render::explain::walk(row, context.paint);
            context.print_text(&text)?;
        }
        Ok(if exit_verdict { code(row) } else { exit::OK })
    }
}

/// Explains every packet of a capture.
async fn capture(
    context: &mut Context<'_, '_>,
    file: &Path,
    iif: Option<&str>,
    live: bool,
    config: Option<&Config>,
) -> Result<u8, Failure> {
    let frames = pcap::frames(file).map_err(|error| {
        Failure::new(exit::INVALID, format!("cannot read {}: {error:#}", file.display()))
            .hint("it takes captures of Ethernet frames, as `gwctl capture`, tcpdump and tshark write them")
    })?;
    let mut list = List::new(0, Vec::new());
    for frame in &frames {
        let row = match pcap::question(frame, iif) {
            Err(what) => ExplainRow::unasked(what),
            Ok(question) => {
                let query = ExplainQuery { live, ..ExplainQuery::of(&question) };
                if let Some(config) = config {
                    offline(&query, config)?
                } else {
                    match context.get::<List<ExplainRow>>("/v1/explain", &query).await {
                        Ok(mut answer) => {
                            list.revision = answer.revision;
                            answer.items.pop().ok_or_else(|| {
                                Failure::new(
                                    exit::UNEXPECTED,
                                    "gatewayd did not say what becomes of a packet",
                                )
                            })?
                        }
                        // Nothing can be asked about this one; others may be of another kind.
                        Err(Failure::Told { exit: exit::INVALID, message, .. }) => {
                            ExplainRow::unasked(format!("{} > {}: {message}", question.from, question.to))
                        }
                        Err(failure) => return Err(failure),
                    }
                }
            }
        };
        list.items.push(row);
    }
    if context.json {
        context.print_json(&list)?;
    } else {
        for (number, row) in (1..).zip(&list.items) {
            let text = render::explain::packet(number, row, context.paint, context.verbose);
            context.print_text(&text)?;
        }
    }
    Ok(exit::OK)
}

fn load(file: &Path) -> Result<Config, Failure> {
    config::load(file).map_err(|error| {
        Failure::new(exit::INVALID, error.to_string()).hint("`gatewayd --check-config` tells more")
    })
}

fn offline(query: &ExplainQuery, config: &Config) -> Result<ExplainRow, Failure> {
    let question = query.question().map_err(|error| {
        let failure = Failure::new(exit::INVALID, error.message.clone());
        match error.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })?;
    let connected = Connected::new();
    let world = World {
        state: &config.snapshot,
        connected: &connected,
        host: None,
        ways: None,
        told: None,
        present: None,
    };
    Ok(ExplainRow::of(&question, &walk(&world, &question)))
}

/// The exit code of `--exit-verdict`. What the programs say counts.
fn code(row: &ExplainRow) -> u8 {
    let live = row.live.as_ref().map(|live| live.verdict.as_str());
    match live.or(row.verdict.as_deref()) {
        Some("drop") => DROPPED,
        Some("host") => LEFT,
        Some(_) => exit::OK,
        None => OPEN,
    }
}
