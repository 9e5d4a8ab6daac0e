//! `monitor`: streams of what happens, a line of JSON for each event.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use gateway_common::{
    DropReason, Verdict,
    parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP},
    reason::DropClass,
    watch::MAX_SNAPLEN,
};
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    ApiError, ErrorKind,
    extract::Query,
    request::about,
    server::Ctx,
    status::Context,
    types::{Endpoint, MonitorLine, MonitorQuery},
};
use crate::{
    control::Current,
    dataplane::watch::{Filter, MOST, Seen},
    model::{
        Route,
        error::{ValueError, suggest},
        prefix::parse_prefix,
    },
    monitor::{Event, Refusal, Watch},
};

/// Bytes of a packet that its line is made of: headers, tags and options.
const HEADERS: u32 = 256;
/// Packets that each CPU shows in a second.
const RATE: u32 = 1_000;
/// Lines between what makes them and the connection.
const BACKLOG: usize = 64;
/// Lines of one revision: of a change of more routes, the number of the others is told.
const MOST_CHANGES: usize = 1_000;
/// Packets that a CPU can be asked to show in a second.
const MAX_RATE: u32 = 100_000;
/// How long a stream may still tell something while the daemon stops.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What can be watched.
const EVENTS: [&str; 3] = ["drop", "limit", "route"];

/// What a stream is made of.
struct Wanted {
    drops: bool,
    limits: bool,
    routes: bool,
    /// Of routes.
    within: Option<IpNet>,
    end: Bounds,
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
    let packets = if wanted.drops || wanted.limits {
        let reasons = wanted.reasons(query.reason.as_deref()).map_err(about("monitor"))?;
        let filter = query.filter(&context, vec![Verdict::Drop], reasons, (HEADERS, RATE))?;
        Some(watch(&context, filter).await?)
    } else {
        None
    };
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let answer = respond(&context, "application/x-ndjson", receiver);
    tokio::spawn(tell(context, wanted, packets, sender));
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

/// Begins to watch packets.
pub(super) async fn watch(context: &Context, filter: Filter) -> Result<Watch, ApiError> {
    context.monitor.watch(filter).await.map_err(|refusal| match refusal {
        Refusal::Busy => {
            let message = format!("{MOST} streams watch packets, and no more can");
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
            within: self.to.as_deref().map(|text| parse_prefix("to", text)).transpose()?,
            end: self.bounds(),
        };
        let all = EVENTS.join(",");
        for event in self.events.as_deref().unwrap_or(&all).split(',') {
            match event {
                "drop" => wanted.drops = true,
                "limit" => wanted.limits = true,
                "route" => wanted.routes = true,
                "session" => {
                    let message = "sessions cannot be watched as a stream";
                    return Err(ValueError::unsupported("events", message).hint(
                        "`gwctl session watch` shows the busiest, and the access log has a record of each",
                    ));
                }
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

    /// Which packets are to be seen; `usual` are bytes of each, and packets of a CPU in a second.
    pub(super) fn filter(
        &self,
        context: &Context,
        verdicts: Vec<Verdict>,
        reasons: Vec<DropReason>,
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
                let message = format!("{rate} packets a second cannot be shown");
                return Err(ValueError::invalid("rate", message).hint(format!("between 1 and {MAX_RATE}")));
            }
            Ok(Filter {
                from: prefix("from", &self.from)?,
                to: prefix("to", &self.to)?,
                proto: self.proto.as_deref().map(str::parse).transpose()?,
                dport: self.dport,
                ingress: self.iif.as_deref().map(|name| ingress(context, name)).transpose()?,
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
    /// The reasons of packets that are to be seen.
    fn reasons(&self, only: Option<&str>) -> Result<Vec<DropReason>, ValueError> {
        let only = only.map(reason).transpose()?;
        let all = DropReason::ALL.iter().copied();
        let wanted = |reason: &DropReason| {
            (self.drops || is_limit(*reason)) && only.is_none_or(|only| only == *reason)
        };
        let reasons: Vec<_> = all.filter(wanted).collect();
        match only {
            Some(only) if reasons.is_empty() => {
                let message = format!("no limit drops packets for `{}`", only.name());
                Err(ValueError::invalid("reason", message).hint("watch `drop`"))
            }
            _ => Ok(reasons),
        }
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

fn text(line: &MonitorLine) -> Bytes {
    // The structure has no maps with keys that are no strings.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

fn of_event(event: &Event, limits: bool) -> MonitorLine {
    match event {
        Event::Packet(seen) => of_packet(seen, limits),
        Event::Lost(lost) => MonitorLine { lost: Some(*lost), ..MonitorLine::new("lost", Timestamp::now()) },
    }
}

/// The line of a dropped packet.
fn of_packet(seen: &Seen, limits: bool) -> MonitorLine {
    let event = if limits && seen.reason.is_some_and(is_limit) { "limit" } else { "drop" };
    let line = MonitorLine {
        reason: seen.reason.map(|reason| reason.name().to_owned()),
        interface: Some(seen.ingress.clone()),
        length: Some(seen.length),
        ..MonitorLine::new(event, seen.time)
    };
    match LaxSlicedPacket::from_ethernet(&seen.bytes) {
        Ok(packet) => of_headers(&packet, line),
        Err(_) => line,
    }
}

/// Adds what the headers of a packet say, as far as they are there.
fn of_headers(packet: &LaxSlicedPacket<'_>, line: MonitorLine) -> MonitorLine {
    let (source, destination, proto) = match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload_ip_number().0)
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), ip.payload().ip_number.0)
        }
        Some(LaxNetSlice::Arp(_)) => return MonitorLine { proto: Some("arp".to_owned()), ..line },
        None => return line,
    };
    let mut flags = None;
    let (source_port, port) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let names =
                [(tcp.syn(), 'S'), (tcp.fin(), 'F'), (tcp.rst(), 'R'), (tcp.psh(), 'P'), (tcp.ack(), 'A')];
            flags = Some(names.iter().filter(|(set, _)| *set).map(|(_, name)| name).collect());
            (tcp.source_port(), tcp.destination_port())
        }
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_)) | None => {
            (0, 0)
        }
    };
    let proto = match proto {
        PROTO_TCP => "tcp".to_owned(),
        PROTO_UDP => "udp".to_owned(),
        PROTO_ICMP | PROTO_ICMPV6 => "icmp".to_owned(),
        other => other.to_string(),
    };
    MonitorLine {
        proto: Some(proto),
        source: Some(Endpoint { address: source, port: source_port }),
        destination: Some(Endpoint { address: destination, port }),
        flags,
        ..line
    }
}

/// The lines of the routes that are not the same in two revisions, [`MOST_CHANGES`] of them at the most.
fn changes(before: &Current, after: &Current, within: Option<IpNet>) -> Vec<MonitorLine> {
    let time = Timestamp::now();
    let (old, new) = (&before.snapshot.tables, &after.snapshot.tables);
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    let (mut lines, mut others) = (Vec::new(), 0);
    for name in names {
        let [old, new] =
            [old, new].map(|tables| tables.get(name).map(|table| table.routes.clone()).unwrap_or_default());
        for difference in old.diff(&new) {
            if within.is_some_and(|within| !within.contains(&difference.key.prefix)) {
                continue;
            }
            if lines.len() == MOST_CHANGES {
                others += 1;
                continue;
            }
            let change = match (difference.before, difference.after) {
                (None, _) => "add",
                (Some(_), None) => "del",
                (Some(_), Some(_)) => "replace",
            };
            let target =
                difference.after.or(difference.before).map(|Route { target, .. }| target.to_string());
            lines.push(MonitorLine {
                change: Some(change.to_owned()),
                table: Some(name.clone()),
                route: Some(difference.key.to_string()),
                target,
                revision: Some(after.revision),
                ..MonitorLine::new("route", time)
            });
        }
    }
    if others > 0 {
        lines.push(MonitorLine { lost: Some(others), ..MonitorLine::new("lost", time) });
    }
    lines
}
