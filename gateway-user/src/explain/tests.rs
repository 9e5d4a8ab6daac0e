//! Walks by a policy in a few lines.

use std::io::Write as _;

use rstest::rstest;

use super::*;
use crate::{
    config,
    dataplane::{Host, Link},
};

const POLICY: &str = r#"
[gateway]
state = "active"
[[interface]]
name = "eth1"
role = "inside"
[[interface]]
name = "eth2"
role = "inside"
[[interface]]
name = "eth0"
role = "outside"
[[pool]]
name = "nat"
addresses = ["198.51.100.10", "2001:db8:100::10"]
[[eip]]
address = "198.51.100.50"
host = "10.0.1.7"
[[proxy]]
name = "squid"
hosts = ["10.0.1.250"]
fail = "pool nat"
[[limit]]
name = "tenant"
from = "10.0.1.0/24"
concurrent = 100
[[table]]
name = "main"
routes = [
  { to = "203.0.113.0/24", via = "pool nat" },
  { to = "203.0.113.9/32", via = "prohibit" },
  { to = "203.0.113.10/32", proto = "udp", dport = "53", via = "direct" },
  { to = "203.0.113.11/32", via = "eip" },
  { to = "203.0.113.12/32", via = "gateway 192.0.2.2" },
  { to = "192.0.2.0/24", via = "host" },
  { to = "2001:db8:f::/48", via = "pool nat" },
]
[[table]]
name = "servers"
bind = ["10.0.2.0/24"]
routes = [{ to = "0.0.0.0/0", via = "proxy squid" }, { to = "203.0.113.0/25", via = "blackhole" }]
"#;

fn state() -> Snapshot {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(POLICY.as_bytes()).expect("room");
    config::load(file.path()).unwrap_or_else(|error| panic!("{error}")).snapshot
}

fn host() -> Host {
    let links = [("eth1", "10.0.1.1/24"), ("eth2", "10.0.2.1/24"), ("eth0", "192.0.2.1/24")];
    let links = links.iter().zip(1..).map(|((name, address), index)| {
        let addresses = vec![address.parse().expect("an address")];
        let link = Link { index, mac: [2, 0, 0, 0, 0, 9], mtu: 1500, up: true, veth: false, addresses };
        ((*name).to_owned(), link)
    });
    Host { links: links.collect() }
}

fn question(from: &str, to: &str, proto: Proto, port: u16) -> Question {
    let address = |text: &str| text.parse().expect("an address");
    Question { from: address(from), source_port: 40_000, to: address(to), port, proto, iif: None }
}

fn walked(state: &Snapshot, host: Option<&Host>, present: Option<&Present>, question: &Question) -> Walk {
    let connected = host.map_or_else(Connected::new, |host| Connected::of(host, state));
    walk(&World { state, connected: &connected, host, ways: None, told: None, present }, question)
}

fn ended(from: &str, to: &str, proto: Proto, port: u16) -> String {
    let (state, host) = (state(), host());
    match walked(&state, Some(&host), None, &question(from, to, proto, port)).end {
        End::Goes(verdict) => verdict.name().to_owned(),
        End::Drop(reason) => reason.name().to_owned(),
        End::Open(why) => format!("open: {why}"),
    }
}

#[rstest]
#[case("10.0.1.2", "203.0.113.20", "snat")]
#[case("10.0.1.2", "203.0.113.9", "prohibited")]
#[case("10.0.1.2", "203.0.113.10", "snat")]
#[case("10.0.1.7", "203.0.113.11", "eip")]
#[case("10.0.1.2", "203.0.113.11", "no_eip")]
#[case("10.0.1.2", "203.0.113.12", "gateway")]
#[case("10.0.1.2", "192.0.2.7", "host")]
#[case("10.0.1.2", "192.0.2.1", "host")]
#[case("10.0.1.2", "8.8.8.8", "no_route")]
#[case("10.0.1.2", "10.0.2.9", "direct")]
#[case("10.0.1.2", "127.0.0.1", "malformed")]
#[case("10.0.1.2", "224.0.0.5", "host")]
#[case("10.0.2.2", "203.0.113.20", "blackhole")]
#[case("10.0.2.2", "203.0.113.200", "proxy")]
fn the_walk_ends_where_the_first_packet_of_a_connection_does(
    #[case] from: &str,
    #[case] to: &str,
    #[case] end: &str,
) {
    assert_eq!(ended(from, to, Proto::Tcp, 443), end);
}

#[test]
fn the_next_hop_is_told_with_its_mac_address_as_far_as_it_is_known() {
    let (state, host) = (state(), host());
    let connected = Connected::of(&host, &state);
    let walked = |told: &Told<'_>| {
        let world = World {
            state: &state,
            connected: &connected,
            host: Some(&host),
            ways: None,
            told: Some(told),
            present: None,
        };
        let walk = walk(&world, &question("10.0.1.2", "203.0.113.20", Proto::Tcp, 443));
        let step = walk.steps.into_iter().find(|step| step.stage == "next hop").expect("a next hop");
        (step.found, walk.end)
    };
    let way = |device: &str, mac| Way {
        device: device.to_owned(),
        router: "192.0.2.254".parse().expect("an address"),
        mac,
    };
    let snat = End::Goes(Verdict::Snat);
    let known = walked(&|_| Ok(Some(way("eth0", Some([2, 0, 0x5e, 0, 0x53, 1])))));
    assert_eq!(known, ("192.0.2.254 on eth0, 02:00:5e:00:53:01".to_owned(), snat.clone()));
    let unknown = walked(&|_| Ok(Some(way("eth0", None))));
    assert_eq!(unknown, ("192.0.2.254 on eth0, not resolved yet".to_owned(), snat.clone()));
    let untold = walked(&|_| anyhow::bail!("nobody asked the host"));
    assert_eq!(untold, ("where the host's routes have 203.0.113.20".to_owned(), snat));
    let nowhere = "the host has no way to 203.0.113.20 through an interface of the gateway";
    for told in [None, Some(way("eth9", None))] {
        assert_eq!(walked(&|_| Ok(told.clone())), (nowhere.to_owned(), End::Drop(DropReason::NoRoute)));
    }
}

#[test]
fn selectors_are_asked_with_protocol_and_port() {
    assert_eq!(ended("10.0.1.2", "203.0.113.10", Proto::Udp, 53), "direct");
    assert_eq!(ended("10.0.1.2", "203.0.113.10", Proto::Udp, 54), "snat");
    assert_eq!(ended("10.0.1.2", "203.0.113.10", Proto::Icmp, 0), "snat");
}

#[test]
fn what_comes_from_outside_is_dropped_at_a_pool_without_a_session() {
    assert_eq!(ended("192.0.2.77", "198.51.100.10", Proto::Tcp, 80), "no_session");
    assert!(
        ended("192.0.2.77", "198.51.100.50", Proto::Tcp, 80).starts_with("open: the inside host's own table")
    );
}

#[test]
fn a_source_that_is_elsewhere_is_spoofed() {
    let (state, host) = (state(), host());
    let asked =
        Question { iif: Some("eth1".to_owned()), ..question("10.0.2.2", "203.0.113.20", Proto::Tcp, 443) };
    assert_eq!(walked(&state, Some(&host), None, &asked).end, End::Drop(DropReason::SpoofedSource));
}

#[test]
fn an_inactive_gateway_leaves_everything_to_the_host() {
    let state = Snapshot { active: false, ..state() };
    let asked = question("10.0.1.2", "203.0.113.9", Proto::Tcp, 443);
    assert_eq!(walked(&state, Some(&host()), None, &asked).end, End::Goes(Verdict::Host));
}

#[test]
fn hosts_that_are_down_take_no_flows() {
    let (state, host) = (state(), host());
    let down = ProxyHostStats {
        proxy: "squid".to_owned(),
        address: "10.0.1.250".parse().expect("an address"),
        up: false,
        flows: 0,
    };
    let present = Present { proxies: vec![down], ..Present::default() };
    let asked = question("10.0.2.2", "203.0.113.200", Proto::Tcp, 443);
    let walk = walked(&state, Some(&host), Some(&present), &asked);
    assert_eq!(walk.end, End::Goes(Verdict::Snat));
    assert!(
        walk.steps.iter().any(|step| step.found == "squid: no host is up, so `pool nat` instead"),
        "{walk:?}"
    );
}

#[test]
fn steps_say_which_route_wins_and_why_the_others_lose() {
    let (state, host) = (state(), host());
    let walk = walked(&state, Some(&host), None, &question("10.0.1.2", "203.0.113.10", Proto::Tcp, 443));
    let lines: Vec<String> = walk
        .steps
        .iter()
        .flat_map(|step| {
            let first = format!("{}: {}", step.stage, step.found);
            std::iter::once(first).chain(step.notes.iter().map(|note| format!("  {note}")))
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn without_a_host_the_roles_and_bindings_say_where_a_source_is() {
    let state = state();
    let walk = walked(&state, None, None, &question("10.0.1.2", "203.0.113.20", Proto::Tcp, 443));
    assert!(matches!(walk.end, End::Open(_)), "two interfaces face the inside: {walk:?}");
    let mut one = state;
    one.interfaces.remove("eth2");
    let walk = walked(&one, None, None, &question("10.0.1.2", "203.0.113.20", Proto::Tcp, 443));
    assert_eq!((walk.iif.as_deref(), walk.end), (Some("eth1"), End::Goes(Verdict::Snat)));
}

#[rstest]
#[case(Proto::Tcp, "10.0.1.2", "203.0.113.10", 54)]
#[case(Proto::Udp, "10.0.1.2", "203.0.113.10", 42)]
#[case(Proto::Icmp, "10.0.1.2", "203.0.113.10", 42)]
#[case(Proto::Tcp, "2001:db8:1::2", "2001:db8:f::1", 74)]
#[case(Proto::Icmp, "2001:db8:1::2", "2001:db8:f::1", 62)]
fn the_frame_of_a_question_is_a_whole_packet(
    #[case] proto: Proto,
    #[case] from: &str,
    #[case] to: &str,
    #[case] length: usize,
) {
    let bytes = frame(&question(from, to, proto, 443), [2; 6], [4; 6]).expect("a frame");
    assert_eq!(bytes.len(), length);
    assert!(etherparse::SlicedPacket::from_ethernet(&bytes).is_ok());
}
