//! Inside hosts that reach each other where one of them is known by its EIP and the other by a pool: what a client sees
//! of a server of the same gateway, and the server of the client, is what hosts on the outside would.

use std::{net::IpAddr, time::Duration};

use gateway_common::{
    DropReason::{Blackhole, FragmentUnmatched, NoRoute, NoSession, SpoofedSource, TtlExceeded},
    Verdict::{self, Eip, Snat},
};
use gateway_tests::{
    gateway::Action,
    network::{Network, mac},
    packet::{ACK, FIN, Packet, SYN, Transport, echo_request, ip, tcp, udp},
    policy::Policy,
};

use crate::support::{
    Expected, Lab, POOL, POOL6, dropped, lab, nat, refused, reset, sent, standard, too_large,
};

const ALL: &str = "0.0.0.0/0";
const ALL6: &str = "::/0";
/// The EIPs of 10.0.3.2 and `2001:db8:3::2`, servers whose table is `servers`.
const EIP: &str = "198.51.100.51";
const EIP6: &str = "2001:db8:100::51";

fn with_servers(policy: Policy) -> Policy {
    let policy = nat(policy).pool("nat", &format!("{POOL} {POOL6}"), "5000-5099");
    policy.eip(EIP, "10.0.3.2").eip(EIP6, "2001:db8:3::2").table(
        "servers",
        &["10.0.3.0/24", "2001:db8:3::/64"],
        "0.0.0.0/0 via eip\n::/0 via eip",
    )
}

/// Clients leave by a pool that never gives them their own port, servers by their EIPs.
fn servers() -> Option<Lab> {
    standard(with_servers)
}

/// A flow of a client to a server, and the four addresses.
struct Flow {
    proto: &'static str,
    /// As the client sends it.
    call: Packet,
    pool: &'static str,
    server: &'static str,
    route: &'static str,
}

/// Flows of every kind.
fn flows() -> [Flow; 6] {
    let v4 = |proto, call| Flow { proto, call, pool: POOL, server: "10.0.3.2", route: ALL };
    let v6 = |proto, call| Flow { proto, call, pool: POOL6, server: "2001:db8:3::2", route: ALL6 };
    [
        v4("udp", udp("10.0.1.2:80", &format!("{EIP}:53"))),
        v4("tcp", tcp("10.0.1.2:80", &format!("{EIP}:443"), SYN)),
        v4("icmp", echo_request("10.0.1.2", EIP, 80)),
        v6("udp", udp("[2001:db8:1::2]:80", &format!("[{EIP6}]:53"))),
        v6("tcp", tcp("[2001:db8:1::2]:80", &format!("[{EIP6}]:443"), SYN)),
        v6("icmp", echo_request("2001:db8:1::2", EIP6, 80)),
    ]
}

impl Flow {
    /// The call as it arrives at the server.
    fn called(&self, port: u16) -> Packet {
        let out = self.call.clone().from_address(ip(self.pool)).from_port(port);
        Packet { destination: ip(self.server), ..out }
    }

    /// What the server answers, and what the client gets.
    fn answers(&self, port: u16) -> (Packet, Packet) {
        let (answer, comes) = (self.called(port).answer(), self.call.answer());
        (answer, comes)
    }

    fn client(&self) -> String {
        self.call.source.to_string()
    }

    /// Lets the session open; the port it got.
    fn open(&self, lab: &mut Lab) -> u16 {
        let (address, port) = lab.open("in0", &self.call);
        assert_eq!(address, ip(self.pool));
        port
    }

    fn by_client(&self, expected: Expected) -> Expected {
        expected.by(self.route, "pool")
    }

    fn by_server(&self, expected: Expected) -> Expected {
        expected.by_table("servers", self.route, "eip")
    }

    fn by_both(&self, expected: Expected) -> Expected {
        self.by_client(self.by_server(expected))
    }
}

/// `packet` as it leaves after two hops.
fn turned(egress: &'static str, to: &str, verdict: Verdict, packet: &Packet) -> Expected {
    let packet = packet.clone().ttl(packet.ttl - 1);
    sent(egress, to, verdict, &packet)
}

/// An ICMP error of `from` about `quoted`, which is as it arrived there.
fn error(from: IpAddr, (kind, code, rest): (u8, u8, [u8; 4]), quoted: &Packet, length: usize) -> Packet {
    let quote = quoted.frame()[14..].iter().copied().take(length).collect::<Vec<_>>();
    Packet::new(from, quoted.source, Transport::Icmp { kind, code, rest }).payload(quote)
}

#[test]
fn a_client_of_a_pool_reaches_a_server_by_its_eip_and_is_answered() {
    let Some(mut lab) = servers() else { return };
    for flow in flows() {
        let port = flow.open(&mut lab);
        let (answer, comes) = flow.answers(port);
        let expected = turned("in0", &flow.client(), Eip, &comes).establishing(flow.pool);
        lab.check("in1", &answer, flow.by_both(expected));
        // And again, both ways.
        let (again, answer) = (flow.call.clone().flags(ACK), answer.flags(ACK));
        let called = flow.called(port).flags(ACK);
        lab.check("in0", &again, flow.by_both(turned("in1", flow.server, Snat, &called)));
        lab.check("in1", &answer, flow.by_both(turned("in0", &flow.client(), Eip, &comes.flags(ACK))));
    }
    assert_eq!(lab.sessions().len(), 6);
}

#[test]
fn the_first_packet_arrives_as_all_others() {
    let Some(mut lab) =
        standard(|policy| with_servers(policy).pool("nat", &format!("{POOL} {POOL6}"), "1024-65535"))
    else {
        return;
    };
    let call = udp("10.0.1.2:4000", &format!("{EIP}:53"));
    let called = call.clone().from("198.51.100.10:4000").to("10.0.3.2:53");
    let expected = turned("in1", "10.0.3.2", Snat, &called).by(ALL, "pool").by_table("servers", ALL, "eip");
    lab.check("in0", &call, expected.opening("udp", POOL));
    // Without a checksum, and in the frame of a VLAN's priority.
    let bare = udp("10.0.1.3:4000", &format!("{EIP}:54")).without_checksum().tag(0x8100, 0x2000);
    let called = bare.clone().from("198.51.100.10:4000").to("10.0.3.2:54");
    let called = Packet { tags: Vec::new(), ..called };
    let expected = turned("in1", "10.0.3.2", Snat, &called).by(ALL, "pool").by_table("servers", ALL, "eip");
    lab.check("in0", &bare, expected.opening("udp", POOL));
}

#[test]
fn mappings_and_eips_meet() {
    let independent = |policy: Policy| with_servers(policy).endpoint_independent("nat");
    let Some(mut lab) = standard(independent) else { return };
    let (_, port) = lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    // The server calls the mapping, which nobody has called it by.
    let call = udp("10.0.3.2:7000", &format!("{POOL}:{port}"));
    let arrives = call.clone().from(&format!("{EIP}:7000")).to("10.0.1.2:4000");
    let expected = turned("in0", "10.0.1.2", Eip, &arrives).by(ALL, "pool").by_table("servers", ALL, "eip");
    let expected = expected.counting("sessions udp created").counting("pool nat 198.51.100.10 opened");
    lab.check("in1", &call, expected);
    // The client answers, and calls another port.
    for to in [7000, 7001] {
        let answer = udp("10.0.1.2:4000", &format!("{EIP}:{to}"));
        let called = answer.clone().from(&format!("{POOL}:{port}")).to(&format!("10.0.3.2:{to}"));
        let mut expected = turned("in1", "10.0.3.2", Snat, &called).by(ALL, "pool");
        if to == 7001 {
            expected = expected.opening("udp", POOL);
        }
        lab.check("in0", &answer, expected.by_table("servers", ALL, "eip"));
    }
    // A connection begins with a SYN; where there is no mapping, it does not.
    let (_, port) = lab.open("in0", &tcp("10.0.1.2:4000", "203.0.113.10:80", SYN));
    let stray = tcp("10.0.3.2:7000", &format!("{POOL}:{port}"), ACK);
    lab.check("in1", &stray, reset(NoSession).by_table("servers", ALL, "eip"));
    assert_eq!(lab.prepare("in1", &stray.clone().flags(SYN)).action, Action::Redirect);
    let other = udp("10.0.3.2:7000", &format!("{POOL}:{}", 5099 + 5000 - port));
    lab.check("in1", &other, dropped(NoSession).by_table("servers", ALL, "eip"));
    // Once it is endpoint-dependent, nobody is let in.
    lab.change(|policy| policy.pool("nat", &format!("{POOL} {POOL6}"), "5000-5099"));
    let late = call.from_port(7005);
    lab.check("in1", &late, dropped(NoSession).by_table("servers", ALL, "eip"));
}

#[test]
fn errors_go_both_ways_and_quote_what_was_sent() {
    let Some(mut lab) = servers() else { return };
    for flow in flows() {
        let port = flow.open(&mut lab);
        let v4 = flow.call.source.is_ipv4();
        let kinds: &[_] = if v4 {
            &[(3, 3, [0; 4]), (3, 4, [0, 0, 5, 0]), (11, 0, [0; 4])]
        } else {
            &[(1, 4, [0; 4]), (2, 0, [0, 0, 5, 0]), (3, 0, [0; 4])]
        };
        let eip = ip(if v4 { EIP } else { EIP6 });
        let (called, (answer, comes)) = (flow.called(port).ttl(3), flow.answers(port));
        let (answer, comes) = (answer.ttl(3), comes.ttl(3));
        for kind in kinds {
            for length in if v4 { [28, 40, 1000] } else { [48, 60, 1000] } {
                // Of the server about the call.
                let complains = error(ip(flow.server), *kind, &called, length);
                let told = error(eip, *kind, &flow.call.clone().ttl(3), length);
                lab.check("in1", &complains, flow.by_both(turned("in0", &flow.client(), Eip, &told)));
                // Of the client about the answer.
                let complains = error(flow.call.source, *kind, &comes, length);
                let told = error(ip(flow.pool), *kind, &answer, length);
                lab.check("in0", &complains, flow.by_both(turned("in1", flow.server, Snat, &told)));
            }
        }
        // About a flow that there is not.
        let other = error(ip(flow.server), kinds[0], &flow.called(port).from_port(5098).ttl(3), 1000);
        lab.check("in1", &other, flow.by_server(dropped(NoSession)));
    }
    assert!(lab.sessions().iter().all(|row| row.state != "closed"), "{:?}", lab.sessions());
}

#[test]
fn datagrams_in_fragments_pass_in_order() {
    let Some(mut lab) = servers() else { return };
    // In IPv6 an identification is not of one protocol.
    for (flow, number) in flows().into_iter().filter(|flow| flow.proto != "tcp").zip(0x1234..) {
        let call =
            Packet { identification: number, ..flow.call.clone() }.payload((0..120).collect::<Vec<u8>>());
        let flow = Flow { call, ..flow };
        let fragments = flow.call.fragments(&[40, 80]);
        // One that comes too early.
        let early = flow.by_client(dropped(FragmentUnmatched));
        lab.check("in0", &fragments[1], early);
        let mut port = 0;
        let mut given = 0;
        for (nth, fragment) in fragments.iter().enumerate() {
            let outcome = lab.prepare("in0", fragment);
            assert_eq!(outcome.action, Action::Redirect, "fragment {nth} of {fragment:?}");
            if nth == 0 {
                port = translated_first(&outcome.frame);
                given = identification(&outcome.frame);
            }
            let whole = flow.called(port).identification(given);
            let wanted = whole.fragments(&[40, 80]).swap_remove(nth).ttl(fragment.ttl - 2);
            let wanted = wanted.macs(lab.network().find("in1").mac(), mac(ip(flow.server)));
            assert_eq!(outcome.frame, wanted.frame(), "fragment {nth}");
        }
        let (answer, comes) = flow.answers(port);
        let fragments = Packet { identification: number, ..answer }.fragments(&[40, 80]);
        lab.check("in1", &fragments[2], flow.by_server(dropped(FragmentUnmatched)));
        for (nth, fragment) in fragments.iter().enumerate() {
            let outcome = lab.prepare("in1", fragment);
            assert_eq!(outcome.action, Action::Redirect, "fragment {nth} of {fragment:?}");
            given = if nth == 0 { identification(&outcome.frame) } else { given };
            let whole = comes.clone().identification(given);
            let wanted = whole.fragments(&[40, 80]).swap_remove(nth).ttl(fragment.ttl - 2);
            let wanted = wanted.macs(lab.network().find("in0").mac(), mac(flow.call.source));
            assert_eq!(outcome.frame, wanted.frame(), "fragment {nth}");
        }
    }
}

/// Source port or identifier of a first fragment.
fn translated_first(frame: &[u8]) -> u16 {
    let at = match (frame[12..14] == [0x08, 0x00], frame[23], frame[54]) {
        (true, 1, _) => 38,
        (true, ..) => 34,
        (false, ..) if frame[54] == 58 => 66,
        (false, ..) => 62,
    };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// The identification of a fragment.
fn identification(frame: &[u8]) -> u32 {
    if frame[12..14] == [0x08, 0x00] {
        u32::from(u16::from_be_bytes([frame[18], frame[19]]))
    } else {
        u32::from_be_bytes([frame[58], frame[59], frame[60], frame[61]])
    }
}

#[test]
fn senders_are_told_of_what_they_have_sent() {
    let Some(mut wide) = servers() else { return };
    for flow in flows().into_iter().filter(|flow| flow.proto == "udp") {
        flow.open(&mut wide);
        // Each half is a hop.
        wide.check("in0", &flow.call.clone().ttl(1), flow.by_client(refused(TtlExceeded)));
        wide.check("in0", &flow.call.clone().ttl(2), flow.by_both(refused(TtlExceeded)));
        assert_eq!(wide.prepare("in0", &flow.call.clone().ttl(3)).action, Action::Redirect);
    }
    // The way in takes less than the way out of the client: the error quotes what the client has sent.
    let mut network = Network::standard();
    network.set_mtu("in1", 1300);
    let Some(mut narrow) = lab(network, with_servers) else { return };
    for flow in flows().into_iter().filter(|flow| flow.proto == "udp") {
        let port = flow.open(&mut narrow);
        narrow.check("in0", &flow.call.clone().length(1301), flow.by_both(too_large(1300)));
        let fits = flow.call.clone().length(1300);
        let arrives = flow.called(port).length(1300);
        narrow.check("in0", &fits, flow.by_both(turned("in1", flow.server, Snat, &arrives)));
    }
}

#[test]
fn each_sides_own_table_decides() {
    let Some(mut lab) = servers() else { return };
    let call = udp("10.0.1.2:4000", &format!("{EIP}:53"));
    let (_, port) = lab.open("in0", &call);
    let answer = udp("10.0.3.2:53", &format!("{POOL}:{port}"));
    // The server would answer from another address, or not at all.
    lab.change(|policy| policy.table("servers", &[], "198.51.100.10/32 via pool nat"));
    lab.check("in0", &call, dropped(NoSession).by(ALL, "pool"));
    lab.check("in1", &answer, dropped(NoSession).by_table("servers", "198.51.100.10/32", "pool"));
    lab.change(|policy| policy.table("servers", &[], "198.51.100.10/32 via blackhole"));
    lab.check("in0", &call, dropped(NoRoute).by(ALL, "pool"));
    lab.check("in1", &answer, dropped(Blackhole).by_table("servers", "198.51.100.10/32", "blackhole"));
    lab.change(|policy| policy.table("servers", &[], "198.51.100.10/32 via eip"));
    let (called, comes) = (
        call.clone().from(&format!("{POOL}:{port}")).to("10.0.3.2:53"),
        answer.clone().from(&format!("{EIP}:53")).to("10.0.1.2:4000"),
    );
    let by_server = |expected: Expected| expected.by_table("servers", "198.51.100.10/32", "eip");
    lab.check("in0", &call, by_server(turned("in1", "10.0.3.2", Snat, &called).by(ALL, "pool")));
    let expected = turned("in0", "10.0.1.2", Eip, &comes).by(ALL, "pool").establishing(POOL);
    lab.check("in1", &answer, by_server(expected));
    // The client's denies: its session is cut, also where the answer comes first.
    lab.change(|policy| policy.routes("198.51.100.51/32 via blackhole"));
    let denied = dropped(Blackhole).by("198.51.100.51/32", "blackhole");
    lab.check("in1", &answer, by_server(denied));
    lab.check("in1", &answer, by_server(dropped(NoSession)));
    let denied = dropped(Blackhole).by("198.51.100.51/32", "blackhole");
    lab.check("in0", &call, denied);
    assert_eq!(lab.sessions(), []);
}

#[test]
fn no_frame_from_a_wire_has_part_in_it() {
    let Some(mut lab) = servers() else { return };
    let call = udp("10.0.1.2:4000", &format!("{EIP}:53"));
    let (_, port) = lab.open("in0", &call);
    let answer = udp(&format!("{EIP}:53"), &format!("{POOL}:{port}"));
    lab.check("out0", &answer, dropped(NoSession));
    let forged = udp(&format!("{POOL}:{port}"), &format!("{EIP}:53"));
    lab.check("out0", &forged, dropped(SpoofedSource));
    // Nor have the addresses of others on the inside.
    lab.check("in0", &answer, dropped(SpoofedSource));
    lab.check("in1", &udp("10.0.1.2:4000", &format!("{EIP}:53")), dropped(SpoofedSource));
    lab.check("in0", &udp("10.0.3.2:53", &format!("{POOL}:{port}")), dropped(SpoofedSource));
    // Another host of the server's side is no server.
    let other = udp("10.0.3.9:53", &format!("{POOL}:{port}"));
    let outcome = lab.prepare("in1", &other);
    assert_eq!(outcome.action, Action::Drop);
    // And nobody calls a client that has not called.
    for to in [5098, 4000] {
        let unasked = udp("10.0.3.2:53", &format!("{POOL}:{to}"));
        lab.check("in1", &unasked, dropped(NoSession).by_table("servers", ALL, "eip"));
    }
}

#[test]
fn sessions_end_where_an_address_changes_sides() {
    let Some(mut lab) = servers() else { return };
    let call = udp("10.0.1.2:4000", &format!("{EIP}:53"));
    lab.open("in0", &call);
    // Of nobody on the inside any more.
    lab.change(|policy| policy.without_eip(EIP));
    lab.check("in0", &call, dropped(NoSession));
    lab.sweep_until_cut_are_gone();
    let leaves = lab.prepare("in0", &call);
    assert_eq!(leaves.action, Action::Redirect);
    assert_eq!(leaves.frame[..6], mac(ip("192.0.2.254")), "to the outside, as to any address there");
    // And of one again: nothing for it leaves.
    lab.change(|policy| policy.eip(EIP, "10.0.3.2"));
    lab.check("in0", &call, dropped(NoSession));
    lab.check("in0", &call, dropped(NoSession).by(ALL, "pool"));
    lab.sweep_until_cut_are_gone();
    let turns = lab.prepare("in0", &call);
    assert_eq!(turns.frame[..6], mac(ip("10.0.3.2")));
    // Another host has the EIP: the same session goes there.
    lab.change(|policy| policy.eip(EIP, "10.0.1.3").table("servers", &["10.0.1.3/32"], ""));
    let turns = lab.prepare("in0", &call);
    assert_eq!(turns.frame[..6], mac(ip("10.0.1.3")));
}

#[test]
fn a_closed_connection_begins_anew_only_with_a_syn_that_is_ahead() {
    let Some(mut lab) = servers() else { return };
    let segment =
        |flags, sequence| tcp("10.0.1.2:4000", &format!("{EIP}:443"), flags).numbers(sequence, 9000);
    let (_, port) = lab.open("in0", &segment(SYN, 1000));
    let answer = |flags| tcp("10.0.3.2:443", &format!("{POOL}:{port}"), flags).numbers(9000, 1002);
    for (device, packet) in [
        ("in1", answer(SYN | ACK)),
        ("in0", segment(ACK, 1001)),
        ("in0", segment(FIN | ACK, 1001)),
        ("in1", answer(FIN | ACK)),
        ("in0", segment(ACK, 1002)),
    ] {
        assert_eq!(lab.prepare(device, &packet).action, Action::Redirect, "{packet:?}");
    }
    assert_eq!(lab.sessions()[0].state, "closed");
    let late = segment(SYN, 1001);
    lab.check("in0", &late, dropped(NoSession).by(ALL, "pool"));
    assert_eq!(lab.sessions()[0].state, "closed");
    assert_eq!(lab.prepare("in0", &segment(SYN, 5000)).action, Action::Redirect);
    assert_eq!(lab.sessions()[0].state, "opening");
}

#[test]
fn a_server_with_a_forgotten_connection_is_told() {
    let Some(mut lab) = servers() else { return };
    let stray = tcp("10.0.1.2:4000", &format!("{EIP}:443"), ACK);
    lab.check("in0", &stray, dropped(NoSession).by(ALL, "pool"));
    let stray = tcp("10.0.3.2:443", &format!("{POOL}:5001"), ACK);
    lab.check("in1", &stray, reset(NoSession).by_table("servers", ALL, "eip"));
}

#[test]
fn hairpins_to_eips_expire_and_leave_nothing() {
    let Some(mut lab) = servers() else { return };
    for flow in flows() {
        flow.open(&mut lab);
    }
    lab.change(|policy| policy.idle(Duration::from_secs(1)));
    std::thread::sleep(Duration::from_millis(1_400));
    lab.sweep_all();
    assert_eq!(lab.sessions().len(), 0);
    assert_eq!(lab.session_counts(), (6, 6));
}
