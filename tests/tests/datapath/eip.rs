//! EIPs: outside addresses that are mapped 1:1 to inside hosts.

use std::{collections::BTreeSet, net::IpAddr, sync::atomic::Ordering::SeqCst};

use gateway_common::{
    DropReason::{
        BadChecksum, Blackhole, FragmentUnmatched, NeighborUnresolved, NoEip, NoRoute, NoSession, Prohibited,
        SpoofedSource, TtlExceeded, UnsupportedProtocol,
    },
    Verdict::{Direct, Eip, Reply, Snat},
};
use gateway_tests::{
    gateway::Action,
    network::{Network, mac},
    packet::{
        ACK, Arp, Packet, SYN, Transport, advertisement, bare, echo_reply, echo_request, ip, patch,
        solicitation, tcp, transport_checksum, udp,
    },
    policy::Policy,
};

use crate::support::{
    Lab, POOL, ROUTER, ROUTER6, answered, dropped, lab, nat, passed, refused, sent, standard, too_large,
    translated,
};

const ALL: &str = "0.0.0.0/0";
const ALL6: &str = "::/0";
/// The EIPs of 10.0.1.2 and 10.0.3.2, which are behind different interfaces.
const ONE: &str = "198.51.100.50";
const TWO: &str = "198.51.100.51";
/// Those of `2001:db8:1::2` and `2001:db8:3::2`.
const ONE6: &str = "2001:db8:100::50";
const TWO6: &str = "2001:db8:100::51";
/// Somebody on the way.
const HOP: &str = "203.0.113.177";
const HOP6: &str = "2001:db8:f::77";

fn with_eips(policy: Policy) -> Policy {
    policy.eip(ONE, "10.0.1.2").eip(TWO, "10.0.3.2").eip(ONE6, "2001:db8:1::2").eip(TWO6, "2001:db8:3::2")
}

/// Everybody leaves with his EIP.
fn by_eip() -> Option<Lab> {
    standard(|policy| with_eips(policy).routes("0.0.0.0/0 via eip\n::/0 via eip"))
}

/// A protocol number whose checksum, six bytes into its header, covers the addresses.
fn covered(from: &str, to: &str, proto: u8) -> Packet {
    checksummed(bare(from, to, proto).payload([7, 7, 0, 0, 9, 9, 0, 0, 1, 2, 3, 4]))
}

fn checksummed(mut packet: Packet) -> Packet {
    packet.payload[6..8].fill(0);
    let checksum = transport_checksum(packet.source, packet.destination, packet.proto(), &packet.payload);
    packet.payload[6..8].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Packets of every kind from 10.0.1.2 and `2001:db8:1::2` to the same servers.
fn packets() -> Vec<Packet> {
    let mut packets = Vec::new();
    for (from, to) in [("10.0.1.2", "203.0.113.10"), ("2001:db8:1::2", "2001:db8:f::1")] {
        let at = |address: &str, port| match ip(address) {
            IpAddr::V4(address) => format!("{address}:{port}"),
            IpAddr::V6(address) => format!("[{address}]:{port}"),
        };
        let (client, server) = (at(from, 4000), at(to, 443));
        let other = if from.contains(':') { (128, 1) } else { (13, 0) };
        let other = Transport::Icmp { kind: other.0, code: other.1, rest: [1, 2, 3, 4] };
        packets.extend([
            tcp(&client, &server, SYN),
            tcp(&client, &server, ACK).payload([0x5a; 1001]),
            udp(&client, &server),
            udp(&client, &server).without_checksum(),
            echo_request(from, to, 9),
            echo_reply(from, to, 9),
            Packet::new(ip(from), ip(to), other),
            // GRE, ESP and SCTP know nothing of addresses; DCCP and UDP-Lite do.
            bare(from, to, 47),
            bare(from, to, 50),
            bare(from, to, 132),
            covered(from, to, 33),
            covered(from, to, 136),
            tcp(&client, &server, SYN).tag(0x8100, 0x2000),
        ]);
    }
    packets.push(udp("10.0.1.2:4000", "203.0.113.10:53").options(&[1, 1, 1, 0]));
    packets.push(udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53").extension(60, &[1, 4, 0, 0, 0, 0]));
    packets
}

/// The packet between these ends.
fn between(packet: &Packet, source: IpAddr, destination: IpAddr) -> Packet {
    let moved = Packet { source, destination, tags: Vec::new(), ..packet.clone() };
    if matches!(packet.transport, Transport::Bare(33 | 136)) { checksummed(moved) } else { moved }
}

/// The same packet the other way round.
fn backwards(packet: &Packet) -> Packet {
    let back = packet.answer().flags(SYN);
    if matches!(packet.transport, Transport::Bare(33 | 136)) { checksummed(back) } else { back }
}

/// Route, router and the two EIPs of the family of a packet.
fn of_family(packet: &Packet) -> (&'static str, &'static str, &'static str, &'static str) {
    if packet.source.is_ipv4() { (ALL, ROUTER, ONE, TWO) } else { (ALL6, ROUTER6, ONE6, TWO6) }
}

#[test]
fn a_host_leaves_with_its_eip() {
    let Some(mut lab) = by_eip() else { return };
    for packet in packets() {
        let (route, router, eip, _) = of_family(&packet);
        let leaves = between(&packet, ip(eip), packet.destination);
        lab.check("in0", &packet, sent("out0", router, Eip, &leaves).by(route, "eip"));
    }
    assert_eq!(lab.sessions().len(), 0, "nothing is remembered");
}

#[test]
fn connections_from_outside_reach_the_host() {
    let Some(mut lab) = by_eip() else { return };
    for packet in packets() {
        let (route, _, eip, _) = of_family(&packet);
        let arrives = between(&backwards(&packet), packet.destination, ip(eip));
        let enters = between(&arrives, packet.destination, packet.source);
        let host = packet.source.to_string();
        lab.check("out0", &arrives, sent("in0", &host, Eip, &enters).by(route, "eip"));
    }
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    let Some(mut lab) = by_eip() else { return };
    let datagram = lab.arriving("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    let at = datagram.transport_offset() + 9;
    let outcome = lab.run("in0", &patch(datagram.frame(), at, &[0xee]));
    let leaves = datagram.from_address(ip(ONE)).ttl(63);
    let leaves = leaves.macs(mac(ip("192.0.2.1")), mac(ip(ROUTER))).frame();
    assert_eq!(outcome.frame, patch(leaves, at, &[0xee]));
}

#[test]
fn a_host_without_an_eip_does_not_get_out_by_one() {
    let Some(mut lab) = by_eip() else { return };
    lab.check("in0", &tcp("10.0.1.3:4000", "203.0.113.10:443", SYN), dropped(NoEip).by(ALL, "eip"));
    let six = udp("[2001:db8:1::3]:4000", "[2001:db8:f::1]:53");
    lab.check("in0", &six, dropped(NoEip).by(ALL6, "eip"));
    // The EIP of another family is none.
    lab.change(|policy| policy.without_eip(ONE6));
    let six = udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53");
    lab.check("in0", &six, dropped(NoEip).by(ALL6, "eip"));
}

#[test]
fn a_host_without_a_matching_route_stays_closed() {
    let Some(mut lab) = standard(with_eips) else { return };
    lab.check("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN), dropped(NoRoute));
    lab.check("out0", &tcp("203.0.113.10:4000", &format!("{ONE}:22"), SYN), dropped(NoRoute));
    lab.change(|policy| policy.routes("203.0.113.0/24 via eip proto tcp dport 443"));
    let route = "203.0.113.0/24 proto tcp dport 443";
    let out = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    lab.check("in0", &out, sent("out0", ROUTER, Eip, &out.clone().from_address(ip(ONE))).by(route, "eip"));
    let back = tcp("203.0.113.10:443", &format!("{ONE}:4000"), SYN | ACK);
    let enters = back.clone().to("10.0.1.2:4000");
    lab.check("out0", &back, sent("in0", "10.0.1.2", Eip, &enters).by(route, "eip"));
    lab.check("out0", &tcp("203.0.113.10:444", &format!("{ONE}:4000"), SYN), dropped(NoRoute));
}

#[test]
fn what_the_host_would_not_answer_by_its_eip_does_not_enter() {
    let policy = |policy| {
        with_eips(nat(policy)).routes(
            "203.0.113.0/28 via eip
             203.0.113.16/28 via direct
             203.0.113.32/28 via blackhole
             203.0.113.33/32 via prohibit
             203.0.113.48/28 via host
             203.0.113.96/28 via gateway 192.0.2.2",
        )
    };
    let Some(mut lab) = standard(policy) else { return };
    let from = |server: &str| udp(server, &format!("{ONE}:4000"));
    let enters = from("203.0.113.10:53").to("10.0.1.2:4000");
    let expected = sent("in0", "10.0.1.2", Eip, &enters).by("203.0.113.0/28", "eip");
    lab.check("out0", &from("203.0.113.10:53"), expected);
    for server in ["203.0.113.20:53", "203.0.113.50:53", "203.0.113.100:53", "203.0.113.150:53"] {
        lab.check("out0", &from(server), dropped(NoSession));
    }
    for server in ["203.0.113.40:53", "203.0.113.33:53"] {
        lab.check("out0", &from(server), dropped(NoRoute));
    }
    // Nor does what is for the host's own address, where answers would come from the EIP.
    lab.check("out0", &udp("203.0.113.10:53", "10.0.1.2:4000"), dropped(NoSession));
}

#[test]
fn sources_are_checked_on_both_sides() {
    let Some(mut lab) = standard(|policy| {
        with_eips(nat(policy)).routes(
            "203.0.113.0/24 via eip\n10.0.0.0/8 via eip\n192.0.2.0/24 via eip\n198.51.100.0/24 via eip",
        )
    }) else {
        return;
    };
    for source in ["10.0.3.2", "203.0.113.10", ONE] {
        let spoofed = udp(&format!("{source}:4000"), "203.0.113.10:53");
        lab.check("in0", &spoofed, dropped(SpoofedSource));
    }
    // Inside hosts, the gateway's own addresses, its EIPs and pool addresses do not come from outside.
    for source in ["10.0.1.3", "10.0.3.2", "192.0.2.1", "192.0.2.255", ONE, TWO, POOL] {
        lab.check("out0", &udp(&format!("{source}:53"), &format!("{ONE}:4000")), dropped(SpoofedSource));
    }
    let neighbour = udp("192.0.2.99:53", &format!("{ONE}:4000"));
    let enters = neighbour.clone().to("10.0.1.2:4000");
    lab.check("out0", &neighbour, sent("in0", "10.0.1.2", Eip, &enters).by("192.0.2.0/24", "eip"));
}

#[test]
fn an_eip_of_a_host_that_is_not_inside_leads_nowhere() {
    let policy = |policy: Policy| {
        policy
            .eip(ONE, "203.0.113.10")
            .eip(TWO, "10.0.1.99")
            .eip("198.51.100.52", "192.0.2.1")
            .eip("198.51.100.53", "203.0.113.81")
            .routes("0.0.0.0/0 via eip")
    };
    let Some(mut lab) = standard(policy) else { return };
    for eip in [ONE, "198.51.100.52", "198.51.100.53"] {
        lab.check("out0", &udp("203.0.113.11:53", &format!("{eip}:4000")), dropped(NoRoute));
    }
    let unresolved = udp("203.0.113.11:53", &format!("{TWO}:4000"));
    lab.check("out0", &unresolved, dropped(NeighborUnresolved));
}

#[test]
fn fragments_are_translated_one_by_one() {
    let Some(mut lab) = by_eip() else { return };
    for (from, to, proto) in [
        ("10.0.1.2", "203.0.113.10", 17),
        ("2001:db8:1::2", "2001:db8:f::1", 17),
        ("10.0.1.2", "203.0.113.10", 47),
    ] {
        let whole = if proto == 47 {
            bare(from, to, 47)
        } else {
            udp("10.0.1.2:4000", "203.0.113.10:53").from_address(ip(from))
        };
        let whole = Packet { destination: ip(to), ..whole }.payload([0x33; 64]);
        let (route, router, eip, _) = of_family(&whole);
        let later = bare(from, to, proto).payload([0x44; 24]).fragment(9, true);
        // In whatever order.
        for fragment in [later, whole.fragment(0, true), bare(from, to, proto).fragment(12, false)] {
            let leaves = between(&fragment, ip(eip), fragment.destination);
            lab.check("in0", &fragment, sent("out0", router, Eip, &leaves).by(route, "eip"));
            let arrives = between(&fragment, fragment.destination, ip(eip));
            let enters = between(&arrives, arrives.source, ip(from));
            lab.check("out0", &arrives, sent("in0", from, Eip, &enters).by(route, "eip"));
        }
    }
}

/// An error about `quoted`, of which it shows `length` bytes, to its source.
fn error(from: &str, (kind, code, rest): (u8, u8, [u8; 4]), quoted: &Packet, length: usize) -> Packet {
    let quote = quoted.frame()[14..].iter().copied().take(length).collect::<Vec<_>>();
    Packet::new(ip(from), quoted.source, Transport::Icmp { kind, code, rest }).payload(quote)
}

/// Types and codes of errors, with what else they say.
fn errors(v4: bool) -> &'static [(u8, u8, [u8; 4])] {
    if v4 {
        &[(3, 1, [0; 4]), (3, 4, [0, 0, 5, 0]), (11, 0, [0; 4]), (12, 0, [9, 0, 0, 0])]
    } else {
        &[(1, 4, [0; 4]), (2, 0, [0, 0, 5, 0]), (3, 0, [0; 4]), (4, 1, [0, 0, 0, 6])]
    }
}

/// Lengths of quotes: as short as can be, as long as most, and all of it.
fn lengths(v4: bool) -> [usize; 4] {
    if v4 { [20, 28, 40, 1000] } else { [40, 48, 60, 1000] }
}

#[test]
fn errors_from_outside_quote_the_host_as_it_sent() {
    let Some(mut lab) = by_eip() else { return };
    for packet in packets().into_iter().map(|packet| Packet { tags: Vec::new(), ..packet }) {
        let (route, _, eip, _) = of_family(&packet);
        let v4 = packet.source.is_ipv4();
        let hop = if v4 { HOP } else { HOP6 };
        let host = packet.source.to_string();
        let (seen, own) = (between(&packet, ip(eip), packet.destination).ttl(3), packet.ttl(3));
        for kind in errors(v4) {
            for length in lengths(v4) {
                if length < own.transport_offset() - 14 {
                    continue;
                }
                let (arrives, enters) = (error(hop, *kind, &seen, length), error(hop, *kind, &own, length));
                lab.check("out0", &arrives, sent("in0", &host, Eip, &enters).by(route, "eip"));
            }
        }
    }
}

#[test]
fn errors_from_inside_come_from_the_eip() {
    let Some(mut lab) = by_eip() else { return };
    for packet in packets().into_iter().map(|packet| Packet { tags: Vec::new(), ..packet }) {
        let (route, router, eip, _) = of_family(&packet);
        let v4 = packet.source.is_ipv4();
        let arrived = between(&backwards(&packet), packet.destination, ip(eip)).ttl(5);
        let delivered = between(&arrived, packet.destination, packet.source);
        // The host itself, or a router between it and the gateway.
        let senders = if v4 { ["10.0.1.2", "10.0.2.9"] } else { ["2001:db8:1::2", "2001:db8:4::9"] };
        for sender in senders {
            for kind in errors(v4) {
                for length in lengths(v4) {
                    if length < delivered.transport_offset() - 14 {
                        continue;
                    }
                    let complains = error(sender, *kind, &delivered, length);
                    let leaves = error(eip, *kind, &arrived, length);
                    lab.check("in0", &complains, sent("out0", router, Eip, &leaves).by(route, "eip"));
                }
            }
        }
    }
}

#[test]
fn an_error_about_a_later_fragment_is_translated() {
    let Some(mut lab) = by_eip() else { return };
    let fragment = |source: &str| bare(source, "203.0.113.10", 17).fragment(9, false).ttl(3);
    let kind = (11, 1, [0; 4]);
    let arrives = error(HOP, kind, &fragment(ONE), 28);
    let enters = error(HOP, kind, &fragment("10.0.1.2"), 28);
    lab.check("out0", &arrives, sent("in0", "10.0.1.2", Eip, &enters).by(ALL, "eip"));
}

#[test]
fn an_error_obeys_the_route_of_what_it_quotes() {
    let policy = |policy| with_eips(policy).routes("203.0.113.0/28 via eip proto tcp dport 443");
    let Some(mut lab) = standard(policy) else { return };
    let route = "203.0.113.0/28 proto tcp dport 443";
    let quoted = |source: &str, server| tcp(&format!("{source}:4000"), server, SYN).ttl(3);
    let kind = (3, 4, [0, 0, 5, 0]);
    // From a router that no route leads to; eight bytes of TCP show the port.
    let arrives = error(HOP, kind, &quoted(ONE, "203.0.113.10:443"), 28);
    let enters = error(HOP, kind, &quoted("10.0.1.2", "203.0.113.10:443"), 28);
    lab.check("out0", &arrives, sent("in0", "10.0.1.2", Eip, &enters).by(route, "eip"));
    let other = error(HOP, kind, &quoted(ONE, "203.0.113.10:80"), 28);
    lab.check("out0", &other, dropped(NoRoute));
    let short = error(HOP, kind, &quoted(ONE, "203.0.113.10:443"), 23);
    lab.check("out0", &short, dropped(FragmentUnmatched));
}

#[test]
fn errors_that_are_not_right_are_dropped() {
    let Some(mut lab) = by_eip() else { return };
    let kind = (3, 1, [0; 4]);
    let seen = udp(&format!("{ONE}:4000"), "203.0.113.10:53").ttl(3);
    let good = lab.arriving("out0", &error(HOP, kind, &seen, 1000));
    for at in [good.transport_offset() + 1, good.frame().len() - 1] {
        let frame = good.frame();
        lab.check_frame("out0", &patch(frame.clone(), at, &[frame[at] ^ 0x10]), dropped(BadChecksum));
    }
    let mut bent = good.clone();
    bent.payload[11] ^= 1;
    lab.check("out0", &bent, dropped(BadChecksum));
    // About a packet of somebody else; about nothing.
    let mut diverted = good.clone();
    diverted.destination = ip(TWO);
    lab.check("out0", &diverted, dropped(NoSession));
    lab.check("out0", &good.clone().payload([0x45; 19]), dropped(NoSession));
    // In fragments, what it quotes would stay as it is.
    lab.check("out0", &good.clone().fragment(0, true), dropped(FragmentUnmatched));
    // From inside about a packet to a host that has no EIP.
    let delivered = udp("203.0.113.10:53", "10.0.1.3:4000");
    lab.check("in0", &error("10.0.1.2", kind, &delivered, 1000), dropped(NoSession).by(ALL, "eip"));
    // About a packet of the gateway's own host: for the host.
    let own = udp("10.0.1.1:53", "10.0.1.2:4000");
    lab.check("in0", &error("10.0.1.2", kind, &own, 1000), passed());
}

#[test]
fn an_error_of_a_router_on_the_inside_needs_no_route_of_its_own() {
    let policy = |policy| {
        with_eips(policy).table("one", &["10.0.1.2/32"], "203.0.113.0/24 via eip proto tcp dport 443")
    };
    let Some(mut lab) = standard(policy) else { return };
    let route = "203.0.113.0/24 proto tcp dport 443";
    let (arrived, kind) = (|to: &str| tcp("203.0.113.10:443", to, ACK).ttl(5), (3, 4, [0, 0, 5, 0]));
    let complains = |delivered: &Packet| error("10.0.2.9", kind, delivered, 28);
    let leaves = error(ONE, kind, &arrived(&format!("{ONE}:4000")), 28);
    let expected = sent("out0", ROUTER, Eip, &leaves).by_table("one", route, "eip");
    lab.check("in0", &complains(&arrived("10.0.1.2:4000")), expected);
    // What no route of the host's would answer is the router's own affair.
    let other = arrived("10.0.1.2:4000").from_port(444);
    lab.check("in0", &complains(&other), dropped(NoRoute));
    lab.check("in0", &complains(&arrived("10.0.3.2:4000")), dropped(NoRoute));
    lab.change(|policy| policy.routes("203.0.113.0/24 via direct"));
    let as_it_is = complains(&other);
    lab.check("in0", &as_it_is, sent("out0", ROUTER, Direct, &as_it_is).by("203.0.113.0/24", "direct"));
    let spoofed = error("203.0.113.99", kind, &arrived("10.0.1.2:4000"), 28);
    lab.check("in0", &spoofed, dropped(SpoofedSource));
}

#[test]
fn messages_for_the_link_do_not_pass() {
    let Some(mut lab) = by_eip() else { return };
    for kind in [4, 5, 9, 10] {
        let message = Transport::Icmp { kind, code: 0, rest: [192, 0, 2, 2] };
        lab.check("out0", &Packet::new(ip(HOP), ip(ONE), message), dropped(UnsupportedProtocol));
        let out = Packet::new(ip("10.0.1.2"), ip(HOP), message);
        lab.check("in0", &out, dropped(UnsupportedProtocol).by(ALL, "eip"));
    }
    let redirect = Transport::Icmp { kind: 137, code: 0, rest: [0; 4] };
    lab.check("out0", &Packet::new(ip(HOP6), ip(ONE6), redirect), dropped(UnsupportedProtocol));
}

#[test]
fn hosts_with_eips_reach_each_other_by_them() {
    let Some(mut lab) = by_eip() else { return };
    for packet in packets() {
        let (route, _, one, two) = of_family(&packet);
        let other = if packet.source.is_ipv4() { "10.0.3.2" } else { "2001:db8:3::2" };
        let asks = between(&packet, packet.source, ip(two));
        let asks = Packet { tags: packet.tags.clone(), ..asks };
        let arrives = between(&packet, ip(one), ip(other));
        lab.check("in0", &asks, sent("in1", other, Eip, &arrives).by(route, "eip"));
        let answers = between(&backwards(&packet), ip(other), ip(one));
        let comes = between(&answers, ip(two), packet.source);
        let host = packet.source.to_string();
        lab.check("in1", &answers, sent("in0", &host, Eip, &comes).by(route, "eip"));
        if packet.tags.is_empty() {
            // And an error about what arrived.
            let kind = errors(packet.source.is_ipv4())[0];
            let complains = error(other, kind, &arrives.clone().ttl(5), 1000);
            let told = error(two, kind, &asks.ttl(5), 1000);
            lab.check("in1", &complains, sent("in0", &host, Eip, &told).by(route, "eip"));
        }
    }
    // Itself, too.
    let own = udp("10.0.1.2:4000", &format!("{ONE}:5000"));
    let comes = own.clone().from(&format!("{ONE}:4000")).to("10.0.1.2:5000");
    lab.check("in0", &own, sent("in0", "10.0.1.2", Eip, &comes).by(ALL, "eip"));
}

#[test]
fn both_hosts_must_allow_what_goes_from_one_to_the_other() {
    let policy = |policy| {
        with_eips(nat(policy))
            .table("one", &["10.0.1.0/24"], "198.51.100.51/32 via eip\n198.51.100.0/24 via prohibit")
            .table("two", &["10.0.3.0/24"], "203.0.113.0/24 via eip")
    };
    let Some(mut lab) = standard(policy) else { return };
    let asks = udp("10.0.1.2:4000", &format!("{TWO}:53"));
    // Two would not answer.
    lab.check("in0", &asks, dropped(NoRoute).by_table("one", "198.51.100.51/32", "eip"));
    let own = udp("10.0.1.2:4000", &format!("{ONE}:53"));
    lab.check("in0", &own, refused(Prohibited).by_table("one", "198.51.100.0/24", "prohibit"));
    lab.check("in1", &udp("10.0.3.2:53", &format!("{ONE}:4000")), dropped(NoRoute));
    // Or with another address.
    lab.change(|policy| policy.table("two", &[], "198.51.100.0/24 via pool nat"));
    lab.check("in0", &asks, dropped(NoSession).by_table("one", "198.51.100.51/32", "eip"));
    lab.change(|policy| policy.table("two", &[], "198.51.100.50/32 via eip"));
    let comes = asks.clone().from(&format!("{ONE}:4000")).to("10.0.3.2:53");
    let expected = sent("in1", "10.0.3.2", Eip, &comes).by_table("one", "198.51.100.51/32", "eip");
    lab.check("in0", &asks, expected);
    let complains = error("10.0.3.2", (3, 3, [0; 4]), &comes.ttl(63), 1000);
    let told = error(TWO, (3, 3, [0; 4]), &asks.clone().ttl(63), 1000);
    let expected = sent("in0", "10.0.1.2", Eip, &told).by_table("two", "198.51.100.50/32", "eip");
    lab.check("in1", &complains, expected);
    // With its own address it would be answered by another one than it asked.
    lab.change(|policy| policy.table("one", &[], "198.51.100.51/32 via direct"));
    lab.check("in0", &asks, dropped(NoSession).by_table("one", "198.51.100.51/32", "direct"));
}

#[test]
fn the_gateway_answers_for_eips() {
    let Some(mut lab) = by_eip() else { return };
    let sender = (mac(ip(ROUTER)), "192.0.2.254".parse().expect("an address"));
    let request = Arp::request(sender, "198.51.100.50".parse().expect("an address"));
    let device = lab.network().find("out0").mac();
    lab.check_frame("out0", &request.clone().frame(), answered(request.reply(device).frame()));
    let sender = (mac(ip(ROUTER6)), ROUTER6.parse().expect("an address"));
    let wanted = ONE6.parse().expect("an address");
    let question = solicitation(sender, wanted);
    let answer = advertisement((device, wanted), (sender.0, sender.1)).frame();
    lab.check_frame("out0", &question.frame(), answered(answer));
    lab.change(|policy| policy.without_eip(ONE));
    let sender = (mac(ip(ROUTER)), "192.0.2.254".parse().expect("an address"));
    let request = Arp::request(sender, "198.51.100.50".parse().expect("an address"));
    lab.check_frame("out0", &request.frame(), passed());
}

#[test]
fn an_address_of_the_gateway_host_stays_its_own() {
    let policy = |policy: Policy| policy.eip("192.0.2.1", "10.0.1.2").routes("0.0.0.0/0 via eip");
    let Some(mut lab) = standard(policy) else { return };
    lab.check("out0", &tcp("203.0.113.10:4000", "192.0.2.1:22", SYN), passed());
    lab.check("in0", &tcp("10.0.1.2:4000", "192.0.2.1:22", SYN), passed());
    let sender = (mac(ip(ROUTER)), "192.0.2.254".parse().expect("an address"));
    let request = Arp::request(sender, "192.0.2.1".parse().expect("an address"));
    lab.check_frame("out0", &request.frame(), passed());
}

#[test]
fn a_change_of_eips_is_in_force_for_the_next_packet() {
    let Some(mut lab) = by_eip() else { return };
    let out = udp("10.0.1.2:4000", "203.0.113.10:53");
    let to = |eip: &str| udp("203.0.113.10:53", &format!("{eip}:4000"));
    let enters = |host: &str| to(ONE).to(&format!("{host}:4000"));
    lab.check("out0", &to(ONE), sent("in0", "10.0.1.2", Eip, &enters("10.0.1.2")).by(ALL, "eip"));
    // To another host.
    lab.change(|policy| policy.eip(ONE, "10.0.1.3"));
    lab.check("out0", &to(ONE), sent("in0", "10.0.1.3", Eip, &enters("10.0.1.3")).by(ALL, "eip"));
    lab.check("in0", &out, dropped(NoEip).by(ALL, "eip"));
    // To another address.
    lab.change(|policy| policy.without_eip(ONE).eip("198.51.100.60", "10.0.1.2"));
    let leaves = out.clone().from("198.51.100.60:4000");
    lab.check("in0", &out, sent("out0", ROUTER, Eip, &leaves).by(ALL, "eip"));
    lab.check("out0", &to(ONE), passed());
    lab.change(|policy| policy.without_eip("198.51.100.60"));
    lab.check("in0", &out, dropped(NoEip).by(ALL, "eip"));
    lab.check("out0", &to("198.51.100.60"), passed());
    // The route decides both directions.
    lab.change(|policy| policy.eip(ONE, "10.0.1.2").routes("203.0.113.10/32 via blackhole"));
    lab.check("in0", &out, dropped(Blackhole).by("203.0.113.10/32", "blackhole"));
    lab.check("out0", &to(ONE), dropped(NoRoute));
}

#[test]
fn eips_that_change_hosts_are_never_at_two_hosts_nor_at_none() {
    let Some(mut lab) = by_eip() else { return };
    let policy = |lab: &Lab, [one, two]: [&str; 2]| lab.policy().eip(ONE, one).eip(TWO, two);
    let policies = [policy(&lab, ["10.0.1.3", "10.0.1.2"]), policy(&lab, ["10.0.1.2", "10.0.1.3"])];
    lab.change(|policy| policy.eip(ONE, "10.0.1.2").eip(TWO, "10.0.1.3"));
    let out = ["10.0.1.2:4000", "10.0.1.3:4000"]
        .map(|from| lab.arriving("in0", &udp(from, "203.0.113.10:53")).frame());
    let back = lab.arriving("out0", &udp("203.0.113.10:53", &format!("{ONE}:4000"))).frame();
    let mut seen = BTreeSet::new();
    lab.while_changing([&policies[0], &policies[1]], |run, begun| {
        while begun.load(SeqCst) < 400 {
            let before = begun.load(SeqCst);
            let leaves = |host: usize| {
                let outcome = run("in0", &out[host]);
                assert_eq!(outcome.action, Action::Redirect, "a host has no EIP");
                translated(&outcome.frame).0
            };
            let first = leaves(0);
            let second = leaves(1);
            let outcome = run("out0", &back);
            assert_eq!(outcome.action, Action::Redirect, "an EIP has no host");
            let behind: [u8; 4] = outcome.frame[30..34].try_into().expect("an address");
            let again = leaves(0);
            // In between, one change came into force at most: what is as it was has been all the while.
            if begun.load(SeqCst) == before && first == again {
                assert_ne!(first, second, "two hosts have one EIP");
                let host = if first == ip(ONE) { [10, 0, 1, 2] } else { [10, 0, 1, 3] };
                assert_eq!(behind, host, "host and EIP do not agree");
                seen.insert(first);
            }
        }
    });
    assert_eq!(seen.len(), 2, "the packets met one of the policies only");
}

#[test]
fn a_session_of_a_pool_goes_on_when_its_route_becomes_eip() {
    let Some(mut lab) = standard(|policy| with_eips(nat(policy))) else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    let (_, port) = lab.open("in0", &query);
    lab.change(|policy| policy.routes("0.0.0.0/0 via eip"));
    let leaves = query.clone().from(&format!("{POOL}:{port}"));
    lab.check("in0", &query, sent("out0", ROUTER, Snat, &leaves).by(ALL, "eip"));
    let answer = udp("203.0.113.10:53", &format!("{POOL}:{port}"));
    let comes = answer.clone().to("10.0.1.2:4000");
    lab.check("out0", &answer, sent("in0", "10.0.1.2", Reply, &comes).by(ALL, "eip").establishing(POOL));
    let other = udp("10.0.1.2:4001", "203.0.113.10:53");
    let leaves = other.clone().from(&format!("{ONE}:4001"));
    lab.check("in0", &other, sent("out0", ROUTER, Eip, &leaves).by(ALL, "eip"));
}

#[test]
fn senders_are_told_what_does_not_fit() {
    let Some(mut lab) = by_eip() else { return };
    let out = udp("10.0.1.2:4000", "203.0.113.10:53");
    let to = udp("203.0.113.10:53", &format!("{ONE}:4000"));
    lab.check("in0", &out.clone().ttl(1), refused(TtlExceeded).by(ALL, "eip"));
    lab.check("out0", &to.clone().ttl(1), refused(TtlExceeded).by(ALL, "eip"));
    let large = udp("10.0.1.2:4000", "203.0.113.200:53").length(1281);
    lab.check("in0", &large, too_large(1280).by(ALL, "eip"));
    let fits = large.length(1280);
    let leaves = fits.clone().from_address(ip(ONE));
    lab.check("in0", &fits, sent("out1", "10.9.0.254", Eip, &leaves).by(ALL, "eip"));
}

#[test]
fn one_arm_will_do() {
    let policy = |policy: Policy| {
        policy
            .eip(ONE, "10.0.7.2")
            .eip(TWO, "10.0.7.3")
            .routes("0.0.0.0/0 via eip\n203.0.113.64/26 via direct")
    };
    let Some(mut lab) = lab(Network::one_armed(), policy) else { return };
    let out = tcp("10.0.7.2:4000", "203.0.113.10:443", SYN);
    let leaves = out.clone().from(&format!("{ONE}:4000"));
    lab.check("arm0", &out, sent("arm0", "10.0.7.254", Eip, &leaves).by(ALL, "eip"));
    let comes = tcp("203.0.113.10:443", &format!("{ONE}:4000"), SYN);
    let enters = comes.clone().to("10.0.7.2:4000");
    lab.check("arm0", &comes, sent("arm0", "10.0.7.2", Eip, &enters).by(ALL, "eip"));
    lab.check("arm0", &tcp("203.0.113.70:443", &format!("{ONE}:4000"), SYN), dropped(NoSession));
    for source in [ONE, TWO, "10.0.7.1"] {
        lab.check(
            "arm0",
            &tcp(&format!("{source}:443"), &format!("{ONE}:4000"), SYN),
            dropped(SpoofedSource),
        );
    }
    // What comes from a client is the client's.
    let asks = tcp("10.0.7.2:4000", &format!("{TWO}:22"), SYN);
    let comes = asks.clone().from(&format!("{ONE}:4000")).to("10.0.7.3:22");
    lab.check("arm0", &asks, sent("arm0", "10.0.7.3", Eip, &comes).by(ALL, "eip"));
    let without = tcp("10.0.7.99:4000", &format!("{TWO}:22"), SYN);
    lab.check("arm0", &without, dropped(NoEip).by(ALL, "eip"));
}
