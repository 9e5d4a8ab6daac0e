//! The session elements that a packet may meet, and their entry into the shadow's tables.

use std::{
    collections::{HashSet, VecDeque},
    net::IpAddr,
    os::fd::AsFd as _,
};

use anyhow::{Context as _, Result};
use aya::Pod;
use gateway_common::{
    Family, V4, V6,
    config::Config,
    family::{self, MappedAddress},
    mapping,
    parse::{self, Packet},
    pool::Pool,
    proxy,
    quote::{self, Quote},
    session::{SIDE_INSIDE, SIDE_OUTSIDE, Session, Tuple},
    table::{self, Bucket, LANES, SLOTS, Slot},
};

use super::{
    super::{
        numbers::Numbers,
        sys,
        table::{SessionTable, Stored},
    },
    state::{Copies, Live},
};

/// Buckets of the shadow's table of IPv4 sessions.
pub(super) const BUCKETS: u32 = 64;
/// Elements of the shadow's table of IPv6 sessions.
pub(super) const ELEMENTS_V6: u32 = 1_024;
/// Elements that are copied at most; a trial adds a few.
const COPIED: usize = 768;

/// A session element.
type Element<F> = (Tuple<F>, Session<F>);

/// A family, with what a trial needs of it.
pub(super) trait Read: Stored
where
    Tuple<Self>: Pod,
    Session<Self>: Pod,
{
    /// The packet at `network`, if it can be read.
    fn packet(frame: &[u8], network: usize) -> Option<Packet<Self>>;
    /// What an ICMP error quotes between `network` and `end`.
    fn quote(frame: &[u8], network: usize, end: usize) -> Option<Quote<Self>>;
    /// The gateway's session table.
    fn table(live: &Live) -> &SessionTable<Self>;
    /// Makes `elements` all there is in the shadow's table, and leaves room for `room` more. Returns how many there are.
    fn enter(copies: &Copies, config: &Config, elements: &[Element<Self>], room: u32) -> Result<u32>;
}

/// The flow of a packet, as the key of its session has it.
#[derive(Clone, Copy)]
pub(super) struct Shown<F: Family> {
    pub(super) source: F::Address,
    pub(super) destination: F::Address,
    pub(super) source_port: [u8; 2],
    pub(super) destination_port: [u8; 2],
    pub(super) proto: u8,
}

/// Addresses of pools that may serve a flow, and numbers of their pools.
pub(super) struct Pools<F: Family> {
    pub(super) addresses: Vec<(F::Address, Pool)>,
    pub(super) numbers: HashSet<u32>,
}

/// The elements that were found, and the addresses in them.
pub(super) struct Found<F: Family> {
    pub(super) elements: Vec<Element<F>>,
    pub(super) addresses: HashSet<IpAddr>,
}

impl<F: Family> Default for Found<F> {
    fn default() -> Self {
        Self { elements: Vec::new(), addresses: HashSet::new() }
    }
}

impl<F: Family> Shown<F> {
    pub(super) fn of(packet: &Packet<F>) -> Self {
        let transport = &packet.transport_layer;
        Self {
            source: packet.source,
            destination: packet.destination,
            source_port: transport.source_port,
            destination_port: transport.destination_port,
            proto: packet.proto,
        }
    }

    fn tuple(&self, side: u8, origin: u16) -> Tuple<F> {
        Tuple {
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
            proto: self.proto,
            side,
            origin,
        }
    }

    /// The key that answers of the server to `address` and `port` have.
    pub(super) fn answers(&self, address: F::Address, port: [u8; 2], origin: u16) -> Tuple<F> {
        Tuple {
            source: self.destination,
            destination: address,
            source_port: self.destination_port,
            destination_port: port,
            proto: self.proto,
            side: SIDE_OUTSIDE,
            origin,
        }
    }

    /// Keys that the packet may ask the session table for, those of its own session first.
    pub(super) fn keys(&self, pools: &Pools<F>, hosts: &[u16], quote: Option<Quote<F>>) -> Vec<Tuple<F>> {
        let origins = || std::iter::once(0).chain(hosts.iter().map(|host| proxy::origin(*host)));
        let sides = [SIDE_INSIDE, SIDE_OUTSIDE];
        let mut keys = Vec::new();
        for side in sides {
            keys.extend(origins().map(|origin| self.tuple(side, origin)));
            let quoted = quote.map(|quote| quote.answer(side));
            keys.extend(quoted.iter().flat_map(|key| origins().map(|origin| Tuple { origin, ..*key })));
        }
        let proto = self.proto;
        keys.push(mapping::claim_key(self.destination, self.destination_port, proto));
        let pointer = |pool: &u32| mapping::pointer_key(self.source, self.source_port, proto, *pool);
        keys.extend(pools.numbers.iter().map(pointer));
        // What has the port that the flow would like to have, with a pool or at a proxy host.
        keys.extend(pools.addresses.iter().map(|(address, _)| self.answers(*address, self.source_port, 0)));
        let through = |host: &u16| self.answers(self.source, self.source_port, proxy::origin(*host));
        keys.extend(hosts.iter().map(through));
        keys
    }
}

impl<F: Family> Pools<F> {
    pub(super) fn of(live: &Live, numbers: &Numbers) -> Result<Self> {
        let mut pools = Self { addresses: Vec::new(), numbers: HashSet::new() };
        for (element, counted) in &numbers.pool_addresses {
            if counted.address.is_ipv4() == F::IS_V4 {
                let (number, pool) = live.pool_of(*element)?;
                pools.addresses.push((F::unmapped(&family::from_ip(counted.address)), pool));
                pools.numbers.insert(number);
            }
        }
        Ok(pools)
    }
}

impl<F: Stored> Found<F>
where
    Tuple<F>: Pod,
    Session<F>: Pod,
{
    /// Looks for `keys`, and for the keys that what is found leads to: the other half of a session, the mapping that it
    /// may hold, and whoever is behind the address that it is for.
    pub(super) fn of(table: &SessionTable<F>, keys: Vec<Tuple<F>>) -> Result<Self> {
        let mut found = Self::default();
        let mut seen = HashSet::new();
        let mut wanted = VecDeque::from(keys);
        while let Some(key) = wanted.pop_front() {
            if found.elements.len() == COPIED {
                break;
            }
            if !seen.insert(key) {
                continue;
            }
            let Some(session) = table.find(&key)? else { continue };
            found.elements.push((key, session));
            let Session { translated, translated_port, .. } = session;
            found
                .addresses
                .extend([key.source, key.destination, translated].map(|address| ip::<F>(&address)));
            wanted.push_back(key.pair(&session));
            wanted.push_back(mapping::claim_key(translated, translated_port, key.proto));
            if key.side == SIDE_INSIDE {
                let turned = Tuple {
                    source: translated,
                    source_port: translated_port,
                    side: SIDE_OUTSIDE,
                    origin: 0,
                    ..key
                };
                wanted.push_back(turned);
            }
        }
        Ok(found)
    }
}

/// An address as std has it.
pub(super) fn ip<F: Family>(address: &F::Address) -> IpAddr {
    family::to_ip(&F::mapped(address))
}

impl Read for V4 {
    fn packet(frame: &[u8], network: usize) -> Option<Packet<Self>> {
        parse::ipv4(frame, network).ok()
    }

    fn quote(frame: &[u8], network: usize, end: usize) -> Option<Quote<Self>> {
        quote::ipv4(frame, network, end)
    }

    fn table(live: &Live) -> &SessionTable<Self> {
        &live.sessions_v4
    }

    fn enter(copies: &Copies, config: &Config, elements: &[Element<Self>], _: u32) -> Result<u32> {
        // SAFETY: all-zero bytes are a valid `Bucket`, an empty one.
        let empty: Bucket<V4> = unsafe { std::mem::zeroed() };
        let mut buckets = vec![empty; BUCKETS as usize];
        let mut entered = 0;
        for (tuple, session) in elements {
            let place = table::place(tuple.words(), config.secret, BUCKETS);
            let full = buckets[place.first as usize].used as usize == SLOTS;
            let bucket = &mut buckets[if full { place.second } else { place.first } as usize];
            // As in the gateway's own table, no two elements of a bucket have the same tag; what does not fit is left out.
            let taken = table::first_of(table::slots_of(bucket.tags, place.tag)) < SLOTS;
            let mut free = [place.home].into_iter().chain(0..SLOTS).filter(|slot| {
                let tag = bucket.tags[slot / LANES] & table::lane(*slot, u64::from(u16::MAX));
                tag == 0
            });
            let Some(slot) = free.next().filter(|_| !taken) else { continue };
            bucket.tags[slot / LANES] |= table::lane(slot, place.tag);
            bucket.slots[slot] = Slot { tuple: *tuple, session: *session };
            bucket.used += 1;
            if full {
                buckets[place.first as usize].spilled += 1;
            }
            entered += 1;
        }
        let indices: Vec<u32> = (0..BUCKETS).collect();
        let (_, result) = sys::update_batch(copies.sessions_v4.as_fd(), &indices, &buckets);
        result.context("cannot copy IPv4 sessions")?;
        Ok(entered)
    }
}

impl Read for V6 {
    fn packet(frame: &[u8], network: usize) -> Option<Packet<Self>> {
        parse::ipv6(frame, network).ok()
    }

    fn quote(frame: &[u8], network: usize, end: usize) -> Option<Quote<Self>> {
        quote::ipv6(frame, network, end)
    }

    fn table(live: &Live) -> &SessionTable<Self> {
        &live.sessions_v6
    }

    fn enter(copies: &Copies, _: &Config, elements: &[Element<Self>], room: u32) -> Result<u32> {
        let (mut tuples, mut sessions): (Vec<_>, Vec<_>) = elements.iter().copied().unzip();
        // No packet has such keys. They take the room that the gateway's table does not have.
        let fillers = (ELEMENTS_V6 - elements.len() as u32).saturating_sub(room);
        for number in 0..fillers {
            let zero = MappedAddress::default();
            let [p0, p1, ..] = number.to_ne_bytes();
            let (source_port, destination_port) = ([p0, p1], [0; 2]);
            let (proto, side, origin) = (u8::MAX, SIDE_INSIDE, 0);
            tuples.push(Tuple {
                source: zero,
                destination: zero,
                source_port,
                destination_port,
                proto,
                side,
                origin,
            });
            // SAFETY: all-zero bytes are a valid `Session`.
            sessions.push(unsafe { std::mem::zeroed() });
        }
        if !tuples.is_empty() {
            let (_, result) = sys::update_batch(copies.sessions_v6.as_fd(), &tuples, &sessions);
            result.context("cannot copy IPv6 sessions")?;
        }
        // They do not count for the table of IPv4.
        Ok(0)
    }
}
