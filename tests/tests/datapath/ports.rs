//! Every port of an address, for one destination: given once, to one flow, in no order that can be guessed.

use std::{collections::BTreeSet, net::IpAddr};

use gateway_common::DropReason::PoolExhausted;
use gateway_tests::{
    counters,
    gateway::Action,
    network::mac,
    packet::{Packet, SYN, ip, tcp, udp},
};

use crate::support::{Lab, POOL, POOL6, standard, translated};

const FIRST: u16 = 1_024;
const LAST: u16 = 65_535;

/// A gateway whose pool `nat` has these addresses and ports, with room for 70,000 sessions.
fn pool(addresses: &str, ports: &str) -> Option<Lab> {
    let routes = if addresses.contains(':') {
        "0.0.0.0/0 via pool nat\n::/0 via pool nat"
    } else {
        "0.0.0.0/0 via pool nat"
    };
    standard(|policy| policy.pool("nat", addresses, ports).routes(routes).sessions(70_000).half_open(140_000))
}

/// A client behind in0 that opens flows to one destination; quicker than building a frame for each.
struct Client {
    frame: Vec<u8>,
    port: usize,
}

impl Client {
    fn new(lab: &Lab, packet: &Packet) -> Self {
        let packet = packet.clone().without_checksum();
        let port = packet.transport_offset();
        let packet = packet.macs(mac(ip("10.0.1.2")), lab.network().find("in0").mac());
        Self { frame: packet.frame(), port }
    }

    fn udp(lab: &Lab, number: u16) -> Self {
        Self::new(lab, &udp(&format!("10.0.2.{number}:1"), "203.0.113.10:53"))
    }

    /// Opens a flow from this port; `None`: refused.
    fn open(&mut self, lab: &mut Lab, port: u16) -> Option<(IpAddr, u16)> {
        self.frame[self.port..self.port + 2].copy_from_slice(&port.to_be_bytes());
        let outcome = lab.run("in0", &self.frame);
        match outcome.action {
            Action::Redirect => Some(translated(&outcome.frame)),
            Action::Drop => None,
            Action::Aborted | Action::Pass | Action::Tx => panic!("{outcome:?}"),
        }
    }
}

/// Opens flows of clients that use the same ports until `given` has all there are; then one more is refused.
#[track_caller]
fn fill(lab: &mut Lab, clients: std::ops::RangeInclusive<u16>, given: &mut BTreeSet<(IpAddr, u16)>) {
    for number in clients {
        let mut client = Client::udp(lab, number);
        for port in 0..16_128 {
            let place = client.open(lab, 30_000 + port);
            let place = place.unwrap_or_else(|| panic!("refused after {} flows", given.len()));
            assert!(place.1 >= FIRST);
            assert!(given.insert(place), "{place:?} is given twice");
        }
    }
    refuse(lab, 250);
}

/// The next flow of this client is refused, for want of a port.
#[track_caller]
fn refuse(lab: &mut Lab, client: u16) {
    let before = lab.counters();
    assert_eq!(Client::udp(lab, client).open(lab, 4_000), None);
    assert_eq!(lab.counters().since(&before).packets(&counters::drops(PoolExhausted)), 1);
}

#[test]
fn all_64512_ports_are_given_before_the_first_refusal_and_once_more_after_their_sessions_end() {
    let Some(mut lab) = pool(POOL, "1024-65535") else { return };
    let mut given = BTreeSet::new();
    fill(&mut lab, 1..=4, &mut given);
    assert_eq!(given.len(), usize::from(LAST - FIRST) + 1);
    // Those that have a port keep it.
    let mut client = Client::udp(&lab, 3);
    for port in 30_000..30_100 {
        assert!(client.open(&mut lab, port).is_some_and(|place| given.contains(&place)));
    }
    // One client may not go out any more: its ports, and no others, can be given again.
    lab.change(|policy| policy.table("none", &["10.0.2.3/32"], ""));
    for port in 0..16_128 {
        assert_eq!(client.open(&mut lab, 30_000 + port), None);
    }
    lab.sweep_until_cut_are_gone();
    let kept: BTreeSet<_> =
        lab.sessions().iter().map(|session| (session.translated, session.translated_port)).collect();
    assert_eq!(kept.len(), 3 * 16_128);
    let mut given = kept;
    fill(&mut lab, 5..=5, &mut given);
    assert_eq!(given.len(), usize::from(LAST - FIRST) + 1);
}

#[test]
fn a_client_that_keeps_its_own_ports_leaves_the_last_one_to_another() {
    for to in ["203.0.113.10:443", "[2001:db8:f::1]:443"] {
        let Some(mut lab) = pool(&format!("{POOL} {POOL6}"), "1024-65535") else { return };
        let from = |number: u16| {
            if to.starts_with('[') {
                format!("[2001:db8:4::{number}]:1")
            } else {
                format!("10.0.2.{number}:1")
            }
        };
        let mut first = Client::new(&lab, &tcp(&from(1), to, SYN));
        let free = 20_000;
        for port in (FIRST..=LAST).filter(|port| *port != free) {
            let place = first.open(&mut lab, port).expect("a port");
            assert_eq!(place.1, port);
        }
        let mut second = Client::new(&lab, &tcp(&from(2), to, SYN));
        assert_eq!(second.open(&mut lab, 5_000).expect("a port").1, free);
        assert_eq!(second.open(&mut lab, 5_001), None);
        assert_eq!(second.open(&mut lab, free), None);
    }
}

#[test]
fn the_last_port_goes_to_one_of_two_cpus() {
    const ROUNDS: u16 = 300;
    let Some(mut lab) = pool(POOL, "5000-5099") else { return };
    let mut only_one = [0; 2];
    for round in 0..ROUNDS {
        // A destination of its own, where one port is free, which two clients ask for at the same time.
        let server = format!("203.0.113.10:{}", 1_000 + round);
        let mut filler = Client::new(&lab, &udp("10.0.2.1:1", &server));
        for port in 5_001..=5_099 {
            assert!(filler.open(&mut lab, port).is_some());
        }
        // Either both want it as their own port, or neither.
        let own = if round % 2 == 0 { 5_000 } else { 7_000 };
        let frames = [2, 3].map(|client| {
            let packet = udp(&format!("10.0.2.{client}:{own}"), &server);
            lab.arriving("in0", &packet).frame()
        });
        let outcomes = lab.race("in0", &frames);
        let winners: Vec<usize> = (0..2).filter(|cpu| outcomes[*cpu].action == Action::Redirect).collect();
        let [winner] = winners[..] else { panic!("round {round}: {outcomes:?}") };
        assert_eq!(translated(&outcomes[winner].frame), (ip(POOL), 5_000));
        assert_eq!(outcomes[1 - winner].action, Action::Drop);
        only_one[winner] += 1;
    }
    assert_eq!(lab.session_balance().2, usize::from(ROUNDS) * 100, "{only_one:?}");
}

#[test]
fn ports_that_many_cpus_claim_and_the_sweep_gives_back_stay_exact() {
    let Some(mut lab) = pool(POOL, "5000-5199") else { return };
    let mut round = 0u8;
    while round < 20 {
        round += 1;
        // Two clients claim all of it from two CPUs.
        let flows = |lab: &Lab, client: u8| -> Vec<Vec<u8>> {
            let packet = |port| udp(&format!("10.0.2.{}:{port}", client + 2 * round), "203.0.113.10:53");
            (6_000..6_150).map(|port| lab.arriving("in0", &packet(port)).frame()).collect()
        };
        let (first, second) = (flows(&lab, 0), flows(&lab, 1));
        let outcomes = lab.race_all("in0", &[first, second]);
        let opened = outcomes.iter().flatten().filter(|outcome| outcome.action == Action::Redirect);
        let given: BTreeSet<_> = opened.map(|outcome| translated(&outcome.frame)).collect();
        assert_eq!(given.len(), 200, "round {round}");
        // All of them are cut, by either.
        let binding = format!("10.0.2.{}/31", 2 * round);
        lab.change(|policy| policy.table("none", &[&binding], ""));
        let (first, second) = (flows(&lab, 0), flows(&lab, 1));
        lab.race_all("in0", &[first, second]);
        lab.sweep_until_cut_are_gone();
        assert_eq!(lab.session_balance().2, 0);
    }
}

#[test]
fn random_ports_are_evenly_spread() {
    let Some(mut lab) = pool(POOL, "1024-65535") else { return };
    let (mut low_bits, mut steps, mut last, mut drawn) = ([0u32; 64], BTreeSet::new(), 0, 0u32);
    // Below and above the number of sessions from which on ports are searched in another way.
    for number in 1..=16 {
        let mut client = Client::udp(&lab, number);
        // Not ports of the pool: each flow draws one.
        for own in 0..FIRST {
            let (_, port) = client.open(&mut lab, own).expect("a port");
            low_bits[usize::from(port % 64)] += 1;
            steps.insert(port.wrapping_sub(last));
            last = port;
            drawn += 1;
        }
    }
    // 63 degrees of freedom: 120 is exceeded once in 60,000 runs.
    let expected = f64::from(drawn) / 64.0;
    let chi_square: f64 =
        low_bits.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
    assert!(chi_square < 120.0, "{chi_square}: {low_bits:?}");
    assert!(steps.len() as u32 > drawn / 2, "{} steps of {drawn}", steps.len());
}
