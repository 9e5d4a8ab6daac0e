//! The reference: a small router and NAT in plain Rust.
//!
//! It is written from the rules of the gateway and shares no code with the packet path but the table of TCP's
//! states, which has tests of its own: it parses on its own, looks routes up by going through all of them, and
//! computes every checksum anew. What the programs are free to choose, the address and port of a session, it
//! reads from their output and checks that the choice was legal. Everything else must be as it says.

mod eip;
mod fragment;
mod hairpin;
mod nat;
mod neighbor;
mod policy;
mod refusal;
mod related;
mod way;
mod wire;

use std::{collections::HashMap, net::IpAddr};

use gateway_common::{
    DropReason, Verdict,
    parse::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN},
    tcp::{self, State},
};
use gateway_user::model::{Pool, Snapshot, Target};

use crate::{
    counters::{self, Counters},
    network::{Device, Network},
    packet::Mac,
};
use fragment::Datagrams;
use hairpin::turn;
use nat::{Direction, Nat, NextHop, Side};
use neighbor::Discovery;
use policy::{Found, Question};
use way::faces;
use wire::{Fragment, Ip, Kind, Rewrite};

pub use nat::{Place, Session};

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// Why it is dropped.
    pub reason: Option<DropReason>,
    /// Device it leaves through.
    pub egress: Option<String>,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// What the sender of a dropped packet is told, unless too many have been told too much already.
    pub answer: Option<Vec<u8>>,
}

/// The gateway as it should be.
pub struct Model {
    network: Network,
    state: Snapshot,
    /// Moves with every change of the state; sessions remember the one they were confirmed in.
    generation: u32,
    nat: Nat,
    datagrams: Datagrams,
    /// Neighbours that the host does not know, by their address: where their packets came from.
    learned: HashMap<IpAddr, (String, Mac)>,
    counters: Counters,
}

/// A frame on its way through the checklist.
struct Arrival<'a> {
    frame: &'a [u8],
    ingress: Device,
    /// Length of the frame as it arrived.
    length: usize,
    /// What the programs sent on or back, if they did.
    output: Option<&'a [u8]>,
    /// Where the programs have the session of a flow, for one whose packet they did not send on.
    places: &'a dyn Fn(u8, Place, Place) -> Option<Place>,
}

/// What becomes of a packet that is not dropped.
enum Action {
    /// The host's own stack gets it.
    Pass,
    /// An answer goes back where it came from.
    Answer(Vec<u8>),
    /// It goes on.
    Send { verdict: Verdict, egress: String, frame: Vec<u8> },
}

/// Why the checklist ends early.
enum Stop {
    /// The packet is dropped.
    Drop(DropReason),
    /// The packet is too large for this MTU.
    TooLarge(u16),
    /// The programs chose what they may not choose.
    Illegal(String),
}

type Step<T> = Result<T, Stop>;

impl From<DropReason> for Stop {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

impl Model {
    /// A gateway in this network, with this state and no sessions.
    pub fn new(network: Network, state: Snapshot) -> Self {
        let (nat, learned, counters) = (Nat::default(), HashMap::new(), Counters::default());
        let datagrams = Datagrams::default();
        Self { network, state, generation: 1, nat, datagrams, learned, counters }
    }

    /// Changes the state.
    pub fn apply(&mut self, state: Snapshot) {
        self.state = state;
        self.generation += 1;
    }

    /// Removes the sessions that were cut.
    pub fn sweep(&mut self) {
        for session in self.nat.sweep() {
            let end = if session.state.is_closed() { "closed" } else { "killed" };
            self.counters.count(format!("sessions {} {end}", session.class().name()), 1);
            self.count_pool(&session, "closed");
        }
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The sessions there are, those that were cut included.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.nat.sessions()
    }

    /// Decides about a frame that came in through `ingress`. `output` is what the programs sent on or back, if
    /// they did; `places` tells what they have given the flow of a protocol between a client and a server.
    ///
    /// # Errors
    /// If they chose an address or a port that they may not choose.
    pub fn packet(
        &mut self,
        ingress: &str,
        frame: &[u8],
        output: Option<&[u8]>,
        places: &dyn Fn(u8, Place, Place) -> Option<Place>,
    ) -> Result<Decision, String> {
        let ingress_device = self.network.find(ingress).clone();
        let arrival = Arrival { frame, ingress: ingress_device, length: frame.len(), output, places };
        let unchanged =
            |verdict, reason| Decision { verdict, reason, egress: None, frame: frame.to_vec(), answer: None };
        let decision = match self.path(&arrival) {
            Ok(Action::Pass) => unchanged(Verdict::Host, None),
            Ok(Action::Answer(answer)) => {
                let egress = Some(ingress.to_owned());
                Decision { egress, frame: answer, ..unchanged(Verdict::Host, None) }
            }
            Ok(Action::Send { verdict, egress, frame }) => {
                Decision { egress: Some(egress), frame, ..unchanged(verdict, None) }
            }
            Err(Stop::Drop(reason)) => {
                let answer = self.answer(&arrival, reason, 0);
                Decision { answer, ..unchanged(Verdict::Drop, Some(reason)) }
            }
            Err(Stop::TooLarge(mtu)) => {
                let answer = self.answer(&arrival, DropReason::MtuExceeded, mtu);
                Decision { answer, ..unchanged(Verdict::Drop, Some(DropReason::MtuExceeded)) }
            }
            Err(Stop::Illegal(why)) => return Err(why),
        };
        let cell = counters::traffic(ingress, decision.egress.as_deref(), decision.verdict);
        self.counters.packet(cell, frame.len());
        if let Some(reason) = decision.reason {
            self.counters.packet(counters::drops(reason), frame.len());
        }
        Ok(decision)
    }

    /// What the sender of a dropped packet is told.
    fn answer(&self, arrival: &Arrival<'_>, reason: DropReason, mtu: u16) -> Option<Vec<u8>> {
        let is_outside = |destination| {
            self.side(&arrival.ingress, destination) == Side::Outside || self.is_eip(destination)
        };
        refusal::answer(arrival.frame, &arrival.ingress, reason, mtu, is_outside)
    }

    /// The checklist.
    fn path(&mut self, arrival: &Arrival<'_>) -> Step<Action> {
        let Arrival { frame, ingress, .. } = arrival;
        if !self.state.active {
            return Ok(Action::Pass);
        }
        let link = wire::link(frame).ok_or(DropReason::Truncated)?;
        if link.vlan {
            return Ok(Action::Pass);
        }
        let ip = match link.ethertype {
            ETHERTYPE_ARP => {
                let answer = neighbor::arp(frame, link.network, ingress, |wanted| self.answers_for(wanted));
                return Ok(answer.map_or(Action::Pass, Action::Answer));
            }
            ETHERTYPE_IPV4 => wire::ipv4(frame, link.network)?,
            ETHERTYPE_IPV6 => wire::ipv6(frame, link.network)?,
            // More tags than are looked through: the host would take them all off, and forward.
            ETHERTYPE_VLAN | ETHERTYPE_QINQ => return Err(DropReason::Malformed.into()),
            _ => return Ok(Action::Pass),
        };
        match neighbor::discovery(frame, &ip, ingress, |wanted| self.answers_for(wanted)) {
            Discovery::No => {}
            Discovery::Foreign => return Ok(Action::Pass),
            Discovery::Answer(answer) => return Ok(Action::Answer(answer)),
        }
        // What is for another station is not forwarded (RFC 1812 5.3.4).
        if link.receiver != ingress.mac() || wire::is_group(ip.destination) {
            return Ok(Action::Pass);
        }
        if wire::is_martian(&ip) {
            // Neighbours speak to the host from addresses that nobody forwards.
            let local = self.network.is_local(ip.destination);
            return if local { Ok(Action::Pass) } else { Err(DropReason::Malformed.into()) };
        }
        let side = self.side(ingress, ip.destination);
        if let Some(action) = self.related(arrival, &ip, side, false)? {
            return Ok(action);
        }
        let ip = self.datagrams.complete(ip, side)?;
        let session = self.nat.find(&ip, side);
        if let Some(id) = session.filter(|id| self.nat.session(*id).turns) {
            return self.of_hairpin(arrival, &ip, side, id);
        }
        match (session.filter(|id| !self.nat.session(*id).cut), side) {
            (Some(id), _) => self.established(arrival, &ip, side, id),
            (None, Side::Inside) => self.inside(arrival, &ip, session.is_some()),
            (None, Side::Outside) => self.outside(arrival, &ip),
        }
    }

    /// A packet of a session.
    fn established(&mut self, arrival: &Arrival<'_>, ip: &Ip, side: Side, id: u64) -> Step<Action> {
        let session = self.nat.session(id);
        let generation = session.directions[side as usize].generation;
        let moved = side == Side::Inside && session.ingress != arrival.ingress.name;
        if moved || session.turns || generation != Some(self.generation) {
            self.confirm(arrival, ip, side, id)?;
        }
        let session = self.nat.session(id).clone();
        let Direction { next_hop, route, packets, .. } = &session.directions[side as usize];
        self.count_route(route, arrival);
        self.datagrams.teach(ip, side)?;
        fits(ip, next_hop)?;
        let answered = match ip.kind {
            Kind::Tcp(segment) => {
                // No packet of the model has a timestamp, and none comes so late that all is forgotten.
                if side == Side::Inside && !tcp::may_pass(session.state, session.mark, 0, false, &segment) {
                    return Err(DropReason::NoSession.into());
                }
                let step = tcp::step(session.state, session.mark, side as u8, &segment);
                let step = step.ok_or(DropReason::NoSession)?;
                let moved = self.nat.session_mut(id);
                (moved.state, moved.mark) = (step.state, step.mark);
                if session.state.is_closed() && step.state == State::Opening {
                    self.count_pool(&session, "attempts");
                }
                (session.state, step.state) == (State::Opening, State::Answered)
            }
            Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::OtherIcmp { .. } | Kind::Other => {
                side == Side::Outside && *packets == 0
            }
        };
        if answered {
            self.count_pool(&session, "established");
        }
        self.nat.session_mut(id).seen(side, ip);
        let (verdict, rewrite) = match side {
            Side::Inside => (Verdict::Snat, Rewrite::Source(session.translated.0, session.translated.1)),
            Side::Outside => (Verdict::Reply, Rewrite::Destination(session.client.0, session.client.1)),
        };
        self.send_translated((verdict, side), next_hop, arrival, ip, rewrite)
    }

    /// Looks again at a session that was confirmed under another policy. It stays on the pool it has.
    fn confirm(&mut self, arrival: &Arrival<'_>, ip: &Ip, side: Side, id: u64) -> Step<()> {
        let session = self.nat.session(id).clone();
        if !self.keeps_ends(&session) {
            self.nat.session_mut(id).cut = true;
            return Err(DropReason::NoSession.into());
        }
        let way = match side {
            Side::Inside => {
                self.reverse_path(arrival, ip)?;
                arrival.ingress.name.clone_into(&mut self.nat.session_mut(id).ingress);
                if session.turns { Ok(turn(arrival)) } else { self.towards(session.server.0) }
            }
            Side::Outside => self.towards(session.client.0),
        };
        let next_hop = match way {
            // The session knows a MAC address, whatever has become of the host's knowledge.
            Err(Stop::Drop(DropReason::NeighborUnresolved)) => {
                NextHop { learned: true, ..session.directions[side as usize].next_hop.clone() }
            }
            way => way?,
        };
        let device = match side {
            Side::Inside => arrival.ingress.name.to_owned(),
            Side::Outside => next_hop.device.clone(),
        };
        if session.turns && !faces(self.network.find(&device), Side::Inside) {
            return Err(DropReason::NoSession.into());
        }
        let (client, server, proto) = (session.client.0, session.server.0, session.proto);
        // Also for a later fragment, which does not show it.
        let port = matches!(proto, 6 | 17).then_some(session.server.1);
        let found = policy::route(
            &self.state,
            &self.network,
            Question { device: &device, client, server, proto, port },
        )
        .ok();
        let denied = match found.as_ref().map(|found| &found.target) {
            None => Some(DropReason::NoRoute),
            Some(Target::Blackhole) => Some(DropReason::Blackhole),
            Some(Target::Prohibit) => Some(DropReason::Prohibited),
            Some(
                Target::Direct
                | Target::Pool(_)
                | Target::Eip
                | Target::Gateway { .. }
                | Target::Proxy(_)
                | Target::Host,
            ) => None,
        };
        match (found, denied) {
            (Some(route), None) => {
                let generation = self.unless_learned(&next_hop);
                let direction = &mut self.nat.session_mut(id).directions[side as usize];
                (direction.generation, direction.next_hop, direction.route) = (generation, next_hop, route);
                Ok(())
            }
            (found, reason) => {
                if let Some(found) = &found {
                    self.count_route(found, arrival);
                }
                self.nat.session_mut(id).cut = true;
                Err(reason.unwrap_or(DropReason::NoRoute).into())
            }
        }
    }

    /// A packet from inside without a session that it could use; `cut`: there is one in the way.
    fn inside(&mut self, arrival: &Arrival<'_>, ip: &Ip, cut: bool) -> Step<Action> {
        if self.is_the_hosts(ip.destination) {
            return Ok(Action::Pass);
        }
        if let Some(action) = self.error_of_eip(arrival, ip)? {
            return Ok(action);
        }
        let back = self.reverse_path(arrival, ip)?;
        let question = Question {
            device: arrival.ingress.name,
            client: ip.source,
            server: ip.destination,
            proto: ip.proto,
            port: ip.selectable_ports().map(|(_, destination)| destination),
        };
        let found = policy::route(&self.state, &self.network, question)?;
        self.count_route(&found, arrival);
        match &found.target {
            Target::Blackhole => Err(DropReason::Blackhole.into()),
            Target::Prohibit => Err(DropReason::Prohibited.into()),
            Target::Host => Ok(Action::Pass),
            Target::Proxy(proxy) => unreachable!("the model knows no proxy {proxy}"),
            Target::Eip => self.by_eip(arrival, ip),
            // For another inside host, who would answer from its own address.
            Target::Direct | Target::Gateway { .. } if self.is_own(ip.destination) => {
                Err(DropReason::NoSession.into())
            }
            // No pool of the model lets in whom its clients have not called.
            Target::Pool(_) if self.is_pool_address(ip.destination) => Err(DropReason::NoSession.into()),
            Target::Direct => {
                let next_hop = self.towards(ip.destination)?;
                if found.system && !faces(self.network.find(&next_hop.device), Side::Inside) {
                    return Err(DropReason::NoRoute.into());
                }
                fits(ip, &next_hop)?;
                Ok(self.send(Verdict::Direct, &next_hop, arrival, ip, (Rewrite::Nothing, None)))
            }
            Target::Gateway { address, dev } => {
                let next_hop = self.router(*address, dev.as_deref())?;
                fits(ip, &next_hop)?;
                Ok(self.send(Verdict::Gateway, &next_hop, arrival, ip, (Rewrite::Nothing, None)))
            }
            Target::Pool(pool) => {
                may_open(ip)?;
                let turns = self.is_eip(ip.destination);
                let forth = if turns { turn(arrival) } else { self.towards(ip.destination)? };
                if cut {
                    return Err(DropReason::NoSession.into());
                }
                self.datagrams.teach(ip, Side::Inside)?;
                fits(ip, &forth)?;
                let pool = self.state.pools[pool].clone();
                let action = self.open(arrival, ip, &pool, &found, [forth, back])?;
                if turns { self.inward(arrival, action) } else { Ok(action) }
            }
        }
    }

    /// Opens a session; `next_hops` are the way out and the way back.
    fn open(
        &mut self,
        arrival: &Arrival<'_>,
        ip: &Ip,
        pool: &Pool,
        found: &Found,
        next_hops: [NextHop; 2],
    ) -> Step<Action> {
        if let Err(reason) = self.nat.admit(pool, ip, &self.state.capacity) {
            if reason == DropReason::PoolExhausted {
                // On which of its addresses is the choice of the programs.
                self.counters.count(format!("pool {} attempts", pool.name), 1);
                self.counters.count(format!("pool {} allocation_errors", pool.name), 1);
            }
            return Err(reason.into());
        }
        let [forth, back] = next_hops;
        let generations = (Some(self.generation), self.unless_learned(&back));
        let direction = |(generation, next_hop)| {
            let route = found.clone();
            Direction { generation, next_hop, route, packets: 0, bytes: 0 }
        };
        let directions = [(generations.0, forth), (generations.1, back)].map(direction);
        let turns = self.is_eip(ip.destination);
        let given = match arrival.output {
            Some(output) if !turns => chosen(ip, output),
            // What the second half makes of the packet is looked at later.
            _ => (arrival.places)(ip.proto, (ip.source, ip.ports.0), (ip.destination, ip.ports.1)),
        };
        let chosen = given.ok_or_else(|| {
            Stop::Illegal(format!("pool {} has a port free, and the packet got none", pool.name))
        })?;
        let ingress = arrival.ingress.name;
        let id = self.nat.open(pool, ip, chosen, ingress, directions).map_err(Stop::Illegal)?;
        let opened = self.nat.session_mut(id);
        opened.turns = turns;
        opened.seen(Side::Inside, ip);
        if let Kind::Tcp(segment) = ip.kind
            && let Some(step) = tcp::step(State::Refused, 0, Side::Inside as u8, &segment)
        {
            (opened.state, opened.mark) = (step.state, step.mark);
        }
        let session = self.nat.session(id).clone();
        self.counters.count(format!("sessions {} created", session.class().name()), 1);
        self.counters.count(format!("pool {} attempts", pool.name), 1);
        self.count_pool(&session, "opened");
        let next_hop = &session.directions[Side::Inside as usize].next_hop;
        let rewrite = Rewrite::Source(chosen.0, chosen.1);
        self.send_translated((Verdict::Snat, Side::Inside), next_hop, arrival, ip, rewrite)
    }

    /// A packet from outside without a session.
    fn outside(&mut self, arrival: &Arrival<'_>, ip: &Ip) -> Step<Action> {
        if self.is_the_hosts(ip.destination) {
            return Ok(Action::Pass);
        }
        if self.is_pool_address(ip.destination) {
            return Err(match ip.fragment {
                Fragment::Whole | Fragment::First => DropReason::NoSession.into(),
                Fragment::Later => DropReason::FragmentUnmatched.into(),
            });
        }
        if self.is_eip(ip.destination) {
            return self.for_eip(arrival, ip);
        }
        let Some(way) = self.network.way(ip.destination).filter(|way| faces(way.device, Side::Inside)) else {
            return Ok(Action::Pass);
        };
        let next_hop = self.resolved(way)?;
        self.loose_reverse_path(arrival, ip)?;
        // The route by which the inside host answers must not translate.
        let question = Question {
            device: &next_hop.device,
            client: ip.destination,
            server: ip.source,
            proto: ip.proto,
            port: ip.selectable_ports().map(|(source, _)| source),
        };
        let found = policy::route(&self.state, &self.network, question)?;
        match found.target {
            Target::Direct | Target::Gateway { .. } => {
                self.count_route(&found, arrival);
                fits(ip, &next_hop)?;
                Ok(self.send(Verdict::Reply, &next_hop, arrival, ip, (Rewrite::Nothing, None)))
            }
            Target::Pool(_) | Target::Eip => Err(DropReason::NoSession.into()),
            Target::Host => Ok(Action::Pass),
            Target::Blackhole | Target::Prohibit | Target::Proxy(_) => Err(DropReason::NoRoute.into()),
        }
    }

    /// Which side a packet comes from.
    fn side(&self, ingress: &Device, destination: IpAddr) -> Side {
        match (faces(ingress, Side::Inside), faces(ingress, Side::Outside)) {
            (true, true) if self.is_pool_address(destination) || self.is_eip(destination) => Side::Outside,
            (true, _) => Side::Inside,
            (false, _) => Side::Outside,
        }
    }

    /// The generation that confirms a session; none where its way is only what packets have shown: that is
    /// asked for again with the next packet.
    fn unless_learned(&self, next_hop: &NextHop) -> Option<u32> {
        (!next_hop.learned).then_some(self.generation)
    }

    /// Whether the gateway speaks for an address in ARP and neighbour discovery.
    fn answers_for(&self, address: IpAddr) -> bool {
        (self.is_pool_address(address) || self.is_eip(address)) && !self.network.is_local(address)
    }

    fn is_pool_address(&self, address: IpAddr) -> bool {
        self.state.pools.values().any(|pool| pool.addresses.contains(&address))
    }

    /// Whether the session's address still belongs to the session's pool.
    fn is_of_pool(&self, session: &Session) -> bool {
        let pool = self.state.pools.get(&session.pool);
        pool.is_some_and(|pool| pool.addresses.contains(&session.translated.0))
    }

    /// Whether the session's address is still its pool's, and its server on the side where it was.
    fn keeps_ends(&self, session: &Session) -> bool {
        self.is_of_pool(session) && self.is_own(session.server.0) == session.turns
    }

    /// Whether an address stands for inside hosts.
    fn is_own(&self, address: IpAddr) -> bool {
        self.is_pool_address(address) || self.is_eip(address)
    }

    fn is_the_hosts(&self, address: IpAddr) -> bool {
        self.network.is_local(address) || self.network.is_broadcast(address)
    }

    fn send(
        &self,
        verdict: Verdict,
        next_hop: &NextHop,
        arrival: &Arrival<'_>,
        ip: &Ip,
        rewrite: (Rewrite, Option<u32>),
    ) -> Action {
        let from = self.network.find(&next_hop.device).mac();
        let frame = wire::forward(arrival.frame, ip, rewrite, from, next_hop.mac);
        Action::Send { verdict, egress: next_hop.device.clone(), frame }
    }

    fn send_translated(
        &mut self,
        (verdict, side): (Verdict, Side),
        next_hop: &NextHop,
        arrival: &Arrival<'_>,
        ip: &Ip,
        rewrite: Rewrite,
    ) -> Step<Action> {
        let output = arrival.output.and_then(read);
        let identification = self.datagrams.identification(ip, side, output.as_ref())?;
        Ok(self.send(verdict, next_hop, arrival, ip, (rewrite, identification)))
    }

    fn count_pool(&mut self, session: &Session, what: &str) {
        // Of an address that has left its pool, nobody is shown the counters.
        if self.is_of_pool(session) {
            self.counters.count(format!("pool {} {} {what}", session.pool, session.translated.0), 1);
        }
    }

    fn count_route(&mut self, found: &Found, arrival: &Arrival<'_>) {
        self.counters.packet(counters::route(&found.table, &found.key), arrival.length);
        self.counters.packet(counters::table(&found.table, &found.target), arrival.length);
    }
}

impl Arrival<'_> {
    /// The MAC address that the frame came from.
    fn sender(&self) -> Mac {
        self.frame[6..12].try_into().expect("an Ethernet header")
    }
}

impl Session {
    fn seen(&mut self, side: Side, ip: &Ip) {
        let direction = &mut self.directions[side as usize];
        direction.packets += 1;
        direction.bytes += ip.length() as u64;
    }
}

/// Whether the packet may open a session.
fn may_open(ip: &Ip) -> Step<()> {
    let reason = match ip.kind {
        _ if ip.fragment == Fragment::Later => DropReason::FragmentUnmatched,
        Kind::Udp | Kind::EchoRequest => return Ok(()),
        Kind::Tcp { .. } if ip.kind.is_syn() => return Ok(()),
        Kind::Tcp { .. } | Kind::EchoReply | Kind::OtherIcmp { .. } => DropReason::NoSession,
        Kind::Other => DropReason::UnsupportedProtocol,
    };
    Err(reason.into())
}

/// Whether the packet may take this way.
fn fits(ip: &Ip, next_hop: &NextHop) -> Step<()> {
    if ip.ttl <= 1 {
        return Err(DropReason::TtlExceeded.into());
    }
    if ip.length() > usize::from(next_hop.mtu) {
        return Err(Stop::TooLarge(next_hop.mtu));
    }
    Ok(())
}

/// The address and port that the programs gave a new flow; `None`: they sent something else than its packet.
fn chosen(ip: &Ip, output: &[u8]) -> Option<Place> {
    let sent = read(output)?;
    (sent.destination == ip.destination).then_some((sent.source, sent.ports.0))
}

/// The packet that the programs sent.
fn read(output: &[u8]) -> Option<Ip> {
    let link = wire::link(output)?;
    match link.ethertype {
        ETHERTYPE_IPV4 => wire::ipv4(output, link.network).ok(),
        ETHERTYPE_IPV6 => wire::ipv6(output, link.network).ok(),
        _ => None,
    }
}
