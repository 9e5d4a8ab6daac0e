//! Scenarios at random, from a seed.
//!
//! Addresses, ports and prefixes come from small sets, so that flows meet: the same port twice, a route that
//! is denied while its sessions live, an answer to somebody else's question.

use std::{net::IpAddr, time::Duration};

use fastrand::Rng;
use gateway_tests::{
    network::{Network, mac},
    packet::{ACK, Arp, FIN, Packet, RST, SYN, Transport, ip, solicitation},
    policy::Policy,
};

use crate::scenario::{Error, Scenario, Step, Twist};

/// What is where in a network.
struct World {
    network: Network,
    inside: &'static [&'static str],
    outside: &'static [&'static str],
    /// Addresses by family: those that packets from inside come from...
    clients: [&'static [&'static str]; 2],
    /// ...and go to.
    servers: [&'static [&'static str]; 2],
    /// Addresses that have no business to be there.
    strange: [&'static [&'static str]; 2],
    /// Clients that may have an EIP, by the EIP.
    eips: &'static [(&'static str, &'static str)],
    routers: &'static [&'static str],
    bindings: &'static [&'static str],
}

const PREFIXES: &[&str] = &[
    "0.0.0.0/0",
    "203.0.113.0/24",
    "203.0.113.0/28",
    "203.0.113.10/32",
    "203.0.113.11/32",
    "203.0.113.192/26",
    "192.0.2.0/24",
    "10.0.0.0/8",
    "10.0.3.0/24",
    "::/0",
    "2001:db8::/32",
    "2001:db8:f::/48",
    "2001:db8:f::1/128",
    "2001:db8:f1::/48",
    "2001:db8:3::/64",
];
const SELECTORS: &[&str] = &[
    "",
    "",
    "",
    "proto tcp",
    "proto udp",
    "proto icmp",
    "proto tcp dport 443",
    "proto tcp dport 80-443",
    "proto udp dport 53",
    "proto udp dport 50-60",
];
const PORTS: &[&str] = &["1024-65535", "1024-65535", "4000-4001", "5000-5009", "2000-2000", "3990-4040"];
const CLIENT_PORTS: &[u16] = &[4000, 4001, 4002, 5003, 80, 65535];
const SERVER_PORTS: &[u16] = &[53, 80, 443, 8080];

/// A scenario with this many steps.
pub(crate) fn scenario(seed: u64, length: usize) -> Scenario {
    let mut rng = Rng::with_seed(seed);
    let world = if rng.u8(..5) == 0 { one_armed() } else { standard() };
    let mut pools = Pools::new(&mut rng);
    let policy = policy(&mut rng, &world, &pools);
    let mut steps = Vec::new();
    // Numbers of the steps that may be answered or repeated.
    let mut packets_so_far: Vec<usize> = Vec::new();
    // And those about which there may be errors.
    let mut sent_so_far: Vec<usize> = Vec::new();
    // And those of which there is a rest.
    let mut firsts_so_far: Vec<usize> = Vec::new();
    for number in 0..length {
        let step = match rng.u16(..1000) {
            0..2 => {
                pools.shrink(&mut rng);
                Step::Change(self::policy(&mut rng, &world, &pools))
            }
            2..4 => Step::Sweep,
            4..30 => strange_frame(&mut rng, &world, &pools),
            30..130 if !sent_so_far.is_empty() => {
                let about = recent(&mut rng, &sent_so_far);
                error(&mut rng, &world, about)
            }
            130..440 if !packets_so_far.is_empty() => {
                let to = recent(&mut rng, &packets_so_far);
                let device = (rng.u8(..20) == 0).then(|| pick(&mut rng, world.outside));
                Step::Answer { to, device, twists: twists(&mut rng, 6) }
            }
            440..640 if !packets_so_far.is_empty() => {
                let again: &(usize, Step) = &steps[recent(&mut rng, &packets_so_far)];
                let mut step = again.1.clone();
                if let Step::Packet { twists, packet, .. } = &mut step {
                    *twists = self::twists(&mut rng, 6);
                    if let Transport::Tcp { .. } = packet.transport {
                        *packet = packet.clone().flags(pick(&mut rng, &[ACK, ACK, ACK | FIN, RST, SYN]));
                    }
                }
                step
            }
            640..720 if !firsts_so_far.is_empty() => {
                let of = recent(&mut rng, &firsts_so_far);
                Step::Rest { of, from: 8 * rng.usize(1..12), twists: twists(&mut rng, 8) }
            }
            _ => packet(&mut rng, &world, &pools),
        };
        if let Step::Packet { twists, .. } | Step::Answer { twists, .. } = &step
            && twists.iter().any(|twist| matches!(twist, Twist::Fragment(0, true)))
        {
            firsts_so_far.push(number);
        }
        if matches!(step, Step::Packet { .. }) {
            packets_so_far.push(number);
        }
        if matches!(step, Step::Packet { .. } | Step::Answer { .. }) {
            sent_so_far.push(number);
        }
        steps.push((number, step));
    }
    Scenario { network: world.network, policy, steps }
}

fn standard() -> World {
    World {
        network: Network::standard(),
        inside: &["in0", "in0", "in0", "in1"],
        outside: &["out0", "out0", "out1"],
        // .99 is not resolved; 10.0.2.0/24 and 2001:db8:4::/64 are behind a router.
        clients: [
            &["10.0.1.2", "10.0.1.3", "10.0.1.99", "10.0.2.9", "10.0.3.2"],
            &["2001:db8:1::2", "2001:db8:1::3", "2001:db8:1::99", "2001:db8:4::9", "2001:db8:3::2"],
        ],
        servers: [
            &["203.0.113.10", "203.0.113.11", "203.0.113.200", "192.0.2.2", "203.0.113.20", "10.0.3.2"],
            &["2001:db8:f::1", "2001:db8:f::2", "2001:db8:f1::1", "2001:db8:2::2", "2001:db8:3::2"],
        ],
        strange: [
            &[
                "10.0.1.1",
                "10.0.1.98",
                "10.0.1.255",
                "127.0.0.1",
                "224.0.0.5",
                "0.0.0.0",
                "255.255.255.255",
                "203.0.113.65",
                "203.0.113.81",
                "192.0.2.99",
                "192.0.2.1",
                "240.1.2.3",
                "10.8.0.9",
            ],
            &[
                "2001:db8:1::1",
                "2001:db8:1::98",
                "::",
                "::1",
                "ff02::5",
                "fe80::9",
                "2001:db8:2::99",
                "2001:db8:8::9",
                "2001:db8:2::1",
            ],
        ],
        eips: &[
            ("198.51.100.50", "10.0.1.2"),
            ("198.51.100.51", "10.0.3.2"),
            ("192.0.2.52", "10.0.2.9"),
            ("198.51.100.53", "10.0.1.99"),
            ("192.0.2.1", "10.0.1.3"),
            ("198.51.100.54", "203.0.113.10"),
            ("2001:db8:100::50", "2001:db8:1::2"),
            ("2001:db8:100::51", "2001:db8:3::2"),
            ("2001:db8:2::52", "2001:db8:4::9"),
        ],
        routers: &[
            "192.0.2.2",
            "10.9.0.254 dev out1",
            "192.0.2.99",
            "2001:db8:2::2",
            "2001:db8:9::254 dev out1",
        ],
        bindings: &[
            "10.0.1.0/24",
            "10.0.1.2/32",
            "10.0.0.0/8 iif in0",
            "0.0.0.0/0 iif in1",
            "10.0.2.0/24",
            "2001:db8:1::/64",
            "2001:db8::/32 iif in0",
            "2001:db8:1::3/128",
        ],
    }
}

fn one_armed() -> World {
    World {
        network: Network::one_armed(),
        inside: &["arm0"],
        outside: &["arm0"],
        clients: [&["10.0.7.2", "10.0.7.3", "10.0.7.99"], &["2001:db8:7::2", "2001:db8:7::99"]],
        servers: [&["203.0.113.10", "203.0.113.11", "10.0.7.3"], &["2001:db8:f::1", "2001:db8:f::2"]],
        strange: [
            &["10.0.7.1", "10.0.7.98", "10.0.7.255", "127.0.0.1", "224.0.0.5", "0.0.0.0", "10.0.7.254"],
            &["2001:db8:7::1", "::", "ff02::5", "fe80::9", "2001:db8:7::98"],
        ],
        eips: &[
            ("198.51.100.50", "10.0.7.2"),
            ("10.0.7.51", "10.0.7.3"),
            ("198.51.100.52", "10.0.7.99"),
            ("2001:db8:100::50", "2001:db8:7::2"),
        ],
        routers: &["10.0.7.254", "10.0.7.3", "2001:db8:7::254"],
        bindings: &["10.0.7.0/24", "10.0.7.2/32 iif arm0", "2001:db8:7::/64"],
    }
}

/// What stays the same when policies change: the capacity, and the pools. Addresses leave pools and do not
/// come back.
struct Pools {
    sessions: u32,
    ports: [&'static str; 2],
    addresses: [Vec<&'static str>; 2],
}

impl Pools {
    fn new(rng: &mut Rng) -> Self {
        // The host's own 198.51.100.1 and 2001:db8:2::1 may serve as pool addresses too.
        let mut nat = vec!["198.51.100.10", "2001:db8:100::10"];
        nat.extend(["198.51.100.11", "198.51.100.1"].into_iter().filter(|_| rng.u8(..3) == 0).take(1));
        nat.extend(["2001:db8:100::11", "2001:db8:2::1"].into_iter().filter(|_| rng.u8(..3) == 0).take(1));
        let two = vec!["198.51.100.20", "2001:db8:100::20"];
        let sessions = if rng.u8(..6) == 0 { 40 } else { 4096 };
        Self { sessions, ports: [pick(rng, PORTS), pick(rng, PORTS)], addresses: [nat, two] }
    }

    fn shrink(&mut self, rng: &mut Rng) {
        let [nat, _] = &mut self.addresses;
        if rng.bool() {
            nat.truncate(nat.len().saturating_sub(1).max(2));
        }
        if rng.u8(..4) == 0 {
            self.ports[0] = pick(rng, PORTS);
        }
    }

    fn any(&self, rng: &mut Rng, v6: bool) -> IpAddr {
        let of_family: Vec<IpAddr> = self
            .addresses
            .iter()
            .flatten()
            .map(|address| ip(address))
            .filter(|a| a.is_ipv6() == v6)
            .collect();
        pick(rng, &of_family)
    }
}

fn policy(rng: &mut Rng, world: &World, pools: &Pools) -> Policy {
    // Idle times so long that no closed connection gives up its port within a scenario.
    let times = (Duration::from_hours(2), Duration::from_hours(1));
    let mut policy = Policy::of(&world.network).sessions(pools.sessions).tcp_idle(times.0, times.1);
    for (name, (ports, addresses)) in ["nat", "two"].iter().zip(pools.ports.iter().zip(&pools.addresses)) {
        policy = policy.pool(name, &addresses.join(" "), ports);
    }
    for (address, host) in world.eips {
        if rng.u8(..3) != 0 {
            policy = policy.eip(address, host);
        }
    }
    let mut tables = vec!["main"];
    let mut bindings = world.bindings.to_vec();
    for table in ["a", "b"] {
        if rng.bool() {
            let binding = bindings.swap_remove(rng.usize(..bindings.len()));
            policy = policy.table(table, &[binding], "");
            tables.push(table);
        }
    }
    for table in &tables {
        // Most clients are to get somewhere.
        for all in ["0.0.0.0/0", "::/0"] {
            if rng.u8(..4) != 0 {
                let target = ["direct", "eip", "pool nat", "pool nat"][rng.usize(..4)];
                policy = policy.table(table, &[], &format!("{all} via {target}"));
            }
        }
        for _ in 0..rng.u8(..14) {
            let target = match rng.u8(..14) {
                0..4 => "pool nat".to_owned(),
                4..6 => "pool two".to_owned(),
                6..8 => "direct".to_owned(),
                8 => format!("gateway {}", pick(rng, world.routers)),
                9 => "blackhole".to_owned(),
                10 => "prohibit".to_owned(),
                11 | 12 => "eip".to_owned(),
                _ => "host".to_owned(),
            };
            let line = format!("{} via {target} {}", pick(rng, PREFIXES), pick(rng, SELECTORS));
            policy = policy.try_route(table, &line).unwrap_or(policy);
        }
    }
    if rng.u8(..20) == 0 { policy.inactive() } else { policy }
}

fn packet(rng: &mut Rng, world: &World, pools: &Pools) -> Step {
    let v6 = usize::from(rng.u8(..3) == 0);
    let from_inside = rng.u8(..5) != 0;
    let clients = world.clients[v6];
    let (sources, destinations, devices) = if from_inside {
        (clients, world.servers[v6], world.inside)
    } else {
        (world.servers[v6], clients, world.outside)
    };
    let mut source = ip(pick(rng, sources));
    let mut destination = ip(pick(rng, destinations));
    match rng.u8(..40) {
        0 => source = ip(pick(rng, world.strange[v6])),
        1..4 => destination = ip(pick(rng, world.strange[v6])),
        4..7 => destination = pools.any(rng, v6 == 1),
        7 => source = pools.any(rng, v6 == 1),
        8 => source = ip(pick(rng, world.servers[v6])),
        9..14 => destination = an_eip(rng, world, v6 == 1),
        14 => source = an_eip(rng, world, v6 == 1),
        _ => {}
    }
    // Mostly through the device that the source is behind.
    let behind = world.network.way(source).map(|way| way.device.name);
    let behind = behind.filter(|name| devices.contains(name));
    let device = if rng.u8(..30) == 0 { None } else { behind };
    let device = device.unwrap_or_else(|| pick(rng, devices));
    let (client, server) = (pick(rng, CLIENT_PORTS), pick(rng, SERVER_PORTS));
    let (from, to) = if from_inside { (client, server) } else { (server, client) };
    let packet = Packet::new(source, destination, transport(rng, from, to));
    Step::Packet { device, packet, twists: twists(rng, 4) }
}

/// One that is there, or not.
fn an_eip(rng: &mut Rng, world: &World, v6: bool) -> IpAddr {
    let eips = world.eips.iter().map(|(address, _)| ip(address));
    pick(rng, &eips.filter(|address| address.is_ipv6() == v6).collect::<Vec<_>>())
}

fn transport(rng: &mut Rng, source: u16, destination: u16) -> Transport {
    match rng.u8(..20) {
        0..8 => {
            let flags = if rng.u8(..4) == 0 { pick(rng, &[ACK, SYN | ACK, RST, FIN | ACK, 0]) } else { SYN };
            let (sequence, acknowledgement, window) = (rng.u32(..), rng.u32(..), rng.u16(..));
            Transport::Tcp { source, destination, flags, sequence, acknowledgement, window }
        }
        8..14 => Transport::Udp { source, destination, checksum: true },
        14..17 => Transport::Echo { request: rng.u8(..6) != 0, identifier: source, sequence: rng.u16(..) },
        17 => Transport::Icmp { kind: pick(rng, &[3, 11, 1, 2, 13, 134]), code: rng.u8(..3), rest: [0; 4] },
        18 => Transport::Bare(pick(rng, &[47, 50, 132, 59, 4, 33, 136])),
        _ => Transport::Udp { source: rng.u16(..), destination, checksum: true },
    }
}

/// Somebody on the way could not pass on what came of a step, or so it seems.
fn error(rng: &mut Rng, world: &World, about: usize) -> Step {
    let from = match rng.u8(..20) {
        0 => world.strange,
        1..10 => world.clients,
        _ => world.servers,
    };
    let from = from.map(|from| ip(pick(rng, from)));
    let kind = [pick(rng, &[3, 3, 11, 12, 4, 5]), pick(rng, &[1, 2, 3, 4, 5, 1])];
    let code = rng.u8(..3);
    let quoted = match rng.u8(..8) {
        0 => rng.usize(..80),
        1 => 28,
        2..4 => 48,
        4 => rng.usize(28..120),
        _ => 1200,
    };
    let device = (rng.u8(..20) == 0).then(|| pick(rng, world.outside));
    let error = Error { kind, code, quoted };
    Step::Error { about, device, from, error, twists: twists(rng, 5) }
}

/// None for most packets; about one in `one_in` has some.
fn twists(rng: &mut Rng, one_in: u8) -> Vec<Twist> {
    let mut twists = Vec::new();
    while rng.u8(..one_in) == 0 {
        twists.push(twist(rng));
    }
    twists
}

fn twist(rng: &mut Rng) -> Twist {
    match rng.u8(..20) {
        0 => Twist::Ttl(rng.u8(..4)),
        1 => Twist::Options(vec![1; 4 * rng.usize(1..11)]),
        2 | 3 => {
            let data = (0..6 + 8 * rng.usize(..3)).map(|_| rng.u8(..)).collect();
            Twist::Extension(pick(rng, &[0, 43, 60, 60]), data)
        }
        4 => Twist::Fragment(rng.u16(..2), rng.bool()),
        5 | 17 => Twist::Fragment(0, true),
        18 => Twist::Identification(rng.u32(..6)),
        6 => Twist::Tag(pick(rng, &[0x8100, 0x88a8]), pick(rng, &[0, 0x2000, 0xe000])),
        7 => Twist::Tag(pick(rng, &[0x8100, 0x88a8]), rng.u16(..)),
        8 => Twist::Trailer(rng.usize(1..20)),
        9 => Twist::NoChecksum,
        10 => Twist::Payload(rng.usize(..64)),
        11 => Twist::Payload(rng.usize(1200..1500)),
        12 => Twist::Sender([2, 9, rng.u8(..), 0, 0, 1]),
        13 => Twist::Receiver(pick(rng, &[[0xff; 6], [1, 0, 0x5e, 0, 0, 5], [2, 9, 9, 9, 9, 9]])),
        14 => Twist::Byte(rng.usize(..60), rng.u8(..)),
        15 => Twist::HeaderByte(rng.usize(..40), rng.u8(..)),
        16 => Twist::HeaderByte(pick(rng, &[0, 2, 3, 4, 5, 6, 7, 9]), rng.u8(..)),
        _ => Twist::Cut(rng.usize(14..90)),
    }
}

/// ARP, neighbour discovery, and noise.
fn strange_frame(rng: &mut Rng, world: &World, pools: &Pools) -> Step {
    let device = if rng.bool() { pick(rng, world.inside) } else { pick(rng, world.outside) };
    let v6 = rng.bool();
    let wanted =
        if rng.u8(..4) == 0 { ip(pick(rng, world.strange[usize::from(v6)])) } else { pools.any(rng, v6) };
    let wanted = if rng.u8(..4) == 0 { an_eip(rng, world, v6) } else { wanted };
    let sender = ip(pick(rng, world.servers[usize::from(v6)]));
    let mut frame = match (rng.u8(..8), wanted, sender) {
        (0, ..) => (0..rng.usize(14..120)).map(|_| rng.u8(..)).collect(),
        (_, IpAddr::V4(wanted), IpAddr::V4(address)) => {
            let request = Arp::request((mac(sender), address), wanted);
            [
                Arp { operation: if rng.u8(..6) == 0 { 2 } else { 1 }, ..request }.frame(),
                vec![0; rng.usize(..19)],
            ]
            .concat()
        }
        (_, IpAddr::V6(wanted), IpAddr::V6(address)) => {
            let address = if rng.u8(..4) == 0 { "::".parse().expect("an address") } else { address };
            let mut question = solicitation((mac(sender), address), wanted);
            if rng.u8(..6) == 0 {
                question.ttl = rng.u8(..);
            }
            question.frame()
        }
        _ => vec![0xff; 60],
    };
    if rng.u8(..6) == 0 {
        frame.splice(12..12, [0x81, 0, pick(rng, &[0, 0x20, 0xe0]), pick(rng, &[0, 0, 7])]);
    }
    if rng.u8(..10) == 0 {
        frame.truncate(rng.usize(14..60));
    }
    Step::Frame { device, frame }
}

/// One of the steps before, more often a late one.
fn recent(rng: &mut Rng, numbers: &[usize]) -> usize {
    let back = rng.usize(..numbers.len()).min(rng.usize(..numbers.len()));
    numbers[numbers.len() - 1 - back]
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}
