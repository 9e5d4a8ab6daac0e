//! ARP and neighbour discovery for pool addresses; neighbours that the host does not know.

use std::net::{Ipv4Addr, Ipv6Addr};

use gateway_common::{
    DropReason::NeighborUnresolved,
    Verdict::{Direct, Reply},
};
use gateway_tests::{
    network::mac,
    packet::{Arp, Mac, advertisement, all_nodes, all_nodes_mac, ip, solicitation, udp},
};

use crate::support::{
    Lab, POOL, POOL6, ROUTER, ROUTER6, answered, dropped, nat, passed, sent, snat, standard,
};

fn v4(text: &str) -> Ipv4Addr {
    text.parse().expect("an IPv4 address")
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an IPv6 address")
}

fn owner(lab: &Lab, device: &str) -> Mac {
    lab.network().find(device).mac()
}

#[test]
fn an_arp_request_for_a_pool_address_is_answered() {
    let Some(mut lab) = snat() else { return };
    for (device, sender) in
        [("out0", ROUTER), ("out0", "203.0.113.77"), ("out1", "10.9.0.254"), ("in0", "10.0.1.2")]
    {
        let request = Arp::request((mac(ip(sender)), v4(sender)), v4(POOL));
        let answer = request.reply(owner(&lab, device)).frame();
        lab.check_frame(device, &request.frame(), answered(answer));
    }
    // A host that makes sure of what it knows asks it directly (RFC 1122 2.3.2.1).
    let probe = Arp { to: owner(&lab, "out0"), ..Arp::request((mac(ip(ROUTER)), v4(ROUTER)), v4(POOL)) };
    lab.check_frame("out0", &probe.frame(), answered(probe.reply(owner(&lab, "out0")).frame()));
    // Address detection (RFC 5227) asks from nowhere.
    let detection = Arp::request((mac(ip(ROUTER)), v4("0.0.0.0")), v4(POOL));
    lab.check_frame("out0", &detection.frame(), answered(detection.reply(owner(&lab, "out0")).frame()));
}

#[test]
fn the_padding_of_an_arp_request_is_sent_back() {
    let Some(mut lab) = snat() else { return };
    let request = Arp::request((mac(ip(ROUTER)), v4(ROUTER)), v4(POOL));
    let padded = |frame: Vec<u8>| [frame, vec![0; 18]].concat();
    let answer = padded(request.reply(owner(&lab, "out0")).frame());
    lab.check_frame("out0", &padded(request.frame()), answered(answer));
}

#[test]
fn all_other_arp_is_the_hosts_business() {
    let Some(mut lab) = snat() else { return };
    let router = (mac(ip(ROUTER)), v4(ROUTER));
    for wanted in ["192.0.2.1", "192.0.2.99", "198.51.100.1", "198.51.100.11"] {
        lab.check_frame("out0", &Arp::request(router, v4(wanted)).frame(), passed());
    }
    let request = Arp::request(router, v4(POOL));
    lab.check_frame("out0", &Arp { operation: 2, ..request }.frame(), passed());
    lab.check_frame("out0", &Arp { operation: 3, ..request }.frame(), passed());
    let frame = request.frame();
    for (at, byte) in [(15, 6), (16, 0x86), (18, 8), (19, 16)] {
        let mut strange = frame.clone();
        strange[at] = byte;
        lab.check_frame("out0", &strange, passed());
    }
    lab.check_frame("out0", &frame[..41], passed());
}

#[test]
fn the_host_answers_for_addresses_that_it_shares_with_a_pool() {
    let shared =
        |policy| nat(policy).pool("nat", &format!("198.51.100.1 2001:db8:2::1 {POOL}"), "1024-65535");
    let Some(mut lab) = standard(shared) else { return };
    let router = (mac(ip(ROUTER)), v4(ROUTER));
    lab.check_frame("out0", &Arp::request(router, v4("198.51.100.1")).frame(), passed());
    let request = Arp::request(router, v4(POOL));
    lab.check_frame("out0", &request.frame(), answered(request.reply(owner(&lab, "out0")).frame()));
    let router = (mac(ip(ROUTER6)), v6(ROUTER6));
    lab.check("out0", &solicitation(router, v6("2001:db8:2::1")), passed());
}

#[test]
fn an_arp_request_with_a_priority_tag_is_answered_without() {
    let Some(mut lab) = snat() else { return };
    let request = Arp::request((mac(ip(ROUTER)), v4(ROUTER)), v4(POOL));
    let mut tagged = request.frame();
    tagged.splice(12..12, [0x81, 0, 0xe0, 0]);
    lab.check_frame("out0", &tagged, answered(request.reply(owner(&lab, "out0")).frame()));
    // On a VLAN, the question is for the VLAN's device.
    tagged[15] = 7;
    lab.check_frame("out0", &tagged, passed());
}

#[test]
fn a_neighbour_solicitation_for_a_pool_address_is_answered() {
    let Some(mut lab) = snat() else { return };
    let own = owner(&lab, "out0");
    let router = (mac(ip(ROUTER6)), v6(ROUTER6));
    let answer = advertisement((own, v6(POOL6)), router).frame();
    let question = solicitation(router, v6(POOL6));
    lab.check("out0", &question, answered(answer.clone()));
    // Reachability is probed by unicast, and without the sender's link-layer address (RFC 4861 7.2.2).
    let mut probe = question.clone().macs(router.0, own);
    probe.destination = ip(POOL6);
    lab.check("out0", &probe, answered(answer.clone()));
    probe.payload.truncate(16);
    lab.check("out0", &probe, answered(answer.clone()));
    // More options than one do not show in the answer, nor does padding.
    let mut long = question;
    long.payload.extend([14, 1, 1, 2, 3, 4, 5, 6]);
    long.trailer = vec![0; 5];
    lab.check("out0", &long, answered(answer));
}

#[test]
fn duplicate_address_detection_is_answered_to_all_nodes() {
    let Some(mut lab) = snat() else { return };
    let question = solicitation((mac(ip(ROUTER6)), Ipv6Addr::UNSPECIFIED), v6(POOL6));
    let answer = advertisement((owner(&lab, "out0"), v6(POOL6)), (all_nodes_mac(), all_nodes()));
    lab.check("out0", &question, answered(answer.frame()));
}

#[test]
fn a_neighbour_solicitation_with_a_priority_tag_is_answered_without() {
    let Some(mut lab) = snat() else { return };
    let router = (mac(ip(ROUTER6)), v6(ROUTER6));
    let question = solicitation(router, v6(POOL6)).tag(0x8100, 0xe000);
    let answer = advertisement((owner(&lab, "out0"), v6(POOL6)), router);
    lab.check("out0", &question, answered(answer.frame()));
}

#[test]
fn all_other_neighbour_discovery_is_the_hosts_business() {
    let Some(mut lab) = snat() else { return };
    let router = (mac(ip(ROUTER6)), v6(ROUTER6));
    for wanted in ["2001:db8:2::1", "2001:db8:100::11", "2001:db8:2::99"] {
        lab.check("out0", &solicitation(router, v6(wanted)), passed());
    }
    let question = solicitation(router, v6(POOL6));
    // Not from this link; behind an extension header (RFC 4861 7.1.1, RFC 6980).
    lab.check("out0", &question.clone().ttl(254), passed());
    lab.check("out0", &question.extension(60, &[1, 4, 0, 0, 0, 0]), passed());
    let news = advertisement((router.0, v6(ROUTER6)), (all_nodes_mac(), all_nodes()));
    lab.check("out0", &news, passed());
}

#[test]
fn a_client_that_the_host_does_not_know_is_known_by_what_it_sent() {
    let Some(mut lab) = standard(|policy| nat(policy).routes("203.0.113.0/28 via direct")) else { return };
    // Until then, nobody knows where it is.
    let early = udp("203.0.113.1:53", "10.0.1.99:4000");
    lab.check("out0", &early, dropped(NeighborUnresolved));
    let query = udp("10.0.1.99:4000", "203.0.113.1:53");
    lab.check("in0", &query, sent("out0", ROUTER, Direct, &query).by("203.0.113.0/28", "direct"));
    lab.check("out0", &early, sent("in0", "10.0.1.99", Reply, &early).by("203.0.113.0/28", "direct"));

    let query = udp("10.0.1.99:4000", "203.0.113.99:53");
    lab.open("in0", &query);
    let answer = udp("203.0.113.99:53", &format!("{POOL}:4000"));
    let expected = sent("in0", "10.0.1.99", Reply, &answer.clone().to("10.0.1.99:4000"));
    lab.check("out0", &answer, expected.by("0.0.0.0/0", "pool").establishing(POOL));
    // It moves to another station, and answers follow.
    let station = [2, 9, 9, 9, 9, 9];
    lab.prepare("in0", &udp("10.0.1.99:4001", "203.0.113.99:53").macs(station, owner(&lab, "in0")));
    let moved = lab.prepare("out0", &answer);
    assert_eq!(moved.frame[..6], station);
}
