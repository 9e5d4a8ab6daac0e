//! What `top` draws of two readings.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use ratatui::{Terminal, backend::TestBackend};
use rstest::rstest;
use tokio::time::Instant;

use super::{
    before_panics, draw, keys,
    reading::{Reading, Sources},
    view::{View, number},
};
use crate::{
    api::types::{
        Count, DestinationRow, DropRow, Endpoint, InterfaceStats, PoolAddressRow, RouteRow, SessionCount,
        SessionUse, VerdictRow,
    },
    render::Paint,
};

fn count(packets: u64) -> Count {
    Count { packets, bytes: packets * 500 }
}

fn route(prefix: &str, packets: u64) -> RouteRow {
    let row = serde_json::json!({"table": "main", "prefix": prefix, "via": "pool nat", "log": false, "packets": packets});
    serde_json::from_value(row).expect("a row")
}

fn reading(at: Instant, packets: u64) -> Reading {
    let verdict = |direction: &str, verdict: &str, packets| VerdictRow {
        direction: direction.to_owned(),
        verdict: verdict.to_owned(),
        count: count(packets),
    };
    let drop = |reason: &str, packets, help: &str| DropRow {
        reason: reason.to_owned(),
        class: "policy".to_owned(),
        count: count(packets),
        help: help.to_owned(),
    };
    let address = "198.51.100.10".parse().expect("an address");
    let server = Endpoint { address: "203.0.113.10".parse().expect("an address"), port: 443 };
    Reading {
        at,
        revision: 42,
        name: "gw-1".to_owned(),
        active: true,
        problem: None,
        uptime: 7_300.0,
        sessions: SessionUse { total: 12_345, capacity: 1_048_576, ..SessionUse::default() },
        interfaces: vec![
            InterfaceStats {
                name: "eth1".to_owned(),
                received: count(packets),
                sent: count(packets),
                verdicts: vec![verdict("in", "snat", packets), verdict("in", "drop", packets / 100)],
            },
            InterfaceStats {
                name: "eth0".to_owned(),
                received: count(packets),
                sent: count(packets),
                verdicts: vec![verdict("in", "reply", packets * 2)],
            },
        ],
        drops: vec![
            drop(
                "no_route",
                packets / 100,
                "No route of the table that serves the source covers the destination.",
            ),
            drop("prohibited", 7, "A route says so."),
            drop("internal", 0, "A fault."),
        ],
        routes: Some(vec![route("203.0.113.0/24", packets), route("2001:db8:1::/48", packets / 2)]),
        pools: vec![PoolAddressRow {
            pool: "nat".to_owned(),
            address,
            ports: 64_512,
            sessions: 12_300,
            connection_attempts: packets / 10,
            connections_established: 0,
            port_allocation_errors: 0,
            over_rate: 0,
            over_concurrent: 0,
            idle_timeouts: 0,
            drained: false,
        }],
        destinations: vec![DestinationRow {
            pool: "nat".to_owned(),
            address,
            proto: "tcp".to_owned(),
            destination: server,
            sessions: 27_500,
            room: 55_000,
            headroom: 27_500,
            connections_per_second: 850,
            exhausted_in: Some(32),
            tokens: Some(900),
            admitted: 30_000,
            over_rate: 0,
            over_concurrent: 0,
            sources: Vec::new(),
        }],
        sources: Some(Sources {
            at,
            took: Duration::from_millis(1),
            rows: vec![SessionCount {
                source: Some("10.0.1.2".parse().expect("an address")),
                count: 9_000,
                ..SessionCount::default()
            }],
        }),
    }
}

fn screen(view: &View, (width, height): (u16, u16)) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw::draw(frame, view, Paint::new(false))).expect("a screen");
    terminal.backend().to_string()
}

fn view() -> View {
    let start = Instant::now();
    let (before, now) = (reading(start, 100_000), reading(start + Duration::from_secs(2), 300_000));
    View::of(Some(&before), &now, None, false, Duration::from_secs(2))
}

#[test]
fn everything_fits_on_a_small_terminal() {
    insta::assert_snapshot!(screen(&view(), (80, 24)));
}

#[test]
fn a_first_look_has_no_rates() {
    let view = View::of(None, &reading(Instant::now(), 5_000), None, true, Duration::from_secs(2));
    insta::assert_snapshot!(screen(&view, (80, 24)));
}

#[test]
fn too_many_routes_are_not_ranked_and_a_silent_daemon_is_told_above_what_was_read() {
    let now = Reading { routes: None, ..reading(Instant::now(), 5_000) };
    let view = View::of(None, &now, Some("gatewayd does not answer"), false, Duration::from_secs(2));
    assert!(view.wrong);
    let screen = screen(&view, (80, 24));
    assert!(screen.starts_with("\"gatewayd does not answer "), "{screen}");
    assert!(
        screen.contains("more than 10,000: not ranked") && screen.contains("nat 198.51.100.10"),
        "{screen}"
    );
}

#[test]
fn no_size_of_terminal_is_too_small_to_draw() {
    for size in [(1, 1), (10, 3), (20, 50), (300, 100)] {
        screen(&view(), size);
    }
}

#[rstest]
#[case(0.0, "0")]
#[case(0.25, "0.2")]
#[case(12.34, "12.3")]
#[case(999.4, "999")]
#[case(999.6, "1k")]
#[case(12_345.0, "12.3k")]
#[case(1_234_567_890.0, "1.2G")]
#[case(5e18, "5000000T")]
fn numbers_take_few_columns(#[case] value: f64, #[case] text: &str) {
    assert_eq!(number(value), text);
}

#[test]
fn a_panic_of_the_thread_that_reads_keys_gives_the_screen_back_and_ends() {
    let given_back = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&given_back);
    before_panics(move || flag.store(true, Relaxed));
    let mut keys = keys(|| panic!("this test's keyboard panics"));
    assert!(keys.blocking_recv().is_none(), "nothing comes any more, and the command ends");
    assert!(given_back.load(Relaxed));
}
