//! Ports of a pool's address towards one destination: which of them are known to be used, and the search for
//! one that is not.
//!
//! The session table is the truth: a port is taken where the table has the outside tuple. A destination that
//! has many of an address's ports gets a [`Ports`], so that the search does not ask the table again for what
//! it has said before.

use crate::{family::MappedAddress, parse::Wire, pod};

/// Words of [`Ports::used`].
pub const WORDS: usize = 1_024;
/// Words of [`Ports::full`].
pub const GROUPS: usize = 16;

/// Share of a pool's ports that makes a destination crowded: one in so many.
pub const CROWDED: u32 = 16;
/// Part of [`Ports::threshold`] below which a destination gives its ports back.
pub const QUIET: u32 = 4;

/// [`Ports::state`] of ports that may be used.
pub const LIVE: u32 = 0;
/// [`Ports::state`] of ports that are given to another destination at the next visit of the sweep.
pub const GONE: u32 = 1;

/// A pool's address towards one destination. Key of `PORTS` and `DESTINATIONS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The pool's address.
    pub address: MappedAddress,
    /// The server's address.
    pub server: MappedAddress,
    /// The server's port, network byte order.
    pub port: [u8; 2],
    /// IP protocol.
    pub proto: u8,
    /// Zero.
    pub reserved: u8,
}

// SAFETY: the type is `repr(C)`, has no padding, and accepts every bit pattern.
unsafe impl Wire for Destination {}

/// The ports of a [`Destination`]. Value of `PORTS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ports {
    /// [`LIVE`] or [`GONE`].
    pub state: u32,
    /// Sessions that made the destination crowded.
    pub threshold: u32,
    /// A bit for each word of `used` that has no bit left to set.
    pub full: [u64; GROUPS],
    /// A bit for each port that is used, as far as known.
    pub used: [u64; WORDS],
}

/// Elements of `PORTS` for so many sessions: full-sized pools cannot have more destinations that keep theirs.
#[must_use]
pub const fn capacity(sessions: u32) -> u32 {
    // 64,512 / CROWDED / QUIET sessions keep one.
    let wanted = sessions / 1_008 + 1;
    if wanted < 64 { 64 } else { wanted }
}

impl Destination {
    /// A hash of all of it in the upper half of a word, see [`crate::limit::Bucket::sessions`].
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> u64 {
        let [p0, p1] = self.port;
        let mut hash = mix(0, u32::from_ne_bytes([p0, p1, self.proto, self.reserved]));
        let mut at = 0;
        while at < 4 {
            hash = mix(hash, self.address[at]);
            hash = mix(hash, self.server[at]);
            at += 1;
        }
        (hash as u64) << 32
    }
}

/// One word more in a hash: the finalizer of `MurmurHash3`.
#[inline(always)]
pub(crate) const fn mix(hash: u32, word: u32) -> u32 {
    let hash = hash ^ word;
    let hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// A search through the ports of a destination, once around from a random one on.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// Ports of the word in hand that were tried.
    tried: u64,
    low: u32,
    high: u32,
    /// Word in hand.
    at: u32,
    /// Words that are left, with the one in hand.
    left: u32,
    /// Where in a word to begin.
    rotation: u32,
}

/// What a step of a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Try this port.
    Port(u16),
    /// Nothing here; there may be more.
    Next,
    /// That was all.
    End,
}

impl Search {
    /// A search from `low` to `high`, both included and not the wrong way round.
    #[inline(always)]
    pub const fn new(low: u16, high: u16, random: u32) -> Self {
        let (first, last) = (low as u32 / 64, high as u32 / 64);
        let words = last - first + 1;
        // A multiplication spreads a 16-bit number over the words without a division.
        let start = ((random >> 16) * words) >> 16;
        Self {
            tried: 0,
            low: low as u32,
            high: high as u32,
            at: first + start,
            left: words,
            rotation: random % 64,
        }
    }

    /// The next port that is not known to be used. `full` and `used` read a word of [`Ports`].
    #[inline(always)]
    pub fn step(&mut self, full: impl FnOnce(usize) -> u64, used: impl FnOnce(usize) -> u64) -> Step {
        if self.left == 0 {
            return Step::End;
        }
        let group = self.at / 64;
        let rest = 64 - self.at % 64;
        let open = !full(group as usize % GROUPS) >> (self.at % 64);
        if open & 1 == 0 {
            self.skip(if open == 0 { rest } else { lowest(open) });
            return Step::Next;
        }
        let free = !used(self.at as usize % WORDS) & self.range() & !self.tried;
        if free == 0 {
            self.skip(1);
            return Step::Next;
        }
        let bit = (lowest(free.rotate_right(self.rotation)) + self.rotation) % 64;
        self.tried |= 1 << bit;
        Step::Port((self.at * 64 + bit) as u16)
    }

    /// Goes on by `words`, not beyond the last one: from there to the first.
    #[inline(always)]
    fn skip(&mut self, words: u32) {
        let (first, last) = (self.low / 64, self.high / 64);
        let to_end = last + 1 - self.at;
        let words = if words > to_end { to_end } else { words };
        self.at = if words == to_end { first } else { self.at + words };
        self.left = self.left.saturating_sub(words);
        self.tried = 0;
    }

    /// The ports of the word in hand that the search may give.
    #[inline(always)]
    const fn range(&self) -> u64 {
        let start = self.at * 64;
        let low = if self.low > start { u64::MAX << ((self.low - start) % 64) } else { u64::MAX };
        let over = (start + 63).saturating_sub(self.high);
        low & u64::MAX >> (over % 64)
    }
}

/// Number of the lowest bit that is set; `word` is not 0.
#[inline(always)]
const fn lowest(word: u64) -> u32 {
    word.trailing_zeros()
}

const _: () = assert!(size_of::<Destination>() == 36);
const _: () = assert!(size_of::<Ports>() == 8_328);
const _: () = assert!(size_of::<Search>() == 32);

pod!(Destination, Ports);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    struct Table(Box<Ports>);

    impl Table {
        fn new(used: impl IntoIterator<Item = u16>) -> Self {
            let ports = Ports { state: LIVE, threshold: 0, full: [0; GROUPS], used: [0; WORDS] };
            let mut table = Self(Box::new(ports));
            used.into_iter().for_each(|port| table.mark(port));
            table
        }

        fn mark(&mut self, port: u16) {
            let word = usize::from(port) / 64;
            self.0.used[word] |= 1 << (port % 64);
            if self.0.used[word] == u64::MAX {
                self.0.full[word / 64] |= 1 << (word % 64);
            }
        }

        /// All that a search gives, and its number of steps.
        fn search(&self, low: u16, high: u16, random: u32) -> (Vec<u16>, usize) {
            let mut search = Search::new(low, high, random);
            let mut found = Vec::new();
            for steps in 0..200_000 {
                match search.step(|group| self.0.full[group], |word| self.0.used[word]) {
                    Step::Port(port) => found.push(port),
                    Step::Next => {}
                    Step::End => return (found, steps),
                }
            }
            panic!("the search does not end");
        }
    }

    #[test]
    fn a_search_gives_every_port_that_is_not_used_and_no_other() {
        let ranges =
            [(1_024, 65_535), (0, 65_535), (5_000, 5_099), (64, 127), (63, 64), (7, 7), (65_535, 65_535)];
        for (low, high) in ranges {
            for seed in 0..40u32 {
                let random = seed.wrapping_mul(0x9e37_79b1);
                let is_used =
                    |port: u16| mix(random, port.into()) & 3 != 0 || (seed & 1 == 0 && port % 512 > 64);
                let table = Table::new((0..=65_535).filter(|port| is_used(*port)));
                let (found, _) = table.search(low, high, random);
                let free: BTreeSet<u16> = (low..=high).filter(|port| !is_used(*port)).collect();
                assert_eq!(found.len(), free.len(), "{low}-{high}, seed {seed}: twice");
                assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), free, "{low}-{high}, seed {seed}");
            }
        }
    }

    #[test]
    fn a_search_among_full_words_is_short() {
        for free in [1_024, 1_500, 30_000, 65_535] {
            let table = Table::new((1_024..=65_535).filter(|port| *port != free));
            for seed in 0..100u32 {
                let (found, steps) = table.search(1_024, 65_535, seed.wrapping_mul(0x9e37_79b1));
                assert_eq!(found, [free]);
                assert!(steps < 40, "{steps} steps");
            }
        }
        let (found, steps) = Table::new(1_024..=65_535).search(1_024, 65_535, 0x8765_4321);
        assert!(found.is_empty());
        assert!(steps < 40, "{steps} steps");
    }

    #[test]
    fn searches_begin_anywhere() {
        let table = Table::new([]);
        let mut first = BTreeSet::new();
        for seed in 0..10_000u32 {
            let (low, high) = (1_024, 1_024 + 255);
            let mut search = Search::new(low, high, mix(7, seed));
            let Step::Port(port) = search.step(|group| table.0.full[group], |word| table.0.used[word]) else {
                panic!("nothing is used");
            };
            first.insert(port);
        }
        assert_eq!(first.len(), 256);
    }

    #[test]
    fn destinations_have_tags_of_their_own() {
        let mut tags = BTreeSet::new();
        for number in 0..65_536u32 {
            let [.., a, b] = number.to_be_bytes();
            let destination = Destination {
                address: [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([198, 51, 100, 10])],
                server: [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([203, 0, a, b])],
                port: 443u16.to_be_bytes(),
                proto: 6,
                reserved: 0,
            };
            assert_eq!(destination.tag() as u32, 0);
            tags.insert(destination.tag());
        }
        // Of 65,536 random numbers of 32 bits, half of one meets another.
        assert!(tags.len() > 65_530, "{}", tags.len());
    }
}
