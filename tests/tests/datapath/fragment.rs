//! Fragments of datagrams that are translated, in both directions.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use gateway_common::{
    DropReason::{Blackhole, FragmentUnmatched, Malformed, MtuExceeded, NoSession},
    Verdict::{Direct, Reply, Snat},
    family::MappedAddress,
    fragment::{self, identifications},
    parse::PROTO_ICMP,
    session::{SIDE_INSIDE, SIDE_OUTSIDE},
};
use gateway_tests::{
    gateway::{Action, Gateway},
    network::{Network, mac},
    packet::{ACK, Packet, SYN, Transport, bare, differences, echo_request, ip, patch, tcp, udp},
    policy::Policy,
};

use crate::support::{
    Expected, Lab, POOL, POOL6, ROUTER, ROUTER6, dropped, nat, sent, snat, standard, too_large,
};

const ALL: &str = "0.0.0.0/0";
const ALL6: &str = "::/0";

/// What the servers see of one: the identifications that the gateway gives, in their order.
#[derive(Default)]
struct Numbers(HashMap<u32, u32>);

impl Numbers {
    /// The next one of a datagram between a client and `server`.
    fn next(&mut self, lab: &Lab, packet: &Packet, side: u8) -> u32 {
        let server = if side == SIDE_INSIDE { packet.destination } else { packet.source };
        let (mapped, proto): (MappedAddress, _) = match server {
            IpAddr::V4(address) => (words(address.to_ipv6_mapped()), packet.proto()),
            IpAddr::V6(address) => (words(address), 0),
        };
        let (element, offset) = identifications(&mapped, proto, side, lab.config().secret);
        let count = self.0.entry(element).or_default();
        let number = offset.wrapping_add(*count);
        *count += 1;
        if server.is_ipv4() { number & 0xffff } else { number }
    }
}

fn words(address: Ipv6Addr) -> MappedAddress {
    let bytes = address.octets();
    [0, 4, 8, 12].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

/// A datagram of a client, and the flow that it belongs to.
struct Flow {
    packet: Packet,
    pool: &'static str,
    proto: &'static str,
    route: &'static str,
    router: &'static str,
}

/// Flows of every kind. The pool never gives the client's own port.
fn flows() -> [Flow; 6] {
    let v4 = |packet: Packet, proto| {
        let packet = packet.payload((0..120).collect::<Vec<u8>>());
        Flow { packet, pool: POOL, proto, route: ALL, router: ROUTER }
    };
    let v6 = |packet, proto| Flow { pool: POOL6, route: ALL6, router: ROUTER6, ..v4(packet, proto) };
    let mut flows = [
        v4(udp("10.0.1.2:80", "203.0.113.10:53"), "udp"),
        v4(tcp("10.0.1.2:80", "203.0.113.10:443", SYN), "tcp"),
        v4(echo_request("10.0.1.2", "203.0.113.10", 80), "icmp"),
        v6(udp("[2001:db8:1::2]:80", "[2001:db8:f::1]:53"), "udp"),
        v6(tcp("[2001:db8:1::2]:80", "[2001:db8:f::1]:443", SYN), "tcp"),
        v6(echo_request("2001:db8:1::2", "2001:db8:f::1", 80), "icmp"),
    ];
    // In IPv6 an identification is not of one protocol.
    for (flow, number) in flows.iter_mut().zip(0x1234_0000..) {
        flow.packet.identification = number;
    }
    flows
}

impl Flow {
    /// The datagram in three fragments as the client sends them, and as they leave.
    fn forth(&self, port: u16, identification: u32) -> (Vec<Packet>, Vec<Packet>) {
        let out = self.packet.clone().from_address(ip(self.pool)).from_port(port);
        (self.packet.fragments(&[40, 80]), out.identification(identification).fragments(&[40, 80]))
    }

    /// The answer in three fragments as the server sends them, and as they reach the client.
    fn back(&self, port: u16, identification: u32) -> (Vec<Packet>, Vec<Packet>) {
        let answer = self.packet.clone().from_address(ip(self.pool)).from_port(port).answer();
        let client = self.packet.answer().identification(identification);
        (answer.fragments(&[40, 80]), client.fragments(&[40, 80]))
    }

    fn sent(&self, packet: &Packet) -> Expected {
        sent("out0", self.router, Snat, packet).by(self.route, "pool")
    }

    fn received(&self, packet: &Packet) -> Expected {
        let client = if self.route == ALL { "10.0.1.2" } else { "2001:db8:1::2" };
        sent("in0", client, Reply, packet).by(self.route, "pool")
    }
}

/// A gateway whose pool has one port.
fn translating() -> Option<Lab> {
    standard(|policy| nat(policy).pool("nat", &format!("{POOL} {POOL6}"), "5000-5000"))
}

/// A query of 128 bytes in two fragments.
fn query(from: &str) -> Vec<Packet> {
    udp(from, "203.0.113.10:53").payload([7; 120]).fragments(&[64])
}

#[test]
fn datagrams_in_fragments_are_translated_both_ways() {
    let Some(mut lab) = translating() else { return };
    let mut numbers = Numbers::default();
    for flow in flows() {
        let identification = numbers.next(&lab, &flow.packet, SIDE_INSIDE);
        let (arriving, leaving) = flow.forth(5000, identification);
        let opened = flow.sent(&leaving[0]).opening(flow.proto, flow.pool);
        lab.check("in0", &arriving[0], opened);
        lab.check("in0", &arriving[1], flow.sent(&leaving[1]));
        lab.check("in0", &arriving[2], flow.sent(&leaving[2]));
        // The next datagram is another one, whatever the client calls it.
        let again =
            Flow { packet: flow.packet.clone().identification(flow.packet.identification ^ 0x100), ..flow };
        let identification = numbers.next(&lab, &again.packet, SIDE_INSIDE);
        let (arriving, leaving) = again.forth(5000, identification);
        for (arriving, leaving) in arriving.iter().zip(&leaving) {
            lab.check("in0", arriving, again.sent(leaving));
        }
        let identification = numbers.next(&lab, &again.packet.answer(), SIDE_OUTSIDE);
        let (arriving, leaving) = again.back(5000, identification);
        let established = again.received(&leaving[0]).establishing(again.pool);
        lab.check("out0", &arriving[0], established);
        // Among themselves, the later ones may come in any order.
        lab.check("out0", &arriving[2], again.received(&leaving[2]));
        lab.check("out0", &arriving[1], again.received(&leaving[1]));
    }
}

#[test]
fn whole_packets_and_fragments_of_a_flow_share_its_session() {
    let Some(mut lab) = translating() else { return };
    let mut numbers = Numbers::default();
    for flow in flows() {
        lab.open("in0", &flow.packet);
        let identification = numbers.next(&lab, &flow.packet, SIDE_INSIDE);
        let (arriving, leaving) = flow.forth(5000, identification);
        for (arriving, leaving) in arriving.iter().zip(&leaving) {
            lab.check("in0", arriving, flow.sent(leaving));
        }
    }
    let sessions = lab.sessions();
    assert_eq!(sessions.len(), 6);
    for session in sessions {
        assert_eq!(session.sent.packets, 4, "{session:?}");
    }
}

#[test]
fn a_fragment_before_its_first_one_is_dropped() {
    let Some(mut lab) = translating() else { return };
    let mut numbers = Numbers::default();
    for flow in flows() {
        let (arriving, leaving) = flow.forth(5000, numbers.next(&lab, &flow.packet, SIDE_INSIDE));
        lab.check("in0", &arriving[1], dropped(FragmentUnmatched).by(flow.route, "pool"));
        lab.check("in0", &arriving[0], flow.sent(&leaving[0]).opening(flow.proto, flow.pool));
        lab.check("in0", &arriving[1], flow.sent(&leaving[1]));
        // Another identification, protocol, source, destination or side is another datagram.
        let other = arriving[1].clone().identification(0x7777);
        lab.check("in0", &other, dropped(FragmentUnmatched).by(flow.route, "pool"));
        let (arriving, _) = flow.back(5000, 0);
        lab.check("out0", &arriving[1], dropped(FragmentUnmatched));
    }
    let later = query("10.0.1.2:80").remove(1);
    lab.check("in0", &later.clone().from_address(ip("10.0.1.3")), dropped(FragmentUnmatched).by(ALL, "pool"));
    let elsewhere = later.clone().to("203.0.113.11:0");
    lab.check("in0", &elsewhere, dropped(FragmentUnmatched).by(ALL, "pool"));
    let mut gre = later;
    gre.transport = Transport::Bare(47);
    lab.check("in0", &gre, dropped(FragmentUnmatched).by(ALL, "pool"));
}

#[test]
fn two_clients_with_one_identification_are_not_mixed() {
    let Some(mut lab) = snat() else { return };
    let mut numbers = Numbers::default();
    let mut leave = |lab: &mut Lab, client: &str| {
        let first = &query(client)[0];
        let identification = numbers.next(lab, first, SIDE_INSIDE);
        let whole = udp("198.51.100.10:0", "203.0.113.10:53").payload([7; 120]);
        let port = client.rsplit_once(':').expect("a port").1.parse().expect("a port");
        let leaving = whole.from_port(port).identification(identification).fragments(&[64]);
        let expected = sent("out0", ROUTER, Snat, &leaving[0]).by(ALL, "pool");
        lab.check("in0", first, expected.opening("udp", POOL));
        (identification, leaving)
    };
    let (one, of_one) = leave(&mut lab, "10.0.1.2:4000");
    let (other, of_other) = leave(&mut lab, "10.0.1.3:4001");
    assert_ne!(one, other, "the server would put them together");
    lab.check("in0", &query("10.0.1.3:4001")[1], sent("out0", ROUTER, Snat, &of_other[1]).by(ALL, "pool"));
    lab.check("in0", &query("10.0.1.2:4000")[1], sent("out0", ROUTER, Snat, &of_one[1]).by(ALL, "pool"));
}

#[test]
fn identifications_repeat_after_all_others_only() {
    let Some(mut lab) = snat() else { return };
    let mut seen = vec![false; 65_536];
    let first = lab.arriving("in0", &query("10.0.1.2:4000")[0]);
    for number in 0..65_536u32 {
        let out = lab.run("in0", &first.clone().identification(number).frame()).frame;
        let identification = usize::from(u16::from_be_bytes([out[18], out[19]]));
        assert!(!seen[identification], "{identification} was given before");
        seen[identification] = true;
    }
}

#[test]
fn what_is_known_of_a_datagram_expires() {
    let Some(mut lab) = snat() else { return };
    let fragments = query("10.0.1.2:4000");
    assert_eq!(lab.prepare("in0", &fragments[0]).action, Action::Redirect);
    assert_eq!(lab.prepare("in0", &fragments[1]).action, Action::Redirect);
    lab.age_fragments();
    lab.check("in0", &fragments[1], dropped(FragmentUnmatched).by(ALL, "pool"));
    // Its identification may be used again, by whatever flow.
    let again = query("10.0.1.2:4001");
    assert_eq!(lab.prepare("in0", &again[0]).action, Action::Redirect);
    assert_eq!(lab.prepare("in0", &again[1]).action, Action::Redirect);
}

#[test]
fn a_first_fragment_without_all_of_its_header_is_dropped() {
    let Some(mut lab) = snat() else { return };
    let mut long = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).payload([0; 60]).fragments(&[24]).remove(0);
    lab.check("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).fragments(&[16])[0], dropped(Malformed));
    let six = tcp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:443", SYN).fragments(&[16]).remove(0);
    lab.check("in0", &six, dropped(Malformed));
    // Options that are in the next fragment: a header of 28 bytes.
    long.payload[12] = 7 << 4;
    lab.check("in0", &long, dropped(Malformed));
    long.payload[12] = 6 << 4;
    let action = lab.prepare("in0", &long).action;
    assert_eq!(action, Action::Redirect, "the header ends with the fragment");
}

#[test]
fn fragments_that_overlap_the_first_one_are_dropped() {
    let Some(mut lab) = translating() else { return };
    let mut numbers = Numbers::default();
    for flow in flows() {
        let (arriving, leaving) = flow.forth(5000, numbers.next(&lab, &flow.packet, SIDE_INSIDE));
        lab.check("in0", &arriving[0], flow.sent(&leaving[0]).opening(flow.proto, flow.pool));
        for offset in 1..5 {
            // In the middle of the first fragment; for TCP, offset 1 is where the flags are (RFC 3128).
            lab.check("in0", &arriving[1].clone().fragment(offset, true), dropped(Malformed));
        }
        // Beyond 65,535 bytes ("ping of death").
        lab.check("in0", &arriving[1].clone().fragment(8191, false), dropped(Malformed));
        lab.check("in0", &arriving[1], flow.sent(&leaving[1]));
    }
}

#[test]
fn a_second_first_fragment_must_say_the_same() {
    let Some(mut lab) = snat() else { return };
    let fragments = query("10.0.1.2:4000");
    lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    lab.open("in0", &udp("10.0.1.2:4001", "203.0.113.10:53"));
    let number = Numbers::default().next(&lab, &fragments[0], SIDE_INSIDE);
    let leaving = udp("198.51.100.10:4000", "203.0.113.10:53").payload([7; 120]);
    let leaving = leaving.identification(number).fragments(&[64]);
    for _ in 0..2 {
        // The network may double a packet.
        lab.check("in0", &fragments[0], sent("out0", ROUTER, Snat, &leaving[0]).by(ALL, "pool"));
    }
    let ports = query("10.0.1.2:4001").remove(0);
    lab.check("in0", &ports, dropped(Malformed).by(ALL, "pool"));
    let length = udp("10.0.1.2:4000", "203.0.113.10:53").payload([7; 120]).fragments(&[72]).remove(0);
    lab.check("in0", &length, dropped(Malformed).by(ALL, "pool"));
    lab.check("in0", &fragments[1], sent("out0", ROUTER, Snat, &leaving[1]).by(ALL, "pool"));
}

#[test]
fn a_session_that_is_cut_takes_its_fragments_with_it() {
    let Some(mut lab) = snat() else { return };
    let fragments = query("10.0.1.2:4000");
    lab.prepare("in0", &fragments[0]);
    lab.change(|policy| policy.routes("203.0.113.10/32 via blackhole"));
    for _ in 0..2 {
        lab.check("in0", &fragments[1], dropped(Blackhole).by("203.0.113.10/32", "blackhole"));
    }
    assert_eq!(lab.sessions(), []);

    let Some(mut lab) = snat() else { return };
    lab.prepare("in0", &fragments[0]);
    lab.prepare("out0", &udp("203.0.113.10:53", "198.51.100.10:4000").payload([7; 120]).fragments(&[64])[0]);
    lab.change(|policy| policy.pool("nat", &format!("198.51.100.11 {POOL6}"), "1024-65535"));
    lab.check("in0", &fragments[1], dropped(NoSession));
    lab.check("in0", &fragments[1], dropped(FragmentUnmatched).by(ALL, "pool"));
    lab.sweep_all();
    lab.check("in0", &fragments[1], dropped(FragmentUnmatched).by(ALL, "pool"));
}

#[test]
fn a_change_of_policy_that_leaves_the_session_leaves_its_fragments() {
    let Some(mut lab) = standard(|policy| {
        // A later fragment does not show the port that this route asks for, but its session has it.
        policy.pool("nat", POOL, "1024-65535").routes("0.0.0.0/0 via pool nat proto udp dport 53")
    }) else {
        return;
    };
    let route = "0.0.0.0/0 proto udp dport 53";
    let fragments = query("10.0.1.2:4000");
    lab.prepare("in0", &fragments[0]);
    let number = Numbers::default().next(&lab, &fragments[0], SIDE_INSIDE);
    let leaving = udp("198.51.100.10:4000", "203.0.113.10:53").payload([7; 120]);
    let leaving = leaving.identification(number).fragments(&[64]);
    for other in ["192.0.2.128/25", "192.0.2.192/26"] {
        lab.change(|policy| policy.routes(&format!("{other} via blackhole")));
        lab.check("in0", &fragments[1], sent("out0", ROUTER, Snat, &leaving[1]).by(route, "pool"));
    }
}

#[test]
fn the_map_forgets_datagrams_and_lets_nothing_out_for_it() {
    let network = Network::standard();
    let policy = nat(Policy::of(&network)).sessions(1024);
    let Some(mut gateway) = Gateway::start(network, &policy) else { return };
    let capacity = fragment::capacity(1024, aya::util::nr_cpus().expect("the number of CPUs") as u32);
    let datagrams = 8 * capacity;
    let fragments = query("10.0.1.2:4000");
    let mac = gateway.network().find("in0").mac();
    let arriving = |packet: &Packet, number| {
        packet.clone().identification(number).macs([2, 4, 10, 0, 1, 2], mac).frame()
    };
    for number in 0..datagrams {
        let frame = arriving(&fragments[0], number);
        assert_eq!(gateway.run("in0", &frame).action, Action::Redirect);
    }
    let mut passed = 0;
    for number in 0..datagrams {
        let out = gateway.run("in0", &arriving(&fragments[1], number));
        match out.action {
            Action::Drop => {}
            Action::Redirect => {
                assert_eq!(out.frame[26..30], [198, 51, 100, 10], "a fragment left untranslated");
                passed += 1;
            }
            other @ (Action::Aborted | Action::Pass | Action::Tx) => panic!("{other:?}"),
        }
    }
    assert!((1..=capacity).contains(&passed), "{passed} datagrams were known, of a map of {capacity}");
    let dropped = gateway.counters().packets("drops fragment_unmatched");
    assert_eq!(dropped, u64::from(datagrams - passed));
}

#[test]
fn tags_options_and_extension_headers_go_with_fragments() {
    let Some(mut lab) = snat() else { return };
    let mut numbers = Numbers::default();
    let whole = udp("10.0.1.2:4000", "203.0.113.10:53").options(&[1, 1, 1, 0]).payload([7; 120]);
    let tagged = whole.clone().tag(0x8100, 0xa000);
    let leaving = whole.clone().from("198.51.100.10:4000");
    let leaving = leaving.identification(numbers.next(&lab, &whole, SIDE_INSIDE)).fragments(&[64]);
    let arriving = tagged.fragments(&[64]);
    let expected = sent("out0", ROUTER, Snat, &leaving[0]).by(ALL, "pool");
    lab.check("in0", &arriving[0], expected.opening("udp", POOL));
    lab.check("in0", &arriving[1], sent("out0", ROUTER, Snat, &leaving[1]).by(ALL, "pool"));

    let whole = udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53").extension(0, &[5, 2, 0, 0, 0, 0]);
    let whole = whole.payload([7; 120]);
    let leaving = whole.clone().from("[2001:db8:100::10]:4000");
    let leaving = leaving.identification(numbers.next(&lab, &whole, SIDE_INSIDE)).fragments(&[64]);
    let arriving = whole.fragments(&[64]);
    let expected = sent("out0", ROUTER6, Snat, &leaving[0]).by(ALL6, "pool");
    lab.check("in0", &arriving[0], expected.opening("udp", POOL6));
    lab.check("in0", &arriving[1], sent("out0", ROUTER6, Snat, &leaving[1]).by(ALL6, "pool"));
}

#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    let Some(mut lab) = snat() else { return };
    let whole = udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53").fragment(0, false);
    for opened in [true, false] {
        // With its identification: nobody needs it (RFC 6946).
        let expected = sent("out0", ROUTER6, Snat, &whole.clone().from("[2001:db8:100::10]:4000"));
        let expected = expected.by(ALL6, "pool");
        lab.check("in0", &whole, if opened { expected.opening("udp", POOL6) } else { expected });
    }
}

#[test]
fn a_fragment_of_a_fragment_is_dropped() {
    let Some(mut lab) = snat() else { return };
    let nested = udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53").extension(44, &[0, 1, 0, 0, 0, 1]);
    lab.check("in0", &nested.clone().fragment(0, true), dropped(Malformed));
    lab.check("in0", &nested.fragment(4, true), dropped(Malformed));
}

#[test]
fn an_expired_or_large_fragment_is_as_any_other_packet() {
    let Some(mut lab) =
        standard(|policy| policy.pool("nat", POOL, "1024-65535").routes("203.0.113.201/32 via pool nat"))
    else {
        return;
    };
    let route = "203.0.113.201/32";
    let large = udp("10.0.1.2:4000", "203.0.113.201:53").payload([7; 2600]);
    lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.201:53"));
    let fragments = large.fragments(&[1272, 2544]);
    // The sender is told by the packet as it came: of the first one, not of the later ones (RFC 1812 4.3.2.7).
    lab.check("in0", &fragments[0], too_large(1280).by(route, "pool"));
    lab.check("in0", &fragments[1], dropped(MtuExceeded).by(route, "pool"));
    let fragments = large.fragments(&[1256, 2512]);
    let mut numbers = Numbers::default();
    // The large one has had a number, too.
    numbers.next(&lab, &large, SIDE_INSIDE);
    let identification = numbers.next(&lab, &large, SIDE_INSIDE);
    let leaving = large.from("198.51.100.10:4000").identification(identification);
    let leaving = leaving.fragments(&[1256, 2512]);
    let fragments: Vec<_> = fragments.into_iter().map(|fragment| fragment.identification(9)).collect();
    for (arriving, leaving) in fragments.iter().zip(&leaving) {
        lab.check("in0", arriving, sent("out1", "10.9.0.254", Snat, leaving).by(route, "pool"));
    }
}

#[test]
fn an_error_about_a_first_fragment_reaches_its_sender() {
    let Some(mut lab) = snat() else { return };
    let fragments = query("10.0.1.2:4000");
    let sent_on = lab.prepare("in0", &fragments[0]).frame;
    let identification = u16::from_be_bytes([sent_on[18], sent_on[19]]);
    let quote = |packet: &Packet| {
        let frame = packet.frame();
        frame[packet.network_offset()..].to_vec()
    };
    let error = |to: &str, quoted: Vec<u8>| {
        let mut error = bare("203.0.113.177", to, PROTO_ICMP).payload(quoted);
        error.transport = Transport::Icmp { kind: 11, code: 1, rest: [0; 4] };
        error
    };
    let outside = udp("198.51.100.10:4000", "203.0.113.10:53").payload([7; 120]);
    let outside = outside.identification(identification.into()).fragments(&[64]);
    let inside = udp("10.0.1.2:4000", "203.0.113.10:53").payload([7; 120]);
    let inside = inside.identification(identification.into()).fragments(&[64]);
    let expected = sent("in0", "10.0.1.2", Reply, &error("10.0.1.2", quote(&inside[0])));
    lab.check("out0", &error("198.51.100.10", quote(&outside[0])), expected.by(ALL, "pool"));
    // What a later one belongs to, its quote does not show.
    lab.check("out0", &error("198.51.100.10", quote(&outside[1])), dropped(NoSession));
}

#[test]
fn fragments_without_translation_are_not_touched() {
    let Some(mut lab) = standard(|policy| policy.routes("0.0.0.0/0 via direct\n::/0 via direct")) else {
        return;
    };
    for flow in flows() {
        for fragment in flow.packet.fragments(&[40, 80]) {
            let expected = sent("out0", flow.router, Direct, &fragment).by(flow.route, "direct");
            lab.check("in0", &fragment, expected);
        }
    }
}

#[test]
fn random_fragments_never_leave_with_an_inside_source() {
    let network = Network::standard();
    let Some(mut gateway) = Gateway::start(network.clone(), &nat(Policy::of(&network))) else { return };
    let mac = network.find("in0").mac();
    let mut rng = fastrand::Rng::with_seed(7);
    let mut sent_on = 0;
    for _ in 0..20_000 {
        let flow = &flows()[rng.usize(..6)];
        let cut = 8 * rng.usize(1..15);
        let number = rng.u32(..40);
        let fragment = flow.packet.clone().flags(if rng.bool() { SYN } else { ACK });
        let mut fragments = fragment.identification(number).fragments(&[cut]);
        let fragment = fragments.swap_remove(rng.usize(..2));
        let frame = fragment.macs([2, 4, 10, 0, 1, 2], mac).frame();
        let frame = if rng.u8(..4) == 0 {
            let (at, byte) = (rng.usize(14..frame.len()), rng.u8(..));
            patch(frame, at, &[byte])
        } else {
            frame
        };
        let out = gateway.run("in0", &frame);
        if matches!(out.action, Action::Redirect | Action::Tx) {
            sent_on += 1;
            let pool: &[u8] = if out.frame[14] >> 4 == 4 {
                &[198, 51, 100, 10]
            } else {
                &[0x20, 1, 0xd, 0xb8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10]
            };
            let at = if pool.len() == 4 { 26 } else { 22 };
            assert_eq!(&out.frame[at..at + pool.len()], pool, "from {frame:02x?}");
        }
    }
    assert!(sent_on > 1_000, "{sent_on} were sent on");
}

#[test]
fn fragments_pass_endpoint_independent_mappings() {
    let Some(mut lab) = standard(|policy| nat(policy).endpoint_independent("nat")) else { return };
    let fragments = query("10.0.1.2:4000");
    let number = Numbers::default().next(&lab, &fragments[0], SIDE_INSIDE);
    let leaving = udp("198.51.100.10:4000", "203.0.113.10:53").payload([7; 120]);
    for (arriving, leaving) in fragments.iter().zip(leaving.identification(number).fragments(&[64])) {
        let out = lab.prepare("in0", arriving);
        let leaving = leaving.macs(lab.network().find("out0").mac(), mac(ip(ROUTER))).ttl(63);
        assert_eq!(differences(&leaving.frame(), &out.frame), "");
    }
    // A mapping lets strangers in, but not in fragments.
    let stranger = udp("203.0.113.77:9", "198.51.100.10:4000").payload([7; 120]).fragments(&[64]);
    lab.check("out0", &stranger[0], dropped(NoSession));
    lab.check("out0", &stranger[1], dropped(FragmentUnmatched));
}
