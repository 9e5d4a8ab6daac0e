//! One interface that faces clients and internet alike.

use gateway_common::{
    DropReason::{NoSession, Prohibited, SpoofedSource},
    Verdict::{Direct, Reply, Snat},
};
use gateway_tests::{
    network::Network,
    packet::{ACK, SYN, tcp, udp},
};

use crate::support::{Lab, POOL, POOL6, dropped, lab, nat, passed, refused, sent};

const ALL: &str = "0.0.0.0/0";
const ROUTER: &str = "10.0.7.254";

fn one_armed() -> Option<Lab> {
    lab(Network::one_armed(), |policy| {
        nat(policy).routes("203.0.113.0/28 via direct\n203.0.113.16/28 via prohibit")
    })
}

#[test]
fn a_flow_leaves_through_the_interface_it_came_from() {
    let Some(mut lab) = one_armed() else { return };
    let syn = tcp("10.0.7.2:4000", "203.0.113.99:443", SYN);
    let expected = sent("arm0", ROUTER, Snat, &syn.clone().from("198.51.100.10:4000"));
    lab.check("arm0", &syn, expected.by(ALL, "pool").opening("tcp", POOL));
    let answer = tcp("203.0.113.99:443", "198.51.100.10:4000", SYN | ACK);
    let expected = sent("arm0", "10.0.7.2", Reply, &answer.clone().to("10.0.7.2:4000"));
    lab.check("arm0", &answer, expected.by(ALL, "pool").establishing(POOL));
}

#[test]
fn what_is_for_a_pool_address_is_an_answer_or_nothing() {
    let Some(mut lab) = one_armed() else { return };
    lab.check("arm0", &tcp("203.0.113.99:443", "198.51.100.10:4000", SYN | ACK), dropped(NoSession));
    lab.check("arm0", &udp("10.0.7.2:443", "198.51.100.10:4000"), dropped(NoSession));
    lab.check("arm0", &udp("[2001:db8:7::2]:443", &format!("[{POOL6}]:4000")), dropped(NoSession));
}

#[test]
fn all_else_is_treated_as_from_inside() {
    let Some(mut lab) = one_armed() else { return };
    let direct = udp("10.0.7.2:4000", "203.0.113.1:53");
    lab.check("arm0", &direct, sent("arm0", ROUTER, Direct, &direct).by("203.0.113.0/28", "direct"));
    let prohibited = udp("10.0.7.2:4000", "203.0.113.17:53");
    lab.check("arm0", &prohibited, refused(Prohibited).by("203.0.113.16/28", "prohibit"));
    lab.check("arm0", &udp("10.0.7.1:53", "10.0.7.2:4000"), dropped(SpoofedSource));
    lab.check("arm0", &udp("10.0.7.2:53", "10.0.7.1:22"), passed());
    lab.check("arm0", &udp("10.0.7.2:53", "10.0.7.255:22"), passed());
}

#[test]
fn clients_are_those_on_the_link() {
    let Some(mut lab) = one_armed() else { return };
    // Behind which of the routers on the link a source is, and whether that is an inside one, nobody says.
    for source in ["203.0.113.1:53", "198.51.100.10:4000", "192.0.2.9:53"] {
        lab.check("arm0", &udp(source, "203.0.113.99:53"), dropped(SpoofedSource));
        lab.check("arm0", &udp(source, "10.0.7.2:4000"), dropped(SpoofedSource));
    }
}

#[test]
fn on_veth_devices_what_goes_back_is_redirected() {
    let Some(mut lab) = lab(Network::one_armed().told_veth(), nat) else { return };
    let outcome = lab.prepare("arm0", &udp("10.0.7.2:4000", "203.0.113.99:53"));
    assert_eq!(outcome.action, gateway_tests::gateway::Action::Redirect);
}
