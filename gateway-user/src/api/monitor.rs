//! `monitor`: streams of what happens, a line of JSON for each event.

mod line;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use gateway_common::{DropReason, Verdict, reason::DropClass, record::Ending, watch::MAX_SNAPLEN};
use ipnet::IpNet;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep, sleep_until},
};

use self::line::{changes, of_event, text};
use super::{
    ApiError, ErrorKind, extract::Query, request::about, server::Ctx, status::Context, types::MonitorQuery,
};
use crate::{
    dataplane::watch::{Filter, MOST},
    model::{
        error::{ValueError, suggest},
        prefix::parse_prefix,
    },
    monitor::{Event, MOST_FOLLOWERS, Refusal, Watch},
};

/// Bytes of a packet that its line is made of: headers, tags and options.
const HEADERS: u32 = 256;
/// Packets that each CPU shows in a second, and sessions that are shown in one.
const RATE: u32 = 1_000;
/// Lines between what makes them and the connection.
const BACKLOG: usize = 64;
/// Packets that a CPU can be asked to show in a second.
const MAX_RATE: u32 = 100_000;
/// How long a stream may still tell something while the daemon stops.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What can be watched.
const EVENTS: [&str; 4] = ["drop", "limit", "route", "session"];

/// What a stream is made of.
#[expect(clippy::struct_excessive_bools, reason = "each of them is a word of the query")]
struct Wanted {
    drops: bool,
    limits: bool,
    routes: bool,
    sessions: bool,
    /// Of routes.
    within: Option<IpNet>,
    end: Bounds,
}

/// What the packet path is to show.
pub(super) struct Things {
    verdicts: Vec<Verdict>,
    reasons: Vec<DropReason>,
    openings: bool,
    endings: Vec<Ending>,
}

impl Things {
    /// Packets, and no sessions.
    pub(super) const fn packets(verdicts: Vec<Verdict>, reasons: Vec<DropReason>) -> Self {
        Self { verdicts, reasons, openings: false, endings: Vec::new() }
    }

    const fn is_empty(&self) -> bool {
        self.verdicts.is_empty() && !self.openings && self.endings.is_empty()
    }
}

/// When a stream ends.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) count: u64,
    pub(super) until: Option<Instant>,
}

/// `GET /v1/monitor`.
pub(super) async fn monitor(
    State(context): Ctx,
    Query(query): Query<MonitorQuery>,
) -> Result<Response, ApiError> {
    let wanted = query.wanted().map_err(about("monitor"))?;
    let things = wanted.things(query.reason.as_deref()).map_err(about("monitor"))?;
    let is_seen = !things.is_empty();
    let filter = query.filter(&context, things, (HEADERS, RATE))?;
    let packets = if is_seen { Some(watch(&context, filter).await?) } else { None };
    let routes = if wanted.routes { Some(follow(&context)?) } else { None };
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let answer = respond(&context, "application/x-ndjson", receiver);
    tokio::spawn(async move {
        tell(context, wanted, packets, sender).await;
        drop(routes);
    });
    Ok(answer)
}

/// An answer that goes on for as long as there is something to tell, and the daemon does not stop.
pub(super) fn respond(context: &Context, kind: &'static str, pieces: mpsc::Receiver<Bytes>) -> Response {
    let begin = (pieces, context.monitor.stopping());
    let pieces = futures::stream::unfold(begin, |(mut pieces, stopping)| async {
        let piece = tokio::select! {
            piece = pieces.recv() => piece?,
            () = async { stopping.cancelled().await; sleep(LAST_WORDS).await } => return None,
        };
        Some((Ok::<_, Infallible>(piece), (pieces, stopping)))
    });
    ([(CONTENT_TYPE, kind)], Body::from_stream(pieces)).into_response()
}

/// The right to watch routes.
fn follow(context: &Context) -> Result<OwnedSemaphorePermit, ApiError> {
    context.monitor.follow().ok_or_else(|| {
        let message = format!("{MOST_FOLLOWERS} streams watch routes, and no more can");
        ApiError::new("monitor", ErrorKind::Full, message).hint("end one of them")
    })
}

/// Begins to watch packets and sessions.
pub(super) async fn watch(context: &Context, filter: Filter) -> Result<Watch, ApiError> {
    context.monitor.watch(filter).await.map_err(|refusal| match refusal {
        Refusal::Busy => {
            let message = format!("{MOST} streams watch packets or sessions, and no more can");
            ApiError::new("monitor", ErrorKind::Full, message).hint("end one of them")
        }
        Refusal::Unavailable(why) => {
            ApiError::new("monitor", ErrorKind::Internal, format!("packets cannot be watched: {why}"))
                .hint("see the log of gatewayd")
        }
    })
}

impl MonitorQuery {
    fn wanted(&self) -> Result<Wanted, ValueError> {
        let mut wanted = Wanted {
            drops: false,
            limits: false,
            routes: false,
            sessions: false,
            within: self.to.as_deref().map(|text| parse_prefix("to", text)).transpose()?,
            end: self.bounds(),
        };
        let all = EVENTS.join(",");
        for event in self.events.as_deref().unwrap_or(&all).split(',') {
            match event {
                "drop" => wanted.drops = true,
                "limit" => wanted.limits = true,
                "route" => wanted.routes = true,
                "session" => wanted.sessions = true,
                other => {
                    let message = format!("`{other}` is nothing that can be watched");
                    return Err(ValueError::invalid("events", message).hint(suggest(other, EVENTS)));
                }
            }
        }
        Ok(wanted)
    }

    /// When the stream ends.
    pub(super) fn bounds(&self) -> Bounds {
        let until = self.milliseconds.map(|time| Instant::now() + Duration::from_millis(time));
        Bounds { count: self.count.unwrap_or(u64::MAX), until }
    }

    /// Which packets and sessions are to be seen; `usual` are bytes of a packet, and how many each CPU shows in a second.
    pub(super) fn filter(
        &self,
        context: &Context,
        Things { verdicts, reasons, openings, endings }: Things,
        (snaplen, rate): (u32, u32),
    ) -> Result<Filter, ApiError> {
        let read = || -> Result<Filter, ValueError> {
            let prefix = |field, text: &Option<String>| {
                text.as_deref().map(|text| parse_prefix(field, text)).transpose()
            };
            let snaplen = self.snaplen.unwrap_or(snaplen);
            if snaplen == 0 || snaplen > MAX_SNAPLEN {
                let message = format!("{snaplen} bytes of a packet cannot be kept");
                return Err(
                    ValueError::invalid("snaplen", message).hint(format!("between 1 and {MAX_SNAPLEN}"))
                );
            }
            let rate = self.rate.unwrap_or(rate);
            if rate == 0 || rate > MAX_RATE {
                let message = format!("{rate} a second cannot be shown");
                return Err(ValueError::invalid("rate", message).hint(format!("between 1 and {MAX_RATE}")));
            }
            Ok(Filter {
                from: prefix("from", &self.from)?,
                to: prefix("to", &self.to)?,
                proto: self.proto.as_deref().map(str::parse).transpose()?,
                dport: self.dport,
                ingress: self.iif.as_deref().map(|name| ingress(context, name)).transpose()?,
                openings,
                endings,
                verdicts,
                reasons,
                snaplen,
                rate,
            })
        };
        read().map_err(about("monitor"))
    }
}

/// Ifindex of an interface.
fn ingress(context: &Context, name: &str) -> Result<u32, ValueError> {
    let host = context.control.host();
    let known = host.links.get(name).map(|link| link.index);
    known.ok_or_else(|| {
        ValueError::invalid("iif", format!("the host has no interface `{name}`"))
            .hint(suggest(name, host.links.keys().map(String::as_str)))
    })
}

/// The reason with this name.
pub(super) fn reason(name: &str) -> Result<DropReason, ValueError> {
    let known = DropReason::ALL.iter().copied();
    known.clone().find(|reason| reason.name() == name).ok_or_else(|| {
        ValueError::invalid("reason", format!("`{name}` is not a reason why packets are dropped"))
            .hint(suggest(name, known.map(DropReason::name)))
    })
}

impl Wanted {
    /// What the packet path is to show; `only`: what was dropped, or has ended, for this reason.
    fn things(&self, only: Option<&str>) -> Result<Things, ValueError> {
        let dropped = |reason: &DropReason| self.drops || self.limits && is_limit(*reason);
        let verdicts = |wanted: bool| if wanted { vec![Verdict::Drop] } else { Vec::new() };
        let Some(only) = only else {
            let reasons: Vec<_> = DropReason::ALL.iter().copied().filter(dropped).collect();
            return Ok(Things {
                openings: self.sessions,
                endings: if self.sessions { Ending::ALL.to_vec() } else { Vec::new() },
                ..Things::packets(verdicts(!reasons.is_empty()), reasons)
            });
        };
        if let Some(ending) = Ending::ALL.iter().copied().find(|ending| ending.name() == only) {
            if !self.sessions {
                let message = format!("only sessions end with `{only}`");
                return Err(ValueError::invalid("reason", message).hint("watch `session`"));
            }
            return Ok(Things { endings: vec![ending], ..Things::packets(Vec::new(), Vec::new()) });
        }
        let only = reason(only)?;
        if dropped(&only) {
            return Ok(Things::packets(verdicts(true), vec![only]));
        }
        let who = if self.limits { "no limit drops packets" } else { "only packets are dropped" };
        let message = format!("{who} for `{}`", only.name());
        Err(ValueError::invalid("reason", message).hint("watch `drop`"))
    }
}

fn is_limit(reason: DropReason) -> bool {
    matches!(reason.class(), DropClass::Limit)
}

/// Writes lines until one of both sides has enough.
async fn tell(context: Arc<Context>, wanted: Wanted, mut packets: Option<Watch>, lines: mpsc::Sender<Bytes>) {
    let mut left = wanted.end.count;
    let mut revisions = context.control.revisions();
    let mut current = context.control.current();
    let mut ended = false;
    while left > 0 && !ended {
        let made = tokio::select! {
            event = next(&mut packets) => match event {
                Some(event) => vec![of_event(&event, wanted.limits)],
                // The daemon is stopping.
                None => return,
            },
            changed = revisions.changed() => {
                if changed.is_err() {
                    return;
                }
                let before = std::mem::replace(&mut current, context.control.current());
                if wanted.routes {
                    let (after, within) = (Arc::clone(&current), wanted.within);
                    // Of a million routes, the comparison takes a while.
                    let made = tokio::task::spawn_blocking(move || changes(&before, &after, within)).await;
                    made.unwrap_or_default()
                } else {
                    Vec::new()
                }
            },
            () = at(wanted.end.until) => {
                ended = true;
                Vec::new()
            }
            () = lines.closed() => return,
        };
        for line in made {
            if left > 0 && lines.send(text(&line)).await.is_err() {
                return;
            }
            left = left.saturating_sub(1);
        }
    }
    // What was not shown until now is told, too.
    if let Some(packets) = &mut packets {
        packets.close();
        while let Some(event) = packets.next().await {
            let is_told = matches!(event, Event::Lost(_)) || left > 0;
            if is_told && lines.send(text(&of_event(&event, wanted.limits))).await.is_err() {
                return;
            }
            left = left.saturating_sub(1);
        }
    }
}

/// The next event, if packets are watched.
async fn next(packets: &mut Option<Watch>) -> Option<Event> {
    match packets {
        Some(packets) => packets.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until then; without a time, for ever.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn things(events: Option<&str>, reason: Option<&str>) -> Result<Things, String> {
        let query = MonitorQuery { events: events.map(str::to_owned), ..MonitorQuery::default() };
        query.wanted().and_then(|wanted| wanted.things(reason)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_asked_for_is_asked_of_the_packet_path_and_no_more() {
        let all = things(None, None).expect("all");
        assert_eq!((all.verdicts, all.reasons.len()), (vec![Verdict::Drop], DropReason::ALL.len()));
        assert_eq!((all.openings, all.endings.len()), (true, Ending::ALL.len()));
        let limits = things(Some("limit"), None).expect("limits");
        assert!(limits.reasons.iter().all(|reason| is_limit(*reason)) && !limits.reasons.is_empty());
        assert!(!limits.openings && limits.endings.is_empty());
        let sessions = things(Some("session,route"), None).expect("sessions");
        assert!(sessions.verdicts.is_empty() && sessions.openings);
        assert!(things(Some("route"), None).expect("routes").is_empty());
    }

    #[test]
    fn a_reason_asks_for_those_who_have_it() {
        let reset = things(None, Some("rst")).expect("an ending");
        assert_eq!((reset.openings, reset.endings, reset.verdicts), (false, vec![Ending::Rst], Vec::new()));
        let denied = things(None, Some("no_route")).expect("a reason");
        assert_eq!((denied.reasons, denied.openings), (vec![DropReason::NoRoute], false));
        for (events, reason, why) in [
            ("drop", "fin", "only sessions end with `fin`"),
            ("limit", "no_route", "no limit drops packets for `no_route`"),
            ("session", "no_route", "only packets are dropped for `no_route`"),
            ("session", "nonsense", "`nonsense` is not a reason"),
        ] {
            let error = things(Some(events), Some(reason)).map(|_| ()).expect_err("it makes no sense");
            assert!(error.contains(why), "{error}");
        }
    }
}
