//! Maps `POOLS`, `POOL_MEMBERS` and `POOL_ADDRESSES`: which addresses a pool has, and which is a client's own.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use gateway_common::{
    family::{MappedAddress, is_same},
    pool::{
        self, DRAINED, ENDPOINT_INDEPENDENT, IN_USE, MAX_POOL_ADDRESSES, MAX_POOL_MEMBERS, MAX_POOLS, Pool,
        PoolAddress,
    },
};

use crate::family::Datapath;

#[btf_map]
static POOLS: Array<Pool, { MAX_POOLS as usize }> = Array::new();

/// Lists of elements of `POOL_ADDRESSES`; a pool has a run of it.
#[btf_map]
static POOL_MEMBERS: Array<u32, { MAX_POOL_MEMBERS as usize }> = Array::new();

#[btf_map]
static POOL_ADDRESSES: Array<PoolAddress, { MAX_POOL_ADDRESSES as usize }> = Array::new();

/// Choices of a client's own address, where the first ones are drained.
const OWN_CHOICES: u32 = 4;

/// The pool with this number.
#[inline(always)]
pub(crate) fn get(number: u32) -> Option<&'static Pool> {
    POOLS.get(number)
}

/// Whether the element `index` of `POOL_ADDRESSES` is `address`, in use.
#[inline(always)]
pub(crate) fn owns(index: u16, address: &MappedAddress) -> bool {
    POOL_ADDRESSES
        .get(u32::from(index))
        .is_some_and(|found| found.flags & IN_USE != 0 && is_same(&found.address, address))
}

/// The largest TCP segment that connections on the element `index` of `POOL_ADDRESSES` may announce, bytes.
#[inline(always)]
pub(crate) fn mss(index: u32) -> u16 {
    match POOL_ADDRESSES.get(index).map_or(0, |address| address.mss as u16) {
        0 => u16::MAX,
        mss => mss,
    }
}

/// Whether new flows of this pool share mappings.
#[inline(always)]
pub(crate) fn is_endpoint_independent(number: u32) -> bool {
    get(number).is_some_and(|pool| pool.flags & ENDPOINT_INDEPENDENT != 0)
}

/// A hash of a client that no client can foresee: not the one that chooses its address.
#[inline(always)]
pub(crate) fn client(address: &MappedAddress, secret: u32) -> u32 {
    pool::respread(pool::spread(address, secret))
}

/// What clients are told whose flows the pool cannot take: [`pool::REFUSE_RESET`], [`pool::REFUSE_ICMP`] or neither.
#[inline(always)]
pub(crate) fn refusal(number: u32) -> u32 {
    get(number).map_or(0, |pool| pool.flags & (pool::REFUSE_RESET | pool::REFUSE_ICMP))
}

/// The pool that the element `index` of `POOL_ADDRESSES` is in.
#[inline(always)]
pub(crate) fn number(index: u32) -> Option<u32> {
    POOL_ADDRESSES.get(index).filter(|found| found.flags & IN_USE != 0).map(|found| found.pool)
}

/// The element `index` of `POOL_ADDRESSES`, if it is `address`, in use by the pool `number`.
#[inline(always)]
pub(crate) fn of(index: u16, address: &MappedAddress, number: u32) -> Option<&'static PoolAddress> {
    POOL_ADDRESSES
        .get(u32::from(index))
        .filter(|found| found.flags & IN_USE != 0 && found.pool == number && is_same(&found.address, address))
}

/// The run of `POOL_MEMBERS` that has a pool's addresses of family `F`.
#[inline(always)]
pub(crate) fn members<F: Datapath>(pool: &Pool) -> (u32, u32) {
    if F::IS_V4 {
        (pool.first, u32::from(pool.v4))
    } else {
        (pool.first + u32::from(pool.v4), u32::from(pool.v6))
    }
}

/// Which address of a pool is a client's own: always the same one, while it is not drained. Who has to change
/// does so alone: the others keep theirs.
#[inline(always)]
pub(crate) fn own_address(secret: u32, client: &MappedAddress, first: u32, count: u32) -> u32 {
    let mut hash = pool::spread(client, secret);
    let mut own = remainder(hash, count);
    for _ in 1..OWN_CHOICES {
        if member(first + own).is_some_and(|(_, address)| address.flags & DRAINED == 0) {
            break;
        }
        hash = pool::respread(hash);
        own = remainder(hash, count);
    }
    own
}

/// The pool address at an element of `POOL_MEMBERS`, with its own element.
#[inline(always)]
pub(crate) fn member(at: u32) -> Option<(u32, &'static PoolAddress)> {
    let element = *POOL_MEMBERS.get(at)?;
    Some((element, POOL_ADDRESSES.get(element)?))
}

/// `a % b` without the check for 0 that would panic; 0 there.
#[inline(always)]
pub(crate) fn remainder(a: u32, b: u32) -> u32 {
    a.checked_rem(b).unwrap_or(0)
}
