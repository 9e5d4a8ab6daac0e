//! The maximum segment size that connections announce.

use gateway_common::Verdict::{Direct, Reply, Snat};
use gateway_tests::packet::{ACK, Packet, SYN, ip, tcp};

use crate::support::{Lab, POOL, POOL6, ROUTER, nat, sent, standard};

/// Behind the device `out1`, whose MTU is 1,280 bytes.
const SERVER: &str = "203.0.113.201:443";
const SERVER6: &str = "[2001:db8:f1::1]:443";
const ALL: &str = "0.0.0.0/0";
const ALL6: &str = "::/0";

fn translating() -> Option<Lab> {
    standard(nat)
}

/// The option.
fn mss(size: u16) -> [u8; 4] {
    let [high, low] = size.to_be_bytes();
    [2, 4, high, low]
}

fn syn(options: &[u8]) -> Packet {
    tcp("10.0.1.2:4000", SERVER, SYN).tcp_options(options)
}

/// Checks that a new connection with these options leaves with those.
#[track_caller]
fn leaves(arriving: &[u8], leaving: &[u8]) {
    let Some(mut lab) = translating() else { return };
    let out = syn(leaving).from("198.51.100.10:4000");
    let expected = sent("out1", "10.9.0.254", Snat, &out).by(ALL, "pool").opening("tcp", POOL);
    lab.check("in0", &syn(arriving), expected);
    // As a SYN of a session does, and without the option of a segment that opens nothing.
    lab.check("in0", &syn(arriving), sent("out1", "10.9.0.254", Snat, &out).by(ALL, "pool"));
}

#[test]
fn it_is_lowered_to_what_fits_the_way_out() {
    leaves(&mss(1460), &mss(1240));
    leaves(&mss(65_535), &mss(1240));
    leaves(&mss(1241), &mss(1240));
}

#[test]
fn it_is_found_among_other_options() {
    let [kind, length, high, low] = mss(1460);
    let [_, _, new_high, new_low] = mss(1240);
    // At an odd offset; behind window scale, SACK permitted and time stamps.
    leaves(&[1, kind, length, high, low, 1, 1, 1], &[1, kind, length, new_high, new_low, 1, 1, 1]);
    leaves(
        &[3, 3, 7, 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, kind, length, high, low, 0],
        &[3, 3, 7, 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, kind, length, new_high, new_low, 0],
    );
    let (mut old, mut new) = ([1; 40], [1; 40]);
    old[36..].copy_from_slice(&mss(1460));
    new[36..].copy_from_slice(&mss(1240));
    leaves(&old, &new);
}

#[test]
fn what_fits_or_makes_no_sense_stays() {
    for options in [
        &mss(1240)[..],
        &mss(536),
        &[],
        // Behind the end of the options; of another length; an option without an end; one of no length.
        &[0, 2, 4, 5, 0xb4, 0, 0, 0],
        &[2, 3, 5, 0xb4],
        &[3, 40, 7, 0, 2, 4, 5, 0xb4],
        &[3, 0, 2, 4, 5, 0xb4, 0, 0],
        &[1, 1, 2, 4],
    ] {
        leaves(options, options);
    }
}

#[test]
fn the_answer_is_lowered_too() {
    let Some(mut lab) = translating() else { return };
    lab.prepare("in0", &syn(&mss(1460)));
    let answer = syn(&mss(1460)).from("198.51.100.10:4000").answer();
    let expected =
        sent("in0", "10.0.1.2", Reply, &answer.clone().to("10.0.1.2:4000").tcp_options(&mss(1240)));
    lab.check("out1", &answer, expected.by(ALL, "pool").establishing(POOL));
    // Only segments that begin a connection announce it.
    let data = syn(&mss(1460)).flags(ACK);
    let out = data.clone().from("198.51.100.10:4000");
    lab.check("in0", &data, sent("out1", "10.9.0.254", Snat, &out).by(ALL, "pool"));
}

#[test]
fn ipv6_headers_are_longer() {
    let Some(mut lab) = translating() else { return };
    let syn = tcp("[2001:db8:1::2]:4000", SERVER6, SYN).tcp_options(&mss(1440));
    let out = syn.clone().from_address(ip(POOL6)).tcp_options(&mss(1220));
    let expected = sent("out1", "2001:db8:9::254", Snat, &out).by(ALL6, "pool").opening("tcp", POOL6);
    lab.check("in0", &syn, expected);
    let answer = out.answer().tcp_options(&mss(1440));
    let back = answer.clone().to("[2001:db8:1::2]:4000").tcp_options(&mss(1220));
    let expected = sent("in0", "2001:db8:1::2", Reply, &back).by(ALL6, "pool").establishing(POOL6);
    lab.check("out1", &answer, expected);
}

#[test]
fn a_way_that_takes_as_much_as_the_client_changes_nothing() {
    let Some(mut lab) = translating() else { return };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).tcp_options(&mss(1460));
    let expected = sent("out0", ROUTER, Snat, &syn.clone().from("198.51.100.10:4000"));
    lab.check("in0", &syn, expected.by(ALL, "pool").opening("tcp", POOL));
}

#[test]
fn a_pool_may_want_less_than_its_ways_take() {
    let Some(mut lab) = standard(|policy| nat(policy).mss("nat", 1230)) else { return };
    for (arriving, leaving, port) in
        [(1460, 1230, 4000), (1231, 1230, 4001), (1230, 1230, 4002), (900, 900, 4003)]
    {
        let from = format!("198.51.100.10:{port}");
        let syn = tcp(&format!("10.0.1.2:{port}"), "203.0.113.10:443", SYN).tcp_options(&mss(arriving));
        let out = syn.clone().from(&from).tcp_options(&mss(leaving));
        let sent_on = || sent("out0", ROUTER, Snat, &out).by(ALL, "pool");
        lab.check("in0", &syn, sent_on().opening("tcp", POOL));
        // The client repeats it, and the server announces its own.
        lab.check("in0", &syn, sent_on());
        let answer = out.answer().tcp_options(&mss(arriving));
        let back = answer.clone().to(&format!("10.0.1.2:{port}")).tcp_options(&mss(leaving));
        let expected = sent("in0", "10.0.1.2", Reply, &back);
        lab.check("out0", &answer, expected.by(ALL, "pool").establishing(POOL));
    }
}

#[test]
fn what_a_pool_wants_and_the_ways_do_not_take_is_lowered_further() {
    let Some(mut lab) = standard(|policy| nat(policy).mss("nat", 1300)) else { return };
    let out = syn(&mss(1240)).from("198.51.100.10:4000");
    let expected = sent("out1", "10.9.0.254", Snat, &out).by(ALL, "pool").opening("tcp", POOL);
    lab.check("in0", &syn(&mss(1460)), expected);
}

#[test]
fn a_changed_segment_size_is_that_of_connections_from_then_on() {
    let Some(mut lab) = standard(|policy| nat(policy).mss("nat", 1300)) else { return };
    let announced = |lab: &mut Lab, port: u16| {
        let syn = tcp(&format!("[2001:db8:1::2]:{port}"), "[2001:db8:f::1]:443", SYN).tcp_options(&mss(1440));
        let frame = lab.prepare("in0", &syn).frame;
        u16::from_be_bytes([frame[76], frame[77]])
    };
    assert_eq!(announced(&mut lab, 4000), 1300);
    lab.change(|policy| policy.mss("nat", 1220));
    assert_eq!(announced(&mut lab, 4001), 1220);
    lab.change(|policy| policy.mss("nat", 0));
    assert_eq!(announced(&mut lab, 4002), 1440);
}

#[test]
fn mappings_of_a_pool_have_its_segment_size() {
    let Some(mut lab) = standard(|policy| nat(policy).mss("nat", 1230).endpoint_independent("nat")) else {
        return;
    };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).tcp_options(&mss(1460));
    let out = syn.clone().from("198.51.100.10:4000").tcp_options(&mss(1230));
    lab.check("in0", &syn, sent("out0", ROUTER, Snat, &out).by(ALL, "pool").opening("tcp", POOL));
}

#[test]
fn untranslated_connections_are_not_touched() {
    let Some(mut lab) = standard(|policy| policy.routes("0.0.0.0/0 via direct")) else { return };
    let syn = syn(&mss(1460));
    lab.check("in0", &syn, sent("out1", "10.9.0.254", Direct, &syn).by(ALL, "direct"));
}
