//! ICMP errors about packets of sessions, from both sides.

use gateway_common::{
    DropReason::{BadChecksum, Blackhole, MtuExceeded, NoSession, SpoofedSource, TtlExceeded},
    Verdict::{Reply, Snat},
};
use gateway_tests::packet::{
    ACK, Packet, SYN, Transport, bare, echo_reply, echo_request, ip, patch, tcp, udp,
};

use crate::support::{Lab, POOL, POOL6, ROUTER, ROUTER6, dropped, nat, passed, sent, snat, standard};

const ALL: &str = "0.0.0.0/0";
const ALL6: &str = "::/0";
/// Somebody on the way, on the outside and on the inside.
const HOP: &str = "203.0.113.177";
const HOP6: &str = "2001:db8:f::77";

/// A flow: the client's packet, and the address of the pool.
struct Flow {
    packet: Packet,
    pool: &'static str,
    proto: &'static str,
}

/// Flows of every kind.
fn flows() -> [Flow; 6] {
    let flow = |packet, pool, proto| Flow { packet, pool, proto };
    [
        flow(tcp("10.0.1.2:80", "203.0.113.10:443", SYN), POOL, "tcp"),
        flow(udp("10.0.1.2:80", "203.0.113.10:53"), POOL, "udp"),
        flow(echo_request("10.0.1.2", "203.0.113.10", 80), POOL, "icmp"),
        flow(tcp("[2001:db8:1::2]:80", "[2001:db8:f::1]:443", SYN), POOL6, "tcp"),
        flow(udp("[2001:db8:1::2]:80", "[2001:db8:f::1]:53"), POOL6, "udp"),
        flow(echo_request("2001:db8:1::2", "2001:db8:f::1", 80), POOL6, "icmp"),
    ]
}

/// A gateway whose pool never gives the client's own port.
fn translating() -> Option<Lab> {
    standard(|policy| nat(policy).pool("nat", &format!("{POOL} {POOL6}"), "5000-5099"))
}

impl Flow {
    fn is_v4(&self) -> bool {
        self.packet.source.is_ipv4()
    }

    fn route(&self) -> &'static str {
        if self.is_v4() { ALL } else { ALL6 }
    }

    /// The client's packet as the outside sees it, some hops on.
    fn outside(&self, port: u16) -> Packet {
        self.packet.clone().from_address(ip(self.pool)).from_port(port).ttl(3)
    }

    /// What an outside host sends back to this port of the pool, and what the client gets of it.
    fn back(&self, port: u16) -> (Packet, Packet) {
        let answer = self.outside(port).answer().ttl(3);
        let client = self.packet.answer().ttl(3);
        (answer, client)
    }

    /// Types and codes of errors, with what else they say.
    fn errors(&self) -> &'static [(u8, u8, [u8; 4])] {
        if self.is_v4() {
            &[
                (3, 1, [0; 4]),
                (3, 4, [0, 0, 5, 0]),
                (11, 0, [0; 4]),
                (12, 0, [9, 0, 0, 0]),
                (3, 13, [0, 32, 0, 0]),
            ]
        } else {
            &[(1, 4, [0; 4]), (2, 0, [0, 0, 5, 0]), (3, 0, [0; 4]), (4, 1, [0, 0, 0, 6])]
        }
    }

    /// Lets the session open; the port it got.
    fn open(&self, lab: &mut Lab) -> u16 {
        let (address, port) = lab.open("in0", &self.packet);
        assert_eq!(address, ip(self.pool));
        assert_ne!(port, 80);
        port
    }
}

/// An error about `quoted`, of which it shows `length` bytes, to its source.
fn error(from: &str, (kind, code, rest): (u8, u8, [u8; 4]), quoted: &Packet, length: usize) -> Packet {
    let quote = quoted.frame()[14..].iter().copied().take(length).collect::<Vec<_>>();
    Packet::new(ip(from), quoted.source, Transport::Icmp { kind, code, rest }).payload(quote)
}

fn unreachable(from: &str, quoted: &Packet) -> Packet {
    let kind = if quoted.source.is_ipv4() { (3, 1, [0; 4]) } else { (1, 0, [0; 4]) };
    error(from, kind, quoted, 1000)
}

#[test]
fn an_error_from_outside_reaches_the_client() {
    for flow in flows() {
        let Some(mut lab) = translating() else { return };
        let port = flow.open(&mut lab);
        let hop = if flow.is_v4() { HOP } else { HOP6 };
        let client = flow.packet.source.to_string();
        for kind in flow.errors() {
            let least = if flow.is_v4() { 28 } else { 48 };
            for length in [least, least + 5, least + 8, 1000] {
                let arrives = error(hop, *kind, &flow.outside(port), length);
                let leaves = error(hop, *kind, &flow.packet.clone().ttl(3), length);
                lab.check("out0", &arrives, sent("in0", &client, Reply, &leaves).by(flow.route(), "pool"));
            }
        }
    }
}

#[test]
fn an_error_from_inside_reaches_the_server() {
    for flow in flows() {
        let Some(mut lab) = translating() else { return };
        let port = flow.open(&mut lab);
        let (answer, delivered) = flow.back(port);
        lab.prepare("out0", &answer);
        let router = if flow.is_v4() { ROUTER } else { ROUTER6 };
        // The client itself, or a router between it and the gateway.
        let senders = if flow.is_v4() {
            ["10.0.1.2", "10.0.2.9"].map(|sender| (sender, [2, 4, 10, 0, 1, 254]))
        } else {
            ["2001:db8:1::2", "2001:db8:4::9"].map(|sender| (sender, [2, 6, 0, 1, 2, 0x54]))
        };
        for (sender, mac) in senders {
            for kind in flow.errors() {
                for length in [if flow.is_v4() { 28 } else { 48 }, 1000] {
                    let arrives = error(sender, *kind, &delivered, length).macs(mac, [2, 4, 10, 0, 1, 1]);
                    let leaves = error(flow.pool, *kind, &answer, length);
                    let expected = sent("out0", router, Snat, &leaves).by(flow.route(), "pool");
                    lab.check("in0", &arrives, expected);
                }
            }
        }
    }
}

#[test]
fn an_error_neither_refreshes_nor_ends_its_session() {
    for flow in flows() {
        let Some(mut lab) = translating() else { return };
        let port = flow.open(&mut lab);
        let before = lab.sessions();
        for kind in flow.errors() {
            lab.prepare(
                "out0",
                &error(if flow.is_v4() { HOP } else { HOP6 }, *kind, &flow.outside(port), 48),
            );
        }
        assert_eq!(format!("{:?}", lab.sessions()), format!("{before:?}"));
        let (answer, delivered) = flow.back(port);
        let client = flow.packet.source.to_string();
        let expected = sent("in0", &client, Reply, &delivered).by(flow.route(), "pool");
        lab.check("out0", &answer, expected.establishing(flow.pool));
        assert!(["tcp", "udp", "icmp"].contains(&flow.proto));
    }
}

#[test]
fn options_and_extension_headers_of_the_quote_are_skipped() {
    let Some(mut lab) = translating() else { return };
    let [.., flow, _, _] = flows();
    let v4 = &flows()[1];
    let port = v4.open(&mut lab);
    let options = [7, 7, 4, 0, 0, 0, 0, 0];
    let arrives = unreachable(HOP, &v4.outside(port).options(&options));
    let leaves = unreachable(HOP, &v4.packet.clone().ttl(3).options(&options));
    // The error's own options too.
    let (arrives, leaves) = (arrives.options(&[1, 1, 1, 0]), leaves.options(&[1, 1, 1, 0]));
    lab.check("out0", &arrives, sent("in0", "10.0.1.2", Reply, &leaves).by(ALL, "pool"));

    let port = flow.open(&mut lab);
    let extended = |packet: Packet| packet.extension(0, &[5, 2, 0, 0, 0, 0]).extension(60, &[1; 14]);
    let arrives = extended(unreachable(HOP6, &extended(flow.outside(port))));
    let leaves = extended(unreachable(HOP6, &extended(flow.packet.clone().ttl(3))));
    lab.check("out0", &arrives, sent("in0", "2001:db8:1::2", Reply, &leaves).by(ALL6, "pool"));
}

#[test]
fn the_first_fragment_of_a_quoted_datagram_will_do() {
    let Some(mut lab) = translating() else { return };
    let flow = &flows()[1];
    let port = flow.open(&mut lab);
    let arrives = error(HOP, (11, 1, [0; 4]), &flow.outside(port).fragment(0, true), 28);
    let leaves = error(HOP, (11, 1, [0; 4]), &flow.packet.clone().ttl(3).fragment(0, true), 28);
    lab.check("out0", &arrives, sent("in0", "10.0.1.2", Reply, &leaves).by(ALL, "pool"));
    let later = error(HOP, (11, 1, [0; 4]), &flow.outside(port).fragment(9, false), 28);
    lab.check("out0", &later, dropped(NoSession));
}

#[test]
fn an_absent_udp_checksum_stays_absent_in_the_quote() {
    let Some(mut lab) = translating() else { return };
    let flow = &flows()[1];
    let port = flow.open(&mut lab);
    let arrives = unreachable(HOP, &flow.outside(port).without_checksum());
    let leaves = unreachable(HOP, &flow.packet.clone().ttl(3).without_checksum());
    lab.check("out0", &arrives, sent("in0", "10.0.1.2", Reply, &leaves).by(ALL, "pool"));
}

#[test]
fn what_follows_the_quote_stays_as_it_is() {
    let Some(mut lab) = translating() else { return };
    let flow = &flows()[0];
    let port = flow.open(&mut lab);
    // An extension structure of RFC 4884 behind 128 bytes of quote, of odd length; and a frame with padding.
    let extended = |quoted: &Packet| {
        let mut error = error(HOP, (11, 0, [0, 32, 0, 0]), quoted, 1000);
        error.payload.resize(128, 0);
        error.payload.extend([0x20, 0, 0x12, 0x34, 0, 8, 1, 1, 0xde, 0xad, 0xbe, 0xef, 7]);
        error
    };
    let mut arrives = extended(&flow.outside(port));
    let mut leaves = extended(&flow.packet.clone().ttl(3));
    for frame in [&mut arrives, &mut leaves] {
        frame.trailer = vec![0xee; 5];
    }
    lab.check("out0", &arrives, sent("in0", "10.0.1.2", Reply, &leaves).by(ALL, "pool"));
}

#[test]
fn errors_with_wrong_checksums_are_dropped() {
    for flow in [&flows()[1], &flows()[4]] {
        let Some(mut lab) = translating() else { return };
        let port = flow.open(&mut lab);
        let hop = if flow.is_v4() { HOP } else { HOP6 };
        let good = lab.arriving("out0", &unreachable(hop, &flow.outside(port)));
        let (frame, icmp) = (good.frame(), good.transport_offset());
        // The error's own, by whatever byte is wrong.
        for at in [icmp + 1, icmp + 2, icmp + 7, frame.len() - 1, frame.len() - 4] {
            let wrong = patch(frame.clone(), at, &[frame[at] ^ 0x10]);
            lab.check_frame("out0", &wrong, dropped(BadChecksum));
        }
        if flow.is_v4() {
            // The quoted header's, in an error that is right.
            let mut bent = good.clone();
            bent.payload[11] ^= 1;
            lab.check("out0", &bent, dropped(BadChecksum));
        }
        // The quoted transport header's is none of the gateway's business (RFC 5508 REQ-3c).
        let mut bent = good.clone();
        let last = bent.payload.len() - 1;
        bent.payload[last] ^= 1;
        let mut leaves = unreachable(hop, &flow.packet.clone().ttl(3));
        leaves.payload[last] ^= 1;
        let client = flow.packet.source.to_string();
        lab.check("out0", &bent, sent("in0", &client, Reply, &leaves).by(flow.route(), "pool"));
    }
}

#[test]
fn an_error_about_no_session_is_dropped() {
    let Some(mut lab) = translating() else { return };
    let flow = &flows()[1];
    let port = flow.open(&mut lab);
    let quoted = flow.outside(port);
    for (what, stranger) in [
        ("another port", unreachable(HOP, &flow.outside(port ^ 1))),
        ("another server", unreachable(HOP, &quoted.clone().to("203.0.113.11:53"))),
        ("another port of the server", unreachable(HOP, &quoted.clone().to("203.0.113.10:54"))),
        ("a quote that is too short", error(HOP, (3, 1, [0; 4]), &quoted, 27)),
        ("no quote", error(HOP, (3, 1, [0; 4]), &quoted, 0)),
        ("a protocol without ports", unreachable(HOP, &bare(POOL, "203.0.113.10", 47))),
        ("an answer of the client", unreachable(HOP, &echo_reply(POOL, "203.0.113.10", 80))),
        ("a source quench (RFC 6633)", error(HOP, (4, 0, [0; 4]), &quoted, 28)),
        ("a redirect", error(HOP, (5, 1, [192, 0, 2, 2]), &quoted, 28)),
    ] {
        println!("{what}");
        lab.check("out0", &stranger, dropped(NoSession));
    }
    // For another one than the sender of what it quotes.
    let mut diverted = unreachable(HOP, &quoted);
    diverted.destination = ip("198.51.100.1");
    lab.check("out0", &diverted, passed());
    let fragment = unreachable(HOP, &quoted).fragment(0, true);
    lab.check("out0", &fragment, dropped(NoSession));
}

#[test]
fn an_error_from_inside_must_come_from_the_inside() {
    let Some(mut lab) = translating() else { return };
    let flow = &flows()[1];
    let port = flow.open(&mut lab);
    let (answer, delivered) = flow.back(port);
    lab.prepare("out0", &answer);
    for source in ["10.0.3.2", "203.0.113.10", "192.0.2.1"] {
        lab.check("in0", &unreachable(source, &delivered), dropped(SpoofedSource));
    }
    // About what never came: no session, so its route decides, and that translates.
    let other = delivered.clone().from_port(54);
    lab.check("in0", &unreachable("10.0.1.2", &other), dropped(NoSession).by(ALL, "pool"));
}

#[test]
fn an_error_may_not_live_for_ever_and_nobody_is_told() {
    let Some(mut lab) = translating() else { return };
    let flow = &flows()[1];
    let port = flow.open(&mut lab);
    let error = unreachable(HOP, &flow.outside(port));
    lab.check("out0", &error.clone().ttl(1), dropped(TtlExceeded).by(ALL, "pool"));
    let large = tcp("10.0.1.2:80", "203.0.113.200:443", SYN);
    let (_, port) = lab.open("in0", &large);
    let answer = large.clone().from_address(ip(POOL)).from_port(port).answer();
    lab.prepare("out1", &answer);
    // 203.0.113.200 is behind an MTU of 1280.
    let mut error = unreachable("10.0.1.2", &large.answer());
    error.payload.resize(1400, 0);
    lab.check("in0", &error, dropped(MtuExceeded).by(ALL, "pool"));
}

#[test]
fn errors_obey_the_policy_in_force() {
    for flow in [&flows()[0], &flows()[3]] {
        let Some(mut lab) = translating() else { return };
        let port = flow.open(&mut lab);
        let hop = if flow.is_v4() { HOP } else { HOP6 };
        let client = flow.packet.source.to_string();
        let arrives = unreachable(hop, &flow.outside(port));
        let leaves = unreachable(hop, &flow.packet.clone().ttl(3));
        // A session that is not confirmed yet gets its errors.
        lab.change(|policy| policy.routes("10.99.0.0/16 via direct"));
        lab.check("out0", &arrives, sent("in0", &client, Reply, &leaves).by(flow.route(), "pool"));
        let (server, target) = (flow.packet.destination, if flow.is_v4() { 32 } else { 128 });
        lab.change(|policy| policy.routes(&format!("{server}/{target} via blackhole")));
        let route: &'static str = format!("{server}/{target}").leak();
        lab.check("out0", &arrives, dropped(Blackhole).by(route, "blackhole"));
        let (_, delivered) = flow.back(port);
        lab.check("in0", &unreachable(&client, &delivered), dropped(Blackhole).by(route, "blackhole"));
        // The client's next packet cuts the session.
        lab.prepare("in0", &flow.packet);
        lab.check("out0", &arrives, dropped(NoSession));
    }
}

#[test]
fn errors_of_an_address_that_left_its_pool_are_dropped() {
    let Some(mut lab) = translating() else { return };
    let flow = &flows()[0];
    let port = flow.open(&mut lab);
    lab.change(|policy| policy.pool("nat", &format!("198.51.100.11 {POOL6}"), "5000-5099"));
    // Nobody's address now.
    lab.check("out0", &unreachable(HOP, &flow.outside(port)), dropped(NoSession));
    let (_, delivered) = flow.back(port);
    lab.check("in0", &unreachable("10.0.1.2", &delivered), dropped(NoSession));
}

#[test]
fn errors_about_untranslated_packets_go_by_route() {
    let Some(mut lab) = standard(|policy| nat(policy).routes("203.0.113.0/24 via direct")) else { return };
    let packet = udp("10.0.1.2:4000", "203.0.113.10:53").ttl(3);
    let out = unreachable(HOP, &packet);
    lab.check("out0", &out, sent("in0", "10.0.1.2", Reply, &out).by("203.0.113.0/24", "direct"));
    let answer = packet.answer();
    let back = unreachable("10.0.1.2", &answer);
    let expected = sent("out0", ROUTER, gateway_common::Verdict::Direct, &back);
    lab.check("in0", &back, expected.by("203.0.113.0/24", "direct"));
}

#[test]
fn an_error_for_an_address_of_both_host_and_pool_is_the_hosts_without_a_session() {
    let policy = |policy| nat(policy).pool("nat", &format!("198.51.100.1 {POOL6}"), "1024-65535");
    let Some(mut lab) = standard(policy) else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.open("in0", &query);
    let arrives = unreachable(HOP, &query.clone().from("198.51.100.1:4000"));
    let leaves = unreachable(HOP, &query);
    lab.check("out0", &arrives, sent("in0", "10.0.1.2", Reply, &leaves).by(ALL, "pool"));
    lab.check("out0", &unreachable(HOP, &query.from("198.51.100.1:4001")), passed());
}

#[test]
fn tagged_errors_lose_their_tag() {
    let Some(mut lab) = snat() else { return };
    let segment = tcp("10.0.1.2:4000", "203.0.113.10:443", ACK | SYN).flags(SYN);
    lab.open("in0", &segment);
    let arrives = unreachable(HOP, &segment.clone().from("198.51.100.10:4000")).tag(0x8100, 0xe000);
    let leaves = unreachable(HOP, &segment);
    lab.check("out0", &arrives, sent("in0", "10.0.1.2", Reply, &leaves).by(ALL, "pool"));
}
