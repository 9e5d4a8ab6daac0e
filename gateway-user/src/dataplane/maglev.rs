//! Which slot of a proxy's table belongs to which of its hosts: consistent hashing.
//!
//! While all hosts are live the table is Maglev's (Eisenbud et al., "Maglev: A Fast and Reliable Software Network
//! Load Balancer", NSDI 2016, section 3.4): each host has a permutation of the slots of its own, and takes turns in
//! taking the next slot of it that is free, more often the more weight it has. So the shares are exact to a few
//! slots, and a host that is added or removed moves few slots that are not its own.
//!
//! The slots of a host that is not live are looked after by the others. Each of them goes to the live host with the
//! highest random weight for that slot (Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates",
//! 1998), so that no other slot moves, also when several hosts come and go, and what comes back finds the table it
//! left. The table is a function of hosts, weights and who is live: nothing has to be remembered.

use std::net::IpAddr;

/// A host that slots are shared out to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its address, by which its slots are chosen: it has the same ones wherever the list names it.
    pub address: IpAddr,
    /// Its share, relative to the others; at least 1.
    pub weight: u16,
    /// Whether it takes new flows: it is up, and not drained.
    pub live: bool,
}

/// Fills `slots`, whose number has to be a prime, with indices of `shares`. Returns `false`, and leaves `slots` as
/// they are, where no host is live.
pub fn fill(shares: &[Share], slots: &mut [u16]) -> bool {
    let live: Vec<(u16, &Share)> = (0..).zip(shares).filter(|(_, share)| share.live).collect();
    if live.is_empty() || slots.is_empty() {
        return false;
    }
    populate(shares, slots);
    for (slot, owner) in (0..).zip(slots.iter_mut()) {
        if !shares[usize::from(*owner)].live {
            *owner = stand_in(&live, slot);
        }
    }
    true
}

/// Maglev's table of all hosts, live or not.
fn populate(shares: &[Share], slots: &mut [u16]) {
    const FREE: u16 = u16::MAX;
    let length = slots.len();
    // The order of the turns has to be that of the hosts, not that of the list.
    let mut turns: Vec<Turns> =
        (0..).zip(shares).map(|(index, share)| Turns::new(index, share, length)).collect();
    turns.sort_by_key(|turns| turns.address);
    let heaviest = shares.iter().map(|share| u32::from(share.weight.max(1))).max().unwrap_or(1);
    // All take a slot in the first round, so that none goes without.
    for host in &mut turns {
        host.credit = heaviest - host.weight;
    }
    slots.fill(FREE);
    let mut free = length;
    loop {
        for host in &mut turns {
            host.credit += host.weight;
            if host.credit < heaviest {
                continue;
            }
            host.credit -= heaviest;
            while slots[host.next] != FREE {
                host.advance(length);
            }
            slots[host.next] = host.index;
            free -= 1;
            if free == 0 {
                return;
            }
        }
    }
}

/// A host that takes slots in turns.
struct Turns {
    address: IpAddr,
    index: u16,
    weight: u32,
    /// It takes a turn when it has as much as the heaviest host weighs.
    credit: u32,
    /// The slot it would take next, and how far it is to the one behind: as the number of slots is a prime, that
    /// leads to all of them.
    next: usize,
    skip: usize,
}

impl Turns {
    fn new(index: u16, share: &Share, length: usize) -> Self {
        let of = |seed| hash(share.address, seed);
        let below = |hash: u64, limit: usize| (hash % limit as u64) as usize;
        Self {
            address: share.address,
            index,
            weight: u32::from(share.weight.max(1)),
            credit: 0,
            next: below(of(0), length),
            skip: below(of(1), length.max(2) - 1) + 1,
        }
    }

    fn advance(&mut self, length: usize) {
        self.next = (self.next + self.skip) % length;
    }
}

/// Index of the live host that takes `slot` for the one whose it is.
fn stand_in(live: &[(u16, &Share)], slot: u64) -> u16 {
    // The larger the weight, the closer to 0 the logarithm of a random number is brought (Schindelhauer and
    // Schomaker, "Weighted Distributed Hash Tables", 2005).
    #[expect(clippy::cast_precision_loss, reason = "53 bits of the hash are enough to tell hosts apart")]
    let score = |share: &Share| {
        let random = ((hash(share.address, slot + 2) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        random.ln() / f64::from(share.weight.max(1))
    };
    let best = live.iter().max_by(|(_, a), (_, b)| score(a).total_cmp(&score(b)));
    best.map_or(0, |(index, _)| *index)
}

/// A number that depends on all bits of both: the finalizer of `SplitMix64` (Steele, Lea and Flood, "Fast Splittable
/// Pseudorandom Number Generators", OOPSLA 2014). The same in every version of the daemon.
fn hash(address: IpAddr, seed: u64) -> u64 {
    let bits = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    [seed, (bits >> 64) as u64, bits as u64].into_iter().fold(0, |hash: u64, word| {
        let mut z = (hash ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*};

    use gateway_common::proxy::SLOTS;

    use super::*;

    fn share(number: u32, weight: u16, live: bool) -> Share {
        Share { address: IpAddr::from((0x0a00_0000 + number).to_be_bytes()), weight, live }
    }

    fn equal(hosts: u32) -> Vec<Share> {
        (0..hosts).map(|number| share(number, 1, true)).collect()
    }

    fn table(shares: &[Share]) -> Vec<u16> {
        let mut slots = vec![0; SLOTS];
        assert!(fill(shares, &mut slots));
        slots
    }

    fn count(slots: &[u16], host: usize) -> usize {
        slots.iter().filter(|owner| usize::from(**owner) == host).count()
    }

    fn moved(before: &[u16], after: &[u16]) -> Vec<usize> {
        (0..SLOTS).filter(|slot| before[*slot] != after[*slot]).collect()
    }

    /// Up to 16 hosts of different weights, all live.
    fn hosts() -> impl Strategy<Value = Vec<Share>> {
        btree_map(any::<u32>(), 1_u16..=16, 1..=16).prop_map(|hosts| {
            let address = |number: u32| IpAddr::from(number.to_be_bytes());
            hosts
                .into_iter()
                .map(|(number, weight)| Share { address: address(number), weight, live: true })
                .collect()
        })
    }

    #[test]
    fn nobody_live_is_said_and_changes_nothing() {
        let mut slots = [7; 13];
        assert!(!fill(&[], &mut slots));
        assert!(!fill(&[share(1, 1, false)], &mut slots));
        assert_eq!(slots, [7; 13]);
    }

    #[test]
    fn one_host_has_all_slots() {
        assert_eq!(count(&table(&equal(1)), 0), SLOTS);
    }

    #[test]
    fn equal_hosts_have_the_same_number_of_slots() {
        for hosts in 2..=64 {
            let slots = table(&equal(hosts));
            let counts: Vec<_> = (0..hosts as usize).map(|host| count(&slots, host)).collect();
            let (least, most) = (counts.iter().min(), counts.iter().max());
            assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{counts:?}");
        }
    }

    #[test]
    fn the_lightest_host_among_heavy_ones_has_a_slot() {
        let mut hosts: Vec<_> = (0..63).map(|number| share(number, u16::MAX, true)).collect();
        hosts.push(share(63, 1, true));
        assert!(count(&table(&hosts), 63) >= 1);
    }

    #[test]
    fn a_host_that_is_added_moves_little_more_than_its_own_slots() {
        for hosts in 1..=16 {
            let (before, after) = (table(&equal(hosts)), table(&equal(hosts + 1)));
            let own = count(&after, hosts as usize);
            let moved = moved(&before, &after).len();
            assert!(moved <= own + SLOTS / 10, "{hosts} hosts: {moved} slots moved, {own} are its own");
        }
    }

    #[test]
    fn the_slots_of_a_dead_host_are_shared_out_by_weight() {
        let hosts = [share(1, 4, false), share(2, 1, true), share(3, 3, true)];
        let orphans = SLOTS / 2;
        let before = hosts.map(|host| Share { live: true, ..host });
        let gained = |host| count(&table(&hosts), host) - count(&table(&before), host);
        assert!(gained(1).abs_diff(orphans / 4) < orphans / 20, "{}", gained(1));
        assert!(gained(2).abs_diff(orphans * 3 / 4) < orphans / 20, "{}", gained(2));
    }

    #[test]
    fn the_table_is_the_one_that_running_gateways_have() {
        let digest =
            table(&equal(3)).iter().fold(0_u64, |sum, owner| sum.wrapping_mul(31) + u64::from(*owner));
        assert_eq!(digest, 657_276_277_384_736_832);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn shares_follow_the_weights(hosts in hosts()) {
            let slots = table(&hosts);
            let sum: usize = hosts.iter().map(|host| usize::from(host.weight)).sum();
            for (number, host) in hosts.iter().enumerate() {
                let fair = SLOTS * usize::from(host.weight) / sum;
                let has = count(&slots, number);
                prop_assert!(has.abs_diff(fair) <= hosts.len() + 1, "{has} slots of {fair}: {hosts:?}");
            }
        }

        #[test]
        fn the_order_of_the_list_is_no_matter(hosts in hosts()) {
            let reversed: Vec<_> = hosts.iter().rev().copied().collect();
            let owners = |hosts: &[Share]| -> Vec<IpAddr> {
                table(hosts).into_iter().map(|owner| hosts[usize::from(owner)].address).collect()
            };
            prop_assert_eq!(owners(&hosts), owners(&reversed));
        }

        #[test]
        fn a_host_that_goes_moves_its_own_slots_alone_and_finds_them_again(
            mut hosts in hosts(), down in any::<u16>(), goes in any::<prop::sample::Index>(),
        ) {
            for (number, host) in hosts.iter_mut().enumerate() {
                host.live = down & (1 << number) == 0;
            }
            let goes = goes.index(hosts.len());
            hosts[goes].live = true;
            let before = table(&hosts);
            hosts[goes].live = false;
            if hosts.iter().any(|host| host.live) {
                let after = table(&hosts);
                for slot in moved(&before, &after) {
                    prop_assert_eq!(usize::from(before[slot]), goes);
                }
                prop_assert!(after.iter().all(|owner| hosts[usize::from(*owner)].live));
            }
            hosts[goes].live = true;
            prop_assert_eq!(before, table(&hosts));
        }
    }
}
