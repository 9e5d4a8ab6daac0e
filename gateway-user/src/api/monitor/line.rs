//! Lines of `monitor`.

use axum::body::Bytes;
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use ipnet::IpNet;
use jiff::Timestamp;

use super::is_limit;
use crate::{
    api::{
        sessions,
        types::{Endpoint, MonitorLine},
    },
    control::Current,
    dataplane::watch::{Life, Seen},
    model::Route,
    monitor::Event,
};

/// Lines of one revision: of a change of more routes, the number of the others is told.
const MOST_CHANGES: usize = 1_000;

/// A line as it is sent.
pub(super) fn text(line: &MonitorLine) -> Bytes {
    // The structure has no maps with keys that are no strings.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// The line of an event; `limits`: packets that a limit refuses are told apart.
pub(super) fn of_event(event: &Event, limits: bool) -> MonitorLine {
    match event {
        Event::Packet(seen) => of_packet(seen, limits),
        Event::Session(life) => of_session(life),
        Event::Lost(lost) => MonitorLine { lost: Some(*lost), ..MonitorLine::new("lost", Timestamp::now()) },
    }
}

/// The line of a session that has opened or ended.
fn of_session(session: &Life) -> MonitorLine {
    let end = |(address, port)| Endpoint { address, port };
    let line = MonitorLine {
        change: Some(if session.ending.is_none() { "open" } else { "close" }.to_owned()),
        reason: session.ending.map(|ending| ending.name().to_owned()),
        interface: session.ingress.clone(),
        proto: Some(sessions::proto(session.proto)),
        source: Some(end(session.source)),
        translated: session.translated.map(end),
        destination: Some(end(session.destination)),
        table: session.table.clone(),
        route: session.route.map(|route| route.to_string()),
        target: session.target.clone(),
        ..MonitorLine::new("session", session.time)
    };
    if session.ending.is_none() {
        return line;
    }
    let age = session.time.duration_since(session.start);
    MonitorLine {
        age: Some(age.as_secs_f64().max(0.0)),
        sent: Some(session.sent.into()),
        received: Some(session.received.into()),
        ..line
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
    MonitorLine {
        proto: Some(sessions::proto(proto)),
        source: Some(Endpoint { address: source, port: source_port }),
        destination: Some(Endpoint { address: destination, port }),
        flags,
        ..line
    }
}

/// The lines of the routes that are not the same in two revisions, [`MOST_CHANGES`] of them at the most.
pub(super) fn changes(before: &Current, after: &Current, within: Option<IpNet>) -> Vec<MonitorLine> {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        control::{Command, Import},
        model::{Snapshot, Target},
    };

    fn current(revision: u64, snapshot: Snapshot) -> Current {
        Current {
            snapshot: Arc::new(snapshot),
            revision,
            config_differs: false,
            config_changed: false,
            confirmation: None,
            apply_error: None,
            host_error: None,
            health_error: None,
        }
    }

    #[test]
    fn of_a_change_of_many_routes_so_many_are_told_and_the_number_of_the_others() {
        const MANY: u32 = 50_000;
        let prefixes = (0..MANY).map(|number| IpNet::new((0x0a00_0000 + number).to_be_bytes().into(), 32));
        let import = Import {
            table: "main".to_owned(),
            target: Target::Direct,
            prefixes: prefixes.map(|prefix| prefix.expect("a prefix")).collect(),
            prune: false,
        };
        let command = Command::RouteImport(Arc::new(import));
        let after = command.change(&Snapshot::default()).expect("routes");
        let (before, after) = (current(1, Snapshot::default()), current(2, after));
        let lines = changes(&before, &after, None);
        assert_eq!(lines.len(), MOST_CHANGES + 1);
        assert!(lines[..MOST_CHANGES].iter().all(|line| line.change.as_deref() == Some("add")));
        let last = &lines[MOST_CHANGES];
        assert_eq!((last.event.as_str(), last.lost), ("lost", Some(u64::from(MANY) - MOST_CHANGES as u64)));
        // Of those that are asked for, none is missing.
        let within = Some("10.0.0.0/30".parse().expect("a prefix"));
        let lines = changes(&after, &before, within);
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.change.as_deref() == Some("del") && line.lost.is_none()));
    }
}
