//! What of the state a packet may meet, copied from the gateway's maps into the shadow's.

use std::{
    collections::HashSet,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, Pod,
    maps::{Array, Map, MapData, PerCpuArray, PerCpuValues},
};
use gateway_common::{
    V4, V6,
    config::Config,
    counter::{SessionClass, SessionCounters},
    eip::EipKey,
    family::{Learned, MappedAddress},
    fragment::{Datagram, Key},
    limit, mapping,
    parse::{self, Flow, Fragment, Packet},
    pool::{Pool, PoolAddress, respread, spread},
    ports::{self, Destination, GROUPS, Ports, WORDS},
    quote::{ICMP_LEN, Quote},
    session::{SIDE_INSIDE, SIDE_OUTSIDE, Session, TCP_ACK, TCP_SYN, Tuple},
    share::{self, Share},
    source::{Charge, LimitKey, Source, SourceLimit},
    table::{Fill, SLOTS},
    tcp,
};

use super::{
    super::{
        numbers::Numbers,
        pins::Pins,
        sys::{self, Cursor},
        table::SessionTable,
    },
    flow::{BUCKETS, Found, Pools, Read, Shown, ip},
    take,
};

/// Elements that one call reads.
const READ: usize = 4_096;

/// The gateway's own maps, which are read only.
pub(in super::super) struct Live {
    config: Array<MapData, Config>,
    fill: Array<MapData, Fill>,
    half_open: Array<MapData, u32>,
    pools: Array<MapData, Pool>,
    pool_addresses: Array<MapData, PoolAddress>,
    counters: PerCpuArray<MapData, SessionCounters>,
    pub(super) sessions_v4: SessionTable<V4>,
    pub(super) sessions_v6: SessionTable<V6>,
    destinations: OwnedFd,
    ports: OwnedFd,
    sources: OwnedFd,
    limits: OwnedFd,
    fragments: OwnedFd,
    learned: OwnedFd,
    stamps: OwnedFd,
    shares: OwnedFd,
    contentions: OwnedFd,
    eips: OwnedFd,
    /// Elements that the table of IPv6 sessions takes.
    capacity_v6: u32,
}

/// The shadow's maps that get copies.
pub(super) struct Copies {
    fill: Array<MapData, Fill>,
    half_open: Array<MapData, u32>,
    refusals: PerCpuArray<MapData, [u32; 2]>,
    counters: PerCpuArray<MapData, SessionCounters>,
    /// Sessions that all trials have opened.
    created: u64,
    pub(super) sessions_v4: OwnedFd,
    pub(super) sessions_v6: OwnedFd,
    destinations: OwnedFd,
    ports: OwnedFd,
    sources: OwnedFd,
    fragments: OwnedFd,
    learned: OwnedFd,
    stamps: OwnedFd,
    shares: OwnedFd,
    contentions: OwnedFd,
}

/// What was copied.
pub(super) struct Copied {
    /// Elements that the table of IPv4 sessions is to take.
    pub(super) elements: u32,
    /// Addresses that routes may be asked about.
    pub(super) addresses: HashSet<IpAddr>,
}

impl Live {
    /// The pinned maps; `sessions` is the capacity of each family.
    pub(in super::super) fn open(pins: &Pins, sessions: u32) -> Result<Self> {
        let open = |name| sys::open_pin(&pins.map(name));
        Ok(Self {
            config: pins.open("CONFIG")?,
            fill: pins.open("TABLE")?,
            half_open: pins.open("HALF_OPEN")?,
            pools: pins.open("POOLS")?,
            pool_addresses: pins.open("POOL_ADDRESSES")?,
            counters: pins.open("SESSION_COUNTERS")?,
            sessions_v4: SessionTable::open(pins)?,
            sessions_v6: SessionTable::open(pins)?,
            destinations: open("DESTINATIONS")?,
            ports: open("PORTS")?,
            sources: open("SOURCES")?,
            limits: open("LIMITS")?,
            fragments: open("FRAGMENTS")?,
            learned: open("LEARNED")?,
            stamps: open("STAMPS")?,
            shares: open("SHARES")?,
            contentions: open("CONTENTIONS")?,
            eips: open("EIPS")?,
            capacity_v6: sessions.saturating_mul(2),
        })
    }

    /// The configuration in force.
    pub(super) fn config(&self) -> Result<Config> {
        self.config.get(&0, 0).context("cannot read the configuration")
    }

    /// The pool that an element of `POOL_ADDRESSES` belongs to, and its number.
    pub(super) fn pool_of(&self, element: u32) -> Result<(u32, Pool)> {
        let number = self.pool_addresses.get(&element, 0).context("cannot read a pool address")?.pool;
        Ok((number, self.pools.get(&number, 0).context("cannot read a pool")?))
    }

    /// The EIP of an inside host.
    fn eip_of<F: Read>(&self, config: &Config, host: &F::Address) -> Result<Option<F::Address>>
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        let key = EipKey::of_host(F::mapped(host), config.policy.eips() as u16);
        let eip = sys::lookup::<_, MappedAddress>(self.eips.as_fd(), &key).context("cannot read map EIPS")?;
        Ok(eip.map(|eip| F::unmapped(&eip)))
    }

    /// Elements that still fit into the tables of IPv4 and IPv6 sessions. That of IPv6 does not say; the counters do.
    fn room(&self, config: &Config) -> Result<[u32; 2]> {
        let elements = self.fill.get(&0, 0).context("cannot read map TABLE")?.elements;
        let mut live = 0u64;
        for class in SessionClass::ALL {
            let counters = self.counters.get(&(*class as u32), 0).context("cannot read SESSION_COUNTERS")?;
            for cpu in counters.iter() {
                live = live.wrapping_add(cpu.created + cpu.mapped);
                live = live.wrapping_sub(cpu.closed + cpu.expired + cpu.killed + cpu.unmapped);
            }
        }
        let elements_v6 = live.saturating_mul(2).saturating_sub(elements.into());
        let room_v6 = u64::from(self.capacity_v6).saturating_sub(elements_v6);
        Ok([config.elements.saturating_sub(elements), u32::try_from(room_v6).unwrap_or(u32::MAX)])
    }
}

impl Copies {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self> {
        let mut descriptor = |name| -> Result<OwnedFd> {
            let map = take(ebpf, name)?;
            let (Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data)) = &map else {
                bail!("map {name} is of another kind")
            };
            Ok(data.fd().as_fd().try_clone_to_owned()?)
        };
        Ok(Self {
            sessions_v4: descriptor("SESSIONS_V4")?,
            sessions_v6: descriptor("SESSIONS_V6")?,
            destinations: descriptor("DESTINATIONS")?,
            ports: descriptor("PORTS")?,
            sources: descriptor("SOURCES")?,
            fragments: descriptor("FRAGMENTS")?,
            learned: descriptor("LEARNED")?,
            stamps: descriptor("STAMPS")?,
            shares: descriptor("SHARES")?,
            contentions: descriptor("CONTENTIONS")?,
            fill: Array::try_from(take(ebpf, "TABLE")?)?,
            half_open: Array::try_from(take(ebpf, "HALF_OPEN")?)?,
            refusals: PerCpuArray::try_from(take(ebpf, "REFUSALS")?)?,
            counters: PerCpuArray::try_from(take(ebpf, "SESSION_COUNTERS")?)?,
            created: 0,
        })
    }

    /// Whether a session was opened since the last call.
    pub(super) fn created(&mut self) -> Result<bool> {
        let mut created = 0;
        for class in SessionClass::ALL {
            let counters = self.counters.get(&(*class as u32), 0)?;
            created += counters.iter().map(|cpu| cpu.created).sum::<u64>();
        }
        Ok(std::mem::replace(&mut self.created, created) != created)
    }

    /// Takes away what the trial before has left, and copies what this frame may meet.
    pub(super) fn prepare(
        &mut self,
        live: &Live,
        config: &Config,
        numbers: &Numbers,
        frame: &[u8],
    ) -> Result<Copied> {
        self.clear().context("cannot clear what a trial has left")?;
        let half_open = live.half_open.get(&0, 0).context("cannot read map HALF_OPEN")?;
        self.half_open.set(0, half_open, 0).context("cannot copy map HALF_OPEN")?;
        copy_all::<MappedAddress, Learned>(&live.learned, &self.learned)?;
        let Some(link) = parse::link(frame) else {
            return self.enter(live, config, Found::<V4>::default());
        };
        match link.ethertype {
            parse::ETHERTYPE_IPV6 => self.prepare_ip::<V6>(live, config, numbers, frame, link.network),
            _ => self.prepare_ip::<V4>(live, config, numbers, frame, link.network),
        }
    }

    fn prepare_ip<F: Read>(
        &mut self,
        live: &Live,
        config: &Config,
        numbers: &Numbers,
        frame: &[u8],
        network: usize,
    ) -> Result<Copied>
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        let Some(packet) = F::packet(frame, network) else {
            return self.enter(live, config, Found::<F>::default());
        };
        let mut shown = Shown::of(&packet);
        if !matches!(packet.fragment, Fragment::Whole) {
            self.copy_datagrams(live, &packet, &mut shown)?;
        }
        self.copy_source(live, config, F::mapped(&packet.source), F::IS_V4)?;
        let pools = Pools::<F>::of(live, numbers)?;
        // As the programs know clients.
        let client = respread(spread(&F::mapped(&packet.source), config.secret));
        self.copy_destinations(live, &pools, &shown, client)?;
        let transport = &packet.transport_layer;
        let hosts: Vec<u16> = numbers.proxy_hosts.keys().map(|host| *host as u16).collect();
        let end = network + usize::from(packet.length);
        let quote = match transport.flow {
            Flow::Icmp => F::quote(frame, packet.transport() + ICMP_LEN, end),
            Flow::Tcp | Flow::Udp | Flow::EchoRequest | Flow::EchoReply | Flow::Other => None,
        };
        let mut keys = shown.keys(&pools, &hosts, quote);
        // A host that has an EIP answers the client of a pool under that, and so it does in what it quotes.
        let source = live.eip_of::<F>(config, &packet.source)?;
        let quoted = match quote {
            Some(quote) => live
                .eip_of::<F>(config, &quote.destination)?
                .map(|destination| Quote { destination, ..quote }),
            None => None,
        };
        if source.is_some() || quoted.is_some() {
            let shown = Shown { source: source.unwrap_or(shown.source), ..shown };
            keys.extend(shown.keys(&pools, &hosts, quoted.or(quote)));
        }
        let mut found = Found::of(F::table(live), keys)?;
        let is_syn = matches!(transport.flow, Flow::Tcp) && transport.detail & (TCP_SYN | TCP_ACK) == TCP_SYN;
        if is_syn && !found.elements.is_empty() {
            // The timestamps of the connections that it may follow; under other tuples there are none.
            for (tuple, _) in &found.elements {
                copy::<u32, u64>(&live.stamps, &self.stamps, &tcp::stamp(tuple, config.secret).0)?;
            }
        }
        found.addresses.extend([ip::<F>(&packet.source), ip::<F>(&packet.destination)]);
        if let Some(quote) = quote {
            found.addresses.extend([ip::<F>(&quote.source), ip::<F>(&quote.destination)]);
        }
        self.enter(live, config, found)
    }

    /// Enters sessions, and leaves as much room beside them as the gateway has.
    fn enter<F: Read>(&mut self, live: &Live, config: &Config, found: Found<F>) -> Result<Copied>
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        let [room, room_v6] = live.room(config)?;
        let entered = F::enter(self, config, &found.elements, room_v6)?;
        let fill = Fill { elements: entered, ..Fill::default() };
        self.fill.set(0, fill, 0).context("cannot write map TABLE")?;
        let elements = entered + room.min(BUCKETS * SLOTS as u32);
        Ok(Copied { elements, addresses: found.addresses })
    }

    /// Copies what is known of the datagram that a fragment is of; a later one gets its ports from there.
    fn copy_datagrams<F: Read>(&self, live: &Live, packet: &Packet<F>, shown: &mut Shown<F>) -> Result<()>
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        for side in [SIDE_INSIDE, SIDE_OUTSIDE] {
            let key = Key {
                source: F::mapped(&packet.source),
                destination: F::mapped(&packet.destination),
                identification: packet.part.identification,
                proto: if F::IS_V4 { packet.proto } else { 0 },
                side,
                reserved: [0; 2],
            };
            let known: Option<Datagram> = copy(&live.fragments, &self.fragments, &key)?;
            if let Some(known) = known.filter(|_| matches!(packet.fragment, Fragment::Later)) {
                shown.source_port = known.source_port;
                shown.destination_port = known.destination_port;
                shown.proto = known.proto;
            }
        }
        Ok(())
    }

    /// Copies the bucket of a client under its limit.
    fn copy_source(&self, live: &Live, config: &Config, client: MappedAddress, ipv4: bool) -> Result<()> {
        let limits = config.policy.limits();
        if limits == 0 {
            return Ok(());
        }
        let source = LimitKey { realm: LimitKey::realm(limits - 1, ipv4), reserved: 0, source: client };
        let key = aya::maps::lpm_trie::Key::new(64 + 128, source);
        let limit: Option<SourceLimit> =
            sys::lookup(live.limits.as_fd(), &key).context("cannot read the limits of sources")?;
        if let Some(limit) = limit.filter(|limit| limit.charge != 0) {
            let source = Source::of(Charge::from_number(limit.charge as u16), client);
            copy::<_, limit::Bucket>(&live.sources, &self.sources, &source)?;
        }
        Ok(())
    }

    /// Copies the buckets and ports of all pool addresses towards a destination, and those of mappings.
    fn copy_destinations<F: Read>(
        &self,
        live: &Live,
        pools: &Pools<F>,
        shown: &Shown<F>,
        client: u32,
    ) -> Result<()>
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        for (address, pool) in &pools.addresses {
            for (server_address, port) in
                [(shown.destination, shown.destination_port), (F::Address::default(), [0; 2])]
            {
                let server = F::mapped(&server_address);
                let towards = Destination {
                    address: F::mapped(address),
                    server,
                    port,
                    proto: shown.proto,
                    reserved: 0,
                };
                let (contention, share) =
                    (share::contention(towards.tag()), share::share(towards.tag(), client));
                copy::<u32, u32>(&live.contentions, &self.contentions, &contention)?;
                copy::<u32, Share>(&live.shares, &self.shares, &share)?;
                let bucket: Option<limit::Bucket> = copy(&live.destinations, &self.destinations, &towards)?;
                let Some(bucket) = bucket else { continue };
                let known: Option<Ports> = copy(&live.ports, &self.ports, &towards)?;
                // The sessions that have the ports are not copied. Where there may be no free one, the trial must
                // not find one.
                let room = u32::from(pool.port_high) + 1 - u32::from(pool.port_low);
                if bucket.count() >= room {
                    let key = |port: u16| {
                        if F::is_zero(&server_address) {
                            mapping::claim_key(*address, port.to_be_bytes(), shown.proto)
                        } else {
                            shown.answers(*address, port.to_be_bytes(), 0)
                        }
                    };
                    let used = used(F::table(live), pool, known.as_ref(), key)?;
                    sys::update(self.ports.as_fd(), &towards, &used).context("cannot write map PORTS")?;
                }
            }
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        clear::<Tuple<V6>>(&self.sessions_v6)?;
        clear::<Destination>(&self.destinations)?;
        clear::<Destination>(&self.ports)?;
        clear::<Source>(&self.sources)?;
        clear::<Key>(&self.fragments)?;
        clear::<MappedAddress>(&self.learned)?;
        let mut refusals = self.refusals.get(&0, 0)?.to_vec();
        refusals.fill([0; 2]);
        self.refusals.set(0, PerCpuValues::try_from(refusals)?, 0)?;
        Ok(())
    }
}

/// The ports of a pool's address that are used, by the session table: what is `known` need not be asked for.
fn used<F: Read>(
    table: &SessionTable<F>,
    pool: &Pool,
    known: Option<&Ports>,
    key: impl Fn(u16) -> Tuple<F>,
) -> Result<Ports>
where
    Tuple<F>: Pod,
    Session<F>: Pod,
{
    let mut ports = Ports { state: ports::LIVE, threshold: 0, full: [0; GROUPS], used: [0; WORDS] };
    if let Some(known) = known {
        ports.used = known.used;
    }
    for port in pool.port_low..=pool.port_high {
        let (word, bit) = (usize::from(port) / 64, 1u64 << (port % 64));
        if ports.used[word] & bit == 0 && table.find(&key(port))?.is_some() {
            ports.used[word] |= bit;
        }
    }
    for word in (0..WORDS).filter(|word| ports.used[*word] == u64::MAX) {
        ports.full[word / 64] |= 1 << (word % 64);
    }
    Ok(ports)
}

/// Copies an element, if there is one.
fn copy<K: Pod, V: Pod>(from: &OwnedFd, to: &OwnedFd, key: &K) -> Result<Option<V>> {
    let value: Option<V> = sys::lookup(from.as_fd(), key).context("cannot read an element")?;
    if let Some(value) = &value {
        sys::update(to.as_fd(), key, value).context("cannot copy an element")?;
    }
    Ok(value)
}

/// Copies all elements.
fn copy_all<K: Pod, V: Pod>(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let mut cursor = Cursor::default();
    let (mut keys, mut values) = (Vec::<K>::new(), Vec::<V>::new());
    loop {
        let more = sys::lookup_batch(from.as_fd(), &mut cursor, &mut keys, &mut values, READ)
            .context("cannot read a map")?;
        if !keys.is_empty() {
            sys::update_batch(to.as_fd(), &keys, &values).1.context("cannot copy a map")?;
        }
        if !more {
            return Ok(());
        }
    }
}

/// Removes all elements.
fn clear<K: Pod>(map: &OwnedFd) -> Result<()> {
    let mut next = sys::next_key::<K>(map.as_fd(), None)?;
    while let Some(key) = next {
        // Before it is gone: from the beginning, the kernel would look through all that is empty by then.
        next = sys::next_key(map.as_fd(), Some(&key))?;
        match sys::delete(map.as_fd(), &key) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
