//! The border table: the way of replies, once they are translated back.

use gateway_common::{
    DropReason::{self, Blackhole, NoRoute, NoSession, Prohibited, SpoofedSource},
    Verdict::{Eip, Reply},
};
use gateway_tests::{
    network::{Network, mac},
    packet::{ACK, Packet, bare, icmp_error, ip, tcp, udp},
    policy::Policy,
};

use crate::support::{Lab, POOL, POOL6, dropped, nat, refused, sent, standard};

const ALL: &str = "0.0.0.0/0";
/// A router of the inside, on the link of `in0`.
const INSIDE: &str = "10.0.1.254";
const LEAD: &str = "10.0.3.0/24";

fn lab(border: &str) -> Option<Lab> {
    standard(|policy| nat(policy).border(border))
}

/// A query of a client behind `in1`, and its answer.
fn asked(lab: &mut Lab) -> (Packet, Packet) {
    let query = udp("10.0.3.2:4000", "203.0.113.10:53");
    lab.open("in1", &query);
    (query, udp("203.0.113.10:53", "198.51.100.10:4000"))
}

fn home(answer: &Packet) -> Packet {
    answer.clone().to("10.0.3.2:4000")
}

#[test]
fn replies_go_where_the_border_table_leads_them() {
    let Some(mut lab) =
        lab("10.0.3.0/24 via gateway 10.0.1.254\n2001:db8:3::/64 via gateway 2001:db8:1::254")
    else {
        return;
    };
    let (_, answer) = asked(&mut lab);
    let led = || sent("in0", INSIDE, Reply, &home(&answer)).by(ALL, "pool");
    // The first asks the table, and the session remembers.
    lab.check("out0", &answer, led().by_table("return", LEAD, "gateway").establishing(POOL));
    lab.check("out0", &answer, led());
    lab.check("out0", &answer, led());
    let query = udp("[2001:db8:3::2]:4000", "[2001:db8:f::1]:53");
    lab.open("in1", &query);
    let answer = udp("[2001:db8:f::1]:53", &format!("[{POOL6}]:4000"));
    let led = sent("in0", "2001:db8:1::254", Reply, &answer.clone().to("[2001:db8:3::2]:4000"));
    let led = led.by("::/0", "pool").by_table("return", "2001:db8:3::/64", "gateway");
    lab.check("out0", &answer, led.establishing(POOL6));
}

#[test]
fn replies_that_no_route_covers_go_straight_to_the_client() {
    let Some(mut lab) = lab("10.0.1.0/24 via blackhole\n10.0.3.2/32 via direct") else { return };
    let (_, answer) = asked(&mut lab);
    let straight = || sent("in1", "10.0.3.2", Reply, &home(&answer)).by(ALL, "pool");
    lab.check("out0", &answer, straight().by_table("return", "10.0.3.2/32", "direct").establishing(POOL));
    lab.change(|policy| {
        policy.without_routes().routes("0.0.0.0/0 via pool nat").border("10.0.1.0/24 via blackhole")
    });
    lab.check("out0", &answer, straight());
}

#[test]
fn a_change_of_the_border_table_is_in_force_for_the_next_reply() {
    let Some(mut lab) = standard(nat) else { return };
    let (query, answer) = asked(&mut lab);
    let straight = || sent("in1", "10.0.3.2", Reply, &home(&answer)).by(ALL, "pool");
    lab.check("out0", &answer, straight().establishing(POOL));
    lab.change(|policy| policy.border("10.0.3.0/24 via gateway 10.0.1.254"));
    let led = || sent("in0", INSIDE, Reply, &home(&answer)).by(ALL, "pool");
    lab.check("out0", &answer, led().by_table("return", LEAD, "gateway"));
    lab.change(|policy| policy.border("10.0.3.0/24 via direct"));
    lab.check("out0", &answer, straight().by_table("return", LEAD, "direct"));
    lab.change(|policy| policy.border("10.0.3.0/24 via blackhole"));
    lab.check("out0", &answer, dropped(Blackhole).by_table("return", LEAD, "blackhole"));
    // The session is cut: the client is not left to send into the void.
    lab.check("out0", &answer, dropped(NoSession));
    lab.check("in1", &query, dropped(NoSession).by(ALL, "pool"));
}

#[test]
fn a_reply_is_refused_where_the_border_table_prohibits_it() {
    let Some(mut lab) = lab("10.0.3.0/24 via prohibit") else { return };
    let (_, answer) = asked(&mut lab);
    lab.check("out0", &answer, refused(Prohibited).by_table("return", LEAD, "prohibit"));
}

#[test]
fn a_router_of_the_outside_gets_no_replies() {
    let Some(mut lab) = lab("10.0.3.0/24 via gateway 192.0.2.2") else { return };
    let (_, answer) = asked(&mut lab);
    lab.check("out0", &answer, dropped(NoRoute).by_table("return", LEAD, "gateway"));
    // The table denies nothing: a router that can be reached takes up what there is.
    lab.change(|policy| policy.border("10.0.3.0/24 via gateway 10.0.1.254"));
    let led = sent("in0", INSIDE, Reply, &home(&answer)).by(ALL, "pool");
    lab.check("out0", &answer, led.by_table("return", LEAD, "gateway").establishing(POOL));
}

#[test]
fn packets_to_eips_and_untranslated_answers_are_replies_as_well() {
    let Some(mut lab) = standard(|policy| {
        policy
            .eip("198.51.100.50", "10.0.3.2")
            .routes("203.0.113.0/24 via eip\n203.0.113.128/25 via direct")
            .border("10.0.3.0/24 via gateway 10.0.1.254")
    }) else {
        return;
    };
    let arriving = udp("203.0.113.10:53", "198.51.100.50:4000");
    let led = sent("in0", INSIDE, Eip, &home(&arriving)).by("203.0.113.0/24", "eip");
    lab.check("out0", &arriving, led.by_table("return", LEAD, "gateway"));
    let plain = udp("203.0.113.130:53", "10.0.3.2:4000");
    let led = sent("in0", INSIDE, Reply, &plain).by("203.0.113.128/25", "direct");
    lab.check("out0", &plain, led.by_table("return", LEAD, "gateway"));
}

#[test]
fn errors_about_packets_of_sessions_are_replies_as_well() {
    let Some(mut lab) = lab("10.0.3.0/24 via gateway 10.0.1.254") else { return };
    let (query, _) = asked(&mut lab);
    let seen = lab.arriving("out0", &query.from("198.51.100.10:4000")).frame();
    let complaint = icmp_error(
        &seen,
        14,
        ([2, 4, 192, 0, 2, 254], "192.0.2.254".parse().expect("an address")),
        DropReason::TtlExceeded,
        0,
    );
    let frame = complaint.macs([2, 4, 192, 0, 2, 254], lab.network().find("out0").mac()).frame();
    let outcome = lab.run("out0", &frame);
    assert_eq!(outcome.action, gateway_tests::gateway::Action::Redirect);
    assert_eq!(outcome.frame[..6], mac(ip(INSIDE)));
}

#[test]
fn a_caller_of_a_mapping_is_led_as_the_replies_are() {
    let policy =
        |policy: Policy| nat(policy).endpoint_independent("nat").border("10.0.3.0/24 via gateway 10.0.1.254");
    let Some(mut lab) = standard(policy) else { return };
    let (address, port) = lab.open("in1", &udp("10.0.3.2:4000", "203.0.113.10:53"));
    let call = udp("203.0.113.20:999", &format!("{address}:{port}"));
    let led = || sent("in0", INSIDE, Reply, &home(&call)).by(ALL, "pool").by_table("return", LEAD, "gateway");
    let opening = led().counting("sessions udp created").counting("pool nat 198.51.100.10 opened");
    lab.check("out0", &call, opening);
    lab.check("out0", &call, led());
    lab.check("out0", &call, sent("in0", INSIDE, Reply, &home(&call)).by(ALL, "pool"));
}

/// The packet as a neighbour on a device sends it.
fn by(lab: &Lab, device: &str, neighbor: &str, packet: &Packet) -> Packet {
    packet.clone().macs(mac(ip(neighbor)), lab.network().find(device).mac())
}

#[test]
fn what_a_router_of_the_border_table_sends_on_reaches_the_client() {
    let Some(mut lab) =
        lab("10.0.3.0/24 via gateway 10.0.1.254\n2001:db8:3::/64 via gateway 2001:db8:1::254")
    else {
        return;
    };
    let (four, six) = ("10.0.3.2:4000", "[2001:db8:3::2]:4000");
    for (router, client, reply) in [
        (INSIDE, "10.0.3.2", udp("203.0.113.10:53", four)),
        (INSIDE, "10.0.3.2", tcp("203.0.113.10:443", four, ACK)),
        (INSIDE, "10.0.3.2", bare("203.0.113.10", "10.0.3.2", 47)),
        ("2001:db8:1::254", "2001:db8:3::2", udp("[2001:db8:f::1]:53", six)),
    ] {
        lab.check("in0", &by(&lab, "in0", router, &reply), sent("in1", client, Reply, &reply));
    }
}

#[test]
fn errors_that_a_router_of_the_border_table_sends_on_reach_the_client() {
    let Some(mut lab) = lab("10.0.3.0/24 via gateway 10.0.1.254") else { return };
    let far = "192.0.2.254";
    let quoted = udp("10.0.3.2:4000", "203.0.113.10:53").frame();
    let error = icmp_error(&quoted, 14, (mac(ip(far)), ip(far)), DropReason::TtlExceeded, 0);
    lab.check("in0", &by(&lab, "in0", INSIDE, &error), sent("in1", "10.0.3.2", Reply, &error));
    let stranger = by(&lab, "in0", "10.0.1.2", &error);
    lab.check("in0", &stranger, dropped(SpoofedSource));
}

#[test]
fn a_router_of_the_border_table_speaks_for_nobody_else() {
    let Some(mut lab) = lab("10.0.3.0/24 via gateway 10.0.1.254\n10.0.3.128/25 via direct") else { return };
    let reply = udp("203.0.113.10:53", "10.0.3.2:4000");
    for (what, device, sender, packet) in [
        ("another neighbour", "in0", "10.0.1.2", reply.clone()),
        ("from another link", "in1", INSIDE, reply.clone()),
        ("to a client that the table does not lead to it", "in0", INSIDE, reply.clone().to("10.0.1.2:4000")),
        ("to a client whose replies go straight", "in0", INSIDE, reply.clone().to("10.0.3.200:4000")),
        ("to the outside", "in0", INSIDE, reply.clone().to("203.0.113.20:4000")),
        ("of an inside host", "in0", INSIDE, reply.clone().from("10.0.3.9:53")),
        ("of the gateway", "in0", INSIDE, reply.clone().from("10.0.3.1:53")),
        ("of a pool", "in0", INSIDE, reply.clone().from("198.51.100.10:53")),
    ] {
        println!("{what}");
        let packet = by(&lab, device, sender, &packet);
        lab.check(device, &packet, dropped(SpoofedSource));
    }
    lab.change(|policy| {
        policy.without_routes().routes("0.0.0.0/0 via pool nat").border("10.0.1.0/24 via direct")
    });
    lab.check("in0", &by(&lab, "in0", INSIDE, &reply), dropped(SpoofedSource));
}

#[test]
fn a_router_of_the_border_table_on_the_link_of_its_clients_speaks_for_the_outside() {
    let policy = |policy: Policy| nat(policy).border("10.0.7.2/32 via gateway 10.0.7.3");
    let Some(mut lab) = crate::support::lab(Network::one_armed(), policy) else { return };
    let reply = udp("203.0.113.10:53", "10.0.7.2:4000");
    let sent = sent("arm0", "10.0.7.2", Reply, &reply);
    lab.check("arm0", &by(&lab, "arm0", "10.0.7.3", &reply), sent);
    lab.check("arm0", &by(&lab, "arm0", "10.0.7.254", &reply), dropped(SpoofedSource));
    let of_the_pool = reply.from("198.51.100.10:53");
    lab.check("arm0", &by(&lab, "arm0", "10.0.7.3", &of_the_pool), dropped(SpoofedSource));
}
