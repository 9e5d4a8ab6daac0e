//! The table of IPv4 sessions: an array of buckets, each with a line of tags and room for [`SLOTS`] elements.
//!
//! A key has two buckets that it may be in, a slot where it is at home in both, and a tag, all of them from a hash with
//! the gateway's secret. An element is put into the first bucket unless that is full, and at home unless another one is
//! there. A lookup looks there first, and reads nothing else if it finds what it looks for: no address that it reads
//! from comes out of memory, so that a processor waits for memory once. Else it reads the tags of a bucket, all at once,
//! and then the one element whose tag it is: no two elements of a bucket have the same. The other bucket is looked
//! into only while it has elements whose first one this is ([`Bucket::spilled`]). A hash map of the kernel follows a
//! list, with a header before every element.
//!
//! # When an element is there
//!
//! It is there for lookups by key ([`home`](Place::home)) from the moment that the last word of its key is written, after
//! all else, and for lookups by tag from when that is set, after this. It is removed in the same order: what is left of
//! its key is no packet's ([`NOBODY`]), then its tag is cleared.
//!
//! The table takes as many elements as it was made for, and is larger than that by [`SPARE`]: two buckets to
//! choose from, the emptier one where the first has much in it, do then not run over (Azar, Broder, Karlin, Upfal,
//! Balanced allocations, 1994).

use crate::{
    family::{Family, V4},
    pod,
    session::{Session, Tuple},
};

/// Elements of a bucket.
pub const SLOTS: usize = 24;
/// Words of tags of a bucket; a word has [`LANES`].
pub const WORDS: usize = SLOTS / LANES;
/// Tags in a word.
pub const LANES: usize = 4;
/// Elements from which on a bucket leaves new ones to the other bucket of theirs, if that has fewer.
pub const PREFERRED: u32 = 18;
/// Last word of a key that no packet has: the protocol is reserved (255), and there is no such side.
pub const NOBODY: u64 = u64::MAX;
/// The table has room for so many elements more than it takes: one for each so many.
const SPARE: u32 = 4;

/// An element.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Slot<F: Family> {
    /// Key.
    pub tuple: Tuple<F>,
    /// Value.
    pub session: Session<F>,
}

/// Element of the array.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bucket<F: Family> {
    /// The tag of each slot, 0: free. The first slot's tag is in the lowest bits of the first word.
    pub tags: [u64; WORDS],
    /// 1 while an element is being inserted whose first bucket this is, or which is put here.
    pub lock: u32,
    /// Slots that are taken.
    pub used: u32,
    /// Elements whose first bucket this is and that are in their other one.
    pub spilled: u32,
    /// Zero.
    pub reserved: u32,
    /// Elements.
    pub slots: [Slot<F>; SLOTS],
    /// Zero: buckets do not share pages.
    pub padding: [u64; 8],
}

/// Map `TABLE`, element 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Fill {
    /// Elements in the table.
    pub elements: u32,
    /// Zero: others' counts have their own cache lines.
    pub reserved: [u32; 15],
}

/// Where a key may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its first bucket.
    pub first: u32,
    /// Its other one; the same where there is only one.
    pub second: u32,
    /// The slot where it is at home, in both.
    pub home: usize,
    /// Its tag, 1 to 65,535.
    pub tag: u64,
}

/// Buckets of a table that takes so many elements.
#[must_use]
pub const fn buckets(elements: u32) -> u32 {
    let slots = elements as u64 + (elements as u64).div_ceil(SPARE as u64);
    slots.div_ceil(SLOTS as u64) as u32
}

/// Where the key of these words may be, in a table of `buckets`, of which there is at least one.
#[inline(always)]
#[must_use]
pub const fn place(words: [u64; 2], secret: u32, buckets: u32) -> Place {
    let [addresses, rest] = words;
    let seed = (secret as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut hash = (addresses ^ seed).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 32;
    hash = (hash ^ rest).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 32;
    let other = (hash ^ seed).wrapping_mul(0x94d0_49bb_1331_11eb);
    let first = scale(hash >> 32, buckets);
    let ahead = first + 1 + scale(other >> 32, buckets - 1);
    let second = if ahead >= buckets { ahead - buckets } else { ahead };
    let home = (((hash >> 16 & 0xffff) * SLOTS as u64) >> 16) as usize;
    Place { first, second, home, tag: 1 + (((hash & 0xffff) * 0xffff) >> 16) }
}

/// A number below `end`, of one of 32 bits.
#[inline(always)]
const fn scale(number: u64, end: u32) -> u32 {
    ((number * end as u64) >> 32) as u32
}

/// The slots whose tag is `tag`, a bit for each. Of those with other tags, only such may be in it that come after one
/// with it in the same word: the first is true.
#[inline(always)]
#[must_use]
pub const fn slots_of(tags: [u64; WORDS], tag: u64) -> u32 {
    const ONES: u64 = 0x0001_0001_0001_0001;
    const TOPS: u64 = ONES << 15;
    // Brings bits 0, 16, 32 and 48 to 60 and up.
    const GATHER: u64 = 1 << 60 | 1 << 45 | 1 << 30 | 1 << 15;
    let pattern = tag.wrapping_mul(ONES);
    let mut slots = 0;
    let mut number = 0;
    while number < WORDS {
        let differences = tags[number] ^ pattern;
        let equal = differences.wrapping_sub(ONES) & !differences & TOPS;
        slots |= ((equal >> 15).wrapping_mul(GATHER) >> 60 << (number * LANES)) as u32;
        number += 1;
    }
    slots
}

/// The first of such slots, [`SLOTS`] or more for none. Without a branch, so that the verifier goes one way.
#[inline(always)]
#[must_use]
pub const fn first_of(slots: u32) -> usize {
    // The number of zeros below the lowest one, counted as in Hacker's Delight 5-1.
    let below = !slots & slots.wrapping_sub(1);
    let pairs = below - (below >> 1 & 0x5555_5555);
    let fours = (pairs & 0x3333_3333) + (pairs >> 2 & 0x3333_3333);
    let eights = (fours + (fours >> 4)) & 0x0f0f_0f0f;
    (eights.wrapping_mul(0x0101_0101) >> 24) as usize
}

/// The bits of a tag in its word.
#[inline(always)]
#[must_use]
pub const fn lane(slot: usize, tag: u64) -> u64 {
    tag << (slot % LANES * 16)
}

impl Bucket<V4> {
    /// The elements whose keys belong here: what a reader that does not lock may see of one that is being replaced is
    /// left out.
    pub fn elements(&self, index: u32, secret: u32, buckets: u32) -> impl Iterator<Item = &Slot<V4>> {
        self.slots.iter().enumerate().filter_map(move |(number, slot)| {
            let tag = self.tags[number / LANES] >> (number % LANES * 16) & 0xffff;
            let place = place(slot.tuple.words(), secret, buckets);
            (place.tag == tag && (place.first == index || place.second == index)).then_some(slot)
        })
    }
}

const _: () = assert!(size_of::<Slot<V4>>() == 80);
const _: () = assert!(size_of::<Bucket<V4>>() == 2048);
const _: () = assert!(core::mem::offset_of!(Bucket<V4>, slots) == 64);
const _: () = assert!(size_of::<Fill>() == 64);

pod!(Slot<V4>, Bucket<V4>, Fill);

#[cfg(test)]
mod tests {
    use super::*;

    fn words(number: u64) -> [u64; 2] {
        [0x0a00_0001_cb00_7101 ^ number << 13, number.wrapping_mul(0x0001_0000_0001)]
    }

    #[test]
    fn a_slot_is_found_by_its_tag_wherever_it_is() {
        for tag in [1, 2, 0x7fff, 0x8000, 0xffff] {
            for slot in 0..SLOTS {
                for others in [0, 1, tag ^ 1, 0x8000, 0xffff] {
                    let mut tags = [0; WORDS];
                    for other in 0..SLOTS {
                        let other_tag = if others == tag { 0 } else { others };
                        tags[other / LANES] |= lane(other, if other == slot { tag } else { other_tag });
                    }
                    assert_eq!(first_of(slots_of(tags, tag)), slot, "{tag:x} among {others:x}");
                }
            }
        }
    }

    #[test]
    fn a_tag_that_no_slot_has_is_not_found() {
        for tag in [1, 0x7fff, 0x8000, 0xffff] {
            for others in [0, tag - 1, (tag + 1) & 0xffff] {
                let tags = [others * 0x0001_0001_0001_0001; WORDS];
                assert!(first_of(slots_of(tags, tag)) >= SLOTS, "{tag:x} among {others:x}");
            }
        }
    }

    #[test]
    fn both_buckets_are_in_the_table_and_two() {
        for buckets in [1, 2, 3, 24, 5_462, 109_227] {
            for number in 0..10_000 {
                let Place { first, second, home, tag } = place(words(number), 7, buckets);
                assert!(first < buckets && second < buckets && (buckets == 1 || first != second));
                assert!(home < SLOTS && tag != 0 && tag <= 0xffff);
            }
        }
    }

    #[test]
    fn a_full_table_takes_what_comes_for_what_goes() {
        let elements = 1u32 << 17;
        let count = buckets(elements);
        let mut used = vec![0u32; count as usize];
        let mut there = std::collections::VecDeque::new();
        for number in 0..20 * u64::from(elements) {
            let Place { first, second, .. } = place(words(number), 0x1234_5678, count);
            let [one, two] = [used[first as usize], used[second as usize]];
            let chosen = if one < PREFERRED || one <= two { first } else { second };
            assert!(used[chosen as usize] < SLOTS as u32, "no room for element {number}");
            used[chosen as usize] += 1;
            there.push_back(chosen);
            if there.len() == elements as usize {
                let gone = there.pop_front().expect("the oldest");
                used[gone as usize] -= 1;
            }
        }
    }

    #[test]
    fn a_table_is_a_quarter_larger_than_what_it_takes() {
        assert_eq!(buckets(2 * 1_048_576), 109_227);
        assert_eq!(buckets(2), 1);
        assert_eq!(buckets(19), 1);
        assert_eq!(buckets(20), 2);
    }
}
