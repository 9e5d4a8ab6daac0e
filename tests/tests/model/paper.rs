//! The walk on paper beside what the programs do.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use gateway_common::DropReason;
use gateway_tests::{
    gateway::Gateway,
    network::{Network, mac},
    packet::{Packet, SYN, Transport},
};
use gateway_user::{
    dataplane::{Connected, Tried},
    explain::{End, Present, Question, Way, Ways, World, walk},
    model::{Proto, Snapshot},
};

/// Packets that a walk had an opinion about.
pub(crate) static DECIDED: AtomicU64 = AtomicU64::new(0);

/// The host's routes as the network of a test has them.
struct Map<'a>(&'a Network);

impl Ways for Map<'_> {
    fn way(&self, address: IpAddr) -> Option<Way> {
        self.0.way(address).map(|way| Way {
            device: way.device.name.to_owned(),
            router: way.neighbor,
            mac: way.mac,
        })
    }

    fn hop(&self, device: &str, router: IpAddr) -> Way {
        let way = self.0.hop(device, router);
        Way { device: way.device.name.to_owned(), router, mac: way.mac }
    }
}

/// The question that a packet asks which arrives on a device, if it is the first one of a flow and nothing about it is
/// unusual.
pub(crate) fn question(network: &Network, device: &str, packet: &Packet) -> Option<Question> {
    let (proto, source_port, port) = match packet.transport {
        Transport::Tcp { source, destination, flags, .. } if flags == SYN => {
            (Proto::Tcp, source, destination)
        }
        Transport::Udp { source, destination, .. } => (Proto::Udp, source, destination),
        Transport::Echo { request: true, identifier, .. } => (Proto::Icmp, identifier, 0),
        Transport::Tcp { .. } | Transport::Echo { .. } | Transport::Icmp { .. } | Transport::Bare(_) => {
            return None;
        }
    };
    // Hosts of proxies are known by their address; here, nobody is one.
    let way = network.way(packet.source).filter(|way| way.device.name == device);
    let plain = packet.source_mac == [0; 6]
        || packet.source_mac == mac(way.map_or(packet.source, |way| way.neighbor));
    let iif = Some(device.to_owned());
    plain.then_some(Question { from: packet.source, source_port, to: packet.destination, port, proto, iif })
}

/// What the gateway has of a question before it is asked.
pub(crate) fn present(gateway: &Gateway, question: &Question) -> Present {
    let proto = match question.proto {
        Proto::Tcp => 6,
        Proto::Udp => 17,
        Proto::Icmp if question.to.is_ipv4() => 1,
        Proto::Icmp => 58,
    };
    Present {
        session: gateway.session(proto, (question.from, question.source_port), (question.to, question.port)),
        destinations: gateway.destinations(),
        limits: gateway.limits(),
        proxies: Vec::new(),
    }
}

/// Whether a packet is dropped for what other flows have, and not for what it is.
fn is_for_want_of_room(reason: DropReason) -> bool {
    matches!(reason, DropReason::SessionTableFull | DropReason::PoolExhausted | DropReason::NoSession)
}

/// What differs between the walk and what the programs have done with the packet.
pub(crate) fn compare(
    network: &Network,
    state: &Snapshot,
    question: &Question,
    present: &Present,
    tried: &Tried,
) -> String {
    // What becomes of a session that another policy has allowed, the next packet shows.
    if present.session.is_some() {
        return String::new();
    }
    let host = network.host();
    let connected = Connected::of(&host, state);
    let ways = Map(network);
    let world = World {
        state,
        connected: &connected,
        host: Some(&host),
        ways: Some(&ways),
        told: None,
        present: Some(present),
    };
    let walk = walk(&world, question);
    let agrees = match &walk.end {
        // The walk sees neither what is full nor what rests until the sweep has removed it.
        End::Goes(verdict) => tried.verdict == *verdict || tried.reason.is_some_and(is_for_want_of_room),
        End::Drop(reason) => tried.reason == Some(*reason),
        End::Open(_) => return String::new(),
    };
    DECIDED.fetch_add(1, Ordering::Relaxed);
    if agrees {
        return String::new();
    }
    let steps: Vec<String> =
        walk.steps.iter().map(|step| format!("    {}: {}\n", step.stage, step.found)).collect();
    let (verdict, reason) = (tried.verdict.name(), tried.reason.map_or("", |reason| reason.name()));
    format!("  the walk ends elsewhere than in {verdict} {reason}:\n{}", steps.concat())
}
