//! `monitor`: a line for each event.

use std::fmt::Write as _;

use super::{Paint, Tone};
use crate::api::types::{Count, Endpoint, MonitorLine};

/// An event as a terminal shows it.
pub fn line(line: &MonitorLine, paint: Paint) -> String {
    let time = line.time.strftime("%H:%M:%S%.6f");
    let mut text = format!("{} {}", paint.text(Tone::Faint, time), line.event);
    // Writing to a string does not fail.
    let mut add = |word: &str| {
        let _infallible = write!(text, " {word}");
    };
    if let Some(lost) = line.lost {
        add(&paint.text(Tone::Notice, format!("{lost} events are missing here")));
    }
    if let Some(change) = &line.change {
        add(change);
    }
    if let Some(reason) = &line.reason {
        // That a session ends is nothing bad.
        let tone = if line.change.is_none() { Tone::Bad } else { Tone::Faint };
        add(&paint.text(tone, reason));
    }
    let is_route = line.source.is_none();
    if is_route {
        add_way(line, &mut add);
    }
    if let Some(interface) = &line.interface {
        add(&format!("iif {interface}"));
    }
    if let Some(proto) = &line.proto {
        add(proto);
    }
    if let (Some(source), Some(destination)) = (&line.source, &line.destination) {
        add(&format!("{} > {}", end(source), end(destination)));
    }
    if let Some(translated) = &line.translated {
        add(&format!("as {}", end(translated)));
    }
    if !is_route {
        add_way(line, &mut add);
    }
    if let Some(flags) = &line.flags {
        add(&format!("[{flags}]"));
    }
    if let Some(length) = line.length {
        add(&format!("length {length}"));
    }
    if let Some(revision) = line.revision {
        add(&format!("revision {revision}"));
    }
    if let Some(age) = line.age {
        add(&format!("after {age:.1}s"));
    }
    for (word, count) in [("sent", &line.sent), ("received", &line.received)] {
        if let Some(Count { packets, bytes }) = count {
            add(&format!("{word} {packets} packets {bytes} bytes"));
        }
    }
    text.push('\n');
    text
}

/// A route, or that of a session.
fn add_way(line: &MonitorLine, add: &mut impl FnMut(&str)) {
    let is_session = line.source.is_some();
    for (word, value) in [("route", &line.route), ("via", &line.target), ("table", &line.table)] {
        let Some(value) = value else { continue };
        if word != "route" || is_session {
            add(word);
        }
        add(value);
    }
}

fn end(end: &Endpoint) -> String {
    if end.port == 0 { end.address.to_string() } else { end.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(event: &str, fill: impl FnOnce(MonitorLine) -> MonitorLine) -> String {
        let time = "2026-03-01T12:03:04.000005Z".parse().expect("a time");
        line(&fill(MonitorLine::new(event, time)), Paint::new(false))
    }

    #[test]
    fn a_line_says_what_there_is_and_no_more() {
        let end = |address: &str, port| Some(Endpoint { address: address.parse().expect("it"), port });
        let dropped = shown("drop", |line| MonitorLine {
            reason: Some("no_route".to_owned()),
            interface: Some("eth1".to_owned()),
            proto: Some("tcp".to_owned()),
            source: end("10.0.1.2", 40000),
            destination: end("2001:db8::1", 443),
            flags: Some("S".to_owned()),
            length: Some(74),
            ..line
        });
        assert_eq!(
            dropped,
            "12:03:04.000005 drop no_route iif eth1 tcp 10.0.1.2:40000 > [2001:db8::1]:443 [S] length 74\n"
        );
        let closed = shown("session", |line| MonitorLine {
            change: Some("close".to_owned()),
            reason: Some("fin".to_owned()),
            interface: Some("eth1".to_owned()),
            proto: Some("tcp".to_owned()),
            source: end("10.0.1.2", 40000),
            translated: end("198.51.100.10", 40000),
            destination: end("203.0.113.10", 443),
            target: Some("pool nat".to_owned()),
            table: Some("main".to_owned()),
            route: Some("203.0.113.0/24".to_owned()),
            age: Some(1.5),
            sent: Some(Count { packets: 9, bytes: 900 }),
            received: Some(Count { packets: 8, bytes: 8_000 }),
            ..line
        });
        assert_eq!(
            closed,
            "12:03:04.000005 session close fin iif eth1 tcp 10.0.1.2:40000 > 203.0.113.10:443 as 198.51.100.10:40000 \
             route 203.0.113.0/24 via pool nat table main after 1.5s sent 9 packets 900 bytes received 8 packets 8000 bytes\n"
        );
        let lost = shown("lost", |line| MonitorLine { lost: Some(3), ..line });
        assert_eq!(lost, "12:03:04.000005 lost 3 events are missing here\n");
        let route = shown("route", |line| MonitorLine {
            change: Some("add".to_owned()),
            route: Some("203.0.113.0/24".to_owned()),
            target: Some("pool nat".to_owned()),
            table: Some("main".to_owned()),
            revision: Some(7),
            ..line
        });
        assert_eq!(route, "12:03:04.000005 route add 203.0.113.0/24 via pool nat table main revision 7\n");
    }
}
