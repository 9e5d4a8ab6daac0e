//! The user side of maps `WATCHERS`, `WATCHED` and `WATCH_RATES`, and the bits that say that somebody watches.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use gateway_common::{
    DropReason, Verdict,
    config::Config,
    family::{self, MappedAddress},
    parse::{PROTO_ICMP, PROTO_TCP, PROTO_UDP},
    watch::{BY_PORT, BY_PROTO, MAX_SNAPLEN, Told, Watched, Watcher},
};
use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    clock::{self, Clock, Scale},
    lives::Lives,
    numbers::Numbers,
    pins::Pins,
};
use crate::{
    dataplane::watch::{Filter, MOST, Seen, Sight, Watchers},
    model::Proto,
};

/// How long somebody watches who does not say so again.
const LEASE: Duration = Duration::from_secs(10);

/// The configuration in the kernel. Two write it: who changes the policy, and who says that somebody watches.
pub(super) struct Switch(Mutex<Place>);

struct Place {
    map: Array<MapData, Config>,
    eyes: Eyes,
}

/// What somebody watches, and until when if that is not said again.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Eyes {
    packets: bool,
    sessions: bool,
    until: u32,
}

impl Eyes {
    /// The configuration, as those want it who watch.
    fn open(self, config: Config) -> Config {
        let policy = config.policy.with_watched(self.packets).with_sessions_watched(self.sessions);
        Config { policy, watched_until: self.until, ..config }
    }
}

impl Switch {
    pub(super) fn new(map: Array<MapData, Config>) -> Self {
        Self(Mutex::new(Place { map, eyes: Eyes::default() }))
    }

    /// Writes a configuration; what is watched stays as it is.
    pub(super) fn write(&self, config: Config) -> Result<()> {
        let mut place = self.lock();
        let config = place.eyes.open(config);
        place.map.set(0, config, 0).context("cannot write the configuration")
    }

    /// Says what is watched.
    fn turn(&self, eyes: Eyes) -> Result<()> {
        let mut place = self.lock();
        if place.eyes == eyes {
            return Ok(());
        }
        let config = place.map.get(&0, 0).context("cannot read the configuration")?;
        place.map.set(0, eyes.open(config), 0).context("cannot write the configuration")?;
        place.eyes = eyes;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What packets and sessions are shown by.
pub(super) struct BpfWatchers {
    switch: Arc<Switch>,
    watchers: Array<MapData, Watcher>,
    ring: RingBuf<MapData>,
    rates: PerCpuArray<MapData, Told>,
    lives: Lives,
    numbers: Arc<RwLock<Numbers>>,
    clock: Clock,
    scale: Scale,
}

impl BpfWatchers {
    pub(super) fn new(
        pins: &Pins,
        switch: Arc<Switch>,
        numbers: Arc<RwLock<Numbers>>,
        clock: Clock,
        scale: Scale,
    ) -> Result<Self> {
        let (watchers, ring, rates) =
            (pins.open("WATCHERS")?, pins.open("WATCHED")?, pins.open("WATCH_RATES")?);
        let lives = Lives::new(pins)?;
        Ok(Self { switch, watchers, ring, rates, lives, numbers, clock, scale })
    }
}

fn seen(numbers: &Numbers, head: &Watched, bytes: &[u8], time: Timestamp) -> Seen {
    let known = numbers.interfaces.iter().find(|interface| interface.index == head.ingress);
    Seen {
        time,
        ingress: known
            .map_or_else(|| format!("ifindex {}", head.ingress), |interface| interface.name.clone()),
        egress: numbers.slots.get(&head.egress).cloned(),
        verdict: Verdict::from_number(head.verdict).unwrap_or(Verdict::Drop),
        reason: DropReason::from_number(head.reason),
        length: head.length,
        bytes: bytes.to_vec(),
    }
}

impl Watchers for BpfWatchers {
    fn set(&mut self, filters: &[Option<Filter>; MOST]) -> Result<()> {
        let until = self.clock.now()?.saturating_add(self.scale.ticks(LEASE));
        for (number, filter) in (0..).zip(filters) {
            let watcher = filter.as_ref().map(|filter| watcher(filter, until, self.scale));
            let written = self.watchers.set(number, watcher.unwrap_or_default(), 0);
            written.context("cannot write map WATCHERS")?;
        }
        let numbers = self.numbers.read().unwrap_or_else(PoisonError::into_inner);
        self.lives.set(filters, &numbers)?;
        drop(numbers);
        let wanted = || filters.iter().flatten();
        let (packets, sessions) = (wanted().any(Filter::packets), wanted().any(Filter::sessions));
        let until = if packets || sessions { until } else { 0 };
        self.switch.turn(Eyes { packets, sessions, until })
    }

    fn read(&mut self, most: usize, into: &mut Vec<(u32, Sight)>) -> Result<usize> {
        let (now, monotonic) = (Timestamp::now(), clock::monotonic()?);
        let (mut count, mut taken) = (0, Vec::new());
        while count < most
            && let Some(item) = self.ring.next()
        {
            count += 1;
            let Some((head, bytes)) = split(&item) else {
                tracing::warn!(bytes = item.len(), "map WATCHED holds a packet without its head");
                continue;
            };
            taken.push((head, bytes.to_vec()));
        }
        let numbers = self.numbers.read().unwrap_or_else(PoisonError::into_inner);
        for (head, bytes) in taken {
            let age = Duration::from_nanos(monotonic.saturating_sub(head.time));
            let time = now.checked_sub(age).unwrap_or(now);
            into.push((head.watchers, Sight::Packet(Arc::new(seen(&numbers, &head, &bytes, time)))));
        }
        let add = |whom, life| into.push((whom, Sight::Session(life)));
        let lives = self.lives.read(most, &self.clock, &numbers, add)?;
        Ok(count.max(lives))
    }

    fn lost(&self) -> Result<[u64; MOST]> {
        let mut lost = self.lives.lost()?;
        for (number, lost) in (0..).zip(&mut lost) {
            let told = self.rates.get(&number, 0).context("cannot read map WATCH_RATES")?;
            *lost += told.iter().map(|told| told.lost).sum::<u64>();
        }
        Ok(lost)
    }
}

/// Head and bytes of an element of `WATCHED`.
fn split(item: &[u8]) -> Option<(Watched, &[u8])> {
    let (head, bytes) = item.split_at_checked(size_of::<Watched>())?;
    // SAFETY: there are as many bytes as a head has, and any of them are one.
    Some((unsafe { head.as_ptr().cast::<Watched>().read_unaligned() }, bytes))
}

/// A filter as the packet path reads it.
fn watcher(filter: &Filter, until: u32, scale: Scale) -> Watcher {
    let (source, source_mask) = words(filter.from);
    let (destination, destination_mask) = words(filter.to);
    let tick = scale.duration(1).as_nanos().max(1);
    let per_tick = (u128::from(filter.rate) * tick).div_ceil(1_000_000_000);
    Watcher {
        source,
        source_mask,
        destination,
        destination_mask,
        until,
        ifindex: filter.ingress.unwrap_or(0),
        per_tick: u32::try_from(per_tick).unwrap_or(u32::MAX),
        verdicts: filter.verdicts.iter().fold(0, |bits, verdict| bits | 1 << *verdict as u32),
        reasons: filter.reasons.iter().fold(0, |bits, reason| bits | 1 << *reason as u32),
        snaplen: filter.snaplen.min(MAX_SNAPLEN),
        port: filter.dport.unwrap_or(0).to_be_bytes(),
        proto: match filter.proto {
            None => 0,
            Some(Proto::Tcp) => PROTO_TCP,
            Some(Proto::Udp) => PROTO_UDP,
            Some(Proto::Icmp) => PROTO_ICMP,
        },
        flags: if filter.proto.is_some() { BY_PROTO } else { 0 }
            | if filter.dport.is_some() { BY_PORT } else { 0 },
    }
}

/// Address and mask of a prefix; a prefix of IPv4 is asked for in the form that IPv6 has of it.
fn words(prefix: Option<IpNet>) -> (MappedAddress, MappedAddress) {
    let Some(prefix) = prefix else { return ([0; 4], [0; 4]) };
    let length = if prefix.addr().is_ipv4() { 96 } else { 0 } + u32::from(prefix.prefix_len());
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    (family::from_ip(prefix.network()), family::from_ip(IpAddr::V6(mask.into())))
}

#[cfg(test)]
mod tests {
    use gateway_common::watch::Ends;

    use super::*;

    fn ends(source: &str) -> Ends {
        Ends { source: family::from_ip(source.parse().expect("an address")), ..Ends::default() }
    }

    #[test]
    fn a_prefix_is_asked_for_in_its_own_family() {
        for (prefix, inside, outside) in [
            ("10.0.1.0/24", "10.0.1.255", "10.0.2.0"),
            ("0.0.0.0/0", "192.0.2.1", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("2001:db8::1/128", "2001:db8::1", "2001:db8::2"),
        ] {
            let (source, source_mask) = words(Some(prefix.parse().expect("a prefix")));
            let watcher = Watcher { source, source_mask, until: 1, verdicts: 1, ..Watcher::default() };
            assert!(watcher.asks_for(1, 1, &ends(inside)), "{prefix} {inside}");
            assert!(!watcher.asks_for(1, 1, &ends(outside)), "{prefix} {outside}");
        }
    }
}
