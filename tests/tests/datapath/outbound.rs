//! New and established flows from inside, through a pool.

use gateway_common::Verdict::Snat;
use gateway_tests::packet::{SYN, echo_request, tcp, udp};

use crate::support::{POOL, ROUTER, sent, snat};

#[test]
fn a_tcp_connection_leaves_with_the_address_of_the_pool() {
    let Some(mut lab) = snat() else { return };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    let expected = sent("out0", ROUTER, Snat, &syn.clone().from("198.51.100.10:4000"));
    lab.check("in0", &syn, expected.by("0.0.0.0/0", "pool").opening("tcp", POOL));
}

#[test]
fn a_udp_flow_leaves_with_the_address_of_the_pool() {
    let Some(mut lab) = snat() else { return };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    let expected = sent("out0", ROUTER, Snat, &query.clone().from("198.51.100.10:4000"));
    lab.check("in0", &query, expected.by("0.0.0.0/0", "pool").opening("udp", POOL));
}

#[test]
fn an_echo_request_leaves_with_the_address_of_the_pool() {
    let Some(mut lab) = snat() else { return };
    let ping = echo_request("10.0.1.2", "203.0.113.10", 4000);
    let expected = sent("out0", ROUTER, Snat, &ping.clone().from("198.51.100.10:4000"));
    lab.check("in0", &ping, expected.by("0.0.0.0/0", "pool").opening("icmp", POOL));
}
