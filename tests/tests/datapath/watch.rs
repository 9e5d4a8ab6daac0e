//! Watching: packets are shown as they have arrived, with what became of them, and only while somebody watches.

use std::{
    array,
    net::IpAddr,
    sync::Arc,
    thread::sleep,
    time::{Duration, SystemTime},
};

use gateway_common::{DropReason, Verdict, counter::Counter, record::Ending, session::TCP_SYN};
use gateway_tests::{
    gateway::{Action, Gateway},
    network::Network,
    packet::{Packet, echo_request, tcp, udp},
    policy::Policy,
};
use gateway_user::dataplane::watch::{Filter, Life, MOST, Seen, Sight, Watchers};

use super::support::{POOL, POOL6, nat};

const CLIENT: &str = "10.0.1.2:5000";
const SERVER: &str = "203.0.113.10:53";
/// Where no route leads.
const NOWHERE: &str = "198.51.100.99:53";

/// A gateway with a route to the server by a pool and none elsewhere.
fn gateway() -> Option<Gateway> {
    let network = Network::standard();
    let policy = nat(Policy::of(&network)).routes("198.51.100.96/28 via blackhole");
    Gateway::start(network, &policy)
}

fn send(gateway: &mut Gateway, packet: &Packet) -> (Action, Vec<u8>) {
    let mac = gateway.network().find("in0").mac();
    let frame = packet.clone().macs([2, 0, 0, 0, 0, 9], mac).frame();
    (gateway.run("in0", &frame).action, frame)
}

fn drops() -> Filter {
    Filter {
        from: None,
        to: None,
        proto: None,
        dport: None,
        ingress: None,
        openings: false,
        endings: Vec::new(),
        verdicts: vec![Verdict::Drop],
        reasons: DropReason::ALL.to_vec(),
        snaplen: 4_096,
        rate: 1_000_000,
    }
}

fn everything() -> Filter {
    Filter { verdicts: Verdict::ALL.to_vec(), ..drops() }
}

fn watch(watchers: &mut dyn Watchers, filters: &[Filter]) {
    let filters: [_; MOST] = array::from_fn(|number| filters.get(number).cloned());
    watchers.set(&filters).expect("they can watch");
}

fn read_all(watchers: &mut dyn Watchers) -> Vec<(u32, Sight)> {
    let mut all = Vec::new();
    while watchers.read(64, &mut all).expect("what was seen") > 0 {}
    all
}

/// Packets, where nobody watches sessions.
fn read(watchers: &mut dyn Watchers) -> Vec<(u32, Arc<Seen>)> {
    let is_packet = |(whom, sight)| match sight {
        Sight::Packet(seen) => (whom, seen),
        Sight::Session(life) => panic!("{life:#?}"),
    };
    read_all(watchers).into_iter().map(is_packet).collect()
}

/// Sessions, where nobody watches packets.
fn read_lives(watchers: &mut dyn Watchers) -> Vec<(u32, Arc<Life>)> {
    let is_session = |(whom, sight)| match sight {
        Sight::Session(life) => (whom, life),
        Sight::Packet(seen) => panic!("{seen:#?}"),
    };
    read_all(watchers).into_iter().map(is_session).collect()
}

#[test]
fn nothing_is_told_while_nobody_watches() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    assert_eq!(send(&mut gateway, &udp(CLIENT, NOWHERE)).0, Action::Drop);
    watch(&mut *watchers, &[drops()]);
    watch(&mut *watchers, &[]);
    assert_eq!(send(&mut gateway, &udp(CLIENT, NOWHERE)).0, Action::Drop);
    assert_eq!(read(&mut *watchers), []);
    assert_eq!(watchers.lost().expect("counts"), [0; MOST]);
}

#[test]
fn a_dropped_packet_is_shown_once_with_its_reason_and_no_other() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    watch(&mut *watchers, &[drops()]);
    assert_eq!(send(&mut gateway, &udp(CLIENT, SERVER)).0, Action::Redirect);
    let (action, frame) = send(&mut gateway, &udp(CLIENT, NOWHERE));
    assert_eq!(action, Action::Drop);
    let seen = read(&mut *watchers);
    let [(1, seen)] = &seen[..] else { panic!("{seen:#?}") };
    assert_eq!((seen.verdict, seen.reason), (Verdict::Drop, Some(DropReason::Blackhole)));
    assert_eq!((seen.ingress.as_str(), seen.egress.as_deref()), ("in0", None));
    assert_eq!((&seen.bytes, seen.length as usize), (&frame, frame.len()));
    let age = SystemTime::now().duration_since(SystemTime::from(seen.time)).expect("it is over");
    assert!(age < Duration::from_secs(1), "{age:?}");
    watch(&mut *watchers, &[]);
}

#[test]
fn a_packet_is_shown_as_it_has_arrived_whatever_it_leaves_as() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    watch(&mut *watchers, &[everything()]);
    // The first opens a session, the second is of one; both go by programs of their own.
    for _ in 0..2 {
        let (action, frame) = send(&mut gateway, &udp(CLIENT, SERVER));
        assert_eq!(action, Action::Redirect);
        let seen = read(&mut *watchers);
        let [(1, seen)] = &seen[..] else { panic!("{seen:#?}") };
        assert_eq!((seen.verdict, seen.reason), (Verdict::Snat, None));
        assert_eq!((seen.ingress.as_str(), seen.egress.as_deref()), ("in0", Some("out0")));
        assert_eq!(seen.bytes, frame);
    }
    watch(&mut *watchers, &[]);
}

#[test]
fn what_is_turned_into_an_answer_is_shown_as_dropped_and_once() {
    let network = Network::standard();
    let policy = Policy::of(&network).routes("203.0.113.0/24 via prohibit");
    let Some(mut gateway) = Gateway::start(network, &policy) else { return };
    let mut watchers = gateway.watchers();
    watch(&mut *watchers, &[everything()]);
    let (action, frame) = send(&mut gateway, &tcp(CLIENT, SERVER, TCP_SYN));
    assert_ne!(action, Action::Drop, "the client is told");
    let seen = read(&mut *watchers);
    let [(1, seen)] = &seen[..] else { panic!("{seen:#?}") };
    assert_eq!((seen.verdict, seen.reason), (Verdict::Drop, Some(DropReason::Prohibited)));
    assert_eq!(seen.bytes, frame);
    watch(&mut *watchers, &[]);
}

#[test]
fn each_watcher_sees_what_it_asked_for_and_a_packet_is_told_once_for_all() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    let of = |change: fn(&mut Filter)| {
        let mut filter = drops();
        change(&mut filter);
        filter
    };
    let filters = [
        of(|filter| filter.from = "10.0.1.0/24".parse().ok()),
        of(|filter| filter.from = "10.0.2.0/24".parse().ok()),
        of(|filter| filter.dport = Some(53)),
        of(|filter| filter.dport = Some(54)),
        of(|filter| filter.proto = "tcp".parse().ok()),
        of(|filter| filter.reasons = vec![DropReason::NoRoute]),
        of(|filter| filter.snaplen = 20),
    ];
    watch(&mut *watchers, &filters);
    let (_, frame) = send(&mut gateway, &udp(CLIENT, NOWHERE));
    let seen = read(&mut *watchers);
    let [(whom, seen)] = &seen[..] else { panic!("{seen:#?}") };
    assert_eq!(*whom, 0b100_0101);
    // As much as the one wants that wants most.
    assert_eq!(seen.bytes, frame);
    watch(&mut *watchers, &filters[6..]);
    send(&mut gateway, &udp(CLIENT, NOWHERE));
    assert_eq!(read(&mut *watchers)[0].1.bytes, frame[..20]);
    watch(&mut *watchers, &[]);
}

#[test]
fn what_is_above_the_rate_or_finds_no_room_is_counted_to_the_last_packet() {
    const SENT: u64 = 6_000;
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    let rare = Filter { rate: 1, ..drops() };
    watch(&mut *watchers, &[drops(), rare]);
    let packet = udp(CLIENT, NOWHERE).payload([0; 1_000]);
    for _ in 0..SENT {
        assert_eq!(send(&mut gateway, &packet).0, Action::Drop, "the packet path does not notice");
    }
    let seen = read(&mut *watchers);
    let lost = watchers.lost().expect("counts");
    for (number, lost) in lost.into_iter().enumerate().take(2) {
        let shown = seen.iter().filter(|(whom, _)| whom >> number & 1 != 0).count() as u64;
        assert_eq!(shown + lost, SENT);
        assert!(shown > 0 && lost > SENT / 2, "{shown} of {SENT} are shown to {number}");
    }
    // And there is room again.
    send(&mut gateway, &packet);
    assert_eq!(read(&mut *watchers).len(), 1);
    watch(&mut *watchers, &[]);
}

#[test]
fn a_change_of_the_policy_leaves_those_who_watch_alone() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    watch(&mut *watchers, &[drops()]);
    let network = Network::standard();
    gateway.apply(&nat(Policy::of(&network)).routes("198.51.100.0/24 via prohibit"));
    send(&mut gateway, &udp(CLIENT, NOWHERE));
    let seen = read(&mut *watchers);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].1.reason, Some(DropReason::Prohibited));
    watch(&mut *watchers, &[]);
}

fn sessions() -> Filter {
    Filter { verdicts: Vec::new(), openings: true, endings: Ending::ALL.to_vec(), ..drops() }
}

fn end(address: &str, port: u16) -> (IpAddr, u16) {
    (address.parse().expect("an address"), port)
}

#[test]
fn a_session_is_told_when_it_opens_and_when_it_ends_though_its_route_does_not_log() {
    let network = Network::standard();
    let policy = nat(Policy::of(&network)).idle(Duration::from_secs(1));
    let Some(mut gateway) = Gateway::start(network, &policy) else { return };
    let mut watchers = gateway.watchers();
    let cases = [
        (udp(CLIENT, SERVER), "10.0.1.2", "203.0.113.10", POOL, "0.0.0.0/0"),
        (udp("[2001:db8:1::2]:5000", "[2001:db8:f::1]:53"), "2001:db8:1::2", "2001:db8:f::1", POOL6, "::/0"),
    ];
    for (packet, client, server, pool, route) in cases {
        assert_eq!(send(&mut gateway, &packet).0, Action::Redirect, "and nobody watches");
        watch(&mut *watchers, &[sessions()]);
        let packet = packet.from_port(5_001);
        for _ in 0..3 {
            assert_eq!(send(&mut gateway, &packet).0, Action::Redirect);
        }
        let seen = read_lives(&mut *watchers);
        let [(1, opened)] = &seen[..] else { panic!("{seen:#?}") };
        assert_eq!((opened.ending, opened.proto), (None, 17));
        assert_eq!((opened.source, opened.destination), (end(client, 5_001), end(server, 53)));
        assert_eq!(opened.translated, Some(end(pool, 5_001)));
        assert_eq!((opened.ingress.as_deref(), opened.target.as_deref()), (Some("in0"), Some("pool nat")));
        assert_eq!(opened.table.as_deref(), Some("main"));
        assert_eq!(opened.route.map(|route| route.to_string()).as_deref(), Some(route));
        let age = SystemTime::now().duration_since(SystemTime::from(opened.time)).expect("it is over");
        assert!(age < Duration::from_secs(1), "{age:?}");

        sleep(Duration::from_millis(1_300));
        // Whoever comes later is told, too.
        watch(&mut *watchers, &[sessions(), Filter { dport: Some(54), ..sessions() }]);
        gateway.sweep_all();
        let seen = read_lives(&mut *watchers);
        let closed = seen.iter().find(|(_, life)| life.source.1 == 5_001).expect("it has ended");
        let bytes = (packet.frame().len() - 14) as u64;
        let sent = Counter { packets: 3, bytes: 3 * bytes };
        assert_eq!(closed.0, 1, "nobody else asked for it");
        assert_eq!((closed.1.ending, closed.1.sent), (Some(Ending::Idle), sent));
        assert_eq!(closed.1.received, Counter::default());
        assert_eq!((closed.1.source, closed.1.translated), (opened.source, opened.translated));
        assert!(closed.1.start < closed.1.time);
        assert_eq!(seen.len(), 2, "that nobody saw when it opened, too: {seen:#?}");
        watch(&mut *watchers, &[]);
    }
    // And nothing is in the access log.
    assert_eq!(gateway.records(), (Vec::new(), 0));
    assert_eq!(watchers.lost().expect("counts"), [0; MOST]);
}

#[test]
fn sessions_are_asked_for_as_packets_are_and_those_above_the_rate_are_counted() {
    const OPENED: u16 = 600;
    let network = Network::standard();
    let Some(mut gateway) = Gateway::start(network.clone(), &nat(Policy::of(&network)).recorded()) else {
        return;
    };
    let ingress = |name: &str| Some(network.find(name).index);
    let mut watchers = gateway.watchers();
    let filters = [
        sessions(),
        Filter { from: "10.0.1.0/24".parse().ok(), ..sessions() },
        Filter { from: "10.0.2.0/24".parse().ok(), ..sessions() },
        Filter { ingress: ingress("in0"), ..sessions() },
        Filter { ingress: ingress("out0"), ..sessions() },
        Filter { proto: "tcp".parse().ok(), ..sessions() },
        Filter { openings: false, ..sessions() },
        Filter { rate: 1, ..sessions() },
    ];
    watch(&mut *watchers, &filters);
    for port in 0..OPENED {
        assert_eq!(send(&mut gateway, &udp(CLIENT, SERVER).from_port(2_000 + port)).0, Action::Redirect);
    }
    let seen = read_lives(&mut *watchers);
    assert_eq!(seen.len(), usize::from(OPENED));
    let lost = watchers.lost().expect("counts");
    for (_, life) in &seen {
        assert_eq!(life.ending, None);
    }
    assert!(seen.iter().all(|(whom, _)| whom & 0b111_1111 == 0b1011), "{:b}", seen[0].0);
    let shown = seen.iter().filter(|(whom, _)| whom >> 7 & 1 != 0).count() as u64;
    assert_eq!(shown + lost[7], u64::from(OPENED));
    assert!(lost[7] > 0 && shown > 0, "{shown}");
    assert_eq!(lost[..7], [0; 7]);
    // The access log has each of them, whoever watches.
    let (records, lost) = gateway.records();
    assert_eq!((records.len(), lost), (usize::from(OPENED), 0));
    watch(&mut *watchers, &[]);
}

#[test]
fn a_packet_that_arrives_while_sessions_are_watched_is_not_looked_at() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    watch(&mut *watchers, &[sessions()]);
    let config = gateway.config();
    assert!(config.policy.are_sessions_watched() && !config.policy.is_watched());
    send(&mut gateway, &udp(CLIENT, NOWHERE));
    assert_eq!(read_lives(&mut *watchers), []);
    watch(&mut *watchers, &[drops(), sessions()]);
    let config = gateway.config();
    assert!(config.policy.are_sessions_watched() && config.policy.is_watched());
    send(&mut gateway, &udp(CLIENT, NOWHERE));
    send(&mut gateway, &udp(CLIENT, SERVER));
    let seen = read_all(&mut *watchers);
    let [(1, Sight::Packet(_)), (2, Sight::Session(_))] = &seen[..] else { panic!("{seen:#?}") };
    watch(&mut *watchers, &[]);
    let config = gateway.config();
    assert!(!config.policy.are_sessions_watched() && !config.policy.is_watched());
    assert_eq!(config.watched_until, 0);
}

#[test]
fn nobody_looks_any_more_for_a_daemon_that_does_not_say_again_that_it_watches() {
    let Some(mut gateway) = gateway() else { return };
    let mut watchers = gateway.watchers();
    watch(&mut *watchers, &[everything(), sessions()]);
    send(&mut gateway, &udp(CLIENT, SERVER));
    assert_eq!(read_all(&mut *watchers).len(), 2);
    // Filters are there, and so are the bits; all but the time is as it was.
    gateway.end_watch();
    let config = gateway.config();
    assert!(config.policy.are_sessions_watched() && config.policy.is_watched());
    send(&mut gateway, &udp(CLIENT, SERVER).from_port(5_001));
    send(&mut gateway, &udp(CLIENT, NOWHERE));
    assert_eq!(read_all(&mut *watchers), []);
    assert_eq!(watchers.lost().expect("counts"), [0; MOST]);
    watch(&mut *watchers, &[]);
}

#[test]
fn sessions_of_proxies_and_of_mappings_are_told_as_others_are() {
    let idle = Duration::from_secs(1);
    let through_proxy =
        |policy: Policy| policy.proxy("squid", "10.0.3.2", "closed").routes("0.0.0.0/0 via proxy squid");
    let by_mapping = |policy: Policy| nat(policy).endpoint_independent("nat");
    let cases: [(&dyn Fn(Policy) -> Policy, _, _); 2] =
        [(&through_proxy, "proxy squid", None), (&by_mapping, "pool nat", Some(POOL))];
    for (policy, target, translated) in cases {
        let network = Network::standard();
        let policy = policy(Policy::of(&network)).idle(idle);
        let Some(mut gateway) = Gateway::start(network, &policy) else { return };
        let mut watchers = gateway.watchers();
        let icmp = Filter { proto: "icmp".parse().ok(), ..sessions() };
        watch(&mut *watchers, &[sessions(), icmp]);
        assert_eq!(send(&mut gateway, &udp(CLIENT, SERVER)).0, Action::Redirect);
        assert_eq!(send(&mut gateway, &echo_request("10.0.1.2", "203.0.113.10", 7)).0, Action::Redirect);
        sleep(Duration::from_millis(1_300));
        gateway.sweep_all();
        let seen = read_lives(&mut *watchers);
        let of = |proto| seen.iter().filter(move |(_, life)| life.proto == proto);
        for (proto, whom, ends) in [
            (17, 0b1, (end("10.0.1.2", 5_000), end("203.0.113.10", 53))),
            (1, 0b11, (end("10.0.1.2", 7), end("203.0.113.10", 0))),
        ] {
            let endings: Vec<_> = of(proto).map(|(_, life)| life.ending).collect();
            assert_eq!(endings, [None, Some(Ending::Idle)], "{seen:#?}");
            for (seen_by, life) in of(proto) {
                assert_eq!((*seen_by, (life.source, life.destination)), (whom, ends));
                assert_eq!((life.target.as_deref(), life.ingress.as_deref()), (Some(target), Some("in0")));
                assert_eq!(life.translated.map(|(address, _)| address.to_string()).as_deref(), translated);
                assert!(life.sent.packets <= 1 && life.received == Counter::default());
            }
        }
        watch(&mut *watchers, &[]);
    }
}
