//! Routes: which one decides, and what its target does.

use gateway_common::{
    DropReason::{Blackhole, FragmentUnmatched, NeighborUnresolved, NoRoute, Prohibited, SpoofedSource},
    Verdict::{Direct, Gateway},
};
use gateway_tests::{
    gateway::Action,
    network::Network,
    packet::{ACK, bare, echo_request, tcp, udp},
    policy::Policy,
};

use crate::support::{POOL, ROUTER, ROUTER6, dropped, lab, passed, refused, reset, sent, standard};

#[test]
fn what_no_route_covers_is_dropped() {
    let Some(mut lab) = standard(|policy| policy.routes("203.0.113.0/25 via direct")) else { return };
    lab.check("in0", &udp("10.0.1.2:4000", "203.0.113.200:53"), dropped(NoRoute));
    lab.check("in0", &udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53"), dropped(NoRoute));
    // What is behind a router of the inside is not connected.
    lab.check("in1", &udp("10.0.3.2:4000", "10.0.2.7:53"), dropped(NoRoute));
}

#[test]
fn connected_subnets_of_the_inside_need_no_route() {
    let Some(mut lab) = standard(|policy| policy) else { return };
    let v4 = udp("10.0.1.2:4000", "10.0.3.2:53");
    lab.check("in0", &v4, sent("in1", "10.0.3.2", Direct, &v4).by("10.0.3.0/24", "direct"));
    let answer = udp("10.0.3.2:53", "10.0.1.2:4000");
    lab.check("in1", &answer, sent("in0", "10.0.1.2", Direct, &answer).by("10.0.1.0/24", "direct"));
    let v6 = udp("[2001:db8:1::2]:4000", "[2001:db8:3::2]:53");
    lab.check("in0", &v6, sent("in1", "2001:db8:3::2", Direct, &v6).by("2001:db8:3::/64", "direct"));
    // Those of the outside do.
    lab.check("in0", &udp("10.0.1.2:4000", "192.0.2.2:53"), dropped(NoRoute));
}

#[test]
fn a_system_route_is_one_among_others() {
    let Some(mut lab) = standard(|policy| {
        policy.pool("nat", POOL, "1024-65535").routes(
            "0.0.0.0/0 via pool nat
             10.0.3.2/32 via blackhole
             10.0.3.0/24 via prohibit proto tcp",
        )
    }) else {
        return;
    };
    let to = |server: &str| udp("10.0.1.2:4000", server);
    lab.check("in0", &to("10.0.3.2:53"), dropped(Blackhole).by("10.0.3.2/32", "blackhole"));
    let segment = tcp("10.0.1.2:4000", "10.0.3.3:443", ACK);
    lab.check("in0", &segment, reset(Prohibited).by("10.0.3.0/24 proto tcp", "prohibit"));
    // The default route is shorter; nobody at the inside sees the pool's address.
    lab.check("in0", &to("10.0.3.3:53"), dropped(NeighborUnresolved).by("10.0.3.0/24", "direct"));
    // A route to the same prefix takes its place, and gives it back.
    lab.change(|policy| policy.routes("10.0.3.0/24 via blackhole"));
    lab.check("in0", &to("10.0.3.3:53"), dropped(Blackhole).by("10.0.3.0/24", "blackhole"));
    lab.change(Policy::without_routes);
    lab.check("in0", &to("10.0.3.3:53"), dropped(NeighborUnresolved).by("10.0.3.0/24", "direct"));
}

#[test]
fn a_system_route_leads_to_the_inside_only() {
    let mut network = Network::standard();
    network.add_route("10.0.3.128/25", "out0", "192.0.2.254");
    let Some(mut lab) = lab(network, |policy| policy) else { return };
    // The host sends it out, with the client's address.
    lab.check("in0", &udp("10.0.1.2:4000", "10.0.3.200:53"), dropped(NoRoute).by("10.0.3.0/24", "direct"));
}

#[test]
fn addresses_of_pools_are_no_matter_of_system_routes() {
    let Some(mut lab) = standard(|policy| {
        policy
            .pool("near", "10.0.3.77", "1024-65535")
            .endpoint_independent("near")
            .routes("0.0.0.0/0 via pool near")
    }) else {
        return;
    };
    let (address, port) = lab.open("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    let call = udp("10.0.1.3:4000", &format!("{address}:{port}"));
    assert_eq!(lab.prepare("in0", &call).action, Action::Tx, "inside hosts still meet by their mappings");
}

#[test]
fn direct_forwards_whatever_it_is() {
    let Some(mut lab) = standard(|policy| policy.routes("0.0.0.0/0 via direct")) else { return };
    for packet in [
        tcp("10.0.1.2:4000", "203.0.113.10:443", ACK),
        udp("10.0.1.2:4000", "203.0.113.10:53").without_checksum(),
        echo_request("10.0.1.2", "203.0.113.10", 7).options(&[1, 1, 1, 0]),
        bare("10.0.1.2", "203.0.113.10", 47),
        bare("10.0.1.2", "203.0.113.10", 17).fragment(3, true),
        udp("10.0.1.2:4000", "203.0.113.10:53").fragment(0, true),
    ] {
        lab.check("in0", &packet, sent("out0", ROUTER, Direct, &packet).by("0.0.0.0/0", "direct"));
    }
    let behind = udp("10.0.2.9:4000", "192.0.2.2:53").macs([2, 4, 10, 0, 1, 254], [2, 4, 10, 0, 1, 1]);
    lab.check("in0", &behind, sent("out0", "192.0.2.2", Direct, &behind).by("0.0.0.0/0", "direct"));
}

#[test]
fn a_fragment_without_a_port_passes_no_route_that_asks_for_one() {
    let routes = "0.0.0.0/0 via direct\n0.0.0.0/0 via pool nat proto udp dport 53";
    let Some(mut lab) = standard(|policy| policy.pool("nat", POOL, "1024-65535").routes(routes)) else {
        return;
    };
    // It may belong to a datagram to port 53, which must not leave with the client's address.
    let udp = bare("10.0.1.2", "203.0.113.10", 17).fragment(3, true);
    lab.check("in0", &udp, dropped(FragmentUnmatched));
    let tcp = bare("10.0.1.2", "203.0.113.10", 6).fragment(3, true);
    lab.check("in0", &tcp, sent("out0", ROUTER, Direct, &tcp).by("0.0.0.0/0", "direct"));
}

#[test]
fn direct_reaches_other_inside_subnets_and_hairpins() {
    let Some(mut lab) = standard(|policy| policy.routes("10.0.0.0/16 via direct")) else { return };
    let across = udp("10.0.1.2:4000", "10.0.3.2:53");
    // The subnet is connected: the system route is longer.
    lab.check("in0", &across, sent("in1", "10.0.3.2", Direct, &across).by("10.0.3.0/24", "direct"));
    let hairpin = udp("10.0.1.2:4000", "10.0.2.7:53");
    lab.check("in0", &hairpin, sent("in0", "10.0.1.254", Direct, &hairpin).by("10.0.0.0/16", "direct"));
}

#[test]
fn direct_needs_a_way_of_the_host() {
    let Some(mut lab) = standard(|policy| policy.routes("0.0.0.0/0 via direct")) else { return };
    // The host calls 203.0.113.80/28 unreachable, and has no neighbour 192.0.2.99.
    let unreachable = udp("10.0.1.2:4000", "203.0.113.81:53");
    lab.check("in0", &unreachable, dropped(NoRoute).by("0.0.0.0/0", "direct"));
    let unresolved = udp("10.0.1.2:4000", "192.0.2.99:53");
    lab.check("in0", &unresolved, dropped(NeighborUnresolved).by("0.0.0.0/0", "direct"));
    // lan0 is not the gateway's: what went there would be on nobody's books.
    let foreign = udp("10.0.1.2:4000", "203.0.113.65:53");
    lab.check("in0", &foreign, dropped(NoRoute).by("0.0.0.0/0", "direct"));
}

#[test]
fn a_gateway_route_goes_to_its_router() {
    let Some(mut lab) = standard(|policy| {
        policy.routes(
            "203.0.113.0/28 via gateway 192.0.2.2
             203.0.113.16/28 via gateway 10.9.0.254 dev out1
             203.0.113.32/28 via gateway 192.0.2.99
             203.0.113.48/28 via gateway 203.0.113.81",
        )
    }) else {
        return;
    };
    let packet = udp("10.0.1.2:4000", "203.0.113.1:53");
    let expected = sent("out0", "192.0.2.2", Gateway, &packet);
    lab.check("in0", &packet, expected.by("203.0.113.0/28", "gateway"));
    let packet = udp("10.0.1.2:4000", "203.0.113.17:53");
    let expected = sent("out1", "10.9.0.254", Gateway, &packet);
    lab.check("in0", &packet, expected.by("203.0.113.16/28", "gateway"));
    let packet = udp("10.0.1.2:4000", "203.0.113.33:53");
    lab.check("in0", &packet, dropped(NeighborUnresolved).by("203.0.113.32/28", "gateway"));
    let packet = udp("10.0.1.2:4000", "203.0.113.49:53");
    lab.check("in0", &packet, dropped(NoRoute).by("203.0.113.48/28", "gateway"));
}

#[test]
fn blackhole_prohibit_and_host_do_as_they_say() {
    let Some(mut lab) = standard(|policy| {
        policy.routes("203.0.113.1 via blackhole\n203.0.113.2 via prohibit\n203.0.113.3 via host")
    }) else {
        return;
    };
    let to = |to| udp("10.0.1.2:4000", to);
    lab.check("in0", &to("203.0.113.1:53"), dropped(Blackhole).by("203.0.113.1/32", "blackhole"));
    lab.check("in0", &to("203.0.113.2:53"), refused(Prohibited).by("203.0.113.2/32", "prohibit"));
    lab.check("in0", &to("203.0.113.3:53"), passed().by("203.0.113.3/32", "host"));
}

#[test]
fn a_router_that_is_not_on_its_link_is_no_way() {
    let Some(mut lab) = standard(|policy| {
        policy
            .routes("203.0.113.0/28 via gateway 203.0.113.99\n203.0.113.16/28 via gateway 192.0.2.2 dev out1")
    }) else {
        return;
    };
    // The host would send both to another router, who knows nothing of the route.
    let packet = udp("10.0.1.2:4000", "203.0.113.1:53");
    lab.check("in0", &packet, dropped(NoRoute).by("203.0.113.0/28", "gateway"));
    let packet = udp("10.0.1.2:4000", "203.0.113.17:53");
    lab.check("in0", &packet, dropped(NoRoute).by("203.0.113.16/28", "gateway"));
}

#[test]
fn ipv6_routes_do_as_they_say() {
    let Some(mut lab) = standard(|policy| {
        policy.routes(
            "::/0 via direct
             2001:db8:f:1::/64 via blackhole
             2001:db8:f:2::/64 via prohibit
             2001:db8:f:3::/64 via host
             2001:db8:f:4::/64 via gateway 2001:db8:2::2
             2001:db8:f:5::/64 via gateway 2001:db8:9::254 dev out1
             2001:db8:f:6::/64 via gateway 2001:db8:2::99
             2001:db8:f:7::/64 via blackhole proto icmp",
        )
    }) else {
        return;
    };
    let to = |to: &str| udp("[2001:db8:1::2]:4000", &format!("[{to}]:53"));
    let packet = to("2001:db8:f::1");
    lab.check("in0", &packet, sent("out0", ROUTER6, Direct, &packet).by("::/0", "direct"));
    lab.check("in0", &to("2001:db8:f:1::1"), dropped(Blackhole).by("2001:db8:f:1::/64", "blackhole"));
    lab.check("in0", &to("2001:db8:f:2::1"), refused(Prohibited).by("2001:db8:f:2::/64", "prohibit"));
    lab.check("in0", &to("2001:db8:f:3::1"), passed().by("2001:db8:f:3::/64", "host"));
    let packet = to("2001:db8:f:4::1");
    let expected = sent("out0", "2001:db8:2::2", Gateway, &packet);
    lab.check("in0", &packet, expected.by("2001:db8:f:4::/64", "gateway"));
    let packet = to("2001:db8:f:5::1");
    let expected = sent("out1", "2001:db8:9::254", Gateway, &packet);
    lab.check("in0", &packet, expected.by("2001:db8:f:5::/64", "gateway"));
    let packet = to("2001:db8:f:6::1");
    lab.check("in0", &packet, dropped(NeighborUnresolved).by("2001:db8:f:6::/64", "gateway"));
    let ping = echo_request("2001:db8:1::2", "2001:db8:f:7::1", 7);
    lab.check("in0", &ping, dropped(Blackhole).by("2001:db8:f:7::/64 proto icmp", "blackhole"));
    let packet = to("2001:db8:f:7::1");
    lab.check("in0", &packet, sent("out0", ROUTER6, Direct, &packet).by("::/0", "direct"));
}

#[test]
fn the_most_specific_selector_of_the_longest_prefix_decides() {
    let Some(mut lab) = standard(|policy| {
        policy.routes(
            "0.0.0.0/0 via direct
             203.0.113.0/24 via blackhole proto tcp
             203.0.113.0/24 via host proto tcp dport 440-449
             203.0.113.0/24 via prohibit proto tcp dport 443
             203.0.113.7/32 via prohibit proto icmp",
        )
    }) else {
        return;
    };
    let tcp_to = |to| tcp("10.0.1.2:4000", to, ACK);
    lab.check(
        "in0",
        &tcp_to("203.0.113.7:443"),
        reset(Prohibited).by("203.0.113.0/24 proto tcp dport 443", "prohibit"),
    );
    lab.check(
        "in0",
        &tcp_to("203.0.113.7:440"),
        passed().by("203.0.113.0/24 proto tcp dport 440-449", "host"),
    );
    lab.check(
        "in0",
        &tcp_to("203.0.113.7:449"),
        passed().by("203.0.113.0/24 proto tcp dport 440-449", "host"),
    );
    lab.check(
        "in0",
        &tcp_to("203.0.113.7:450"),
        dropped(Blackhole).by("203.0.113.0/24 proto tcp", "blackhole"),
    );
    let ping = echo_request("10.0.1.2", "203.0.113.7", 443);
    lab.check("in0", &ping, refused(Prohibited).by("203.0.113.7/32 proto icmp", "prohibit"));
    // No selector matches: the covering prefix decides, two levels up.
    let query = udp("10.0.1.2:4000", "203.0.113.7:443");
    lab.check("in0", &query, sent("out0", ROUTER, Direct, &query).by("0.0.0.0/0", "direct"));
    // A later fragment shows no ports: it may be of the ones for 440-449.
    let later = bare("10.0.1.2", "203.0.113.7", 6).fragment(100, false);
    lab.check("in0", &later, dropped(FragmentUnmatched));
    let first = tcp_to("203.0.113.7:443").fragment(0, true);
    lab.check("in0", &first, reset(Prohibited).by("203.0.113.0/24 proto tcp dport 443", "prohibit"));
}

#[test]
fn a_prefix_with_selectors_only_leaves_the_rest_without_a_route() {
    let Some(mut lab) = standard(|policy| policy.routes("0.0.0.0/0 via direct proto udp")) else { return };
    lab.check("in0", &tcp("10.0.1.2:4000", "203.0.113.7:443", ACK), dropped(NoRoute));
}

#[test]
fn the_longest_binding_of_the_source_chooses_the_table() {
    let Some(mut lab) = standard(|policy| {
        policy
            .routes("0.0.0.0/0 via blackhole")
            .table("wide", &["10.0.0.0/16"], "0.0.0.0/0 via prohibit")
            .table("narrow", &["10.0.1.2/32", "10.0.2.0/24"], "203.0.113.0/24 via host")
            .table("six", &["2001:db8:1::/64"], "::/0 via prohibit")
    }) else {
        return;
    };
    let from = |from| udp(from, "203.0.113.7:53");
    lab.check("in0", &from("10.0.1.3:4000"), refused(Prohibited).by_table("wide", "0.0.0.0/0", "prohibit"));
    lab.check("in0", &from("10.0.1.2:4000"), passed().by_table("narrow", "203.0.113.0/24", "host"));
    lab.check("in0", &from("10.0.2.9:4000"), passed().by_table("narrow", "203.0.113.0/24", "host"));
    lab.check("in1", &from("10.0.3.2:4000"), refused(Prohibited).by_table("wide", "0.0.0.0/0", "prohibit"));
    // The table that is bound decides alone.
    lab.check("in0", &udp("10.0.1.2:4000", "192.0.2.2:53"), dropped(NoRoute));
    let six = udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53");
    lab.check("in0", &six, refused(Prohibited).by_table("six", "::/0", "prohibit"));
    lab.check("in1", &udp("[2001:db8:3::2]:4000", "[2001:db8:f::1]:53"), dropped(NoRoute));
}

#[test]
fn a_binding_that_names_the_interface_beats_a_longer_one() {
    let Some(mut lab) = standard(|policy| {
        policy
            .table("any", &["10.0.1.2/32"], "0.0.0.0/0 via prohibit")
            .table("port", &["0.0.0.0/0 iif in0"], "0.0.0.0/0 via blackhole")
            .table("other", &["10.0.0.0/8 iif in1"], "0.0.0.0/0 via host")
    }) else {
        return;
    };
    let from = |from| udp(from, "203.0.113.7:53");
    lab.check("in0", &from("10.0.1.2:4000"), dropped(Blackhole).by_table("port", "0.0.0.0/0", "blackhole"));
    lab.check("in1", &from("10.0.3.2:4000"), passed().by_table("other", "0.0.0.0/0", "host"));
}

#[test]
fn a_source_from_behind_another_interface_is_refused() {
    let Some(mut lab) = standard(|policy| policy.routes("0.0.0.0/0 via direct\n::/0 via direct")) else {
        return;
    };
    for source in
        ["10.0.3.2", "203.0.113.9", "192.0.2.1", "10.0.1.1", "10.0.1.255", "203.0.113.81", "10.8.0.3"]
    {
        lab.check("in0", &bare(source, "203.0.113.10", 47), dropped(SpoofedSource));
    }
    for source in ["2001:db8:3::2", "2001:db8:f::9", "2001:db8:1::1"] {
        lab.check("in0", &bare(source, "2001:db8:f::1", 47), dropped(SpoofedSource));
    }
    // Unresolved or behind a router: a source of this interface all the same.
    for source in ["10.0.1.99", "10.0.2.200"] {
        let packet = bare(source, "203.0.113.10", 47);
        lab.check("in0", &packet, sent("out0", ROUTER, Direct, &packet).by("0.0.0.0/0", "direct"));
    }
}

#[test]
fn an_inactive_gateway_touches_nothing() {
    let Some(mut lab) = standard(|policy| policy.routes("0.0.0.0/0 via blackhole").inactive()) else {
        return;
    };
    for packet in [
        udp("10.0.1.2:4000", "203.0.113.10:53"),
        udp("127.0.0.1:4000", "203.0.113.10:53").ttl(1),
        bare("10.0.3.2", "203.0.113.10", 6).payload([]),
        udp("10.0.1.2:4000", "203.0.113.10:53").tag(0x8100, 0),
    ] {
        lab.check("in0", &packet, passed());
        lab.check("out0", &packet, passed());
    }
    lab.change(Policy::active);
    let packet = udp("10.0.1.2:4000", "203.0.113.10:53");
    lab.check("in0", &packet, dropped(Blackhole).by("0.0.0.0/0", "blackhole"));
    lab.change(Policy::inactive);
    lab.check("in0", &packet, passed());
}
