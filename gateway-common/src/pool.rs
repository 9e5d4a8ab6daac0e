//! Pools of outside addresses.

use crate::{family::MappedAddress, limit::Limit, pod};

/// Elements of `POOLS`.
pub const MAX_POOLS: u32 = 256;
/// Elements of `POOL_ADDRESSES`.
pub const MAX_POOL_ADDRESSES: u32 = 4_096;
/// Elements of `POOL_MEMBERS`: two halves, each with room for all addresses and their replacements.
pub const MAX_POOL_MEMBERS: u32 = 4 * MAX_POOL_ADDRESSES;
/// Addresses in one pool.
pub const MAX_ADDRESSES_PER_POOL: u32 = 256;

/// Lowest port a pool may use: the privileged ones stay with hosts (RFC 4787 REQ-3a).
pub const FIRST_PORT: u16 = 1_024;
/// Highest port a pool may use.
pub const LAST_PORT: u16 = 65_535;

/// Least maximum segment size of a pool, bytes: what hosts take to be the other's if they are not told (RFC 9293
/// 3.7.1), and less than any IPv4 link has to carry.
pub const MIN_MSS: u16 = 536;
/// As [`MIN_MSS`], for a pool with IPv6 addresses: what fits the least MTU of IPv6 (RFC 8200 5).
pub const MIN_MSS_V6: u16 = 1_220;
/// Largest maximum segment size of a pool, bytes: IPv4 in frames of 9,216 bytes, the largest that are common.
pub const MAX_MSS: u16 = 9_176;

/// Map `POOLS`, indexed by pool number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// First element of `POOL_MEMBERS`: the IPv4 addresses, then the IPv6 ones.
    pub first: u32,
    /// Number of IPv4 addresses.
    pub v4: u16,
    /// Number of IPv6 addresses.
    pub v6: u16,
    /// Lowest port, host byte order.
    pub port_low: u16,
    /// Highest port, host byte order, included.
    pub port_high: u16,
    /// [`ENDPOINT_INDEPENDENT`] | [`REFUSE_RESET`] | [`REFUSE_ICMP`].
    pub flags: u32,
    /// What each address may open towards each destination.
    pub limit: Limit,
}

/// [`Pool::flags`] and [`PoolAddress::flags`]: new flows of an inside host's address and port share a
/// [`crate::mapping`].
pub const ENDPOINT_INDEPENDENT: u32 = 8;

/// [`Pool::flags`]: a client whose connection the pool cannot take is told by a reset, or where it is not TCP, by an
/// ICMP error.
pub const REFUSE_RESET: u32 = 16;
/// [`Pool::flags`]: it is told by an ICMP error.
pub const REFUSE_ICMP: u32 = 32;

/// [`PoolAddress::flags`]: the pool address is in use.
pub const IN_USE: u32 = 1;
/// [`PoolAddress::flags`]: it takes no more sessions; those that it has go on.
pub const DRAINED: u32 = 2;
/// [`PoolAddress::flags`]: the host has the address too, and sockets on its ports.
pub const OF_HOST: u32 = 4;

/// Map `POOL_ADDRESSES`. An element keeps its number while the address is in its pool.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolAddress {
    /// See [`crate::family::MappedAddress`].
    pub address: MappedAddress,
    /// Number of the pool it belongs to.
    pub pool: u32,
    /// [`IN_USE`] | [`DRAINED`] | [`OF_HOST`] | [`ENDPOINT_INDEPENDENT`].
    pub flags: u32,
    /// Largest TCP segment that connections of its sessions announce, bytes; 0: what fits their ways.
    pub mss: u32,
}

/// A number for the choice of a client's address in a pool: always the same for a client and a secret, and
/// evenly spread over the clients of any subnet.
#[inline(always)]
pub const fn spread(client: &MappedAddress, secret: u32) -> u32 {
    // The finalizer of MurmurHash3 after each word: neighbours differ in one byte, wherever it is in the word,
    // and a pool of two addresses looks at one bit.
    let mut hash = secret;
    let mut at = 0;
    while at < client.len() {
        hash ^= client[at];
        hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
        hash ^= hash >> 16;
        at += 1;
    }
    hash
}

/// Another number for the client that got `hash`.
#[inline(always)]
pub const fn respread(hash: u32) -> u32 {
    let hash = (hash ^ 0x9e37_79b1).wrapping_mul(0x85eb_ca6b);
    (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35) ^ hash >> 16
}

/// Map `POOL_COUNTERS`, per CPU, one element per element of `POOL_ADDRESSES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounters {
    /// New flows that asked for a port.
    pub attempts: u64,
    /// New flows that were answered by the destination.
    pub established: u64,
    /// New flows for which no port was free on any address.
    pub allocation_errors: u64,
    /// New flows for which every address of the pool had opened too many too fast; counted at the client's own.
    pub over_rate: u64,
    /// New flows for which every address of the pool had too many at a time; counted at the client's own.
    pub over_concurrent: u64,
    /// Sessions removed because they were idle.
    pub idle_timeouts: u64,
    /// Sessions opened.
    pub opened: u64,
    /// Sessions removed, for whatever reason; `opened - closed` hold a port.
    pub closed: u64,
}

const _: () = assert!(size_of::<Pool>() == 32);
const _: () = assert!(size_of::<PoolAddress>() == 28);
const _: () = assert!(size_of::<PoolCounters>() == 64);

pod!(Pool, PoolAddress, PoolCounters);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_of_a_subnet_are_spread_evenly() {
        for (secret, count) in [(0, 2), (0xdead_beef, 2), (7, 3), (1, 8), (0x8000_0000, 256)] {
            let mut clients = [0u32; 256];
            for host in 0..65_536u32 {
                let [.., third, fourth] = host.to_be_bytes();
                let client = [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([10, 0, third, fourth])];
                clients[(spread(&client, secret) % count) as usize] += 1;
            }
            let fair = 65_536 / count;
            for share in &clients[..count as usize] {
                assert!(share.abs_diff(fair) < fair / 3, "{share} of {fair} clients at an address");
            }
        }
    }

    #[test]
    fn sixteen_neighbours_do_not_meet_at_one_address_of_two() {
        for secret in 0..100 {
            let at =
                |host| spread(&[0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([10, 0, 1, host])], secret) % 2;
            let first = (16..32).filter(|host| at(*host) == 0).count();
            assert!((1..16).contains(&first), "secret {secret}: {first} of 16 clients at the first address");
        }
    }
}
