//! The life of TCP sessions: what opens and closes them, which resets are believed, and when they go.

use std::{thread::sleep, time::Duration};

use gateway_common::{
    DropReason::{DestinationRate, NoSession, PoolExhausted, SessionTableFull, SourceRate},
    Verdict::{Reply, Snat},
};
use gateway_tests::{
    counters::drops,
    gateway::Action,
    packet::{ACK, FIN, Packet, RST, SYN, tcp, udp},
};

use crate::support::{Expected, Lab, POOL, POOL6, ROUTER, dropped, nat, sent, snat, standard};

const ALL: &str = "0.0.0.0/0";
/// Sequence number of the client's SYN.
const CLIENT: u32 = 5_000;
/// Sequence number of the server's SYN.
const SERVER: u32 = 900_000;
/// Idle time of what is not established.
const SHORT: Duration = Duration::from_secs(1);

/// A segment of the client.
fn forth(flags: u8, sequence: u32, acknowledgement: u32) -> Packet {
    tcp("10.0.1.2:4000", "203.0.113.10:443", flags).numbers(sequence, acknowledgement).payload([])
}

/// A segment of the server.
fn back(flags: u8, sequence: u32, acknowledgement: u32) -> Packet {
    tcp("203.0.113.10:443", "198.51.100.10:4000", flags).numbers(sequence, acknowledgement).payload([])
}

/// What comes of a segment of the session.
fn passes(segment: &Packet) -> Expected {
    if segment.source == gateway_tests::packet::ip("10.0.1.2") {
        sent("out0", ROUTER, Snat, &segment.clone().from("198.51.100.10:4000")).by(ALL, "pool")
    } else {
        sent("in0", "10.0.1.2", Reply, &segment.clone().to("10.0.1.2:4000")).by(ALL, "pool")
    }
}

/// Lets a segment through and checks the state of the only session afterwards.
#[track_caller]
fn leads(lab: &mut Lab, segment: &Packet, to: &str) {
    let device = if segment.source == gateway_tests::packet::ip("10.0.1.2") { "in0" } else { "out0" };
    lab.check(device, segment, passes(segment));
    assert_eq!(state(lab), to);
}

#[track_caller]
fn state(lab: &Lab) -> &'static str {
    let sessions = lab.sessions();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    sessions[0].state
}

/// Opens a session and shakes hands.
#[track_caller]
fn shake_hands(lab: &mut Lab) {
    let syn = forth(SYN, CLIENT, 0);
    lab.check("in0", &syn, passes(&syn).opening("tcp", POOL));
    assert_eq!(state(lab), "opening");
    let answer = back(SYN | ACK, SERVER, CLIENT + 1);
    lab.check("out0", &answer, passes(&answer).establishing(POOL));
    assert_eq!(state(lab), "opening");
    leads(lab, &forth(ACK, CLIENT + 1, SERVER + 1), "established");
}

/// Times as short as a test can wait for, but for established connections.
fn short() -> Option<Lab> {
    standard(|policy| nat(policy).tcp_idle(Duration::from_mins(10), SHORT))
}

#[test]
fn a_connection_is_established_when_the_client_has_answered_the_servers_syn() {
    let Some(mut lab) = snat() else { return };
    shake_hands(&mut lab);
    // What is repeated changes nothing and is not counted as another answer.
    leads(&mut lab, &back(SYN | ACK, SERVER, CLIENT + 1), "established");
    leads(&mut lab, &forth(SYN, CLIENT, 0), "established");
}

#[test]
fn a_simultaneous_open_establishes_the_connection() {
    let Some(mut lab) = snat() else { return };
    let syn = forth(SYN, CLIENT, 0);
    lab.check("in0", &syn, passes(&syn).opening("tcp", POOL));
    let other = back(SYN, SERVER, 0);
    lab.check("out0", &other, passes(&other).establishing(POOL));
    leads(&mut lab, &forth(SYN | ACK, CLIENT, SERVER + 1), "established");
    leads(&mut lab, &back(SYN | ACK, SERVER, CLIENT + 1), "established");
}

#[test]
fn a_connection_is_closed_by_two_fins_and_lives_on_one() {
    let Some(mut lab) = snat() else { return };
    shake_hands(&mut lab);
    leads(&mut lab, &forth(FIN | ACK, CLIENT + 1, SERVER + 1), "closing");
    leads(&mut lab, &back(ACK, SERVER + 1, CLIENT + 2).payload([1; 500]), "closing");
    leads(&mut lab, &back(FIN | ACK, SERVER + 501, CLIENT + 2), "closed");
    leads(&mut lab, &forth(ACK, CLIENT + 2, SERVER + 502), "closed");
}

#[test]
fn the_server_may_hang_up_first() {
    let Some(mut lab) = snat() else { return };
    shake_hands(&mut lab);
    leads(&mut lab, &back(FIN | ACK, SERVER + 1, CLIENT + 1), "closing");
    leads(&mut lab, &forth(ACK, CLIENT + 1, SERVER + 2).payload([1; 500]), "closing");
    leads(&mut lab, &forth(FIN | ACK, CLIENT + 501, SERVER + 2), "closed");
}

#[test]
fn a_reset_is_believed_where_the_client_expects_the_next_byte() {
    let Some(mut lab) = snat() else { return };
    shake_hands(&mut lab);
    // The client acknowledges 1,000 bytes on the path that is fast.
    leads(&mut lab, &forth(ACK, CLIENT + 1, SERVER + 1_001), "established");
    for forged in [0, SERVER, SERVER + 1_000, SERVER + (1 << 25)] {
        lab.check("out0", &back(RST, forged, 0), dropped(NoSession).by(ALL, "pool"));
        assert_eq!(state(&lab), "established");
    }
    leads(&mut lab, &back(RST, SERVER + 1_001, 0), "closed");
}

#[test]
fn a_client_that_does_not_believe_in_a_reset_keeps_its_session() {
    let Some(mut lab) = snat() else { return };
    shake_hands(&mut lab);
    leads(&mut lab, &back(RST, SERVER + 5_000, 0), "closed");
    // The server goes on, which proves nothing; the acknowledgement with which RFC 5961 has the client answer
    // does.
    leads(&mut lab, &back(ACK, SERVER + 1, CLIENT + 1).payload([1; 100]), "closed");
    leads(&mut lab, &forth(ACK, CLIENT + 1, SERVER + 101), "established");
}

#[test]
fn a_client_may_reset_its_connection() {
    let Some(mut lab) = snat() else { return };
    shake_hands(&mut lab);
    leads(&mut lab, &forth(RST | ACK, CLIENT + 1, SERVER + 1), "closed");
}

#[test]
fn a_refusal_is_believed_where_it_acknowledges_the_syn() {
    let Some(mut lab) = snat() else { return };
    let syn = forth(SYN, CLIENT, 0);
    lab.check("in0", &syn, passes(&syn).opening("tcp", POOL));
    for forged in [back(RST, 0, 0), back(RST | ACK, 0, CLIENT), back(RST, CLIENT + 1, 0)] {
        lab.check("out0", &forged, dropped(NoSession).by(ALL, "pool"));
        assert_eq!(state(&lab), "opening");
    }
    leads(&mut lab, &back(RST | ACK, 0, CLIENT + 1), "closed");
}

#[test]
fn a_syn_on_a_closed_session_begins_another_connection() {
    let Some(mut lab) = snat() else { return };
    shake_hands(&mut lab);
    for round in 0..2 {
        let close = if round == 0 { forth(RST, CLIENT + 1, 0) } else { back(RST | ACK, 0, CLIENT + 7_001) };
        leads(&mut lab, &close, "closed");
        let syn = forth(SYN, CLIENT + 7_000, 0);
        lab.check("in0", &syn, passes(&syn).counting(&format!("pool nat {POOL} attempts")));
        assert_eq!(state(&lab), "opening");
    }
    let answer = back(SYN | ACK, SERVER, CLIENT + 7_001);
    lab.check("out0", &answer, passes(&answer).establishing(POOL));
    leads(&mut lab, &forth(ACK, CLIENT + 7_001, SERVER + 1), "established");
}

/// The third connection on one session, where a limit has tokens for two.
fn third_on_a_session(lab: &mut Lab) -> Packet {
    for (device, segment) in [
        ("in0", forth(SYN, CLIENT, 0)),
        ("out0", back(SYN | ACK, SERVER, CLIENT + 1)),
        ("in0", forth(ACK, CLIENT + 1, SERVER + 1)),
        ("in0", forth(RST, CLIENT + 1, 0)),
        ("in0", forth(SYN, CLIENT + 7_000, 0)),
        ("out0", back(RST | ACK, 0, CLIENT + 7_001)),
    ] {
        assert_eq!(lab.prepare(device, &segment).action, Action::Redirect);
    }
    assert_eq!(state(lab), "closed");
    forth(SYN, CLIENT + 9_000, 0)
}

#[test]
fn a_connection_that_begins_on_a_closed_session_takes_a_token() {
    let Some(mut lab) = standard(|policy| nat(policy).limit("nat", 1, 2, 0)) else { return };
    let syn = third_on_a_session(&mut lab);
    let attempt = dropped(DestinationRate).by(ALL, "pool").counting(&format!("pool nat {POOL} attempts"));
    lab.check("in0", &syn, attempt.counting(&format!("pool nat {POOL} over_rate")));
    assert_eq!(state(&lab), "closed");
    let rows = lab.destinations();
    assert_eq!((rows[0].sessions, rows[0].admitted, rows[0].over_rate), (1, 2, 1));
    sleep(Duration::from_millis(1_100));
    assert_eq!(lab.prepare("in0", &syn).action, Action::Redirect);
    assert_eq!(state(&lab), "opening");
}

#[test]
fn a_connection_that_begins_on_a_closed_session_takes_a_token_of_its_clients() {
    let Some(mut lab) = standard(|policy| nat(policy).limit_sources("a", "10.0.1.0/24", "source", (1, 2, 0)))
    else {
        return;
    };
    let syn = third_on_a_session(&mut lab);
    let before = lab.destinations();
    assert_eq!(lab.prepare("in0", &syn).action, Action::Drop);
    assert_eq!(lab.counters().packets(&drops(SourceRate)), 1);
    assert_eq!(state(&lab), "closed");
    assert_eq!(lab.destinations()[0].admitted, before[0].admitted, "the destination's was given back");
    sleep(Duration::from_millis(1_100));
    assert_eq!(lab.prepare("in0", &syn).action, Action::Redirect);
}

/// A connection that both sides have closed; the client's last timestamp is `stamp`.
#[track_caller]
fn close(lab: &mut Lab, stamp: &[u8]) {
    shake_hands(lab);
    leads(lab, &forth(FIN | ACK, CLIENT + 1, SERVER + 1).tcp_options(stamp), "closing");
    leads(lab, &back(FIN | ACK, SERVER + 1, CLIENT + 2), "closed");
}

/// The option, between others.
fn stamped(stamp: u32) -> [u8; 12] {
    let [a, b, c, d] = stamp.to_be_bytes();
    [1, 1, 8, 10, a, b, c, d, 0, 0, 0, 9]
}

#[test]
fn a_syn_that_is_not_ahead_of_the_closed_connection_is_dropped() {
    let Some(mut lab) = snat() else { return };
    close(&mut lab, &[]);
    // Those of the connection itself, late, and all that look older than it.
    for sequence in [CLIENT, CLIENT + 1, CLIENT + 2, 0, CLIENT.wrapping_add(1 << 31) + 2] {
        let late = forth(SYN, sequence, 0);
        lab.check("in0", &late, dropped(NoSession).by(ALL, "pool"));
        // No timestamp of the connection is known, so that this one tells nothing.
        lab.check("in0", &late.tcp_options(&stamped(u32::MAX / 2)), dropped(NoSession).by(ALL, "pool"));
        assert_eq!(state(&lab), "closed");
    }
    let syn = forth(SYN, CLIENT + 3, 0);
    lab.check("in0", &syn, passes(&syn).counting(&format!("pool nat {POOL} attempts")));
    assert_eq!(state(&lab), "opening");
}

#[test]
fn a_newer_timestamp_makes_a_syn_that_of_another_connection() {
    let Some(mut lab) = snat() else { return };
    close(&mut lab, &stamped(700));
    let syn = |stamp| forth(SYN, CLIENT - 100, 0).tcp_options(&stamped(stamp));
    for old in [700, 699, 700 + (1 << 31)] {
        lab.check("in0", &syn(old), dropped(NoSession).by(ALL, "pool"));
    }
    // The last acknowledgement of the client counts, too.
    leads(&mut lab, &forth(ACK, CLIENT + 2, SERVER + 2).tcp_options(&stamped(710)), "closed");
    lab.check("in0", &syn(705), dropped(NoSession).by(ALL, "pool"));
    lab.check("in0", &syn(711), passes(&syn(711)).counting(&format!("pool nat {POOL} attempts")));
    assert_eq!(state(&lab), "opening");
}

#[test]
fn any_syn_will_do_when_the_server_has_forgotten_the_connection() {
    // A quarter of the idle time of closed connections.
    let policy = |policy| nat(policy).tcp_idle(Duration::from_mins(10), Duration::from_secs(8));
    let Some(mut lab) = standard(policy) else { return };
    close(&mut lab, &[]);
    let syn = forth(SYN, CLIENT, 0);
    lab.check("in0", &syn, dropped(NoSession).by(ALL, "pool"));
    sleep(Duration::from_millis(2_300));
    lab.check("in0", &syn, passes(&syn).counting(&format!("pool nat {POOL} attempts")));
}

#[test]
fn closed_and_half_open_connections_go_early_and_established_ones_stay() {
    let Some(mut lab) = short() else { return };
    shake_hands(&mut lab);
    let half_open = tcp("10.0.1.2:4001", "203.0.113.10:443", SYN);
    let refused = tcp("10.0.1.2:4002", "203.0.113.10:443", SYN).numbers(CLIENT, 0).payload([]);
    let reset = tcp("10.0.1.2:4003", "203.0.113.10:443", SYN);
    for syn in [&half_open, &refused, &reset] {
        lab.open("in0", syn);
    }
    lab.prepare("out0", &tcp("203.0.113.10:443", "198.51.100.10:4002", RST | ACK).numbers(0, CLIENT + 1));
    lab.prepare("in0", &reset.flags(RST));
    sleep(SHORT + Duration::from_millis(300));
    for _ in 0..20 {
        lab.sweep();
    }
    assert_eq!(lab.session_balance(), (4, 3, 1));
    assert_eq!(state(&lab), "established");
    let counters = lab.counters();
    assert_eq!(counters.packets("sessions tcp closed"), 2);
    assert_eq!(counters.packets("sessions tcp expired"), 1);
}

#[test]
fn where_no_port_is_free_those_of_closed_connections_are_used_again() {
    // A closed connection rests for a sixteenth of its idle time.
    let policy = |policy| {
        nat(policy)
            .pool("nat", &format!("{POOL} {POOL6}"), "5000-5003")
            .tcp_idle(Duration::from_mins(10), 16 * SHORT)
    };
    let Some(mut lab) = standard(policy) else { return };
    let syn = |client: u16| tcp("10.0.1.2:1", "203.0.113.10:443", SYN).from_port(4000 + client);
    let places: Vec<_> = (0..4).map(|client| lab.open("in0", &syn(client))).collect();
    let refused = |lab: &mut Lab, client| {
        let expected = dropped(PoolExhausted).by(ALL, "pool").counting("pool nat 198.51.100.10 attempts");
        lab.check("in0", &syn(client), expected.counting("pool nat 198.51.100.10 allocation_errors"));
    };
    for client in [1, 2] {
        lab.prepare("in0", &syn(client).flags(RST));
    }
    refused(&mut lab, 4);
    lab.sweep_all();
    refused(&mut lab, 4);
    sleep(SHORT + Duration::from_millis(300));
    refused(&mut lab, 4);
    let before = lab.counters();
    for _ in 0..3 {
        lab.sweep();
    }
    let swept = lab.counters().since(&before);
    assert_eq!(swept.to_string(), "  pool nat 198.51.100.10 closed: 2\n  sessions tcp closed: 2\n");
    for client in [4, 5] {
        let place = lab.open("in0", &syn(client));
        assert!([places[1], places[2]].contains(&place), "{place:?} is of {places:?}");
    }
    refused(&mut lab, 6);
}

#[test]
fn short_connections_go_on_for_ever_without_a_refusal() {
    // Closed connections rest for a sixteenth of their idle time, a quarter of a second. Then they make room, before
    // the last port is taken, and long before their idle time is over.
    let policy = |policy| {
        nat(policy)
            .pool("nat", &format!("{POOL} {POOL6}"), "5000-5099")
            .tcp_idle(Duration::from_mins(10), Duration::from_secs(4))
    };
    let Some(mut lab) = standard(policy) else { return };
    let begin = std::time::Instant::now();
    let mut number = 0;
    while begin.elapsed() < Duration::from_secs(3) {
        let syn = tcp("10.0.1.2:1", "203.0.113.10:443", SYN).from_port(4000 + number);
        lab.open("in0", &syn);
        lab.prepare("in0", &syn.flags(RST));
        number += 1;
        sleep(Duration::from_millis(10));
        lab.sweep();
    }
    assert!(number > 150, "{number} connections");
    assert_eq!(lab.counters().packets(&drops(PoolExhausted)), 0);
}

#[test]
fn a_flood_of_syns_stops_at_the_bound_and_harms_nothing_else() {
    let Some(mut lab) = standard(|policy| nat(policy).half_open(20).tcp_idle(Duration::from_mins(10), SHORT))
    else {
        return;
    };
    shake_hands(&mut lab);
    let syn = |client: u16| tcp("10.0.1.3:1", "203.0.113.10:443", SYN).from_port(10_000 + client);
    let full = |route| dropped(SessionTableFull).by(route, "pool");
    let flood = |lab: &mut Lab| {
        let mut sent = 0..;
        while lab.half_open() < 20 {
            lab.prepare("in0", &syn(sent.next().expect("no end")));
        }
        for client in 0..100 {
            lab.check("in0", &syn(5_000 + client), full(ALL));
        }
        sent.start
    };
    assert_eq!(flood(&mut lab), 20);
    // The bound is one for both families, and for TCP only.
    lab.check("in0", &tcp("[2001:db8:1::2]:1", "[2001:db8:77::1]:443", SYN), full("::/0"));
    lab.open("in0", &udp("10.0.1.3:1", "203.0.113.10:53"));
    // Connections that are established go on, and those that are opening may become so.
    leads_first(&mut lab, &forth(ACK, CLIENT + 1, SERVER + 1).payload([1; 900]));
    leads_first(&mut lab, &back(ACK, SERVER + 1, CLIENT + 901).payload([1; 900]));
    lab.prepare("out0", &tcp("203.0.113.10:443", "198.51.100.10:10000", SYN | ACK).numbers(7, 1));
    assert_eq!(lab.half_open(), 20);
    lab.prepare("in0", &syn(0).flags(ACK).numbers(1, 8));
    lab.prepare("in0", &syn(1).flags(RST));
    assert_eq!(lab.half_open(), 18);
    // Half open connections do not stay for ever.
    sleep(SHORT + Duration::from_millis(300));
    lab.sweep_all();
    assert_eq!(lab.half_open(), 0);
    flood(&mut lab);
    leads_first(&mut lab, &forth(ACK, CLIENT + 1, SERVER + 901).payload([1; 900]));
}

/// Lets a segment of the first of many sessions through.
#[track_caller]
fn leads_first(lab: &mut Lab, segment: &Packet) {
    let device = if segment.source == gateway_tests::packet::ip("10.0.1.2") { "in0" } else { "out0" };
    lab.check(device, segment, passes(segment));
}

#[test]
fn the_number_of_half_open_connections_is_exact_whatever_many_cpus_do() {
    const FLOWS: u16 = 64;
    let Some(mut lab) = standard(|policy| nat(policy).tcp_idle(Duration::from_mins(10), SHORT)) else {
        return;
    };
    let kinds = [SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK];
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let mut most = 0;
    for round in 0..24 {
        let device = if round % 2 == 0 { "in0" } else { "out0" };
        let segments: Vec<Vec<u8>> = (0..600)
            .map(|_| {
                let (flow, flags) = (4000 + next(FLOWS.into()) as u16, kinds[next(kinds.len())]);
                // What the others have sent, mostly: the states of all flows move.
                let packet = if device == "in0" {
                    tcp("10.0.1.2:1", "203.0.113.10:443", flags).from_port(flow).numbers(CLIENT, SERVER + 1)
                } else {
                    tcp("203.0.113.10:443", &format!("198.51.100.10:{flow}"), flags)
                        .numbers(SERVER + 1, CLIENT + 1)
                };
                lab.arriving(device, &packet.payload([])).frame()
            })
            .collect();
        // The same segments on every CPU at once.
        lab.race_all(device, &[segments.clone(), segments]);
        if round % 8 == 7 {
            sleep(SHORT + Duration::from_millis(300));
            lab.sweep();
            lab.sweep();
        }
        let opening = lab.sessions().iter().filter(|session| session.state == "opening").count();
        assert_eq!(lab.half_open(), opening, "round {round}");
        most = most.max(opening);
    }
    assert!(most > 5, "a test that opens nothing shows nothing");
    sleep(SHORT + Duration::from_millis(300));
    lab.sweep_all();
    assert_eq!(lab.half_open(), 0);
}

/// A gateway with a few ports, where a closed connection rests for a second.
fn few_ports(ports: &str) -> Option<Lab> {
    standard(|policy| {
        let policy = nat(policy).pool("nat", &format!("{POOL} {POOL6}"), ports);
        policy.tcp_idle(Duration::from_mins(10), 16 * SHORT)
    })
}

#[test]
fn of_closed_connections_the_oldest_give_their_ports_first() {
    let Some(mut lab) = few_ports("5000-5007") else { return };
    let syn = |client: u16| tcp("10.0.1.2:1", "203.0.113.10:443", SYN).from_port(4000 + client);
    let places: Vec<_> = (0..8).map(|client| lab.open("in0", &syn(client))).collect();
    let close = |lab: &mut Lab, clients: std::ops::Range<u16>| {
        clients.for_each(|client| drop(lab.prepare("in0", &syn(client).flags(RST))));
    };
    close(&mut lab, 0..4);
    sleep(2 * SHORT);
    close(&mut lab, 4..8);
    sleep(SHORT + Duration::from_millis(300));
    // Both halves have rested.
    let reason = dropped(PoolExhausted).by(ALL, "pool").counting("pool nat 198.51.100.10 attempts");
    lab.check("in0", &syn(8), reason.counting("pool nat 198.51.100.10 allocation_errors"));
    for _ in 0..3 {
        lab.sweep();
    }
    let taken = 8 - lab.session_balance().2;
    assert!((1..=4).contains(&taken), "{taken} sessions were taken");
    for client in 0..taken as u16 {
        let place = lab.open("in0", &syn(10 + client));
        assert!(places[..4].contains(&place), "{place:?} is not of {:?}", &places[..4]);
    }
}

#[test]
fn a_port_whose_server_may_remember_it_is_not_for_a_syn_that_is_behind() {
    let Some(mut lab) = few_ports("4000") else { return };
    close(&mut lab, &[]);
    sleep(SHORT + Duration::from_millis(300));
    let other = |sequence| tcp("10.0.1.3:4000", "203.0.113.10:443", SYN).numbers(sequence, 0).payload([]);
    for (sequence, taken) in [(CLIENT, 0), (CLIENT + 3, 1)] {
        lab.prepare("in0", &other(sequence));
        for _ in 0..3 {
            lab.sweep();
        }
        assert_eq!(lab.session_balance(), (1, taken, 1 - taken as usize), "a SYN with {sequence}");
    }
    lab.open("in0", &other(CLIENT + 3));
}

#[test]
fn the_states_of_ipv6_connections_move_as_those_of_ipv4() {
    let Some(mut lab) = snat() else { return };
    let forth = |flags, sequence, acknowledgement| {
        tcp("[2001:db8:1::2]:4000", "[2001:db8:77::1]:443", flags)
            .numbers(sequence, acknowledgement)
            .payload([])
    };
    let back = |flags, sequence, acknowledgement| {
        tcp("[2001:db8:77::1]:443", "[2001:db8:100::10]:4000", flags)
            .numbers(sequence, acknowledgement)
            .payload([])
    };
    for (device, segment, to) in [
        ("in0", forth(SYN, CLIENT, 0), "opening"),
        ("out0", back(SYN | ACK, SERVER, CLIENT + 1), "opening"),
        ("in0", forth(ACK, CLIENT + 1, SERVER + 1), "established"),
        ("out0", back(RST, SERVER, 0), "established"),
        ("out0", back(FIN | ACK, SERVER + 1, CLIENT + 1), "closing"),
        ("in0", forth(FIN | ACK, CLIENT + 1, SERVER + 2), "closed"),
    ] {
        lab.prepare(device, &segment);
        assert_eq!(state(&lab), to);
    }
    assert_eq!(lab.counters().packets("drops no_session"), 1);
}
