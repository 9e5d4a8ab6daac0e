//! Maps `LIMITS` and `LIMIT_COUNTERS`: limits of sources as the kernel has them.
//!
//! The trie has two halves. A change is written into the one that is not in force, and comes into force with one word,
//! [`gateway_common::config::Policy::limits`]. A limit keeps its number as long as its prefix has one of its kind, also
//! across daemons: sessions name it. Where a session names another one than its client has, the sweep corrects it.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use aya::maps::{LpmTrie, MapData, PerCpuArray, PerCpuValues, lpm_trie::Key};
use gateway_common::{
    family,
    limit::Limit,
    source::{Charge, LimitCounters, LimitKey, MAX_LIMITS, SourceLimit},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::space::Space;
use crate::model::{self, Per};

/// Bits of a key before those of an IPv6 prefix, and of an IPv4 one.
const REALM_BITS: u32 = 64;
const MAPPED_BITS: u32 = REALM_BITS + 96;

/// What [`gateway_common::config::Policy::limits`] says where there are none.
const NONE: u32 = 0;

/// A prefix length and a key.
type Place = (u32, LimitKey);

pub(super) struct Limits {
    map: LpmTrie<MapData, LimitKey, SourceLimit>,
    counters: PerCpuArray<MapData, LimitCounters>,
    cpus: usize,
    written: HashMap<Place, SourceLimit>,
    numbers: BTreeMap<(IpNet, Per), u32>,
    space: Space,
    /// The word in force.
    word: u32,
}

impl Limits {
    /// Takes the maps over, with what they hold; `word` is in force.
    pub(super) fn new(
        map: LpmTrie<MapData, LimitKey, SourceLimit>,
        counters: PerCpuArray<MapData, LimitCounters>,
        cpus: usize,
        word: u32,
    ) -> Result<Self> {
        let mut written = HashMap::new();
        let mut numbers = BTreeMap::new();
        let mut space = Space::new("limits of sources", 1, MAX_LIMITS + 1);
        for element in &map {
            let (key, value) = element.context("cannot read map LIMITS")?;
            let (length, place) = (key.prefix_len(), key.data());
            let charge = Charge::from_number(value.charge as u16);
            if word != NONE
                && let Some(prefix) = prefix_of(length, &place, word - 1)
            {
                let per = if charge.is_per_prefix() { Per::Prefix } else { Per::Source };
                numbers.insert((prefix, per), charge.limit());
                space.take(charge.limit());
            }
            written.insert((length, place), value);
        }
        Ok(Self { map, counters, cpus, written, numbers, space, word: word.min(2) })
    }

    /// Numbers of limits, with their names.
    pub(super) fn numbers<'a>(
        &'a self,
        limits: &'a BTreeMap<String, model::Limit>,
    ) -> impl Iterator<Item = (u32, String)> + 'a {
        limits.values().filter_map(|limit| {
            self.numbers.get(&(limit.from, limit.per)).map(|number| (*number, limit.name.clone()))
        })
    }

    /// Writes the limits of `to`, and returns the word to put in force.
    pub(super) fn write(&mut self, to: &BTreeMap<String, model::Limit>) -> Result<u32> {
        self.space.begin_change();
        for limit in to.values() {
            if !self.numbers.contains_key(&(limit.from, limit.per)) {
                let number = self.space.one()?;
                let zeros = PerCpuValues::try_from(vec![LimitCounters::default(); self.cpus])?;
                self.counters.set(number, zeros, 0).context("cannot clear the counters of a limit")?;
                self.numbers.insert((limit.from, limit.per), number);
            }
        }
        if self.holds(to, self.word) {
            return Ok(self.word);
        }
        let word = if to.is_empty() {
            NONE
        } else if self.word == 1 {
            2
        } else {
            1
        };
        // Without limits nobody looks, and the half is written when there are some again.
        if word == NONE {
            return Ok(word);
        }
        let wanted: HashMap<Place, SourceLimit> = self.elements(to, word).collect();
        let unused: Vec<Place> =
            self.in_half(word).map(|(place, _)| *place).filter(|place| !wanted.contains_key(place)).collect();
        for place in unused {
            let (length, key) = place;
            self.map.remove(&Key::new(length, key)).context("cannot remove a limit")?;
            self.written.remove(&place);
        }
        for (place, value) in wanted {
            if self.written.get(&place) != Some(&value) {
                let (length, key) = place;
                self.map.insert(&Key::new(length, key), value, 0).context("cannot write a limit")?;
                self.written.insert(place, value);
            }
        }
        Ok(word)
    }

    /// Notes that what [`Limits::write`] named last is in force. Returns whether sessions may be counted by others
    /// than before.
    pub(super) fn commit(&mut self, word: u32, to: &BTreeMap<String, model::Limit>) -> bool {
        let space = &mut self.space;
        self.numbers.retain(|(prefix, per), number| {
            let keep = to.values().any(|limit| limit.from == *prefix && limit.per == *per);
            if !keep {
                space.give_back(*number, 1);
            }
            keep
        });
        let changed = self.word != word;
        self.word = word;
        changed
    }

    fn holds(&self, limits: &BTreeMap<String, model::Limit>, word: u32) -> bool {
        if word == NONE || limits.is_empty() {
            return word == NONE && limits.is_empty();
        }
        self.in_half(word).count() == limits.len()
            && self.elements(limits, word).all(|(place, value)| self.written.get(&place) == Some(&value))
    }

    fn in_half(&self, word: u32) -> impl Iterator<Item = (&Place, &SourceLimit)> {
        let realms = [false, true].map(|ipv4| LimitKey::realm(word - 1, ipv4));
        self.written.iter().filter(move |((_, key), _)| realms.contains(&key.realm))
    }

    fn elements<'a>(
        &'a self,
        limits: &'a BTreeMap<String, model::Limit>,
        word: u32,
    ) -> impl Iterator<Item = (Place, SourceLimit)> + 'a {
        limits.values().map(move |limit| {
            let number = self.numbers.get(&(limit.from, limit.per)).copied().unwrap_or_default();
            let charge = Charge::of(number, limit.per == Per::Prefix);
            let value = SourceLimit {
                charge: charge.number().into(),
                reserved: 0,
                limit: Limit::new(limit.rate, limit.burst(), limit.concurrent),
            };
            (place(limit.from, word - 1), value)
        })
    }
}

/// Where the limit of a prefix is, in a half.
fn place(prefix: IpNet, half: u32) -> Place {
    let ipv4 = matches!(prefix, IpNet::V4(_));
    let length = u32::from(prefix.prefix_len()) + if ipv4 { MAPPED_BITS } else { REALM_BITS };
    (
        length,
        LimitKey {
            realm: LimitKey::realm(half, ipv4),
            reserved: 0,
            source: family::from_ip(prefix.network()),
        },
    )
}

/// The inverse of [`place`].
fn prefix_of(length: u32, key: &LimitKey, half: u32) -> Option<IpNet> {
    let bytes = family::bytes(&key.source);
    let [.., a, b, c, d] = bytes;
    if key.realm == LimitKey::realm(half, true) {
        let length = u8::try_from(length.checked_sub(MAPPED_BITS)?).ok()?;
        Ipv4Net::new([a, b, c, d].into(), length).ok().map(IpNet::V4)
    } else if key.realm == LimitKey::realm(half, false) {
        let length = u8::try_from(length.checked_sub(REALM_BITS)?).ok()?;
        Ipv6Net::new(bytes.into(), length).ok().map(IpNet::V6)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_of_a_place_is_the_prefix() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "2001:db8::/48", "::/0"] {
            let prefix: IpNet = text.parse().expect("a prefix");
            for half in [0, 1] {
                let (length, key) = place(prefix, half);
                assert_eq!(prefix_of(length, &key, half), Some(prefix));
                assert_eq!(prefix_of(length, &key, 1 - half), None);
            }
        }
    }
}
