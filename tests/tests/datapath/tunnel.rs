//! Hosts of proxies in tunnels: what goes around frames to them, and what comes out of frames from them.

use gateway_common::{
    DropReason::{BadChecksum, Malformed, NoRoute, NoSession, Prohibited, Truncated},
    Verdict::{Direct, Proxy, Reply, Snat},
    tunnel::{GENEVE, VXLAN},
};
use gateway_tests::{
    network::Network,
    packet::{ACK, Packet, SYN, Tunnel, bare, checksum_of, echo_request, ip, patch, tcp, udp},
    policy::Policy,
};
use gateway_user::{dataplane::tunnel::device_of, model::ProxyMode};

use crate::support::{
    Lab, POOL, POOL6, ROUTER, ROUTER6, dropped, lab, passed, refused, reset, sent, too_large,
};

const ALL: &str = "0.0.0.0/0";
const ALL6: &str = "::/0";
const CLIENT: &str = "10.0.1.2";
const CLIENT6: &str = "2001:db8:1::2";
/// A host behind in1, by its addresses.
const HOST: &str = "10.0.3.2";
const HOST6: &str = "2001:db8:3::2";
const VNI: u32 = 0x0a_0b0c;
/// MAC addresses inside: the gateway's, and the host's.
const OWN_END: [u8; 6] = [0x02, 1, 1, 1, 1, 1];
const FAR_END: [u8; 6] = [0x02, 2, 2, 2, 2, 2];

/// Everything goes through a proxy whose host is in a tunnel; what the host sends goes out through pool `nat`.
struct Tunnelled {
    lab: Lab,
    tunnel: Tunnel,
    host: &'static str,
}

fn tunnelled(mode: ProxyMode, host: &'static str) -> Option<Tunnelled> {
    tunnelled_by(mode, host, "10.0.3.1", "2001:db8:3::1", |policy| policy)
}

fn tunnelled_by(
    mode: ProxyMode,
    host: &'static str,
    own: &str,
    own6: &str,
    change: impl FnOnce(Policy) -> Policy,
) -> Option<Tunnelled> {
    let mut lab = lab(Network::standard(), |policy| {
        let policy = policy
            .pool("nat", &format!("{POOL} {POOL6}"), "1024-65535")
            .proxy("squid", host, "closed")
            .tunnelled("squid", mode)
            .routes("0.0.0.0/0 via proxy squid\n::/0 via proxy squid")
            .table("beyond", &["10.0.3.2/32"], "0.0.0.0/0 via pool nat\n::/0 via pool nat")
            .table("beyond", &["2001:db8:3::2/128", "192.0.2.2/32"], "");
        change(policy)
    })?;
    let gateway = if ip(host).is_ipv4() { ip(own) } else { ip(own6) };
    let vni = mode.vni().expect("a tunnel");
    let tunnel = Tunnel { kind: VXLAN, vni, gateway: (gateway, OWN_END), host: (ip(host), FAR_END) };
    lab.resolve_tunnel(&device_of(mode, ip(host)).expect("a tunnel"), &tunnel);
    Some(Tunnelled { lab, tunnel, host })
}

/// Through Geneve.
fn geneve(host: &'static str) -> Option<Tunnelled> {
    let mut of = tunnelled(ProxyMode::Vxlan { vni: VNI }, host)?;
    of.lab.make_geneve_of_vxlan();
    of.tunnel.kind = GENEVE;
    Some(of)
}

/// Through VXLAN, with IPv4 outside.
fn vxlan() -> Option<Tunnelled> {
    tunnelled(ProxyMode::Vxlan { vni: VNI }, HOST)
}

impl Tunnelled {
    /// A frame with the packet in it, as the host sends it.
    fn carrying(&self, inner: &Packet) -> Vec<u8> {
        self.lab.arriving("in1", &self.tunnel.from_host(inner)).frame()
    }

    /// What is left of it once it was taken out.
    fn taken_out(&self, inner: &Packet) -> Vec<u8> {
        inner.clone().macs(FAR_END, self.lab.network().find("in1").mac()).frame()
    }

    fn opens_and_is_answered(&mut self, client: &str, server: &str, all: &'static str) {
        let (from, to) = (format!("{client}:4000"), format!("{server}:443"));
        let syn = tcp(&from, &to, SYN);
        let expected = sent("in1", self.host, Proxy, &syn).within(&self.tunnel).by(all, "proxy");
        self.lab.check("in0", &syn, expected.counting("sessions tcp created"));
        let client = syn.source.to_string();
        for flags in [SYN | ACK, ACK, ACK] {
            let answer = tcp(&to, &from, flags);
            let expected = sent("in0", &client, Reply, &answer).by(all, "proxy").counted_as(&answer);
            self.lab.check_frame("in1", &self.carrying(&answer), expected);
        }
        for _ in 0..2 {
            let data = tcp(&from, &to, ACK);
            let expected = sent("in1", self.host, Proxy, &data).within(&self.tunnel).by(all, "proxy");
            self.lab.check("in0", &data, expected);
        }
    }
}

#[test]
fn a_flow_goes_into_the_tunnel_of_its_host_and_comes_out_of_it() {
    for host in [HOST, HOST6] {
        let Some(mut of) = tunnelled(ProxyMode::Vxlan { vni: VNI }, host) else { return };
        of.opens_and_is_answered(CLIENT, "203.0.113.10", ALL);
        of.opens_and_is_answered(&format!("[{CLIENT6}]"), "[2001:db8:f0::1]", ALL6);
    }
}

#[test]
fn geneve_carries_flows_as_vxlan_does() {
    for host in [HOST, HOST6] {
        let Some(mut of) = geneve(host) else { return };
        of.opens_and_is_answered(CLIENT, "203.0.113.10", ALL);
        of.opens_and_is_answered(&format!("[{CLIENT6}]"), "[2001:db8:f0::1]", ALL6);
    }
}

#[test]
fn options_of_geneve_are_skipped_unless_they_are_critical() {
    let Some(mut of) = geneve(HOST) else { return };
    let own = udp("10.0.3.2:5000", "203.0.113.10:53");
    let frame = of.carrying(&own);
    // The header says that there are two words of options, or another version, or a control packet, or another payload.
    let header = 14 + 20 + 8;
    let plain = of.tunnel.from_host(&own);
    let (first, inner) = plain.payload.split_at(8);
    let with_options = |flags: u8| {
        let options = [&[2, flags], &first[2..], &[0, 1, 7, 1, 9, 9, 9, 9], inner].concat();
        plain.clone().payload(options)
    };
    for flags in [0x40, 0x80] {
        let frame = of.lab.arriving("in1", &with_options(flags)).frame();
        of.lab.check_frame("in1", &frame, passed());
    }
    for patched in [patch(frame.clone(), header, &[0x40]), patch(frame.clone(), header + 2, &[0x08, 0x00])] {
        of.lab.check_frame("in1", &patched, passed());
    }
    let frame = of.lab.arriving("in1", &with_options(0)).frame();
    let out = own.clone().from(&format!("{POOL}:5000"));
    let expected = sent("out0", ROUTER, Snat, &out).by_table("beyond", ALL, "pool").opening("udp", POOL);
    of.lab.check_frame("in1", &frame, expected.counted_as(&own));
}

#[test]
fn what_the_host_sends_goes_by_the_table_of_its_own_address_and_is_answered_in_the_tunnel() {
    let Some(mut of) = vxlan() else { return };
    for (client, server, pool, router, all) in [
        ("10.0.3.2:5000", "203.0.113.10:443", POOL, ROUTER, ALL),
        // As the client, which it is a proxy of.
        ("10.0.1.2:4000", "203.0.113.10:443", POOL, ROUTER, ALL),
        ("[2001:db8:1::2]:4000", "[2001:db8:f0::1]:443", POOL6, ROUTER6, ALL6),
    ] {
        let syn = tcp(client, server, SYN);
        let port = client.rsplit(':').next().unwrap_or_default();
        let from = if pool == POOL6 { format!("[{pool}]:{port}") } else { format!("{pool}:{port}") };
        let out = syn.clone().from(&from);
        let expected = sent("out0", router, Snat, &out).by_table("beyond", all, "pool").opening("tcp", pool);
        of.lab.check_frame("in1", &of.carrying(&syn), expected.counted_as(&syn));
        let answer = out.answer();
        let back = answer.clone().to(client);
        let expected = || sent("in1", HOST, Reply, &back).within(&of.tunnel).by_table("beyond", all, "pool");
        let first = expected().establishing(pool);
        of.lab.check("out0", &answer, first);
        let data = tcp(client, server, ACK);
        let out = data.clone().from(&from);
        for _ in 0..2 {
            let expected = sent("out0", router, Snat, &out).by_table("beyond", all, "pool");
            of.lab.check_frame("in1", &of.carrying(&data), expected.counted_as(&data));
        }
    }
}

#[test]
fn the_border_table_leads_replies_into_a_tunnel_and_what_comes_out_reaches_the_client() {
    for host in [HOST, HOST6] {
        let by_border = |policy: Policy| {
            policy
                .table(
                    "own",
                    &["10.0.1.2/32", "2001:db8:1::2/128"],
                    "0.0.0.0/0 via pool nat\n::/0 via pool nat",
                )
                .border("10.0.1.0/24 via proxy squid\n2001:db8:1::/64 via proxy squid")
        };
        let mode = ProxyMode::Vxlan { vni: VNI };
        let Some(mut of) = tunnelled_by(mode, host, "10.0.3.1", "2001:db8:3::1", by_border) else { return };
        for (client, server, pool, all, led) in [
            (CLIENT, "203.0.113.10", POOL, ALL, "10.0.1.0/24"),
            ("[2001:db8:1::2]", "[2001:db8:f0::1]", POOL6, ALL6, "2001:db8:1::/64"),
        ] {
            let query = udp(&format!("{client}:4000"), &format!("{server}:53"));
            of.lab.open("in0", &query);
            let outside = if pool == POOL { pool.to_owned() } else { format!("[{pool}]") };
            let answer = udp(&format!("{server}:53"), &format!("{outside}:4000"));
            let home = answer.clone().to(&format!("{client}:4000"));
            let expected = || {
                let sent = sent("in1", host, Reply, &home).within(&of.tunnel);
                sent.by_table("own", all, "pool").by_table("return", led, "proxy")
            };
            let (first, next) = (expected().establishing(pool), expected());
            of.lab.check("out0", &answer, first);
            of.lab.check("out0", &answer, next);
            let address = query.source.to_string();
            let frame = of.carrying(&home);
            of.lab.check_frame("in1", &frame, sent("in0", &address, Reply, &home).counted_as(&home));
        }
    }
}

#[test]
fn a_host_on_the_outside_is_met_there() {
    let mode = ProxyMode::Vxlan { vni: 7 };
    let Some(mut of) = tunnelled_by(mode, "192.0.2.2", "192.0.2.1", "2001:db8:2::1", |policy| policy) else {
        return;
    };
    let query = udp("10.0.1.2:4000", "203.0.113.10:53");
    let expected = sent("out0", "192.0.2.2", Proxy, &query).within(&of.tunnel).by(ALL, "proxy");
    of.lab.check("in0", &query, expected.counting("sessions udp created"));
    let answer = query.answer();
    let frame = of.lab.arriving("out0", &of.tunnel.from_host(&answer)).frame();
    let expected = sent("in0", CLIENT, Reply, &answer).by(ALL, "proxy").counted_as(&answer);
    of.lab.check_frame("out0", &frame, expected);
    let own = udp("192.0.2.2:5000", "203.0.113.10:53");
    let frame = of.lab.arriving("out0", &of.tunnel.from_host(&own)).frame();
    let out = own.clone().from(&format!("{POOL}:5000"));
    let expected = sent("out0", ROUTER, Snat, &out).by_table("beyond", ALL, "pool").opening("udp", POOL);
    of.lab.check_frame("out0", &frame, expected.counted_as(&own));
}

#[test]
fn a_packet_that_the_tunnel_makes_too_large_is_refused_with_the_mtu_that_fits() {
    for (host, fits) in [(HOST, 1450), (HOST6, 1430)] {
        let Some(mut of) = tunnelled(ProxyMode::Vxlan { vni: VNI }, host) else { return };
        let query = udp("10.0.1.2:4000", "203.0.113.10:53").length(usize::from(fits));
        let expected = sent("in1", host, Proxy, &query).within(&of.tunnel).by(ALL, "proxy");
        of.lab.check("in0", &query, expected.counting("sessions udp created"));
        let query = query.length(usize::from(fits) + 1);
        of.lab.check("in0", &query, too_large(fits).by(ALL, "proxy"));
    }
}

#[test]
fn connections_through_a_tunnel_announce_segments_that_fit() {
    let Some(mut of) = vxlan() else { return };
    let syn = |mss: u16| {
        let [high, low] = mss.to_be_bytes();
        tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).tcp_options(&[2, 4, high, low])
    };
    let expected = sent("in1", HOST, Proxy, &syn(1410)).within(&of.tunnel).by(ALL, "proxy");
    of.lab.check("in0", &syn(1460), expected.counting("sessions tcp created"));
    let answer = |mss: u16| Packet { tcp_options: syn(mss).tcp_options, ..syn(0).answer() };
    let expected = sent("in0", CLIENT, Reply, &answer(1410)).by(ALL, "proxy").counted_as(&answer(1460));
    of.lab.check_frame("in1", &of.carrying(&answer(1460)), expected);
}

#[test]
fn a_packet_without_a_flow_and_fragments_go_into_the_tunnel() {
    let Some(mut of) = vxlan() else { return };
    let other = bare(CLIENT, "203.0.113.10", 47);
    let expected = sent("in1", HOST, Proxy, &other).within(&of.tunnel).by(ALL, "proxy");
    of.lab.check("in0", &other, expected);
    let parts = udp("10.0.1.2:4000", "203.0.113.10:53").length(220).fragments(&[80]);
    for (number, part) in parts.iter().enumerate() {
        let expected = sent("in1", HOST, Proxy, part).within(&of.tunnel).by(ALL, "proxy");
        let opening = if number == 0 { expected.counting("sessions udp created") } else { expected };
        of.lab.check("in0", part, opening);
    }
    let parts = udp("203.0.113.10:53", "10.0.1.2:4000").length(220).fragments(&[80]);
    for part in &parts {
        let expected = sent("in0", CLIENT, Reply, part).by(ALL, "proxy").counted_as(part);
        of.lab.check_frame("in1", &of.carrying(part), expected);
    }
}

#[test]
fn padding_behind_a_packet_stays_outside_the_tunnel() {
    let Some(mut of) = vxlan() else { return };
    let padded = Packet { trailer: vec![0; 6], ..echo_request(CLIENT, "203.0.113.10", 7) };
    let plain = Packet { trailer: Vec::new(), ..padded.clone() };
    let expected = sent("in1", HOST, Proxy, &plain).within(&of.tunnel).by(ALL, "proxy").counted_as(&padded);
    of.lab.check("in0", &padded, expected.counting("sessions icmp created"));
}

#[test]
fn only_frames_of_a_known_host_with_its_identifier_are_taken_out() {
    let Some(mut of) = vxlan() else { return };
    let own = udp("10.0.3.2:5000", "203.0.113.10:53");
    let arriving = |tunnel: &Tunnel, of: &Tunnelled| of.lab.arriving("in1", &tunnel.from_host(&own)).frame();
    let foreign_vni = Tunnel { vni: VNI + 1, ..of.tunnel };
    let frame = arriving(&foreign_vni, &of);
    of.lab.check_frame("in1", &frame, passed());
    let foreign_kind = Tunnel { kind: GENEVE, ..of.tunnel };
    let frame = arriving(&foreign_kind, &of);
    of.lab.check_frame("in1", &frame, passed());
    // From another host: as if no tunnel were there.
    let stranger = Tunnel { host: (ip("10.0.3.3"), FAR_END), ..of.tunnel };
    let frame = arriving(&stranger, &of);
    of.lab.check_frame("in1", &frame, passed());
    // As from the host, but by another way.
    let frame = of.lab.arriving("out0", &of.tunnel.from_host(&own)).frame();
    of.lab.check_frame("out0", &frame, passed());
    // Not for the gateway: a client with a tunnel of its own goes where all clients' packets go.
    let elsewhere =
        Tunnel { gateway: (ip("203.0.113.9"), OWN_END), host: (ip(CLIENT), FAR_END), ..of.tunnel };
    let through = elsewhere.from_host(&own);
    let expected = sent("in1", HOST, Proxy, &through).within(&of.tunnel).by(ALL, "proxy");
    of.lab.check("in0", &through, expected.counting("sessions udp created"));
    // Without the mark that says that there is an identifier.
    let frame = patch(of.carrying(&own), 14 + 20 + 8, &[0]);
    of.lab.check_frame("in1", &frame, passed());
}

#[test]
fn what_is_for_the_gateway_host_stays_in_its_tunnel() {
    let Some(mut of) = vxlan() else { return };
    let to_gateway =
        [tcp("10.0.3.2:3128", "10.0.3.1:40000", SYN | ACK), tcp("10.0.3.2:3128", "10.0.1.1:40000", ACK)];
    for packet in &to_gateway {
        of.lab.check_frame("in1", &of.carrying(packet), passed());
    }
    // A group, a frame for another station, ARP, neighbour discovery, and another tunnel.
    let group = udp("10.0.3.2:5000", "224.0.0.251:5353");
    of.lab.check_frame("in1", &of.carrying(&group), passed());
    let own = udp("10.0.3.2:5000", "203.0.113.10:53");
    let other = own.clone().macs(FAR_END, [0x02, 3, 3, 3, 3, 3]).frame();
    let frame = of.lab.arriving("in1", &of.tunnel.from_host_frame(&other)).frame();
    of.lab.check_frame("in1", &frame, passed());
    let arp = patch(own.clone().macs(FAR_END, [0xff; 6]).frame(), 12, &[0x08, 0x06]);
    let frame = of.lab.arriving("in1", &of.tunnel.from_host_frame(&arp)).frame();
    of.lab.check_frame("in1", &frame, passed());
    let link = udp("[fe80::2]:546", "[fe80::1]:547");
    of.lab.check_frame("in1", &of.carrying(&link), passed());
    let nested = of.tunnel.from_host(&own);
    of.lab.check_frame("in1", &of.carrying(&nested), passed());
}

#[test]
fn broken_frames_in_a_tunnel_are_dropped() {
    let Some(mut of) = vxlan() else { return };
    let own = udp("10.0.3.2:5000", "203.0.113.10:53");
    let inner = own.clone().macs(FAR_END, OWN_END).frame();
    let carried =
        |of: &Tunnelled, inner: &[u8]| of.lab.arriving("in1", &of.tunnel.from_host_frame(inner)).frame();
    // The IP header is cut short, and what it says of its length is more than there is.
    for length in [14 + 19, 14 + 27] {
        let frame = carried(&of, &inner[..length]);
        let left = of.taken_out(&own)[..length].to_vec();
        of.lab.check_frame("in1", &frame, dropped(Truncated).taken_out(left));
    }
    let frame = carried(&of, &patch(inner.clone(), 14 + 8, &[9]));
    let left = patch(of.taken_out(&own), 14 + 8, &[9]);
    of.lab.check_frame("in1", &frame, dropped(BadChecksum).taken_out(left));
    // Too little for a frame: nobody's.
    let frame = carried(&of, &inner[..13]);
    of.lab.check_frame("in1", &frame, passed());
}

#[test]
fn a_host_never_gets_what_came_out_of_its_tunnel() {
    let mode = ProxyMode::Vxlan { vni: VNI };
    let Some(mut of) = tunnelled_by(mode, HOST, "10.0.3.1", "2001:db8:3::1", |policy| {
        policy.table("beyond", &[], "203.0.113.0/24 via proxy squid\n198.51.100.128/25 via direct")
    }) else {
        return;
    };
    let own = udp("10.0.3.2:5000", "203.0.113.10:53");
    let turned = dropped(NoRoute).by_table("beyond", "203.0.113.0/24", "proxy").taken_out(of.taken_out(&own));
    of.lab.check_frame("in1", &of.carrying(&own), turned);
    // What leaves without a session is answered into the tunnel.
    let own = udp("10.0.3.2:5000", "198.51.100.200:53");
    let expected = sent("out0", ROUTER, Direct, &own).by_table("beyond", "198.51.100.128/25", "direct");
    of.lab.check_frame("in1", &of.carrying(&own), expected.counted_as(&own));
}

#[test]
fn a_host_in_a_tunnel_is_told_there_what_is_not_allowed() {
    let mode = ProxyMode::Vxlan { vni: VNI };
    let Some(mut of) = tunnelled_by(mode, HOST, "10.0.3.1", "2001:db8:3::1", |policy| {
        policy.table("beyond", &[], "203.0.113.0/24 via prohibit")
    }) else {
        return;
    };
    let own = udp("10.0.3.2:5000", "203.0.113.10:53");
    let told = refused(Prohibited).by_table("beyond", "203.0.113.0/24", "prohibit").within(&of.tunnel);
    of.lab.check_frame("in1", &of.carrying(&own), told.counted_as(&own));
}

#[test]
fn congestion_on_the_way_is_told_to_the_receiver() {
    let Some(mut of) = vxlan() else { return };
    of.lab.prepare("in0", &udp("10.0.1.2:4000", "203.0.113.10:53"));
    let answer = udp("203.0.113.10:53", "10.0.1.2:4000");
    // Outside, congestion was experienced; the packet inside is of a transport that knows what that is.
    let marked = |tos: u8, of: &Tunnelled| {
        let mut inner = answer.clone().macs(FAR_END, OWN_END).frame();
        set_tos(&mut inner, tos);
        let mut frame = of.lab.arriving("in1", &of.tunnel.from_host_frame(&inner)).frame();
        set_tos(&mut frame, 0x03);
        frame
    };
    let frame = marked(0x02, &of);
    let outcome = of.lab.run("in1", &frame);
    assert_eq!(outcome.frame[15], 0x03);
    let sum = checksum_of(&outcome.frame[14..34]);
    assert_eq!(sum, 0, "{:02x?}", outcome.frame);
    let frame = marked(0x00, &of);
    // Nobody can be told.
    let inner = answer.clone().macs(FAR_END, OWN_END).frame();
    of.lab.check_frame("in1", &frame, dropped(Malformed).taken_out(inner));
}

/// Writes the TOS and the checksum of the IPv4 header of a frame.
fn set_tos(frame: &mut [u8], tos: u8) {
    frame[15] = tos;
    frame[24..26].fill(0);
    let sum = checksum_of(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn a_host_that_goes_down_loses_its_flows_and_one_that_is_removed_its_tunnel() {
    let Some(mut of) = vxlan() else { return };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    of.lab.prepare("in0", &syn);
    of.lab.health("squid", HOST, false);
    let segment = tcp("10.0.1.2:4000", "203.0.113.10:443", ACK);
    of.lab.check("in0", &segment, reset(NoSession));
    of.lab.change(|policy| policy.without_routes().proxy("squid", "10.0.1.3", "closed"));
    let own = udp("10.0.3.2:5000", "203.0.113.10:53");
    of.lab.check_frame("in1", &of.carrying(&own), passed());
    assert_eq!(of.lab.map_entries("tunnel_hosts"), 0);
}
