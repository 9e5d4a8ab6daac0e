//! Sessions, and the rules by which they get an address and a port.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use gateway_common::{DropReason, counter::SessionClass, tcp::State};
use gateway_user::model::{Capacity, Pool};

use super::{
    policy::Found,
    wire::{Ip, Shown},
};
use crate::packet::Mac;

/// An address and a port, or a query's identifier.
pub type Place = (IpAddr, u16);

/// Where packets of a session go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NextHop {
    pub(super) device: String,
    pub(super) mtu: u16,
    pub(super) mac: Mac,
    /// Whether the MAC address is only what packets have shown, and the host does not know it.
    pub(super) learned: bool,
}

/// One direction of a session.
#[derive(Clone, Debug)]
pub(super) struct Direction {
    /// Generation of the policy that confirmed it; `None`: it has to be confirmed again.
    pub(super) generation: Option<u32>,
    pub(super) next_hop: NextHop,
    /// The route that confirmed it.
    pub(super) route: Found,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// A translated flow.
#[derive(Clone, Debug)]
pub struct Session {
    /// IP protocol number.
    pub proto: u8,
    /// The client's end.
    pub client: Place,
    /// What the server sees.
    pub translated: Place,
    /// The server's end. The port of a query is 0.
    pub server: Place,
    /// Its element is in the table, and no packet may use it any more.
    pub cut: bool,
    /// Whether the server is an inside host, behind an address of the gateway.
    pub(super) turns: bool,
    pub(super) state: State,
    /// See [`gateway_common::tcp::Step::mark`].
    pub(super) mark: u32,
    pub(super) pool: String,
    /// Device that the client is behind.
    pub(super) ingress: String,
    /// From inside, from outside.
    pub(super) directions: [Direction; 2],
}

/// A side of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Inside = 0,
    Outside = 1,
}

/// The table of sessions.
#[derive(Default)]
pub(super) struct Nat {
    sessions: BTreeMap<u64, Session>,
    next: u64,
    inside: HashMap<(u8, Place, Place), u64>,
    outside: HashMap<(u8, Place, Place), u64>,
    /// Ports taken on a pool address, for a protocol and a server.
    taken: HashMap<(u8, Place, IpAddr), BTreeSet<u16>>,
    /// Clients whose first address in a pool is known.
    first: HashMap<(String, Vec<IpAddr>, IpAddr), IpAddr>,
}

impl Session {
    /// The class that its counters belong to.
    pub(super) fn class(&self) -> SessionClass {
        SessionClass::of(self.proto)
    }

    /// Packets and bytes from inside, then from outside.
    pub fn traffic(&self) -> [(u64, u64); 2] {
        [0, 1].map(|side| (self.directions[side].packets, self.directions[side].bytes))
    }
}

impl Nat {
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    /// The session of a packet that comes from this side.
    pub(super) fn find(&self, ip: &Ip, side: Side) -> Option<u64> {
        let Shown { proto, ports } = ip.flow()?;
        self.find_flow(proto, (ip.source, ports.0), (ip.destination, ports.1), side)
    }

    /// The session of packets from `source` to `destination`.
    pub(super) fn find_flow(&self, proto: u8, source: Place, destination: Place, side: Side) -> Option<u64> {
        match side {
            Side::Inside => self.inside.get(&(proto, source, destination)),
            Side::Outside => self.outside.get(&(proto, destination, source)),
        }
        .copied()
    }

    pub(super) fn session(&self, id: u64) -> &Session {
        &self.sessions[&id]
    }

    pub(super) fn session_mut(&mut self, id: u64) -> &mut Session {
        self.sessions.get_mut(&id).expect("ids are those of sessions")
    }

    /// Removes those that were cut.
    pub(super) fn sweep(&mut self) -> Vec<Session> {
        let cut: Vec<u64> =
            self.sessions.iter().filter(|(_, session)| session.cut).map(|(id, _)| *id).collect();
        cut.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// What a new flow may get, or why nothing.
    pub(super) fn admit(&self, pool: &Pool, ip: &Ip, capacity: &Capacity) -> Result<(), DropReason> {
        let half_open = self.sessions.values().filter(|session| session.state.is_half_open()).count();
        if ip.kind.is_syn() && half_open >= capacity.half_open() as usize {
            return Err(DropReason::SessionTableFull);
        }
        let server = (ip.destination, ip.ports.1);
        if !of_family(pool, ip).any(|address| self.has_room(pool, ip.proto, server, address)) {
            return Err(DropReason::PoolExhausted);
        }
        let sessions = self.sessions.values().filter(|session| session.client.0.is_ipv4() == ip.is_v4());
        if sessions.count() >= capacity.sessions as usize {
            return Err(DropReason::SessionTableFull);
        }
        Ok(())
    }

    /// Adds a session on `chosen`, the address and port that the programs chose.
    pub(super) fn open(
        &mut self,
        pool: &Pool,
        ip: &Ip,
        chosen: Place,
        ingress: &str,
        directions: [Direction; 2],
    ) -> Result<u64, String> {
        let client = (ip.source, ip.ports.0);
        let server = (ip.destination, ip.ports.1);
        self.check(pool, ip, chosen)?;
        let id = self.next;
        self.next += 1;
        self.inside.insert((ip.proto, client, server), id);
        self.outside.insert((ip.proto, chosen, server), id);
        self.taken.entry((ip.proto, server, chosen.0)).or_default().insert(chosen.1);
        let session = Session {
            proto: ip.proto,
            client,
            translated: chosen,
            server,
            cut: false,
            turns: false,
            state: State::Established,
            mark: 0,
            pool: pool.name.clone(),
            ingress: ingress.to_owned(),
            directions,
        };
        self.sessions.insert(id, session);
        Ok(id)
    }

    /// Whether a choice is legal.
    ///
    /// A client's first address is a choice too, made once. It gets another one only where its first has no
    /// port left.
    fn check(&mut self, pool: &Pool, ip: &Ip, chosen: Place) -> Result<(), String> {
        let (own, server) = (ip.ports.0, (ip.destination, ip.ports.1));
        let addresses: Vec<IpAddr> = of_family(pool, ip).collect();
        let place = format!("{} port {}", chosen.0, chosen.1);
        if !addresses.contains(&chosen.0) {
            return Err(format!("{place} is not of pool {}", pool.name));
        }
        if !pool.ports.contains(chosen.1) {
            return Err(format!("{place} is not in the ports {} of the pool", pool.ports));
        }
        if self.is_taken(ip.proto, server, chosen) {
            return Err(format!("{place} is taken for {} port {}", server.0, server.1));
        }
        let nobody = addresses.iter().all(|address| self.count(pool, ip.proto, server, *address) == 0);
        // Another list of addresses is another choice.
        let key = (pool.name.clone(), pool.addresses.clone(), ip.source);
        let Some(first) = self.first.get(&key).copied() else {
            if nobody {
                self.first.insert(key, chosen.0);
                return own_port(pool, own, chosen);
            }
            return Ok(());
        };
        if !self.is_taken(ip.proto, server, (first, own)) && pool.ports.contains(own) {
            return if chosen == (first, own) {
                Ok(())
            } else {
                Err(format!("{place} is given, and {first} port {own} is free"))
            };
        }
        if chosen.0 == first || !self.has_room(pool, ip.proto, server, first) {
            Ok(())
        } else {
            Err(format!("{place} is given, and the client's first address {first} has room"))
        }
    }

    fn has_room(&self, pool: &Pool, proto: u8, server: Place, address: IpAddr) -> bool {
        self.count(pool, proto, server, address) < pool.ports.count() as usize
    }

    /// How many of the pool's ports are taken on this address.
    fn count(&self, pool: &Pool, proto: u8, server: Place, address: IpAddr) -> usize {
        let taken = self.taken.get(&(proto, server, address));
        taken.map_or(0, |ports| ports.range(pool.ports.low..=pool.ports.high).count())
    }

    fn is_taken(&self, proto: u8, server: Place, place: Place) -> bool {
        self.taken.get(&(proto, server, place.0)).is_some_and(|ports| ports.contains(&place.1))
    }

    fn remove(&mut self, id: u64) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        let Session { proto, client, translated, server, .. } = session;
        self.inside.remove(&(proto, client, server));
        self.outside.remove(&(proto, translated, server));
        if let Some(ports) = self.taken.get_mut(&(proto, server, translated.0)) {
            ports.remove(&translated.1);
        }
        Some(session)
    }
}

/// The addresses of a pool that a packet can get.
fn of_family(pool: &Pool, ip: &Ip) -> impl Iterator<Item = IpAddr> {
    let v4 = ip.is_v4();
    pool.addresses.iter().copied().filter(move |address| address.is_ipv4() == v4)
}

fn own_port(pool: &Pool, own: u16, chosen: Place) -> Result<(), String> {
    if pool.ports.contains(own) && chosen.1 != own {
        return Err(format!("port {} is given, and the client's own port {own} is free", chosen.1));
    }
    Ok(())
}
