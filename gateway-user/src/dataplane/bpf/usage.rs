//! Maps `GROUPS`, `USAGE` and `USAGE_TOTALS`: what the sessions between two groups have carried.
//!
//! What is told of a pair of groups is the sum of what removed sessions have carried, which the program `sweep` counts,
//! and of what those have carried that are there, which a walk through the tables adds up, once a second. Sessions are
//! removed while it walks. So what was removed by the beginning of the walk is added: a session that was met and then
//! removed counts once, and one that was removed before it was met counts with the next walk. Nothing counts twice. What
//! is told never goes back, also under the next daemon: `USAGE_TOTALS` keeps it.
//!
//! When groups change, a walk tells all that the groups before have carried. From there every pair goes on, a new group
//! from nothing: a base, which a walk after the change finds, is added to all sums from then on. What packets carry between
//! the two walks, milliseconds, counts for nobody. A daemon that dies in between leaves the second walk to the next one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Pod,
    maps::{Array, LpmTrie, MapData, lpm_trie::Key},
};
use gateway_common::{
    Family,
    family::{self, MappedAddress},
    mapping,
    session::{Session, Tuple},
    usage::{self, Group, GroupKey, MAX_GROUPS, OTHER, PAIRS, PROXY, Total, Usage},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::{counters::group_owner, pins::Pins, sys};
use crate::{
    dataplane::UsageStats,
    model::{self, group},
};

/// Time between two walks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Bits of a key before those of an IPv6 prefix, and of an IPv4 one.
const REALM_BITS: u32 = 64;
const MAPPED_BITS: u32 = REALM_BITS + 96;

/// What is told, for who asks.
#[derive(Default)]
pub(super) struct Told(Mutex<Arc<[UsageStats]>>);

impl Told {
    pub(super) fn read(&self) -> Arc<[UsageStats]> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, stats: Arc<[UsageStats]>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }
}

/// A prefix length and a key.
type Place = (u32, GroupKey);

/// Adds up what sessions have carried.
pub(super) struct Meter {
    trie: LpmTrie<MapData, GroupKey, Group>,
    removed: OwnedFd,
    kept: Array<MapData, Total>,
    /// What the trie holds.
    written: HashMap<Place, Group>,
    prefixes: Prefixes,
    /// Groups by number.
    names: BTreeMap<u32, Arc<str>>,
    /// As `USAGE_TOTALS` has them.
    totals: Vec<Total>,
    walk: Option<Walk>,
    /// When the walk began that goes on or was the last; `None`: one is due.
    began: Option<Instant>,
    told: Arc<Told>,
}

/// A walk through the session tables.
struct Walk {
    /// What removed sessions had carried when it began.
    removed: Vec<Usage>,
    /// What those have carried that were met.
    met: Vec<Usage>,
}

/// Numbers of groups by prefix.
#[derive(Default)]
struct Prefixes {
    v4: PrefixMap<Ipv4Net, u32>,
    v6: PrefixMap<Ipv6Net, u32>,
}

impl Meter {
    /// Takes the maps over, with what they hold.
    pub(super) fn new(pins: &Pins, told: Arc<Told>) -> Result<Self> {
        let trie: LpmTrie<MapData, GroupKey, Group> = pins.open("GROUPS")?;
        let mut written = HashMap::new();
        for element in &trie {
            let (key, value) = element.context("cannot read map GROUPS")?;
            written.insert((key.prefix_len(), key.data()), value);
        }
        let kept: Array<MapData, Total> = pins.open("USAGE_TOTALS")?;
        let totals = kept.iter().collect::<Result<_, _>>().context("cannot read map USAGE_TOTALS")?;
        let removed = sys::open_pin(&pins.map("USAGE"))?;
        let prefixes = Prefixes::of(&written);
        let (names, walk, began) = (names_of(BTreeMap::new()), None, None);
        Ok(Self { trie, removed, kept, written, prefixes, names, totals, walk, began, told })
    }

    /// Whether there are groups.
    pub(super) fn is_on(&self) -> bool {
        !self.written.is_empty()
    }

    /// Has the next walk begin as soon as it can.
    pub(super) fn hurry(&mut self) {
        self.began = None;
    }

    /// Whether these groups are in force.
    pub(super) fn has(&self, groups: &BTreeMap<String, model::Group>) -> Result<bool> {
        let numbers = self.numbers(groups)?;
        Ok(elements(groups, &numbers).collect::<HashMap<_, _>>() == self.written)
    }

    /// Puts other groups in force. No session may be removed meanwhile.
    pub(super) fn set(&mut self, groups: &BTreeMap<String, model::Group>) -> Result<()> {
        self.walk = None;
        let numbers = self.numbers(groups)?;
        let wanted: HashMap<Place, Group> = elements(groups, &numbers).collect();
        if wanted != self.written {
            self.keep_on(&numbers)?;
            let written = self.write(wanted);
            // Whether all of it is there or not.
            self.prefixes = Prefixes::of(&self.written);
            written?;
        }
        self.names = names_of(numbers);
        self.tell();
        Ok(())
    }

    /// Makes the trie hold this.
    fn write(&mut self, wanted: HashMap<Place, Group>) -> Result<()> {
        let unused: Vec<Place> =
            self.written.keys().filter(|place| !wanted.contains_key(*place)).copied().collect();
        for place in unused {
            let (length, key) = place;
            self.trie.remove(&Key::new(length, key)).context("cannot remove a prefix of a group")?;
            self.written.remove(&place);
        }
        for (place, value) in wanted {
            if self.written.get(&place) != Some(&value) {
                let (length, key) = place;
                let written = self.trie.insert(&Key::new(length, key), value, 0);
                written.context("cannot write a prefix of a group")?;
                self.written.insert(place, value);
            }
        }
        Ok(())
    }

    /// Numbers of groups: each keeps the one that it has.
    fn numbers<'a>(&self, groups: &'a BTreeMap<String, model::Group>) -> Result<BTreeMap<&'a str, u32>> {
        let known: HashMap<u64, u32> =
            self.written.values().map(|group| (group.owner, group.number)).collect();
        let mut numbers: BTreeMap<&str, u32> = groups
            .keys()
            .filter_map(|name| known.get(&group_owner(name)).map(|number| (name.as_str(), *number)))
            .collect();
        let taken: BTreeSet<u32> = numbers.values().copied().collect();
        let mut free = (1..=MAX_GROUPS).filter(|number| !taken.contains(number));
        for name in groups.keys() {
            if !numbers.contains_key(name.as_str()) {
                let number = free
                    .next()
                    .ok_or_else(|| anyhow!("there is no room for more than {MAX_GROUPS} groups"))?;
                numbers.insert(name, number);
            }
        }
        Ok(numbers)
    }

    /// Has every pair go on from what was told of it last, and pairs of groups that are new from nothing. In this order
    /// with what is written next, so that a daemon which dies meanwhile leaves the next one what it needs.
    fn keep_on(&mut self, numbers: &BTreeMap<&str, u32>) -> Result<()> {
        let before: BTreeSet<u32> = self.written.values().map(|group| group.number).collect();
        let owners: HashMap<u32, u64> =
            self.written.values().map(|group| (group.number, group.owner)).collect();
        let stays = |number: u32| {
            number == OTHER
                || number == PROXY
                || numbers
                    .iter()
                    .any(|(name, of)| *of == number && owners.get(&number) == Some(&group_owner(name)))
        };
        let staying: Vec<bool> = (0..usage::SIDES).map(stays).collect();
        for pair in 0..PAIRS {
            let (source, destination) = usage::groups(pair);
            let stays = !before.is_empty() && staying[source as usize] && staying[destination as usize];
            let told = if stays { self.totals[pair as usize].told } else { Usage::default() };
            self.keep(pair, Total { told, base: Usage::default(), pending: 1 })?;
        }
        Ok(())
    }

    fn keep(&mut self, pair: u32, total: Total) -> Result<()> {
        if self.totals[pair as usize] != total {
            self.kept.set(pair, total, 0).context("cannot write map USAGE_TOTALS")?;
            self.totals[pair as usize] = total;
        }
        Ok(())
    }

    /// Begins a walk, if one is due. The tables have to be at their beginning.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.walk = None;
        if !self.is_on() || self.began.is_some_and(|began| began.elapsed() < INTERVAL) {
            return Ok(());
        }
        self.began = Some(Instant::now());
        let (removed, met) = (self.read_removed()?, vec![Usage::default(); PAIRS as usize]);
        self.walk = Some(Walk { removed, met });
        Ok(())
    }

    /// Adds elements of the session tables, if a walk goes on.
    pub(super) fn meet<F: Family>(&mut self, elements: &[(Tuple<F>, Session<F>)])
    where
        Tuple<F>: Pod,
        Session<F>: Pod,
    {
        let Some(walk) = &mut self.walk else { return };
        for (tuple, session) in elements.iter().filter(|(tuple, _)| !mapping::is_key(tuple)) {
            let (client, server, origin) = usage::ends(tuple, session);
            let source =
                if origin == 0 { self.prefixes.group_of(&F::mapped(&client), F::IS_V4) } else { PROXY };
            let pair = usage::pair(source, self.prefixes.group_of(&F::mapped(&server), F::IS_V4));
            walk.met[pair as usize].add(&Usage::of(tuple, session));
        }
    }

    /// Tells what a walk has found that is through with both tables.
    pub(super) fn end(&mut self) -> Result<()> {
        let Some(Walk { removed, met }) = self.walk.take() else { return Ok(()) };
        let pending = self.totals.iter().any(|total| total.pending != 0);
        let removed_since = if pending { self.read_removed()? } else { Vec::new() };
        for pair in 0..PAIRS {
            let at = pair as usize;
            let mut total = self.totals[at];
            if total.pending != 0 {
                // As much as can have been counted by now, so that nothing of before the change is told again.
                let mut most = removed_since[at];
                most.add(&met[at]);
                total.base = total.told.zip(&most, u64::wrapping_sub);
                total.pending = 0;
            }
            let mut sum = removed[at];
            sum.add(&met[at]);
            total.told = next(&total, &sum);
            self.keep(pair, total)?;
        }
        self.tell();
        Ok(())
    }

    /// What removed sessions have carried.
    fn read_removed(&self) -> Result<Vec<Usage>> {
        let mut removed: Vec<Usage> = sys::elements(self.removed.as_fd()).context("cannot read map USAGE")?;
        removed.resize(PAIRS as usize, Usage::default());
        Ok(removed)
    }

    fn tell(&self) {
        let told = (0..PAIRS).zip(&self.totals).filter(|(_, total)| total.told != Usage::default());
        let stats = told.filter(|_| self.is_on()).filter_map(|(pair, total)| {
            let (source, destination) = usage::groups(pair);
            let (source, destination) = (self.names.get(&source)?, self.names.get(&destination)?);
            let (source, destination) = (Arc::clone(source), Arc::clone(destination));
            Some(UsageStats { source, destination, usage: total.told })
        });
        self.told.write(stats.collect());
    }
}

/// Groups by number, with those that there always are.
fn names_of(numbers: BTreeMap<&str, u32>) -> BTreeMap<u32, Arc<str>> {
    let always = [(group::OTHER, OTHER), (group::PROXY, PROXY)];
    numbers.into_iter().chain(always).map(|(name, number)| (number, Arc::from(name))).collect()
}

/// What is told of a pair where a walk has come to `sum`: never less than before.
fn next(total: &Total, sum: &Usage) -> Usage {
    let based = sum.zip(&total.base, |sum, base| sum.wrapping_add(base).cast_signed().max(0).cast_unsigned());
    based.zip(&total.told, u64::max)
}

impl Prefixes {
    fn of(written: &HashMap<Place, Group>) -> Self {
        let mut prefixes = Self::default();
        for ((length, key), group) in written {
            match prefix_of(*length, key) {
                Some(IpNet::V4(prefix)) => drop(prefixes.v4.insert(prefix, group.number)),
                Some(IpNet::V6(prefix)) => drop(prefixes.v6.insert(prefix, group.number)),
                None => {}
            }
        }
        prefixes
    }

    fn group_of(&self, address: &MappedAddress, ipv4: bool) -> u32 {
        let bytes = family::bytes(address);
        let found = if ipv4 {
            let [.., a, b, c, d] = bytes;
            self.v4.get_lpm(&Ipv4Net::from(Ipv4Addr::new(a, b, c, d))).map(|(_, number)| *number)
        } else {
            self.v6.get_lpm(&Ipv6Net::from(Ipv6Addr::from(bytes))).map(|(_, number)| *number)
        };
        found.unwrap_or(OTHER)
    }
}

/// What the trie has to hold.
fn elements<'a>(
    groups: &'a BTreeMap<String, model::Group>,
    numbers: &'a BTreeMap<&str, u32>,
) -> impl Iterator<Item = (Place, Group)> + 'a {
    groups.values().flat_map(|group| {
        let number = numbers.get(group.name.as_str()).copied().unwrap_or(OTHER);
        let value = Group { number, reserved: 0, owner: group_owner(&group.name) };
        group.prefixes.iter().map(move |prefix| (place(*prefix), value))
    })
}

/// Where a prefix is in the trie.
fn place(prefix: IpNet) -> Place {
    let ipv4 = matches!(prefix, IpNet::V4(_));
    let length = u32::from(prefix.prefix_len()) + if ipv4 { MAPPED_BITS } else { REALM_BITS };
    let (realm, address) = (GroupKey::realm(ipv4), family::from_ip(prefix.network()));
    (length, GroupKey { realm, reserved: 0, address })
}

/// The inverse of [`place`].
fn prefix_of(length: u32, key: &GroupKey) -> Option<IpNet> {
    let bytes = family::bytes(&key.address);
    let ipv4 = key.realm == GroupKey::realm(true);
    let before = if ipv4 { MAPPED_BITS } else { REALM_BITS };
    let length = u8::try_from(length.checked_sub(before)?).ok()?;
    let address: IpAddr = if ipv4 {
        let [.., a, b, c, d] = bytes;
        Ipv4Addr::new(a, b, c, d).into()
    } else {
        Ipv6Addr::from(bytes).into()
    };
    IpNet::new(address, length).ok()
}

#[cfg(test)]
mod tests {
    use gateway_common::counter::Counter;
    use proptest::prelude::*;

    use super::*;

    fn used(bytes: u64) -> Usage {
        let counter = Counter { packets: bytes / 100, bytes };
        Usage { sent: counter, received: counter, connections: 1 }
    }

    #[test]
    fn the_prefix_of_a_place_is_the_prefix() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "2001:db8::/48", "::/0"] {
            let prefix: IpNet = text.parse().expect("a prefix");
            let (length, key) = place(prefix);
            assert_eq!(prefix_of(length, &key), Some(prefix));
        }
    }

    #[test]
    fn what_is_told_never_goes_back() {
        let total = Total { told: used(500), ..Total::default() };
        assert_eq!(next(&total, &used(300)).sent.bytes, 500);
        assert_eq!(next(&total, &used(700)).sent.bytes, 700);
    }

    #[test]
    fn a_sum_below_its_base_is_nothing_and_no_huge_number() {
        let base = Usage::default().zip(&used(400), u64::wrapping_sub);
        let total = Total { base, ..Total::default() };
        assert_eq!(next(&total, &used(300)), Usage::default().zip(&used(0), |_, _| 0));
        assert_eq!(next(&total, &used(900)).sent.bytes, 500);
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<[u8; 2]>(), 0..=16_u8)
            .prop_map(|([a, b], length)| Ipv4Net::new([10, 0, a, b].into(), 16 + length).map(IpNet::V4));
        let v6 = (any::<[u8; 2]>(), 0..=16_u8).prop_map(|([a, b], length)| {
            let mut octets = [0; 16];
            (octets[14], octets[15]) = (a, b);
            Ipv6Net::new(octets.into(), 112 + length).map(IpNet::V6)
        });
        prop_oneof![v4, v6].prop_map(|prefix| prefix.expect("a length in range").trunc())
    }

    proptest! {
        #[test]
        fn the_longest_prefix_says_whose_an_address_is(
            prefixes in prop::collection::btree_map(prefix(), 1..=MAX_GROUPS, 0..40),
            asked in prop::collection::vec(prefix(), 1..40),
        ) {
            let written = prefixes.iter().map(|(prefix, number)| {
                (place(*prefix), Group { number: *number, ..Group::default() })
            });
            let compiled = Prefixes::of(&written.collect());
            for address in asked.iter().map(IpNet::addr) {
                let longest = prefixes.iter().filter(|(prefix, _)| prefix.contains(&address));
                let longest = longest.max_by_key(|(prefix, _)| prefix.prefix_len());
                let expected = longest.map_or(OTHER, |(_, number)| *number);
                prop_assert_eq!(compiled.group_of(&family::from_ip(address), address.is_ipv4()), expected);
            }
        }
    }
}
