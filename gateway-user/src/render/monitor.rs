//! `monitor`: a line for each event.

use std::fmt::Write as _;

use super::{Paint, Tone};
use crate::api::types::{Endpoint, MonitorLine};

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
    if let Some(reason) = &line.reason {
        add(&paint.text(Tone::Bad, reason));
    }
    if let Some(change) = &line.change {
        add(change);
    }
    if let Some(route) = &line.route {
        add(route);
    }
    for (word, value) in [("via", &line.target), ("table", &line.table), ("iif", &line.interface)] {
        if let Some(value) = value {
            add(word);
            add(value);
        }
    }
    if let Some(proto) = &line.proto {
        add(proto);
    }
    if let (Some(source), Some(destination)) = (&line.source, &line.destination) {
        add(&format!("{} > {}", end(source), end(destination)));
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
    text.push('\n');
    text
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
