//! Flows from inside through a pool: new ones and established ones.

use gateway_common::{
    DropReason::{NoSession, UnsupportedProtocol},
    Verdict::{Reply, Snat},
};
use gateway_tests::packet::{ACK, FIN, RST, SYN, Transport, bare, echo_reply, echo_request, patch, tcp, udp};

use crate::support::{POOL, POOL6, ROUTER, dropped, nat, reset, sent, snat, standard};

const ALL: &str = "0.0.0.0/0";

#[test]
fn a_tcp_connection_leaves_with_the_address_of_the_pool() {
    let Some(mut lab) = snat() else { return };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    let expected = sent("out0", ROUTER, Snat, &syn.clone().from("198.51.100.10:4000"));
    lab.check("in0", &syn, expected.by(ALL, "pool").opening("tcp", POOL));
}

#[test]
fn a_udp_flow_leaves_with_the_address_of_the_pool() {
    let Some(mut lab) = snat() else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    let expected = sent("out0", ROUTER, Snat, &query.clone().from("198.51.100.10:4000"));
    lab.check("in0", &query, expected.by(ALL, "pool").opening("udp", POOL));
}

#[test]
fn an_echo_request_leaves_with_the_address_of_the_pool() {
    let Some(mut lab) = snat() else { return };
    let ping = echo_request("10.0.1.2", "203.0.113.10", 4000);
    let expected = sent("out0", ROUTER, Snat, &ping.clone().from("198.51.100.10:4000"));
    lab.check("in0", &ping, expected.by(ALL, "pool").opening("icmp", POOL));
}

#[test]
fn a_port_below_the_range_of_the_pool_is_changed() {
    let Some(mut lab) = standard(|policy| nat(policy).pool("nat", &format!("{POOL} {POOL6}"), "5000-5000"))
    else {
        return;
    };
    let ntp = udp("10.0.1.2:123", "203.0.113.10:123").payload(b"odd".to_vec());
    let expected = sent("out0", ROUTER, Snat, &ntp.clone().from("198.51.100.10:5000"));
    lab.check("in0", &ntp, expected.by(ALL, "pool").opening("udp", POOL));
    let ping = echo_request("10.0.1.2", "203.0.113.10", 7);
    let expected = sent("out0", ROUTER, Snat, &ping.clone().from("198.51.100.10:5000"));
    lab.check("in0", &ping, expected.by(ALL, "pool").opening("icmp", POOL));
}

#[test]
fn packets_of_an_established_flow_keep_its_address_and_port() {
    let Some(mut lab) = snat() else { return };
    lab.open("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN));
    for flags in [ACK, SYN, ACK | FIN, ACK | RST] {
        let segment = tcp("10.0.1.2:4000", "203.0.113.10:443", flags).payload([0xa5; 700]);
        let expected = sent("out0", ROUTER, Snat, &segment.clone().from("198.51.100.10:4000"));
        lab.check("in0", &segment, expected.by(ALL, "pool"));
    }
}

#[test]
fn a_datagram_without_a_checksum_stays_without_one() {
    let Some(mut lab) = snat() else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53").without_checksum();
    let translated = query.clone().from("198.51.100.10:4000");
    let expected = sent("out0", ROUTER, Snat, &translated).by(ALL, "pool");
    lab.check("in0", &query, expected.opening("udp", POOL));
    lab.check("in0", &query, sent("out0", ROUTER, Snat, &translated).by(ALL, "pool"));
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_as_ffff() {
    let Some(mut lab) = snat() else { return };
    let with = |word: u16| udp("10.0.1.2:4000", "203.0.113.10:53").payload(word.to_be_bytes());
    let checksum = |word: u16| {
        let translated = with(word).from("198.51.100.10:4000");
        let frame = translated.frame();
        let at = translated.transport_offset() + 6;
        u16::from_be_bytes([frame[at], frame[at + 1]])
    };
    // The payload that makes it so: 0xffff of the builder is a computed 0.
    let word = (0..u16::MAX).find(|word| checksum(*word) == 0xffff).expect("one payload of all does");
    let expected = sent("out0", ROUTER, Snat, &with(word).from("198.51.100.10:4000"));
    lab.check("in0", &with(word), expected.by(ALL, "pool").opening("udp", POOL));
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    let Some(mut lab) = snat() else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.open("in0", &query);
    let checksum_at = query.transport_offset() + 6;
    let off_by_one = |frame: Vec<u8>| {
        let checksum = u16::from_be_bytes([frame[checksum_at], frame[checksum_at + 1]]);
        patch(frame, checksum_at, &(checksum + 1).to_be_bytes())
    };
    let frame = off_by_one(lab.arriving("in0", &query).frame());
    let sent = lab.run("in0", &frame).frame;
    let translated = query.from("198.51.100.10:4000").ttl(63);
    let right = off_by_one(translated.frame());
    assert_eq!(sent[14..], right[14..], "the gateway must not vouch for data it did not check");
}

#[test]
fn ip_options_are_kept() {
    let Some(mut lab) = snat() else { return };
    // Record route (RFC 791), which nobody on the way has filled in.
    let options = [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).options(&options);
    let expected = sent("out0", ROUTER, Snat, &syn.clone().from("198.51.100.10:4000"));
    lab.check("in0", &syn, expected.by(ALL, "pool").opening("tcp", POOL));
    let answer = tcp("203.0.113.10:443", "198.51.100.10:4000", SYN | ACK).options(&options);
    let expected = sent("in0", "10.0.1.2", Reply, &answer.clone().to("10.0.1.2:4000"));
    lab.check("out0", &answer, expected.by(ALL, "pool").establishing(POOL));
}

#[test]
fn ethernet_padding_is_kept() {
    let Some(mut lab) = snat() else { return };
    let mut syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).payload([]);
    syn.trailer = vec![0xee; 6];
    let expected = sent("out0", ROUTER, Snat, &syn.clone().from("198.51.100.10:4000"));
    lab.check("in0", &syn, expected.by(ALL, "pool").opening("tcp", POOL));
}

#[test]
fn only_a_syn_opens_a_tcp_session() {
    let Some(mut lab) = snat() else { return };
    for (flags, expected) in [
        (ACK, reset(NoSession)),
        (FIN, reset(NoSession)),
        (ACK | FIN, reset(NoSession)),
        (0, reset(NoSession)),
        (SYN | ACK, dropped(NoSession)),
        (RST, dropped(NoSession)),
    ] {
        let segment = tcp("10.0.1.2:4000", "203.0.113.10:443", flags);
        lab.check("in0", &segment, expected.by(ALL, "pool"));
    }
}

#[test]
fn only_a_request_opens_an_icmp_session() {
    let Some(mut lab) = snat() else { return };
    let reply = echo_reply("10.0.1.2", "203.0.113.10", 4000);
    lab.check("in0", &reply, dropped(NoSession).by(ALL, "pool"));
    for (kind, code) in [(3, 3), (11, 0), (13, 0), (5, 1)] {
        let mut message = echo_request("10.0.1.2", "203.0.113.10", 4000);
        message.transport = Transport::Icmp { kind, code, rest: [0; 4] };
        lab.check("in0", &message, dropped(NoSession).by(ALL, "pool"));
    }
}

#[test]
fn protocols_without_ports_are_not_translated() {
    let Some(mut lab) = snat() else { return };
    for proto in [47, 50, 132, 2] {
        let packet = bare("10.0.1.2", "203.0.113.10", proto);
        lab.check("in0", &packet, dropped(UnsupportedProtocol).by(ALL, "pool"));
    }
}
